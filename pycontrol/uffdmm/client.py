# SPDX-License-Identifier: GPL-2.0-or-later
"""The manager and its VMs as objects.

:class:`Manager` is only an address: each question opens a connection of its own, so it may be kept
for days and shared between threads.  :class:`VirtualMachine` holds a connection to the worker of
one VM and is closed after use.
"""

import errno
import os
from collections.abc import Mapping
from importlib.metadata import version
from types import TracebackType
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from . import wire
from ._native import ffi, lib
from .errors import ManagerError, NoSuchTierError, NoSuchVmError, ProtocolError
from .stats import Stats, StatsPages, TierStats

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
    demote_after_ms: int = Field(
        description="a page unused for this long moves one tier down, milliseconds, 0 is never"
    )
    tier_bytes: dict[str, int] = Field(
        description="most that the VM may store in each tier, by name of the tier; 0 is no bound"
    )


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
        self._pages: StatsPages | None = None

    def statistics(self) -> Stats:
        """A snapshot of the statistics.

        The first one asks the worker for its page; those after it only read memory, so they
        succeed even when the worker is busy, stopped or gone (look at the heartbeat then).
        """
        return self._mapped().snapshot()

    def tiers(self) -> list[TierStats]:
        """A snapshot of the statistics of its tiers, in their order; the zero tier is first."""
        return self._mapped().tiers()

    def _mapped(self) -> StatsPages:
        if self._pages is None:
            with self._connection.call(lib.UFFDMM_MSG_QUERY, b"", nr_fds=1) as reply:
                answer = wire.unpack("struct uffdmm_query_reply", reply.payload)
                self._pages = StatsPages(reply.take_fd(), answer.stats_size)
        return self._pages

    def set_policy(
        self,
        *,
        limit_bytes: int | None = None,
        readahead_pages: int | None = None,
        demote_after_ms: int | None = None,
        tier_bytes: Mapping[str, int] | None = None,
    ) -> Policy:
        """Change what is given; return all that is in force afterwards.

        :param limit_bytes: resident guest memory of the whole VM; 0 lifts the limit
        :param readahead_pages: largest read-ahead window, 1 (off) to 64
        :param demote_after_ms: a page unused for this long moves one tier down; 0: never
        :param tier_bytes: most that this VM may store in a tier, by the tier's name; 0: no bound
        :raise NoSuchTierError: the VM has no such tier; nothing was changed
        :raise ManagerError: the worker refuses a value; nothing was changed
        """
        tier_bytes = tier_bytes or {}
        numbers = (limit_bytes, readahead_pages, demote_after_ms)
        if all(number is None for number in numbers) and not tier_bytes:
            raise ValueError(
                "nothing to set: name a limit, a read-ahead window, a time or a tier's bound"
            )
        names = [tier.name for tier in self.tiers()]
        mask, bounds = _tier_bounds(names, tier_bytes)
        fields = 0
        if limit_bytes is not None:
            fields |= lib.UFFDMM_POLICY_LIMIT
        if readahead_pages is not None:
            fields |= lib.UFFDMM_POLICY_READAHEAD
        if demote_after_ms is not None:
            fields |= lib.UFFDMM_POLICY_DEMOTE
        if mask:
            fields |= lib.UFFDMM_POLICY_TIERS
        request = ffi.new(
            "struct uffdmm_policy *",
            {
                "fields": fields,
                "readahead_pages": readahead_pages or 0,
                "limit_bytes": limit_bytes or 0,
                "tier_mask": mask,
                "tier_bytes": bounds,
                "demote_after_ms": demote_after_ms or 0,
            },
        )
        with self._connection.call(lib.UFFDMM_MSG_SET_POLICY, wire.pack(request)) as reply:
            answer = wire.unpack("struct uffdmm_policy", reply.payload)
        return Policy(
            limit_bytes=answer.limit_bytes,
            readahead_pages=answer.readahead_pages,
            demote_after_ms=answer.demote_after_ms,
            tier_bytes={
                name: answer.tier_bytes[index]
                for index, name in enumerate(names)
                if answer.tier_mask >> index & 1
            },
        )

    def close(self) -> None:
        """Give back connection and mapping; closing twice is allowed."""
        if self._pages is not None:
            self._pages.close()
            self._pages = None
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


def _tier_bounds(names: list[str], tier_bytes: Mapping[str, int]) -> tuple[int, list[int]]:
    """The bit mask and the array of a policy request."""
    mask, bounds = 0, [0] * lib.UFFDMM_TIERS_MAX
    # The zero tier, the first one, stores nothing that could be bounded.
    known = names[1:]
    for name, size in tier_bytes.items():
        if name not in known:
            raise NoSuchTierError(
                f"the VM has no tier '{name}' that could be bounded",
                f"it has {', '.join(known)}" if known else None,
            )
        mask |= 1 << names.index(name)
        bounds[names.index(name)] = size
    return mask, bounds


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
