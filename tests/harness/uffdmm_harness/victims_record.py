# SPDX-License-Identifier: GPL-2.0-or-later
"""Access traces of real guests, one window of guest time at a time.

Theory of operation.  The worker's looks take at least 0.4 s from zap to scan, in which a busy guest
uses everything.  So the guest stands still but for a short time between the two: it is stopped, the
worker drops the page-table entries, the guest runs for one window, is stopped again, and the scan
that follows sees what was in use in that window and nothing else.  The worker looks while it
evicts; before each look a little is put out to that end, and what the guest needs of it comes back
as a fault, which counts as a use.
"""

import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from uffdmm.stats import Stats
from uffdmm.trace import Recorder, Trace

from . import HarnessError, accel
from .guest import BOOT_SECONDS, Guest
from .machine import external_memory
from .manager import Manager
from .victims_guests import Workload

# What is put out for a look, one block.
_PROVOKE = 256 << 10
# The worker zaps so much at a time.
_ZAP = 64 << 20
_PATIENCE = 30.0
# Nothing can go while all of it is on its way: it is asked for again.
_AGAIN = 2.0
# Windows that were cut by a scan that came before their end are no windows.
_TRIES = 8


def record(workload: Workload, progress: Callable[[str], None]) -> Trace:
    """Boot the guest, run the workload, record it."""
    with (
        tempfile.TemporaryDirectory(prefix="uffdmm-victims-") as folder,
        Manager() as manager,
    ):
        config = workload.config(accel.choose(), Path(folder))
        config.objects = [external_memory(config.ram, manager.socket)]
        config.memory = "mem0"
        if workload.boot:
            config.arguments.append("-S")
        with Guest(config) as guest:
            progress(f"{workload.name}: booting")
            if workload.boot:
                guest.launch()
            else:
                guest.boot(timeout=BOOT_SECONDS * 5)
            if workload.fill:
                guest.port.fill(workload.fill, seed=7, timeout=300)
                guest.port.send(f"run pattern={workload.run} ms=0 report_ms=10000000 seed=1")
            guest.qmp("stop")
            return _Windows(workload, guest, manager, progress).trace()


class _Windows:
    def __init__(
        self,
        workload: Workload,
        guest: Guest,
        manager: Manager,
        progress: Callable[[str], None],
    ) -> None:
        self._workload = workload
        self._guest = guest
        self._manager = manager
        self._progress = progress
        (entry,) = manager.client.list_vms()
        self._vm = manager.vm(entry.vm_name)
        # Neighbours of a fault would be taken for pages in use.
        self._vm.set_policy(readahead_pages=1)

    def trace(self) -> Trace:
        """All windows."""
        workload = self._workload
        with self._vm:
            recorder = Recorder(self._vm)
            try:
                recorder.take(0.0)
                ran = 0.0
                for number in range(workload.windows):
                    if workload.mark and workload.mark[0] == number:
                        recorder.mark(workload.mark[1])
                        self._guest.port.send("go")
                    ran += self._window()
                    recorder.take(ran)
                    if number % 20 == 19:
                        self._progress(f"{workload.name}: {number + 1} of {workload.windows}")
                return recorder.trace(
                    workload.name, f"{workload.about}; {workload.window * 1e3:g} ms a look"
                )
            finally:
                recorder.close()

    def _window(self) -> float:
        """One window between a zap and its scan; the seconds that the guest ran."""
        if self._vm.statistics().resident_bytes < 4 * _PROVOKE:
            # Nothing to put out, and nothing to look at: all that is used arrives.
            return self._run()
        ran = 0.0
        for _ in range(_TRIES):
            # Looks come in pairs: the second one of the window before must be over.
            self._wait(lambda stats: not stats.age_tracking)
            before = self._vm.statistics()
            self._wait(functools.partial(_zapped, before), provoke=True)
            ran += self._run()
            early = _scanned(before, self._vm.statistics())
            self._wait(functools.partial(_scanned, before))
            if not early:
                return ran
        raise HarnessError(
            f"{self._workload.name}: scans came before the end of a window {_TRIES} times:"
            " the host is too busy"
        )

    def _run(self) -> float:
        """Let the guest run for one window; the seconds that it took."""
        began = time.monotonic()
        self._guest.qmp("cont")
        time.sleep(self._workload.window)
        self._guest.qmp("stop")
        return time.monotonic() - began

    def _wait(self, done: Callable[[Stats], bool], *, provoke: bool = False) -> None:
        """Until the worker's counters say so; now and then something is put out to that end."""
        now = asked = time.monotonic()
        deadline = now + _PATIENCE
        if provoke:
            self._vm.evict(_PROVOKE)
        while not done(self._vm.statistics()):
            now = time.monotonic()
            if provoke and now > asked + _AGAIN:
                asked = now
                self._vm.evict(_PROVOKE)
            if now > deadline:
                raise HarnessError(
                    f"{self._workload.name}: no look at accesses within {_PATIENCE:.0f} s; the"
                    f" manager says {self._manager.log[-400:]!r}"
                )
            time.sleep(0.002)


def _zapped(before: Stats, now: Stats) -> bool:
    """Whether all page-table entries were dropped since."""
    return now.zaps >= before.zaps + -(-before.ram_bytes // _ZAP)


def _scanned(before: Stats, now: Stats) -> bool:
    """Whether a scan has come since."""
    return now.scanned_pages != before.scanned_pages
