# SPDX-License-Identifier: GPL-2.0-or-later
"""``uffdmm list`` and ``uffdmm status``: what the manager's VMs are doing."""

import typer
from pydantic import BaseModel, ConfigDict, Field

from ..ages import Ages, ages_of
from ..client import Manager, VirtualMachine, VmEntry
from ..durations import exact_duration
from ..errors import ConnectError, ManagerError
from ..sizes import format_size
from ..stats import Stats, TierStats, WorkerState
from .output import (
    JsonOption,
    console,
    limit_or_dash,
    plain_table,
    print_json,
    size_or_dash,
    time_or_dash,
)
from .tiers import TierReport, last_errors, make_tier, tier_row, tier_table
from .vm_name import VmArgument

# A worker writes its heartbeat many times a second.
_SILENT = 5.0


class ListedVm(VmEntry):
    """A VM of ``uffdmm list``; numbers are null when its worker did not answer."""

    state: WorkerState | None = Field(default=None, description="state of the worker")
    ram_bytes: int | None = Field(default=None, description="guest memory in all regions")
    limit_bytes: int | None = Field(default=None, description="limit in force, 0 is none")
    resident_bytes: int | None = Field(default=None, description="guest memory in RAM")
    stored_bytes: int | None = Field(default=None, description="guest memory in a store only")


