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

from fake_manager import memfd_of, stats_bytes
from uffdmm import Histogram, Stats
from uffdmm._native import ffi, lib
from uffdmm.stats import StatsPage, bucket_bounds

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
    mapped = StatsPage(memfd_of(page), len(page))
    snapshot = mapped.snapshot()
    mapped.close()
    assert {name: getattr(snapshot, name) for name in plain} == values
    assert snapshot.fault_hist.counts == tuple(range(BUCKETS))


def test_a_snapshot_follows_the_page() -> None:
    page = stats_bytes(faults=1)
    fd = memfd_of(page)
    writer = os.dup(fd)
    mapped = StatsPage(fd, len(page))
    os.pwrite(writer, stats_bytes(faults=2), 0)
    assert mapped.snapshot().faults == 2
    mapped.close()
    os.close(writer)


def test_heartbeat_age() -> None:
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    page = stats_bytes(heartbeat_ns=now - 2_000_000_000)
    mapped = StatsPage(memfd_of(page), len(page))
    assert 2.0 <= mapped.snapshot().heartbeat_age < 4.0
    mapped.close()


def test_json_of_a_snapshot() -> None:
    page = stats_bytes(vm_name=b"x", fault_hist=[5] + [0] * (BUCKETS - 1))
    mapped = StatsPage(memfd_of(page), len(page))
    document = json.loads(mapped.snapshot().model_dump_json())
    mapped.close()
    assert document["state"] == "running"
    assert document["fault_hist"] == [[0, 288, 5]]
