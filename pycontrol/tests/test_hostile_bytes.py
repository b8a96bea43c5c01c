# SPDX-License-Identifier: GPL-2.0-or-later
"""Bytes of peers and of shared memory that could be anything.

Whatever they are, the package gives a result or raises an error of its own, leaves no descriptor
open and takes no more memory than what came admits.
"""

import asyncio
import contextlib
import json
import socket
import struct
import tracemalloc
import zlib
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from conftest import open_fds
from fake_manager import memfd_of, pages_of, stats_bytes, struct_bytes, tier_bytes
from uffdmm import DurationError, SizeError, UffdmmError
from uffdmm._native import ffi, lib
from uffdmm.durations import parse_demote_after, parse_duration
from uffdmm.migration.codec import BLOCK_MAX, MigrationStreamError, decode
from uffdmm.migration.frames import Block, Channel, PeerError
from uffdmm.migration.locations import SET_PAGE, changes, digest
from uffdmm.pagetable import PageTable
from uffdmm.sizes import parse_size, parse_size_or_share
from uffdmm.stats import StatsPages
from uffdmm.wire import Connection

_U32 = st.integers(0, 2**32 - 1)
_U64 = st.integers(0, 2**64 - 1)
_REQUEST = lib.UFFDMM_MSG_LIST


# ---- wire ----------------------------------------------------------------------------------------


def _headers() -> st.SearchStrategy[dict[str, int]]:
    """Headers of a reply with some fields wrong."""
    right = {
        "magic": lib.UFFDMM_MAGIC,
        "version": lib.UFFDMM_VERSION,
        "min_version": lib.UFFDMM_VERSION,
        "type": _REQUEST | lib.UFFDMM_MSG_REPLY,
        "request_id": 1,
        "status": 0,
        "nr_fds": 0,
    }
    wrong = st.fixed_dictionaries(
        {},
        optional={
            "magic": _U32,
            "version": st.integers(0, 2**16 - 1),
            "min_version": st.integers(0, 2**16 - 1),
            "type": st.integers(0, 2**16 - 1),
            "length": _U32,
            "request_id": _U64,
            "status": st.integers(-(2**31), 2**31 - 1),
            "nr_fds": st.integers(0, 40),
        },
    )
    return wrong.map(lambda fields: right | fields)


def _answered(sent: bytes, nr_fds: int) -> bytes | UffdmmError:
    """What a client makes of these bytes and descriptors."""
    here, there = socket.socketpair()
    before = open_fds()
    connection = Connection(here, "a peer", 5.0)
    try:
        with there:
            socket.send_fds(there, [sent], [there.fileno()] * nr_fds)
            there.shutdown(socket.SHUT_WR)
            try:
                with connection.call(_REQUEST, b"") as reply:
                    return reply.payload
            except UffdmmError as error:
                return error
    finally:
        connection.close()
        assert open_fds() <= before


@given(_headers(), st.binary(max_size=400), st.integers(0, 20))
def test_any_reply_is_an_answer_or_an_error(
    header: dict[str, int], payload: bytes, nr_fds: int
) -> None:
    message = struct_bytes("struct uffdmm_msg_header", {"length": len(payload)} | header) + payload
    answer = _answered(message, nr_fds)
    if isinstance(answer, bytes):
        assert payload.startswith(answer)


@given(st.binary(min_size=1, max_size=200))
def test_any_bytes_of_a_manager_are_an_error(sent: bytes) -> None:
    assert isinstance(_answered(sent, 0), UffdmmError)


# ---- memory that another process writes ----------------------------------------------------------

_TABLE_ROOM = 5 * 4096


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "nr_pages": st.integers(0, 3000) | _U64,
            "entries_offset": st.integers(0, _TABLE_ROOM + 9) | _U64,
            "ages_offset": st.integers(0, _TABLE_ROOM + 9) | _U64,
            "version": st.just(lib.UFFDMM_TABLE_VERSION) | _U32,
            "page_size": _U64,
        },
    ),
    st.binary(max_size=64),
    st.sampled_from((_TABLE_ROOM, 4096, 0)) | _U64,
)
@example({"nr_pages": 2**61}, b"", _TABLE_ROOM)
@example({"entries_offset": 2**64 - 8, "nr_pages": 1}, b"", _TABLE_ROOM)
def test_any_page_table_is_read_within_its_bounds(
    header: dict[str, int], entries: bytes, announced: int
) -> None:
    right = {
        "magic": lib.UFFDMM_TABLE_MAGIC,
        "version": lib.UFFDMM_TABLE_VERSION,
        "nr_pages": 500,
        "entries_offset": 4096,
        "records_offset": 8192,
        "ages_offset": 12288,
    }
    head = struct_bytes("struct uffdmm_table_header", right | header)
    content = (head.ljust(4096, b"\0") + entries).ljust(_TABLE_ROOM, b"\xff")
    before = open_fds()
    try:
        table = PageTable(memfd_of(content), announced)
    except UffdmmError:
        assert open_fds() <= before
        return
    try:
        assert len(table.entries()) == len(table.ages()) == table.nr_pages <= _TABLE_ROOM
        assert table.age_histogram().sum() <= table.nr_pages
    finally:
        table.close()
    assert open_fds() <= before