class ListReport(BaseModel):
    """The JSON document of ``uffdmm list``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vms: list[ListedVm] = Field(description="by name")


class StatusReport(Stats):
    """The JSON document of ``uffdmm status``: the statistics and what follows from them."""

    heartbeat_age_s: float = Field(description="seconds since the worker's last sign of life")
    fault_mean_us: float | None = Field(description="mean fault time, microseconds, or null")
    fault_p50_us: float | None = Field(description="median fault time, microseconds, or null")
    fault_p99_us: float | None = Field(description="99 % of faults are no longer, or null")
    working_set_bytes: int | None = Field(
        description="resident memory in use at one of the last 4 looks at accesses, or brought in"
        " since, or null when accesses are not looked at"
    )
    new_bytes: int | None = Field(
        description="resident memory brought in since the last look, or null"
    )
    ages: list[tuple[int, int, int]] = Field(
        description="resident memory by looks since it was in use as [from, to, bytes]"
    )
    tiers: list[TierReport] = Field(description="its tiers in their order, as below 'tiers'")


def list_vms(context: typer.Context, json: JsonOption = False) -> None:
    """List the VMs that the manager serves."""
    manager: Manager = context.obj
    report = ListReport(vms=[_look_at(manager, entry) for entry in manager.list_vms()])
    if json:
        print_json(report)
        return
    table = plain_table("VM", "STATE", "RAM", "LIMIT", "RESIDENT", "STORED", "WORKER", "QEMU")
    for vm in report.vms:
        table.add_row(
            vm.vm_name,
            _state(vm),
            size_or_dash(vm.ram_bytes),
            limit_or_dash(vm.limit_bytes),
            size_or_dash(vm.resident_bytes),
            size_or_dash(vm.stored_bytes),
            str(vm.worker_pid),
            str(vm.qemu_pid),
        )
    if report.vms:
        console().print(table)
    else:
        print(f"the manager at '{manager.socket_path}' serves no VM")


def status(
    context: typer.Context,
    vm: VmArgument,
    json: JsonOption = False,
) -> None:
    """Show what one VM uses, how its faults fare and what its stores hold."""
    manager: Manager = context.obj
    with manager.open_vm(vm) as opened:
        stats = opened.statistics()
        report = make_status(stats, opened.tiers(), _ages(opened) if stats.age_tracking else None)
    if json:
        print_json(report)
    else:
        _print_status(report)


def make_status(stats: Stats, tiers: list[TierStats], ages: Ages | None = None) -> StatusReport:
    """Add what follows from a snapshot, the tiers, and the ages where they mean something."""
    hist = stats.fault_hist
    return StatusReport(
        **{name: getattr(stats, name) for name in Stats.model_fields},
        heartbeat_age_s=round(stats.heartbeat_age, 3),
        fault_mean_us=round(stats.fault_ns / hist.total / 1e3, 2) if hist.total else None,
        fault_p50_us=_microseconds(hist.percentile(0.5)),
        fault_p99_us=_microseconds(hist.percentile(0.99)),
        working_set_bytes=None if ages is None else ages.working_set,
        new_bytes=None if ages is None else ages.new,
        ages=[] if ages is None else ages.octaves(),
        tiers=[make_tier(tier) for tier in tiers],
    )


def _ages(opened: VirtualMachine) -> Ages:
    """The ages of all regions of this moment."""
    regions = opened.regions()
    try:
        return ages_of(regions)
    finally:
        for region in regions:
            region.close()


def _state(vm: ListedVm) -> str:
    if vm.state is not None:
        return vm.state.value
    return "no answer" if vm.worker_pid else "worker died"


def _microseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e6, 2)


def _look_at(manager: Manager, entry: VmEntry) -> ListedVm:
    """What is known of a VM; one that just ended or hangs does not spoil the list."""
    try:
        with manager.open_vm(entry.vm_name) as opened:
            stats = opened.statistics()
    except (ConnectError, ManagerError):
        return ListedVm(**entry.model_dump())
    return ListedVm(
        **entry.model_dump(),
        state=stats.state,
        ram_bytes=stats.ram_bytes,
        limit_bytes=stats.limit_bytes,
        resident_bytes=stats.resident_bytes,
        stored_bytes=stats.stored_bytes,
    )


def _print_status(report: StatusReport) -> None:
    silent = report.heartbeat_age_s > _SILENT
    rows: list[tuple[str, str]] = [
        ("VM", report.vm_name),
        (
            "state",
            report.state.value
            + (f", NO SIGN OF LIFE for {time_or_dash(report.heartbeat_age_s)}" if silent else ""),
        ),
        ("worker, QEMU", f"{report.worker_pid}, {report.qemu_pid}"),
        ("", ""),
        ("RAM", f"{format_size(report.ram_bytes)} in {report.nr_regions} region(s)"),
        ("limit", limit_or_dash(report.limit_bytes)),
        (
            "resident",
            f"{format_size(report.resident_bytes)}"
            f" (at most {format_size(report.resident_max_bytes)})",
        ),
        ("stored", format_size(report.stored_bytes)),
        ("same-filled", format_size(report.zero_bytes)),
        ("slots", f"{report.slots_used} of {report.slots_total}"),
        (
            "manager",
            f"{format_size(report.table_bytes)} of tables,"
            f" {format_size(report.arena_bytes)} of compressed pages,"
            f" {format_size(report.worker_rss_bytes)} resident",
        ),
        ("", ""),
        (
            "faults",
            f"{report.faults}: {report.faults_zero} zero, {report.faults_store} from a store,"
            f" {report.faults_wp} kept, {report.faults_waited} waited for room",
        ),
        (
            "fault time",
            f"p50 {_show_us(report.fault_p50_us)}, p99 {_show_us(report.fault_p99_us)},"
            f" mean {_show_us(report.fault_mean_us)}",
        ),
        (
            "read-ahead",
            f"{report.readahead_in} pages beside a fault, {report.readahead_wasted} not used,"
            f" window up to {report.readahead_pages}",
        ),
        (
            "evicted",
            f"{report.evicted} pages: {report.evicted_clean} unchanged,"
            f" {report.evicted_zero} same-filled, {report.evicted_cancelled} taken back",
        ),
        (
            "demoted",
            f"{report.demoted} pages"
            + (
                f", unused for {exact_duration(report.demote_after_ms * 1_000_000)}"
                if report.demote_after_ms
                else ", demotion is off"
            ),
        ),
        ("discarded", f"{report.discarded} pages"),
        ("tracking", "on" if report.age_tracking else "off"),
        *_age_rows(report),
        ("", ""),
        (
            "store reads",
            f"{report.store_reads} requests, {format_size(report.store_read_bytes)}",
        ),
        (
            "store writes",
            f"{report.store_writes} requests, {format_size(report.store_write_bytes)}",
        ),
        (
            "store errors",
            f"{report.store_errors} requests, {report.checksum_errors} checksums,"
            f" {report.lost_pages} pages lost",
        ),
    ]
    out = console()
    for label, value in rows:
        out.print(f"{label:<14}{value}" if label else "", soft_wrap=True)
    if report.tiers:
        table = tier_table()
        for tier in report.tiers:
            table.add_row(*tier_row(tier))
        out.print("")
        out.print(table)
        for line in last_errors(report.tiers):
            out.print(f"last error of {line}", soft_wrap=True)


def _age_rows(report: StatusReport) -> list[tuple[str, str]]:
    """Working set and ages, where they are known."""
    if report.working_set_bytes is None or report.new_bytes is None:
        return []
    parts = [
        f"{first if first == last else f'{first}-{last}'}: {format_size(size)}"
        for first, last, size in report.ages
    ]
    return [
        ("working set", format_size(report.working_set_bytes)),
        ("ages", f"{', '.join(parts) or '-'}; since the last look {format_size(report.new_bytes)}"),
    ]


def _show_us(microseconds: float | None) -> str:
    return time_or_dash(None if microseconds is None else microseconds / 1e6)
