# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line behind scripts/test."""

from __future__ import annotations

import argparse
import shutil
import signal
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType

from .command import say
from .results import Outcome, Report, Tally
from .suites import Suites


def run_suites(suites: dict[str, Callable[[], list[Report]]], reports: list[Report]) -> None:
    """Runs one after the other into reports; one that raises counts as a failure."""
    for name, suite in suites.items():
        say(f"{name}: starting")
        try:
            new = suite()
        except Exception:  # noqa: BLE001 - whatever it was, the sum has to know
            crashed = Report(name)
            crashed.fail("(runner)", traceback.format_exc())
            new = [crashed]
        if not new:
            new = [Report(name).close(0)]
        for report in new:
            say(f"{report.suite}: {Tally.of([report]).line()}")
        reports += new


def write_summary(reports: Iterable[Report]) -> int:
    """Skips with reasons, failures with detail, then the one line; the exit status."""
    reports = list(reports)
    for outcome, title in ((Outcome.SKIPPED, "skipped"), (Outcome.FAILED, "failed")):
        for report in reports:
            for result in report.results:
                if result.outcome is not outcome:
                    continue
                print(f"{title}: {report.suite}: {result.name}", end="")
                if outcome is Outcome.SKIPPED:
                    print(f": {result.detail or 'no reason given'}")
                else:
                    print("".join(f"\n    {line}" for line in result.detail.splitlines()))
    tally = Tally.of(reports)
    print(tally.line(), flush=True)
    return tally.exit_status()


def interrupt(_signal: int, _frame: FrameType | None) -> None:
    """SIGTERM as control-C: what was started is ended, the sum is printed."""
    raise KeyboardInterrupt


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/test",
        description="Installs and builds what is needed, then runs every test. "
        "The last line is the sum; logs are in build/test-logs.",
    )
    parser.add_argument("--top", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument(
        "--only",
        action="append",
        choices=["lint", "native", "python", "qtest", "avocado"],
        help="run this one; may be given several times",
    )
    parser.add_argument("--fast", action="store_true", help="without the sanitizer builds")
    args = parser.parse_args(argv)

    logs = args.top / "build/test-logs"
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir(parents=True)
    suites = Suites(args.top, logs, fast=args.fast)
    chosen = {k: v for k, v in suites.all().items() if not args.only or k in args.only}
    signal.signal(signal.SIGTERM, interrupt)
    reports: list[Report] = []
    try:
        run_suites(chosen, reports)
    except KeyboardInterrupt:
        stopped = Report("scripts/test")
        stopped.fail("(interrupted)", "ended before all suites had run")
        reports.append(stopped)
    return write_summary(reports)
