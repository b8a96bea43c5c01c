# SPDX-License-Identifier: GPL-2.0-or-later
"""Outcomes of single tests and the rules by which they are summed.

A runner that says nothing, or that ends badly while every test it named
passed, counts as a failure: silence never looks like success.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field


class Outcome(enum.Enum):
    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Result:
    """One test: a name that finds it again, and why it failed or was skipped."""

    name: str
    outcome: Outcome
    detail: str = ""


@dataclass
class Report:
    """What one runner said."""

    suite: str
    results: list[Result] = field(default_factory=list)

    def add(self, name: str, outcome: Outcome, detail: str = "") -> None:
        self.results.append(Result(name, outcome, detail))

    def fail(self, name: str, detail: str) -> None:
        self.add(name, Outcome.FAILED, detail)

    def count(self, outcome: Outcome) -> int:
        return sum(1 for r in self.results if r.outcome is outcome)

    def close(self, status: int) -> Report:
        """Ends the report with the exit status of its runner (negative: a signal)."""
        if not self.results:
            self.fail("(runner)", f"reported no test at all, exit status {status}")
        elif status != 0 and not self.count(Outcome.FAILED):
            self.fail("(runner)", f"ended with status {status} though it named no failed test")
        return self


@dataclass(frozen=True)
class Tally:
    """The sum over all reports."""

    passed: int
    failed: int
    skipped: int

    @staticmethod
    def of(reports: Iterable[Report]) -> Tally:
        passed = failed = skipped = 0
        for report in reports:
            # A report that nobody closed must not be lost either.
            if not report.results:
                failed += 1
            passed += report.count(Outcome.PASSED)
            failed += report.count(Outcome.FAILED)
            skipped += report.count(Outcome.SKIPPED)
        return Tally(passed, failed, skipped)

    def line(self) -> str:
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"

    def exit_status(self) -> int:
        return 0 if self.passed > 0 and self.failed == 0 else 1
