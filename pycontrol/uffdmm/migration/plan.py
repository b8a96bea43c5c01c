# SPDX-License-Identifier: GPL-2.0-or-later
"""What a migration would carry, by the page-state tables as they are now."""

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from .._native import lib
from ..pagetable import Region
from ..stats import TierStats, TierType

# An entry of the table and what a location takes, before compression.
_LOCATION = 16


class Forecast(BaseModel):
    """Pages of a VM by how they would go; all are counted in bytes of guest memory."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    by_location_bytes: int = Field(description="memory of which only the location would go")
    zero_bytes: int = Field(description="part of it that is empty, zero or one repeated word")
    bypass_bytes: int = Field(
        description="swapped memory whose content would go, read from the store past the guest"
    )
    content_bytes: int = Field(description="resident memory, whose content would go")
    location_bytes: int = Field(description="most that the locations would take on the wire")


def shared_tier(tiers: list[TierStats], name: str | None = None) -> int | None:
    """Index of the tier whose pages can go by location: the named one, else the fullest."""
    found = [
        index
        for index, tier in enumerate(tiers)
        if index and tier.shared and tier.type in (TierType.FILE, TierType.NBD)
    ]
    if name is not None:
        found = [index for index in found if tiers[index].name == name]
    return max(found, key=lambda index: tiers[index].stored_pages, default=None)


def forecast(regions: list[Region], tier: int | None) -> Forecast:
    """Count the pages of all regions.

    :param tier: index of the shared tier, None if there is none
    """
    located = zero = bypass = content = pages = 0
    for region in regions:
        entries = region.table.entries()
        state = entries & np.uint64(lib.UFFDMM_ENTRY_STATE_MASK)
        where = (entries >> np.uint64(lib.UFFDMM_ENTRY_TIER_SHIFT)) & np.uint64(
            lib.UFFDMM_ENTRY_TIER_MASK
        )
        stored = state == lib.UFFDMM_PAGE_STORED
        nothing = (state == lib.UFFDMM_PAGE_EMPTY) | (stored & (where == 0))
        there = stored & (where == (tier or 255))
        size = region.page_size
        zero += int(np.count_nonzero(nothing)) * size
        located += int(np.count_nonzero(nothing | there)) * size
        pages += int(np.count_nonzero(nothing | there))
        bypass += int(np.count_nonzero(stored & ~nothing & ~there)) * size
        content += int(np.count_nonzero(~stored & ~nothing)) * size
    return Forecast(
        by_location_bytes=located,
        zero_bytes=zero,
        bypass_bytes=bypass,
        content_bytes=content,
        location_bytes=pages * _LOCATION,
    )
