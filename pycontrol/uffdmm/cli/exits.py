# SPDX-License-Identifier: GPL-2.0-or-later
"""Exit codes of the command, the one place where they are given; uffdmm(1) documents them."""

from enum import IntEnum

from ..errors import (
    AddressError,
    ConnectError,
    DurationError,
    ManagerError,
    NoSuchTierError,
    NoSuchVmError,
    OptionsError,
    ProtocolError,
    SizeError,
    UffdmmError,
    VmNameError,
)


class Exit(IntEnum):
    """What a caller can tell apart without reading the message."""

    OK = 0
    CHECK_FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    NO_SUCH_VM = 4
    REFUSED = 5
    PROTOCOL = 6


# The first that fits: subclasses stand before their base.
_BY_ERROR: tuple[tuple[type[UffdmmError], Exit], ...] = (
    (SizeError, Exit.USAGE),
    (DurationError, Exit.USAGE),
    (AddressError, Exit.USAGE),
    (OptionsError, Exit.USAGE),
    (NoSuchTierError, Exit.USAGE),
    (VmNameError, Exit.USAGE),
    (ConnectError, Exit.UNREACHABLE),
    (ProtocolError, Exit.PROTOCOL),
    (NoSuchVmError, Exit.NO_SUCH_VM),
    (ManagerError, Exit.REFUSED),
)


def exit_code(error: UffdmmError) -> Exit:
    """The exit code of a command that ended with this error."""
    for kind, code in _BY_ERROR:
        if isinstance(error, kind):
            return code
    return Exit.CHECK_FAILED
