# SPDX-License-Identifier: GPL-2.0-or-later
"""``scripts/bench stores``, section ``huge``: the guest of ``overcommit`` on pages of 2 MiB.

The same guest, limit and file as the way ``file`` of the section ``guest``, in turns with memory
in pages of 4 KiB and on hugetlbfs.  The host's huge pages are reserved for the time of a run.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from . import HarnessError, hostmem
from .machine import MIB, external_memory
from .manager import Manager
from .patterns import FILL, LIMIT, RAM, VM, PatternBench, Probe, Run, steps_of_boot
from .progress import Progress
from .spread import Spread, ratios, spread
from .stores_guest import counted

SMALL, HUGE = "4 KiB", "2 MiB"
SIDES = (SMALL, HUGE)
HUGE_PAGE = 2 * MIB
# More than the limit: pages that are on their way in or out.
_RESERVE = LIMIT // HUGE_PAGE + 8
_NR_HUGEPAGES = Path("/proc/sys/vm/nr_hugepages")
_FREE_HUGEPAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")


class HugeBench:
    """Runs both sides; :attr:`runs` grows meanwhile."""

    def __init__(
        self,
        *,
        folder: Path,
        repeat: int,
        seconds: float,
        patterns: Sequence[str],
        pin: int | None,
    ) -> None:
        self._folder = folder
        self._repeat = repeat
        self.runs: list[Run] = []
        self._bench = PatternBench(
            patterns=patterns,
            seconds=seconds,
            pin=pin,
            progress=Progress("bench", len(SIDES) * repeat * steps_of_boot(patterns)),
            keep=self.runs.append,
        )

    def run(self) -> None:
        """Measure everything.

        :raise HarnessError: a run is worth nothing, and why
        """
        for repeat in range(1, self._repeat + 1):
            self._side(SMALL, repeat)
            with huge_pages(_RESERVE):
                self._side(HUGE, repeat)

    def of(self, side: str, pattern: str) -> list[Run]:
        """The runs of one side and one pattern, by repeat."""
        return [run for run in self.runs if (run.memory, run.pattern) == (side, pattern)]

    def _side(self, side: str, repeat: int) -> None:
        extra = ",hugetlb=on" if side == HUGE else ""
        with Manager(limit=str(LIMIT), folder=self._folder) as manager:
            memory = external_memory(RAM, manager.socket, extra=extra)
            with (
                self._bench.boot(self._bench.config(memory), side, repeat) as guest,
                manager.vm(VM) as vm,
            ):
                probe = Probe(
                    hostmem.MemfdFiles(guest.pid, RAM).resident,
                    limit=LIMIT,
                    bounded=True,
                    count=lambda: counted(vm),
                )
                self._bench.measure(guest, side, repeat, probe)


@contextlib.contextmanager
def huge_pages(number: int) -> Iterator[None]:
    """So many huge pages of the host are free; what was reserved for that is given back.

    :raise HarnessError: the host does not give them
    """
    before = int(_NR_HUGEPAGES.read_text())
    free = int(_FREE_HUGEPAGES.read_text())
    try:
        if free < number:
            try:
                _NR_HUGEPAGES.write_text(str(before + number - free))
            except PermissionError:
                raise HarnessError(f"root is needed to reserve {number} huge pages") from None
        free = int(_FREE_HUGEPAGES.read_text())
        if free < number:
            raise HarnessError(f"the host has {free} free huge pages of 2 MiB, {number} are needed")
        yield
    finally:
        if int(_NR_HUGEPAGES.read_text()) != before:
            _NR_HUGEPAGES.write_text(str(before))


def _rates(runs: list[Run]) -> list[float]:
    return [run.steps_per_s for run in runs]


def summary(bench: HugeBench, patterns: Sequence[str]) -> dict[str, Any]:
    """What ``--json`` has of this section."""
    found: dict[str, Any] = {}
    for pattern in patterns:
        ratio = ratios(_rates(bench.of(HUGE, pattern)), _rates(bench.of(SMALL, pattern)))
        if ratio:
            found[pattern] = ratio.as_json()
    return {
        "limit_bytes": LIMIT,
        "ram_bytes": RAM,
        "used_bytes": FILL,
        "runs": [asdict(run) for run in bench.runs],
        "huge_to_small": found,
        "verified": bool(bench.runs) and all(run.verified for run in bench.runs),
    }


def _cell(runs: list[Run]) -> str:
    rates: Spread | None = spread(_rates(runs))
    if rates is None:
        return "-"
    resident = max(run.guest_resident_max_bytes for run in runs)
    return f"{rates.median:,.0f} ({resident / MIB:,.0f}M)"


def show(console: Console, bench: HugeBench, outcome: dict[str, Any]) -> None:
    """The section as a table."""
    table = Table(title="steps/s on a file, median (most in memory), by size of page")
    table.add_column("pattern")
    for name in (*SIDES, "ratio"):
        table.add_column(name, justify="right")
    for pattern in dict.fromkeys(run.pattern for run in bench.runs):
        ratio = outcome["huge_to_small"].get(pattern)
        table.add_row(
            pattern,
            *(_cell(bench.of(side, pattern)) for side in SIDES),
            f"{ratio['median']:.3g} ({ratio['min']:.3g}-{ratio['max']:.3g})" if ratio else "-",
        )
    console.print(table)
    console.print(f"every byte verified: {'yes' if outcome['verified'] else 'NO'}")
