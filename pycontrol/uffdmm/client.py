# SPDX-License-Identifier: GPL-2.0-or-later
"""The manager and its VMs as objects.

:class:`Manager` is only an address: each question opens a connection of its own, so it may be kept
for days and shared between threads.  :class:`VirtualMachine` holds a connection to the worker of
one VM and is closed after use.
"""

import errno
import os
from importlib.metadata import version
from types import TracebackType
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from . import wire
from ._native import ffi, lib
from .errors import ManagerError, NoSuchVmError, ProtocolError
from .stats import Stats, StatsPage

DEFAULT_SOCKET = "/run/uffdmm/manager.sock"
DEFAULT_TIMEOUT = 5.0

_ENTRY_SIZE = ffi.sizeof("struct uffdmm_list_entry")
# No host has this many; a manager that never ends its list must not hang us.
_VMS_MAX = 65536


class VmEntry(BaseModel):
    """A VM in the manager's list."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vm_name: str = Field(description="name of the VM")
    worker_pid: int = Field(description="process that serves the VM, 0 when it has died")
    qemu_pid: int = Field(description="QEMU process of the VM")


class Policy(BaseModel):
    """What is in force for a VM."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    limit_bytes: int = Field(description="limit on resident guest memory of the VM, 0 is none")
    readahead_pages: int = Field(description="largest read-ahead window, 1 is off")


class Manager:
    """A manager by the path of its socket.

    :param socket_path: what ``uffdmm-manager --socket-path`` was given
    :param timeout: seconds that each request may take
    """

    def __init__(
        self,
        socket_path: str | os.PathLike[str] = DEFAULT_SOCKET,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        self.socket_path = os.fspath(socket_path)
        self.timeout = timeout

    def list_vms(self) -> list[VmEntry]:
        """All VMs that the manager serves now, by name.

        :raise ConnectError: the manager cannot be reached
        """
        # Keyed by name: a VM that comes or goes between two replies shifts the rest.
        found: dict[str, VmEntry] = {}
        connection = self._hello(b"")
        try:
            start = 0
            while start < _VMS_MAX:
                request = ffi.new("struct uffdmm_list *", {"start": start})
                with connection.call(lib.UFFDMM_MSG_LIST, wire.pack(request)) as reply:
                    entries = _split_list(reply.payload)
                if not entries:
                    break
                start += len(entries)
                found.update((entry.vm_name, entry) for entry in entries)
        finally:
            connection.close()
        return sorted(found.values(), key=lambda entry: entry.vm_name)

    def open_vm(self, vm_name: str) -> "VirtualMachine":
        """Connect to the worker of a VM.

        :raise NoSuchVmError: there is none of that name
        :raise ConnectError: the manager cannot be reached
        """
        raw = wire.encode_vm_name(vm_name)
        try:
            return VirtualMachine(vm_name, self._hello(raw))
        except ManagerError as error:
            if error.code != errno.ENOENT:
                raise
            raise NoSuchVmError(
                error.code,
                f"the manager at '{self.socket_path}' serves no VM named '{vm_name}'",
                "'uffdmm list' shows those it serves",
            ) from None

    def _hello(self, vm_name: bytes) -> wire.Connection:
        connection = wire.Connection.connect(self.socket_path, self.timeout)
        hello = ffi.new(
            "struct uffdmm_hello *",
            {
                "role": lib.UFFDMM_ROLE_CONTROL,
                "vm_name": vm_name,
                "agent": f"uffdmm-python {version('uffdmm')}".encode(),
            },
        )
        try:
            with connection.call(lib.UFFDMM_MSG_HELLO, wire.pack(hello)) as reply:
                wire.unpack("struct uffdmm_hello_reply", reply.payload)
        except BaseException:
            connection.close()
            raise
        return connection


class VirtualMachine:
    """One VM, by a connection to its worker.  A context manager."""

    def __init__(self, vm_name: str, connection: wire.Connection) -> None:
        self.vm_name = vm_name
        self._connection = connection
        self._page: StatsPage | None = None

    def statistics(self) -> Stats:
        """A snapshot of the statistics.

        The first one asks the worker for its page; those after it only read memory, so they
        succeed even when the worker is busy, stopped or gone (look at the heartbeat then).
        """
        if self._page is None:
            with self._connection.call(lib.UFFDMM_MSG_QUERY, b"", nr_fds=1) as reply:
                answer = wire.unpack("struct uffdmm_query_reply", reply.payload)
                self._page = StatsPage(reply.take_fd(), answer.stats_size)
        return self._page.snapshot()

    def set_policy(
        self, *, limit_bytes: int | None = None, readahead_pages: int | None = None
    ) -> Policy:
        """Change what is given; return all that is in force afterwards.

        :param limit_bytes: resident guest memory of the whole VM; 0 lifts the limit
        :param readahead_pages: largest read-ahead window, 1 (off) to 64
        :raise ManagerError: the worker refuses a value; nothing was changed
        """
        if limit_bytes is None and readahead_pages is None:
            raise ValueError("nothing to set: name a limit, a read-ahead window or both")
        fields = 0
        if limit_bytes is not None:
            fields |= lib.UFFDMM_POLICY_LIMIT
        if readahead_pages is not None:
            fields |= lib.UFFDMM_POLICY_READAHEAD
        request = ffi.new(
            "struct uffdmm_policy *",
            {
                "fields": fields,
                "readahead_pages": readahead_pages or 0,
                "limit_bytes": limit_bytes or 0,
            },
        )
        with self._connection.call(lib.UFFDMM_MSG_SET_POLICY, wire.pack(request)) as reply:
            answer = wire.unpack("struct uffdmm_policy", reply.payload)
        return Policy(limit_bytes=answer.limit_bytes, readahead_pages=answer.readahead_pages)

    def close(self) -> None:
        """Give back connection and mapping; closing twice is allowed."""
        if self._page is not None:
            self._page.close()
            self._page = None
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _split_list(payload: bytes) -> list[VmEntry]:
    """The entries of one LIST reply."""
    if len(payload) % _ENTRY_SIZE:
        raise ProtocolError(
            f"the manager sent {len(payload)} bytes of list, an entry has {_ENTRY_SIZE}"
        )
    entries = []
    for offset in range(0, len(payload), _ENTRY_SIZE):
        raw = wire.unpack("struct uffdmm_list_entry", payload[offset : offset + _ENTRY_SIZE])
        if not wire.text_of(raw.vm_name):
            raise ProtocolError("the manager lists a VM without a name")
        entries.append(
            VmEntry(
                vm_name=wire.text_of(raw.vm_name),
                worker_pid=raw.worker_pid,
                qemu_pid=raw.qemu_pid,
            )
        )
    return entries
