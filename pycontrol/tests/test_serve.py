# SPDX-License-Identifier: GPL-2.0-or-later
"""The control plane: containment, rates, bounds, and its loop against a fake manager."""

import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_manager import FakeManager, FakeVm, pages_of, stats_bytes, struct_bytes, tier_bytes
from live_vm import live_vm
from test_policies import MIB, RAM, host, view
from uffdmm import Manager, ProtocolError
from uffdmm._native import ffi, lib
from uffdmm.policies import Decision, HostView, Policy, PolicyError, load_policy
from uffdmm.serve import Daemon, Options
from uffdmm.serve.apply import next_limits
from uffdmm.serve.bounds import Bounds, settle
from uffdmm.serve.contain import Leash
from uffdmm.serve.log import Log
from uffdmm.serve.vm import VmLink


class Says(Policy):
    """Answers what it is told."""

    def __init__(self, answer: Callable[[HostView], Any]) -> None:
        super().__init__(0.002)
        self.answer = answer
        self.calls = 0

    def decide(self, host: HostView) -> Decision:
        self.calls += 1
        decision: Decision = self.answer(host)
        return decision


def raises(_: HostView) -> Decision:
    raise ZeroDivisionError("nothing left")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (raises, r"policy 'test' raised ZeroDivisionError\('nothing left'\)"),
        (lambda _: None, "no Decision"),
        (lambda _: Decision({"a": -1}), "a limit of -1 for VM 'a'"),
        (lambda _: Decision({"a": float("nan")}), "a limit of nan"),  # type: ignore[dict-item]
        (lambda _: Decision({"a": float("inf")}), "a limit of inf"),  # type: ignore[dict-item]
        (lambda _: Decision({"a": "1G"}), "a limit of '1G'"),  # type: ignore[dict-item]
        (lambda _: Decision({"a": True}), "a limit of True"),
        (lambda _: Decision({"z": 64 * MIB}), "VM 'z', which there is not"),
        (lambda _: Decision({"a": 4096}), "whose bounds are"),
        (lambda _: Decision({"a": 2 * RAM}), "whose bounds are"),
        (lambda _: Decision({"a": RAM, "b": RAM}), "the budget is"),
        (lambda _: Decision({"a": 900 * MIB}), "the budget is"),
        (lambda _: Decision({}, prefetch={"a": -5}), "a prefetch of -5"),
        (lambda _: Decision({}, tier_bytes={"a": 7}), "cannot be read"),  # type: ignore[dict-item]
    ],
)
def test_nonsense_is_contained(answer: Callable[[HostView], Any], words: str) -> None:
    sample = host(1200 * MIB, view("a", limit_bytes=512 * MIB), view("b", limit_bytes=512 * MIB))
    with pytest.raises(PolicyError, match=words):
        Leash("test", Says(answer), 5).ask(sample)
    # Control: the same leash takes what makes sense.
    good = Leash("test", Says(lambda _: Decision({"a": 600 * MIB + 5})), 5).ask(sample)
    assert good.limits == {"a": 600 * MIB}


def test_a_policy_that_takes_a_minute_is_contained() -> None:
    free = threading.Event()

    def slow(_: HostView) -> Decision:
        free.wait(60)
        return Decision({"a": 64 * MIB})

    policy = Says(slow)
    leash = Leash("test", policy, 0.05)
    began = time.monotonic()
    with pytest.raises(PolicyError, match=r"did not answer within 0[.]05 s"):
        leash.ask(host(RAM, view("a")))
    with pytest.raises(PolicyError, match="still works on"):
        leash.ask(host(RAM, view("a")))
    assert time.monotonic() - began < 5
    assert policy.calls == 1
    free.set()
    deadline = time.monotonic() + 5
    while True:
        # Its late answer is thrown away; then it is asked again.
        try:
            assert leash.ask(host(RAM, view("a"))).limits == {"a": 64 * MIB}
        except PolicyError:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        else:
            break
    assert policy.calls == 2


# ---- rates


def test_a_limit_falls_at_the_rate() -> None:
    sample = host(RAM, view("a", limit_bytes=600 * MIB, resident_bytes=600 * MIB))
    limits = next_limits(sample, {"a": 100 * MIB}, rate=50 * MIB, stall_budget=0.002)
    assert limits == {"a": 550 * MIB}


