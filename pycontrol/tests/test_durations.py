# SPDX-License-Identifier: GPL-2.0-or-later
"""Times as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uffdmm import DurationError
from uffdmm.durations import exact_duration, parse_demote_after, parse_duration


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("0", 0),
        ("0s", 0),
        ("7ns", 7),
        ("100us", 100_000),
        ("5ms", 5_000_000),
        ("1.5s", 1_500_000_000),
        (" 30 s ", 30_000_000_000),
        ("10m", 600_000_000_000),
        ("2h", 7_200_000_000_000),
    ],
)
def test_times(text: str, nanoseconds: int) -> None:
    assert parse_duration(text) == nanoseconds


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a number with a unit"),
        ("s", "not a number with a unit"),
        ("-1s", "not a number with a unit"),
        ("5", "no unit"),
        ("5 parsecs", "an unknown unit"),
        ("5M", "not a number with a unit"),
        ("0.5ns", "finer than a nanosecond"),
        ("99999999999h", "longer than any wait"),
    ],
)
def test_no_times(text: str, words: str) -> None:
    with pytest.raises(DurationError, match=words) as caught:
        parse_duration(text)
    assert f"'{text}'" in caught.value.message
    assert caught.value.remedy


def test_demotion_times_are_whole_milliseconds() -> None:
    assert parse_demote_after("never") == 0
    assert parse_demote_after("Never ") == 0
    assert parse_demote_after("1.5s") == 1_500_000_000
    with pytest.raises(DurationError, match="finer than a millisecond"):
        parse_demote_after("1.5ms")


@given(st.integers(min_value=0, max_value=(1 << 63) - 1))
def test_exact_times_are_read_back(nanoseconds: int) -> None:
    assert parse_duration(exact_duration(nanoseconds)) == nanoseconds
