# SPDX-License-Identifier: GPL-2.0-or-later
"""``scripts/bench overcommit``: the same guest without a limit, with Linux swap, and with uffdmm.

What makes the comparison fair:

* The three ways take turns in one run, so that whatever else the host does hits all of them.
* The cgroup's limit also holds QEMU's own memory, so Linux keeps less of the guest than the limit
  says.  uffdmm's limit is therefore set, pattern by pattern, to the guest memory that the swap run
  before it kept in memory on average: what is mapped and what the swap read ahead has brought in.
  Both are sampled and printed.
* Swap file and store lie in the same directory; the page cache is dropped before each run.
* Each measured stretch follows one of the same pattern and length that is not measured: it takes
  that long until the memory that a new pattern needs is the memory that is resident.
* QEMU is pinned in all runs (``--pin``) or in none.
* In runs of uffdmm the host's own swap must not move, or the benchmark fails.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from . import HarnessError, hostmem, interrupts, places
from .machine import GIB, MIB, external_memory
from .manager import Manager
from .nativeswap import MemoryCgroup, SwapFile
from .patterns import FILL, LIMIT, PATTERNS, RAM, VM, PatternBench, Probe, Run, steps_of_boot
from .progress import Progress

SWAP = 1 * GIB
UNLIMITED, NATIVE, UFFDMM = "unlimited", "swap-file", "uffdmm"


@dataclass(slots=True)
class Options:
    """What the command line says."""

    seconds: float
    repeat: int
    patterns: tuple[str, ...]
    pin: int | None
    store: Path


@dataclass(slots=True)
class Result:
    """All that was measured."""

    runs: list[Run] = field(default_factory=list)
    host_swap_pages_in_uffdmm_runs: int = 0
    manager: dict[str, int] = field(default_factory=dict)

    def of(self, memory: str, pattern: str) -> list[Run]:
        """The runs of one way and one pattern, by repeat."""
        return [run for run in self.runs if (run.memory, run.pattern) == (memory, pattern)]

    def pair_ratios(self, pattern: str) -> list[float]:
        """uffdmm : swap file of each repeat."""
        pairs = zip(self.of(UFFDMM, pattern), self.of(NATIVE, pattern), strict=True)
        return [ours.steps_per_s / theirs.steps_per_s for ours, theirs in pairs]


class Overcommit:
    """The benchmark; :attr:`result` grows while it runs."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self.result = Result()
        boots = 3 * options.repeat
        self._bench = PatternBench(
            patterns=options.patterns,
            seconds=options.seconds,
            pin=options.pin,
            progress=Progress("bench", boots * steps_of_boot(options.patterns)),
            keep=self.result.runs.append,
        )

    def run(self) -> None:
        """Measure everything.

        :raise HarnessError: a run is worth nothing, and why
        """
        for repeat in range(1, self._options.repeat + 1):
            kept = self._native(repeat)
            self._uffdmm(repeat, kept)
            self._unlimited(repeat)

    # -- the three ways ----------------------------------------------------

    def _unlimited(self, repeat: int) -> None:
        config = self._bench.config(f"memory-backend-memfd,id=mem0,size={RAM}")
        with self._bench.boot(config, UNLIMITED, repeat) as guest:
            probe = Probe(hostmem.MemfdFiles(guest.pid, RAM).resident)
            self._bench.measure(guest, UNLIMITED, repeat, probe)

    def _native(self, repeat: int) -> dict[str, int]:
        """Returns the mean guest residency of each pattern."""
        with (
            SwapFile(self._options.store, SWAP),
            MemoryCgroup(f"uffdmm-bench-{os.getpid()}", LIMIT) as cgroup,
            self._bench.boot(self._bench.config(), NATIVE, repeat, cgroup.enter_command()) as guest,
        ):
            ram = hostmem.AnonymousRam(guest.pid, RAM)
            probe = Probe(lambda: ram.sample().resident + cgroup.unmapped_anonymous(), limit=LIMIT)
            runs = self._bench.measure(guest, NATIVE, repeat, probe)
        return {run.pattern: run.guest_resident_bytes for run in runs}

    def _uffdmm(self, repeat: int, kept: dict[str, int]) -> None:
        first = kept[self._options.patterns[0]]
        with Manager(limit=str(first), folder=self._options.store) as manager:
            config = self._bench.config(external_memory(RAM, manager.socket))
            swap = hostmem.host_swap()
            with (
                self._bench.boot(config, UFFDMM, repeat) as guest,
                manager.vm(VM) as vm,
            ):

                def set_limit(pattern: str) -> int:
                    vm.set_policy(limit_bytes=kept[pattern] & -4096)
                    return kept[pattern]

                resident = hostmem.MemfdFiles(guest.pid, RAM).resident
                self._bench.measure(
                    guest, UFFDMM, repeat, Probe(resident, prepare=set_limit, bounded=True)
                )
                stats = vm.statistics()
            moved = hostmem.host_swap() - swap
        self.result.host_swap_pages_in_uffdmm_runs += moved.pages_in + moved.pages_out
        self.result.manager = {
            "rss_bytes": stats.worker_rss_bytes,
            "table_bytes": stats.table_bytes,
            "stored_bytes": stats.stored_bytes,
            "store_slots_used_bytes": stats.slots_used * 4096,
            "fault_p50_ns": round((stats.fault_hist.percentile(0.50) or 0) * 1e9),
            "fault_p99_ns": round((stats.fault_hist.percentile(0.99) or 0) * 1e9),
        }
        if not moved.idle:
            raise HarnessError(
                f"the host swapped during a run of uffdmm ({moved.pages_in} pages in, "
                f"{moved.pages_out} out): give it more free memory or switch its swap off"
            )


