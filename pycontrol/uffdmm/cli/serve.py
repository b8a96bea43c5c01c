# SPDX-License-Identifier: GPL-2.0-or-later
"""``uffdmm serve``: the control plane of this host, until it is ended."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from ..addresses import parse_address
from ..client import Manager
from ..config import Config, examine, read_document
from ..config.load import DEFAULT_FILE
from ..config.model import PoolTier
from ..migration.destination import Receiver, Settings
from ..policies import load_policy
from ..serve import Daemon, Options
from ..serve.log import Log
from ..sizes import parse_size
from .migrate import DEFAULT_CERTIFICATES, DEFAULT_MONITOR


def serve(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Configuration file, with drop-ins in FILE.d; /etc/uffdmm/uffdmm.toml by default.",
            show_default=False,
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="fixed, shares or stall, or an installed one.", show_default=False
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Memory for all VMs together, 24G.", show_default=False),
    ] = None,
    interval: Annotated[
        float | None,
        typer.Option(
            min=0.05, max=60, metavar="SECONDS", help="Time between samples.", show_default=False
        ),
    ] = None,
) -> None:
    """Share the memory of this host among its VMs; what is given here outranks the file."""
    # Without a file there are defaults: the options may say all that is needed.
    file = config or (DEFAULT_FILE if Path(DEFAULT_FILE).exists() else None)
    valid = examine(read_document(file)).require() if file else Config()
    options = options_of(
        valid,
        policy=policy,
        budget=None if budget is None else parse_size(budget),
        interval=interval,
    )
    plugin = load_policy(options.policy, stall_budget=options.stall_budget)
    manager: Manager = context.obj

    log, settings = Log(), settings_of(valid)

    async def run() -> None:
        receiver = Receiver(manager, settings, log) if settings else None
        await Daemon(manager, plugin, options, log).run(receiver)

    asyncio.run(run())


def settings_of(config: Config) -> Settings | None:
    """Where VMs of other hosts may come, None: nowhere."""
    table = config.migration
    if table.listen is None:
        return None
    address, port = parse_address(table.listen)
    return Settings(
        address=address,
        port=port,
        certificates=Path(table.certificates or DEFAULT_CERTIFICATES),
        qmp=table.qmp or DEFAULT_MONITOR,
        qmp_of={name: vm.qmp for name, vm in config.vm.items() if vm.qmp},
        allow=tuple(table.allow or ()),
        prefetch=table.prefetch is not False,
    )


def options_of(
    config: Config, *, policy: str | None, budget: int | None, interval: float | None
) -> Options:
    """The file's settings, with those of the command line in front."""
    table, plain = config.serve, Options()
    pools = [tier for tier in config.tier if isinstance(tier, PoolTier)]
    given = {
        name: {
            key: int(value)
            for key, value in (
                ("min_bytes", vm.min),
                ("max_bytes", vm.max),
                ("shares", vm.shares),
                ("priority", vm.priority),
                ("opt_out", vm.opt_out),
            )
            if value is not None
        }
        for name, vm in config.vm.items()
    }
    return Options(
        policy=policy or table.policy or plain.policy,
        budget=budget or table.budget or plain.budget,
        interval=interval or (table.interval / 1e9 if table.interval else plain.interval),
        rate=table.rate or plain.rate,
        stall_budget=plain.stall_budget if table.stall_budget is None else table.stall_budget,
        deadline=table.deadline / 1e9 if table.deadline else plain.deadline,
        settings=given,
        pool_inside_limit=bool(pools) and all(tier.inside_limit for tier in pools),
    )
