# SPDX-License-Identifier: GPL-2.0-or-later
"""Times as people write them: ``100us``, ``1.5s``, ``10m``; and back.

A number without a unit is refused, since it means seconds to some and milliseconds to others.
Nanoseconds in whole numbers, as in the manager: they go to its command line unchanged.
"""

import re
from decimal import Decimal

from .errors import DurationError

_UNITS = {
    "ns": 1,
    "us": 1000,
    "ms": 1000**2,
    "s": 1000**3,
    "m": 60 * 1000**3,
    "h": 3600 * 1000**3,
}
_PATTERN = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?)\s*(?P<unit>[a-z]*)")
# Such times are added to clocks of 63 bits.
_LONGEST = (1 << 63) - 1
_REMEDY = "write a number with ns, us, ms, s, m or h, such as 100us, 30s or 10m"


def parse_duration(text: str) -> int:
    """Nanoseconds of a time such as ``100us``, ``1.5s`` or ``10m``; a bare ``0`` is one, too.

    :raise DurationError: no number, no or an unknown unit, too long, or finer than a nanosecond
    """
    match = _PATTERN.fullmatch(text.strip())
    if match is None:
        raise DurationError(f"time '{text}' is not a number with a unit", _REMEDY)
    number = Decimal(match["number"])
    if not match["unit"] and not number:
        return 0
    if match["unit"] not in _UNITS:
        what = "an unknown unit" if match["unit"] else "no unit"
        raise DurationError(f"time '{text}' has {what}", _REMEDY)
    exact = number * _UNITS[match["unit"]]
    if exact > _LONGEST:
        raise DurationError(f"time '{text}' is longer than any wait", _REMEDY)
    if exact != int(exact):
        raise DurationError(f"time '{text}' is finer than a nanosecond", _REMEDY)
    return int(exact)


def parse_demote_after(text: str) -> int:
    """As :func:`parse_duration` in whole milliseconds, or ``never``, which is 0."""
    if text.strip().lower() == "never":
        return 0
    duration = parse_duration(text)
    if duration % _UNITS["ms"]:
        raise DurationError(
            f"time '{text}' is finer than a millisecond", "write whole milliseconds, or never"
        )
    return duration


def exact_duration(nanoseconds: int) -> str:
    """The duration in the largest unit that leaves a whole number; ``parse_duration`` reads it."""
    for unit, factor in sorted(_UNITS.items(), key=lambda item: -item[1]):
        if nanoseconds and nanoseconds % factor == 0:
            return f"{nanoseconds // factor}{unit}"
    return "0s"
