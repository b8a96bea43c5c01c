# SPDX-License-Identifier: GPL-2.0-or-later
"""Proactive reclaim under a stall budget.

Takes memory from every VM, step by step, as long as the guest loses less than the stall budget to
faults (default: 0.2 % of its vCPU time), and gives back as soon as it loses more.  Steps get
smaller the nearer the loss is to the budget, so that a VM settles at the smallest memory that it
does not feel.
Growth back is slow unless the loss is far above the budget, and taking is faster under pressure.
"""

from .base import Decision, HostView, Policy, VmView
from .budget import Claim, share_out

# Of the resident memory, in a second.
TAKE = 0.03
# Of the RAM, in a second: at the budget's double; eight times as much at most.
GIVE = 0.01
GIVE_MOST = 8.0
PRESSURE = 4.0
# Weight of the newest sample in the loss that is acted on when it falls; a rise counts at once.
SMOOTHING = 0.3


class StallPolicy(Policy):
    """See the head of this file."""

    def __init__(self, stall_budget: float) -> None:
        super().__init__(stall_budget)
        self._targets: dict[str, float] = {}
        self._losses: dict[str, float] = {}

    def decide(self, host: HostView) -> Decision:
        """A target for each VM; by shares where not all targets fit the budget."""
        self._losses = {name: self._loss(vm) for name, vm in host.vms.items()}
        self._targets = {name: self._target(vm, host) for name, vm in host.vms.items()}
        claims = {
            name: Claim(vm.min_bytes, max(vm.min_bytes, int(self._targets[name])), vm.shares)
            for name, vm in host.vms.items()
        }
        return Decision(share_out(host.budget_bytes, claims))

    def _loss(self, vm: VmView) -> float:
        before = self._losses.get(vm.name, 0.0)
        return max(vm.stall_share, before + SMOOTHING * (vm.stall_share - before))

    def _target(self, vm: VmView, host: HostView) -> float:
        loss, budget = self._losses[vm.name], max(self.stall_budget, 1e-9)
        before = min(self._targets.get(vm.name, float(vm.limit_bytes)), float(vm.max_bytes))
        if loss > budget:
            strength = min(loss / budget - 1, GIVE_MOST)
            target = max(before, vm.resident_bytes) + strength * GIVE * vm.ram_bytes * host.interval
        else:
            speed = TAKE * (1 - loss / budget) * (PRESSURE if host.pressure else 1.0)
            # Of what is resident: below a limit that is not reached nothing would change.
            start = min(before, float(max(vm.resident_bytes, vm.min_bytes)))
            target = start * (1 - min(0.5, speed * host.interval))
        return min(max(target, float(vm.min_bytes)), float(vm.max_bytes))
