# SPDX-License-Identifier: GPL-2.0-or-later
"""The name of a VM as an argument, and what a shell offers in its place."""

import contextlib
from typing import Annotated

import typer

from ..client import DEFAULT_SOCKET, Manager
from ..errors import UffdmmError

# Nobody waits long for a key.
_TIMEOUT = 1.0


def vm_names(context: typer.Context, incomplete: str) -> list[str]:
    """Names of VMs that begin like this; none when the manager cannot be reached."""
    socket = context.find_root().params.get("socket") or DEFAULT_SOCKET
    with contextlib.suppress(UffdmmError):
        entries = Manager(socket, _TIMEOUT).list_vms()
        return [entry.vm_name for entry in entries if entry.vm_name.startswith(incomplete)]
    return []


VmArgument = Annotated[
    str,
    typer.Argument(
        metavar="VM", help="Name of the VM.", show_default=False, autocompletion=vm_names
    ),
]
OptionalVmArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[VM]",
        help="Name of one VM; all by default.",
        show_default=False,
        autocompletion=vm_names,
    ),
]
