# SPDX-License-Identifier: GPL-2.0-or-later
"""``uffdmm config``: check ``uffdmm.toml``, show it merged, print the command line it makes."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel, ConfigDict, Field
from rich.text import Text

from ..config import Problem, Severity, examine, manager_arguments, read_document, to_toml
from ..errors import ConfigError
from ..hostcheck import Status
from .exits import Exit
from .output import JsonOption, console, print_json

config_app = typer.Typer(
    help="Check and show the configuration file uffdmm.toml.", no_args_is_help=True
)

FileArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="[FILE]",
        help="Configuration file, with drop-ins in FILE.d; /etc/uffdmm/uffdmm.toml by default.",
        show_default=False,
    ),
]
_STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow"}


class ConfigReport(BaseModel):
    """The JSON document of ``uffdmm config check``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: Status = Field(description="PASS, WARN or FAIL: the worst of all problems")
    files: list[str] = Field(description="files read, in the order in which they were merged")
    problems: list[Problem] = Field(
        description="each with severity, file, key, value, message and remedy"
    )


class ShownConfig(BaseModel):
    """The JSON document of ``uffdmm config show``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: list[str] = Field(description="files read, in the order in which they were merged")
    config: dict[str, Any] = Field(description="the tables of the configuration, merged")


class CommandLine(BaseModel):
    """The JSON document of ``uffdmm config command``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    command: list[str] = Field(description="program and arguments")


@config_app.command("check")
def check(file: FileArgument = None, json: JsonOption = False) -> None:
    """Check the configuration: unknown keys, wrong values, what does not fit together."""
    examined = examine(read_document(file))
    status = Status.PASS
    if examined.problems:
        status = Status.FAIL if examined.errors else Status.WARN
    report = ConfigReport(
        status=status,
        files=[str(path) for path in examined.document.files],
        problems=examined.problems,
    )
    if json:
        print_json(report)
    else:
        _print_report(report)
    if status is Status.FAIL:
        raise typer.Exit(Exit.CHECK_FAILED)


@config_app.command("show")
def show(file: FileArgument = None, json: JsonOption = False) -> None:
    """Show what file and drop-ins say together, and which file each value came from."""
    document = read_document(file)
    if document.problems:
        raise ConfigError([(problem.sentence, problem.remedy) for problem in document.problems])
    if json:
        print_json(ShownConfig(files=[str(path) for path in document.files], config=document.data))
    else:
        print(to_toml(document), end="")


@config_app.command("command")
def command(file: FileArgument = None, json: JsonOption = False) -> None:
    """Print the command line of uffdmm-manager that the configuration makes."""
    config = examine(read_document(file)).require()
    words = ["uffdmm-manager", *manager_arguments(config)]
    if json:
        print_json(CommandLine(command=words))
    else:
        print(shlex.join(words))


def _print_report(report: ConfigReport) -> None:
    out = console()
    for problem in report.problems:
        word = (problem.severity.value, _STYLES[problem.severity])
        out.print(Text.assemble(word, f": {problem.sentence}"), soft_wrap=True)
        if problem.remedy:
            out.print(f"  remedy: {problem.remedy}", soft_wrap=True)
    count = {
        severity: sum(problem.severity is severity for problem in report.problems)
        for severity in Severity
    }
    out.print(
        f"{len(report.files)} file(s), {count[Severity.ERROR]} error(s),"
        f" {count[Severity.WARNING]} warning(s)"
    )
