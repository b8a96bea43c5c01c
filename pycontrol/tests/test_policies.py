# SPDX-License-Identifier: GPL-2.0-or-later
"""Arithmetic of the budget, and the built-in policies on made-up VMs."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uffdmm.policies import HostView, PolicyError, VmView, load_policy, policy_names
from uffdmm.policies.budget import PAGE, Claim, share_out
from uffdmm.serve.contain import checked

MIB = 1 << 20
RAM = 1024 * MIB


def view(name: str, **values: Any) -> VmView:
    plain: dict[str, Any] = {
        "ram_bytes": RAM,
        "limit_bytes": RAM,
        "resident_bytes": 512 * MIB,
        "stored_bytes": 0,
        "min_bytes": 16 * MIB,
        "max_bytes": RAM,
        "shares": 100,
        "priority": 50,
        "stall_share": 0.0,
        "refault_rate": 0.0,
    }
    return VmView(name=name, **plain | values)


def host(budget: int, *vms: VmView, pressure: bool = False) -> HostView:
    return HostView(budget, 1.0, pressure, {vm.name: vm for vm in vms})


def ages(young: int, old: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    found = np.zeros(256)
    found[0], found[9] = young, old
    return found


claims = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3),
    st.builds(
        lambda least, more, weight: Claim(least, least + more, weight),
        st.integers(0, 1 << 36),
        st.integers(0, 1 << 36),
        st.integers(1, 10000),
    ),
    min_size=1,
    max_size=8,
)


@given(claims, st.integers(0, 1 << 38))
def test_parts_keep_their_bounds_and_the_budget(all_: dict[str, Claim], spare: int) -> None:
    budget = sum(claim.least for claim in all_.values()) + spare
    parts = share_out(budget, all_)
    assert sum(parts.values()) <= budget
    assert all(claim.least <= parts[name] <= claim.most for name, claim in all_.items())
    # Nothing is left lying about: only rounding, or everybody has the most.
    full = all(parts[name] > claim.most - PAGE for name, claim in all_.items())
    assert full or budget - sum(parts.values()) <= (PAGE + 16) * len(all_)


@given(claims, st.integers(0, 1 << 38), st.integers(1, 10000))
def test_more_shares_never_mean_less(all_: dict[str, Claim], spare: int, more: int) -> None:
    budget = sum(claim.least for claim in all_.values()) + spare
    name = min(all_)
    claim = all_[name]
    raised = all_ | {name: Claim(claim.least, claim.most, claim.weight + more)}
    assert share_out(budget, raised)[name] >= share_out(budget, all_)[name] - PAGE


def test_minima_above_the_budget_are_refused() -> None:
    with pytest.raises(ValueError, match="the budget is 9"):
        share_out(9, {"a": Claim(10, 20, 1)})


views = st.lists(
    st.builds(
        lambda least, limit, resident, shares, priority, stall: view(
            "",
            min_bytes=least * MIB,
            limit_bytes=max(least, limit) * MIB,
            resident_bytes=resident * MIB,
            shares=shares,
            priority=priority,
            stall_share=stall,
            refault_rate=stall * 1e9,
        ),
        st.integers(16, 256),
        st.integers(16, 1024),
        st.integers(0, 1024),
        st.integers(1, 10000),
        st.integers(0, 100),
        st.floats(0, 2),
    ),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("name", ["fixed", "shares", "stall"])
@given(vms=views, spare=st.integers(0, 4096))
def test_answers_pass_the_check(name: str, vms: list[VmView], spare: int) -> None:
    named = [
        view(
            str(index),
            **{
                key: getattr(vm, key)
                for key in VmView.__slots__
                if key not in {"name", "ages", "fault_counts", "tables"}
            },
        )
        for index, vm in enumerate(vms)
    ]
    sample = host(sum(vm.min_bytes for vm in vms) + spare * MIB, *named)
    policy = load_policy(name, stall_budget=0.002)
    for _ in range(3):
        assert checked(name, sample, policy.decide(sample)).limits.keys() == sample.vms.keys()


def test_all_policies_have_a_name() -> None:
    assert {"fixed", "shares", "stall"} <= set(policy_names())
    with pytest.raises(PolicyError, match="there is no policy 'sharse'"):
        load_policy("sharse", stall_budget=0.002)


def test_the_idle_pay_and_the_busy_get() -> None:
    policy = load_policy("shares", stall_budget=0.002)
    idle = view("idle", ages=ages(10 * MIB, 502 * MIB), limit_bytes=512 * MIB)
    busy = view(
        "busy", ages=ages(512 * MIB, 0), limit_bytes=512 * MIB, stall_share=0.5, refault_rate=1e8
    )
    for _ in range(6):
        limits = policy.decide(host(1024 * MIB, idle, busy)).limits
    assert limits["busy"] > 800 * MIB
    assert 16 * MIB <= limits["idle"] < 220 * MIB


def test_nobody_pays_while_there_is_enough() -> None:
    policy = load_policy("shares", stall_budget=0.002)
    idle = view("idle", ages=ages(10 * MIB, 502 * MIB))
    assert policy.decide(host(2 * RAM, idle, view("other"))).limits["idle"] == RAM


def test_shares_decide_among_the_busy() -> None:
    policy = load_policy("shares", stall_budget=0.002)
    busy: dict[str, Any] = {"ages": ages(1000 * MIB, 0), "resident_bytes": 1000 * MIB}
    two, one = view("two", shares=200, **busy), view("one", **busy)
    limits = policy.decide(host(900 * MIB, two, one)).limits
    assert limits["two"] == pytest.approx(2 * limits["one"], rel=0.01)


def test_priority_is_served_first() -> None:
    policy = load_policy("shares", stall_budget=0.002)
    busy: dict[str, Any] = {"ages": ages(700 * MIB, 0), "resident_bytes": 700 * MIB}
    high, low = view("high", priority=60, **busy), view("low", **busy)
    limits = policy.decide(host(800 * MIB, high, low)).limits
    assert limits["high"] >= 690 * MIB
    assert limits["low"] <= 110 * MIB


def test_stall_takes_until_it_is_felt_and_gives_back() -> None:
    policy = load_policy("stall", stall_budget=0.002)
    need, limit, losses = 300 * MIB, RAM, []
    for _ in range(200):
        resident = min(limit, 900 * MIB)
        # A guest whose loss grows with what it lacks.
        loss = 0.002 * max(0.0, (need - resident) / (10 * MIB)) ** 2
        losses.append(loss)
        sample = view(
            "vm",
            limit_bytes=limit,
            resident_bytes=resident,
            stall_share=loss,
            ages=ages(need, max(0, resident - need)),
        )
        limit = policy.decide(host(RAM, sample)).limits["vm"]
    assert 280 * MIB < limit < 340 * MIB
    assert max(losses[-50:]) <= 0.0021


def test_stall_takes_little_before_anybody_has_looked() -> None:
    unknown = view("vm", resident_bytes=900 * MIB)
    limit = load_policy("stall", stall_budget=0.002).decide(host(RAM, unknown)).limits["vm"]
    assert 896 * MIB <= limit < 900 * MIB
    known = view("vm", resident_bytes=900 * MIB, ages=ages(100 * MIB, 800 * MIB))
    limit = load_policy("stall", stall_budget=0.002).decide(host(RAM, known)).limits["vm"]
    assert 860 * MIB < limit < 880 * MIB


def test_stall_forgives_a_moment_and_no_more() -> None:
    policy = load_policy("stall", stall_budget=0.002)
    limit = 600 * MIB

    def sample(loss: float) -> int:
        nonlocal limit
        some = view(
            *("vm",),
            limit_bytes=limit,
            resident_bytes=limit,
            stall_share=loss,
            ages=ages(100 * MIB, limit - 100 * MIB),
        )
        before, limit = limit, policy.decide(host(RAM, some)).limits["vm"]
        return limit - before

    assert sample(0.0) < 0
    # Twice the budget in one second out of many: taken on, but less.
    assert -18 * MIB < sample(0.004) < 0
    # Again and again, or very much: given back.
    assert max(sample(0.004) for _ in range(8)) > 0
    assert sample(0.5) > 50 * MIB
    # And forgotten within some seconds, however bad it was.
    changes = [sample(0.0) for _ in range(12)]
    assert changes[0] > 0 > changes[-1]


def test_idle_memory_is_found_fast_while_another_one_stalls() -> None:
    idle = view("idle", resident_bytes=600 * MIB, limit_bytes=600 * MIB)
    quiet = view("busy", resident_bytes=424 * MIB, limit_bytes=424 * MIB)
    stalled = view(
        "busy",
        resident_bytes=424 * MIB,
        limit_bytes=424 * MIB,
        stall_share=0.5,
        refault_rate=20.0 * MIB,
    )
    limits = {}
    for other in (quiet, stalled):
        policy = load_policy("shares", stall_budget=0.002)
        for _ in range(5):
            decision = policy.decide(host(1024 * MIB, idle, other))
        limits[other.stall_share] = decision.limits["idle"]
    # Nobody lacks anything: nothing is taken for nothing.
    assert limits[0.0] > 570 * MIB
    assert limits[0.5] < 400 * MIB


def test_a_few_slow_faults_claim_little() -> None:
    limits = {}
    for loss, refaults in ((0.005, 0.04 * MIB), (0.5, 0.04 * MIB)):
        policy = load_policy("shares", stall_budget=0.002)
        size = 20 * MIB
        for _ in range(10):
            some = view(
                *("some",),
                limit_bytes=size,
                resident_bytes=size,
                stall_share=loss,
                refault_rate=refaults,
            )
            other = view("other", ages=ages(950 * MIB, 0), resident_bytes=950 * MIB, priority=40)
            size = policy.decide(host(RAM, some, other)).limits["some"]
        limits[loss] = size
    assert limits[0.005] < 50 * MIB
    assert limits[0.5] > 150 * MIB


def test_the_rest_goes_where_it_is_used() -> None:
    policy = load_policy("shares", stall_budget=0.002)
    idle = view("idle", ages=ages(10 * MIB, 90 * MIB), resident_bytes=100 * MIB)
    busy = view("busy", ages=ages(500 * MIB, 0), resident_bytes=500 * MIB)
    for _ in range(10):
        limits = policy.decide(host(1000 * MIB, idle, busy)).limits
    assert limits["idle"] < 100 * MIB
    assert limits["busy"] > 900 * MIB


def test_stall_takes_faster_under_pressure() -> None:
    sample = view("vm", resident_bytes=900 * MIB, ages=ages(100 * MIB, 800 * MIB))
    calm, pressed = (
        load_policy("stall", stall_budget=0.002)
        .decide(host(RAM, sample, pressure=pressure))
        .limits["vm"]
        for pressure in (False, True)
    )
    assert pressed < calm < 900 * MIB
