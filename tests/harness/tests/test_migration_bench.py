# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``scripts/bench migration`` concludes, and how it tells time by a guest that moves."""

import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from uffdmm_harness import HarnessError, migration, migration_guest, migration_ways
from uffdmm_harness.migration import Options, Result
from uffdmm_harness.migration_guest import StepWatch, Stretch
from uffdmm_harness.migration_ways import STOCK, UFFDMM, Case
from uffdmm_harness.port import GuestPort

CASE = Case(
    name=UFFDMM,
    way=UFFDMM,
    swapped_percent=50,
    round=1,
    used_bytes=800,
    limit_bytes=400,
    swapped_bytes=100 * 4096,
    total_ms=1000,
    downtime_ms=100,
    stopped_ms=90,
    gap_max_ms=5,
    bytes=5000,
    location_bytes=900,
    pages_by_location=150,
    pages_by_content=10,
    bypass_pages=0,
    source_swap_ins=0,
    steps_per_s_before=1000,
    steps_per_s_during=800,
    guest_slowdown=0.8,
    steps_per_s_after=900,
    dest_demand_faults_10s=50,
    iterations=3,
    host_swap_pages=0,
    verified=True,
)


def options() -> Options:
    return migration._parse(["--rounds", "2"])[0]


# -- the guest's steps -------------------------------------------------------


class Sides:
    """Two ports and the guest that writes to them."""

    def __init__(self, folder: Path) -> None:
        self.ports: list[GuestPort] = []
        self.guests: list[socket.socket] = []
        for name in ("source", "destination"):
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(folder / name))
                listener.listen()
                self.ports.append(GuestPort(folder / name))
                self.guests.append(listener.accept()[0])

    def tell(self, side: int, text: str) -> None:
        self.guests[side].sendall(text.encode())

    def close(self) -> None:
        for port in self.ports:
            port.close()
        for guest in self.guests:
            guest.close()


@pytest.fixture
def sides(tmp_path: Path) -> Iterator[Sides]:
    both = Sides(tmp_path)
    yield both
    both.close()


def progress(steps: int, seconds: float) -> str:
    return json.dumps({"event": "progress", "steps": steps, "seconds": seconds, "gap_max_ms": 1.5})


def await_stretches(watch: StepWatch, number: int) -> None:
    deadline = time.monotonic() + 10
    while len(watch.stretches) < number and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(watch.stretches) == number


def test_record_cut_in_two_by_the_move_is_one(sides: Sides) -> None:
    watch = StepWatch(sides.ports[0])
    watch.expect(sides.ports[1])
    text = progress(20, 0.1)
    sides.tell(0, progress(10, 0.1) + "\n" + text[:17])
    await_stretches(watch, 1)
    sides.tell(1, text[17:] + "\n")
    await_stretches(watch, 2)
    sides.tell(1, '{"event":"ran"}\n')
    watch.finish()
    assert sides.guests[1].recv(100) == b"stop\n"
    assert [stretch.steps for stretch in watch.stretches] == [10, 20]
    assert watch.stretches[1].begin == watch.stretches[0].end


def test_wrong_word_met_on_the_way_is_told(sides: Sides) -> None:
    watch = StepWatch(sides.ports[0])
    sides.tell(0, '{"event":"corrupt","page":3}\n')
    with pytest.raises(HarnessError, match="corrupt"):
        watch.finish()


def test_guest_that_ends_is_told(sides: Sides) -> None:
    watch = StepWatch(sides.ports[0])
    sides.guests[0].close()
    with pytest.raises(HarnessError, match="it has ended"):
        watch.finish()


def test_time_that_the_guest_did_not_see() -> None:
    stretches = [
        Stretch(0.0, 1.0, 1.0, 100, 2.0),
        # half a second ran here, half there, and two stood still
        Stretch(1.0, 4.0, 1.0, 90, 7.0),
        Stretch(4.0, 5.0, 1.02, 80, 3.0),
    ]
    assert migration_guest.longest_stand_ms(stretches, 1.5, 3.5) == pytest.approx(2000)
    assert migration_guest.longest_stand_ms(stretches, 4.5, 5.0) == 0
    assert migration_guest.longest_stand_ms([], 0, 1) is None
    assert migration_guest.longest_gap_ms(stretches, 4.5, 5) == 3
    assert migration_guest.rate(stretches, 0, 1) == 100
    assert migration_guest.rate(stretches, 0.5, 2.5) == pytest.approx((50 + 45) / 2)
    assert migration_guest.rate(stretches, 6, 7) is None


