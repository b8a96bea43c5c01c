# SPDX-License-Identifier: GPL-2.0-or-later
"""The sum: what counts as a failure although nobody said so."""

import pytest

from uffdmm_runner.main import run_suites, write_summary
from uffdmm_runner.results import Outcome, Report, Tally


def report(suite: str, **outcomes: int) -> Report:
    made = Report(suite)
    for word, count in outcomes.items():
        for number in range(count):
            made.add(f"{word}-{number}", Outcome(word), f"because {number}")
    return made


def test_outcomes_are_summed_over_reports() -> None:
    tally = Tally.of([report("a", passed=2, skipped=1), report("b", passed=3, failed=1)])
    assert tally == Tally(5, 1, 1)
    assert tally.line() == "5 passed, 1 failed, 1 skipped"


@pytest.mark.parametrize(
    ("tally", "status"),
    [
        (Tally(1, 0, 0), 0),
        (Tally(9, 0, 4), 0),
        (Tally(9, 1, 0), 1),
        (Tally(0, 0, 0), 1),
        (Tally(0, 0, 7), 1),
    ],
)
def test_exit_status(tally: Tally, status: int) -> None:
    assert tally.exit_status() == status


def test_runner_that_reports_nothing_has_failed() -> None:
    assert Tally.of([Report("silent").close(0)]) == Tally(0, 1, 0)


def test_report_without_results_has_failed_even_when_not_closed() -> None:
    assert Tally.of([report("a", passed=1), Report("lost")]) == Tally(1, 1, 0)


@pytest.mark.parametrize("status", [1, 2, 124, -9])
def test_bad_end_counts_although_every_test_passed(status: int) -> None:
    closed = report("a", passed=3).close(status)
    assert Tally.of([closed]) == Tally(3, 1, 0)
    assert str(status) in closed.results[-1].detail


def test_bad_end_is_not_counted_twice_when_a_test_failed() -> None:
    assert Tally.of([report("a", passed=3, failed=1).close(1)]) == Tally(3, 1, 0)


def test_suite_that_raises_has_failed_and_the_others_still_run() -> None:
    def broken() -> list[Report]:
        raise RuntimeError("fell over")

    reports: list[Report] = []
    run_suites({"broken": broken, "good": lambda: [report("good", passed=1)]}, reports)
    assert Tally.of(reports) == Tally(1, 1, 0)
    assert "fell over" in reports[0].results[0].detail


def test_suite_that_returns_no_report_has_failed() -> None:
    reports: list[Report] = []
    run_suites({"empty": list}, reports)
    assert Tally.of(reports) == Tally(0, 1, 0)


def test_summary_ends_with_the_sum(capsys: pytest.CaptureFixture[str]) -> None:
    status = write_summary([report("a", passed=2, failed=1), report("b", skipped=1)])
    lines = capsys.readouterr().out.splitlines()
    assert status == 1
    assert lines == [
        "skipped: b: skipped-0: because 0",
        "failed: a: failed-0",
        "    because 0",
        "2 passed, 1 failed, 1 skipped",
    ]
