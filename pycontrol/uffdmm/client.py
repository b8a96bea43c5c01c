# SPDX-License-Identifier: GPL-2.0-or-later
"""The manager and its VMs as objects.

:class:`Manager` is only an address: each question opens a connection of its own, so it may be kept
for days and shared between threads.  :class:`VirtualMachine` holds a connection to the worker of
one VM and is closed after use.
"""

import array
import errno
import fcntl
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from types import TracebackType
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from . import wire
from ._native import ffi, lib
from .errors import ManagerError, NoSuchTierError, NoSuchVmError, ProtocolError
from .pagetable import PageTable, Region
from .stats import Stats, StatsPages, TierStats

DEFAULT_SOCKET = "/run/uffdmm/manager.sock"
DEFAULT_TIMEOUT = 5.0

_ENTRY_SIZE = ffi.sizeof("struct uffdmm_list_entry")
# No host has this many; a manager that never ends its list must not hang us.
_VMS_MAX = 65536
# Names of numbers in struct uffdmm_policy, which are ours too, and the bit of each.
_POLICY_FIELDS = {
    "limit_bytes": lib.UFFDMM_POLICY_LIMIT,
    "readahead_pages": lib.UFFDMM_POLICY_READAHEAD,
    "demote_after_ms": lib.UFFDMM_POLICY_DEMOTE,
    "min_bytes": lib.UFFDMM_POLICY_MIN,
    "max_bytes": lib.UFFDMM_POLICY_MAX,
    "shares": lib.UFFDMM_POLICY_SHARES,
    "priority": lib.UFFDMM_POLICY_PRIORITY,
    "opt_out": lib.UFFDMM_POLICY_OPT_OUT,
    "track_permille": lib.UFFDMM_POLICY_TRACK,
}


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
    min_bytes: int = Field(description="least that the control plane leaves the VM")
    max_bytes: int = Field(description="most that the control plane gives the VM, 0 is no bound")
    shares: int = Field(description="weight among the VMs of the host")
    priority: int = Field(description="0 to 100, higher ones are served first")
    opt_out: bool = Field(description="whether the control plane leaves the VM alone")
    track_permille: int = Field(
        description="most of a CPU that looking at accesses may cost, in thousandths, 0 is off"
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
        min_bytes: int | None = None,
        max_bytes: int | None = None,
        shares: int | None = None,
        priority: int | None = None,
        opt_out: bool | None = None,
        track_permille: int | None = None,
    ) -> Policy:
        """Change what is given; return all that is in force afterwards.

        :param limit_bytes: resident guest memory of the whole VM; 0 lifts the limit
        :param readahead_pages: largest read-ahead window, 1 (off) to 64
        :param demote_after_ms: a page unused for this long moves one tier down; 0: never
        :param tier_bytes: most that this VM may store in a tier, by the tier's name; 0: no bound
        :param min_bytes: least that the control plane leaves the VM
        :param max_bytes: most that the control plane gives it; 0: no bound
        :param shares: weight among the VMs of the host, 1 to 10000
        :param priority: 0 to 100, higher ones are served first
        :param opt_out: whether the control plane leaves the VM alone
        :param track_permille: thousandths of a CPU that looking at accesses may cost; 0: off
        :raise NoSuchTierError: the VM has no such tier; nothing was changed
        :raise ManagerError: the worker refuses a value; nothing was changed
        """
        numbers = {
            "limit_bytes": limit_bytes,
            "readahead_pages": readahead_pages,
            "demote_after_ms": demote_after_ms,
            "min_bytes": min_bytes,
            "max_bytes": max_bytes,
            "shares": shares,
            "priority": priority,
            "opt_out": opt_out,
            "track_permille": track_permille,
        }
        given = {name: int(value) for name, value in numbers.items() if value is not None}
        if not given and not tier_bytes:
            raise ValueError(
                "nothing to set: name a limit, a bound, shares or another field of the policy"
            )
        names = [tier.name for tier in self.tiers()]
        mask, bounds = _tier_bounds(names, tier_bytes or {})
        fields = lib.UFFDMM_POLICY_TIERS if mask else 0
        for name in given:
            fields |= _POLICY_FIELDS[name]
        request = ffi.new(
            "struct uffdmm_policy *",
            {"fields": fields, "tier_mask": mask, "tier_bytes": bounds, **given},
        )
        with self._connection.call(lib.UFFDMM_MSG_SET_POLICY, wire.pack(request)) as reply:
            answer = wire.unpack("struct uffdmm_policy", reply.payload)
        return Policy(
            **{name: getattr(answer, name) for name in _POLICY_FIELDS if name != "opt_out"},
            opt_out=bool(answer.opt_out),
            tier_bytes={
                name: answer.tier_bytes[index]
                for index, name in enumerate(names)
                if answer.tier_mask >> index & 1
            },
        )

    def regions(self) -> list[Region]:
        """The regions of the VM, each with its page-state table mapped; close them after use.

        :raise ManagerError: the worker does not know the request
        """
        found: list[Region] = []
        index = 0
        try:
            # A worker that never ends its list must not hang us.
            for _ in range(lib.UFFDMM_REGIONS_MAX):
                request = ffi.new("struct uffdmm_regions *", {"index": index})
                try:
                    reply = self._connection.call(
                        lib.UFFDMM_MSG_REGIONS, wire.pack(request), nr_fds=1
                    )
                except ManagerError as error:
                    if error.code == errno.ENOENT:
                        break
                    raise
                with reply:
                    answer = wire.unpack("struct uffdmm_regions_reply", reply.payload)
                    found.append(
                        Region(
                            region_id=answer.region_id,
                            name=wire.text_of(answer.name),
                            size=answer.size,
                            page_size=answer.page_size,
                            table=PageTable(reply.take_fd(), answer.table_size),
                        )
                    )
                if answer.next <= index:
                    break
                index = answer.next
        except BaseException:
            for region in found:
                region.close()
            raise
        return found

    def evict(self, size: int) -> None:
        """Ask for ``size`` bytes less of resident memory; done in the background.

        0 ends an earlier one.  It is a wish: faults have precedence, and it ends when nothing
        more can go.
        """
        request = ffi.new("struct uffdmm_move *", {"bytes": size})
        self._connection.call(lib.UFFDMM_MSG_EVICT, wire.pack(request)).close()

    def prefetch(
        self, size: int, pages: Sequence[int] | None = None, *, region_id: int = 0
    ) -> None:
        """Ask for at most ``size`` bytes of what is stored; done in the background.

        Never more than fits below the limit.  0 ends an earlier one.

        :param pages: page numbers of the region in the order wanted; default: those that were
            used last before they went out
        :raise ManagerError: no such region, or too many pages
        """
        if pages is None:
            request = ffi.new("struct uffdmm_move *", {"bytes": size})
            self._connection.call(lib.UFFDMM_MSG_PREFETCH, wire.pack(request)).close()
            return
        request = ffi.new(
            "struct uffdmm_move *",
            {"bytes": size, "region_id": region_id, "nr_pages": len(pages)},
        )
        fd = sealed_memfd(array.array("Q", pages).tobytes())
        try:
            self._connection.call(
                lib.UFFDMM_MSG_PREFETCH, wire.pack(request), send_fds=[fd]
            ).close()
        finally:
            os.close(fd)

    def request(
        self,
        msg_type: int,
        payload: bytes,
        nr_fds: int = 0,
        *,
        send_fds: Sequence[int] = (),
        timeout: float | None = None,
    ) -> wire.Reply:
        """One request of the wire protocol, for parts of this package that have their own.

        :param nr_fds: descriptors that a good reply carries
        :param send_fds: descriptors that go with it; they stay the caller's
        :param timeout: seconds that this one may take, the connection's by default
        :raise ManagerError: the worker refuses
        """
        return self._connection.call(msg_type, payload, nr_fds, send_fds=send_fds, timeout=timeout)

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


def sealed_memfd(content: bytes) -> int:
    """A memfd that nobody can change any more; the worker takes no other."""
    fd = os.memfd_create("uffdmm-pages", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(content)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(fd)
        raise
    return fd


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
