# SPDX-License-Identifier: GPL-2.0-or-later
"""``uffdmm top``: what all VMs do right now, one line each, on one screen.

Rates are differences of two looks, so the first screen comes after one interval.
"""

import contextlib
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import typer
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..client import Manager
from ..errors import ConnectError
from ..sizes import format_size
from ..watch import VmView, Watcher
from .output import (
    IntervalOption,
    console,
    limit_or_dash,
    plain_table,
    size_or_dash,
    time_or_dash,
)


class SortKey(StrEnum):
    """By what ``uffdmm top`` sorts."""

    NAME = "name"
    RESIDENT = "resident"
    STORED = "stored"
    FAULTS = "faults"
    LATENCY = "latency"
    STALL = "stall"
    IN = "in"
    OUT = "out"


class TopVm(BaseModel):
    """One VM of ``uffdmm top``; rates are over the interval, null when they are not known."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vm_name: str = Field(description="name of the VM")
    condition: str = Field(description="state of the worker, or worker-died, no-answer or silent")
    ram_bytes: int | None = Field(default=None, description="guest memory in all regions")
    limit_bytes: int | None = Field(default=None, description="limit in force, 0 is none")
    resident_bytes: int | None = Field(default=None, description="guest memory in RAM")
    stored_bytes: int | None = Field(default=None, description="guest memory in a store only")
    faults_per_s: float | None = Field(default=None, description="faults served a second")
    fault_p99_us: float | None = Field(
        default=None, description="99 % of the faults of the interval are no longer, or null"
    )
    stall_share: float | None = Field(
        default=None,
        description="time in faults of all vCPUs together by time that passed, 1 is one vCPU",
    )
    in_bytes_per_s: float | None = Field(default=None, description="read from stores a second")
    out_bytes_per_s: float | None = Field(default=None, description="written to stores a second")
    tiers: dict[str, str] = Field(description="state of each tier, by its name")


class TopReport(BaseModel):
    """One look of ``uffdmm top``: a line of its JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    time: float = Field(description="seconds since 1970")
    interval_s: float = Field(description="seconds since the look before")
    vms: list[TopVm] = Field(description="sorted as asked for")


@dataclass(slots=True)
class Look:
    """The views of one moment."""

    at: float
    views: dict[str, VmView]


# Descending, but for the name.
_VALUES = {
    SortKey.RESIDENT: "resident_bytes",
    SortKey.STORED: "stored_bytes",
    SortKey.FAULTS: "faults_per_s",
    SortKey.LATENCY: "fault_p99_us",
    SortKey.STALL: "stall_share",
    SortKey.IN: "in_bytes_per_s",
    SortKey.OUT: "out_bytes_per_s",
}
# The keys that choose it while it runs.
BY_LETTER = {
    "n": SortKey.NAME,
    "r": SortKey.RESIDENT,
    "s": SortKey.STORED,
    "f": SortKey.FAULTS,
    "l": SortKey.LATENCY,
    "t": SortKey.STALL,
    "i": SortKey.IN,
    "o": SortKey.OUT,
}
_HELP = (
    "sort: "
    + " ".join(key.value.replace(letter, f"[{letter}]", 1) for letter, key in BY_LETTER.items())
    + "   [q]uit"
)


def top(
    context: typer.Context,
    sort: Annotated[
        SortKey, typer.Option(help="Largest of these first; a key changes it while it runs.")
    ] = SortKey.STALL,
    interval: IntervalOption = 1.0,
    once: Annotated[
        bool, typer.Option("--once", help="Look for one interval, print that and end.")
    ] = False,
    json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON document a line; uffdmm(1) has the keys."),
    ] = False,
) -> None:
    """Show what all VMs do, again and again; on a terminal it fills the screen."""
    manager: Manager = context.obj
    with Watcher(manager) as watcher:
        first = take_look(watcher)
        if once or json or not sys.stdout.isatty():
            _print_on(watcher, first, sort, interval, once=once, json=json)
        else:
            _live(watcher, first, sort, interval)


def compare(before: Look, now: Look, sort: SortKey) -> TopReport:
    """What the VMs of ``now`` did since ``before``."""
    seconds = now.at - before.at
    vms = [_row(before.views.get(view.name), view, seconds) for view in now.views.values()]
    return TopReport(
        time=round(time.time(), 3), interval_s=round(seconds, 3), vms=sort_vms(vms, sort)
    )


def sort_vms(vms: list[TopVm], sort: SortKey) -> list[TopVm]:
    """By name, or largest first; those of which it is not known stand last."""
    by_name = sorted(vms, key=lambda vm: vm.vm_name)
    if sort is SortKey.NAME:
        return by_name

    def value(vm: TopVm) -> float:
        number: float | None = getattr(vm, _VALUES[sort])
        return -1.0 if number is None else float(number)

    return sorted(by_name, key=value, reverse=True)


