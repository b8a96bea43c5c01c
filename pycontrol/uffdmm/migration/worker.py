# SPDX-License-Identifier: GPL-2.0-or-later
"""What a worker is asked on behalf of a migration: the MIG_* messages of ``protocol.h``."""

import errno
import fcntl
import mmap
import os
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from .. import wire
from .._native import ffi, lib
from ..client import VirtualMachine, sealed_memfd
from ..errors import ManagerError, ProtocolError
from .locations import SET_PAGE, Locations, SetPages

if TYPE_CHECKING:
    from .._native import CData

# Draining writes takes up to 20 s, and telling whether late ones may still land asks the server.
_RELEASE_SECONDS = 60.0
_TAKE_SECONDS = 60.0
# Records go to a store that may be away for a while; the migration waits for it.
_STORE_SECONDS = 60.0
_SET_HEADER = "struct uffdmm_set_header"


class Stage(IntEnum):
    """How far the worker of a VM is; of the source below 16, of the destination above."""

    IDLE = lib.UFFDMM_MIG_IDLE
    ARMED = lib.UFFDMM_MIG_ARMED
    RUNNING = lib.UFFDMM_MIG_RUNNING
    ALL_SENT = lib.UFFDMM_MIG_ALL_SENT
    RELEASED = lib.UFFDMM_MIG_RELEASED
    PREPARED = lib.UFFDMM_MIG_PREPARED
    INSTALLED = lib.UFFDMM_MIG_INSTALLED
    TAKEN = lib.UFFDMM_MIG_TAKEN


@dataclass(frozen=True, slots=True)
class Status:
    """An answer to MIG_STATUS."""

    session: int
    stage: Stage
    tier: int  # index, 0 is none
    located: int  # pages
    bypass_pages: int
    swap_ins: int
    frozen_slots: int
    epoch: int
    volume_uuid: bytes


class ExportedSet:
    """S of one region of the source, and the ages of its pages, both mapped read-only."""

    def __init__(self, reply: "CData", fds: list[int]) -> None:
        self.region_id = int(reply.region_id)
        self.name = wire.text_of(reply.name)
        self._maps: list[mmap.mmap] = []
        try:
            for fd in fds:
                size = os.fstat(fd).st_size
                self._maps.append(mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ))
        finally:
            for fd in fds:
                os.close(fd)
        try:
            self._check(reply)
        except BaseException:
            self.close()
            raise

    def _check(self, reply: "CData") -> None:
        header = ffi.new(f"{_SET_HEADER} *")
        ffi.memmove(header, self._maps[0][: ffi.sizeof(_SET_HEADER)], ffi.sizeof(_SET_HEADER))
        pages = int(header.nr_pages)
        table = ffi.new("struct uffdmm_table_header *")
        size = ffi.sizeof("struct uffdmm_table_header")
        ffi.memmove(table, self._maps[1][:size], size)
        offset, ages = int(header.pages_offset), int(table.ages_offset)
        if (
            header.magic != lib.UFFDMM_SET_MAGIC
            or header.version != lib.UFFDMM_SET_VERSION
            or pages != reply.size // reply.page_size
            or pages != table.nr_pages
            or offset + pages * SET_PAGE.itemsize > len(self._maps[0])
            or ages + pages > len(self._maps[1])
        ):
            raise ProtocolError(f"the set of pages of region '{self.name}' is none")
        self.session = int(header.session)
        self.pages: SetPages = np.frombuffer(self._maps[0], SET_PAGE, pages, offset)
        self.ages: NDArray[np.uint8] = np.frombuffer(self._maps[1], np.uint8, pages, ages)
        # One aligned word, which QEMU adds to after it has written the element.
        self._changes = np.frombuffer(
            self._maps[0], "<u8", 1, ffi.offsetof("struct uffdmm_set_header", "changes")
        )

    @property
    def changes(self) -> int:
        """Elements written so far; to be read before the elements are."""
        return int(self._changes[0])

    def close(self) -> None:
        """Unmap both; closing twice is allowed."""
        for name in ("pages", "ages", "_changes"):
            if hasattr(self, name):
                delattr(self, name)
        for mapped in self._maps:
            mapped.close()
        self._maps = []


