# SPDX-License-Identifier: GPL-2.0-or-later
"""``uffdmm manager``: become ``uffdmm-manager`` with the options that the configuration makes."""

import os
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..client import Manager
from ..config import Problem, Severity, examine, manager_arguments, read_document
from ..errors import UffdmmError

PROGRAM = "uffdmm-manager"
# What stands behind "--" belongs to the manager.
MANAGER_CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": False}


def run_manager(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Configuration file, with drop-ins in FILE.d; /etc/uffdmm/uffdmm.toml by default.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Start uffdmm-manager as the configuration says; arguments after -- are passed on."""
    extra = list(context.args)
    examined = examine(read_document(config))
    valid = examined.require()
    listen = [] if _says_where(extra) else _socket_of(context)
    arguments = listen + manager_arguments(valid, listen=not listen and not _says_where(extra))
    _warn([problem for problem in examined.problems if problem.severity is Severity.WARNING])
    program = find_manager()
    sys.stdout.flush()
    try:
        os.execv(program, [PROGRAM, *arguments, *extra])  # noqa: S606 - that is what it is for
    except OSError as error:
        raise UffdmmError(
            f"cannot run '{program}': {os.strerror(error.errno or 0).lower()}",
            "install the manager again",
        ) from None


def find_manager() -> str:
    """The program beside this one, else on PATH.

    :raise UffdmmError: neither
    """
    for folder in (Path(sys.argv[0]).resolve().parent, Path(sys.executable).parent):
        beside = folder / PROGRAM
        if beside.is_file() and os.access(beside, os.X_OK):
            return str(beside)
    found = shutil.which(PROGRAM)
    if found is None:
        raise UffdmmError(
            f"there is no {PROGRAM} beside this program nor on PATH",
            "install it, or add its folder to PATH",
        )
    return found


def _says_where(extra: list[str]) -> bool:
    """Whether the caller's own arguments say where to listen; the manager takes one place."""
    names = ("--fd", "--socket-path")
    return any(word in names or word.startswith(tuple(f"{x}=" for x in names)) for word in extra)


def _socket_of(context: typer.Context) -> list[str]:
    """The socket of ``uffdmm --socket`` or the environment, which outranks the file's."""
    source = context.parent.get_parameter_source("socket") if context.parent else None
    if source is None or source.name == "DEFAULT":
        return []
    manager: Manager = context.obj
    return ["--socket-path", manager.socket_path]


def _warn(problems: list[Problem]) -> None:
    for problem in problems:
        print(f"uffdmm: warning: {problem.sentence}", file=sys.stderr)