def _row(old: VmView | None, view: VmView, seconds: float) -> TopVm:
    tiers = {tier.name: tier.state.value for tier in view.tiers}
    stats = view.stats
    if stats is None:
        return TopVm(vm_name=view.name, condition=view.condition, tiers=tiers)
    gauges = TopVm(
        vm_name=view.name,
        condition=view.condition,
        ram_bytes=stats.ram_bytes,
        limit_bytes=stats.limit_bytes,
        resident_bytes=stats.resident_bytes,
        stored_bytes=stats.stored_bytes,
        tiers=tiers,
    )
    then = old.stats if old is not None else None
    # Counters of another worker say nothing about this one.
    if then is None or then.worker_pid != stats.worker_pid or seconds <= 0:
        return gauges
    p99 = (stats.fault_hist - then.fault_hist).percentile(0.99)
    return gauges.model_copy(
        update={
            "faults_per_s": round((stats.faults - then.faults) / seconds, 1),
            "fault_p99_us": None if p99 is None else round(p99 * 1e6, 2),
            "stall_share": round((stats.fault_ns - then.fault_ns) / 1e9 / seconds, 6),
            "in_bytes_per_s": round((stats.store_read_bytes - then.store_read_bytes) / seconds),
            "out_bytes_per_s": round((stats.store_write_bytes - then.store_write_bytes) / seconds),
        }
    )


def take_look(watcher: Watcher) -> Look:
    """The views of this moment."""
    views = {view.name: view for view in watcher.look()}
    return Look(time.monotonic(), views)


def _print_on(
    watcher: Watcher, before: Look, sort: SortKey, interval: float, *, once: bool, json: bool
) -> None:
    while True:
        time.sleep(interval)
        now = take_look(watcher)
        report = compare(before, now, sort)
        if json:
            print(report.model_dump_json())
        else:
            console().print(_screen(report, None))
        sys.stdout.flush()
        if once:
            return
        before = now


def _live(watcher: Watcher, before: Look, sort: SortKey, interval: float) -> None:
    out = console()
    report = compare(before, before, sort)
    trouble: str | None = None
    with _single_keys(), Live(console=out, screen=True, auto_refresh=False) as live:
        due = time.monotonic() + interval
        while True:
            live.update(_full_screen(report, out.height, sort, trouble), refresh=True)
            letter = _key(max(0.0, due - time.monotonic()))
            if letter == "q":
                return
            if letter in BY_LETTER:
                sort = BY_LETTER[letter]
                report = report.model_copy(update={"vms": sort_vms(report.vms, sort)})
            if time.monotonic() < due:
                continue
            due = time.monotonic() + interval
            try:
                now = take_look(watcher)
            except ConnectError as error:
                # A manager that is restarted is no reason to end; the last numbers stay.
                trouble = error.message
                continue
            trouble = None
            report, before = compare(before, now, sort), now


@contextlib.contextmanager
def _single_keys() -> Iterator[None]:
    """Let keys come one by one, not line by line, if there is a keyboard."""
    if not sys.stdin.isatty():
        yield
        return
    fd = sys.stdin.fileno()
    saved = termios.tcgetattr(fd)
    tty.setcbreak(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, saved)


def _key(seconds: float) -> str:
    """The next key, or nothing when none comes in time."""
    if not sys.stdin.isatty():
        time.sleep(seconds)
        return ""
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return sys.stdin.read(1).lower() if ready else ""


def _full_screen(
    report: TopReport, height: int, sort: SortKey, trouble: str | None
) -> RenderableType:
    """The summary, as many VMs as fit, and the keys."""
    rows = max(1, height - 4)
    head = Text(trouble, style="bold red") if trouble else Text(_HELP, style="dim")
    head.append(f"   by {sort.value}", style="bold")
    return Group(head, _screen(report, rows))


def _screen(report: TopReport, rows: int | None) -> RenderableType:
    """The sums and the table of the first so many VMs, all when None."""
    shown = report.vms if rows is None else report.vms[:rows]
    parts: list[RenderableType] = [Text(_sums(report)), _table(shown)]
    if len(shown) < len(report.vms):
        parts.append(Text(f"and {len(report.vms) - len(shown)} more"))
    return Group(*parts)


def _sums(report: TopReport) -> str:
    def total(name: str) -> int:
        return sum(getattr(vm, name) or 0 for vm in report.vms)

    return (
        f"{len(report.vms)} VM(s), RAM {format_size(total('ram_bytes'))},"
        f" resident {format_size(total('resident_bytes'))},"
        f" stored {format_size(total('stored_bytes'))},"
        f" {total('faults_per_s'):.0f} faults/s"
    )


def _table(vms: list[TopVm]) -> Table:
    table = plain_table(
        *("VM", "STATE", "RAM", "LIMIT", "RESIDENT", "STORED"),
        *("FAULTS/S", "P99", "STALL", "IN/S", "OUT/S", "TIERS"),
    )
    for vm in vms:
        ill = [f"{name}:{state}" for name, state in vm.tiers.items() if state != "ok"]
        p99 = None if vm.fault_p99_us is None else vm.fault_p99_us / 1e6
        table.add_row(
            vm.vm_name,
            vm.condition,
            size_or_dash(vm.ram_bytes),
            limit_or_dash(vm.limit_bytes),
            size_or_dash(vm.resident_bytes),
            size_or_dash(vm.stored_bytes),
            "-" if vm.faults_per_s is None else f"{vm.faults_per_s:.0f}",
            time_or_dash(p99),
            "-" if vm.stall_share is None else f"{100 * vm.stall_share:.2f}%",
            _rate(vm.in_bytes_per_s),
            _rate(vm.out_bytes_per_s),
            " ".join(ill) or ("ok" if vm.tiers else "-"),
        )
    return table


def _rate(size: float | None) -> str:
    return "-" if size is None else format_size(int(size))
