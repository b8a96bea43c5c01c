# SPDX-License-Identifier: GPL-2.0-or-later
"""``uffdmm check-host``: can VMs run here, and if not, what has to change."""

from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from .. import hostcheck, hostfacts, selftest
from ..errors import SelfTestError
from ..hostcheck import Check, Status
from .exits import Exit
from .output import JsonOption, console, print_json

_STYLES = {Status.PASS: "green", Status.WARN: "yellow", Status.FAIL: "bold red"}


class HostReport(BaseModel):
    """The JSON document of ``uffdmm check-host``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: Status = Field(description="the worst of all checks")
    user: str = Field(description="user that the permissions were checked for")
    kernel: str = Field(description="release of the running kernel")
    checks: list[Check] = Field(description="each with id, title, status, detail, remedy")


class TestedHostReport(HostReport):
    """The same with ``--self-test``."""

    __test__ = False  # pytest would take it for a test by its name

    evictions: int = Field(description="pages evicted with write protection")
    lost: int = Field(description="updates lost with write protection; must be 0")
    control_evictions: int = Field(description="pages evicted without it")
    control_lost: int = Field(description="updates lost without it; 0 means a blind test")


def check_host(
    self_test: Annotated[
        bool,
        typer.Option(
            "--self-test",
            help="Also run the eviction race on this kernel, with and without write protection.",
        ),
    ] = False,
    seconds: Annotated[
        int, typer.Option(min=1, max=60, help="Length of each half of the self-test.")
    ] = 3,
    store: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Also check this directory as the place of a file store."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Check this host: kernel features, permissions and limits, with the remedy for each."""
    facts = hostfacts.probe_host()
    checks = hostcheck.check_host(facts)
    for directory in store or []:
        checks += hostcheck.check_store(hostfacts.probe_store(directory))
    out = console()
    if not json:
        for check in checks:
            _print_check(out, check)
    race = None
    if self_test:
        try:
            race = _run_race(seconds)
            checks.append(hostcheck.check_race(race))
        except SelfTestError as error:
            checks.append(
                Check(
                    id="self-test",
                    title="eviction race",
                    status=Status.FAIL,
                    detail=error.message,
                    remedy="see the checks before",
                )
            )
        if not json:
            _print_check(out, checks[-1])
            if race is not None:
                _print_race(race)
    worst = hostcheck.overall(checks)
    report = HostReport(status=worst, user=facts.user, kernel=facts.kernel, checks=checks)
    if race is not None:
        report = TestedHostReport(
            **dict(report),
            evictions=race.evictions,
            lost=race.lost,
            control_evictions=race.control_evictions,
            control_lost=race.control_lost,
        )
    if json:
        print_json(report)
    if worst is Status.FAIL:
        raise typer.Exit(Exit.CHECK_FAILED)


def _print_check(out: Console, check: Check) -> None:
    line = Text.assemble(
        f"{check.title:<44} ", (check.status.value, _STYLES[check.status]), f"  {check.detail}"
    )
    out.print(line, soft_wrap=True)
    if check.remedy:
        out.print(f"{'':<44}   ->  {check.remedy}", soft_wrap=True)


def _print_race(race: selftest.RaceResult) -> None:
    print(f"evictions          {race.evictions}")
    print(f"lost               {race.lost}")
    print(f"control_evictions  {race.control_evictions}")
    print(f"control_lost       {race.control_lost}")


def _run_race(seconds: int) -> selftest.RaceResult:
    """Both halves, with progress on stderr."""
    out = console(stderr=True)
    evictions, lost = _half(out, "eviction race, with write protection", seconds, protect=True)
    control = _half(out, "eviction race, control without it", seconds, protect=False)
    return selftest.RaceResult(evictions, lost, control[0], control[1])


def _half(out: Console, label: str, seconds: int, *, protect: bool) -> tuple[int, int]:
    if not out.is_terminal:
        out.print(f"{label}: {seconds} s")
        return selftest.run_race(seconds, protect=protect)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out, transient=True) as progress:
        task = progress.add_task(label, total=seconds)
        return selftest.run_race(seconds, protect=protect, on_second=lambda: progress.advance(task))
