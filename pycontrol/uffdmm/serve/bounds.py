# SPDX-License-Identifier: GPL-2.0-or-later
"""Bounds of VMs that contradict each other or the budget are refused; those before stay.

The worker keeps minimum and maximum and refuses a pair that is no interval.  It knows nothing of
other VMs: that all minima fit the budget is seen to here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ..stats import Stats

# No guest does anything but fault below this; the worker refuses less for pages of 2 MiB.
LEAST = 16 << 20


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds of one VM, in bytes."""

    least: int
    most: int


def bounds_of(stats: Stats) -> Bounds:
    """What the worker keeps, within what can be."""
    ram = stats.ram_bytes
    least = min(ram, max(stats.min_bytes, LEAST))
    return Bounds(least, max(least, min(ram, stats.max_bytes or ram)))


def settle(
    budget: int, wanted: Mapping[str, Bounds], before: Mapping[str, Bounds]
) -> tuple[dict[str, Bounds], list[str]]:
    """The bounds to work with, and the VMs whose wish was refused.

    A wish that is new and does not fit gives way to what was in force; a VM that is new gets what
    the others leave.  Old ones are settled first, so that a new one cannot push them aside.
    """
    settled: dict[str, Bounds] = {}
    refused: list[str] = []
    # What stays as it was first, then changes, then new VMs.
    order = sorted(wanted, key=lambda name: (before.get(name) != wanted[name], name not in before))
    # Nobody's change may take what another one had already.
    reserved = sum(before[name].least for name in wanted if name in before)
    for name in order:
        own = before.get(name)
        reserved -= own.least if own else 0
        room = budget - reserved - sum(bounds.least for bounds in settled.values())
        wish = wanted[name]
        if wish.least <= room:
            settled[name] = wish
            continue
        refused.append(name)
        least = max(0, min(own.least if own else wish.least, room))
        settled[name] = Bounds(least, max(least, wish.most))
    return settled, refused
