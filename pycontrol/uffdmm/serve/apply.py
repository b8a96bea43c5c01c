# SPDX-License-Identifier: GPL-2.0-or-later
"""From the limits in force to those decided.

Down at a stated rate, slower while the guest loses more than the stall budget, faster while the
host is short of memory.  Up at once, but only into memory that others have given back: limits, and
what is still resident of VMs on their way down, never exceed the budget because of a raise.
"""

from collections.abc import Mapping

from ..policies import HostView

PAGE = 4096
# Changes smaller than this are not worth a message.
LEAST_CHANGE = 1 << 20
# A stalled guest is lowered at this share of the rate: the host's need outlasts its own.
SLOWEST = 0.25
PRESSURE = 4.0


def next_limits(
    host: HostView, targets: Mapping[str, int], *, rate: float, stall_budget: float
) -> dict[str, int]:
    """The limits to set now; VMs whose limit stays are left out.

    :param rate: bytes a second by which a limit falls
    """
    limits: dict[str, int] = {}
    taken = 0
    raised: list[str] = []
    for name, vm in host.vms.items():
        target = targets.get(name, vm.limit_bytes)
        if target >= vm.limit_bytes:
            raised.append(name)
            taken += vm.limit_bytes
            continue
        speed = rate * host.interval * (PRESSURE if host.pressure else 1.0)
        if vm.stall_share > stall_budget:
            speed *= max(SLOWEST, stall_budget / vm.stall_share)
        # From a limit that is not reached down to what is resident nobody feels anything.
        start = min(vm.limit_bytes, max(vm.resident_bytes, target))
        limit = max(target, int(start - speed) & -PAGE)
        if vm.limit_bytes - limit >= LEAST_CHANGE or limit == target:
            limits[name] = limit
        taken += max(limits.get(name, vm.limit_bytes), min(vm.resident_bytes, vm.limit_bytes))
    room = host.budget_bytes - taken
    for name in sorted(raised, key=lambda name: -host.vms[name].priority):
        vm = host.vms[name]
        more = min(targets.get(name, vm.limit_bytes) - vm.limit_bytes, room) & -PAGE
        if more >= LEAST_CHANGE:
            limits[name] = vm.limit_bytes + more
            room -= more
    return limits
