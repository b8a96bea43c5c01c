# SPDX-License-Identifier: GPL-2.0-or-later
"""The model of a guest: its memory, page by page, under a limit.

Theory of operation.  In each interval the guest uses the units that its trace says it used then.
Those that are in a store come back, each a fault of a fixed cost; those never used before appear.
When more is resident than the limit allows, the longest unused go, among equals those with the
lowest number; so a guest that uses more in one interval than it may hold loses the rest again.
An interval in which something went, or that follows one, has a look at accesses.
A fault does not delay the guest: what it used in an interval it uses in that interval, whatever the
limit.  The loss that a policy sees is therefore an upper bound where it is large.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .._native import lib
from ..pagetable import AGE_MAX, PageTable
from ..stats import bucket_bounds
from ..trace import Trace
from ..trace.model import PAGE, unpack

# Demanded since the last look, as the worker marks it.
_AGE_NEW = 255
# Ages are worth something for so long after the worker's last look, and from the second one on
# (uffdmm.serve.vm); even a short eviction is followed by as many (native/src/track.c).
_AGES_SECONDS = 15.0
_LOOKS_LEAST = 2
_LIMIT_NONE = 0


class ModelTable(PageTable):
    """States and ages as a policy gets them from a page-state table."""

    def __init__(self, states: NDArray[np.uint8], ages: NDArray[np.uint8]) -> None:
        self._state_copy, self._age_copy = states, ages
        self.nr_pages = len(states)

    def states(self, stride: int = 1) -> NDArray[np.uint8]:
        """The state of every ``stride``-th unit; a copy."""
        return self._state_copy[::stride].copy()

    def ages(self, stride: int = 1) -> NDArray[np.uint8]:
        """The age of every ``stride``-th unit; a copy."""
        return self._age_copy[::stride].copy()

    def close(self) -> None:
        """Nothing is mapped."""


@dataclass(frozen=True, slots=True)
class Tick:
    """What one interval was like for the guest."""

    faults: int  # pages that came back from a store
    stall_share: float
    refault_rate: float  # bytes a second
    ages: NDArray[np.float64] | None  # bytes by age
    fault_counts: NDArray[np.int64]


class GuestModel:
    """One VM.

    :param fault_cost: seconds that a page's way back takes
    """

    def __init__(self, name: str, trace: Trace, fault_cost: float) -> None:
        self.name = name
        self.trace = trace
        self._cost = fault_cost
        nr = trace.nr_units
        self._resident = unpack(trace.resident, nr)
        self._stored = unpack(trace.stored, nr) & ~self._resident
        # Intervals since the last use; what was there at first has no history.
        self._last_use = np.full(nr, -1, np.int64)
        self._arrived = np.zeros(nr, np.int64)
        self._now = 0
        self._next_row = 1
        self._standing = np.zeros(nr, np.bool_)
        self._looked_at: float | None = None
        self._looks = self._looks_in_a_row = 0
        self._evicted = False
        self._bucket = _bucket_of(fault_cost)
        limit = int(trace.counters["limit_bytes"][0])
        self.limit_bytes = self.ram_bytes if limit == _LIMIT_NONE else min(limit, self.ram_bytes)
        self._evict()

    @property
    def ram_bytes(self) -> int:
        """Its memory."""
        return self.trace.ram_bytes

    @property
    def resident_bytes(self) -> int:
        """Of it in RAM."""
        return min(self.ram_bytes, int(self._resident.sum()) * self.trace.unit_bytes)

    @property
    def stored_bytes(self) -> int:
        """Of it in stores."""
        return min(self.ram_bytes, int(self._stored.sum()) * self.trace.unit_bytes)

    @property
    def table(self) -> ModelTable:
        """States and ages of this moment."""
        states = np.full(self.trace.nr_units, lib.UFFDMM_PAGE_EMPTY, np.uint8)
        states[self._resident] = lib.UFFDMM_PAGE_RESIDENT
        states[self._stored] = lib.UFFDMM_PAGE_STORED
        return ModelTable(states, self._ages())

    def begins_at(self, seconds: float) -> float:
        """Seconds of the trace that have passed, for a clock that starts at 0."""
        return float(self.trace.times[0]) + seconds

    def ended(self, seconds: float) -> bool:
        """Whether the trace is over."""
        return seconds > self.trace.seconds + 1e-9

    def set_limit(self, limit: int) -> None:
        """Change its limit; pages go at once."""
        self.limit_bytes = limit
        self._evict()

    def prefetch(self, size: int) -> None:
        """Bring stored pages in, the last used first, as far as the limit allows."""
        room = min(size, max(0, self.limit_bytes - self.resident_bytes)) // self.trace.unit_bytes
        stored = np.flatnonzero(self._stored)
        chosen = stored[np.argsort(-self._last_use[stored], kind="stable")[:room]]
        self._stored[chosen] = False
        self._resident[chosen] = True

    def advance(self, seconds: float, interval: float) -> Tick:
        """One interval, which ends at ``seconds``."""
        self._now += 1
        used = self._used(seconds)
        missing = used & self._stored
        faults = int(missing.sum()) * self.trace.stride
        arrived = used & ~self._resident
        self._resident |= used
        self._stored &= ~used
        self._arrived[arrived] = self._now
        self._last_use[used] = self._now
        self._evict()
        self._look(seconds)
        known = (
            self._looked_at is not None
            and seconds - self._looked_at <= _AGES_SECONDS
            and self._looks >= _LOOKS_LEAST
        )
        counts = np.zeros(lib.UFFDMM_HIST_BUCKETS, np.int64)
        counts[self._bucket] = faults
        vcpus = self.trace.settings.vcpus
        return Tick(
            faults=faults,
            stall_share=min(1.0, faults * self._cost / interval / vcpus),
            refault_rate=faults * PAGE / interval,
            ages=self._age_histogram() if known else None,
            fault_counts=counts,
        )

    def _look(self, seconds: float) -> None:
        """The worker's look, if something was put out since the last one or it wants one more."""
        if self._evicted or 0 < self._looks_in_a_row < _LOOKS_LEAST:
            self._looked_at = seconds
            self._looks += 1
            self._looks_in_a_row += 1
        else:
            self._looks_in_a_row = 0
        self._evicted = False

    def _used(self, seconds: float) -> NDArray[np.bool_]:
        """The units in use since the tick before.

        A guest whose accesses were not looked at meanwhile goes on with what it was last seen to
        do; to that comes what arrived.
        """
        times, until = self.trace.times, self.begins_at(seconds) + 1e-9
        seen = np.zeros(self.trace.nr_units, np.bool_)
        looked = False
        while self._next_row < len(times) and times[self._next_row] <= until:
            row = self.trace.row(self._next_row)
            seen |= row
            looked |= bool(self.trace.looked[self._next_row])
            self._next_row += 1
        if looked:
            self._standing = seen
        return seen if looked else seen | self._standing

    def _evict(self) -> None:
        """Down to the limit."""
        most = self.limit_bytes // self.trace.unit_bytes
        excess = int(self._resident.sum()) - most
        if excess <= 0:
            return
        resident = np.flatnonzero(self._resident)
        oldest = resident[np.argsort(self._last_use[resident], kind="stable")[:excess]]
        self._resident[oldest] = False
        self._stored[oldest] = True
        self._evicted = True

    def _ages(self) -> NDArray[np.uint8]:
        ages = np.clip(self._now - self._last_use, 0, AGE_MAX).astype(np.uint8)
        ages[self._last_use < 0] = AGE_MAX
        # What came in since the look before has no age yet.
        ages[(self._arrived == self._now) & (self._now > 0)] = _AGE_NEW
        return ages

    def _age_histogram(self) -> NDArray[np.float64]:
        counts = np.bincount(self._ages()[self._resident], minlength=256)
        return counts.astype(np.float64) * self.trace.unit_bytes


def _bucket_of(seconds: float) -> int:
    """The bucket of the fault histogram that such a time falls into."""
    nanoseconds = seconds * 1e9
    for index in range(lib.UFFDMM_HIST_BUCKETS):
        if nanoseconds < bucket_bounds(index)[1]:
            return index
    return int(lib.UFFDMM_HIST_BUCKETS) - 1
