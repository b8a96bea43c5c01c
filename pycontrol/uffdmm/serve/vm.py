# SPDX-License-Identifier: GPL-2.0-or-later
"""One VM as the control plane sees it: a connection to its worker, and samples.

A sample reads mapped memory and costs the worker no request.  A worker that was replaced has
another pid: :class:`VmLink` belongs to one worker and is made anew.
"""

import contextlib
import os
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..client import Manager, VirtualMachine, VmEntry
from ..errors import ManagerError
from ..pagetable import Region
from ..stats import Stats
from .host import nr_vcpus

PAGE = 4096
# Ages are worth something for so long after the worker's last look, and from the second one on:
# the first tells what was in use at that moment, and the worker does not go by it yet.
_AGES_SECONDS = 15.0
_LOOKS_LEAST = 2


@dataclass(frozen=True, slots=True)
class Sample:
    """One VM at one moment, and what happened since the moment before."""

    stats: Stats
    stall_share: float
    refault_rate: float
    ages: NDArray[np.float64] | None
    fault_counts: NDArray[np.int64]


class VmLink:
    """A connection to one worker.

    :raise UffdmmError: the worker cannot be reached
    """

    def __init__(self, manager: Manager, entry: VmEntry) -> None:
        self.entry = entry
        self.vm: VirtualMachine = manager.open_vm(entry.vm_name)
        self.regions: list[Region] = []
        try:
            self._before = self.vm.statistics()
            # A manager without tables still has limits; what fails otherwise is worth a try later.
            with contextlib.suppress(ManagerError):
                self.regions = self.vm.regions()
        except BaseException:
            self.close()
            raise
        self._taken = time.monotonic()
        self._looked: float | None = None
        self._vcpus = nr_vcpus(entry.qemu_pid)

    def sample(self) -> Sample:
        """The VM now."""
        now, stats, before = time.monotonic(), self.vm.statistics(), self._before
        seconds = max(1e-3, now - self._taken)
        if stats.scanned_pages != before.scanned_pages:
            self._looked = now
        if stats.nr_regions != len(self.regions):
            self._map_regions()
        known = (
            self._looked is not None
            and now - self._looked <= _AGES_SECONDS
            and stats.scanned_pages * PAGE >= _LOOKS_LEAST * stats.ram_bytes
        )
        sample = Sample(
            stats=stats,
            stall_share=max(0, stats.fault_ns - before.fault_ns) / 1e9 / seconds / self._vcpus,
            refault_rate=max(0, stats.faults_store - before.faults_store) * PAGE / seconds,
            ages=self._ages() if known and self.regions else None,
            fault_counts=np.subtract(stats.fault_hist.counts, before.fault_hist.counts),
        )
        self._before, self._taken = stats, now
        return sample

    def _map_regions(self) -> None:
        with contextlib.suppress(ManagerError):
            found = self.vm.regions()
            self._drop_regions()
            self.regions = found

    def _ages(self) -> NDArray[np.float64]:
        total = np.zeros(256)
        for region in self.regions:
            total += region.table.age_histogram() * region.page_size
        return total

    @property
    def alive(self) -> bool:
        """Whether the worker's process is there."""
        try:
            os.kill(self.entry.worker_pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True

    def _drop_regions(self) -> None:
        for region in self.regions:
            # A policy that is late may still look at a table: its view keeps the mapping.
            with contextlib.suppress(BufferError):
                region.close()
        self.regions = []

    def close(self) -> None:
        """Give back connection and mappings."""
        self._drop_regions()
        self.vm.close()
