# SPDX-License-Identifier: GPL-2.0-or-later
"""``scripts/bench stores``: what the tiers cost, by themselves, in faults, and under a guest.

Each section measures its sides in turns, and prints medians with their range; the sections are in
stores_tiers, stores_faults, stores_guest and stores_huge, which say how.
"""

import argparse
import contextlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from . import (
    HarnessError,
    interrupts,
    places,
    stores_faults,
    stores_guest,
    stores_huge,
    stores_tiers,
)
from .guest import pin_to
from .patterns import PATTERNS
from .progress import Progress

TIERS, FAULTS, GUEST, HUGE = "tiers", "faults", "guest", "huge"
SECTIONS = (TIERS, FAULTS, GUEST, HUGE)
# Of tables that go to a file.
_PLAIN_WIDTH = 140


@dataclass(slots=True)
class Options:
    """What the command line says."""

    sections: tuple[str, ...]
    seconds: float
    repeat: int
    patterns: tuple[str, ...]
    pin: int | None
    faults: int
    slice_ms: int
    store: Path


class Stores:
    """The benchmark; :attr:`outcome` has each section as soon as it has begun."""

    def __init__(self, options: Options, console: Console) -> None:
        self._options = options
        self._console = console
        self.outcome: dict[str, Any] = {}

    def run(self) -> None:
        """Run the sections that were asked for, and print each when it is over.

        :raise HarnessError: one of them is worth nothing, and why
        """
        # First of all, so that nothing is found missing after minutes.
        places.manager()
        if {GUEST, HUGE} & set(self._options.sections):
            places.qemu()
            places.guest_image()
        for name, section in (
            (TIERS, self._tiers),
            (FAULTS, self._faults),
            (GUEST, self._guest),
            (HUGE, self._huge),
        ):
            if name in self._options.sections:
                section()

    def _tiers(self) -> None:
        options = self._options
        Progress("bench", 1).step("tiers by themselves")
        bench = stores_tiers.TierBench(
            options.store,
            options.repeat,
            options.slice_ms,
            [] if options.pin is None else pin_to(options.pin),
        )
        try:
            bench.run()
        finally:
            self.outcome[TIERS] = stores_tiers.summary(bench)
            if bench.records:
                stores_tiers.show(self._console, self.outcome[TIERS])

    def _faults(self) -> None:
        options = self._options
        cpu = max(os.sched_getaffinity(0)) if options.pin is None else options.pin
        bench = stores_faults.FaultBench(
            options.store,
            options.repeat,
            options.faults,
            cpu,
            Progress("bench", options.repeat * len(stores_faults.SIDES)),
        )
        try:
            bench.run()
        finally:
            self.outcome[FAULTS] = {"cpu": cpu, **stores_faults.summary(bench)}
            if bench.values:
                stores_faults.show(self._console, self.outcome[FAULTS])

    def _guest(self) -> None:
        options = self._options
        bench = stores_guest.GuestBench(
            folder=options.store,
            repeat=options.repeat,
            seconds=options.seconds,
            patterns=options.patterns,
            pin=options.pin,
        )
        try:
            bench.run()
        finally:
            self.outcome[GUEST] = stores_guest.summary(bench, options.patterns)
            if bench.runs:
                stores_guest.show(self._console, bench, self.outcome[GUEST])

    def _huge(self) -> None:
        options = self._options
        bench = stores_huge.HugeBench(
            folder=options.store,
            repeat=options.repeat,
            seconds=options.seconds,
            patterns=options.patterns,
            pin=options.pin,
        )
        try:
            bench.run()
        finally:
            self.outcome[HUGE] = stores_huge.summary(bench, options.patterns)
            if bench.runs:
                stores_huge.show(self._console, bench, self.outcome[HUGE])


def summary(options: Options, outcome: dict[str, Any], error: str | None) -> dict[str, Any]:
    """What ``--json`` writes."""
    return {
        "sections": list(options.sections),
        "repeat": options.repeat,
        "seconds": options.seconds,
        "pinned_cpu": options.pin,
        "store": str(options.store),
        **outcome,
        "error": error,
    }


def _parse(arguments: list[str] | None) -> tuple[Options, Path | None]:
    parser = argparse.ArgumentParser(
        prog="scripts/bench stores", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result as JSON")
    parser.add_argument(
        "--sections",
        nargs="+",
        choices=SECTIONS,
        default=list(SECTIONS),
        metavar="SECTION",
        help="tiers, faults, guest, huge (default: all)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=9,
        metavar="N",
        help="of each measurement in a guest (default 9)",
    )
    parser.add_argument(
        "--repeat", type=int, default=3, metavar="N", help="rounds of each section (default 3)"
    )
    parser.add_argument(
        "--patterns",
        nargs="+",
        choices=PATTERNS,
        default=list(PATTERNS),
        metavar="PATTERN",
        help="of the guest: random, sequential, hot (default: all)",
    )
    parser.add_argument(
        "--pin",
        type=int,
        metavar="CPU",
        help="pin QEMU in all runs to a CPU; faults are always measured on one",
    )
    parser.add_argument(
        "--faults",
        type=int,
        default=40000,
        metavar="N",
        help="random faults from memory in each round, an eighth of it from the disk "
        "(default 40000)",
    )
    parser.add_argument(
        "--slice-ms",
        type=int,
        default=200,
        metavar="N",
        help="of each operation of each tier in each round (default 200)",
    )
    parser.add_argument(
        "--store",
        type=Path,
        default=places.DISK_FOLDER,
        metavar="DIR",
        help="where the files of tiers lie (default /var/tmp)",
    )
    words = parser.parse_args(arguments)
    if words.seconds <= 0 or words.repeat < 1:
        parser.error("--seconds must be more than 0 and --repeat at least 1")
    if words.faults < 100 or not 1 <= words.slice_ms <= 60000:
        parser.error("--faults must be at least 100 and --slice-ms 1 to 60000")
    if not words.store.is_dir():
        parser.error(f"--store {words.store}: no such directory")
    if words.json and not words.json.parent.is_dir():
        parser.error(f"--json {words.json}: its folder does not exist")
    options = Options(
        sections=tuple(name for name in SECTIONS if name in words.sections),
        seconds=words.seconds,
        repeat=words.repeat,
        patterns=tuple(dict.fromkeys(words.patterns)),
        pin=words.pin,
        faults=words.faults,
        slice_ms=words.slice_ms,
        store=words.store,
    )
    return options, words.json


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; the exit status."""
    options, json_path = _parse(arguments)
    error: str | None = "interrupted"
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PLAIN_WIDTH)
    bench = Stores(options, console)
    with contextlib.suppress(KeyboardInterrupt), interrupts.as_exceptions():
        try:
            bench.run()
            error = None
        except HarnessError as failure:
            error = str(failure)
    if json_path:
        json_path.write_text(json.dumps(summary(options, bench.outcome, error), indent=2) + "\n")
    if error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