def test_growth_in_a_window() -> None:
    values = iter(range(10, 10000, 10))
    growth = migration_guest.Growth(lambda: next(values))
    begin = time.time()
    time.sleep(0.3)
    end = time.time()
    growth.stop()
    assert 30 <= growth.between(begin, end) <= 80
    assert growth.between(end, begin + 1e-3) <= 0
    assert growth.between(0, 1) == 0


def test_major_faults_but_those_of_a_thread() -> None:
    before = migration_ways._major_faults(os.getpid())
    assert before >= migration_ways._major_faults(os.getpid(), os.getpid()) >= 0


# -- what follows ------------------------------------------------------------


def some_result() -> Result:
    result = Result()
    for number, (total, theirs) in enumerate(((1000.0, 4000.0), (2000.0, 4000.0)), 1):
        result.cases += [
            replace(CASE, round=number, total_ms=total),
            replace(
                CASE, name=STOCK, way=STOCK, round=number, total_ms=theirs, source_swap_ins=777
            ),
            replace(CASE, round=number, swapped_percent=0, total_ms=500, swapped_bytes=0),
            replace(CASE, round=number, swapped_percent=75, total_ms=550),
            replace(CASE, name="random", round=number),
            replace(CASE, name="ordered", round=number, location_bytes=100, guest_slowdown=None),
            replace(CASE, name="room", round=number),
            replace(CASE, name="room-no-prefetch", round=number, dest_demand_faults_10s=500),
        ]
    return result


def test_ratios_and_totals() -> None:
    outcome = migration.summary(options(), some_result(), None)
    assert outcome["source_swap_ins"] == 0
    assert outcome["location_bytes_per_page"] == 9
    assert outcome["location_bytes_per_page_ordered"] == 1
    assert outcome["ratios"]["total_ms_at_50"] == 0.375
    assert outcome["spread"]["total_ms_at_50"]["max"] == 0.5
    assert outcome["ratios"]["growth_0_to_75"] == 1.1
    assert outcome["ratios"]["demand_faults_without_prefetch"] == 10
    assert outcome["verified"] is True
    assert outcome["cases"][0]["location_bytes_per_page"] == 9
    # Of nothing swapped, and by nothing but content, no share can be told.
    assert outcome["cases"][1]["location_bytes_per_page"] is None
    assert outcome["cases"][2]["location_bytes_per_page"] is None
    json.dumps(outcome)
    console = Console(record=True, width=160)
    migration.show(console, options(), some_result(), outcome)
    assert "total_ms_at_50: 0.38 (0.25-0.50)" in console.export_text()


def test_swap_ins_and_wrong_bytes_are_not_hidden() -> None:
    result = some_result()
    result.cases[0] = replace(result.cases[0], source_swap_ins=3, verified=False)
    outcome = migration.summary(options(), result, None)
    assert (outcome["source_swap_ins"], outcome["verified"]) == (3, False)
    assert migration.summary(options(), some_result(), "interrupted")["verified"] is False


def test_line_of_a_case() -> None:
    assert "downtime 100 ms" in migration.line_of(CASE)
    assert "downtime" not in migration.line_of(replace(CASE, downtime_ms=None))


# -- command line ------------------------------------------------------------


def test_ways_take_turns() -> None:
    plans = migration.plans_of((0, 50), ("random",))
    assert [(plan.name, plan.swapped) for plan in plans] == [
        *((STOCK, 0), (UFFDMM, 0), (STOCK, 50), (UFFDMM, 50)),
        ("random", 50),
    ]
    assert len(options().plans) == 13


@pytest.mark.parametrize(
    "words",
    [
        ["--rounds", "0"],
        ["--seconds", "0"],
        ["--swapped", "95"],
        ["--swapped", "none"],
        ["--extras", "colder"],
        ["--store", "/nowhere"],
        ["--json", "/nowhere/file"],
    ],
)
def test_command_line_is_checked(words: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        migration._parse(words)
    assert end.value.code == 2
