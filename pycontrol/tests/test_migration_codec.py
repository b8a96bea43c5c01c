# SPDX-License-Identifier: GPL-2.0-or-later
"""The codec of locations: nothing is lost, nothing bad gets through, few bytes a page."""

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uffdmm.migration.codec import (
    BLOCK_MAX,
    Deposit,
    MigrationStreamError,
    absent,
    decode,
    encode,
)
from uffdmm.migration.locations import LOCATION, SET_PAGE, Locations, changes, digest

_U64 = st.integers(0, 2**64 - 1)


def _stored(pfn: "np.ndarray[tuple[int], np.dtype[np.uint64]]", slots: object) -> Locations:
    rng = np.random.default_rng(4711)
    locations = np.zeros(len(pfn), LOCATION)
    locations["pfn"] = pfn
    locations["entry"] = (np.asarray(slots, np.uint64) << np.uint64(24)) | np.uint64(
        1 << 12 | 3 << 8 | 6
    )
    locations["record"] = rng.integers(0, 2**64, len(pfn), np.uint64)
    locations["age"] = rng.integers(0, 4, len(pfn))
    return locations


@st.composite
def _any_locations(draw: st.DrawFn) -> Locations:
    pfns = sorted(draw(st.sets(st.integers(0, 2**52), min_size=1, max_size=60)))
    locations = np.zeros(len(pfns), LOCATION)
    locations["pfn"] = pfns
    for i in range(len(pfns)):
        locations["entry"][i] = draw(_U64)
        locations["record"][i] = draw(_U64)
        locations["age"][i] = draw(st.integers(0, 255))
    return locations


@given(_any_locations())
def test_what_was_encoded_comes_back(locations: Locations) -> None:
    decoded, deposit = decode(encode(locations))
    assert np.array_equal(decoded, locations)
    assert deposit is None


@given(_any_locations(), st.integers(0, 2**64 - 1))
def test_records_that_are_elsewhere_are_all_that_is_left_out(
    locations: Locations, slot: int
) -> None:
    records = locations["record"][absent(locations)]
    decoded, deposit = decode(encode(locations, Deposit.of(slot, records)))
    assert deposit is not None
    assert deposit.slot == slot
    assert deposit.fits(records)
    assert not deposit.fits(np.append(records, np.uint64(0)))
    assert not len(records) or not deposit.fits(records ^ np.uint64(1))
    assert not decoded["record"][absent(decoded)].any()
    decoded["record"][absent(decoded)] = records
    assert np.array_equal(decoded, locations)


def test_a_block_that_ends_in_its_header_is_an_error() -> None:
    whole = encode(_stored(np.arange(8, dtype=np.uint64), range(8)), Deposit(9, bytes(16)))
    for size in range(28):
        with pytest.raises(MigrationStreamError, match=r"has|damaged|holds"):
            decode(whole[:size])


@given(st.binary(max_size=300))
def test_any_bytes_are_locations_or_an_error(block: bytes) -> None:
    try:
        locations, _ = decode(block)
    except MigrationStreamError:
        return
    assert bool(np.all(np.diff(locations["pfn"].astype(np.float64)) > 0))


@settings(max_examples=200)
@given(_any_locations(), st.data())
def test_a_damaged_block_is_locations_or_an_error(
    locations: Locations, data: st.DataObject
) -> None:
    raw = bytearray(zlib.decompress(encode(locations)[4:]))
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    block = encode(locations)[:4] + zlib.compress(bytes(raw))
    try:
        decoded, _ = decode(block)
    except MigrationStreamError:
        return
    assert len(np.unique(decoded["pfn"])) == len(decoded)


def test_a_block_cannot_grow_beyond_what_it_announces() -> None:
    bomb = (1).to_bytes(4, "little") + zlib.compress(bytes(64 << 20))
    with pytest.raises(MigrationStreamError, match="instead of 29"):
        decode(bomb)
    with pytest.raises(MigrationStreamError, match="allowed"):
        decode((BLOCK_MAX + 1).to_bytes(4, "little") + zlib.compress(b""))


def test_pages_out_of_order_are_not_encoded() -> None:
    locations = _stored(np.array([5, 4], np.uint64), [1, 2])
    with pytest.raises(ValueError, match="ascending"):
        encode(locations)


def test_random_placement_takes_at_most_16_bytes_a_page() -> None:
    rng = np.random.default_rng(1)
    pfns = np.sort(rng.permutation(262144)[:100000]).astype(np.uint64)
    block = encode(_stored(pfns, 1 + rng.permutation(262144)[:100000]))
    assert len(block) / 100000 <= 16


def test_order_costs_little_beside_the_records() -> None:
    pfns = np.arange(1000, 101000, dtype=np.uint64)
    block = encode(_stored(pfns, np.arange(1, 100001)))
    assert len(block) / 100000 <= 8.5


def test_order_with_records_in_the_volume_takes_at_most_2_bytes_a_page() -> None:
    pfns = np.arange(1000, 101000, dtype=np.uint64)
    locations = _stored(pfns, np.arange(1, 100001))
    block = encode(locations, Deposit.of(7, locations["record"]))
    assert len(block) / 100000 <= 2


@given(st.lists(st.tuples(st.integers(0, 49), st.sampled_from([0, 6, 1 << 24 | 6]), _U64)))
def test_changes_keep_the_other_side_up_to_date(
    writes: list[tuple[int, int, int]],
) -> None:
    current, sent, other = (np.zeros(50, SET_PAGE) for _ in range(3))
    ages = np.zeros(50, np.uint8)
    for pfn, entry, record in writes:
        current[pfn] = (entry, record if entry else 0)
        if record % 3 == 0:
            for location in changes(current, sent, ages):
                other[location["pfn"]] = (location["entry"], location["record"])
            assert len(changes(current, sent, ages)) == 0
            assert np.array_equal(other, current)
            assert digest(other) == digest(current)


def test_the_digest_sees_each_part_of_an_element() -> None:
    base = np.zeros(8, SET_PAGE)
    base[3] = (5 << 24 | 2 << 12 | 1 << 8 | 6, 77)
    others = [base.copy() for _ in range(5)]
    others[0][3] = (6 << 24 | 2 << 12 | 1 << 8 | 6, 77)
    others[1][3] = (5 << 24 | 3 << 12 | 1 << 8 | 6, 77)
    others[2][3] = (5 << 24 | 2 << 12 | 1 << 8 | 6, 78)
    others[3][3] = (0, 0)
    others[3][4] = base[3]
    others[4][3] = (1, 0)
    assert len({digest(pages) for pages in (base, *others)}) == 6
    moved = base.copy()
    moved[3] = (5 << 24 | 2 << 12 | 4 << 8 | 6, 77)
    assert digest(moved) == digest(base), "the number of the tier is each host's own"
