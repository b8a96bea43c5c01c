# SPDX-License-Identifier: GPL-2.0-or-later
"""``scripts/bench migration``: a guest that is partly swapped moves, by QEMU alone and by uffdmm.

What makes the comparison fair:

* Both ways take turns, case by case, in one run, on one disk, over the loopback, in plain TCP with
  the same bandwidth and downtime limit; the TLS that uffdmm uses by default is a case of its own.
* Both sides of a migration have the same limit.  Linux swap is the same QEMU with RAM of its own,
  each side in a memory cgroup whose limit is, beside QEMU's own memory, that of uffdmm.
* What is swapped is a share of what the guest uses, brought about by lowering the limit after it
  was filled; how much it was at the start of the migration is measured and told.
* Prefetch is compared on a destination that has room for all of the guest: where it has none,
  nothing can be fetched ahead, with or without.
* Every byte is verified on the destination.
"""

import argparse
import contextlib
import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from . import HarnessError, interrupts, places
from .machine import MIB
from .migration_ways import STEPS_OF_CASE, STOCK, UFFDMM, Case, Plan, Size, Ways, check_places
from .progress import Progress
from .spread import Spread, ratios, spread

LEVELS = (0, 25, 50, 75)
MIDDLE = 50
TLS, ROOM, ROOM_BARE = "uffdmm-tls", "room", "room-no-prefetch"
RANDOM, ORDERED = "random", "ordered"
EXTRAS = (
    Plan(TLS, UFFDMM, MIDDLE, tls=True),
    Plan(ROOM, UFFDMM, MIDDLE, roomy=True),
    Plan(ROOM_BARE, UFFDMM, MIDDLE, roomy=True, prefetch=False),
    Plan(RANDOM, UFFDMM, MIDDLE, placement="random"),
    Plan(ORDERED, UFFDMM, MIDDLE, placement="ordered"),
)
SMALL = Size(seconds=1, after=2, ram=256 * MIB, fill=96 * MIB)
_PLAIN_WIDTH = 150


@dataclass(slots=True)
class Options:
    """What the command line says."""

    size: Size
    rounds: int
    plans: tuple[Plan, ...]
    store: Path


@dataclass(slots=True)
class Result:
    """All that was measured."""

    cases: list[Case] = field(default_factory=list)

    def of(self, name: str, swapped: int) -> list[Case]:
        """The cases of one name and level, by round."""
        return [case for case in self.cases if (case.name, case.swapped_percent) == (name, swapped)]

    def values(self, name: str, swapped: int, key: str) -> list[float]:
        """One figure of these cases, where it is known."""
        found = (getattr(case, key) for case in self.of(name, swapped))
        return [float(value) for value in found if value is not None]

    def ratio(self, key: str, ours: tuple[str, int], theirs: tuple[str, int]) -> Spread | None:
        """The quotient of a figure of two cases, by round."""
        return ratios(self.values(*ours, key), self.values(*theirs, key))


def plans_of(levels: tuple[int, ...], extras: tuple[str, ...]) -> tuple[Plan, ...]:
    """The cases of a round in their order."""
    pairs = [Plan(way, way, level) for level in levels for way in (STOCK, UFFDMM)]
    return (*pairs, *(plan for plan in EXTRAS if plan.name in extras))


# name of the ratio, figure, ours, theirs
_RATIOS = (
    ("total_ms_at_50", "total_ms", (UFFDMM, 50), (STOCK, 50)),
    ("growth_0_to_75", "total_ms", (UFFDMM, 75), (UFFDMM, 0)),
    ("tls_total_ms_at_50", "total_ms", (TLS, 50), (STOCK, 50)),
    ("downtime_at_50_to_stock_at_0", "downtime_ms", (UFFDMM, 50), (STOCK, 0)),
    ("downtime_at_75_to_stock_at_0", "downtime_ms", (UFFDMM, 75), (STOCK, 0)),
    ("slowdown_at_50_to_0", "guest_slowdown", (UFFDMM, 50), (UFFDMM, 0)),
    ("slowdown_at_75_to_0", "guest_slowdown", (UFFDMM, 75), (UFFDMM, 0)),
    ("demand_faults_without_prefetch", "dest_demand_faults_10s", (ROOM_BARE, 50), (ROOM, 50)),
)


def summary(options: Options, result: Result, error: str | None) -> dict[str, Any]:
    """What ``--json`` writes."""
    ours = [case for case in result.cases if case.way == UFFDMM]
    found = {name: result.ratio(*pair) for name, *pair in _RATIOS}  # type: ignore[arg-type]
    per_page: dict[str, float | None] = {}
    for name in (RANDOM, ORDERED):
        middle = spread(result.values(name, MIDDLE, "location_bytes_per_page"))
        per_page[name] = round(middle.median, 2) if middle else None
    return {
        "ram_bytes": options.size.ram,
        "used_bytes": options.size.fill,
        "seconds": options.size.seconds,
        "after_seconds": options.size.after,
        "rounds": options.rounds,
        "store": str(options.store),
        "source_swap_ins": sum(case.source_swap_ins for case in ours),
        "location_bytes_per_page": per_page[RANDOM],
        "location_bytes_per_page_ordered": per_page[ORDERED],
        "ratios": {name: round(one.median, 3) for name, one in found.items() if one},
        "spread": {name: one.as_json() for name, one in found.items() if one},
        "cases": [
            {**asdict(case), "location_bytes_per_page": case.location_bytes_per_page}
            for case in result.cases
        ],
        "host_swap_pages_in_uffdmm_runs": sum(case.host_swap_pages for case in ours),
        "verified": error is None and all(case.verified for case in result.cases),
        "error": error,
    }


