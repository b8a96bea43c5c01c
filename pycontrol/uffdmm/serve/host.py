# SPDX-License-Identifier: GPL-2.0-or-later
"""The host's budget, what is taken off it, and whether the host is short of memory."""

from dataclasses import dataclass
from pathlib import Path

from ..stats import Stats

# Pressure: some task waited for memory this share of the last ten seconds, or less than this share
# of all memory is available.
PSI_SOME = 5.0  # per cent
AVAILABLE = 0.05


@dataclass(frozen=True, slots=True)
class HostMemory:
    """What the kernel says; None where it says nothing."""

    total_bytes: int
    available_bytes: int
    psi_some: float | None  # per cent of the last 10 s

    @property
    def pressure(self) -> bool:
        """Whether the host is short of memory."""
        waits = self.psi_some is not None and self.psi_some >= PSI_SOME
        return waits or self.available_bytes < AVAILABLE * self.total_bytes


def read_memory(proc: Path = Path("/proc")) -> HostMemory:
    """Look at /proc/meminfo and, where the kernel has it, /proc/pressure/memory."""
    values = dict(line.split(":", 1) for line in (proc / "meminfo").read_text().splitlines())
    psi: float | None = None
    try:
        for line in (proc / "pressure/memory").read_text().splitlines():
            if line.startswith("some "):
                psi = float(line.split("avg10=")[1].split()[0])
    except (OSError, IndexError, ValueError):
        psi = None
    return HostMemory(
        total_bytes=int(values["MemTotal"].split()[0]) << 10,
        available_bytes=int(values["MemAvailable"].split()[0]) << 10,
        psi_some=psi,
    )


def overhead(stats: Stats, *, pool_inside_limit: bool, proc: Path = Path("/proc")) -> int:
    """Memory of a VM's worker that its limit does not hold: pools, tables, the process's own.

    Its resident set also has what it maps of guest memory, of tables and of pools, so only the
    anonymous part of it is added to those.
    """
    pools = 0 if pool_inside_limit else stats.arena_bytes
    own = 0
    try:
        for line in (proc / str(stats.worker_pid) / "status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                own = int(line.split()[1]) << 10
    except OSError:
        # Just gone, or hidden from us: the tables and pools are there in any case.
        own = 0
    return pools + stats.table_bytes + own


def nr_vcpus(qemu_pid: int, proc: Path = Path("/proc")) -> int:
    """Number of vCPU threads of a QEMU that names them (``-name debug-threads=on``); else 1.

    One too few makes a guest look more stalled than it is, which costs memory and nothing else.
    """
    found = 0
    for comm in (proc / str(qemu_pid) / "task").glob("*/comm"):
        try:
            found += comm.read_text().startswith("CPU ")
        except OSError:
            continue
    return max(1, found)
