# SPDX-License-Identifier: GPL-2.0-or-later
"""``uffdmm evict`` and ``uffdmm prefetch``: move pages out and in now, in the background."""

from typing import Annotated

import typer
from pydantic import BaseModel, ConfigDict, Field

from ..client import Manager
from ..errors import SizeError
from ..sizes import format_size, parse_size_or_share
from .output import JsonOption, print_json

_PAGE = 4096
# A value that makes no sense is a usage error even when no manager runs; a share then is of this.
_ANY_RAM = 1 << 50

VmArgument = Annotated[
    str, typer.Argument(metavar="VM", help="Name of the VM.", show_default=False)
]


class MoveReport(BaseModel):
    """The JSON document of ``uffdmm evict`` and ``uffdmm prefetch``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vm_name: str = Field(description="name of the VM")
    bytes: int = Field(description="what was asked for, in whole pages")
    resident_bytes: int = Field(description="guest memory in RAM when it was asked for")
    stored_bytes: int = Field(description="guest memory in a store only when it was asked for")


def evict(
    context: typer.Context,
    vm: VmArgument,
    size: Annotated[
        str,
        typer.Argument(
            metavar="SIZE|N%", help="How much, or a share of its RAM.", show_default=False
        ),
    ],
    json: JsonOption = False,
) -> None:
    """Put pages of one VM out now, the longest unused first; its limit stays as it is."""
    manager: Manager = context.obj
    _whole_pages(size, _ANY_RAM)
    with manager.open_vm(vm) as opened:
        stats = opened.statistics()
        wanted = _whole_pages(size, stats.ram_bytes)
        opened.evict(wanted)
    report = MoveReport(
        vm_name=vm,
        bytes=wanted,
        resident_bytes=stats.resident_bytes,
        stored_bytes=stats.stored_bytes,
    )
    _tell(report, "to put out", json=json)


def prefetch(
    context: typer.Context,
    vm: VmArgument,
    size: Annotated[
        str | None,
        typer.Argument(
            metavar="[SIZE|N%]",
            help="At most so much, or a share of its RAM; by default all that fits.",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Bring stored pages of one VM in now, the last used first, as far as its limit allows."""
    manager: Manager = context.obj
    if size is not None:
        _whole_pages(size, _ANY_RAM)
    with manager.open_vm(vm) as opened:
        stats = opened.statistics()
        wanted = stats.ram_bytes if size is None else _whole_pages(size, stats.ram_bytes)
        opened.prefetch(wanted)
    report = MoveReport(
        vm_name=vm,
        bytes=wanted,
        resident_bytes=stats.resident_bytes,
        stored_bytes=stats.stored_bytes,
    )
    _tell(report, "to bring in at most", json=json)


def _tell(report: MoveReport, what: str, *, json: bool) -> None:
    if json:
        print_json(report)
        return
    print(
        f"{report.vm_name}: told {what} {format_size(report.bytes)}; of its memory"
        f" {format_size(report.resident_bytes)} is resident, {format_size(report.stored_bytes)}"
        " stored"
    )


def _whole_pages(text: str, ram_bytes: int) -> int:
    """Bytes of a size or a share, rounded down to whole pages.

    :raise SizeError: no size, or less than a page
    """
    size = parse_size_or_share(text, ram_bytes)
    if size < _PAGE:
        raise SizeError(f"'{text}' is less than one page", "name a larger size")
    return size - size % _PAGE
