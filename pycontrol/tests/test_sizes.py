# SPDX-License-Identifier: GPL-2.0-or-later
"""Sizes as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uffdmm import SizeError
from uffdmm.sizes import exact_size, format_size, is_share, parse_size, parse_size_or_share


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4096B", 4096),
        ("1k", 1024),
        ("512M", 512 << 20),
        ("512m", 512 << 20),
        ("512 MiB", 512 << 20),
        ("1GiB", 1 << 30),
        ("1.5G", 3 << 29),
        ("0.5T", 1 << 39),
        (" 2G ", 2 << 30),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "M", "-1", "1e3", "0x10", "1,5G", "1.G", ".5G", "5X", "5iB", "5Mi", "5BB", "5 G B", "50%"],
)
def test_no_sizes(text: str) -> None:
    with pytest.raises(SizeError) as caught:
        parse_size(text)
    assert f"'{text}'" in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize("text", ["512MB", "1gb", "3KB"])
def test_ambiguous_units_are_refused_with_both_readings(text: str) -> None:
    with pytest.raises(SizeError, match="ambiguous") as caught:
        parse_size(text)
    assert caught.value.remedy == f"write {text[:-1].upper()} or {text[:-1].upper()}iB"


def test_sizes_that_no_wire_carries() -> None:
    assert parse_size("9223372036854775807") == (1 << 63) - 1
    with pytest.raises(SizeError, match="larger than any memory"):
        parse_size("9223372036854775808")
    with pytest.raises(SizeError, match="larger than any memory"):
        parse_size("9999999999T")


@given(st.integers(min_value=0, max_value=(1 << 63) - 1))
def test_plain_bytes_are_themselves(size: int) -> None:
    assert parse_size(str(size)) == size
    assert parse_size_or_share(str(size), 1) == size


@pytest.mark.parametrize(
    ("text", "size"), [("50%", 500), ("0%", 0), ("100 %", 1000), ("12.5%", 125), ("4K", 4096)]
)
def test_shares(text: str, size: int) -> None:
    assert parse_size_or_share(text, 1000) == size


@pytest.mark.parametrize("text", ["101%", "-5%", "%", "5%%"])
def test_no_shares(text: str) -> None:
    assert is_share(text)
    with pytest.raises(SizeError):
        parse_size_or_share(text, 1000)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (512 << 20, "512 MiB"),
        (1536 << 20, "1.50 GiB"),
        (10 << 30, "10.0 GiB"),
        ((1 << 20) - 1, "1.00 MiB"),
        (1 << 62, "4096 PiB"),
    ],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(min_value=1, max_value=1 << 60))
def test_sizes_for_people_are_half_a_percent_off_at_most(size: int) -> None:
    shown = format_size(size)
    read = parse_size(shown.replace("PiB", "TiB")) * (1024 if "PiB" in shown else 1)
    assert abs(read - size) <= size * 0.006


@given(st.integers(min_value=0, max_value=(1 << 63) - 1))
def test_exact_sizes_are_read_back(size: int) -> None:
    assert parse_size(exact_size(size)) == size


def test_exact_sizes_have_the_largest_unit() -> None:
    assert [exact_size(size) for size in (0, 1, 1536, 1 << 30, 3 << 29)] == [
        *("0", "1", "1536", "1G", "1536M")
    ]
