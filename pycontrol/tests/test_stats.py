# SPDX-License-Identifier: GPL-2.0-or-later
"""Histogram and snapshot against the definition in protocol.h."""

import json
import math
import os
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_manager import memfd_of, pages_of, stats_bytes, tier_bytes
from uffdmm import Histogram, ProtocolError, Stats, TierState, TierStats, TierType
from uffdmm._native import ffi, lib
from uffdmm.stats import StatsPages, bucket_bounds

BUCKETS = lib.UFFDMM_HIST_BUCKETS


def bucket_of(nanoseconds: int) -> int:
    """The bucket of a duration, word by word as protocol.h has it."""
    if nanoseconds < 256:
        return 0
    log2 = nanoseconds.bit_length() - 1
    return min(8 * (log2 - 8) + (nanoseconds >> (log2 - 3) & 7), BUCKETS - 1)


def histogram_of(values: list[int]) -> Histogram:
    counts = [0] * BUCKETS
    for value in values:
        counts[bucket_of(value)] += 1
    return Histogram(tuple(counts))


def test_buckets_follow_one_another() -> None:
    bounds = [bucket_bounds(index) for index in range(BUCKETS)]
    assert bounds[0] == (0, 288)
    assert all(low < high for low, high in bounds)
    assert all(before[1] == after[0] for before, after in pairwise(bounds))
    assert bounds[-1][0] == 15 << 30


@given(st.integers(min_value=0, max_value=1 << 40))
def test_a_duration_lies_in_its_bucket(nanoseconds: int) -> None:
    index = bucket_of(nanoseconds)
    low, high = bucket_bounds(index)
    assert low <= nanoseconds
    assert nanoseconds < high or index == BUCKETS - 1


@given(
    st.lists(st.integers(min_value=288, max_value=(15 << 30) - 1), min_size=1, max_size=200),
    st.floats(min_value=0, max_value=1),
)
def test_percentile_is_an_eighth_off_at_most(values: list[int], share: float) -> None:
    exact = sorted(values)[max(1, math.ceil(share * len(values))) - 1] / 1e9
    got = histogram_of(values).percentile(share)
    assert got is not None
    assert exact / 1.125 <= got <= exact * 1.125


@given(st.lists(st.integers(min_value=0, max_value=1 << 36), min_size=1, max_size=50))
def test_percentiles_grow_with_the_share(values: list[int]) -> None:
    hist = histogram_of(values)
    found = [hist.percentile(share / 20) for share in range(21)]
    plain = [value for value in found if value is not None]
    assert len(plain) == 21
    assert plain == sorted(plain)


@given(
    st.lists(st.integers(min_value=0, max_value=1 << 36), max_size=30),
    st.lists(st.integers(min_value=0, max_value=1 << 36), max_size=30),
)
def test_difference_counts_what_came_between(before: list[int], between: list[int]) -> None:
    later, earlier = histogram_of(before + between), histogram_of(before)
    assert later - earlier == histogram_of(between)
    assert (later - earlier).total == len(between)


def test_percentile_of_nothing() -> None:
    assert Histogram((0,) * BUCKETS).percentile(0.5) is None


def test_percentile_beyond_the_last_bucket() -> None:
    assert histogram_of([60_000_000_000]).percentile(0.99) == (15 << 30) / 1e9


@pytest.mark.parametrize("share", [-0.1, 1.1, 50, math.nan])
def test_percentile_of_no_share(share: float) -> None:
    with pytest.raises(ValueError, match="a share of 0 to 1"):
        histogram_of([1]).percentile(share)


def test_buckets_in_use() -> None:
    assert list(histogram_of([1, 300, 300]).buckets()) == [(0, 288, 1), (288, 320, 2)]


def test_the_model_has_exactly_the_fields_of_the_structure() -> None:
    names = [name for name, _ in ffi.typeof("struct uffdmm_stats").fields]
    assert set(names) - {"magic", "version", "reserved"} == set(Stats.model_fields)


def test_every_field_is_read_from_its_own_place() -> None:
    plain = [name for name in Stats.model_fields if name not in {"vm_name", "state", "fault_hist"}]
    values = {name: 1000 + index for index, name in enumerate(plain)}
    page = stats_bytes(**values, vm_name=b"x", fault_hist=list(range(BUCKETS)))
    mapped = StatsPages(memfd_of(page), len(page))
    snapshot = mapped.snapshot()
    mapped.close()
    assert {name: getattr(snapshot, name) for name in plain} == values
    assert snapshot.fault_hist.counts == tuple(range(BUCKETS))


