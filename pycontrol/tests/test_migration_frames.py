# SPDX-License-Identifier: GPL-2.0-or-later
"""The conversation of two control planes: what is no frame is an error, and nothing else."""

import asyncio
import json
import socket
import struct
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uffdmm.migration import frames
from uffdmm.migration.frames import Channel, PeerError

HEADER = struct.Struct("<IBBHI")
MAGIC = 0x4D46_4655
MESSAGE, LOCATIONS = 1, 2

_U64 = st.integers(0, 2**64 - 1)
_TEXT = st.text(max_size=40)
_REGION = st.builds(frames.RegionOffer, name=_TEXT, size=_U64, page_size=_U64)
_TIER = st.builds(
    frames.TierOffer,
    index=st.integers(1, 15),
    name=_TEXT,
    kind=st.sampled_from(["file", "nbd"]),
    epoch=_U64,
    volume=st.text("0123456789abcdef", min_size=32, max_size=32),
)
_MESSAGES = st.one_of(
    st.builds(frames.Hello, version=st.integers(0, 9), lowest=st.integers(0, 9), agent=_TEXT),
    st.builds(
        frames.Offer,
        vm=_TEXT,
        session=st.integers(1, 2**64 - 1),
        regions=st.lists(_REGION, min_size=1, max_size=3),
        tier=st.none() | _TIER,
        channels=st.integers(0, 64),
        direct=st.booleans(),
        dry_run=st.booleans(),
    ),
    st.builds(
        frames.Accept, tier=st.none() | _TEXT, notes=st.lists(_TEXT), address=st.none() | _TEXT
    ),
    st.builds(frames.Refuse, stage=_TEXT, message=_TEXT, remedy=st.none() | _TEXT),
    st.builds(frames.Ack, blocks=_U64),
    st.builds(frames.Resume, vm=_TEXT, session=_U64),
    st.builds(frames.Waiting, running=st.booleans()),
    st.builds(frames.Released, epoch=_U64, run=st.booleans()),
    st.just(frames.Running()),
    st.builds(frames.Tunnel, session=_U64),
)


def frame(payload: bytes, kind: int = MESSAGE, **other: int) -> bytes:
    """A frame with this payload, anything in its header as told."""
    return (
        HEADER.pack(
            other.get("magic", MAGIC),
            kind,
            other.get("zero", 0),
            other.get("region", 0),
            other.get("length", len(payload)),
        )
        + payload
    )


def message(**fields: object) -> bytes:
    return frame(json.dumps(fields).encode())


async def ends() -> tuple[Channel, Channel]:
    """The two ends of a connection."""
    ours, theirs = socket.socketpair()
    one, other = [await asyncio.open_connection(sock=end) for end in (ours, theirs)]
    return Channel(*one), Channel(*other)


def between(work: Callable[[Channel, Channel], Awaitable[object]]) -> None:
    """Do something with both ends."""

    async def run() -> None:
        one, other = await ends()
        try:
            await work(one, other)
        finally:
            for channel in (one, other):
                channel.close()

    asyncio.run(run())


def received(data: bytes, *, whole: bool = True) -> frames.AnyMessage | frames.Block:
    """What a channel makes of these bytes."""

    async def run() -> frames.AnyMessage | frames.Block:
        one, other = await ends()
        try:
            other.writer.write(data)
            if whole:
                other.writer.write_eof()
            return await one.receive(5 if whole else 0.05)
        finally:
            one.close()
            other.close()

    return asyncio.run(run())


@given(_MESSAGES)
def test_a_message_arrives_as_it_was_sent(sent: frames.AnyMessage) -> None:
    async def work(one: Channel, other: Channel) -> None:
        for sender, receiver in ((one, other), (other, one)):
            await sender.send(sent)
            assert await receiver.receive(5) == sent

    between(work)


@given(st.integers(0, 65535), st.binary(max_size=200))
def test_a_block_arrives_as_it_was_sent(region: int, data: bytes) -> None:
    async def work(one: Channel, other: Channel) -> None:
        await one.send_block(region, data)
        assert await other.receive(5) == frames.Block(region=region, data=data)
        assert one.sent_bytes == HEADER.size + len(data)

    between(work)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_frame_or_an_error(data: bytes) -> None:
    with pytest.raises(PeerError):
        received(data)


@given(st.binary(max_size=60))
def test_any_payload_is_a_message_or_an_error(payload: bytes) -> None:
    try:
        found = received(frame(payload))
    except PeerError:
        return
    assert isinstance(found, frames.Message)


