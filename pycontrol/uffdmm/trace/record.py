# SPDX-License-Identifier: GPL-2.0-or-later
"""A trace from a running VM.

Theory of operation.  The worker keeps states and ages of all pages in memory that others may map,
so a sample costs it nothing.  A page was in use since the sample before when

* its age is less than the number of looks at accesses since then, or
* it came into memory on demand since then: it was not there, or is marked new and was not.

The worker looks at accesses only while it evicts.  Without a look, arrivals are all that is seen,
and the sample says so.  :meth:`Recorder.provoke` has a little put out, which makes it look.  A page
that was used and put out again between two samples is missed; one that came as read-ahead and was
judged by a look before it was seen here counts as used.
"""

import numpy as np
from numpy.typing import NDArray

from .._native import lib
from ..client import VirtualMachine
from ..pagetable import AGE_MAX, Region
from ..stats import Stats
from .model import (
    COUNTERS,
    PAGE,
    Settings,
    Trace,
    TraceError,
    pack,
    stride_for,
    units_of,
)

# As many pages as a policy's histogram looks at.
UNITS = 1 << 18
# Marks of the worker above the ages: came in on demand, before and after the last look began.
_AGE_NEW = 254
# What is put out to have the worker look; a batch of the evictor.
_PROVOKE = 1 << 20


class Recorder:
    """Samples of one VM, one :meth:`take` each.

    :param vm: stays open as long as this is used
    :param units: how many pages are looked at, at most
    :raise UffdmmError: the worker has no tables, or the VM no memory
    """

    def __init__(self, vm: VirtualMachine, *, vcpus: int = 1, units: int = UNITS) -> None:
        self._vm = vm
        stats = vm.statistics()
        if not stats.ram_bytes:
            raise TraceError(f"VM '{vm.vm_name}' has no memory yet", "try again when it runs")
        self._regions: list[Region] = vm.regions()
        self._ram = stats.ram_bytes
        self._stride = stride_for(self._ram, units)
        self._settings = Settings(
            min_bytes=stats.min_bytes,
            max_bytes=stats.max_bytes,
            shares=max(1, stats.shares),
            priority=stats.priority,
            vcpus=vcpus,
        )
        self._times: list[float] = []
        self._looked: list[bool] = []
        self._used: list[NDArray[np.uint8]] = []
        self._counters: dict[str, list[int]] = {name: [] for name in COUNTERS}
        self._marks: dict[str, int] = {}
        self._first: tuple[NDArray[np.uint8], NDArray[np.uint8]] | None = None
        self._resident = self._is_new = np.zeros(0, np.bool_)
        self._looks = 0

    @property
    def samples(self) -> int:
        """How many there are."""
        return len(self._times)

    def provoke(self) -> None:
        """Have the worker put a little out, so that it looks at accesses.

        :raise UffdmmError: it refuses
        """
        self._vm.evict(_PROVOKE)

    def mark(self, name: str) -> None:
        """Give the next sample a name."""
        self._marks[name] = self.samples

    def take(self, now: float) -> Stats:
        """One sample.

        :param now: seconds, more than at the sample before
        :raise TraceError: the VM is no longer what it was when the recording began
        """
        stats = self._vm.statistics()
        if stats.ram_bytes != self._ram:
            raise TraceError(
                f"VM '{self._vm.vm_name}' has {stats.ram_bytes} bytes of memory, at the first"
                f" sample it had {self._ram}",
                "record it anew: a trace holds one size",
            )
        # A look that has begun belongs to the next sample.
        looks = stats.scanned_pages // (self._ram // PAGE)
        states, ages = self._pages()
        resident = (states == lib.UFFDMM_PAGE_RESIDENT) | (states == lib.UFFDMM_PAGE_CLEAN)
        is_new = resident & (ages >= _AGE_NEW)
        if self._first is None:
            used = np.zeros_like(resident)
            self._first = (pack(resident), pack(states == lib.UFFDMM_PAGE_STORED))
        else:
            seen = resident & (ages <= AGE_MAX) & (ages < looks - self._looks)
            # Brought in unasked: nobody has been seen to use it.
            ahead = (ages > AGE_MAX) & (ages < _AGE_NEW)
            arrived = resident & ~self._resident & ~ahead
            used = seen | arrived | (is_new & ~self._is_new)
        self._times.append(now)
        self._looked.append(looks > self._looks and self.samples > 1)
        self._used.append(pack(used))
        for name in COUNTERS:
            self._counters[name].append(getattr(stats, name))
        self._resident, self._is_new, self._looks = resident, is_new, looks
        return stats

    def _pages(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """State and age of each unit's page, the regions one after the other."""
        unit = self._stride * PAGE
        states, ages = [], []
        for region in self._regions:
            # A huge page is several units, a unit several pages.
            step = max(1, unit // region.page_size)
            repeat = max(1, region.page_size // unit)
            states.append(np.repeat(region.table.states(step), repeat))
            ages.append(np.repeat(region.table.ages(step), repeat))
        nr = units_of(self._ram, self._stride)
        if sum(map(len, states)) < nr:
            raise TraceError(
                f"the regions of VM '{self._vm.vm_name}' are not all of its memory",
                "record it anew",
            )
        # Regions that are no whole number of units have one more each.
        return np.concatenate(states)[:nr], np.concatenate(ages)[:nr]

    def trace(self, name: str | None = None, source: str = "") -> Trace:
        """All samples so far.

        :raise TraceError: fewer than two
        """
        if self._first is None or self.samples < 2:
            raise TraceError(
                f"VM '{self._vm.vm_name}': {self.samples} samples make no trace",
                "record for longer",
            )
        resident, stored = self._first
        return Trace(
            name=name or self._vm.vm_name,
            ram_bytes=self._ram,
            stride=self._stride,
            times=np.array(self._times),
            looked=np.array(self._looked),
            used=np.array(self._used),
            resident=resident,
            stored=stored,
            counters={key: np.array(values, np.int64) for key, values in self._counters.items()},
            settings=self._settings,
            marks=dict(self._marks),
            source=source,
        )

    def close(self) -> None:
        """Unmap the tables."""
        for region in self._regions:
            region.close()
        self._regions = []
