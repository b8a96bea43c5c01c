# SPDX-License-Identifier: GPL-2.0-or-later
"""Reports of the test runners, good and broken ones."""

import json

import pytest

from uffdmm_runner.readers import (
    ReportError,
    read_avocado,
    read_cmocka,
    read_junit,
    read_meson_log,
    read_tap,
)
from uffdmm_runner.results import Outcome, Result

P, F, S = Outcome.PASSED, Outcome.FAILED, Outcome.SKIPPED

CMOCKA = """\
[==========] Running 3 test(s).
[ RUN      ] test_good
[       OK ] test_good
[ RUN      ] test_bad
[  ERROR   ] --- 0x1 != 0x2
[   LINE   ] --- ../native/tests/test_x.c:12: error: Failure!
[  FAILED  ] test_bad
[ RUN      ] test_kvm
skip: /dev/kvm cannot be opened
[  SKIPPED ] test_kvm
[==========] 3 test(s) run.
[  PASSED  ] 1 test(s).
[  SKIPPED ] 1 test(s), listed below:
[  SKIPPED ] test_kvm
[  FAILED  ] 1 test(s), listed below:
[  FAILED  ] test_bad
"""


def outcomes(results: list[Result]) -> dict[str, Outcome]:
    found = {r.name: r.outcome for r in results}
    assert len(found) == len(results), "a test was counted twice"
    return found


def meson_line(name: str, result: str, stdout: str = "") -> str:
    return json.dumps({"name": name, "result": result, "stdout": stdout, "returncode": 0})


def test_cmocka_counts_each_test_once() -> None:
    results = read_cmocka("t", CMOCKA)
    assert outcomes(results) == {"t:test_good": P, "t:test_bad": F, "t:test_kvm": S}
    assert "0x1 != 0x2" in results[1].detail
    assert results[2].detail == "/dev/kvm cannot be opened"


def test_cmocka_test_that_never_ends_has_failed() -> None:
    text = "[ RUN      ] test_a\n[       OK ] test_a\n[ RUN      ] test_crash\nboom\n"
    results = read_cmocka("t", text)
    assert outcomes(results) == {"t:test_a": P, "t:test_crash": F}
    assert "boom" in results[1].detail


def test_cmocka_test_overtaken_by_another_has_failed() -> None:
    text = "[ RUN      ] test_a\n[ RUN      ] test_b\n[       OK ] test_b\n"
    assert outcomes(read_cmocka("t", text)) == {"t:test_a": F, "t:test_b": P}


def test_meson_log_counts_single_tests_of_cmocka_programs() -> None:
    text = "\n".join(
        [
            meson_line("uffdmm / race", "FAIL", CMOCKA),
            meson_line("plain", "OK", "nothing to say"),
            meson_line("absent", "SKIP", "skip: no such device"),
        ]
    )
    results = read_meson_log(text)
    assert outcomes(results) == {
        "uffdmm / race:test_good": P,
        "uffdmm / race:test_bad": F,
        "uffdmm / race:test_kvm": S,
        "plain": P,
        "absent": S,
    }
    assert results[-1].detail == "no such device"


def test_standard_error_goes_to_the_first_failed_test() -> None:
    stdout = "[ RUN      ] test_a\n[  FAILED  ] test_a\n[ RUN      ] test_b\n[  FAILED  ] test_b\n"
    line = {"name": "p", "result": "FAIL", "stdout": stdout, "stderr": "[  ERROR   ] --- 1 != 0\n"}
    results = read_meson_log(json.dumps(line))
    assert outcomes(results) == {"p:test_a": F, "p:test_b": F}
    assert [r.detail for r in results] == ["[  ERROR   ] --- 1 != 0", ""]


@pytest.mark.parametrize("said", ["FAIL", "TIMEOUT", "ERROR", "INTERRUPT", "UNEXPECTEDPASS", "?"])
def test_meson_program_that_ends_badly_counts_although_its_tests_passed(said: str) -> None:
    text = meson_line("leaky", said, "[ RUN      ] test_a\n[       OK ] test_a\nLeakSanitizer")
    results = read_meson_log(text)
    assert outcomes(results) == {"leaky:test_a": P, "leaky:(program)": F}
    assert "LeakSanitizer" in results[1].detail


@pytest.mark.parametrize("text", ["{", '{"name": "x"}', "[]", "null"])
def test_meson_log_in_another_form_is_an_error(text: str) -> None:
    with pytest.raises(ReportError):
        read_meson_log(text)


def test_junit_outcomes() -> None:
    text = """<testsuites><testsuite>
      <testcase classname="a" name="good"/>
      <testcase classname="a" name="bad"><failure message="assert 1 == 2">trace</failure></testcase>
      <testcase classname="a" name="setup"><error message="fixture">trace</error></testcase>
      <testcase classname="a" name="off"><skipped type="pytest.skip" message="no kvm"/></testcase>
      <testcase classname="a" name="known"><skipped type="pytest.xfail" message="bug"/></testcase>
    </testsuite></testsuites>"""
    results = read_junit(text)
    assert outcomes(results) == {
        "a::good": P,
        "a::bad": F,
        "a::setup": F,
        "a::off": S,
        "a::known": P,
    }
    assert "assert 1 == 2" in results[1].detail
    assert results[3].detail == "no kvm"


def test_junit_cut_short_is_an_error() -> None:
    with pytest.raises(ReportError):
        read_junit("<testsuites><testsuite>")


def avocado_job(total: int, *statuses: str) -> str:
    tests = [
        {"id": f"{n}-t.py:T.test_{n}", "status": s, "fail_reason": "why", "logfile": "/log"}
        for n, s in enumerate(statuses)
    ]
    return json.dumps({"total": total, "tests": tests})


def test_avocado_outcomes() -> None:
    text = avocado_job(7, "PASS", "FAIL", "ERROR", "SKIP", "CANCEL", "INTERRUPTED", "WARN")
    assert [r.outcome for r in read_avocado(text)] == [P, F, F, S, S, F, P]


def test_avocado_job_that_lost_a_test_has_failed() -> None:
    results = read_avocado(avocado_job(3, "PASS", "PASS"))
    assert [r.outcome for r in results] == [P, P, F]


@pytest.mark.parametrize("text", ["", "{}", '{"tests": []}', "[1]"])
def test_avocado_report_in_another_form_is_an_error(text: str) -> None:
    with pytest.raises(ReportError):
        read_avocado(text)


TAP = """\
TAP version 13
# random seed: R02S
1..4
ok 1 /x86_64/uffdmm/attach
# told twice
not ok 2 /x86_64/uffdmm/zap
ok 3 /x86_64/uffdmm/kvm # SKIP no kvm here
not ok 4 /x86_64/uffdmm/later # TODO not yet
"""


def test_tap_outcomes() -> None:
    results = read_tap("q", TAP)
    assert [r.outcome for r in results] == [P, F, S, P]
    assert results[0].name == "q:/x86_64/uffdmm/attach"
    assert "told twice" in results[1].detail
    assert results[2].detail == "no kvm here"


@pytest.mark.parametrize(
    "text",
    ["", "ok 1 a\n", "1..2\nok 1 a\n", "1..1\nok 1 a\nok 2 b\n", "1..2\nok 1 a\nBail out! ERROR\n"],
)
def test_tap_stream_that_is_not_whole_has_failed(text: str) -> None:
    assert Outcome.FAILED in [r.outcome for r in read_tap("q", text)]