def test_a_limit_falls_slower_while_it_hurts_and_faster_under_pressure() -> None:
    hurt = view("a", limit_bytes=600 * MIB, resident_bytes=600 * MIB, stall_share=0.004)
    options: dict[str, Any] = {"rate": 50 * MIB, "stall_budget": 0.002}
    assert next_limits(host(RAM, hurt), {"a": 0}, **options) == {"a": 575 * MIB}
    calm = view("a", limit_bytes=600 * MIB, resident_bytes=600 * MIB)
    pressed = host(RAM, calm, pressure=True)
    assert next_limits(pressed, {"a": 0}, **options) == {"a": 400 * MIB}


def test_a_raise_waits_for_what_others_give_back() -> None:
    down = view("down", limit_bytes=600 * MIB, resident_bytes=600 * MIB)
    up = view("up", limit_bytes=424 * MIB, resident_bytes=424 * MIB)
    targets = {"down": 200 * MIB, "up": 824 * MIB}
    options: dict[str, Any] = {"rate": 100 * MIB, "stall_budget": 0.002}
    assert next_limits(host(RAM, down, up), targets, **options) == {"down": 500 * MIB}
    gone = view("down", limit_bytes=500 * MIB, resident_bytes=500 * MIB)
    limits = next_limits(host(RAM, gone, up), targets, **options)
    assert limits == {"down": 400 * MIB, "up": 524 * MIB}


@given(
    st.lists(st.tuples(*[st.integers(16, 1024)] * 3, st.floats(0, 1)), min_size=1, max_size=6),
    st.booleans(),
)
def test_limits_keep_the_budget_on_their_way(vms: list[Any], pressure: bool) -> None:
    """From any limits within the budget to any others, every step is within it."""
    budget = max(sum(v[0] for v in vms), sum(v[1] for v in vms)) * MIB
    limits = {str(i): v[0] * MIB for i, v in enumerate(vms)}
    targets = {str(i): v[1] * MIB for i, v in enumerate(vms)}
    for _ in range(100):
        sample = host(
            budget,
            *(
                view(
                    str(i),
                    limit_bytes=limits[str(i)],
                    resident_bytes=min(v[2] * MIB, limits[str(i)]),
                    stall_share=v[3],
                )
                for i, v in enumerate(vms)
            ),
            pressure=pressure,
        )
        limits |= next_limits(sample, targets, rate=128 * MIB, stall_budget=0.002)
        assert sum(limits.values()) <= budget
    assert limits == targets


# ---- bounds


def test_a_minimum_that_does_not_fit_changes_nothing() -> None:
    before = {"a": Bounds(100, 1000), "b": Bounds(100, 1000)}
    wanted = {"a": Bounds(950, 1000), "b": Bounds(100, 1000)}
    assert settle(1000, wanted, before) == (before, ["a"])


def test_a_new_vm_gets_what_the_others_leave() -> None:
    before = {"old": Bounds(700, 1000)}
    settled, refused = settle(1000, {"new": Bounds(500, 900), **before}, before)
    assert (settled["old"], settled["new"], refused) == (
        Bounds(700, 1000),
        Bounds(300, 900),
        ["new"],
    )


bounds = st.dictionaries(
    st.sampled_from("abcd"),
    st.builds(lambda x, y: Bounds(min(x, y), max(x, y)), st.integers(0, 900), st.integers(0, 900)),
)


@given(st.integers(0, 2000), bounds, bounds)
def test_settled_minima_fit(
    budget: int, wanted: dict[str, Bounds], before: dict[str, Bounds]
) -> None:
    settled, refused = settle(budget, wanted, before)
    assert settled.keys() == wanted.keys()
    assert sum(b.least for b in settled.values()) <= budget
    assert all(b.least <= b.most for b in settled.values())
    assert all(settled[name] == wanted[name] for name in wanted if name not in refused)


# ---- the loop


def page(name: str, **values: Any) -> bytes:
    stats = {
        "vm_name": name.encode(),
        "ram_bytes": RAM,
        "limit_bytes": 512 * MIB,
        "resident_bytes": 512 * MIB,
        "stored_bytes": 100 * MIB,
        "nr_tiers": 1,
        "shares": 100,
        "priority": 50,
        # Has no memory of its own to be taken off; the list names a process that lives.
        "worker_pid": 0,
    }
    return pages_of(stats_bytes(**stats | values), tier_bytes(name=b"zero"))


