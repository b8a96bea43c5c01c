# SPDX-License-Identifier: GPL-2.0-or-later
"""``uffdmm set-policy``: change limit, read-ahead, demotion and tier bounds of one VM."""

from typing import Annotated

import typer
from pydantic import Field

from ..client import Manager, Policy
from ..durations import exact_duration, parse_demote_after
from ..errors import SizeError
from ..sizes import format_size, is_share, parse_size, parse_size_or_share
from .output import JsonOption, limit_or_dash, print_json
from .vm_name import VmArgument

_PAGE = 4096


class PolicyReport(Policy):
    """The JSON document of ``uffdmm set-policy``: what is in force afterwards."""

    vm_name: str = Field(description="name of the VM")


def set_policy(
    context: typer.Context,
    vm: VmArgument,
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
    demote_after: Annotated[
        str | None,
        typer.Option(
            metavar="TIME|never",
            help="Move a page that was not used for this time one tier down: 30s, 10m, or never.",
            show_default=False,
        ),
    ] = None,
    tier: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SIZE|none",
            help="Most that the VM may store in this tier. May be given for several tiers.",
            show_default=False,
        ),
    ] = None,
    minimum: Annotated[
        str | None,
        typer.Option(
            "--min",
            metavar="SIZE|N%|none",
            help="Least that the control plane leaves the VM.",
            show_default=False,
        ),
    ] = None,
    maximum: Annotated[
        str | None,
        typer.Option(
            "--max",
            metavar="SIZE|N%|none",
            help="Most that the control plane gives the VM, or none for no bound.",
            show_default=False,
        ),
    ] = None,
    shares: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=10000,
            help="Weight among the VMs of the host; 100 at first.",
            show_default=False,
        ),
    ] = None,
    priority: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=100,
            help="Higher ones are served first; 50 at first.",
            show_default=False,
        ),
    ] = None,
    opt_out: Annotated[
        bool | None,
        typer.Option(
            "--opt-out/--no-opt-out",
            help="Whether the control plane leaves the VM alone.",
            show_default=False,
        ),
    ] = None,
    track_permille: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=1000,
            metavar="N",
            help="Thousandths of a CPU that watching accesses may cost the VM; 0 switches it off.",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Change the policy of one VM; what is not named stays as it is."""
    texts = (limit, demote_after, minimum, maximum)
    numbers = (readahead, shares, priority, opt_out, track_permille)
    if all(value is None for value in texts + numbers) and not tier:
        raise typer.BadParameter("nothing to set: give --limit or another option")
    # A value that makes no sense is a usage error even when no manager runs.
    demote_ms = None if demote_after is None else parse_demote_after(demote_after) // 1_000_000
    tier_bytes = _tier_bounds(tier or [])
    sizes = {"limit": limit, "minimum": minimum, "maximum": maximum}
    for name, text in sizes.items():
        if text is not None and not is_share(text):
            _whole_pages(name, text)
    manager: Manager = context.obj
    with manager.open_vm(vm) as opened:
        ram_bytes = opened.statistics().ram_bytes
        wanted = {
            name: None if text is None else _whole_pages(name, text, ram_bytes)
            for name, text in sizes.items()
        }
        policy = opened.set_policy(
            limit_bytes=wanted["limit"],
            readahead_pages=readahead,
            demote_after_ms=demote_ms,
            tier_bytes=tier_bytes,
            min_bytes=wanted["minimum"],
            max_bytes=wanted["maximum"],
            shares=shares,
            priority=priority,
            opt_out=opt_out,
            track_permille=track_permille,
        )
    report = PolicyReport(vm_name=vm, **policy.model_dump())
    if json:
        print_json(report)
    else:
        _print_policy(report)


def _print_policy(report: PolicyReport) -> None:
    demotion = (
        f"after {exact_duration(report.demote_after_ms * 1_000_000)}"
        if report.demote_after_ms
        else "never"
    )
    print(
        f"{report.vm_name}: limit {limit_or_dash(report.limit_bytes)},"
        f" read-ahead up to {report.readahead_pages} pages, demotion {demotion}"
    )
    print(
        f"  control plane: min {format_size(report.min_bytes)}, max"
        f" {limit_or_dash(report.max_bytes)}, shares {report.shares}, priority {report.priority}"
        + (", opted out" if report.opt_out else "")
    )
    if report.track_permille:
        print(f"  access tracking: up to {report.track_permille / 10:g} % of a CPU")
    else:
        print("  access tracking: off")
    for name, size in report.tier_bytes.items():
        print(f"  tier {name}: {format_size(size) if size else 'no bound'}")


def _tier_bounds(texts: list[str]) -> dict[str, int]:
    """Bytes by tier of ``NAME=SIZE`` and ``NAME=none``."""
    bounds: dict[str, int] = {}
    for text in texts:
        name, equals, size = text.partition("=")
        if not name or not equals or name in bounds:
            raise typer.BadParameter(
                f"--tier '{text}' is not NAME=SIZE, once for each tier, for example ssd=4G"
            )
        none = size.strip().lower() == "none"
        bounds[name] = 0 if none else parse_size(size)
        # On the wire 0 stands for no bound, which nobody means by it.
        if not bounds[name] and not none:
            raise SizeError(f"tier '{name}' cannot be bounded to nothing", "name a size, or none")
    return bounds


def _whole_pages(name: str, text: str, ram_bytes: int = 0) -> int:
    """Bytes of a limit or bound, rounded down to whole pages; 0 only where no limit is asked for.

    :raise SizeError: no size, or less than a page: rounding it to "no limit" would be absurd
    """
    if text.strip().lower() in {"none", "0"}:
        return 0
    size = parse_size_or_share(text, ram_bytes)
    if size < _PAGE:
        raise SizeError(
            f"{name} '{text}' is less than one page", f"name a larger one, or none for no {name}"
        )
    return size - size % _PAGE
