# SPDX-License-Identifier: GPL-2.0-or-later
"""Locations of pages: arrays of them, the set S of a session, and what changed in it.

An array of locations has the dtype LOCATION, which is ``struct uffdmm_mig_location`` of
``native/include/uffdmm/protocol.h``: page number, page-state entry, record, age.  An entry of 0
withdraws a page that was sent before.
"""

from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

LOCATION: Final = np.dtype(
    [("pfn", "<u8"), ("entry", "<u8"), ("record", "<u8"), ("age", "u1"), ("pad", "u1", (7,))]
)
"""One location, 32 bytes."""

SET_PAGE: Final = np.dtype([("entry", "<u8"), ("record", "<u8")])
"""One element of S, 16 bytes."""

Locations: TypeAlias = NDArray[np.void]
"""Shape (n,), dtype LOCATION."""

SetPages: TypeAlias = NDArray[np.void]
"""Shape (pages of the region,), dtype SET_PAGE."""

_STATE_MASK: Final = 0xF
_EMPTY: Final = 1
_STORED: Final = 6


def changes(current: SetPages, sent: SetPages, ages: NDArray[np.uint8]) -> Locations:
    """What has to be sent so that the other side knows ``current``; updates ``sent``.

    ``current`` may be written by another process meanwhile: an element is copied once, and what was
    copied is what counts as sent, so that a torn one differs again at the next call.

    :param current: S now
    :param sent: S as the other side knows it, same shape; becomes what was copied
    :param ages: one byte a page
    :return: locations of the pages that differ, in order of their numbers
    """
    if not current.shape == sent.shape == ages.shape:
        raise ValueError(f"shapes {current.shape}, {sent.shape} and {ages.shape} differ")
    copy = current.copy()
    differs = (copy["entry"] != sent["entry"]) | (
        (copy["record"] != sent["record"]) & (copy["entry"] != 0)
    )
    pfns = np.flatnonzero(differs)
    result = np.zeros(len(pfns), LOCATION)
    result["pfn"] = pfns
    result["entry"] = copy["entry"][pfns]
    result["record"] = np.where(result["entry"] != 0, copy["record"][pfns], 0)
    result["age"] = np.where(result["entry"] != 0, ages[pfns], 0)
    sent[pfns] = copy[pfns]
    return result


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of splitmix64, element by element."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def digest(pages: SetPages) -> tuple[int, int]:
    """Number of pages in S and digest of S, as protocol.h defines it."""
    pfns = np.flatnonzero(pages["entry"]).astype(np.uint64)
    entry = pages["entry"][pfns]
    tier = (entry >> np.uint64(8)) & np.uint64(0xF)
    value = np.where(tier == 0, np.uint64(0), entry >> np.uint64(12))
    value = np.where((entry & np.uint64(_STATE_MASK)) == _EMPTY, ~np.uint64(0), value)
    mixed = _mix(_mix(_mix(pfns + np.uint64(1)) ^ value) ^ pages["record"][pfns])
    return len(pfns), int(np.add.reduce(mixed, dtype=np.uint64)) if len(pfns) else 0
