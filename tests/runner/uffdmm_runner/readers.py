# SPDX-License-Identifier: GPL-2.0-or-later
"""Readers of what the test runners leave behind.

Each takes the text of a report file and returns results; text that is not in
the expected form raises ReportError, which the caller counts as a failure.
"""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from typing import Any

from .results import Outcome, Result

DETAIL_LINES = 40
"""Lines of output kept of one failed test."""

MESON_OUTCOMES = {
    "OK": Outcome.PASSED,
    "EXPECTEDFAIL": Outcome.PASSED,
    "SKIP": Outcome.SKIPPED,
    "IGNORED": Outcome.SKIPPED,
}
"""Everything else that meson says (FAIL, TIMEOUT, ERROR, INTERRUPT, ...) is a failure."""

AVOCADO_OUTCOMES = {
    "PASS": Outcome.PASSED,
    "WARN": Outcome.PASSED,
    "SKIP": Outcome.SKIPPED,
    "CANCEL": Outcome.SKIPPED,
}

CMOCKA_LINE = re.compile(r"\[ *(RUN|OK|FAILED|SKIPPED) *\] (\S+)\s*$")
TAP_LINE = re.compile(
    r"^(?P<not>not )?ok\b *(?P<number>\d+)? *-? *(?P<name>[^#]*?)"
    r" *(?:# *(?P<directive>SKIP|TODO)\b *(?P<reason>.*))?$",
    re.IGNORECASE,
)
TAP_PLAN = re.compile(r"^1\.\.(\d+)")


class ReportError(ValueError):
    """A report is not what its runner writes."""


def head(text: str, lines: int = DETAIL_LINES) -> str:
    return "\n".join(text.strip().splitlines()[:lines])


def tail(text: str, lines: int = DETAIL_LINES) -> str:
    return "\n".join(text.rstrip().splitlines()[-lines:])


def skip_reason(text: str) -> str:
    """The last line `skip: reason` of a test's output."""
    reasons = [line for line in text.splitlines() if line.startswith("skip: ")]
    return reasons[-1].removeprefix("skip: ") if reasons else ""


def read_cmocka(program: str, text: str) -> list[Result]:
    """The single tests of a cmocka program in its default output.

    The repeated names after "listed below" are not counted twice: only what
    follows a RUN line of the same name is.
    """
    results: list[Result] = []
    running: str | None = None
    since: list[str] = []
    for line in text.splitlines():
        match = CMOCKA_LINE.search(line)
        if not match:
            since.append(line)
            continue
        word, name = match.groups()
        if word == "RUN":
            if running is not None:
                results.append(unfinished(program, running, since))
            running, since = name, []
        elif name == running:
            output = "\n".join(since)
            if word == "OK":
                results.append(Result(f"{program}:{name}", Outcome.PASSED))
            elif word == "SKIPPED":
                results.append(Result(f"{program}:{name}", Outcome.SKIPPED, skip_reason(output)))
            else:
                results.append(Result(f"{program}:{name}", Outcome.FAILED, tail(output)))
            running = None
    if running is not None:
        results.append(unfinished(program, running, since))
    return results


def with_errors(results: list[Result], stderr: str) -> list[Result]:
    """Gives the program's standard error to its first failed test.

    cmocka reports results on standard output and reasons on standard error,
    so nothing says which reason is whose.
    """
    for number, result in enumerate(results):
        if result.outcome is Outcome.FAILED and stderr.strip():
            detail = f"{result.detail}\n{tail(stderr)}".strip()
            return [
                *results[:number],
                Result(result.name, result.outcome, detail),
                *results[number + 1 :],
            ]
    return results


def unfinished(program: str, name: str, output: list[str]) -> Result:
    detail = tail("\n".join([*output, "the test did not come to its end"]))
    return Result(f"{program}:{name}", Outcome.FAILED, detail)


