# SPDX-License-Identifier: GPL-2.0-or-later
"""``uffdmm events``: changes of state of VMs, workers and tiers, as they are seen."""

import sys
import time
from typing import Annotated

import typer

from ..client import Manager
from ..events import Event, EventSource
from ..watch import Watcher
from .output import IntervalOption
from .vm_name import OptionalVmArgument


def events(
    context: typer.Context,
    vm: OptionalVmArgument = None,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow", "-f", help="Go on until interrupted; else tell what is so now and end."
        ),
    ] = False,
    interval: IntervalOption = 1.0,
    json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON document a line; uffdmm(1) has the keys."),
    ] = False,
) -> None:
    """Tell which VMs there are and what is wrong with them, and then each change of that."""
    manager: Manager = context.obj
    if vm is not None and not follow:
        # Nobody to wait for: say that there is no such VM, as all commands do.
        manager.open_vm(vm).close()
    with Watcher(manager) as watcher:
        source = EventSource(watcher, vm)
        while True:
            for event in source.poll():
                print(event.model_dump_json() if json else _sentence(event))
            # Whoever reads a pipe wants a line when it happens.
            sys.stdout.flush()
            if not follow:
                return
            time.sleep(interval)


def _sentence(event: Event) -> str:
    """One line for people."""
    stamp = event.time.astimezone().isoformat(sep=" ", timespec="seconds")
    subject = event.vm_name or "manager"
    if event.tier:
        subject += f"/{event.tier}"
    words = [stamp, subject, event.event.value]
    if event.before and event.after:
        words.append(f"{event.before} -> {event.after}")
    elif event.before or event.after:
        words.append(event.after or f"was {event.before}")
    line = " ".join(words)
    return f"{line}: {event.detail}" if event.detail else line
