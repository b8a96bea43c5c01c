# SPDX-License-Identifier: GPL-2.0-or-later
"""``scripts/bench consolidation``: three guests on a budget, shared out or swapped.

One guest works, one idles, one turns from idle to working (consolidation_trio.py).  What is
compared, in turns:

* Linux swap: all three QEMU processes in one memory cgroup of 1.5 GiB, with a swap file;
* uffdmm: a manager, and ``uffdmm serve`` with the policy ``shares``, on a file store in the same
  directory.

The cgroup also holds QEMU's own memory.  The budget of ``uffdmm serve`` is therefore the guest
memory that the swap run before it kept on average, and holds, besides guest memory, the tables and
the memory of the workers.  So both ways fit into 1.5 GiB with all they need.

A last guest, which works on a small part of its memory, is then under the policy ``stall``: how
much is taken from it, and what that costs it.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from . import HarnessError, interrupts, places
from .consolidation_trio import BUSY, NAMES, TURNS, Outcome, Work, adaptation
from .consolidation_ways import IdleRun, Setting, Sizes, WayRun, idle_heavy, managed, native
from .machine import MIB
from .progress import Progress
from .spread import Spread, ratios, spread

NATIVE, UFFDMM = "swap-file", "uffdmm"
WORKS = {BUSY: Work("hot", 70), TURNS: Work("hot", 70), "little": Work("hot", 15)}
SERVE: dict[str, int | float | str] = {"interval": "500ms"}
SETTLE = 3.0
# The policy 'stall' takes so much longer than a phase: 40 seconds beside 30.
IDLE_PHASES = 4 / 3
# Steps of the progress: three fills, two phases, three verifications; and three of the idle guest.
_STEPS_OF_WAY, _STEPS_OF_IDLE = 8, 3


@dataclass(slots=True)
class Options:
    """What the command line says."""

    seconds: float
    rounds: int
    pins: tuple[int, ...]
    store: Path
    sizes: Sizes = field(default_factory=Sizes)  # tests have smaller ones


@dataclass(slots=True)
class Result:
    """All that was measured."""

    runs: list[WayRun] = field(default_factory=list)
    idle: list[IdleRun] = field(default_factory=list)

    def of(self, way: str) -> list[WayRun]:
        """The runs of one way, by round."""
        return [run for run in self.runs if run.way == way]


class Consolidation:
    """The benchmark; :attr:`result` grows while it runs."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self.result = Result()
        self._where = ""
        steps = options.rounds * (2 * _STEPS_OF_WAY + _STEPS_OF_IDLE)
        self._progress = Progress("bench", steps)
        self._setting = Setting(
            sizes=options.sizes,
            works=WORKS,
            seconds=options.seconds,
            settle=SETTLE,
            store=options.store,
            pins=options.pins,
            serve=SERVE,
            tell=lambda text: self._progress.step(f"{self._where}: {text}"),
        )

    def run(self) -> None:
        """Measure everything.

        :raise HarnessError: a run is worth nothing, and why
        """
        for number in range(1, self._options.rounds + 1):
            self._where = f"round {number}, {NATIVE}"
            kept = native(self._setting, number)
            self.result.runs.append(kept)
            self._where = f"round {number}, {UFFDMM}"
            budget = kept.guest_resident_bytes & -MIB
            self.result.runs.append(managed(self._setting, number, budget))
            self._where = f"round {number}"
            self.result.idle.append(
                idle_heavy(self._setting, number, IDLE_PHASES * self._options.seconds)
            )


# -- what it says ----------------------------------------------------------------


def _adaptations(runs: Iterable[WayRun], seconds: float) -> list[float]:
    found = (adaptation(run.outcome.rates.get(TURNS, []), seconds) for run in runs)
    return [value for value in found if value is not None]


def _totals(runs: Iterable[WayRun]) -> list[float]:
    return [run.outcome.total for run in runs]


def _figures(options: Options, result: Result) -> dict[str, Spread | None]:
    ours, theirs = result.of(UFFDMM), result.of(NATIVE)
    return {
        "work_ratio": ratios(_totals(ours), _totals(theirs)),
        "adaptation_s": spread(_adaptations(ours, options.seconds)),
        "swap_adaptation_s": spread(_adaptations(theirs, options.seconds)),
        "reclaimed_share": spread(run.reclaimed_share for run in result.idle),
        "stall_share": spread(run.stall_share for run in result.idle),
    }


def budget_kept(run: WayRun) -> bool:
    """Whether guests and workers stayed inside the budget at every sample."""
    return 0 < run.within_bytes <= run.budget_bytes


def verified(outcome: Outcome) -> bool:
    """Whether all three guests compared all of their memory, and found it right."""
    return set(outcome.verified) == set(NAMES) and all(outcome.verified.values())


