# SPDX-License-Identifier: GPL-2.0-or-later
"""Sizes as people write them: ``512M``, ``1.5GiB``, ``40%`` of something; and back.

K, M, G and T are powers of 1024, as everywhere in QEMU.  ``MB`` and its like are refused: half of
the world means 1000 by them, and a limit that is 5 % off is found late.
"""

import re
from decimal import Decimal

from .errors import SizeError

_UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_PATTERN = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?)\s*(?P<unit>[a-z]*)")
_PERCENT = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?)\s*%")
# The wire carries 64 bits; the kernel's file sizes end one bit earlier.
_LARGEST = (1 << 63) - 1
_REMEDY = "write bytes or a binary unit, such as 536870912, 512M or 512MiB"


def parse_size(text: str) -> int:
    """Bytes of a size such as ``4096``, ``512M``, ``1.5G`` or ``1GiB``.

    :raise SizeError: unknown or ambiguous unit, no number, or too large
    """
    match = _PATTERN.fullmatch(text.strip().lower())
    if match is None:
        raise SizeError(f"size '{text}' is not a number with a unit", _REMEDY)
    unit = match["unit"]
    if unit == "b":
        unit = ""
    elif unit.endswith("ib"):
        unit = unit[:-2] or "?"
    elif len(unit) == 2 and unit.endswith("b") and unit[0] in _UNITS:
        raise SizeError(
            f"size '{text}': the unit is ambiguous (1000 or 1024)",
            f"write {match['number']}{unit[0].upper()} or {match['number']}{unit[0].upper()}iB",
        )
    if unit not in _UNITS:
        raise SizeError(f"size '{text}' has an unknown unit", _REMEDY)
    size = int(Decimal(match["number"]) * (1 << _UNITS[unit]))
    if size > _LARGEST:
        raise SizeError(f"size '{text}' is larger than any memory", _REMEDY)
    return size


def parse_size_or_share(text: str, whole: int) -> int:
    """As :func:`parse_size`, or a percentage of ``whole`` bytes (``50%``)."""
    match = _PERCENT.fullmatch(text.strip())
    if match is None:
        return parse_size(text)
    share = Decimal(match["number"])
    if share > 100:
        raise SizeError(f"size '{text}' is more than the whole", "write 0% to 100%")
    return int(whole * share / 100)


def is_share(text: str) -> bool:
    """Whether the text is a percentage, which needs a whole to be a size."""
    return text.strip().endswith("%")


def exact_size(size: int) -> str:
    """The size in the largest unit that leaves a whole number; the manager reads it, too."""
    for unit in ("T", "G", "M", "K"):
        if size and size % (1 << _UNITS[unit.lower()]) == 0:
            return f"{size >> _UNITS[unit.lower()]}{unit}"
    return str(size)


def format_size(size: int) -> str:
    """A size for people: three significant digits and a binary unit."""
    if size < 1024:
        return f"{size} B"
    value = float(size)
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        value /= 1024
        # 1023.6 would be shown as 1024 of this unit: go on to the next.
        if value < 1023.5 or unit == "PiB":
            break
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {unit}"
