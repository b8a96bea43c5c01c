# SPDX-License-Identifier: GPL-2.0-or-later
"""``uffdmm migrate``: a VM to another host, its swapped pages by location."""

import asyncio
import signal
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from ..addresses import parse_target
from ..client import Manager
from ..config import Config, examine, read_document
from ..config.load import DEFAULT_FILE
from ..errors import OptionsError
from ..migration.destination import take_over
from ..migration.frames import DEFAULT_PORT
from ..migration.qmp import monitor_path
from ..migration.request import DryRun, Progress, Report, Request
from ..migration.source import Source
from ..sizes import format_size, parse_size
from .output import JsonOption, console, print_json, time_or_dash
from .vm_name import VmArgument

DEFAULT_CERTIFICATES = "/etc/pki/uffdmm"
DEFAULT_MONITOR = "/run/uffdmm/{vm}.qmp"


def migrate(
    context: typer.Context,
    vm: VmArgument,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="HOST[:PORT]",
            help=f"Where 'uffdmm serve' takes VMs in; port {DEFAULT_PORT} by default.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what would go how, and what is missing.")
    ] = False,
    qmp: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="Monitor socket of the VM on this host.", show_default=False
        ),
    ] = None,
    tier: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Shared tier whose pages go by location; the fullest one by default.",
            show_default=False,
        ),
    ] = None,
    bandwidth: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="At most so much a second; all there is by default.",
            show_default=False,
        ),
    ] = None,
    downtime: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=2_000_000,
            metavar="MS",
            help="How long the guest may stand still; as QEMU has it by default.",
            show_default=False,
        ),
    ] = None,
    direct: Annotated[
        bool,
        typer.Option("--direct", help="QEMU's own stream in plain TCP; on trusted networks only."),
    ] = False,
    channels: Annotated[
        int, typer.Option(min=0, max=64, metavar="N", help="Of multifd; needs --direct.")
    ] = 0,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave QEMU on this host, paused for ever.")
    ] = False,
    tls_name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name in the other host's certificate, if not HOST.",
            show_default=False,
        ),
    ] = None,
    take: Annotated[
        bool,
        typer.Option(
            "--take",
            help="On the destination: run a VM that has arrived, whose source is lost for good.",
        ),
    ] = False,
    abandon: Annotated[
        bool,
        typer.Option(
            "--abandon", help="On the source: run a VM again whose migration was left half-way."
        ),
    ] = False,
    reclaim: Annotated[
        bool,
        typer.Option(
            "--reclaim",
            help="On the source: run a VM again whose destination is lost and never ran it.",
        ),
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Configuration file.", show_default=False),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Move a VM to another host while it runs; swapped pages stay where they are, on the store."""
    manager: Manager = context.obj
    if sum((to is not None, take, abandon, reclaim)) != 1:
        raise OptionsError(
            "none or several of --to, --take, --abandon and --reclaim were given",
            "name one of them",
        )
    file = config or (DEFAULT_FILE if Path(DEFAULT_FILE).exists() else None)
    valid = examine(read_document(file)).require() if file else Config()
    own = valid.vm.get(vm)
    monitor = qmp or monitor_path(
        (own.qmp if own else None) or valid.migration.qmp or DEFAULT_MONITOR, vm
    )
    if take:
        asyncio.run(take_over(manager, vm, monitor))
        print(f"{vm}: the guest runs on this host")
        return
    host, port = parse_target(to, DEFAULT_PORT) if to else ("", 0)
    if channels and not direct:
        raise OptionsError("--channels was given without --direct", "give both, or none")
    request = Request(
        vm=vm,
        host=host,
        port=port,
        qmp=monitor,
        certificates=Path(valid.migration.certificates or DEFAULT_CERTIFICATES),
        tier=tier,
        direct=direct,
        channels=channels,
        bandwidth=parse_size(bandwidth) if bandwidth else 0,
        downtime_ms=downtime,
        tls_name=tls_name,
        keep=keep,
    )
    if abandon or reclaim:
        source = Source(manager, request, _nothing)
        asyncio.run(source.reclaim() if reclaim else source.abandon())
        print(f"{vm}: the guest runs on this host")
    elif dry_run:
        expected = asyncio.run(Source(manager, request, _nothing).dry_run())
        _tell_dry_run(expected, json=json)
        if not expected.possible:
            raise typer.Exit(1)
    else:
        _tell(asyncio.run(_migrate(manager, request, quiet=json)), json=json)


def _nothing(_progress: Progress) -> None:
    """Show nothing."""


async def _migrate(manager: Manager, request: Request, *, quiet: bool) -> Report:
    """Migrate with a progress bar; the first interrupt gives up while that can be done."""
    shown = console(stderr=True)
    bar = Bar(
        TextColumn("{task.description:<9}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[text]}"),
        console=shown,
        disable=quiet or not shown.is_terminal,
    )
    with bar:
        line = bar.add_task("check", total=None, text="")

        def show(progress: Progress) -> None:
            bar.update(
                line,
                description=str(progress.stage),
                total=progress.total_bytes or None,
                completed=max(0, progress.total_bytes - progress.remaining_bytes),
                text=_line(progress),
            )

        source = Source(manager, request, show)
        task = asyncio.create_task(source.run())
        loop = asyncio.get_running_loop()

        def interrupted() -> None:
            if source.cancel_allowed():
                task.cancel()
            else:
                shown.print("too late to give up: the VM is being handed over")

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupted)
        return await task


def _line(progress: Progress) -> str:
    return (
        f"{progress.by_content} pages by content, {progress.by_location} by location,"
        f" {progress.bypass} past the guest; {format_size(progress.transferred_bytes)} sent,"
        f" {format_size(progress.dirty_bytes_per_s)}/s dirtied,"
        f" {time_or_dash(progress.seconds_left)} left"
    )


def _tell(report: Report, *, json: bool) -> None:
    if json:
        print_json(report)
        return
    print(
        f"{report.vm_name}: runs on {report.destination} after {report.total_ms / 1000:.2f} s;"
        f" {format_size(report.bytes)} went over, {format_size(report.location_bytes)} of them"
        " locations"
    )
    print(
        f"  {report.pages_by_location} pages by location, {report.pages_by_content} by content,"
        f" {report.bypass_pages} swapped ones by content; {report.source_swap_ins} swapped in"
    )
    print(f"  it stood still for {report.downtime_ms} ms and {report.handover_ms} ms")
    for note in report.notes:
        print(f"  note: {note}")


def _tell_dry_run(expected: DryRun, *, json: bool) -> None:
    if json:
        print_json(expected)
        return
    forecast = expected.forecast
    print(
        f"{expected.vm_name} to {expected.destination}:"
        f" {'nothing stands in the way' if expected.possible else 'not possible'}"
    )
    print(
        f"  {format_size(forecast.by_location_bytes)} by location"
        f" ({format_size(forecast.zero_bytes)} of it empty or zero),"
        f" {format_size(forecast.bypass_bytes)} swapped by content,"
        f" {format_size(forecast.content_bytes)} resident by content"
    )
    for obstacle in expected.obstacles:
        print(f"  obstacle: {obstacle}")
    for note in expected.notes:
        print(f"  note: {note}")
