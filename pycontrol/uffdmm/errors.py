# SPDX-License-Identifier: GPL-2.0-or-later
"""What can go wrong, as a tree; drawn in the docstring of the package.

Every message is one sentence in lower case that names the object and what was seen.  The remedy,
where there is one, is kept apart so that a program can show or ignore it.
"""

import os
from collections.abc import Sequence


class UffdmmError(Exception):
    """Anything that this package raises on purpose.

    :param message: one sentence, lower case, no full stop
    :param remedy: what the reader can do about it, or None
    """

    def __init__(self, message: str, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


class SizeError(UffdmmError, ValueError):
    """A size that cannot be understood."""


class DurationError(UffdmmError, ValueError):
    """A time that cannot be understood."""


class AddressError(UffdmmError, ValueError):
    """No address and port to listen on."""


class OptionsError(UffdmmError, ValueError):
    """Options that do not go together."""


class ConfigError(UffdmmError):
    """A configuration that cannot be used.

    :param problems: each a sentence that names file, key and value, with its remedy or None
    """

    def __init__(self, problems: Sequence[tuple[str, str | None]]) -> None:
        first, remedy = problems[0]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(first + more, remedy)
        self.problems = tuple(problems)


class VmNameError(UffdmmError, ValueError):
    """A VM name that the wire format cannot carry."""


class ConnectError(UffdmmError):
    """The manager cannot be reached: no socket, nobody behind it, no permission."""


class LinkLostError(ConnectError):
    """The manager closed the connection, or did not answer in time."""


class ProtocolError(UffdmmError):
    """The peer sent something that the protocol does not allow."""


class VersionError(ProtocolError):
    """The peer speaks no version of the protocol that this package understands."""


class ManagerError(UffdmmError):
    """The manager answered with an error.

    :param code: positive errno of the reply
    :param text: the manager's own sentence, remedy included
    """

    def __init__(self, code: int, text: str, remedy: str | None = None) -> None:
        super().__init__(text or f"the manager refused: {os.strerror(code).lower()}", remedy)
        self.code = code


class NoSuchVmError(ManagerError):
    """The manager serves no VM of that name."""


class NoSuchTierError(UffdmmError):
    """The VM has no tier of that name."""


class SelfTestError(UffdmmError):
    """The self-test could not run on this host."""
