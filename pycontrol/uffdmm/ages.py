# SPDX-License-Identifier: GPL-2.0-or-later
"""How long ago resident pages were in use, in looks of the worker, and what follows from that.

The worker looks at accesses only while it evicts and as long as that tells something, so an age
counts looks, not seconds.  Pages that came in since the last look have no age yet.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from .pagetable import AGE_MAX, Region

# A page that was in use at one of so many last looks belongs to the working set.
WORKING_SET_LOOKS = 4


@dataclass(frozen=True, slots=True)
class Ages:
    """Resident guest memory by age."""

    # Bytes by age, 0 is "in use at the last look"; AGE_MAX is "then or longer ago".
    by_age: tuple[int, ...]
    # Bytes that came in since the last look.
    new: int

    @property
    def working_set(self) -> int:
        """Bytes in use at one of the last looks, or brought in since."""
        return sum(self.by_age[:WORKING_SET_LOOKS]) + self.new

    def octaves(self) -> list[tuple[int, int, int]]:
        """First and last age and bytes, for ages 0, 1, 2 to 3, 4 to 7, and so on; none empty."""
        found = []
        first, last = 0, 0
        while first <= AGE_MAX:
            size = sum(self.by_age[first : last + 1])
            if size:
                found.append((first, min(last, AGE_MAX), size))
            first, last = last + 1, 2 * last + 1
        return found


def ages_of(regions: Iterable[Region]) -> Ages:
    """The ages in the page-state tables of some regions, added up."""
    by_age = [0] * (AGE_MAX + 1)
    new = 0
    for region in regions:
        histogram = region.table.age_histogram()
        for age, pages in enumerate(histogram.tolist()):
            if age <= AGE_MAX:
                by_age[age] += round(pages) * region.page_size
            else:
                new += round(pages) * region.page_size
    return Ages(tuple(by_age), new)
