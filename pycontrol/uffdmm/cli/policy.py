# SPDX-License-Identifier: GPL-2.0-or-later
"""``uffdmm set-policy``: change the limit and the read-ahead window of one VM."""

from typing import Annotated

import typer
from pydantic import Field

from ..client import Manager, Policy
from ..errors import SizeError
from ..sizes import is_share, parse_size_or_share
from .output import JsonOption, limit_or_dash, print_json

_PAGE = 4096


class PolicyReport(Policy):
    """The JSON document of ``uffdmm set-policy``: what is in force afterwards."""

    vm_name: str = Field(description="name of the VM")


def set_policy(
    context: typer.Context,
    vm: Annotated[str, typer.Argument(metavar="VM", help="Name of the VM.", show_default=False)],
    limit: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE|N%|none",
            help="Resident guest memory of the VM: 512M, 1.5G, a share of its RAM (50%), or none.",
            show_default=False,
        ),
    ] = None,
    readahead: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="PAGES",
            help="Largest read-ahead window in pages; 1 switches read-ahead off.",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Change the policy of one VM; what is not named stays as it is."""
    if limit is None and readahead is None:
        raise typer.BadParameter("nothing to set: give --limit, --readahead or both")
    # A size that makes no sense is a usage error even when no manager runs.
    limit_bytes = None if limit is None or is_share(limit) else _whole_pages(limit)
    manager: Manager = context.obj
    with manager.open_vm(vm) as opened:
        if limit is not None and limit_bytes is None:
            limit_bytes = _whole_pages(limit, opened.statistics().ram_bytes)
        policy = opened.set_policy(limit_bytes=limit_bytes, readahead_pages=readahead)
    report = PolicyReport(vm_name=vm, **policy.model_dump())
    if json:
        print_json(report)
    else:
        print(
            f"{report.vm_name}: limit {limit_or_dash(report.limit_bytes)},"
            f" read-ahead up to {report.readahead_pages} pages"
        )


def _whole_pages(limit: str, ram_bytes: int = 0) -> int:
    """Bytes of a limit, rounded down to whole pages; 0 only where no limit is asked for.

    :raise SizeError: no size, or less than a page: rounding it to "no limit" would be absurd
    """
    if limit.strip().lower() in {"none", "0"}:
        return 0
    size = parse_size_or_share(limit, ram_bytes)
    if size < _PAGE:
        raise SizeError(
            f"limit '{limit}' is less than one page", "name a larger one, or none to lift the limit"
        )
    return size - size % _PAGE
