# SPDX-License-Identifier: GPL-2.0-or-later
"""Sharing out a number of bytes: by weight, each part between its bounds."""

from collections.abc import Mapping
from dataclasses import dataclass

PAGE = 4096
_STEPS = 100  # of the bisection: more than a double has bits


@dataclass(frozen=True, slots=True)
class Claim:
    """Bounds in bytes and weight of one part."""

    least: int
    most: int
    weight: float


def share_out(budget: int, claims: Mapping[str, Claim]) -> dict[str, int]:
    """Parts in whole pages, each ``clamp(level * weight, least, most)`` for one common level.

    The sum is at most the budget, and less only by rounding or when everybody has the most.

    :raise ValueError: the least of all is more than the budget, or bounds or weights are no such
    """
    for name, claim in claims.items():
        if not 0 <= claim.least <= claim.most or not claim.weight > 0:
            raise ValueError(f"'{name}' claims {claim}")
    needed = sum(claim.least for claim in claims.values())
    if needed > budget:
        raise ValueError(f"{needed} bytes are claimed at least, the budget is {budget}")

    def parts(level: float) -> dict[str, int]:
        return {
            name: max(claim.least, int(min(claim.most, level * claim.weight)) & -PAGE)
            for name, claim in claims.items()
        }

    high = max((claim.most / claim.weight for claim in claims.values()), default=0.0) + 1
    if sum(parts(high).values()) <= budget:
        return parts(high)
    low = 0.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if sum(parts(middle).values()) <= budget:
            low = middle
        else:
            high = middle
    return parts(low)
