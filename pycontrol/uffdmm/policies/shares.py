# SPDX-License-Identifier: GPL-2.0-or-later
"""Proportional shares with an idle tax.

Each VM has a claim: the memory that it is seen to use, and a quarter of what it holds idle (a tax
of 75 %).  Claims are served first, higher priorities before lower ones, equal ones by shares; what
is left then goes to everybody by shares, up to the maximum.  So an idle VM keeps its memory while
nobody wants it, and shares decide between VMs that all use theirs.

What a VM uses is known in two ways:

* Ages of its pages: those in use at the last looks.  The worker only looks while it evicts.
* Faults: a guest that loses more than the stall budget wants what it has and, besides, what came
  back from stores within the horizon.  One that loses nothing and whose ages nobody knows has its
  claim lowered slowly.  When that is felt the claim rises again, and eviction makes ages known.
"""

from .base import Decision, HostView, Policy, VmView
from .budget import Claim, share_out

IDLE_TAX = 0.75
# Seconds of faults that a stalled VM asks room for: the change is to be followed within ten.
HORIZON = 5.0
# A claim that nothing is known of shrinks by this share in a second.
DECAY = 0.03
# A stalled VM asks for this share of its RAM more at least.
GROWTH = 0.02


class SharesPolicy(Policy):
    """See the head of this file."""

    def __init__(self, stall_budget: float) -> None:
        super().__init__(stall_budget)
        self._claims: dict[str, float] = {}

    def decide(self, host: HostView) -> Decision:
        """Claims by priority and shares, the rest by shares."""
        vms = host.vms
        self._claims = {name: self._claim(vm, host.interval) for name, vm in vms.items()}
        parts = {name: vm.min_bytes for name, vm in vms.items()}
        for level in sorted({vm.priority for vm in vms.values()}, reverse=True):
            served = {
                name: Claim(vm.min_bytes, self._bounded(vm), vm.shares)
                for name, vm in vms.items()
                if vm.priority == level
            }
            others = sum(part for name, part in parts.items() if name not in served)
            parts |= share_out(host.budget_bytes - others, served)
        rest = {name: Claim(parts[name], vm.max_bytes, vm.shares) for name, vm in vms.items()}
        return Decision(share_out(host.budget_bytes, rest))

    def _bounded(self, vm: VmView) -> int:
        return int(min(max(self._claims[vm.name], vm.min_bytes), vm.max_bytes))

    def _claim(self, vm: VmView, interval: float) -> float:
        before = self._claims.get(vm.name, float(min(vm.resident_bytes, vm.limit_bytes)))
        if vm.stall_share > self.stall_budget:
            wanted = max(vm.refault_rate * HORIZON, GROWTH * vm.ram_bytes * interval)
            # What it has and, so that claims do not run away from limits, a bounded part more.
            return min(float(vm.max_bytes), max(before, vm.resident_bytes) + wanted)
        active = vm.active_bytes()
        if active is None:
            return before * (1 - min(1.0, DECAY * interval))
        idle = max(0.0, vm.resident_bytes - active)
        claim = active + (1 - IDLE_TAX) * idle
        # Downward by half the way: one look that found little is not to cost a working set.
        return max(claim, (before + claim) / 2)