@pytest.fixture
def two(fake: FakeManager) -> Iterator[FakeManager]:
    """A manager with the VMs a and b, whose workers are this process."""
    fake.vms = {
        name: FakeVm(page(name), limit_bytes=512 * MIB, worker_pid=os.getpid()) for name in "ab"
    }
    yield fake
    fake.vms = {}


def daemon(fake: FakeManager, policy: Policy, **options: Any) -> tuple[Daemon, io.StringIO]:
    log = io.StringIO()
    plain: dict[str, Any] = {"policy": "test", "budget": RAM, "rate": 64 * MIB}
    return Daemon(
        Manager(fake.path, timeout=1.0), policy, Options(**plain | options), Log(log)
    ), log


def test_limits_reach_the_workers(two: FakeManager) -> None:
    serve, log = daemon(two, Says(lambda _: Decision({"a": 500 * MIB, "b": 524 * MIB})))
    serve.tick()
    assert two.vms["a"].limit_bytes == 500 * MIB
    # What a gives back is still resident: b gets it in a later round.
    assert two.vms["b"].limit_bytes == 512 * MIB
    serve.close()
    assert "<6>VM 'a' changed event=set vm=a limit_bytes=524288000" in log.getvalue()


def test_a_raise_is_followed_by_a_prefetch(two: FakeManager) -> None:
    two.vms["a"].page = page("a", limit_bytes=100 * MIB, resident_bytes=100 * MIB)
    serve, _ = daemon(two, Says(lambda _: Decision({"a": 300 * MIB})))
    serve.tick()
    serve.close()
    (request,) = [body for kind, body in two.requests if kind == lib.UFFDMM_MSG_PREFETCH]
    assert ffi.from_buffer("struct uffdmm_move *", request).bytes == 100 * MIB


@pytest.mark.parametrize("answer", [raises, lambda _: Decision({"a": -1, "b": 64 * MIB})])
def test_a_bad_policy_leaves_all_limits(
    two: FakeManager, answer: Callable[[HostView], Decision]
) -> None:
    serve, log = daemon(two, Says(answer))
    for _ in range(3):
        serve.tick()
    serve.close()
    assert {vm.limit_bytes for vm in two.vms.values()} == {512 * MIB}
    assert log.getvalue().count("event=policy-failed") == 1
    assert "<3>policy 'test' " in log.getvalue()


def test_vms_come_and_go_and_workers_change(two: FakeManager) -> None:
    seen: list[set[str]] = []

    def look(sample: HostView) -> Decision:
        seen.append(set(sample.vms))
        return Decision({})

    serve, log = daemon(two, Says(look))
    gone = two.vms.pop("b")
    serve.tick()
    two.vms["b"] = gone
    serve.tick()
    # A new worker for a, which has died already.
    two.vms["a"].worker_pid = 2**22 + 1
    serve.tick()
    two.vms["a"].worker_pid = os.getpid()
    del two.vms["b"]
    serve.tick()
    serve.close()
    assert seen == [{"a"}, {"a", "b"}, {"b"}, {"a"}]
    assert "event=worker-changed" in log.getvalue()
    assert "event=worker-lost" in log.getvalue()
    assert "event=gone" in log.getvalue()


def test_a_vm_that_cannot_be_asked_has_what_its_limit_leaves_it(two: FakeManager) -> None:
    budgets: list[int] = []

    def look(view: HostView) -> Decision:
        budgets.append(view.budget_bytes)
        return Decision({"a": 400 * MIB})

    serve, log = daemon(two, Says(look))
    serve.tick()
    held = two.vms["a"].limit_bytes
    assert 400 * MIB <= held < 512 * MIB
    # Its worker is gone, and nobody has taken its place yet.
    two.vms["a"].worker_pid = 2**22 + 1
    serve.tick()
    serve.tick()
    serve.close()
    assert budgets[0] == RAM
    assert budgets[1:] == [RAM - held] * 2
    assert "bounds-refused" not in log.getvalue()


def test_no_manager_is_told_once(two: FakeManager) -> None:
    serve, log = daemon(two, Says(lambda _: Decision({})))
    two.turn_away = (1, "go away")
    serve.tick()
    serve.tick()
    assert log.getvalue().count("event=no-manager") == 1


