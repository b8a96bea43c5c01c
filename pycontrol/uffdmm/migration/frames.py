# SPDX-License-Identifier: GPL-2.0-or-later
"""The conversation of two control planes: frames on a TLS connection.

A frame is a header of 12 bytes (magic, kind, region, length) and its payload: a JSON message, or a
block of locations of one region (see ``codec``).  The first frame of either side is HELLO with the
version it speaks and the lowest that it understands; both then speak the lower of the two versions.
What a peer sends is checked in length and form before anything is done with it.
"""

import asyncio
import socket
import struct
from typing import Annotated, ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from .. import __version__
from ..errors import UffdmmError

VERSION: Final = 2
"""2: records of a block may be in the volume, if the destination accepts that."""

LOWEST: Final = 1
"""Lowest version that this package still speaks."""

DEFAULT_PORT: Final = 7661

_MAGIC: Final = 0x4D46_4655  # "UFFM"
_HEADER: Final = struct.Struct("<IBBHI")
_MESSAGE, _LOCATIONS = 1, 2
_MESSAGE_MAX: Final = 1 << 18
_BLOCK_MAX: Final = 4 << 20
REGIONS_MAX: Final = 256

# At the end of a migration the guest stands still while TCP hopes for an answer.
_LOST_SECONDS: Final = 20
_PROBE_SECONDS: Final = 5

_U64 = Annotated[int, Field(ge=0, lt=1 << 64)]
_Text = Annotated[str, Field(max_length=4096)]


class PeerError(UffdmmError):
    """The control plane over there broke the protocol, or hung up."""


class Message(BaseModel):
    """Base of the messages."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    # Fields that an older version does not know: the first version that does.
    newer: ClassVar[dict[str, int]] = {}


class Hello(Message):
    """First, from both sides."""

    type: Literal["hello"] = "hello"
    version: int = VERSION
    lowest: int = LOWEST
    agent: _Text = f"uffdmm {__version__}"


class RegionOffer(Message):
    """A memory region of the VM."""

    name: _Text
    size: _U64
    page_size: _U64


class TierOffer(Message):
    """The tier whose pages would go by location."""

    index: Annotated[int, Field(ge=1, le=15)]
    name: _Text
    kind: Literal["file", "nbd"]
    epoch: _U64
    volume: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]


class Offer(Message):
    """Source: this VM could come.  ``dry_run``: it only asks."""

    type: Literal["offer"] = "offer"
    vm: _Text
    session: Annotated[int, Field(gt=0, lt=1 << 64)]
    regions: Annotated[list[RegionOffer], Field(min_length=1, max_length=REGIONS_MAX)]
    tier: TierOffer | None
    channels: Annotated[int, Field(ge=0, le=64)] = 0
    direct: bool = False
    dry_run: bool = False


class Accept(Message):
    """Destination: QEMU waits.  ``address`` is for a direct stream, else it comes in a tunnel.

    ``deposits``: records of locations may be in the volume.
    """

    type: Literal["accept"] = "accept"
    tier: _Text | None
    notes: list[_Text] = Field(default_factory=list)
    address: _Text | None = None
    deposits: bool = False

    newer: ClassVar[dict[str, int]] = {"deposits": 2}


class Refuse(Message):
    """Either side: no, or no further, and why."""

    type: Literal["refuse"] = "refuse"
    stage: _Text
    message: _Text
    remedy: _Text | None = None


class Ack(Message):
    """Destination: the worker has so many blocks of locations of this connection."""

    type: Literal["ack"] = "ack"
    blocks: _U64


class Resume(Message):
    """Source, on a new connection: the session that waits for its hand-over."""

    type: Literal["resume"] = "resume"
    vm: _Text
    session: _U64


class Waiting(Message):
    """Destination: that session waits here for its hand-over, or runs already."""

    type: Literal["waiting"] = "waiting"
    running: bool


class Released(Message):
    """Source: the volume is yours in this epoch; run the guest."""

    type: Literal["released"] = "released"
    epoch: _U64
    run: bool = True


class Running(Message):
    """Destination: the guest is here."""

    type: Literal["running"] = "running"


class Tunnel(Message):
    """First after HELLO on a connection that carries QEMU's stream; bytes follow."""

    type: Literal["tunnel"] = "tunnel"
    session: _U64


