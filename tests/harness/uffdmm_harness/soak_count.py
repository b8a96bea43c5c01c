# SPDX-License-Identifier: GPL-2.0-or-later
"""What happened during a soak, summed over the lives of all workers.

A worker's counters end with it, so they are looked at often; what one counted between the last look
and its death is not in the sum.
"""

import contextlib
import os
import signal
from collections.abc import Iterator, Mapping

from uffdmm.errors import UffdmmError

from .manager import Manager

_SUMMED = ("evicted", "faults", "store_errors", "checksum_errors", "lost_pages", "prefetched")
Counters = dict[str, int]


class Counts:
    """Sums, and counts of what was done."""

    def __init__(self) -> None:
        self.kills = 0
        self.stops = 0
        self.limits = 0
        self.missed = 0
        self.servers_killed = 0
        self._last: dict[int, Counters] = {}
        self.recoveries = 0
        self.recovery_max_ms = 0.0

    def sample(self, owner: Mapping[str, Manager]) -> None:
        """Look at every worker that answers."""
        for name, manager in owner.items():
            try:
                with manager.vm(name) as vm:
                    stats = vm.statistics()
            except UffdmmError:
                continue
            if stats.worker_pid not in self._last and stats.recoveries:
                self.recoveries += 1
                self.recovery_max_ms = max(self.recovery_max_ms, stats.recovery_ns / 1e6)
            self._last[stats.worker_pid] = {key: getattr(stats, key) for key in _SUMMED}

    def kill(self, pid: int) -> None:
        """SIGKILL."""
        os.kill(pid, signal.SIGKILL)
        self.kills += 1

    @contextlib.contextmanager
    def stopped(self, pid: int) -> Iterator[None]:
        """SIGSTOP, and at the end SIGCONT if it is still there."""
        os.kill(pid, signal.SIGSTOP)
        self.stops += 1
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def summary(self) -> dict[str, int | float]:
        """All of it, by the keys of the summary."""
        sums = {key: sum(last[key] for last in self._last.values()) for key in _SUMMED}
        return {
            "kills": self.kills,
            "stops": self.stops,
            "limit_changes": self.limits,
            "servers_killed": self.servers_killed,
            "missed_actions": self.missed,
            "workers": len(self._last),
            "recoveries": self.recoveries,
            "recovery_max_ms": round(self.recovery_max_ms, 2),
            "evictions": sums.pop("evicted"),
            **sums,
        }