# title, figure, factor, digits
_COLUMNS: tuple[tuple[str, str, float, int], ...] = (
    ("swapped, MiB", "swapped_bytes", 1 / MIB, 0),
    ("total, s", "total_ms", 1e-3, 2),
    ("downtime, ms", "downtime_ms", 1, 0),
    ("sent, MiB", "bytes", 1 / MIB, 0),
    ("B a page", "location_bytes_per_page", 1, 1),
    ("swap-ins", "source_swap_ins", 1, 0),
    ("during : before", "guest_slowdown", 1, 2),
    ("faults, 10 s", "dest_demand_faults_10s", 1, 0),
)


def show(console: Console, options: Options, result: Result, outcome: dict[str, Any]) -> None:
    """The cases as a table, and what follows from them."""
    table = Table(title=f"median (range) of {options.rounds} rounds")
    for name in ("case", "swapped"):
        table.add_column(name)
    for title, *_ in _COLUMNS:
        table.add_column(title, justify="right")
    for plan in options.plans:
        if not result.of(plan.name, plan.swapped):
            continue
        cells = []
        for _, key, factor, digits in _COLUMNS:
            one = spread(result.values(plan.name, plan.swapped, key))
            cells.append(one.text(factor, digits) if one else "-")
        table.add_row(plan.name, f"{plan.swapped} %", *cells)
    console.print(table)
    for name, value in outcome["ratios"].items():
        around = outcome["spread"][name]
        console.print(f"{name}: {value:.2f} ({around['min']:.2f}-{around['max']:.2f})")
    console.print(
        f"swap-ins that migrations by uffdmm caused: {outcome['source_swap_ins']}; pages swapped by"
        f" the host in runs of uffdmm: {outcome['host_swap_pages_in_uffdmm_runs']}; every byte"
        f" verified: {'yes' if outcome['verified'] else 'NO'}"
    )


def line_of(case: Case) -> str:
    """One case in one line, as soon as it is over."""
    stood = "" if case.downtime_ms is None else f", downtime {case.downtime_ms:,.0f} ms"
    return (
        f"{case.name} {case.swapped_percent} %, round {case.round}: total"
        f" {case.total_ms / 1000:.2f} s{stood}, {case.bytes / MIB:,.0f} MiB sent,"
        f" {case.source_swap_ins:,} swap-ins, verified"
    )


def _percent(word: str) -> int:
    value = int(word)
    if not 0 <= value <= 90:
        raise argparse.ArgumentTypeError(f"{value} % swapped: use 0 to 90")
    return value


def _parse(arguments: list[str] | None) -> tuple[Options, Path | None]:
    parser = argparse.ArgumentParser(
        prog="scripts/bench migration", description=(__doc__ or "").split("\n", 1)[0]
    )
    extras = [plan.name for plan in EXTRAS]
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result as JSON")
    parser.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="of all cases (default 3)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=5,
        metavar="N",
        help="of running before each migration, twice (default 5)",
    )
    parser.add_argument(
        "--swapped",
        nargs="+",
        type=_percent,
        default=list(LEVELS),
        metavar="PERCENT",
        help="of what the guest uses (default 0 25 50 75)",
    )
    parser.add_argument(
        "--extras",
        nargs="*",
        choices=extras,
        default=extras,
        metavar="CASE",
        help=f"cases at {MIDDLE} %% besides: {', '.join(extras)} (default: all)",
    )
    parser.add_argument(
        "--small", action="store_true", help="a tiny guest and short times, to try the benchmark"
    )
    parser.add_argument(
        "--store",
        type=Path,
        default=places.DISK_FOLDER,
        metavar="DIR",
        help="where swap file and shared tier lie (default /var/tmp)",
    )
    words = parser.parse_args(arguments)
    if words.seconds <= 0 or words.rounds < 1:
        parser.error("--seconds must be more than 0 and --rounds at least 1")
    if not words.store.is_dir():
        parser.error(f"--store {words.store}: no such directory")
    if words.json and not words.json.parent.is_dir():
        parser.error(f"--json {words.json}: its folder does not exist")
    options = Options(
        size=SMALL if words.small else Size(seconds=words.seconds),
        rounds=words.rounds,
        plans=plans_of(tuple(dict.fromkeys(words.swapped)), tuple(words.extras)),
        store=words.store,
    )
    return options, words.json


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; the exit status."""
    options, json_path = _parse(arguments)
    error: str | None = "interrupted"
    result = Result()
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PLAIN_WIDTH)
    with contextlib.suppress(KeyboardInterrupt), interrupts.as_exceptions():
        try:
            check_places()
            total = options.rounds * len(options.plans) * STEPS_OF_CASE
            ways = Ways(options.size, options.store, Progress("bench", total))
            for number in range(1, options.rounds + 1):
                for plan in options.plans:
                    case = ways.run(plan, number)
                    result.cases.append(case)
                    print(f"bench: {line_of(case)}", file=sys.stderr, flush=True)
            error = None
        except HarnessError as failure:
            error = str(failure)
    outcome = summary(options, result, error)
    if json_path:
        json_path.write_text(json.dumps(outcome, indent=2) + "\n")
    if result.cases:
        show(console, options, result, outcome)
    if error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
