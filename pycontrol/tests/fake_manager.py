# SPDX-License-Identifier: GPL-2.0-or-later
"""A peer that speaks the manager's side of the control protocol, and lies when told to.

It runs in a thread on a real UNIX socket and hands out real memfds, so the code under test goes the
way it goes in production.  ``tamper`` sees each reply before it is sent and may change it, or
return None to close the connection instead.
"""

import array
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from uffdmm._native import ffi, lib

HEADER_SIZE = ffi.sizeof("struct uffdmm_msg_header")


def struct_bytes(cdecl: str, values: dict[str, Any]) -> bytes:
    return bytes(ffi.buffer(ffi.new(f"{cdecl} *", values)))


def stats_bytes(**values: Any) -> bytes:
    """A valid statistics page with some fields set."""
    defaults: dict[str, Any] = {
        "magic": lib.UFFDMM_STATS_MAGIC,
        "version": lib.UFFDMM_STATS_VERSION,
        "state": lib.UFFDMM_WORKER_RUNNING,
    }
    return struct_bytes("struct uffdmm_stats", defaults | values)


def tier_bytes(**values: Any) -> bytes:
    """The statistics of a tier with some fields set."""
    return struct_bytes("struct uffdmm_tier_stats", values)


def pages_of(stats: bytes, *tiers: bytes) -> bytes:
    """The statistics of a VM and its tiers, a page each, as a worker lays them out."""
    return b"".join(part.ljust(4096, b"\0") for part in (stats, *tiers))


def memfd_of(content: bytes) -> int:
    fd = os.memfd_create("test", os.MFD_CLOEXEC)
    os.write(fd, content)
    return fd


@dataclass
class Outgoing:
    """A reply that is about to be sent."""

    request_type: int
    header: dict[str, int]
    payload: bytes = b""
    fds: list[int] = field(default_factory=list)
    # Sent in place of header and payload when set.
    raw: bytes | None = None
    close_after: bool = False
    # Pause after each byte.
    drip_seconds: float = 0

    def encode(self) -> bytes:
        if self.raw is not None:
            return self.raw
        header = {"length": len(self.payload), "nr_fds": len(self.fds)} | self.header
        return struct_bytes("struct uffdmm_msg_header", header) + self.payload


# Settings of the control plane, and what their bits are called.
PLANE = {
    "min_bytes": "MIN",
    "max_bytes": "MAX",
    "shares": "SHARES",
    "priority": "PRIORITY",
    "opt_out": "OPT_OUT",
    "track_permille": "TRACK",
}
Tamper = Callable[[Outgoing], Outgoing | None]


@dataclass
class FakeVm:
    page: bytes
    limit_bytes: int = 1 << 30
    readahead_pages: int = 64
    demote_after_ms: int = 0
    tier_bytes: list[int] = field(default_factory=lambda: [0] * lib.UFFDMM_TIERS_MAX)
    # min_bytes, max_bytes, shares, priority, opt_out, track_permille
    plane: list[int] = field(default_factory=lambda: [0, 0, 100, 50, 0, 15])
    tables: list[bytes] = field(default_factory=list)
    worker_pid: int = 11
    qemu_pid: int = 22
    # A memfd that all who ask get, as in production, so that they see later changes of it.
    live: int | None = None

    @property
    def nr_tiers(self) -> int:
        stats = ffi.from_buffer("struct uffdmm_stats *", self.page)
        count: int = stats.nr_tiers
        return count