def summary(options: Options, result: Result, error: str | None) -> dict[str, Any]:
    """What ``--json`` writes."""
    complete = [
        pattern
        for pattern in options.patterns
        if len(result.of(UFFDMM, pattern)) == len(result.of(NATIVE, pattern)) > 0
    ]
    ratios = {pattern: result.pair_ratios(pattern) for pattern in complete}
    return {
        "limit_bytes": LIMIT,
        "ram_bytes": RAM,
        "used_bytes": FILL,
        "seconds": options.seconds,
        "repeat": options.repeat,
        "pinned_cpu": options.pin,
        "store": str(options.store),
        "runs": [asdict(run) for run in result.runs],
        "ratios": {name: round(statistics.median(all_), 3) for name, all_ in ratios.items()},
        "spread": {name: [round(min(x), 3), round(max(x), 3)] for name, x in ratios.items()},
        "manager": result.manager,
        "host_swap_pages_in_uffdmm_runs": result.host_swap_pages_in_uffdmm_runs,
        "verified": error is None and all(run.verified for run in result.runs),
        "error": error,
    }


def _cell(runs: list[Run]) -> str:
    if not runs:
        return "-"
    rate = statistics.median(run.steps_per_s for run in runs)
    resident = statistics.mean(run.guest_resident_bytes for run in runs)
    return f"{rate:,.0f} ({resident / MIB:,.0f}M)"


def _show(options: Options, result: Result, outcome: dict[str, Any]) -> None:
    console = Console()
    table = Table(title=f"steps/s, median of {options.repeat} (guest memory resident, mean, MiB)")
    table.add_column("pattern")
    for name in (UNLIMITED, NATIVE, UFFDMM, "ratio (range)"):
        table.add_column(name, justify="right")
    for pattern in options.patterns:
        cells = [_cell(result.of(memory, pattern)) for memory in (UNLIMITED, NATIVE, UFFDMM)]
        ratio = "-"
        if pattern in outcome["ratios"]:
            low, high = outcome["spread"][pattern]
            ratio = f"{outcome['ratios'][pattern]:.2f} ({low:.2f}-{high:.2f})"
        table.add_row(pattern, *cells, ratio)
    console.print(table)
    if result.manager:
        used = result.manager
        console.print(
            f"limit of the cgroup {LIMIT // MIB} MiB, with QEMU's own memory in it; besides it the "
            f"manager has {used['rss_bytes'] / MIB:.1f} MiB resident, of it page tables "
            f"{used['table_bytes'] / MIB:.1f} MiB; in the store "
            f"{used['stored_bytes'] / MIB:.0f} MiB of pages, slots with clean copies "
            f"{used['store_slots_used_bytes'] / MIB:.0f} MiB"
        )
        console.print(
            "pages swapped by the host in runs of uffdmm: "
            f"{result.host_swap_pages_in_uffdmm_runs}; every byte verified: "
            f"{'yes' if outcome['verified'] else 'NO'}"
        )


def _parse(arguments: list[str] | None) -> tuple[Options, Path | None]:
    parser = argparse.ArgumentParser(
        prog="scripts/bench overcommit", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result as JSON")
    parser.add_argument(
        "--seconds", type=float, default=9, metavar="N", help="of each measurement (default 9)"
    )
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="default 3")
    parser.add_argument(
        "--patterns",
        nargs="+",
        choices=PATTERNS,
        default=list(PATTERNS),
        metavar="PATTERN",
        help="random, sequential, hot (default: all)",
    )
    parser.add_argument("--pin", type=int, metavar="CPU", help="pin QEMU in all runs to a CPU")
    parser.add_argument(
        "--store",
        type=Path,
        default=places.DISK_FOLDER,
        metavar="DIR",
        help="where swap file and store lie (default /var/tmp)",
    )
    words = parser.parse_args(arguments)
    if words.seconds <= 0 or words.repeat < 1:
        parser.error("--seconds must be more than 0 and --repeat at least 1")
    if not words.store.is_dir():
        parser.error(f"--store {words.store}: no such directory")
    if words.json and not words.json.parent.is_dir():
        parser.error(f"--json {words.json}: its folder does not exist")
    options = Options(
        seconds=words.seconds,
        repeat=words.repeat,
        patterns=tuple(dict.fromkeys(words.patterns)),
        pin=words.pin,
        store=words.store,
    )
    return options, words.json


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; the exit status."""
    options, json_path = _parse(arguments)
    error: str | None = "interrupted"
    result = Result()
    with contextlib.suppress(KeyboardInterrupt), interrupts.as_exceptions():
        try:
            places.qemu()
            places.guest_image()
            bench = Overcommit(options)
            result = bench.result
            bench.run()
            error = None
        except HarnessError as failure:
            error = str(failure)
    outcome = summary(options, result, error)
    if json_path:
        json_path.write_text(json.dumps(outcome, indent=2) + "\n")
    if result.runs:
        _show(options, result, outcome)
    if error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
