# SPDX-License-Identifier: GPL-2.0-or-later
"""Recorded accesses, replayed through orders of eviction.

A use of a page that was used before is a hit when the page is still in memory; first uses are not
counted, for no order can do anything about them.  Pages of one window are replayed in an order that
is drawn from a seed, the same one for all: the trace does not know it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from uffdmm.trace import Trace

from .victims_manager import SAMPLE_MIN, ManagerOrder
from .victims_orders import ORDERS, Order, optimum

SHARES = (0.25, 0.5, 0.75)
MANAGER, OPTIMUM = "manager", "optimum"
# Its rule of when ages count, as it is for guests of 1 GiB; and without the rule.
UNSCALED, ALWAYS = "manager, unscaled", "manager, ages always"
NAMES = (MANAGER, UNSCALED, ALWAYS, *ORDERS, OPTIMUM)
# A page that is in use in so many of the windows before a mark belongs to the working set.
_WORKING_SET = 0.25


@dataclass(frozen=True, slots=True)
class Outcome:
    """One order on one trace at one size."""

    trace: str
    order: str
    share: float  # memory, of all pages that the trace uses
    capacity: int  # pages
    reuses: int
    hits: int
    # Of the working set before the mark, in the windows after it; None where there is no mark.
    set_pages: int | None = None
    set_reuses: int | None = None
    set_hits: int | None = None

    @property
    def ratio(self) -> float:
        """Hits among reuses."""
        return self.hits / max(1, self.reuses)

    @property
    def set_ratio(self) -> float | None:
        """The same for the working set after the mark."""
        if self.set_reuses is None or self.set_hits is None:
            return None
        return self.set_hits / max(1, self.set_reuses)


def windows_of(trace: Trace, seed: int = 1) -> list[list[int]]:
    """The pages of each window, in the order in which they are replayed."""
    random = np.random.default_rng(seed)
    windows = []
    for sample in range(1, len(trace.times)):
        pages = np.flatnonzero(trace.row(sample))
        random.shuffle(pages)
        windows.append([int(page) for page in pages])
    return windows


def working_set(windows: Sequence[Sequence[int]], mark: int) -> set[int]:
    """Pages that are in use in many of the windows before the mark."""
    counts: dict[int, int] = {}
    before = windows[mark // 2 : mark]
    for window in before:
        for page in window:
            counts[page] = counts.get(page, 0) + 1
    return {page for page, count in counts.items() if count >= _WORKING_SET * len(before)}


def hits_of(order: Order, windows: Sequence[Sequence[int]]) -> list[bool]:
    """For each use, whether its page was in memory."""
    hits = []
    for window in windows:
        kept = []
        for page in window:
            hit = page in order.resident
            hits.append(hit)
            if hit:
                kept.append(page)
            else:
                order.arrive(page)
        order.look(sorted(page for page in kept if page in order.resident))
    return hits


def replay(trace: Trace, *, seed: int = 1, names: Sequence[str] = NAMES) -> list[Outcome]:
    """All orders at all sizes."""
    windows = windows_of(trace, seed)
    uses = [page for window in windows for page in window]
    footprint = len(set(uses))
    again = _again(uses)
    # The mark names the sample at whose window it happened; sample 0 has none.
    mark = next(iter(trace.marks.values()), None)
    found, late = set[int](), [False] * len(uses)
    if mark is not None:
        found = working_set(windows, mark - 1)
        begin = sum(len(window) for window in windows[: mark - 1])
        late = [at >= begin and page in found for at, page in enumerate(uses)]
    outcomes = []
    for share in SHARES:
        capacity = max(1, round(share * footprint))
        for name in names:
            hits = _hits(name, capacity, trace, windows, uses)
            both = [hit and second for hit, second in zip(hits, again, strict=True)]
            outcomes.append(
                Outcome(
                    trace=trace.name,
                    order=name,
                    share=share,
                    capacity=capacity,
                    reuses=sum(again),
                    hits=sum(both),
                    set_pages=len(found) if mark is not None else None,
                    set_reuses=sum(late) if mark is not None else None,
                    set_hits=sum(hit and is_late for hit, is_late in zip(hits, late, strict=True))
                    if mark is not None
                    else None,
                )
            )
    return outcomes


def _hits(
    name: str,
    capacity: int,
    trace: Trace,
    windows: Sequence[Sequence[int]],
    uses: Sequence[int],
) -> list[bool]:
    if name == OPTIMUM:
        return optimum(uses, capacity)
    special: dict[str, Callable[[], Order]] = {
        MANAGER: lambda: ManagerOrder(capacity, trace.nr_units),
        UNSCALED: lambda: ManagerOrder(capacity, trace.nr_units, sample_min=SAMPLE_MIN),
        ALWAYS: lambda: ManagerOrder(capacity, trace.nr_units, always=True),
    }
    make = special.get(name) or (lambda: ORDERS[name](capacity))
    return hits_of(make(), windows)


def _again(uses: Sequence[int]) -> list[bool]:
    """Which uses are not the first of their page."""
    seen: set[int] = set()
    again = []
    for page in uses:
        again.append(page in seen)
        seen.add(page)
    return again
