# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages and descriptors over the manager's socket.

A connection sends one request at a time and waits for its reply.  Whatever arrives is checked
before it is believed: magic, version, type, request id, length, number of descriptors.  A peer that
breaks the rules costs a ProtocolError and the connection, never a descriptor left open.

All numbers and structures come from ``native/include/uffdmm/protocol.h`` through cffi.
"""

from __future__ import annotations

import array
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ._native import ffi, lib
from .errors import (
    ConnectError,
    LinkLostError,
    ManagerError,
    ProtocolError,
    VersionError,
    VmNameError,
)

if TYPE_CHECKING:
    # Only the stub knows the class: cffi has no name for it.
    from ._native import CData

_HEADER = "struct uffdmm_msg_header"
_HEADER_SIZE = ffi.sizeof(_HEADER)
_INT_SIZE = array.array("i").itemsize
# One more than allowed, so that a peer that sends too many is seen and not merely cut off.
_ANCILLARY_SIZE = socket.CMSG_SPACE((lib.UFFDMM_FDS_MAX + 1) * _INT_SIZE)

_START_REMEDY = "start uffdmm-manager, or name its socket with --socket"


@dataclass(slots=True)
class Reply:
    """A checked reply.  Owns its descriptors until they are taken."""

    payload: bytes
    fds: list[int] = field(default_factory=list)

    def take_fd(self) -> int:
        """Hand the first descriptor to the caller, who closes it."""
        return self.fds.pop(0)

    def close(self) -> None:
        """Close the descriptors that nobody took."""
        while self.fds:
            os.close(self.fds.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def pack(struct: CData) -> bytes:
    """The bytes of a structure made by ``ffi.new``."""
    return bytes(ffi.buffer(struct))


def unpack(cdecl: str, payload: bytes) -> CData:
    """A private copy of ``payload`` as ``cdecl``.

    :raise ProtocolError: the payload is not exactly as long as the structure
    """
    size = ffi.sizeof(cdecl)
    if len(payload) != size:
        raise ProtocolError(f"the manager sent {len(payload)} bytes where {cdecl} has {size}")
    struct = ffi.new(f"{cdecl} *")
    ffi.memmove(struct, payload, size)
    return struct


def text_of(chars: CData) -> str:
    """The text of a NUL-padded array; a foreign encoding does not raise."""
    return ffi.string(chars).decode("utf-8", errors="replace")


def encode_vm_name(vm_name: str) -> bytes:
    """A VM name as the wire carries it.

    :raise VmNameError: empty, too long, or with a NUL inside
    """
    raw = vm_name.encode("utf-8", errors="surrogateescape")
    if not raw or b"\0" in raw or len(raw) >= lib.UFFDMM_NAME_MAX:
        raise VmNameError(
            f"'{vm_name}' cannot be the name of a VM",
            f"a name has 1 to {lib.UFFDMM_NAME_MAX - 1} bytes; 'uffdmm list' shows those in use",
        )
    return raw


class Connection:
    """A connected socket on which HELLO has not been said yet.

    :param sock: a connected UNIX stream socket; owned from now on
    :param peer: how messages to the user call the other side
    :param timeout: seconds that a request and its reply may take together
    """

    def __init__(self, sock: socket.socket, peer: str, timeout: float) -> None:
        self._sock = sock
        self._peer = peer
        self._timeout = timeout
        self._waits = timeout
        self._deadline = 0.0
        self._request_id = 0

    @classmethod
    def connect(cls, path: str | os.PathLike[str], timeout: float) -> Self:
        """Connect to the manager's socket.

        :raise ConnectError: with the reason and what to do about it
        """
        name = os.fspath(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        sock.settimeout(timeout)
        try:
            sock.connect(name)
        except FileNotFoundError:
            sock.close()
            raise ConnectError(f"no manager socket at '{name}'", _START_REMEDY) from None
        except ConnectionRefusedError:
            sock.close()
            raise ConnectError(
                f"nobody listens on the manager socket '{name}'", _START_REMEDY
            ) from None
        except PermissionError:
            sock.close()
            raise ConnectError(
                f"no permission to connect to the manager socket '{name}'",
                "run as the user that started uffdmm-manager, or as root",
            ) from None
        except OSError as error:
            sock.close()
            reason = error.strerror or str(error)
            raise ConnectError(
                f"cannot connect to the manager socket '{name}': {reason.lower()}", _START_REMEDY
            ) from None
        return cls(sock, f"the manager at '{name}'", timeout)

    def close(self) -> None:
        """Close the socket; closing twice is allowed."""
        self._sock.close()

    def call(
        self,
        msg_type: int,
        payload: bytes,
        nr_fds: int = 0,
        *,
        send_fds: Sequence[int] = (),
        timeout: float | None = None,
    ) -> Reply:
        """Send a request and wait for its reply.

        :param nr_fds: descriptors that a good reply carries
        :param send_fds: descriptors that go with the request; they stay the caller's
        :param timeout: seconds that this one may take, those of the connection by default
        :raise ManagerError: the manager refused
        :raise ProtocolError: the reply breaks the protocol; the connection is closed
        :raise LinkLostError: no (complete) reply; the connection is closed, or was before
        """
        if self._sock.fileno() < 0:
            raise LinkLostError(
                f"the connection to {self._peer} has been closed after an earlier failure",
                "its log says why",
            )
        self._waits = self._timeout if timeout is None else timeout
        self._deadline = time.monotonic() + self._waits
        self._request_id += 1
        try:
            self._send(msg_type, payload, send_fds)
            reply = self._receive(msg_type, nr_fds)
        except ManagerError:
            # The conversation is in step: the caller may go on.
            raise
        except BaseException:
            self.close()
            raise
        return reply

    def _send(self, msg_type: int, payload: bytes, fds: Sequence[int]) -> None:
        header = ffi.new(
            f"{_HEADER} *",
            {
                "magic": lib.UFFDMM_MAGIC,
                "version": lib.UFFDMM_VERSION,
                "min_version": lib.UFFDMM_MIN_VERSION,
                "type": msg_type,
                "length": len(payload),
                "request_id": self._request_id,
                "nr_fds": len(fds),
            },
        )
        data = pack(header) + payload
        self._arm()
        try:
            # Descriptors travel with the first byte; what is left over follows without them.
            sent = socket.send_fds(self._sock, [data], fds) if fds else 0
            self._sock.sendall(data[sent:])
        except TimeoutError:
            raise self._too_slow() from None
        except (BrokenPipeError, ConnectionResetError):
            # A manager that turns us away says why before it closes: go on and read that.
            pass
        except OSError as error:
            raise self._lost(error) from None

    def _receive(self, msg_type: int, nr_fds: int) -> Reply:
        reply = Reply(b"")
        try:
            header = unpack(_HEADER, self._read(_HEADER_SIZE, reply.fds))
            self._check_header(header, msg_type)
            reply.payload = self._read(header.length, reply.fds)
            if len(reply.fds) != header.nr_fds:
                raise ProtocolError(
                    f"{self._peer} announced {header.nr_fds} descriptors and sent {len(reply.fds)}"
                )
            if header.status:
                raise _refusal(header.status, reply.payload)
            if header.nr_fds != nr_fds:
                raise ProtocolError(
                    f"{self._peer} sent {header.nr_fds} descriptors where {nr_fds} belong"
                )
        except BaseException:
            reply.close()
            raise
        return reply

    def _check_header(self, header: CData, msg_type: int) -> None:
        if header.magic != lib.UFFDMM_MAGIC:
            raise ProtocolError(
                f"{self._peer} does not speak the uffdmm protocol"
                f" (magic 0x{header.magic:08x}, not 0x{lib.UFFDMM_MAGIC:08x})",
                "check that the socket belongs to uffdmm-manager",
            )
        if header.version < lib.UFFDMM_MIN_VERSION or header.min_version > lib.UFFDMM_VERSION:
            raise VersionError(
                f"{self._peer} speaks protocol versions {header.min_version} to {header.version},"
                f" this program {lib.UFFDMM_MIN_VERSION} to {lib.UFFDMM_VERSION}",
                "install the manager and the Python package from the same release",
            )
        if header.length > lib.UFFDMM_PAYLOAD_MAX:
            raise ProtocolError(
                f"{self._peer} announced {header.length} bytes of payload,"
                f" the limit is {lib.UFFDMM_PAYLOAD_MAX}"
            )
        if header.nr_fds > lib.UFFDMM_FDS_MAX:
            raise ProtocolError(
                f"{self._peer} announced {header.nr_fds} descriptors,"
                f" the limit is {lib.UFFDMM_FDS_MAX}"
            )
        if header.status < 0 and header.request_id == 0:
            # Turned away before any request was read, for example by user id.
            return
        expected = msg_type | lib.UFFDMM_MSG_REPLY
        if header.type != expected or header.request_id != self._request_id:
            raise ProtocolError(
                f"{self._peer} answered request {self._request_id} of type {msg_type} with"
                f" message {header.request_id} of type 0x{header.type:x}"
            )
        if header.status > 0:
            raise ProtocolError(f"{self._peer} sent the impossible status {header.status}")

    def _read(self, size: int, fds: list[int]) -> bytes:
        """Exactly ``size`` bytes; descriptors that come along are added to ``fds``."""
        parts: list[bytes] = []
        missing = size
        while missing:
            self._arm()
            try:
                data, ancillary, flags, _ = self._sock.recvmsg(
                    missing, _ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC
                )
            except TimeoutError:
                raise self._too_slow() from None
            except OSError as error:
                raise self._lost(error) from None
            for level, kind, raw in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    received = array.array("i")
                    received.frombytes(raw[: len(raw) - len(raw) % _INT_SIZE])
                    fds.extend(received)
            if flags & socket.MSG_CTRUNC or len(fds) > lib.UFFDMM_FDS_MAX:
                raise ProtocolError(
                    f"{self._peer} sent more than {lib.UFFDMM_FDS_MAX} descriptors,"
                    " or this process may not open that many",
                    "raise the limit of open files (ulimit -n) if it is small",
                )
            if not data:
                where = "in the middle of a message" if missing != size else ""
                raise LinkLostError(
                    f"{self._peer} closed the connection {where}".rstrip(),
                    "its log says why",
                )
            parts.append(data)
            missing -= len(data)
        return b"".join(parts)

    def _arm(self) -> None:
        """Let the next system call wait until the deadline of the request."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise self._too_slow()
        self._sock.settimeout(left)

    def _too_slow(self) -> LinkLostError:
        return LinkLostError(
            f"{self._peer} did not answer within {self._waits:g} s",
            "look at its log and whether its process is stopped; --timeout waits longer",
        )

    def _lost(self, error: OSError) -> LinkLostError:
        reason = (error.strerror or str(error)).lower()
        return LinkLostError(f"the connection to {self._peer} broke: {reason}", "its log says why")


def _refusal(status: int, payload: bytes) -> ManagerError:
    """The error of a reply whose status is negative."""
    return ManagerError(-status, text_of(unpack("struct uffdmm_error", payload).text))