def summary(options: Options, result: Result, error: str | None) -> dict[str, Any]:
    """What ``--json`` writes."""
    figures = _figures(options, result)
    ours = result.of(UFFDMM)
    complete = len(ours) == len(result.of(NATIVE)) == len(result.idle) == options.rounds
    return {
        "seconds": options.seconds,
        "rounds": options.rounds,
        "pinned_cpus": list(options.pins),
        "store": str(options.store),
        "sizes": asdict(options.sizes),
        "works": {name: asdict(work) for name, work in WORKS.items()},
        **{name: value.as_json()["median"] if value else None for name, value in figures.items()},
        "spread": {name: value.as_json() for name, value in figures.items() if value},
        "budget_kept": bool(ours) and all(budget_kept(run) for run in ours),
        "verified": error is None
        and complete
        and all(verified(run.outcome) for run in result.runs)
        and all(run.verified for run in result.idle),
        "runs": [_run_as_json(options, run) for run in result.runs],
        "idle_runs": [
            {**asdict(run), "reclaimed_share": run.reclaimed_share} for run in result.idle
        ],
        "error": error,
    }


def _run_as_json(options: Options, run: WayRun) -> dict[str, Any]:
    words = asdict(run)
    del words["outcome"]["changed_at"], words["policy_log"]
    words["total_steps"] = run.outcome.total
    words["adaptation_s"] = adaptation(run.outcome.rates.get(TURNS, []), options.seconds)
    return words


def _show(options: Options, result: Result, outcome: dict[str, Any]) -> None:
    console = Console()
    table = Table(title=f"thousand steps, median (range) of {options.rounds}")
    table.add_column("guest, phase")
    for name in (NATIVE, UFFDMM, "ratio (range)"):
        table.add_column(name, justify="right")
    for label, guest, phase in (
        ("busy, alone", BUSY, 0),
        ("busy, beside the other", BUSY, 1),
        ("turns, from idle to busy", TURNS, 1),
    ):
        steps = [
            [run.outcome.steps_by_phase[guest][phase] for run in result.of(way)]
            for way in (NATIVE, UFFDMM)
        ]
        _row(table, label, steps)
    _row(table, "all", [_totals(result.of(way)) for way in (NATIVE, UFFDMM)])
    console.print(table)
    figures = _figures(options, result)
    console.print(
        f"change followed after {_text(figures['adaptation_s'])} s by uffdmm, "
        f"{_text(figures['swap_adaptation_s'])} s by Linux swap; "
        f"inside the budget: {'yes' if outcome['budget_kept'] else 'NO'}; "
        f"every byte verified: {'yes' if outcome['verified'] else 'NO'}"
    )
    for run in result.of(UFFDMM):
        console.print(
            f"round {run.round}: guests and workers had at most {run.within_bytes / MIB:.0f} of "
            f"{run.budget_bytes / MIB:.0f} MiB"
        )
    if result.idle:
        console.print(
            f"idle-heavy guest under 'stall': {_text(figures['reclaimed_share'], 100)} % of its "
            f"memory taken at a stall of {_text(figures['stall_share'], 100, 3)} %"
        )


def _row(table: Table, label: str, steps: list[list[float]] | list[list[int]]) -> None:
    theirs, ours = steps
    ratio = ratios(ours, theirs)
    table.add_row(
        label,
        *(_text(spread(values), 1e-3, 0) for values in (theirs, ours)),
        _text(ratio, digits=2),
    )


def _text(value: Spread | None, scale: float = 1, digits: int = 1) -> str:
    return value.text(scale, digits) if value else "-"


def _parse(arguments: list[str] | None) -> tuple[Options, Path | None]:
    parser = argparse.ArgumentParser(
        prog="scripts/bench consolidation", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result as JSON")
    parser.add_argument(
        "--seconds", type=float, default=30, metavar="N", help="of each phase (default 30)"
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default 3")
    parser.add_argument(
        "--pin",
        type=int,
        nargs="+",
        default=[],
        metavar="CPU",
        help="pin the guests to these CPUs, one each in turn, in all runs",
    )
    parser.add_argument(
        "--store",
        type=Path,
        default=places.DISK_FOLDER,
        metavar="DIR",
        help="where swap file and store lie (default /var/tmp)",
    )
    words = parser.parse_args(arguments)
    if words.seconds <= 0 or words.rounds < 1:
        parser.error("--seconds must be more than 0 and --rounds at least 1")
    if not words.store.is_dir():
        parser.error(f"--store {words.store}: no such directory")
    if words.json and not words.json.parent.is_dir():
        parser.error(f"--json {words.json}: its folder does not exist")
    options = Options(
        seconds=words.seconds,
        rounds=words.rounds,
        pins=tuple(words.pin),
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
            bench = Consolidation(options)
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
