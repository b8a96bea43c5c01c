# SPDX-License-Identifier: GPL-2.0-or-later
"""Medians and ranges of what was measured several times."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """A median with the least and the largest value beside it."""

    median: float
    least: float
    most: float
    count: int

    def as_json(self) -> dict[str, float]:
        """As documents keep it: four significant digits say all there is."""
        return {
            "median": _short(self.median),
            "min": _short(self.least),
            "max": _short(self.most),
            "count": self.count,
        }

    def text(self, scale: float = 1, digits: int = 1) -> str:
        """``12.3 (11.9-14.0)``, each value multiplied by ``scale``."""
        low, middle, high = (
            f"{value * scale:,.{digits}f}" for value in (self.least, self.median, self.most)
        )
        return middle if self.count == 1 else f"{middle} ({low}-{high})"


def spread(values: Iterable[float]) -> Spread | None:
    """The spread of the values; None when there are none."""
    found = list(values)
    if not found:
        return None
    return Spread(statistics.median(found), min(found), max(found), len(found))


def ratios(ours: Iterable[float], theirs: Iterable[float]) -> Spread | None:
    """The spread of the quotients of values that were measured in turns."""
    pairs = list(zip(ours, theirs, strict=False))
    return spread(mine / other for mine, other in pairs if other)


def _short(value: float) -> float:
    return float(f"{value:.4g}")
