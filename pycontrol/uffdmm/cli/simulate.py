# SPDX-License-Identifier: GPL-2.0-or-later
"""``uffdmm simulate``: what a policy would have done with recorded or made-up guests."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from ..durations import parse_duration
from ..policies import load_policy
from ..serve.daemon import Options
from ..simulate import Setup, Simulation, SimulationReport
from ..simulate.plot import check_plot, plot
from ..sizes import format_size, parse_size
from ..trace import Trace, load_trace, parse_synthetic
from ..trace.synthetic import PREFIX
from .exits import Exit
from .output import JsonOption, console, plain_table, print_json

# Moments that the table of limits shows.
_MOMENTS = 12
_PLAIN = Options()


def simulate(
    traces: Annotated[
        list[str],
        typer.Argument(
            metavar="TRACE",
            help="One a VM: FILE, NAME=FILE, or synthetic:KIND[,KEY=VALUE]...",
            show_default=False,
        ),
    ],
    budget: Annotated[
        str,
        typer.Option(metavar="SIZE", help="For the limits of all VMs, 2G.", show_default=False),
    ],
    policy: Annotated[
        str,
        typer.Option(metavar="NAME", help="fixed, shares or stall, or an installed one."),
    ] = _PLAIN.policy,
    interval: Annotated[
        float,
        typer.Option(min=0.05, max=60, metavar="SECONDS", help="Time between decisions."),
    ] = _PLAIN.interval,
    rate: Annotated[
        str, typer.Option(metavar="SIZE", help="How fast limits fall, a second.")
    ] = "128M",
    stall_budget: Annotated[
        float,
        typer.Option(
            min=0, max=1, metavar="SHARE", help="Share of vCPU time that a guest may lose."
        ),
    ] = _PLAIN.stall_budget,
    fault_time: Annotated[
        str,
        typer.Option(metavar="TIME", help="What a page's way back costs: 10us, 60us, 1ms."),
    ] = "60us",
    picture: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            help="Draw it: .png, .svg or .pdf; needs matplotlib.",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Run a policy over traces: limits, faults and stall of guests that are only modelled."""
    setup = Setup(
        policy=policy,
        budget=parse_size(budget),
        interval=interval,
        rate=parse_size(rate),
        stall_budget=stall_budget,
        fault_cost=parse_duration(fault_time) / 1e9,
    )
    if picture is not None:
        check_plot(picture)
    plugin = load_policy(policy, stall_budget=stall_budget)
    report = Simulation(setup, plugin, [_trace(text) for text in traces]).run()
    if picture is not None:
        plot(report, picture)
    if json:
        print_json(report)
    else:
        _print_report(report)
    if report.policy_failures:
        raise typer.Exit(Exit.CHECK_FAILED)


def _trace(text: str) -> Trace:
    """What an argument names."""
    if text.startswith(PREFIX):
        return parse_synthetic(text)
    name, equals, path = text.partition("=")
    # A file whose name has an equals sign is still found.
    if equals and not Path(text).exists():
        return dataclasses.replace(load_trace(Path(path)), name=name)
    return load_trace(Path(text))


def _print_report(report: SimulationReport) -> None:
    settled = (
        "the limits were never within it"
        if report.settled_seconds is None
        else f"kept from {report.settled_seconds:g} s on"
        if not report.over_budget_seconds
        else f"kept from {report.settled_seconds:g} s on but for {report.over_budget_seconds:g} s"
    )
    print(
        f"policy {report.policy}, {report.seconds:g} s, budget"
        f" {format_size(report.budget_bytes)}: {settled}"
    )
    if report.policy_failures:
        print(f"{report.policy_failures} answers could not be used, first: {report.first_failure}")
    headings = ("VM", "RAM", "LIMIT MEAN", "MIN", "LAST", "RESIDENT", "RECLAIMED")
    table = plain_table(*headings, "FAULTS", "STALL", "WORST", "STALLED")
    for vm in report.vms:
        table.add_row(
            vm.vm_name,
            format_size(vm.ram_bytes),
            format_size(vm.limit_mean_bytes),
            format_size(vm.limit_min_bytes),
            format_size(vm.limit_last_bytes),
            format_size(vm.resident_mean_bytes),
            f"{100 * vm.reclaimed_share:.1f} %",
            str(vm.faults),
            f"{100 * vm.stall_mean:.2f} %",
            f"{100 * vm.stall_max:.2f} %",
            f"{vm.stalled_seconds:g} s",
        )
    out = console()
    out.print(table)
    out.print("")
    over_time = plain_table("LIMIT AT", *(vm.vm_name for vm in report.vms))
    last = len(report.times) - 1
    for index in sorted({round(last * moment / (_MOMENTS - 1)) for moment in range(_MOMENTS)}):
        over_time.add_row(
            f"{report.times[index]:g} s",
            *(
                format_size(vm.limit_bytes[index]) if vm.limit_bytes[index] else "-"
                for vm in report.vms
            ),
        )
    out.print(over_time)
