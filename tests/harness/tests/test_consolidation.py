# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``scripts/bench consolidation`` concludes, and that its verification is one."""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from uffdmm_harness import HarnessError, consolidation
from uffdmm_harness.consolidation import NATIVE, UFFDMM, Options, Result, budget_kept, summary
from uffdmm_harness.consolidation_trio import (
    BUSY,
    IDLE,
    NAMES,
    TURNS,
    Outcome,
    Rate,
    Trio,
    Work,
    adaptation,
)
from uffdmm_harness.consolidation_ways import IdleRun, WayRun
from uffdmm_harness.guest import Guest
from uffdmm_harness.machine import MIB
from uffdmm_harness.manager import Manager
from uffdmm_harness.port import RunResult, VerifyResult
from uffdmm_harness.serveprocess import ServeProcess


def outcome(busy: int, turns: int, *, wrong: str | None = None) -> Outcome:
    return Outcome(
        steps={BUSY: busy, TURNS: turns, IDLE: 0},
        steps_by_phase={BUSY: [busy // 2, busy - busy // 2], TURNS: [0, turns]},
        rates={TURNS: [Rate(at / 2, 10 * at) for at in range(1, 21)]},
        verified={name: name != wrong for name in NAMES},
    )


def run(way: str, number: int, steps: int, **values: Any) -> WayRun:
    plain: dict[str, Any] = {"within_bytes": 99 * MIB, "budget_bytes": 100 * MIB}
    made = outcome(steps, steps, wrong=values.pop("wrong", None))
    return WayRun(way, number, made, **plain | values)


def idle(number: int) -> IdleRun:
    return IdleRun(number, 40, 100 * MIB, 60 * MIB, 0.001, 1e6, verified=True)


def options() -> Options:
    return Options(seconds=10, rounds=2, pins=(), store=Path("/"))


def complete(**values: Any) -> Result:
    """Two rounds; ``values`` are of the last run of uffdmm."""
    runs = [run(NATIVE, 1, 10), run(UFFDMM, 1, 20), run(NATIVE, 2, 10)]
    return Result([*runs, run(UFFDMM, 2, 40, **values)], [idle(1), idle(2)])


def test_summary() -> None:
    told = summary(options(), complete(), None)
    assert told["work_ratio"] == 3
    assert told["spread"]["work_ratio"] == {"median": 3, "min": 2, "max": 4, "count": 2}
    # Rates grow to 200; the median of the last half is 155, four fifths of it 124.
    assert told["adaptation_s"] == 6.5
    assert told["budget_kept"] is True
    assert told["verified"] is True
    assert told["reclaimed_share"] == pytest.approx(0.4)
    assert told["stall_share"] == 0.001
    assert told["error"] is None
    assert json.loads(json.dumps(told)) == told


@pytest.mark.parametrize("wrong", NAMES)
def test_one_guest_that_is_wrong_makes_all_of_it_unverified(wrong: str) -> None:
    assert summary(options(), complete(wrong=wrong), None)["verified"] is False


def test_what_was_not_run_is_not_verified() -> None:
    assert summary(options(), complete(), "interrupted")["verified"] is False
    assert summary(options(), Result(), None)["verified"] is False
    short = complete()
    short.idle.pop()
    assert summary(options(), short, None)["verified"] is False
    forgotten = complete()
    del forgotten.runs[0].outcome.verified[IDLE]
    assert summary(options(), forgotten, None)["verified"] is False


def test_budget_is_kept_at_every_sample_or_not_at_all() -> None:
    assert not budget_kept(run(UFFDMM, 1, 1, within_bytes=100 * MIB + 1))
    assert not budget_kept(run(UFFDMM, 1, 1, within_bytes=0))
    assert summary(options(), complete(within_bytes=101 * MIB), None)["budget_kept"] is False
    assert summary(options(), Result(), None)["budget_kept"] is False


def rates(*values: float) -> list[Rate]:
    return [Rate((index + 1) / 2, value) for index, value in enumerate(values)]


def test_adaptation_is_when_the_level_is_reached() -> None:
    assert adaptation(rates(0, 0, 100, 100, 100, 100, 100, 100), 4) == 2
    # One record above it is chance.
    assert adaptation(rates(0, 100, 0, 0, 0, 100, 100, 100), 4) == 3.5
    # It stays where it was: there at once.
    assert adaptation(rates(100, 100, 100, 100), 2) == 1
    assert adaptation([], 4) is None
    assert adaptation(rates(1, 2), 4) is None


# -- the trio, with guests that are none -----------------------------------------


class Port:
    """Answers as the program in a guest does."""

    def __init__(self, wrong: bool) -> None:
        self.runs: list[dict[str, Any]] = []
        self._wrong = wrong

    def run(self, pattern: str, seconds: float, **values: Any) -> RunResult:
        self.runs.append({"pattern": pattern, "seconds": seconds, **values})
        values["progress"]({"steps": 40, "steps_per_s": 80.0})
        return RunResult(pattern, 100, seconds, 100 / seconds, 1.0)

    def verify(self, timeout: float) -> VerifyResult:
        del timeout
        return VerifyResult(not self._wrong, 5, int(self._wrong), ({"page": 3},))


def trio(wrong: str | None) -> tuple[Trio, dict[str, Port]]:
    ports = {name: Port(name == wrong) for name in NAMES}
    guests = [cast(Guest, SimpleNamespace(port=port, pid=1)) for port in ports.values()]
    works = {BUSY: Work("hot", 70), TURNS: Work("random", 30)}
    return Trio(guests, works, 0.05, lambda _: None), ports


def test_who_works_when() -> None:
    made, ports = trio(None)
    found = made.run(seed=3)
    made.verify(found)
    assert [run["seconds"] for run in ports[BUSY].runs] == [0.1]
    assert [(run["seconds"], run["span"]) for run in ports[TURNS].runs] == [(0.05, 30)]
    assert ports[IDLE].runs == []
    assert found.total == 200
    assert found.steps_by_phase == {BUSY: [40, 60], TURNS: [0, 100]}
    assert found.verified == dict.fromkeys(NAMES, True)


@pytest.mark.parametrize("wrong", NAMES)
def test_wrong_memory_ends_the_benchmark(wrong: str) -> None:
    made, _ = trio(wrong)
    found = made.run(seed=3)
    with pytest.raises(HarnessError, match=f"wrong memory in guest '{wrong}'"):
        made.verify(found)
    assert found.verified[wrong] is False


# -- the control plane as a process ------------------------------------------------


def serve(tmp_path: Path, **settings: float | str) -> ServeProcess:
    manager = SimpleNamespace(socket=tmp_path / "none", path=tmp_path, store=tmp_path)
    return ServeProcess(cast(Manager, manager), settings)


def await_line(made: ServeProcess, words: str) -> None:
    deadline = time.monotonic() + 20
    while words not in made.log and time.monotonic() < deadline:
        time.sleep(0.05)


def test_serve_starts_and_its_errors_are_found(tmp_path: Path) -> None:
    made = serve(tmp_path, budget=1 << 30)
    # There is no manager: it says so, and goes on.
    with pytest.raises(HarnessError, match="event=no-manager"), made:
        await_line(made, "no-manager")
    assert "event=stopped" in made.log


def test_serve_that_does_not_start_is_told(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="polcy"), serve(tmp_path, polcy="stall"):
        pass


# -- command line ------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["--rounds", "0"],
        ["--seconds", "0"],
        ["--store", "/nowhere"],
        ["--json", "/nowhere/file"],
    ],
)
def test_command_line_is_checked(words: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        consolidation._parse(words)
    assert end.value.code == 2


def test_pins_are_in_the_order_of_guests() -> None:
    parsed, _ = consolidation._parse(["--pin", "0", "0", "1", "--seconds", "5"])
    assert (parsed.pins, parsed.seconds, parsed.rounds) == ((0, 0, 1), 5, 3)
