# SPDX-License-Identifier: GPL-2.0-or-later
"""Proportional shares with an idle tax.

Each VM has a claim: the memory that it is seen to use, and a quarter of what it holds idle (a tax
of 75 %).  Claims are served first, higher priorities before lower ones, equal ones by shares; what
is left then goes to everybody in proportion to claim and shares, up to the maximum.  So an idle VM
keeps its memory while nobody wants it, and shares decide between VMs that all use theirs.

What a VM uses is known in two ways:

* Ages of its pages: those in use at the last looks.  The worker only looks while it evicts.
* Faults: a guest that loses more than the stall budget wants what it has and, besides, what came
  back from stores within the horizon.  One that loses nothing and whose ages nobody knows has its
  claim lowered: slowly, or fast while another one stalls at its limit.  When that is felt the
  claim rises again, and eviction makes ages known.
"""

from .base import Decision, HostView, Policy, VmView
from .budget import Claim, share_out

IDLE_TAX = 0.75
# Seconds of faults that a stalled VM asks room for: the change is to be followed within ten.
HORIZON = 5.0
# A claim that nothing is known of shrinks by this share in a second; the second one while another
# VM stalls at its limit, being at its limit when so much of that is resident.
DECAY = 0.03
DECAY_WANTED = 0.2
AT_LIMIT = 0.95
# A VM that loses a tenth of its time or more asks for this share of its RAM more at least, in a
# second; one that loses less for less: an idle guest that misses a few pages now and then, slowly
# because the host is busy, does not want half of the host.
GROWTH = 0.02
GROWTH_STALL = 0.1


class SharesPolicy(Policy):
    """See the head of this file."""

    def __init__(self, stall_budget: float) -> None:
        super().__init__(stall_budget)
        self._claims: dict[str, float] = {}

    def decide(self, host: HostView) -> Decision:
        """Claims by priority and shares, the rest by shares."""
        vms = host.vms
        wanting = {vm.name for vm in vms.values() if self._stalls(vm) and _at_limit(vm)}
        self._claims = {
            name: self._claim(vm, host.interval, wanted=bool(wanting - {name}))
            for name, vm in vms.items()
        }
        parts = {name: vm.min_bytes for name, vm in vms.items()}
        for level in sorted({vm.priority for vm in vms.values()}, reverse=True):
            served = {
                name: Claim(vm.min_bytes, self._bounded(vm), vm.shares)
                for name, vm in vms.items()
                if vm.priority == level
            }
            others = sum(part for name, part in parts.items() if name not in served)
            parts |= share_out(host.budget_bytes - others, served)
        rest = {
            name: Claim(parts[name], vm.max_bytes, vm.shares * max(1, self._bounded(vm)))
            for name, vm in vms.items()
        }
        return Decision(share_out(host.budget_bytes, rest))

    def _bounded(self, vm: VmView) -> int:
        return int(min(max(self._claims[vm.name], vm.min_bytes), vm.max_bytes))

    def _stalls(self, vm: VmView) -> bool:
        return vm.stall_share > self.stall_budget

    def _claim(self, vm: VmView, interval: float, *, wanted: bool) -> float:
        before = self._claims.get(vm.name, float(min(vm.resident_bytes, vm.limit_bytes)))
        if self._stalls(vm):
            urgency = min(1.0, vm.stall_share / GROWTH_STALL)
            more = max(vm.refault_rate * HORIZON, urgency * GROWTH * vm.ram_bytes * interval)
            # What it has and, so that claims do not run away from limits, a bounded part more.
            return min(float(vm.max_bytes), max(before, vm.resident_bytes) + more)
        active = vm.active_bytes()
        if active is None:
            decay = DECAY_WANTED if wanted else DECAY
            # Of what it has: a claim to more than that would only be in the way.
            return min(before, float(vm.resident_bytes)) * (1 - min(1.0, decay * interval))
        idle = max(0.0, vm.resident_bytes - active)
        claim = active + (1 - IDLE_TAX) * idle
        # Downward by half the way: one look that found little is not to cost a working set.
        return max(claim, (before + claim) / 2)


def _at_limit(vm: VmView) -> bool:
    return vm.resident_bytes >= AT_LIMIT * vm.limit_bytes
