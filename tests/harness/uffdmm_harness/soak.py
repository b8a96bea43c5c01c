# SPDX-License-Identifier: GPL-2.0-or-later
"""``scripts/soak``: guests that fill, touch and verify memory while everything around them fails.

One of them migrates to and fro.

The seed decides what is done to whom, in which order and after which pauses (:mod:`soak_plan`);
what meets what in time is up to the machine, so a failing seed is run again, more than once if need
be.

The exit status is 0 only if no guest met a wrong byte, none of them hung, and all of them verified
their memory after the last disturbance.
"""

import argparse
import contextlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from uffdmm.errors import UffdmmError

from . import HarnessError, accel, interrupts, places
from .guest import Guest
from .machine import MIB, MachineConfig, external_memory
from .manager import Manager
from .nbdserver import NbdMissingError, NbdServer
from .soak_count import Counts
from .soak_guest import FILL, GuestLoop
from .soak_plan import ACTIONS, Action, Plan
from .soak_travel import Hosts, TravellingLoop

RAM = 160 * MIB
LIMIT = 64 * MIB
# What a guest may wait after the last disturbance before it counts as hung: slots of an NBD
# export to which a dead worker may have been writing are held back for two minutes.
HUNG_SECONDS = 180.0
# Nothing of it happens to a guest that migrates.
_DEADLY = ("kill_worker", "kill_manager", "stop_worker")


def _say(text: str) -> None:
    print(f"soak: {text}", file=sys.stderr, flush=True)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/soak",
        description="Several guests under a random mix of workloads, limits, evictions, kills and "
        "store faults, with every byte verified.",
    )
    parser.add_argument("--minutes", type=float, default=10, metavar="N", help="default 10")
    parser.add_argument("--seed", type=int, metavar="S", help="default: a new one, printed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the summary as JSON")
    parser.add_argument(
        "--without",
        nargs="+",
        default=[],
        choices=sorted(ACTIONS),
        metavar="ACTION",
        help="leave these out: " + ", ".join(sorted(ACTIONS)),
    )
    options = parser.parse_args(arguments)
    if options.minutes <= 0:
        parser.error(f"--minutes {options.minutes:g}: must be more than 0")
    if options.json and not options.json.parent.is_dir():
        parser.error(f"--json {options.json}: its folder does not exist")
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1 << 32)
    return options


