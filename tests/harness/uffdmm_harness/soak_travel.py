# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest of a soak that moves to and fro between two hosts while it works."""

import contextlib
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from . import HarnessError, places
from .certificates import Authority
from .guest import Guest
from .hosts import ControlPlane
from .machine import MachineConfig, external_memory
from .manager import Manager
from .port import GuestCorrupt, GuestPort, Record
from .soak_guest import PATIENCE, PATTERNS, GuestLoop

_REPORT_MS = 200
_GONE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Host:
    """A manager and a control plane."""

    manager: Manager
    plane: ControlPlane


class Hosts:
    """Two hosts on this one, with certificates, and a directory that both see.

    :param vm: the guest that is to move
    :param make_manager: starts a manager with these tiers, for as long as the soak
    """

    def __init__(
        self, vm: str, exits: contextlib.ExitStack, make_manager: Callable[..., Manager]
    ) -> None:
        folder = Path(
            exits.enter_context(
                tempfile.TemporaryDirectory(prefix="uffdmm-soak-", dir=places.DISK_FOLDER)
            )
        )
        shared = folder / "shared"
        shared.mkdir()
        authority = Authority(folder / "authority")
        self._hosts: list[Host] = []
        for name in ("first", "second"):
            manager = make_manager("ram=pool,capacity=16M", f"far=file,path={shared},shared=on")
            pki = authority.host(folder / f"{name}-pki", "127.0.0.1", "localhost")
            plane = ControlPlane(folder / name, manager.socket, pki, vms=(vm,))
            self._hosts.append(Host(manager, exits.enter_context(plane)))

    @property
    def here(self) -> Host:
        """Where the guest is."""
        return self._hosts[0]

    @property
    def there(self) -> Host:
        """Where it goes next."""
        return self._hosts[1]

    def swap(self) -> None:
        """It has moved."""
        self._hosts.reverse()


class TravellingLoop(GuestLoop):
    """Works like the others, and moves now and then in the middle of it.

    A migration may fail, for what it needs may just have been killed; then the guest goes on where
    it was.

    :param config: of the guest, without its memory and its monitor
    :param moved: told of the manager that it has now
    """

    def __init__(
        self,
        name: str,
        config: MachineConfig,
        hosts: Hosts,
        rng: random.Random,
        moved: Callable[[Manager], None],
    ) -> None:
        self._hosts, self._config, self._moved = hosts, config, moved
        guest = Guest(self._config_at(name, hosts.here))
        super().__init__(name, guest, rng)
        self.migrations = self.failed_migrations = 0

    def _config_at(self, name: str, host: Host, *words: str) -> MachineConfig:
        memory = external_memory(self._config.ram, host.manager.socket, extra=",reconnect-ms=100")
        arguments = [*host.plane.monitor(name), *words]
        return replace(
            self._config, objects=[memory], memory="mem0", name=name, arguments=arguments
        )

    def __enter__(self) -> Self:
        try:
            self._guest.boot()
        except BaseException:
            self._guest.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._guest.close()

    def works(self) -> list[tuple[Callable[[], None], int]]:
        return [*super().works(), (self._travel, 4)]

    def begin(self) -> None:
        """Fill, and move at least once."""
        super().begin()
        self._travel()

    def _travel(self) -> None:
        self.doing = "waiting until nobody disturbs its manager"
        with self.still:
            self.doing = "migrating"
            seed = self._rng.randrange(1, 1 << 31)
            pattern = self._rng.choice(PATTERNS)
            self._guest.port.send(f"run pattern={pattern} ms=0 seed={seed} report_ms={_REPORT_MS}")
            while self._guest.port.read(PATIENCE)["event"] != "progress":
                pass
            try:
                self._migrate()
                self.migrations += 1
            except GuestCorrupt:
                raise
            except HarnessError as error:
                self.failed_migrations += 1
                print(f"soak: migration of {self.vm} failed: {error}", flush=True)
            self.doing = "going on after a migration"
            records = self._guest.port.ask("stop", {"ran", "run-failed"}, PATIENCE)
            expect_sound(records)
            self.steps += int(records[-1]["steps"])

    def _migrate(self) -> None:
        here, there = self._hosts.here, self._hosts.there
        source = self._guest
        # The worker of its last stay may not have ended yet.
        _wait(lambda: not there.manager.client.list_vms(), "the end of the worker")
        words = ("-S", "-incoming", "defer")
        destination = Guest(self._config_at(self.vm, there, *words))
        try:
            destination.launch()
            here.plane.migrated(self.vm, "--to", there.plane.target)
        except BaseException:
            destination.close()
            raise
        self._guest = destination
        self._hosts.swap()
        self._moved(there.manager)
        source.wait()
        expect_sound(_rest_of(source.port))
        destination.port.continue_from(source.port)
        source.close()


def _rest_of(port: GuestPort) -> list[Record]:
    """What a QEMU that has ended left there."""
    records: list[Record] = []
    with contextlib.suppress(HarnessError, OSError):
        while True:
            records += port.arrived()
    return records


def expect_sound(records: list[Record]) -> None:
    """Nothing that the guest reported in a run was wrong.

    :raise GuestCorrupt: it was
    """
    wrong = [record for record in records if record["event"] in ("corrupt", "run-failed")]
    if wrong:
        raise GuestCorrupt(f"wrong memory met in a run during a migration: {wrong}")


def _wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _GONE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise HarnessError(f"{what}: not within {_GONE_SECONDS:g} s")
        time.sleep(0.05)