class FakeManager:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.vms: dict[str, FakeVm] = {}
        self.tamper: Tamper | None = None
        self.page_entries = 227  # what fits into one payload
        self.requests: list[tuple[int, bytes]] = []
        self.refuse_policy: tuple[int, str] | None = None
        self.turn_away: tuple[int, str] | None = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(16)
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # shutdown() wakes accept(); close() alone does not.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        vm_name = ""
        with sock:
            if self.turn_away:
                # As the acceptor does it: nothing was read, so there is no request to answer.
                refusal = _refuse(_reply(lib.UFFDMM_MSG_HELLO), *self.turn_away)
                sock.sendall(refusal.encode())
                return
            while True:
                raw = _exactly(sock, HEADER_SIZE)
                if raw is None:
                    return
                header = ffi.from_buffer("struct uffdmm_msg_header *", raw)
                payload = _exactly(sock, header.length)
                assert payload is not None
                assert header.magic == lib.UFFDMM_MAGIC
                assert header.nr_fds == 0
                self.requests.append((header.type, payload))
                if header.type == lib.UFFDMM_MSG_HELLO:
                    hello = ffi.from_buffer("struct uffdmm_hello *", payload)
                    assert hello.role == lib.UFFDMM_ROLE_CONTROL
                    assert hello.features == 0
                    vm_name = ffi.string(hello.vm_name).decode()
                outgoing = self._answer(header.type, payload, vm_name)
                outgoing.header["request_id"] = header.request_id
                if not self._send(sock, outgoing):
                    return

    def _answer(self, msg_type: int, payload: bytes, vm_name: str) -> Outgoing:
        good = _reply(msg_type)
        if vm_name and vm_name not in self.vms:
            return _refuse(good, 2, f"no vm '{vm_name}' here")
        if msg_type == lib.UFFDMM_MSG_HELLO:
            good.payload = struct_bytes("struct uffdmm_hello_reply", {"pid": os.getpid()})
        elif msg_type == lib.UFFDMM_MSG_LIST:
            start = ffi.from_buffer("struct uffdmm_list *", payload).start
            chosen = list(self.vms.items())[start : start + self.page_entries]
            good.payload = b"".join(
                struct_bytes(
                    "struct uffdmm_list_entry",
                    {
                        "vm_name": name.encode(),
                        "worker_pid": vm.worker_pid,
                        "qemu_pid": vm.qemu_pid,
                    },
                )
                for name, vm in chosen
            )
        elif msg_type == lib.UFFDMM_MSG_QUERY:
            vm = self.vms[vm_name]
            page = vm.page
            good.payload = struct_bytes("struct uffdmm_query_reply", {"stats_size": len(page)})
            good.fds = [memfd_of(page) if vm.live is None else os.dup(vm.live)]
        elif msg_type == lib.UFFDMM_MSG_SET_POLICY:
            if self.refuse_policy:
                return _refuse(good, *self.refuse_policy)
            good.payload = self._set_policy(self.vms[vm_name], payload)
        elif msg_type == lib.UFFDMM_MSG_REGIONS:
            tables = self.vms[vm_name].tables
            index = ffi.from_buffer("struct uffdmm_regions *", payload).index
            if index >= len(tables):
                return _refuse(good, 2, "there is no further region")
            good.payload = struct_bytes(
                "struct uffdmm_regions_reply",
                {
                    "region_id": index,
                    "next": index + 1 if index + 1 < len(tables) else 0,
                    "size": 1 << 20,
                    "page_size": 4096,
                    "table_size": len(tables[index]),
                    "name": b"mem%d" % index,
                },
            )
            good.fds = [memfd_of(tables[index])]
        elif msg_type in {lib.UFFDMM_MSG_EVICT, lib.UFFDMM_MSG_PREFETCH}:
            pass
        else:
            return _refuse(good, 22, "unknown request")
        return good

    @staticmethod
    def _set_policy(vm: FakeVm, payload: bytes) -> bytes:
        wanted = ffi.from_buffer("struct uffdmm_policy *", payload)
        if wanted.fields & lib.UFFDMM_POLICY_LIMIT:
            vm.limit_bytes = wanted.limit_bytes
        if wanted.fields & lib.UFFDMM_POLICY_READAHEAD:
            vm.readahead_pages = wanted.readahead_pages
        if wanted.fields & lib.UFFDMM_POLICY_DEMOTE:
            vm.demote_after_ms = wanted.demote_after_ms
        for index, name in enumerate(PLANE):
            if wanted.fields & getattr(lib, f"UFFDMM_POLICY_{PLANE[name]}"):
                vm.plane[index] = getattr(wanted, name)
        if wanted.fields & lib.UFFDMM_POLICY_TIERS:
            for index in range(lib.UFFDMM_TIERS_MAX):
                if wanted.tier_mask >> index & 1:
                    vm.tier_bytes[index] = wanted.tier_bytes[index]
        return struct_bytes(
            "struct uffdmm_policy",
            {
                "fields": lib.UFFDMM_POLICY_LIMIT
                | lib.UFFDMM_POLICY_READAHEAD
                | lib.UFFDMM_POLICY_TIERS
                | lib.UFFDMM_POLICY_DEMOTE,
                "limit_bytes": vm.limit_bytes,
                "readahead_pages": vm.readahead_pages,
                "demote_after_ms": vm.demote_after_ms,
                "tier_mask": (1 << vm.nr_tiers) - 2,
                "tier_bytes": vm.tier_bytes,
                **dict(zip(PLANE, vm.plane, strict=True)),
            },
        )

    def _send(self, sock: socket.socket, outgoing: Outgoing) -> bool:
        made = list(outgoing.fds)
        tampered = self.tamper(outgoing) if self.tamper else outgoing
        try:
            if tampered is None:
                return False
            made += [fd for fd in tampered.fds if fd not in made]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", tampered.fds))]
            data = tampered.encode()
            step = 1 if tampered.drip_seconds else len(data)
            try:
                sock.sendmsg([data[:step]], rights if tampered.fds else [])
                for index in range(step, len(data), step):
                    time.sleep(tampered.drip_seconds)
                    sock.send(data[index : index + step])
            except (BrokenPipeError, ConnectionResetError):
                return False
            return not tampered.close_after
        finally:
            for fd in made:
                os.close(fd)


def no_answer(_: Outgoing) -> None:
    """A tamper that closes each connection in place of a reply."""


def _reply(msg_type: int) -> Outgoing:
    header = {
        "magic": lib.UFFDMM_MAGIC,
        "version": lib.UFFDMM_VERSION,
        "min_version": lib.UFFDMM_MIN_VERSION,
        "type": msg_type | lib.UFFDMM_MSG_REPLY,
    }
    return Outgoing(msg_type, header)


def _refuse(outgoing: Outgoing, code: int, text: str) -> Outgoing:
    outgoing.header["status"] = -code
    outgoing.payload = struct_bytes("struct uffdmm_error", {"text": text.encode()})
    return outgoing


def _exactly(sock: socket.socket, size: int) -> bytes | None:
    data = b""
    while len(data) < size:
        try:
            part = sock.recv(size - len(data))
        except ConnectionResetError:
            return None
        if not part:
            return None
        data += part
    return data
