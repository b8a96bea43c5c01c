# SPDX-License-Identifier: GPL-2.0-or-later
"""Locations in few bytes.

Neighbouring pages mostly lie in neighbouring slots, were stored in the same generation and have the
same age.  So locations are sorted by page, taken apart into columns, each column becomes the
difference to what its predecessor makes one expect, and the bytes of each column are put together
by significance, where zlib finds that nearly all of them are zero.  What cannot be guessed are the
records (checksums), 8 bytes a page: the source may leave them in the volume that both hosts read,
and then the block has where they are, and a digest of them.

A block is a header (number of locations, and where the records are if they are elsewhere) and one
zlib stream.  Whatever a peer sends decodes to locations or raises MigrationStreamError, and never
takes more memory than its header admits.
"""

import hashlib
import struct
import zlib
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import UffdmmError
from .locations import LOCATION, Locations

BLOCK_MAX: Final = 1 << 20
"""Most locations in one block."""

_HEADER: Final = struct.Struct("<I")
_DEPOSIT: Final = struct.Struct("<Q16s")
_DEPOSITED: Final = 1 << 31
_ENTRY_TIER_SHIFT: Final = 8
_TIER_MASK: Final = 0xF
_LEVEL: Final = 1
_ENTRY_GEN_SHIFT: Final = 12
_ENTRY_SLOT_SHIFT: Final = 24
_LOW_MASK: Final = (1 << _ENTRY_GEN_SHIFT) - 1
_GEN_MASK: Final = 0xFFF
_WIDTHS: Final = (8, 8, 2, 2, 1, 8)
"""Bytes of the columns: page, slot, state and tier, generation, age, record."""


class MigrationStreamError(UffdmmError):
    """What came from the other host is not a stream of locations."""


@dataclass(frozen=True, slots=True)
class Deposit:
    """Where the records of a block are that it does not have: those that :func:`absent` tells."""

    slot: int
    digest: bytes  # 16 bytes, of the records as little-endian numbers

    @classmethod
    def of(cls, slot: int, records: NDArray[np.uint64]) -> Self:
        """What goes with a block whose records are in the volume."""
        return cls(slot, _digest(records))

    def fits(self, records: NDArray[np.uint64]) -> bool:
        """Whether these are the records that the source has left there."""
        return _digest(records) == self.digest


def absent(locations: Locations) -> NDArray[np.bool_]:
    """Which records can be in the volume: those of pages in a tier with slots.  Shape (n,)."""
    tier = (locations["entry"] >> np.uint64(_ENTRY_TIER_SHIFT)) & np.uint64(_TIER_MASK)
    result: NDArray[np.bool_] = tier != 0
    return result


def _digest(records: NDArray[np.uint64]) -> bytes:
    return hashlib.blake2b(records.astype("<u8").tobytes(), digest_size=16).digest()


def _planes(column: NDArray[np.uint64], width: int) -> bytes:
    """The low ``width`` bytes of each number, those of equal significance together."""
    planes = column.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :width]
    return planes.T.tobytes()


def _unplane(data: bytes, count: int, width: int) -> NDArray[np.uint64]:
    wide = np.zeros((count, 8), np.uint8)
    wide[:, :width] = np.frombuffer(data, np.uint8).reshape(width, count).T
    return wide.reshape(-1).view("<u8").astype(np.uint64)


