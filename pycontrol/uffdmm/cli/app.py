# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: common options, the commands, and what an error looks like."""

import os
import sys
from typing import Annotated

import typer

from .. import __version__
from ..client import DEFAULT_SOCKET, DEFAULT_TIMEOUT, Manager
from ..errors import UffdmmError
from .check_host import check_host
from .config import config_app
from .events import events
from .exits import Exit, exit_code
from .exporter import exporter
from .manager import MANAGER_CONTEXT, run_manager
from .migrate import migrate
from .move import evict, prefetch
from .output import print_error
from .policy import set_policy
from .record import record
from .serve import serve
from .simulate import simulate
from .tiers import tiers
from .top import top
from .vms import list_vms, status

app = typer.Typer(
    name="uffdmm",
    help="Control the manager of QEMU guest memory and look at what it does.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("list")(list_vms)
app.command("status")(status)
app.command("top")(top)
app.command("events")(events)
app.command("set-policy")(set_policy)
app.command("tiers")(tiers)
app.command("evict")(evict)
app.command("prefetch")(prefetch)
app.command("exporter")(exporter)
app.command("serve")(serve)
app.command("migrate")(migrate)
app.command("record")(record)
app.command("simulate")(simulate)
app.command("check-host")(check_host)
app.command("manager", context_settings=MANAGER_CONTEXT)(run_manager)
app.add_typer(config_app, name="config")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"uffdmm {__version__}")
        raise typer.Exit


@app.callback()
def common(
    context: typer.Context,
    socket: Annotated[
        str, typer.Option(envvar="UFFDMM_SOCKET", metavar="PATH", help="Socket of the manager.")
    ] = DEFAULT_SOCKET,
    timeout: Annotated[
        float,
        typer.Option(min=0.1, max=3600, metavar="SECONDS", help="How long an answer may take."),
    ] = DEFAULT_TIMEOUT,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Options of all commands."""
    context.obj = Manager(socket, timeout)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code.

    :param arguments: without the program's name; those of the process when None
    """
    try:
        try:
            app(args=arguments, prog_name="uffdmm")
        finally:
            # Else a full disk is noticed only by the interpreter as it ends.
            sys.stdout.flush()
    except UffdmmError as error:
        print_error(error)
        return exit_code(error)
    except OSError as error:
        # What talks to the manager turns these into errors of the package.
        print_error(
            UffdmmError(f"cannot write the result: {os.strerror(error.errno or 0).lower()}")
        )
        return Exit.CHECK_FAILED
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else Exit.OK
    return Exit.OK