def read_meson_log(text: str) -> list[Result]:
    """meson's testlog.json: one JSON object a line, one line a program."""
    results: list[Result] = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            test: dict[str, Any] = json.loads(line)
            name, said = str(test["name"]), str(test["result"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ReportError(f"testlog.json line {number}: {error!r}") from error
        stdout, stderr = (str(test.get(key) or "") for key in ("stdout", "stderr"))
        output = f"{stdout}\n{stderr}".strip()
        outcome = MESON_OUTCOMES.get(said, Outcome.FAILED)
        single = with_errors(read_cmocka(name, stdout), stderr)
        results += single
        failed = any(r.outcome is Outcome.FAILED for r in single)
        if not single:
            detail = skip_reason(output) if outcome is Outcome.SKIPPED else ""
            if outcome is Outcome.FAILED:
                detail = f"{said}\n{tail(output)}"
            results.append(Result(name, outcome, detail))
        elif outcome is Outcome.FAILED and not failed:
            # It crashed, leaked or ran out of time outside its single tests.
            results.append(Result(f"{name}:(program)", outcome, f"{said}\n{tail(output)}"))
    return results


def read_junit(text: str) -> list[Result]:
    """pytest's --junitxml."""
    try:
        root = ET.fromstring(text)
    except ET.ParseError as error:
        raise ReportError(f"not a JUnit report: {error}") from error
    results: list[Result] = []
    for case in root.iter("testcase"):
        name = f"{case.get('classname', '')}::{case.get('name', '')}"
        bad = [e for tag in ("failure", "error") for e in case.findall(tag)]
        skipped = case.find("skipped")
        if bad:
            detail = tail("\n".join(f"{e.get('message', '')}\n{e.text or ''}" for e in bad))
            results.append(Result(name, Outcome.FAILED, detail))
        elif skipped is not None and skipped.get("type") != "pytest.xfail":
            results.append(Result(name, Outcome.SKIPPED, skipped.get("message", "")))
        else:
            results.append(Result(name, Outcome.PASSED))
    return results


def read_avocado(text: str) -> list[Result]:
    """results.json of an avocado job."""
    try:
        tests: list[dict[str, Any]] = json.loads(text)["tests"]
        total = int(json.loads(text)["total"])
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ReportError(f"not an avocado report: {error!r}") from error
    results = []
    for test in tests:
        name, said = str(test.get("id") or test.get("url")), str(test.get("status"))
        outcome = AVOCADO_OUTCOMES.get(said, Outcome.FAILED)
        detail = str(test.get("fail_reason") or "")
        if outcome is Outcome.PASSED:
            detail = ""
        elif outcome is Outcome.FAILED:
            detail = f"{said}: {detail}\nlog: {test.get('logfile')}"
        results.append(Result(name, outcome, detail))
    if total != len(results):
        results.append(
            Result("(job)", Outcome.FAILED, f"{total} tests announced, {len(results)} reported")
        )
    return results


def read_tap(program: str, text: str) -> list[Result]:
    """TAP version 12 to 14; the plan has to be met."""
    results: list[Result] = []
    planned: int | None = None
    since: list[str] = []
    for line in text.splitlines():
        if line.startswith("Bail out!"):
            results.append(Result(f"{program}:(program)", Outcome.FAILED, line))
            return results
        if plan := TAP_PLAN.match(line):
            planned = int(plan.group(1))
            continue
        match = TAP_LINE.match(line)
        if not match:
            since.append(line)
            continue
        name = f"{program}:{match['name'] or match['number'] or len(results) + 1}"
        directive = (match["directive"] or "").upper()
        if directive == "SKIP":
            results.append(Result(name, Outcome.SKIPPED, match["reason"] or ""))
        elif match["not"] and directive != "TODO":
            results.append(Result(name, Outcome.FAILED, tail("\n".join(since))))
        else:
            results.append(Result(name, Outcome.PASSED))
        since = []
    if planned is None or planned != len(results):
        said = "no plan" if planned is None else f"a plan of {planned} tests"
        detail = f"{said}, {len(results)} reported\n{tail(chr(10).join(since))}"
        results.append(Result(f"{program}:(program)", Outcome.FAILED, detail))
    return results
