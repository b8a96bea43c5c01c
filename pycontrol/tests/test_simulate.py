# SPDX-License-Identifier: GPL-2.0-or-later
"""The model of guests, and the built-in policies on made-up and recorded ones."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from uffdmm.cli.app import main
from uffdmm.pagetable import AGE_MAX
from uffdmm.policies import Decision, HostView, Policy, load_policy
from uffdmm.simulate import GuestModel, Setup, Simulation, SimulationReport, VmReport
from uffdmm.simulate.plot import PlotError, check_plot, plot
from uffdmm.trace import Settings, Trace, TraceError, load_trace, save_trace
from uffdmm.trace.model import COUNTERS, PAGE, pack
from uffdmm.trace.synthetic import make_synthetic

MIB = 1 << 20
GIB = 1 << 30
RECORDED = sorted((Path(__file__).parent / "traces").glob("*.npz"))
NAMES = ("fixed", "shares", "stall")


def trace(rows: Sequence[Sequence[int]], units: int = 16, **values: Any) -> Trace:
    """A guest that uses these units, second by second."""
    nr = len(rows) + 1
    bits = np.zeros((nr, units), np.bool_)
    for second, row in enumerate(rows, 1):
        bits[second, list(row)] = True
    nothing = pack(np.zeros(units, np.bool_))
    plain: dict[str, Any] = {
        "name": "vm",
        "ram_bytes": units * PAGE,
        "stride": 1,
        "times": np.arange(nr, dtype=np.float64),
        "looked": np.array([False] + [True] * len(rows)),
        "used": np.array([pack(row) for row in bits]),
        "resident": nothing,
        "stored": nothing,
        "counters": {name: np.zeros(nr, np.int64) for name in COUNTERS},
    }
    return Trace(**plain | values)


def simulate(
    policy: str | Policy, budget: int, *traces: Trace, **values: Any
) -> tuple[SimulationReport, dict[str, VmReport]]:
    setup = Setup(policy if isinstance(policy, str) else "own", budget, **values)
    plugin = load_policy(policy, stall_budget=0.002) if isinstance(policy, str) else policy
    report = Simulation(setup, plugin, traces).run()
    return report, {vm.vm_name: vm for vm in report.vms}


# ---- the model


def test_a_guest_below_its_limit_loses_nothing() -> None:
    guest = GuestModel("vm", trace([[0, 1], [2], [0, 1, 2]]), 1e-3)
    assert [guest.advance(now, 1.0).faults for now in (1, 2, 3)] == [0, 0, 0]
    assert (guest.resident_bytes, guest.stored_bytes) == (3 * PAGE, 0)


def test_the_longest_unused_go_and_come_back_as_faults() -> None:
    guest = GuestModel("vm", trace([[0, 1], [1], [2], [0], [0]]), 1e-3)
    guest.set_limit(2 * PAGE)
    ticks = [guest.advance(now, 1.0) for now in (1, 2, 3, 4, 5)]
    assert [tick.faults for tick in ticks] == [0, 0, 0, 1, 0]
    assert ticks[3].stall_share == pytest.approx(1e-3)
    assert ticks[3].refault_rate == PAGE
    assert ticks[3].fault_counts.sum() == 1
    # Page 0 went when 2 came, 1 when 0 came back.
    assert guest.table.states().tolist()[:3].count(guest.table.states()[1]) == 1
    assert (guest.resident_bytes, guest.stored_bytes) == (2 * PAGE, PAGE)


def test_ages_are_known_from_the_second_look_on() -> None:
    guest = GuestModel("vm", trace([[0, 1, 2], [0], [0], [3], [0]]), 1e-3)
    guest.set_limit(3 * PAGE)
    for now in (1, 2, 3):
        assert guest.advance(now, 1.0).ages is None
    # Page 3 comes, 1 goes: a first look, which the second one follows in any case.
    assert guest.advance(4, 1.0).ages is None
    ages = guest.advance(5, 1.0).ages
    assert ages is not None
    assert {int(age): int(ages[age]) for age in np.flatnonzero(ages)} == {
        0: PAGE,
        1: PAGE,
        4: PAGE,
    }


def test_new_pages_have_no_age_yet() -> None:
    guest = GuestModel("vm", trace([[0], [1], [2], [3]]), 1e-3)
    guest.set_limit(PAGE)
    ages = [guest.advance(now, 1.0).ages for now in (1, 2, 3, 4)][-1]
    assert ages is not None
    assert np.flatnonzero(ages).tolist() == [255]


def test_ages_are_forgotten_when_nobody_looks() -> None:
    guest = GuestModel("vm", trace([[0, 1]] + [[0]] * 29), 1e-3)
    guest.advance(1, 1.0)
    guest.set_limit(PAGE)
    known = [guest.advance(now, 1.0).ages is not None for now in range(2, 31)]
    # The second look was at 3 s.
    assert known == [False] + [True] * 16 + [False] * 12


def test_what_was_there_at_first_counts() -> None:
    first = np.zeros(16, np.bool_)
    first[:4] = True
    stored = np.zeros(16, np.bool_)
    stored[4:6] = True
    guest = GuestModel("vm", trace([[4]], resident=pack(first), stored=pack(stored)), 1e-3)
    assert (guest.resident_bytes, guest.stored_bytes) == (4 * PAGE, 2 * PAGE)
    assert guest.advance(1, 1.0).faults == 1
    assert guest.table.ages()[0] == AGE_MAX


def test_a_guest_that_was_not_looked_at_goes_on() -> None:
    looked = np.array([False, True, False, False])
    guest = GuestModel("vm", trace([[0, 1], [], [2]], looked=looked), 1e-3)
    guest.set_limit(PAGE)
    assert [guest.advance(now, 1.0).faults for now in (1, 2, 3)] == [0, 1, 1]


def test_prefetch_brings_the_last_used_within_the_limit() -> None:
    guest = GuestModel("vm", trace([[0, 1, 2, 3], [0, 1, 2], [0, 1]]), 1e-3)
    for now in (1, 2, 3):
        guest.advance(now, 1.0)
    guest.set_limit(PAGE)
    guest.set_limit(3 * PAGE)
    guest.prefetch(16 * PAGE)
    assert guest.resident_bytes == 3 * PAGE
    states = guest.table.states()
    assert states[3] != states[0] == states[1] == states[2]


def test_the_limit_that_was_in_force_is_where_it_begins() -> None:
    counters = {name: np.zeros(2, np.int64) for name in COUNTERS}
    counters["limit_bytes"] = np.array([4 * PAGE, 8 * PAGE])
    assert GuestModel("vm", trace([[0]], counters=counters), 1e-3).limit_bytes == 4 * PAGE
    assert GuestModel("vm", trace([[0]]), 1e-3).limit_bytes == 16 * PAGE


# ---- the rules of the host


class Own(Policy):
    """Answers what it is told to."""

    def __init__(self, answer: Any) -> None:
        super().__init__(0.002)
        self.answer = answer
        self.seen: list[HostView] = []

    def decide(self, host: HostView) -> Decision:
        self.seen.append(host)
        if isinstance(self.answer, Exception):
            raise self.answer
        decision: Decision = self.answer(host)
        return decision


def test_limits_fall_at_the_rate_and_rise_at_once() -> None:
    def steps(host: HostView) -> Decision:
        # From the fifth second on all of its memory is in use.
        return Decision({"hot-cold": GIB // 2 if 5 <= len(policy.seen) < 9 else GIB})

    policy = Own(steps)
    report, vms = simulate(policy, 2 * GIB, make_synthetic("hot-cold", seconds=12), rate=64 * MIB)
    falls = [GIB - 64 * MIB * step for step in range(1, 5)]
    assert vms["hot-cold"].limit_bytes == [*[GIB] * 5, *falls, *[GIB] * 3]
    assert report.policy_failures == 0


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (RuntimeError("no"), "raised RuntimeError"),
        (lambda _: Decision({"nobody": GIB}), "which there is not"),
        (lambda host: Decision(dict.fromkeys(host.vms, -1)), "limit of -1"),
        (lambda _: None, "no Decision"),
    ],
)
def test_answers_that_cannot_be_used_change_nothing(answer: Any, sentence: str) -> None:
    report, vms = simulate(Own(answer), 2 * GIB, make_synthetic("hot-cold", seconds=5))
    assert report.policy_failures == 5
    assert sentence in str(report.first_failure)
    assert set(vms["hot-cold"].limit_bytes) == {GIB}


def test_a_policy_sees_what_serve_shows_it() -> None:
    policy = Own(lambda _: Decision({"hot-cold": GIB // 4}))
    settings = Settings(min_bytes=32 * MIB, max_bytes=GIB // 2, shares=7, priority=60, vcpus=2)
    simulate(policy, GIB // 2, make_synthetic("hot-cold", seconds=30, settings=settings))
    first, last = policy.seen[0], policy.seen[-1].vms["hot-cold"]
    assert first.pressure
    assert (last.min_bytes, last.max_bytes) == (32 * MIB, GIB // 2)
    assert (last.shares, last.priority) == (7, 60)
    assert last.limit_bytes >= last.resident_bytes > GIB // 5
    assert last.ages is not None
    assert last.ages.sum() == pytest.approx(last.resident_bytes)
    (table,) = last.tables
    assert table.age_histogram().sum() * last.ram_bytes / table.nr_pages == last.resident_bytes


def test_a_vm_whose_trace_ends_leaves() -> None:
    policy = Own(lambda _: Decision({}))
    long, short = make_synthetic("zipf", seconds=20), make_synthetic("scan", seconds=8)
    report, vms = simulate(policy, 4 * GIB, long, short)
    assert report.seconds == 20
    assert [len(host.vms) for host in policy.seen] == [2] * 8 + [1] * 12
    assert vms["scan"].limit_bytes[8:] == [0] * 12
    assert vms["scan"].limit_min_bytes == GIB


def test_what_cannot_be_simulated_is_refused() -> None:
    one = make_synthetic("scan", seconds=5)
    with pytest.raises(TraceError, match="two traces are of a VM 'scan'"):
        simulate("fixed", GIB, one, one)
    with pytest.raises(TraceError, match="no trace"):
        simulate("fixed", GIB)
    with pytest.raises(TraceError, match="the budget is"):
        simulate("fixed", MIB, one)
    with pytest.raises(TraceError, match="the interval is 9 s"):
        simulate("fixed", GIB, one, interval=9.0)


# ---- the built-in policies: what docs/policy.md promises


def made_up(seconds: int = 180) -> list[Trace]:
    return [make_synthetic(kind, seconds=seconds) for kind in ("hot-cold", "idle-busy", "zipf")]


def recorded(**values: Any) -> list[Trace]:
    assert RECORDED, "the recorded traces are missing"
    return [load_trace(path) for path in RECORDED]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["made-up", "recorded"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_budget_and_bounds_are_kept(name: str, kind: str, share: float) -> None:
    traces = made_up(90) if kind == "made-up" else recorded()
    budget = int(share * sum(trace.ram_bytes for trace in traces))
    report, _ = simulate(name, budget, *traces)
    assert report.policy_failures == 0, report.first_failure
    assert report.settled_seconds is not None
    assert report.settled_seconds <= 12
    assert report.over_budget_seconds == 0
    assert report.limit_max_bytes <= budget
    for vm in report.vms:
        assert vm.limit_min_bytes >= 16 * MIB
        # A limit is never exceeded by what is in memory, but for the part of a unit.
        pairs = zip(vm.resident_bytes, vm.limit_bytes, strict=True)
        assert all(resident <= limit for resident, limit in pairs)


def test_fixed_scales_by_shares() -> None:
    two = make_synthetic("zipf", settings=Settings(shares=200))
    _, vms = simulate("fixed", GIB, two, make_synthetic("hot-cold"))
    assert vms["zipf"].limit_last_bytes == pytest.approx(
        2 * vms["hot-cold"].limit_last_bytes, rel=0.01
    )
    assert set(vms["zipf"].limit_bytes[15:]) == {vms["zipf"].limit_last_bytes}


def test_shares_gives_idle_memory_to_who_works() -> None:
    guests = [make_synthetic("hot-cold", hot=0.1), make_synthetic("zipf", touched=0.9)]
    _, even = simulate("fixed", GIB, *guests)
    _, vms = simulate("shares", GIB, *guests)
    assert vms["hot-cold"].limit_last_bytes < 0.5 * vms["zipf"].limit_last_bytes
    assert vms["zipf"].stall_mean < 0.7 * even["zipf"].stall_mean
    # And the one that gave keeps what it works with.
    assert vms["hot-cold"].limit_last_bytes > 0.1 * GIB


def test_shares_serves_the_higher_priority_first() -> None:
    def guests(high: int) -> list[Trace]:
        return [
            make_synthetic("zipf", name="a", settings=Settings(priority=high)),
            make_synthetic("zipf", name="b", seed=2),
        ]

    _, equal = simulate("shares", GIB, *guests(50))
    _, vms = simulate("shares", GIB, *guests(60))
    assert vms["a"].stall_mean < 0.7 * equal["a"].stall_mean
    assert vms["b"].stall_mean > equal["b"].stall_mean


def test_stall_takes_what_is_not_felt() -> None:
    _, vms = simulate("stall", GIB, make_synthetic("hot-cold", seconds=300))
    vm = vms["hot-cold"]
    late = vm.stall_share[60:]
    # The working set is a fifth; of the rest most has gone, and hardly anything is lost.
    assert vm.limit_last_bytes < 0.5 * GIB
    assert np.mean(late) <= 2 * 0.002
    assert np.mean(np.array(late) > 0.002) < 0.35
    _, nothing = simulate("fixed", GIB, make_synthetic("hot-cold", seconds=300))
    assert nothing["hot-cold"].reclaimed_share < 0.01


def test_stall_gives_back_when_the_guest_wakes_up() -> None:
    _, vms = simulate("stall", GIB, make_synthetic("idle-busy", seconds=240))
    vm = vms["idle-busy"]
    # Idle until 30, 60 to 90 and so on; busy in 70 % of it between.
    for idle, busy in ((29, 59), (89, 119), (149, 179)):
        assert vm.limit_bytes[idle] < vm.limit_bytes[busy]
        assert vm.limit_bytes[busy] > 0.5 * GIB
        assert vm.stall_share[busy] < 0.05 < max(vm.stall_share[idle + 1 : idle + 4])


@pytest.mark.parametrize("name", NAMES)
def test_recorded_guests_with_enough_lose_nothing(name: str) -> None:
    traces = recorded()
    budget = sum(trace.ram_bytes for trace in traces)
    _, vms = simulate(name, budget, *traces)
    if name != "stall":
        assert all(vm.faults == 0 for vm in vms.values())
    # Proactive reclaim is felt a little, and by the stall budget not much more.
    assert all(vm.stall_mean < 0.01 for vm in vms.values())


def test_stall_takes_from_a_recorded_guest_while_it_idles() -> None:
    (trace,) = recorded()
    _, vms = simulate("stall", trace.ram_bytes, trace)
    vm = vms[trace.name]
    busy = trace.marks["busy"], trace.marks["idle"]
    before, during = (
        vm.limit_bytes[int(trace.times[busy[0]]) - 1],
        vm.limit_bytes[int(trace.times[busy[1]]) - 1],
    )
    assert before < 0.8 * trace.ram_bytes
    assert during > before
    assert vm.reclaimed_share > 0.1


# ---- the command


def run(*arguments: str) -> int:
    return main(["simulate", *arguments])


def test_command(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    save_trace(make_synthetic("scan", ram_bytes=64 * MIB, seconds=20), tmp_path / "t.npz")
    words = (f"db={tmp_path / 't.npz'}", "synthetic:hot-cold,ram=128M,seconds=20,name=web")
    assert run(*words, "--budget", "100M", "--policy", "stall") == 0
    out = capfd.readouterr().out
    assert "policy stall, 20 s, budget 100 MiB: kept from" in out
    assert [line.split()[0] for line in out.splitlines()[1:4]] == ["VM", "db", "web"]
    assert "LIMIT AT" in out
    assert run(*words, "--budget", "100M", "--json") == 0
    document = json.loads(capfd.readouterr().out)
    assert set(document) == set(SimulationReport.model_fields)
    assert [vm["vm_name"] for vm in document["vms"]] == ["db", "web"]
    assert len(document["times"]) == len(document["vms"][0]["limit_bytes"]) == 20


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["none.npz", "--budget", "1G"], 1, "there is no trace 'none.npz'"),
        (["synthetic:x", "--budget", "1G"], 1, "no made-up trace 'x'"),
        (["synthetic:scan", "--budget", "much"], 2, "much"),
        (["synthetic:scan", "--budget", "1G", "--fault-time", "60"], 2, "no unit"),
        (["synthetic:scan", "--budget", "1G", "--policy", "x"], 1, "there is no policy 'x'"),
        (["synthetic:scan", "--budget", "1G", "--plot", "a.doc"], 1, "no kind of picture"),
        (["--budget", "1G"], 2, "TRACE"),
    ],
)
def test_command_refuses(
    words: list[str], code: int, sentence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == code
    captured = capfd.readouterr()
    assert sentence in captured.err
    assert captured.out == ""


def test_a_policy_that_fails_fails_the_command(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "uffdmm.cli.simulate.load_policy", lambda *_, **__: Own(RuntimeError("broken"))
    )
    assert run("synthetic:scan,seconds=4", "--budget", "1G") == 1
    assert "4 answers could not be used, first: policy 'shares' raised RuntimeError" in (
        capfd.readouterr().out
    )


def test_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    short = make_synthetic("scan", seconds=5)
    report, _ = simulate("stall", GIB, make_synthetic("hot-cold", seconds=10), short)
    for name, magic in (("a.png", b"\x89PNG"), ("b.svg", b"<?xml"), ("c.pdf", b"%PDF")):
        plot(report, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(magic)
    text = (tmp_path / "b.svg").read_text()
    assert "<!-- hot-cold -->" in text
    assert "<!-- scan -->" in text


def test_a_picture_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(PlotError, match="not installed"):
        check_plot(tmp_path / "a.png")