class Soak:
    """One run; :attr:`summary` is filled when it is over."""

    def __init__(self, minutes: float, seed: int, without: list[str]) -> None:
        self._seconds = minutes * 60
        self._plan = Plan(seed, without)
        self._exits = contextlib.ExitStack()
        self._managers: list[Manager] = []
        self._owner: dict[str, Manager] = {}
        self._loops: dict[str, GuestLoop] = {}
        self._traveller: TravellingLoop | None = None
        self._server: NbdServer | None = None
        self._triggers: dict[str, Path] = {}
        self._counts = Counts()
        self.summary: dict[str, Any] = {"seed": seed, "minutes": minutes}

    def run(self) -> bool:
        """Start all, disturb, let go, verify; true when nothing was lost."""
        with self._exits:
            self._start()
            started = time.monotonic()
            for loop in self._loops.values():
                loop.start()
            while time.monotonic() < started + self._seconds and not self._broken():
                pause, action, name = self._plan.next(sorted(self._loops))
                self._wait(pause)
                self._disturb(action, name)
            self._calm()
            good = self._settle()
            self._counts.sample(self._owner)
        self._summarize(good)
        return good

    # -- what there is -----------------------------------------------------

    def _start(self) -> None:
        chosen = accel.choose()
        self.summary["accel"] = chosen
        for name in ("error", "delay"):
            folder = Path(
                self._exits.enter_context(tempfile.TemporaryDirectory(prefix="uffdmm-soak-"))
            )
            self._triggers[name] = folder / name
        local = self._manager(
            "ram=pool,capacity=16M",
            f"disk=file,path={{store}},error-trigger={self._triggers['error']},error-rate=0.3,"
            f"delay-trigger={self._triggers['delay']},delay-read=20ms,delay-write=20ms",
        )
        self._boot(chosen, "a", local)
        self._boot(chosen, "b", local)
        try:
            self._server = self._exits.enter_context(NbdServer(2 * RAM, written=False))
        except NbdMissingError as error:
            _say(f"{error}: the third guest has a file in place of an NBD server")
        remote = f"net=nbd,uri={self._server.uri}" if self._server else "disk=file,path={store}"
        self._boot(chosen, "c", self._manager("ram=pool,capacity=16M,codec=zstd", remote))
        hosts = Hosts("d", self._exits, self._manager)
        self._traveller = self._exits.enter_context(
            TravellingLoop(
                *("d", MachineConfig(accel=chosen, ram=RAM), hosts, self._plan.child("d")),
                lambda manager: self._owner.update(d=manager),
            )
        )
        self._owner["d"], self._loops["d"] = hosts.here.manager, self._traveller

    def _manager(self, *tiers: str) -> Manager:
        manager = Manager(limit=f"{LIMIT // MIB}M", tiers=tiers, arguments=["--demote-after", "2s"])
        self._exits.enter_context(manager)
        self._managers.append(manager)
        return manager

    def _boot(self, chosen: str, name: str, manager: Manager) -> None:
        config = MachineConfig(
            accel=chosen,
            ram=RAM,
            objects=[external_memory(RAM, manager.socket, extra=",reconnect-ms=100")],
            memory="mem0",
            name=name,
        )
        guest = self._exits.enter_context(Guest(config)).boot()
        self._owner[name] = manager
        self._loops[name] = GuestLoop(name, guest, self._plan.child(name))

    # -- what is done to it ------------------------------------------------

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self._broken():
            self._counts.sample(self._owner)
            time.sleep(min(0.2, max(0, deadline - time.monotonic())))

    def _broken(self) -> bool:
        return any(loop.failure for loop in self._loops.values())

    def _disturb(self, action: Action, name: str) -> None:
        _say(f"{action.name} {name} {action.value or ''}".rstrip())
        still = self._loops[name].still
        if action.name in _DEADLY and not still.acquire(blocking=False):
            # What dies in the middle of a migration has tests of its own, which know what follows.
            self._counts.missed += 1
            _say(f"{action.name} {name}: not now: it migrates")
            return
        try:
            getattr(self, "_do_" + action.name)(name, action.value)
        except (UffdmmError, ProcessLookupError) as error:
            # the worker may be between two lives
            self._counts.missed += 1
            _say(f"{action.name} {name}: not now: {error}")
        finally:
            if action.name in _DEADLY:
                still.release()

    def _with_vm(self, name: str, use: Callable[[Any], object]) -> None:
        with self._owner[name].vm(name) as vm:
            use(vm)

    def _do_limit(self, name: str, value: int) -> None:
        self._with_vm(name, lambda vm: vm.set_policy(limit_bytes=value * MIB))
        self._counts.limits += 1

    def _do_evict(self, name: str, value: int) -> None:
        self._with_vm(name, lambda vm: vm.evict(value * MIB))

    def _do_prefetch(self, name: str, value: int) -> None:
        self._with_vm(name, lambda vm: vm.prefetch(value * MIB))

    def _do_kill_worker(self, name: str, value: int) -> None:
        del value
        self._counts.kill(self._owner[name].worker_pid(name))

    def _do_kill_manager(self, name: str, value: int) -> None:
        manager = self._owner[name]
        self._counts.sample(self._owner)
        self._counts.kills += 1 + sum(1 for owner in self._owner.values() if owner is manager)
        manager.kill()
        self._wait(value / 1000)
        manager.start()

    def _do_stop_worker(self, name: str, value: int) -> None:
        with self._counts.stopped(self._owner[name].worker_pid(name)):
            self._wait(value / 1000)

    def _do_store_errors(self, name: str, value: int) -> None:
        del name
        self._triggered("error", value)

    def _do_store_delays(self, name: str, value: int) -> None:
        del name
        self._triggered("delay", value)

    def _triggered(self, which: str, milliseconds: int) -> None:
        trigger = self._triggers[which]
        trigger.touch()
        self._wait(milliseconds / 1000)
        trigger.unlink(missing_ok=True)

    def _do_server_killed(self, name: str, value: int) -> None:
        del name
        if self._server:
            self._server.kill()
            self._wait(value / 1000)
            self._server.start()
            self._counts.servers_killed += 1

    def _do_server_paused(self, name: str, value: int) -> None:
        del name
        if self._server:
            with self._server.paused():
                self._wait(value / 1000)

    # -- the end -----------------------------------------------------------

    def _calm(self) -> None:
        for trigger in self._triggers.values():
            trigger.unlink(missing_ok=True)

    def _settle(self) -> bool:
        """Let every guest finish what it does and verify once more."""
        for loop in self._loops.values():
            loop.finish()
        deadline = time.monotonic() + HUNG_SECONDS
        while time.monotonic() < deadline and not all(
            loop.ended or loop.failure for loop in self._loops.values()
        ):
            self._counts.sample(self._owner)
            time.sleep(0.2)
        good = True
        for name, loop in self._loops.items():
            if loop.failure:
                _say(f"guest {name}: {loop.failure}")
            elif not loop.ended:
                _say(f"guest {name} hung: it was {loop.doing}")
                _say(self._owner[name].log[-2000:])
            good = good and loop.ended and not loop.failure
        return good

    def _summarize(self, good: bool) -> None:
        loops = self._loops.values()
        self.summary.update(
            passed=good,
            guests=len(self._loops),
            fill_bytes=FILL,
            **self._counts.summary(),
            migrations=self._traveller.migrations if self._traveller else 0,
            failed_migrations=self._traveller.failed_migrations if self._traveller else 0,
            bytes_verified=sum(loop.bytes_verified for loop in loops),
            steps=sum(loop.steps for loop in loops),
            discards=sum(loop.releases for loop in loops),
            wrong_bytes=sum(loop.wrong_bytes for loop in loops),
            hung=sum(1 for loop in loops if not loop.ended and not loop.failure),
        )


def main(arguments: list[str] | None = None) -> int:
    """Soak; the exit status."""
    options = _parse(arguments)
    _say(f"seed {options.seed}")
    soak = Soak(options.minutes, options.seed, options.without)
    good = False
    with contextlib.suppress(KeyboardInterrupt), interrupts.as_exceptions():
        try:
            places.qemu()
            places.guest_image()
            good = soak.run()
        except HarnessError as error:
            _say(str(error))
            soak.summary["error"] = str(error)
    if options.json:
        options.json.write_text(json.dumps(soak.summary, indent=2) + "\n")
    print(json.dumps(soak.summary))
    if not good:
        _say(f"failed: run again with --seed {options.seed}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