class MigrationLink:
    """The worker of one VM, as a migration talks to it.  Owns the connection."""

    def __init__(self, vm: VirtualMachine) -> None:
        self.vm = vm

    def status(self) -> Status:
        """Where this side is."""
        with self.vm.request(lib.UFFDMM_MSG_MIG_STATUS, b"") as reply:
            raw = wire.unpack("struct uffdmm_mig_status_reply", reply.payload)
        try:
            stage = Stage(raw.stage)
        except ValueError:
            raise ProtocolError(f"the worker is at the unknown stage {raw.stage}") from None
        return Status(
            session=raw.session,
            stage=stage,
            tier=raw.tier,
            located=raw.located,
            bypass_pages=raw.bypass_pages,
            swap_ins=raw.swap_ins,
            frozen_slots=raw.frozen_slots,
            epoch=raw.epoch,
            volume_uuid=bytes(raw.volume_uuid),
        )

    # ---- source

    def arm(self, session: int, tier: int) -> None:
        """Let the next migration carry the locations of what is in this tier; session 0 disarms."""
        self._send(
            lib.UFFDMM_MSG_MIG_ARM,
            ffi.new("struct uffdmm_mig_arm *", {"session": session, "tier": tier}),
        )

    def failed(self, session: int) -> None:
        """The guest stays here.

        :raise ManagerError: EBUSY when that is no longer certain
        """
        self._send(
            lib.UFFDMM_MSG_MIG_END,
            ffi.new(
                "struct uffdmm_mig_end *", {"session": session, "outcome": lib.UFFDMM_MIG_FAILED}
            ),
        )

    def export(self) -> list[ExportedSet]:
        """S of each region; none before QEMU has begun."""
        found: list[ExportedSet] = []
        index = 0
        try:
            for _ in range(lib.UFFDMM_REGIONS_MAX):
                request = ffi.new("struct uffdmm_regions *", {"index": index})
                reply = self.vm.request(lib.UFFDMM_MSG_MIG_EXPORT, wire.pack(request), nr_fds=2)
                with reply:
                    answer = wire.unpack("struct uffdmm_regions_reply", reply.payload)
                    found.append(ExportedSet(answer, [reply.take_fd(), reply.take_fd()]))
                if answer.next <= index:
                    break
                index = answer.next
        except ManagerError as error:
            if error.code not in (errno.ENOENT, errno.EAGAIN):
                _close(found)
                raise
            if error.code == errno.EAGAIN:
                # One of them is not there yet: all or none.
                _close(found)
                return []
        except BaseException:
            _close(found)
            raise
        return found

    def acknowledge(self, session: int, region_id: int, changes: int) -> None:
        """The destination has S as it was when so many changes had been made."""
        self._send(
            lib.UFFDMM_MSG_MIG_ACK,
            ffi.new(
                "struct uffdmm_mig_ack *",
                {"session": session, "region_id": region_id, "changes": changes},
            ),
        )

    def takes_records(self) -> bool:
        """Whether this worker knows :meth:`deposit` and :meth:`collect`."""
        return bool(self.vm.statistics().features & lib.UFFDMM_FEATURE_DEPOSITS)

    def deposit(self, session: int, records: NDArray[np.uint64]) -> int:
        """Write records to slots of the shared volume that are no page's; the first of them.

        :param records: shape (n,), n from 1 to UFFDMM_MIG_RECORDS_MAX
        :raise ManagerError: ENOSPC when there are no such slots
        """
        request = ffi.new("struct uffdmm_mig_deposit *", {"session": session, "nr": len(records)})
        fd = sealed_memfd(records.astype("<u8").tobytes())
        try:
            with self.vm.request(
                lib.UFFDMM_MSG_MIG_DEPOSIT,
                wire.pack(request),
                send_fds=[fd],
                timeout=_STORE_SECONDS,
            ) as reply:
                answer = wire.unpack("struct uffdmm_mig_deposit_reply", reply.payload)
        finally:
            os.close(fd)
        return int(answer.slot)

    def release(self, session: int, destination: str) -> int:
        """Give the volume to the destination; the epoch that it has to take."""
        name = destination.encode()[: lib.UFFDMM_NAME_MAX - 1]
        request = ffi.new("struct uffdmm_mig_release *", {"session": session, "destination": name})
        with self.vm.request(
            lib.UFFDMM_MSG_MIG_RELEASE, wire.pack(request), timeout=_RELEASE_SECONDS
        ) as reply:
            return int(wire.unpack("struct uffdmm_mig_release_reply", reply.payload).epoch)

    # ---- destination

    def prepare(self, session: int, tier: int, epoch: int, volume: bytes, name: str) -> None:
        """Locations of this session will come, in the source's volume of this tier."""
        request = ffi.new(
            "struct uffdmm_mig_prepare *",
            {
                "session": session,
                "tier": tier,
                "epoch": epoch,
                "volume_uuid": volume,
                "volume_name": wire.encode_vm_name(name),
            },
        )
        self._send(lib.UFFDMM_MSG_MIG_PREPARE, request, timeout=_TAKE_SECONDS)

    def take_in(self, session: int, region: str, locations: Locations) -> None:
        """Locations of one region; all of them are taken or none."""
        request = ffi.new(
            "struct uffdmm_mig_import *",
            {"session": session, "nr": len(locations), "region": region.encode()},
        )
        fd = sealed_memfd(locations.tobytes())
        try:
            self.vm.request(lib.UFFDMM_MSG_MIG_IMPORT, wire.pack(request), send_fds=[fd]).close()
        finally:
            os.close(fd)

    def collect(self, session: int, slot: int, count: int) -> NDArray[np.uint64]:
        """Records that the source has left in the volume, shape (count,); not checked.

        :raise ManagerError: they cannot be read
        """
        request = ffi.new(
            "struct uffdmm_mig_collect *", {"session": session, "slot": slot, "nr": count}
        )
        fd = os.memfd_create("uffdmm-records", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, 8 * count)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            self.vm.request(
                lib.UFFDMM_MSG_MIG_COLLECT,
                wire.pack(request),
                send_fds=[fd],
                timeout=_STORE_SECONDS,
            ).close()
            data = os.pread(fd, 8 * count, 0)
        finally:
            os.close(fd)
        return np.frombuffer(data, "<u8").astype(np.uint64)

    def take(self, session: int, epoch: int) -> None:
        """The volume is this side's from now on.

        :raise ManagerError: it was not released in that epoch, or nothing is installed
        """
        self._send(
            lib.UFFDMM_MSG_MIG_TAKE,
            ffi.new("struct uffdmm_mig_take *", {"session": session, "epoch": epoch}),
            timeout=_TAKE_SECONDS,
        )

    def _send(self, msg_type: int, request: "CData", timeout: float | None = None) -> None:
        self.vm.request(msg_type, wire.pack(request), timeout=timeout).close()

    def close(self) -> None:
        """Hang up."""
        self.vm.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_ending: object) -> None:
        self.close()


def _close(sets: list[ExportedSet]) -> None:
    for exported in sets:
        exported.close()


__all__ = ["ExportedSet", "MigrationLink", "Stage", "Status"]
