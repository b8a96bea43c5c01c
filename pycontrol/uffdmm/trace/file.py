# SPDX-License-Identifier: GPL-2.0-or-later
"""The file of a trace: a zip archive of numpy arrays, as ``numpy.load`` reads it too.

=============== =========== ====================================================
member          type        content
=============== =========== ====================================================
``meta``        uint8       JSON: version, name, ram_bytes, stride, samples,
                            settings, marks, source
``times``       float64     seconds, one a sample
``looked``      uint8       1 where accesses were looked at
``used``        uint8       rows of packed bits, each XORed with the row before
``resident``    uint8       packed bits, at the first sample
``stored``      uint8       packed bits, at the first sample
``counter_*``   int64       one a sample
=============== =========== ====================================================

Theory of operation.  A trace comes from somebody else, so the file is input: no pickle, no member
that is not in the table, and no array is read before its type and shape are known from ``meta``,
which is small.  A member that would unpack to more than its array needs is not unpacked.  The XOR
makes a set that stays the same cost nothing once it is compressed.
"""

import io
import json
import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .model import COUNTERS, Settings, Trace, TraceError, shape_problem, units_of

VERSION = 1
_META_MAX = 1 << 16
# An array's own header, at most: numpy pads to 64 bytes, shapes are short.
_HEADER_MAX = 512
_ZIP_MEMBERS = 6 + len(COUNTERS)

_Size = Annotated[int, Field(ge=0, le=1 << 50)]


class _Settings(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    min_bytes: _Size
    max_bytes: _Size
    shares: _Size
    priority: _Size
    vcpus: _Size


class _Meta(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    version: int
    name: str = Field(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]+$")
    ram_bytes: _Size
    stride: _Size
    samples: _Size
    settings: _Settings
    marks: dict[str, _Size]
    source: str = Field(max_length=4096)


def save_trace(trace: Trace, path: Path) -> None:
    """Write the file, or leave what was there.

    :raise OSError: it cannot be written
    """
    meta = {
        "version": VERSION,
        "name": trace.name,
        "ram_bytes": trace.ram_bytes,
        "stride": trace.stride,
        "samples": len(trace.times),
        "settings": {name: getattr(trace.settings, name) for name in Settings.__slots__},
        "marks": dict(trace.marks),
        "source": trace.source,
    }
    used = trace.used.copy()
    used[1:] ^= trace.used[:-1]
    arrays: dict[str, NDArray[Any]] = {
        "meta": np.frombuffer(json.dumps(meta).encode(), np.uint8),
        "times": trace.times.astype("<f8"),
        "looked": trace.looked.astype(np.uint8),
        "used": used,
        "resident": trace.resident,
        "stored": trace.stored,
    }
    arrays |= {f"counter_{name}": trace.counters[name].astype("<i8") for name in COUNTERS}
    # By rename, so that nobody finds half a trace.
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as partial:
        try:
            np.savez_compressed(partial, **arrays)  # type: ignore[arg-type]
            partial.flush()
            # As a file made in the plain way has it, not for its owner alone.
            mask = os.umask(0)
            os.umask(mask)
            os.fchmod(partial.fileno(), 0o666 & ~mask)
            Path(partial.name).replace(path)
        except BaseException:
            Path(partial.name).unlink(missing_ok=True)
            raise


def load_trace(path: Path) -> Trace:
    """Read a trace.

    :raise TraceError: there is none, or it is damaged or of another version
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive)
    except TraceError as error:
        raise TraceError(f"'{path}': {error.message}", error.remedy) from error
    except FileNotFoundError:
        raise TraceError(
            f"there is no trace '{path}'",
            "record one with 'uffdmm record', or name a made-up one: synthetic:hot-cold",
        ) from None
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise TraceError(f"trace '{path}' cannot be read: {reason}") from None
    except MemoryError:
        raise TraceError(f"trace '{path}' does not fit into memory") from None
    except Exception as error:
        # zipfile, zlib and numpy's header parser raise whatever the damage leads them to.
        raise TraceError(
            f"'{path}' is no trace, or is damaged: {error}", "record it again"
        ) from error


def _read(archive: zipfile.ZipFile) -> Trace:
    names = [info.filename for info in archive.infolist()]
    if len(names) > _ZIP_MEMBERS or len(set(names)) != len(names):
        raise TraceError(f"it has {len(names)} members, a trace has {_ZIP_MEMBERS}")
    meta = _meta(archive)
    problem = shape_problem(meta.ram_bytes, meta.stride, meta.samples)
    if problem:
        raise TraceError(problem)
    width = -(-units_of(meta.ram_bytes, meta.stride) // 8)
    nr = meta.samples
    used = _array(archive, "used", "|u1", (nr, width))
    used = np.bitwise_xor.accumulate(used, axis=0)
    looked = _array(archive, "looked", "|u1", (nr,))
    counters: Mapping[str, NDArray[np.int64]] = {
        name: _array(archive, f"counter_{name}", "<i8", (nr,)) for name in COUNTERS
    }
    return Trace(
        name=meta.name,
        ram_bytes=meta.ram_bytes,
        stride=meta.stride,
        times=_array(archive, "times", "<f8", (nr,)),
        looked=looked != 0,
        used=used,
        resident=_array(archive, "resident", "|u1", (width,)),
        stored=_array(archive, "stored", "|u1", (width,)),
        counters=counters,
        settings=Settings(**meta.settings.model_dump()),
        marks=meta.marks,
        source=meta.source,
    )


def _meta(archive: zipfile.ZipFile) -> _Meta:
    raw = _member(archive, "meta", _META_MAX)
    text, shape = _payload(raw, "meta", "|u1")
    if shape != (len(text),):
        raise TraceError("its meta is no row of bytes")
    try:
        document = json.loads(bytes(text))
        if isinstance(document, dict) and document.get("version") != VERSION:
            raise TraceError(
                f"it has version {document.get('version')!r}, this program reads {VERSION}",
                "use the release that recorded it, or record it again",
            )
        return _Meta.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise TraceError(f"its meta is wrong at '{where}': {first['msg'].lower()}") from None


def _array(archive: zipfile.ZipFile, name: str, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    kind = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    raw = _member(archive, name, size + _HEADER_MAX)
    payload, found = _payload(raw, name, dtype)
    if found != shape or len(payload) != size:
        raise TraceError(f"its {name} has the shape {found}, {shape} was announced")
    return np.frombuffer(payload, kind).reshape(shape)


def _member(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    try:
        info = archive.getinfo(f"{name}.npy")
    except KeyError:
        raise TraceError(f"its member '{name}' is missing") from None
    if info.file_size > most:
        raise TraceError(
            f"its {name} would unpack to {info.file_size} bytes, at most {most} belong there"
        )
    with archive.open(info) as member:
        # What the archive says of the size need not be true.
        raw = member.read(most + 1)
    if len(raw) > most:
        raise TraceError(f"its {name} unpacks to more than {most} bytes")
    return raw


def _payload(raw: bytes, name: str, dtype: str) -> tuple[memoryview, tuple[int, ...]]:
    stream = io.BytesIO(raw)
    if npy.read_magic(stream) != (1, 0):
        raise TraceError(f"its {name} is an array of another format version")
    shape, fortran, kind = npy.read_array_header_1_0(stream, max_header_size=_HEADER_MAX)
    if fortran or kind != np.dtype(dtype):
        raise TraceError(f"its {name} is of type {kind}, not {dtype}")
    return memoryview(raw)[stream.tell() :], tuple(shape)
