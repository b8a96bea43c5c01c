# SPDX-License-Identifier: GPL-2.0-or-later
"""The page-state table of a region, read-only: states and ages of all pages as numpy views.

The views look at the memory that worker and QEMU write, so nothing is copied and two entries need
not belong to the same instant.  What needs a picture of one instant copies first.
"""

import mmap
import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ._native import ffi, lib
from .errors import ProtocolError, VersionError

_HEADER = "struct uffdmm_table_header"
# Ages above are marks of the worker: pages that arrived since the last look.
AGE_MAX = 250
# More pages than this are sampled at a stride: a policy wants shares, not every page.
_SAMPLE_PAGES = 1 << 18


class PageTable:
    """A read-only mapping of a table memfd.

    :param fd: the memfd; closed in any case, the mapping outlives it
    :param size: bytes to map, as the worker announced
    :raise ProtocolError: the memfd does not hold a table
    """

    def __init__(self, fd: int, size: int) -> None:
        try:
            real = os.fstat(fd).st_size
            if not ffi.sizeof(_HEADER) <= size <= real:
                raise ProtocolError(
                    f"the page-state table has {real} bytes, the worker announced {size}"
                )
            self._map = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ)
        finally:
            os.close(fd)
        try:
            self.nr_pages = self._check(size)
        except ProtocolError:
            self.close()
            raise

    def _check(self, size: int) -> int:
        header = ffi.new(f"{_HEADER} *")
        ffi.memmove(header, self._map[: ffi.sizeof(_HEADER)], ffi.sizeof(_HEADER))
        if header.magic != lib.UFFDMM_TABLE_MAGIC:
            raise ProtocolError(f"the page-state table begins with 0x{header.magic:08x}")
        if header.version != lib.UFFDMM_TABLE_VERSION:
            raise VersionError(
                f"the page-state table has version {header.version}, this program reads"
                f" {lib.UFFDMM_TABLE_VERSION}",
                "install the manager and the Python package from the same release",
            )
        pages = int(header.nr_pages)
        self._entries, self._ages = int(header.entries_offset), int(header.ages_offset)
        if (
            pages == 0
            or self._entries % 8
            or self._entries + 8 * pages > size
            or self._ages + pages > size
        ):
            raise ProtocolError(f"the page-state table of {size} bytes has no room for its arrays")
        return pages

    def volume_id(self, tier: int) -> bytes:
        """Which volume the worker has for a tier, zeros when it has none yet."""
        size = 16
        start = ffi.offsetof(_HEADER, "volume_ids") + tier * size
        return bytes(self._map[start : start + size])

    def entries(self) -> NDArray[np.uint64]:
        """All entries, as ``enum uffdmm_entry_layout`` of ``protocol.h`` tells; a copy."""
        return np.frombuffer(self._map, "<u8", self.nr_pages, self._entries).copy()

    def states(self, stride: int = 1) -> NDArray[np.uint8]:
        """The state (``UFFDMM_PAGE_*``) of every ``stride``-th page; a copy."""
        entries = np.frombuffer(self._map, "<u8", self.nr_pages, self._entries)[::stride]
        return (entries & lib.UFFDMM_ENTRY_STATE_MASK).astype(np.uint8)

    def ages(self, stride: int = 1) -> NDArray[np.uint8]:
        """The age of every ``stride``-th page: looks since it was in use; a copy."""
        return np.frombuffer(self._map, np.uint8, self.nr_pages, self._ages)[::stride].copy()

    def age_histogram(self) -> NDArray[np.float64]:
        """Resident pages by age, 256 numbers; of a large table estimated from a sample."""
        stride = -(-self.nr_pages // _SAMPLE_PAGES)
        states, ages = self.states(stride), self.ages(stride)
        resident = (states == lib.UFFDMM_PAGE_RESIDENT) | (states == lib.UFFDMM_PAGE_CLEAN)
        return np.bincount(ages[resident], minlength=256).astype(np.float64) * stride

    def close(self) -> None:
        """Unmap the table; closing twice is allowed."""
        self._map.close()


@dataclass(frozen=True, slots=True)
class Region:
    """One memory region of a VM."""

    region_id: int
    name: str
    size: int  # bytes
    page_size: int  # bytes
    table: PageTable

    def close(self) -> None:
        """Unmap its table."""
        self.table.close()
