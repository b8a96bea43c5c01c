# SPDX-License-Identifier: GPL-2.0-or-later
"""What a process and the host have in memory and in swap, as the kernel tells it."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from . import HarnessError

_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) ")


@dataclass(frozen=True, slots=True)
class HostSwap:
    """Pages that the host swapped since it booted."""

    pages_in: int
    pages_out: int

    def __sub__(self, earlier: "HostSwap") -> "HostSwap":
        return HostSwap(self.pages_in - earlier.pages_in, self.pages_out - earlier.pages_out)

    @property
    def idle(self) -> bool:
        """Whether nothing moved."""
        return self.pages_in == 0 and self.pages_out == 0


def host_swap() -> HostSwap:
    """The counters pswpin and pswpout of /proc/vmstat."""
    values = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return HostSwap(int(values["pswpin"]), int(values["pswpout"]))


def process_rss(pid: int) -> int:
    """Resident bytes of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def process_charged(pid: int) -> int:
    """Bytes of a process that its memory cgroup cannot drop: anonymous memory and page tables."""
    lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    values = {words[0]: words[1] for words in lines if len(words) > 1}
    return (int(values["RssAnon:"]) + int(values["VmPTE:"])) << 10


@dataclass(frozen=True, slots=True)
class Mapping:
    """One mapping of a process, in bytes."""

    start: int
    size: int
    resident: int
    swapped: int


def mappings(pid: int) -> list[Mapping]:
    """All mappings of a process with what of them is resident and swapped (smaps)."""
    found: list[Mapping] = []
    start = size = resident = 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        head = _MAPPING.match(line)
        if head:
            start = int(head[1], 16)
            size = int(head[2], 16) - start
        elif line.startswith("Rss:"):
            resident = int(line.split()[1]) << 10
        elif line.startswith("Swap:"):
            found.append(Mapping(start, size, resident, int(line.split()[1]) << 10))
    return found


class AnonymousRam:
    """The RAM of a QEMU that allocates it itself, found in its mappings by its size."""

    def __init__(self, pid: int, ram: int) -> None:
        self._pid = pid
        self._ram = ram

    def sample(self) -> Mapping:
        """The mapping now.

        :raise HarnessError: none, or more than one, is of the size of the RAM
        """
        fits = [item for item in mappings(self._pid) if item.size == self._ram]
        if len(fits) != 1:
            raise HarnessError(
                f"{len(fits)} mappings of QEMU have the {self._ram} bytes of the guest's RAM"
            )
        return fits[0]


# QEMU keeps these open for the manager, and one may be as large as the RAM.
_ARENA = "/memfd:uffdmm-pool"


class MemfdFiles:
    """The memfds of guest memory that a process holds open; arenas of pools are none.

    :param pid: QEMU or the worker
    :param size: bytes of the region, by which its memfd is told from others
    """

    def __init__(self, pid: int, size: int) -> None:
        self._paths: list[Path] = []
        seen: set[int] = set()
        for path in Path(f"/proc/{pid}/fd").iterdir():
            try:
                link = str(path.readlink())
                status = path.stat()
            except FileNotFoundError:
                continue
            if not link.startswith("/memfd:") or link.startswith(_ARENA):
                continue
            if status.st_size == size:
                if status.st_ino not in seen:
                    self._paths.append(path)
                seen.add(status.st_ino)
        if not self._paths:
            raise HarnessError(f"process {pid} holds no memfd of {size} bytes")

    def resident(self) -> int:
        """Bytes of them that are in memory (blocks of the file: swapped ones count too)."""
        return sum(path.stat().st_blocks * 512 for path in self._paths)
