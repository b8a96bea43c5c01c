# SPDX-License-Identifier: GPL-2.0-or-later
"""``uffdmm exporter``: the statistics of all VMs for Prometheus."""

import signal
from typing import Annotated

import typer

from ..addresses import parse_address
from ..client import Manager
from ..metrics import MetricsServer, UffdmmCollector
from ..metrics.server import DEFAULT_LISTEN


def exporter(
    context: typer.Context,
    listen: Annotated[
        str,
        typer.Option(metavar="ADDR:PORT", help="Where to answer scrapes; port 0 takes a free one."),
    ] = DEFAULT_LISTEN,
) -> None:
    """Serve metrics of all VMs to Prometheus over HTTP until SIGTERM."""
    manager: Manager = context.obj
    address, port = parse_address(listen)
    # Blocked before the first thread is made: it inherits that, and only sigwait() gets them.
    ending = {signal.SIGTERM, signal.SIGINT}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    try:
        with MetricsServer(UffdmmCollector(manager), address, port) as server:
            shown = f"[{server.address}]" if ":" in server.address else server.address
            print(
                f"metrics of the manager at '{manager.socket_path}' are at"
                f" http://{shown}:{server.port}/metrics",
                flush=True,
            )
            signal.sigwait(ending)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
