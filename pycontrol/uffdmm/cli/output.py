# SPDX-License-Identifier: GPL-2.0-or-later
"""How commands talk: results to stdout (a table, or one JSON document), the rest to stderr."""

import sys
from typing import Annotated

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from ..errors import ConfigError, UffdmmError
from ..sizes import format_size

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document; uffdmm(1) has the keys.")
]

IntervalOption = Annotated[
    float,
    typer.Option(min=0.1, max=3600, metavar="SECONDS", help="Time between two looks."),
]

# Output that is not read on a terminal is not cut to one.
_WIDE = 200


def console(*, stderr: bool = False) -> Console:
    """A console for the stream as it is now (tests replace it)."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(
        file=stream,
        width=None if stream.isatty() else _WIDE,
        highlight=False,
        emoji=False,
        markup=False,
    )


def print_json(report: BaseModel) -> None:
    """The report as one indented JSON document."""
    print(report.model_dump_json(indent=2))


def print_error(error: UffdmmError) -> None:
    """The sentence, and below it the remedy; of a configuration each one."""
    told = error.problems if isinstance(error, ConfigError) else ((error.message, error.remedy),)
    for message, remedy in told:
        print(f"uffdmm: {message}", file=sys.stderr)
        if remedy:
            print(f"  remedy: {remedy}", file=sys.stderr)


def plain_table(*headings: str) -> Table:
    """A table without lines: the first column to the left, numbers to the right."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left", no_wrap=True)
    return table


def size_or_dash(size: int | None) -> str:
    """A size for people; a dash where there is none."""
    return "-" if size is None else format_size(size)


def limit_or_dash(limit: int | None) -> str:
    """A limit for people; on the wire 0 says that there is none."""
    return "none" if limit == 0 else size_or_dash(limit)


def time_or_dash(seconds: float | None) -> str:
    """A duration for people, in the unit that fits."""
    if seconds is None:
        return "-"
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f} us"
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms"
    return f"{seconds:.1f} s"