_STATS_SIZE = ffi.sizeof("struct uffdmm_stats")


@given(st.binary(max_size=_STATS_SIZE), st.integers(0, 20), st.binary(max_size=600))
def test_any_statistics_are_read_or_refused(page: bytes, nr_tiers: int, tier: bytes) -> None:
    head = stats_bytes(nr_tiers=nr_tiers)
    # the first words right, so that there is something behind them to be read
    keep = 8
    mixed = head[:keep] + page[keep:] + head[max(keep, len(page)) :]
    content = pages_of(mixed, tier_bytes(name=b"zero"), tier, tier)
    before = open_fds()
    try:
        pages = StatsPages(memfd_of(content), len(content))
    except UffdmmError:
        assert open_fds() <= before
        return
    try:
        for read in (pages.snapshot, pages.tiers):
            with contextlib.suppress(UffdmmError):
                read()
    finally:
        pages.close()
    assert open_fds() <= before


# ---- between control planes ----------------------------------------------------------------------


def _frame(sent: bytes) -> object:
    """What a channel makes of these bytes and the end of the connection."""

    async def receive() -> object:
        reader = asyncio.StreamReader()
        reader.feed_data(sent)
        reader.feed_eof()
        # it only reads: what it would write goes nowhere
        channel = Channel(reader, Mock(get_extra_info=Mock(return_value=None)))
        try:
            return await channel.receive(5)
        except PeerError as error:
            return error

    return asyncio.run(receive())


_MESSAGES = st.recursive(
    st.none() | st.booleans() | _U64 | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@given(st.binary(max_size=200))
def test_any_bytes_of_a_control_plane_are_an_error(sent: bytes) -> None:
    assert isinstance(_frame(sent), PeerError)


@given(
    st.sampled_from(("hello", "offer", "accept", "ack", "resume", "x")),
    st.dictionaries(
        st.sampled_from(("version", "lowest", "vm", "session", "regions", "tier", "blocks")),
        _MESSAGES,
    ),
    st.integers(0, 3),
    st.integers(-3, 3),
)
def test_any_message_of_a_control_plane_is_one_or_an_error(
    kind: str, fields: dict[str, object], frame: int, longer: int
) -> None:
    payload = json.dumps({"type": kind} | fields).encode()
    head = struct.pack("<IBBHI", 0x4D464655, frame, 0, 0, max(0, len(payload) + longer))
    found = _frame(head + payload)
    if isinstance(found, Block):
        assert frame == 2
    elif not isinstance(found, PeerError):
        assert frame == 1
        assert getattr(found, "type", None) == kind


def test_a_block_of_locations_takes_what_it_announces_and_no_more() -> None:
    """A few thousand bytes that would become gigabytes."""
    bomb = zlib.compress(bytes(1 << 28), 9)
    tracemalloc.start()
    try:
        with pytest.raises(MigrationStreamError):
            decode(struct.pack("<I", 100) + bomb)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


@given(st.integers(1, BLOCK_MAX), st.binary(max_size=40))
def test_a_block_that_announces_much_and_brings_little_costs_little(
    count: int, data: bytes
) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(MigrationStreamError):
            decode(struct.pack("<I", count) + zlib.compress(data))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 1 or peak < 1 << 20


@given(st.lists(st.tuples(_U64, _U64, st.integers(0, 255)), min_size=1, max_size=40), st.data())
def test_what_changed_leads_to_the_same_set(
    pages: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    """Any words that QEMU may write: the other side ends with the digest of this one."""
    current = np.array([(entry, record) for entry, record, _ in pages], SET_PAGE)
    ages = np.array([age for _, _, age in pages], np.uint8)
    sent = np.zeros(len(pages), SET_PAGE)
    there = np.zeros(len(pages), SET_PAGE)
    for _ in range(3):
        found = changes(current, sent, ages)
        there["entry"][found["pfn"]] = found["entry"]
        there["record"][found["pfn"]] = found["record"]
        assert digest(there) == digest(current)
        at = data.draw(st.integers(0, len(pages) - 1))
        current[at] = (data.draw(st.just(0) | _U64), data.draw(_U64))


# ---- what people write ---------------------------------------------------------------------------

_TEXT = st.text(max_size=40) | st.from_regex(r"\s*[0-9]{1,40}(\.[0-9]{1,40})?\s*[a-zA-Z%]{0,4}\s*")


@given(_TEXT, st.integers(0, 2**63 - 1))
@example("9" * 5000, 1)
@example("1." + "9" * 5000 + "T", 1)
def test_any_text_is_a_size_or_an_error(text: str, whole: int) -> None:
    with contextlib.suppress(SizeError):
        assert 0 <= parse_size(text) < 2**63
    with contextlib.suppress(SizeError):
        assert 0 <= parse_size_or_share(text, whole) < 2**63


@given(_TEXT)
@example("9" * 5000 + "ns")
@example("0." + "0" * 400 + "1h")
def test_any_text_is_a_time_or_an_error(text: str) -> None:
    for parse in (parse_duration, parse_demote_after):
        with contextlib.suppress(DurationError):
            assert 0 <= parse(text) < 2**63
