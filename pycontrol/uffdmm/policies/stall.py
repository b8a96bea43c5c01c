# SPDX-License-Identifier: GPL-2.0-or-later
"""Proactive reclaim under a stall budget.

Takes memory from every VM, step by step, as long as the guest loses less than the stall budget to
faults (default: 0.2 % of its vCPU time), and gives back as soon as it loses more.  Steps get
smaller the nearer the loss is to the budget, so that a VM settles at the smallest memory that it
does not feel.
Growth back is slow unless the loss is far above the budget, and taking is faster under pressure.

The loss that is acted on is a mean of some seconds: in one second a dozen reads of a disk are the
whole budget.  A loss far above it counts at once, but for no more than it takes to give back as
fast as can be: a single bad second is forgotten in ten.

Which pages are idle is only known when the worker has looked, and it looks when it evicts; before,
it takes pages in the order of their arrival, in use or not.  So the first step from memory that
nobody has looked at is a small one, and takes nothing more until ages are known.
"""

from .base import Decision, HostView, Policy, VmView
from .budget import Claim, share_out

# Of the resident memory, in a second.
TAKE = 0.03
# Of the RAM, in a second: at the budget's double; eight times as much at most.
GIVE = 0.01
GIVE_MOST = 8.0
PRESSURE = 4.0
# Weight of the newest second in the loss that is acted on.
SMOOTHING = 0.2
# So many times the budget within one sample are no chance.
ALARM = 10.0
# Taken in a second from memory that nobody has looked at: enough to be seen by the worker.
PROBE = 2 << 20


class StallPolicy(Policy):
    """See the head of this file."""

    def __init__(self, stall_budget: float) -> None:
        super().__init__(stall_budget)
        self._targets: dict[str, float] = {}
        self._losses: dict[str, float] = {}

    def decide(self, host: HostView) -> Decision:
        """A target for each VM; by shares where not all targets fit the budget."""
        self._losses = {name: self._loss(vm, host.interval) for name, vm in host.vms.items()}
        self._targets = {name: self._target(vm, host) for name, vm in host.vms.items()}
        claims = {
            name: Claim(vm.min_bytes, max(vm.min_bytes, int(self._targets[name])), vm.shares)
            for name, vm in host.vms.items()
        }
        return Decision(share_out(host.budget_bytes, claims))

    def _loss(self, vm: VmView, interval: float) -> float:
        before = self._losses.get(vm.name, 0.0)
        if vm.stall_share > ALARM * self.stall_budget:
            return max(before, ALARM * self.stall_budget)
        return before + min(1.0, SMOOTHING * interval) * (vm.stall_share - before)

    def _target(self, vm: VmView, host: HostView) -> float:
        loss, budget = self._losses[vm.name], max(self.stall_budget, 1e-9)
        before = min(self._targets.get(vm.name, float(vm.limit_bytes)), float(vm.max_bytes))
        if loss > budget:
            strength = min(loss / budget - 1, GIVE_MOST)
            target = max(before, vm.resident_bytes) + strength * GIVE * vm.ram_bytes * host.interval
        else:
            # Of what is resident: below a limit that is not reached nothing would change.
            start = min(before, float(max(vm.resident_bytes, vm.min_bytes)))
            target = start - self._step(vm, start, loss / budget, host)
        return min(max(target, float(vm.min_bytes)), float(vm.max_bytes))

    @staticmethod
    def _step(vm: VmView, start: float, used: float, host: HostView) -> float:
        """Bytes to take from ``start``; ``used`` is the share of the stall budget that is gone."""
        if host.pressure:
            return start * min(0.5, PRESSURE * TAKE * (1 - used) * host.interval)
        step = start * min(0.5, TAKE * (1 - used) * host.interval)
        return min(step, PROBE * host.interval) if vm.ages is None else step
