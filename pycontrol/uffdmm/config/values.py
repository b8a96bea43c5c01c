# SPDX-License-Identifier: GPL-2.0-or-later
"""Types of single values.  Each reads what a person writes and keeps one form of it."""

import errno
import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from .._native import lib
from ..addresses import parse_address
from ..durations import exact_duration, parse_demote_after, parse_duration
from ..errors import UffdmmError
from ..sizes import exact_size, is_share, parse_size

PAGE = 4096
# Without the NUL that ends it in the manager.
NAME_MAX = lib.UFFDMM_NAME_MAX - 1


class ValueRefusedError(UffdmmError, ValueError):
    """A value of the right type that makes no sense."""


def _size(value: object) -> int:
    if isinstance(value, str):
        return parse_size(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return parse_size(str(value))
    raise ValueRefusedError("a size is text or a number of bytes", 'write "512M" or 536870912')


def _of_a_page(size: int) -> int:
    if size < PAGE:
        raise ValueRefusedError(
            "less than one page", "name a larger size, or leave the key out for what RAM needs"
        )
    return size


def _limit(value: object) -> str:
    """``none``, ``N%`` or an exact size."""
    if isinstance(value, str) and value.strip().lower() == "none":
        return "none"
    if isinstance(value, str) and is_share(value):
        match = re.fullmatch(r"\s*([0-9]{1,3})\s*%\s*", value)
        if match is None or not 1 <= int(match[1]) <= 100:
            raise ValueRefusedError("not a whole percentage of 1% to 100%", 'write "50%"')
        return f"{int(match[1])}%"
    size = _size(value)
    if size < PAGE:
        raise ValueRefusedError("less than one page", 'write "none" for no limit')
    return exact_size(size - size % PAGE)


def _duration(value: object) -> int:
    if isinstance(value, str):
        return parse_duration(value)
    raise ValueRefusedError("a time is text with a unit", 'write "100us" or "30s"')


def _demote_after(value: object) -> int:
    if isinstance(value, str):
        return parse_demote_after(value)
    raise ValueRefusedError("a time is text with a unit", 'write "30s" or "never"')


def _spin(value: object) -> int:
    duration = _duration(value)
    if duration % 1000 or duration > 10_000_000:
        raise ValueRefusedError(
            "not whole microseconds of at most 10 ms", 'write "50us", or "0" to switch it off'
        )
    return duration


def _path(value: str) -> str:
    # The manager may run anywhere; its own buffers end at 1024 bytes.
    if not value.startswith("/"):
        raise ValueRefusedError("not an absolute path", "begin it with a slash")
    if len(value.encode()) > 1023 or "\0" in value:
        raise ValueRefusedError("longer than 1023 bytes, or with a NUL inside", "use another one")
    return value


def _one_or_more(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _trigger(value: str) -> str:
    if len(_path(value).encode()) > 255:
        raise ValueRefusedError("longer than 255 bytes", "use another one")
    return value


def _socket(value: str) -> str:
    if len(_path(value).encode()) > 107:
        raise ValueRefusedError("longer than 107 bytes, the most of a socket", "use another one")
    return value


def _tier_name(value: str) -> str:
    if len(value) > NAME_MAX or not re.fullmatch(r"[A-Za-z0-9_-]+", value):
        raise ValueRefusedError("not a name of a tier", f"use 1 to {NAME_MAX} of A-Z a-z 0-9 - _")
    if value == "zero":
        raise ValueRefusedError("the tier 'zero' is always there", "choose another name")
    return value


def _vm_name(value: str) -> str:
    if len(value) > NAME_MAX or not re.fullmatch(r"[A-Za-z0-9_+:@-][A-Za-z0-9_.+:@-]*", value):
        raise ValueRefusedError(
            "not a name of a VM",
            f"use 1 to {NAME_MAX} of A-Z a-z 0-9 - _ . + : @, the first one not a dot",
        )
    return value


_URI = re.compile(r"nbds?(\+unix)?://[!-~]*")  # no blanks, ASCII


def _uri(value: str) -> str:
    if not _URI.fullmatch(value) or len(value) > 1023:
        raise ValueRefusedError(
            "not an NBD URI", 'write "nbds://server/{vm}" or "nbd+unix:///{vm}?socket=PATH"'
        )
    return value


# What a store can answer; native/src/tier_options.c has the same list, and a test compares.
ERRNO_NAMES = (
    *("EIO", "ENOSPC", "ETIMEDOUT", "EREMOTEIO", "ENXIO", "ENODEV", "EROFS", "EDQUOT"),
    *("EAGAIN", "ENOMEM", "ESTALE", "ECONNRESET", "ESHUTDOWN"),
)


def _errno(value: str) -> str:
    if value not in ERRNO_NAMES:
        known = "not an error of a store" if hasattr(errno, value) else "no name of an error"
        raise ValueRefusedError(known, f"use one of {', '.join(ERRNO_NAMES)}")
    return value


def _rate(value: object) -> float:
    # TOML tells 1 and 1.0 apart, people do not.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueRefusedError("not a number of 0 to 1", "write 0.01 for one in a hundred")
    return float(value)


def _listen(value: str) -> str:
    parse_address(value, "0.0.0.0:7661")
    return value


def _monitor(value: str) -> str:
    if "{vm}" not in _path(value):
        raise ValueRefusedError(
            "the same path for every VM", "put {vm} where the name of the VM belongs"
        )
    return value


Size = Annotated[int, BeforeValidator(_size), AfterValidator(_of_a_page)]
Limit = Annotated[str, BeforeValidator(_limit)]
Duration = Annotated[int, BeforeValidator(_duration)]
DemoteAfter = Annotated[int, BeforeValidator(_demote_after)]
SpinMax = Annotated[int, BeforeValidator(_spin)]
AbsolutePath = Annotated[str, AfterValidator(_path)]
Paths = Annotated[
    list[AbsolutePath], Field(min_length=1, max_length=8), BeforeValidator(_one_or_more)
]
TriggerPath = Annotated[str, AfterValidator(_trigger)]
SocketPath = Annotated[str, AfterValidator(_socket)]
TierName = Annotated[str, AfterValidator(_tier_name)]
VmName = Annotated[str, AfterValidator(_vm_name)]
Listen = Annotated[str, AfterValidator(_listen)]
MonitorPath = Annotated[str, AfterValidator(_monitor)]
NbdUri = Annotated[str, AfterValidator(_uri)]
ErrnoName = Annotated[str, AfterValidator(_errno)]
Rate = Annotated[float, BeforeValidator(_rate)]
Readahead = Annotated[int, Field(ge=1, le=64)]
UserId = Annotated[int, Field(ge=0, le=(1 << 32) - 2)]


def shown_demote_after(nanoseconds: int) -> str:
    """How a demotion time is written."""
    return exact_duration(nanoseconds) if nanoseconds else "never"