def test_a_vm_that_opted_out_is_left_alone_and_counted(two: FakeManager) -> None:
    two.vms["b"].page = page("b", opt_out=1)
    views: list[HostView] = []

    def look(sample: HostView) -> Decision:
        views.append(sample)
        return Decision({})

    serve, _ = daemon(two, Says(look))
    serve.tick()
    serve.close()
    assert set(views[0].vms) == {"a"}
    assert views[0].budget_bytes == RAM - 512 * MIB


def test_settings_of_the_file_reach_a_worker_that_has_none(two: FakeManager) -> None:
    two.vms["b"].page = page("b", shares=300)
    settings = {name: {"shares": 200, "min_bytes": 32 * MIB} for name in "ab"}
    serve, _ = daemon(two, Says(lambda _: Decision({})), settings=settings)
    serve.tick()
    serve.close()
    assert two.vms["a"].plane[:3] == [32 * MIB, 0, 200]
    # What somebody said since then outranks the file.
    assert two.vms["b"].plane[:3] == [32 * MIB, 0, 100]


def test_a_minimum_that_does_not_fit_is_taken_back(two: FakeManager) -> None:
    serve, log = daemon(two, load_policy("fixed", stall_budget=0.002), budget=RAM)
    serve.tick()
    serve.close()  # so that the changed page is read
    two.vms["a"].page = page("a", min_bytes=1020 * MIB)
    serve.tick()
    serve.close()
    assert "event=bounds-refused" in log.getvalue()
    assert two.vms["a"].plane[0] == 16 * MIB
    assert sum(vm.limit_bytes for vm in two.vms.values()) <= RAM


# ---- the page-state table


def table(states: list[int], ages: list[int]) -> bytes:
    header = struct_bytes(
        "struct uffdmm_table_header",
        {
            "magic": lib.UFFDMM_TABLE_MAGIC,
            "version": lib.UFFDMM_TABLE_VERSION,
            "nr_pages": len(states),
            "entries_offset": 4096,
            "ages_offset": 8192,
        },
    )
    entries = np.array(states, "<u8") | (7 << 24)
    return header.ljust(4096, b"\0") + entries.tobytes().ljust(4096, b"\0") + bytes(ages)


def test_ages_of_resident_pages(two: FakeManager) -> None:
    kinds = [lib.UFFDMM_PAGE_RESIDENT, lib.UFFDMM_PAGE_STORED, lib.UFFDMM_PAGE_CLEAN]
    two.vms["a"].tables = [table(kinds, [3, 3, 0]), table(kinds, [254, 1, 250])]
    with Manager(two.path).open_vm("a") as vm:
        first, second = vm.regions()
        assert (first.name, second.name, second.region_id) == ("mem0", "mem1", 1)
        assert list(first.table.states()) == kinds
        found = first.table.age_histogram() + second.table.age_histogram()
        assert {age: found[age] for age in np.flatnonzero(found)} == {0: 1, 3: 1, 250: 1, 254: 1}
        first.close()
        second.close()


def test_ages_are_shown_from_the_second_look_on(fake: FakeManager) -> None:
    fake.vms.clear()
    with live_vm(fake, "web") as web:
        web.set(ram_bytes=4 * 4096, nr_regions=1)
        web.vm.tables = [table([lib.UFFDMM_PAGE_RESIDENT] * 4, [0, 1, 1, 1])]
        manager = Manager(fake.path)
        (entry,) = manager.list_vms()
        link = VmLink(manager, entry)
        assert link.sample().ages is None
        # The worker does not go by the first one either.
        web.set(scanned_pages=4)
        assert link.sample().ages is None
        web.set(scanned_pages=8)
        ages = link.sample().ages
        assert ages is not None
        assert (ages[0], ages[1]) == (4096, 3 * 4096)
        link.close()


def test_a_table_that_is_none_is_refused(two: FakeManager) -> None:
    good = table([3], [0])
    for bad in (
        good[:100],
        b"\0" * len(good),
        good[:-1],
        good.replace(b"\x00\x20", b"\xff\xff", 1),
    ):
        two.vms["a"].tables = [bad]
        with Manager(two.path).open_vm("a") as vm, pytest.raises(ProtocolError):
            vm.regions()


def test_moves_are_requests(two: FakeManager) -> None:
    with Manager(two.path).open_vm("a") as vm:
        vm.evict(5 * MIB)
        vm.prefetch(MIB)
    kinds = [kind for kind, _ in two.requests]
    assert kinds[-2:] == [lib.UFFDMM_MSG_EVICT, lib.UFFDMM_MSG_PREFETCH]