def _zigzag(delta: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Small numbers of either sign become small numbers."""
    return ((delta << 1) ^ (delta >> 63)).astype(np.uint64)


def _unzigzag(value: NDArray[np.uint64]) -> NDArray[np.int64]:
    one = np.uint64(1)
    return ((value >> one) ^ (~(value & one) + one)).astype(np.int64)


def _differences(column: NDArray[np.uint64], step: int) -> NDArray[np.uint64]:
    """Zigzag of what each number has beyond its predecessor plus ``step``."""
    signed = column.astype(np.int64)
    before = np.concatenate((np.array([-step], np.int64), signed))[:-1]
    return _zigzag(signed - before - step)


def _sums(differences: NDArray[np.uint64], step: int) -> NDArray[np.uint64]:
    return (np.cumsum(_unzigzag(differences) + step) - step).astype(np.uint64)


def encode(locations: Locations, deposit: Deposit | None = None) -> bytes:
    """Packs locations.

    :param locations: at most BLOCK_MAX, pages ascending, each once
    :param deposit: where the records are that :func:`absent` tells; they are left out
    :raises ValueError: they are not
    """
    count = len(locations)
    pfn = np.ascontiguousarray(locations["pfn"])
    entry = np.ascontiguousarray(locations["entry"])
    if not 0 < count <= BLOCK_MAX or (count > 1 and not bool(np.all(pfn[1:] > pfn[:-1]))):
        raise ValueError(f"{count} locations: use 1 to {BLOCK_MAX}, pages ascending")
    columns = (
        _differences(pfn, 1),
        _differences(entry >> np.uint64(_ENTRY_SLOT_SHIFT), 1),
        entry & np.uint64(_LOW_MASK),
        (entry >> np.uint64(_ENTRY_GEN_SHIFT)) & np.uint64(_GEN_MASK),
        locations["age"].astype(np.uint64),
        np.where(absent(locations), 0, locations["record"]) if deposit else locations["record"],
    )
    raw = b"".join(_planes(column, width) for column, width in zip(columns, _WIDTHS, strict=True))
    header = _HEADER.pack(count | (_DEPOSITED if deposit else 0))
    if deposit:
        header += _DEPOSIT.pack(deposit.slot, deposit.digest)
    return header + zlib.compress(raw, _LEVEL)


def decode(block: bytes) -> tuple[Locations, Deposit | None]:
    """Unpacks what encode() made.

    :param block: from the other host, not trusted
    :return: 1 to BLOCK_MAX locations, pages ascending, each once; and where records are that they
        lack
    :raises MigrationStreamError: it is damaged
    """
    if len(block) < _HEADER.size:
        raise MigrationStreamError(f"block of locations has {len(block)} bytes")
    (count,) = _HEADER.unpack_from(block)
    body, deposit = block[_HEADER.size :], None
    if count & _DEPOSITED:
        count ^= _DEPOSITED
        if len(body) < _DEPOSIT.size:
            raise MigrationStreamError(f"block of locations has {len(block)} bytes")
        deposit, body = Deposit(*_DEPOSIT.unpack_from(body)), body[_DEPOSIT.size :]
    if not 0 < count <= BLOCK_MAX:
        raise MigrationStreamError(f"block of {count} locations: 1 to {BLOCK_MAX} are allowed")
    size = count * sum(_WIDTHS)
    inflate = zlib.decompressobj()
    try:
        raw = inflate.decompress(body, size)
    except zlib.error as error:
        raise MigrationStreamError(f"block of locations is damaged: {error}") from error
    if len(raw) != size or not inflate.eof or inflate.unconsumed_tail or inflate.unused_data:
        raise MigrationStreamError(
            f"block of {count} locations holds {len(raw)} bytes or more instead of {size}"
        )
    columns = []
    at = 0
    for width in _WIDTHS:
        columns.append(_unplane(raw[at : at + count * width], count, width))
        at += count * width
    pfn, slot = _sums(columns[0], 1), _sums(columns[1], 1)
    if count > 1 and not bool(np.all(pfn[1:] > pfn[:-1])):
        raise MigrationStreamError("block of locations has its pages out of order")
    if bool(np.any(slot >> np.uint64(64 - _ENTRY_SLOT_SHIFT))) or bool(
        np.any((columns[2] > _LOW_MASK) | (columns[3] > _GEN_MASK))
    ):
        raise MigrationStreamError("block of locations has an entry that cannot be")
    result = np.zeros(count, LOCATION)
    result["pfn"] = pfn
    result["entry"] = (
        (slot << np.uint64(_ENTRY_SLOT_SHIFT))
        | (columns[3] << np.uint64(_ENTRY_GEN_SHIFT))
        | columns[2]
    )
    result["age"] = columns[4]
    result["record"] = columns[5]
    return result, deposit
