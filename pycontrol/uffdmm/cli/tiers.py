# SPDX-License-Identifier: GPL-2.0-or-later
"""``uffdmm tiers``: what each VM keeps in each tier, and how the tier fares."""

import datetime as dt

import typer
from pydantic import BaseModel, ConfigDict, Field
from rich.table import Table

from ..client import Manager
from ..errors import ConnectError, ManagerError
from ..sizes import format_size
from ..stats import Histogram, TierStats, TierType
from .output import JsonOption, console, plain_table, print_json, time_or_dash
from .vm_name import OptionalVmArgument


class TierReport(TierStats):
    """A tier of one VM: its statistics and what follows from them."""

    ratio: float | None = Field(description="bytes of guest memory in one byte of a pool, or null")
    read_p50_us: float | None = Field(description="median read request, microseconds, or null")
    read_p99_us: float | None = Field(description="99 % of reads are no longer, or null")
    write_p50_us: float | None = Field(description="median write request, microseconds, or null")
    write_p99_us: float | None = Field(description="99 % of writes are no longer, or null")


class VmTiers(BaseModel):
    """The tiers of one VM."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vm_name: str = Field(description="name of the VM")
    tiers: list[TierReport] | None = Field(
        description="its tiers in their order, null when its worker did not answer"
    )


class TiersReport(BaseModel):
    """The JSON document of ``uffdmm tiers``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vms: list[VmTiers] = Field(description="by name")


def tiers(
    context: typer.Context,
    vm: OptionalVmArgument = None,
    json: JsonOption = False,
) -> None:
    """Show what is in each tier, how long its requests take and what went wrong."""
    manager: Manager = context.obj
    if vm is None:
        found = [_look_at(manager, entry.vm_name) for entry in manager.list_vms()]
    else:
        with manager.open_vm(vm) as opened:
            found = [_of(vm, opened.tiers())]
    report = TiersReport(vms=found)
    if json:
        print_json(report)
    elif not found:
        print(f"the manager at '{manager.socket_path}' serves no VM")
    else:
        _print(report)


def make_tier(stats: TierStats) -> TierReport:
    """Add what follows from a snapshot."""
    ratio = stats.compression
    return TierReport(
        **{name: getattr(stats, name) for name in TierStats.model_fields},
        ratio=None if ratio is None else round(ratio, 3),
        read_p50_us=_microseconds(stats.read_hist, 0.5),
        read_p99_us=_microseconds(stats.read_hist, 0.99),
        write_p50_us=_microseconds(stats.write_hist, 0.5),
        write_p99_us=_microseconds(stats.write_hist, 0.99),
    )


def tier_table(*before: str) -> Table:
    """The headings of the table of tiers, behind those of the caller."""
    return plain_table(
        *before,
        *("TIER", "TYPE", "STATE", "USED", "CAPACITY", "PAGES", "RATIO"),
        *("READS", "P50", "P99", "WRITES", "P50", "P99", "ERRORS"),
    )


def tier_row(tier: TierReport) -> list[str]:
    """A row under :func:`tier_table`."""
    zero = tier.type is TierType.ZERO
    return [
        tier.name,
        tier.type.value,
        tier.state.value,
        "-" if zero else format_size(tier.used_bytes),
        format_size(tier.capacity_bytes) if tier.capacity_bytes else "-",
        str(tier.stored_pages),
        "-" if tier.ratio is None else f"{tier.ratio:.2f}",
        str(tier.reads),
        _show(tier.read_p50_us),
        _show(tier.read_p99_us),
        str(tier.writes),
        _show(tier.write_p50_us),
        _show(tier.write_p99_us),
        str(tier.errors + tier.checksum_errors),
    ]


def last_errors(tiers: list[TierReport]) -> list[str]:
    """A line for each tier that had an error."""
    lines = []
    for tier in tiers:
        if tier.last_error:
            when = dt.datetime.fromtimestamp(tier.last_error_ns / 1e9, dt.UTC)
            stamp = when.astimezone().isoformat(sep=" ", timespec="seconds")
            lines.append(f"{tier.name}: {tier.last_error} ({stamp})")
    return lines


def _of(vm_name: str, stats: list[TierStats]) -> VmTiers:
    return VmTiers(vm_name=vm_name, tiers=[make_tier(tier) for tier in stats])


def _look_at(manager: Manager, vm_name: str) -> VmTiers:
    """What is known of a VM; one that just ended or hangs does not spoil the rest."""
    try:
        with manager.open_vm(vm_name) as opened:
            return _of(vm_name, opened.tiers())
    except (ConnectError, ManagerError):
        return VmTiers(vm_name=vm_name, tiers=None)


def _print(report: TiersReport) -> None:
    table = tier_table("VM")
    errors: list[str] = []
    for vm in report.vms:
        for tier in vm.tiers or []:
            table.add_row(vm.vm_name, *tier_row(tier))
        if vm.tiers is None:
            table.add_row(vm.vm_name, "no answer")
        errors += [f"{vm.vm_name}: {line}" for line in last_errors(vm.tiers or [])]
    out = console()
    out.print(table)
    for line in errors:
        out.print(f"last error of {line}", soft_wrap=True)


def _microseconds(hist: Histogram, share: float) -> float | None:
    seconds = hist.percentile(share)
    return None if seconds is None else round(seconds * 1e6, 2)


def _show(microseconds: float | None) -> str:
    return time_or_dash(None if microseconds is None else microseconds / 1e6)
