# SPDX-License-Identifier: GPL-2.0-or-later
"""The runners around made-up programs."""

from pathlib import Path

import pytest

from uffdmm_runner.results import Outcome, Tally
from uffdmm_runner.suites import Suites, sanitizer_reports


def program(top: Path, name: str, script: str) -> None:
    path = top / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_every_sanitizer_report_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "asan-report.17").write_text("heap-buffer-overflow\n")
    (tmp_path / "asan-report.18").write_text("leak\n")
    (tmp_path / "other").write_text("fine\n")
    results = sanitizer_reports(tmp_path / "asan-report")
    assert [(r.outcome, r.detail) for r in results] == [
        (Outcome.FAILED, "heap-buffer-overflow"),
        (Outcome.FAILED, "leak"),
    ]


def test_compiler_without_thread_sanitizer_is_a_skip_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, "bin/cc", "echo 'cannot find -ltsan' >&2; exit 1")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    report = Suites(tmp_path, tmp_path).threads()
    assert Tally.of([report]) == Tally(0, 0, 1)
    assert "cannot find -ltsan" in report.results[0].detail


def test_pytest_that_dies_before_its_report_has_failed(tmp_path: Path) -> None:
    program(tmp_path, "build/venv/bin/pytest", "echo segmentation; kill -9 $$")
    reports = Suites(tmp_path, tmp_path / "logs").python()
    assert Tally.of(reports) == Tally(0, 1, 0)
    assert "segmentation" in reports[0].results[0].detail


def test_pytest_report_of_an_earlier_run_is_not_counted(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    stale = tmp_path / "logs/pytest.xml"
    stale.write_text('<testsuites><testcase classname="a" name="b"/></testsuites>')
    program(tmp_path, "build/venv/bin/pytest", "exit 0")
    assert Tally.of(Suites(tmp_path, tmp_path / "logs").python()) == Tally(0, 1, 0)


def test_meson_that_cannot_build_has_failed(tmp_path: Path) -> None:
    program(tmp_path, "build/venv/bin/meson", "echo 'ninja: build stopped'; exit 1")
    reports = Suites(tmp_path, tmp_path / "logs", fast=True).native()
    assert Tally.of(reports) == Tally(0, 1, 0)
    assert "build stopped" in reports[0].results[0].detail


def test_qemu_that_cannot_be_built_fails_what_needs_it(tmp_path: Path) -> None:
    program(tmp_path, "scripts/qemu-build", "echo 'no such source' >&2; exit 1")
    suites = Suites(tmp_path, tmp_path / "logs")
    for reports in (suites.qtest(), suites.avocado()):
        assert Tally.of(reports) == Tally(0, 1, 0)
        assert "no such source" in reports[0].results[0].detail


def test_qtest_results_are_counted(tmp_path: Path) -> None:
    script = """if [ "$1" = --print-path ]; then echo "$0"; exit; fi
echo '1..2'; echo 'ok 1 /attach'; echo 'not ok 2 /zap'; exit 1"""
    program(tmp_path, "scripts/qemu-build", script)
    assert Tally.of(Suites(tmp_path, tmp_path / "logs").qtest()) == Tally(1, 1, 0)


def test_build_that_prints_no_existing_path_is_a_failure(tmp_path: Path) -> None:
    program(tmp_path, "scripts/qemu-build", "echo /no/such/qemu")
    assert Tally.of(Suites(tmp_path, tmp_path / "logs").qtest()) == Tally(0, 1, 0)