AnyMessage = Annotated[
    Hello | Offer | Accept | Refuse | Ack | Resume | Waiting | Released | Running | Tunnel,
    Field(discriminator="type"),
]
_ADAPTER: Final[TypeAdapter[AnyMessage]] = TypeAdapter(AnyMessage)


class Block(BaseModel):
    """Packed locations of one region."""

    model_config = ConfigDict(frozen=True)

    region: int
    data: bytes


class Channel:
    """Frames on a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.sent_bytes = 0
        self.version = VERSION
        _notice_silence(writer)

    async def send(self, message: Message) -> None:
        """Send a message."""
        unknown = {name for name, since in message.newer.items() if since > self.version}
        await self._send(_MESSAGE, 0, message.model_dump_json(exclude=unknown).encode())

    async def send_block(self, region: int, data: bytes) -> None:
        """Send locations of the region of this index in the offer."""
        await self._send(_LOCATIONS, region, data)

    async def _send(self, kind: int, region: int, payload: bytes) -> None:
        try:
            self.writer.write(_HEADER.pack(_MAGIC, kind, 0, region, len(payload)))
            self.writer.write(payload)
            await self.writer.drain()
        except OSError as error:
            raise _lost(error) from None
        self.sent_bytes += _HEADER.size + len(payload)

    async def receive(self, timeout: float | None = None) -> AnyMessage | Block:
        """The next frame.

        :raise PeerError: the peer hung up, or sent what is none, or nothing in time
        """
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                return await self._receive()
        except TimeoutError as error:
            if not limit.expired():
                # The kernel's, which gave the connection up.
                raise _lost(error) from None
            raise PeerError(f"the other control plane was silent for {timeout:g} s") from None
        except OSError as error:
            raise _lost(error) from None

    async def _receive(self) -> AnyMessage | Block:
        try:
            magic, kind, zero, region, length = _HEADER.unpack(
                await self.reader.readexactly(_HEADER.size)
            )
            if magic != _MAGIC or zero or kind not in (_MESSAGE, _LOCATIONS):
                raise PeerError("what came from the other side is no frame of this protocol")
            if length > (_MESSAGE_MAX if kind == _MESSAGE else _BLOCK_MAX):
                raise PeerError(f"a frame of {length} bytes is larger than any")
            payload = await self.reader.readexactly(length)
        except asyncio.IncompleteReadError:
            raise PeerError("the other control plane hung up", "its log says why") from None
        if kind == _LOCATIONS:
            return Block(region=region, data=payload)
        try:
            return _ADAPTER.validate_json(payload)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(step) for step in first["loc"])
            raise PeerError(f"a message is malformed: {where}: {first['msg'].lower()}") from None

    async def greet(self, timeout: float) -> int:
        """Say HELLO and hear it; the version that both speak.

        :raise PeerError: there is none
        """
        await self.send(Hello())
        heard = await self.receive(timeout)
        if isinstance(heard, Refuse):
            raise PeerError(heard.message, heard.remedy)
        if not isinstance(heard, Hello):
            raise PeerError(f"the other side began with '{kind_of(heard)}' instead of hello")
        version = min(VERSION, heard.version)
        if version < max(LOWEST, heard.lowest):
            raise PeerError(
                f"this side speaks versions {LOWEST} to {VERSION} of the migration protocol, the"
                f" other ({heard.agent}) {heard.lowest} to {heard.version}",
                "bring both hosts to releases that have one in common",
            )
        self.version = version
        return version

    def close(self) -> None:
        """Hang up, without waiting."""
        self.writer.close()


def _notice_silence(writer: asyncio.StreamWriter) -> None:
    """A network that lets nothing through is an error of the connection after some seconds."""
    end = writer.get_extra_info("socket")
    if end is None or end.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, _PROBE_SECONDS),
        (socket.TCP_KEEPINTVL, _PROBE_SECONDS),
        (socket.TCP_KEEPCNT, _LOST_SECONDS // _PROBE_SECONDS - 1),
        # What was sent and not acknowledged: without it TCP tries for a quarter of an hour.
        (socket.TCP_USER_TIMEOUT, _LOST_SECONDS * 1000),
    ):
        end.setsockopt(socket.IPPROTO_TCP, option, value)


def kind_of(frame: AnyMessage | Block) -> str:
    """The name of a frame, for messages."""
    return "locations" if isinstance(frame, Block) else frame.type


def _lost(error: OSError) -> PeerError:
    reason = (error.strerror or str(error)).lower()
    return PeerError(f"the connection to the other control plane broke: {reason}")