@given(_MESSAGES, st.data())
def test_a_damaged_message_is_one_or_an_error(sent: frames.AnyMessage, data: st.DataObject) -> None:
    payload = bytearray(sent.model_dump_json().encode())
    at = data.draw(st.integers(0, len(payload) - 1))
    payload[at] ^= data.draw(st.integers(1, 255))
    try:
        found = received(frame(bytes(payload)))
    except PeerError:
        return
    assert isinstance(found, frames.Message)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (frame(b"{}", magic=0x12345678), "no frame of this protocol"),
        (frame(b"{}", zero=1), "no frame of this protocol"),
        (frame(b"{}", kind=3), "no frame of this protocol"),
        (frame(b"", length=(1 << 18) + 1), "a frame of 262145 bytes is larger than any"),
        (frame(b"", kind=LOCATIONS, length=(4 << 20) + 1), "a frame of 4194305 bytes"),
        (frame(b"", kind=LOCATIONS, length=0xFFFFFFFF), "larger than any"),
        (frame(b"{}")[:5], "hung up"),
        (frame(b"{}", length=3), "hung up"),
        (b"", "hung up"),
        (frame(b"{}"), "malformed"),
        (frame(b"[]"), "malformed"),
        (frame(b"\xff\xfe"), "malformed"),
        (frame(b"[" * 100_000), "malformed"),
        (message(type="unheard"), "malformed"),
        (message(type="ack"), "blocks: field required"),
        (message(type="ack", blocks=-1), "malformed: ack.blocks"),
        (message(type="ack", blocks=1 << 64), "malformed: ack.blocks"),
        (message(type="ack", blocks="7"), "malformed: ack.blocks"),
        (message(type="ack", blocks=1.0), "malformed: ack.blocks"),
        (message(type="ack", blocks=1, more=2), "malformed: ack.more"),
        (message(type="resume", vm="v" * 5000, session=1), "malformed: resume.vm"),
        (message(type="released", epoch=1, run=1), "malformed: released.run"),
        (message(type="tunnel", session=None), "malformed: tunnel.session"),
        (message(type="offer", vm="v", session=0, regions=[], tier=None), "malformed: offer"),
        (
            message(
                type="offer",
                vm="v",
                session=1,
                regions=[{"name": "m", "size": 1, "page_size": 1}] * 257,
                tier=None,
            ),
            "malformed: offer.regions",
        ),
        (
            message(
                type="offer",
                vm="v",
                session=1,
                regions=[{"name": "m", "size": 1, "page_size": 1}],
                tier={"index": 0, "name": "t", "kind": "file", "epoch": 1, "volume": "0" * 32},
            ),
            "malformed: offer.tier.index",
        ),
    ],
)
def test_what_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(PeerError, match=words):
        received(data)


def test_silence_is_told_with_its_length() -> None:
    with pytest.raises(PeerError, match=r"silent for 0\.05 s"):
        received(frame(b"{}", length=100), whole=False)


@pytest.mark.parametrize("patience", [None, 5])
def test_a_connection_that_the_kernel_gave_up_is_no_silence(patience: float | None) -> None:
    async def work(one: Channel, _other: Channel) -> None:
        one.reader.set_exception(TimeoutError(110, "Connection timed out"))
        with pytest.raises(PeerError, match="broke: connection timed out"):
            await one.receive(patience)

    between(work)


def test_the_largest_block_is_taken() -> None:
    found = received(frame(bytes(4 << 20), kind=LOCATIONS))
    assert isinstance(found, frames.Block)
    assert len(found.data) == 4 << 20


@pytest.mark.parametrize(("version", "spoken"), [(1, 1), (2, 2), (9, 2)])
def test_versions_that_meet(version: int, spoken: int) -> None:
    async def work(one: Channel, other: Channel) -> None:
        await other.send(frames.Hello(version=version, lowest=1))
        assert await one.greet(5) == spoken
        # Who speaks version 1 gets no field that it does not know.
        await one.send(frames.Accept(tier="far", deposits=True))
        assert isinstance(await other.receive(5), frames.Hello)
        accept = await other.receive(5)
        assert isinstance(accept, frames.Accept)
        assert accept.deposits is (spoken > 1)

    between(work)


@pytest.mark.parametrize(("version", "lowest"), [(9, 3), (0, 0)])
def test_versions_that_do_not_meet(version: int, lowest: int) -> None:
    async def work(one: Channel, other: Channel) -> None:
        await other.send(frames.Hello(version=version, lowest=lowest))
        with pytest.raises(PeerError, match="this side speaks versions 1 to 2") as caught:
            await one.greet(5)
        assert caught.value.remedy is not None

    between(work)


def test_a_greeting_that_is_none() -> None:
    async def work(one: Channel, other: Channel) -> None:
        await other.send(frames.Running())
        with pytest.raises(PeerError, match="began with 'running' instead of hello"):
            await one.greet(5)

    between(work)


def test_a_refusal_in_place_of_a_greeting() -> None:
    async def work(one: Channel, other: Channel) -> None:
        await other.send(frames.Refuse(stage="connect", message="not you", remedy="ask"))
        with pytest.raises(PeerError, match="not you") as caught:
            await one.greet(5)
        assert caught.value.remedy == "ask"

    between(work)


def test_a_peer_that_has_gone_is_an_error_of_the_protocol() -> None:
    async def work(one: Channel, other: Channel) -> None:
        async def send_much() -> None:
            for _ in range(1000):
                await one.send_block(0, bytes(1 << 16))

        other.close()
        with pytest.raises(PeerError):
            await send_much()

    between(work)