def test_a_snapshot_follows_the_page() -> None:
    page = stats_bytes(faults=1)
    fd = memfd_of(page)
    writer = os.dup(fd)
    mapped = StatsPages(fd, len(page))
    os.pwrite(writer, stats_bytes(faults=2), 0)
    assert mapped.snapshot().faults == 2
    mapped.close()
    os.close(writer)


def test_the_tier_model_has_exactly_the_fields_of_the_structure() -> None:
    names = [name for name, _ in ffi.typeof("struct uffdmm_tier_stats").fields]
    assert set(names) == set(TierStats.model_fields)


def test_every_field_of_a_tier_is_read_from_its_own_place() -> None:
    other = {"name", "type", "state", "last_error", "read_hist", "write_hist"}
    plain = [name for name in TierStats.model_fields if name not in other]
    pages = []
    for tier in range(lib.UFFDMM_TIERS_MAX):
        values = {name: 100 * tier + index for index, name in enumerate(plain)}
        pages.append(
            tier_bytes(
                **values,
                name=f"tier{tier}".encode(),
                type=tier % 4,
                state=tier % 5,
                last_error=b"no",
                read_hist=list(range(tier, BUCKETS + tier)),
                write_hist=list(range(BUCKETS)),
            )
        )
    page = pages_of(stats_bytes(nr_tiers=lib.UFFDMM_TIERS_MAX), *pages)
    mapped = StatsPages(memfd_of(page), len(page))
    snapshots = mapped.tiers()
    mapped.close()
    assert len(snapshots) == lib.UFFDMM_TIERS_MAX
    for tier, snapshot in enumerate(snapshots):
        assert [getattr(snapshot, name) for name in plain] == [
            100 * tier + index for index in range(len(plain))
        ]
        assert (snapshot.name, snapshot.last_error) == (f"tier{tier}", "no")
        assert snapshot.type is list(TierType)[tier % 4]
        assert snapshot.state is list(TierState)[tier % 5]
        assert snapshot.read_hist.counts == tuple(range(tier, BUCKETS + tier))
        assert snapshot.write_hist.counts == tuple(range(BUCKETS))


def test_no_tiers_before_the_worker_has_opened_them() -> None:
    page = stats_bytes()
    mapped = StatsPages(memfd_of(page), len(page))
    assert mapped.tiers() == []
    mapped.close()


@pytest.mark.parametrize(
    ("page", "words"),
    [
        (pages_of(stats_bytes(nr_tiers=2), tier_bytes()), "2 tiers, its statistics hold 1"),
        (pages_of(stats_bytes(nr_tiers=1 << 63), tier_bytes()), "its statistics hold 1"),
        (stats_bytes(nr_tiers=1), "its statistics hold 0"),
        (
            pages_of(stats_bytes(nr_tiers=9), *[tier_bytes()] * 9),
            "9 tiers, its statistics hold 8",
        ),
        (pages_of(stats_bytes(nr_tiers=1), tier_bytes(type=9)), "unknown type 9"),
        (pages_of(stats_bytes(nr_tiers=1), tier_bytes(state=77)), "state 77"),
    ],
)
def test_bad_tiers(page: bytes, words: str) -> None:
    mapped = StatsPages(memfd_of(page), len(page))
    with pytest.raises(ProtocolError, match=words):
        mapped.tiers()
    mapped.close()


def test_compression_is_of_pools_alone() -> None:
    tiers = [
        tier_bytes(type=lib.UFFDMM_TIER_POOL, used_bytes=100, stored_bytes=250),
        tier_bytes(type=lib.UFFDMM_TIER_POOL),
        tier_bytes(type=lib.UFFDMM_TIER_FILE, used_bytes=100, stored_bytes=100),
    ]
    page = pages_of(stats_bytes(nr_tiers=3), *tiers)
    mapped = StatsPages(memfd_of(page), len(page))
    assert [tier.compression for tier in mapped.tiers()] == [2.5, None, None]
    mapped.close()


def test_heartbeat_age() -> None:
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    page = stats_bytes(heartbeat_ns=now - 2_000_000_000)
    mapped = StatsPages(memfd_of(page), len(page))
    assert 2.0 <= mapped.snapshot().heartbeat_age < 4.0
    mapped.close()


def test_json_of_a_snapshot() -> None:
    page = stats_bytes(vm_name=b"x", fault_hist=[5] + [0] * (BUCKETS - 1))
    mapped = StatsPages(memfd_of(page), len(page))
    document = json.loads(mapped.snapshot().model_dump_json())
    mapped.close()
    assert document["state"] == "running"
    assert document["fault_hist"] == [[0, 288, 5]]
