# SPDX-License-Identifier: GPL-2.0-or-later
"""``uffdmm record``: which memory a running VM uses, into a file for ``uffdmm simulate``."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel, ConfigDict, Field
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ..client import Manager
from ..serve.host import nr_vcpus
from ..sizes import format_size
from ..trace import Recorder, Trace, TraceError, save_trace
from .output import IntervalOption, JsonOption, console, print_json
from .vm_name import VmArgument


class RecordReport(BaseModel):
    """The JSON document of ``uffdmm record``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vm_name: str = Field(description="name of the VM")
    file: str = Field(description="where the trace is")
    file_bytes: int = Field(description="size of the file")
    seconds: float = Field(description="from the first sample to the last")
    samples: int = Field(description="how many there are")
    looked: int = Field(
        description="of those: samples with a look at accesses since the one before"
    )
    unit_bytes: int = Field(description="memory that one bit of the trace stands for")
    used_mean_bytes: int = Field(description="memory seen in use in an interval, on average")


def record(
    context: typer.Context,
    vm: VmArgument,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FILE", help="Where the trace goes."),
    ],
    seconds: Annotated[
        float,
        typer.Option(min=1, max=86400, metavar="SECONDS", help="How long to record."),
    ] = 60.0,
    interval: IntervalOption = 1.0,
    look: Annotated[
        bool,
        typer.Option(
            "--look",
            help="Have the worker look at accesses: it puts out 1 MiB at each sample.",
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Record which memory a VM uses, for 'uffdmm simulate'; an interrupt ends it early."""
    if not output.absolute().parent.is_dir():
        raise TraceError(f"'{output}': its folder does not exist", "make it first")
    manager: Manager = context.obj
    entries = {entry.vm_name: entry for entry in manager.list_vms()}
    with manager.open_vm(vm) as opened:
        vcpus = nr_vcpus(entries[vm].qemu_pid) if vm in entries else 1
        recorder = Recorder(opened, vcpus=vcpus)
        try:
            with contextlib.suppress(KeyboardInterrupt):
                for now in _instants(vm, seconds, interval):
                    recorder.take(now)
                    if look:
                        recorder.provoke()
            trace = recorder.trace(source=f"uffdmm record --interval {interval:g}")
        finally:
            recorder.close()
    save_trace(trace, output)
    report = make_report(trace, output)
    if json:
        print_json(report)
        return
    print(
        f"{report.vm_name}: {report.samples} samples in {report.seconds:.1f} s,"
        f" {format_size(report.used_mean_bytes)} in use in each on average;"
        f" {format_size(report.file_bytes)} in {report.file}"
    )
    if not report.looked:
        print(
            "  the worker did not look at accesses, so only arrivals are known:"
            " it looks while it evicts, or with --look"
        )


def make_report(trace: Trace, path: Path) -> RecordReport:
    """What was recorded."""
    rows = range(1, len(trace.times))
    used = sum(int(trace.row(row).sum()) for row in rows) // len(rows)
    return RecordReport(
        vm_name=trace.name,
        file=str(path),
        file_bytes=path.stat().st_size,
        seconds=round(trace.seconds, 3),
        samples=len(trace.times),
        looked=int(trace.looked.sum()),
        unit_bytes=trace.unit_bytes,
        used_mean_bytes=used * trace.unit_bytes,
    )


def _instants(vm: str, seconds: float, interval: float) -> Iterator[float]:
    """The seconds since the start, each when it is time for its sample."""
    out = console(stderr=True)
    began = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as progress:
        task = progress.add_task(f"recording {vm}", total=seconds)
        due = 0.0
        while True:
            now = time.monotonic() - began
            progress.update(task, completed=min(now, seconds))
            yield now
            if now >= seconds:
                return
            # A sample that came late does not make the next one late.
            due = min(max(due + interval, now + interval / 10), seconds)
            time.sleep(max(0.001, due - (time.monotonic() - began)))
