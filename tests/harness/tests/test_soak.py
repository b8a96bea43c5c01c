# SPDX-License-Identifier: GPL-2.0-or-later
"""The plan of a soak: a seed replays, everything occurs, what is left out does not."""

import pytest

from uffdmm_harness.port import GuestCorrupt
from uffdmm_harness.soak_plan import ACTIONS, Plan
from uffdmm_harness.soak_travel import expect_sound

NAMES = ("a", "b", "c")


def _first(plan: Plan, count: int) -> list[object]:
    return [plan.next(NAMES) for _ in range(count)]


def test_a_seed_replays() -> None:
    assert _first(Plan(4711), 200) == _first(Plan(4711), 200)
    assert _first(Plan(4711), 200) != _first(Plan(4712), 200)


def test_each_guest_has_numbers_of_its_own() -> None:
    plan = Plan(1)
    before = plan.child("a").random()
    _first(plan, 10)
    assert plan.child("a").random() == before
    assert plan.child("b").random() != before


def test_every_kind_occurs_within_its_range() -> None:
    plan = Plan(7)
    seen = set()
    for _ in range(2000):
        pause, action, name = plan.next(NAMES)
        _, low, high = ACTIONS[action.name]
        assert low <= action.value <= high
        assert 0.05 <= pause <= 1.0
        seen.add((action.name, name))
    assert seen == {(kind, name) for kind in ACTIONS for name in NAMES}


def test_what_is_left_out_does_not_occur() -> None:
    plan = Plan(7, ["kill_worker"])
    assert "kill_worker" not in {plan.next(NAMES)[1].name for _ in range(500)}
    with pytest.raises(ValueError, match="left out"):
        Plan(7, list(ACTIONS))


def test_a_wrong_word_met_before_a_guest_moved_is_not_lost() -> None:
    expect_sound([{"event": "progress"}, {"event": "ran"}])
    for event in ("corrupt", "run-failed"):
        with pytest.raises(GuestCorrupt, match=event):
            expect_sound([{"event": "progress"}, {"event": event}])
