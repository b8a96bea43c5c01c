# SPDX-License-Identifier: GPL-2.0-or-later
"""The two ways to keep three guests on one budget, and one guest under the stall-driven policy.

Each way boots the guests of consolidation_trio.py, and yields what was seen of their memory beside
what they achieved.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from uffdmm.client import VirtualMachine
from uffdmm.serve.host import overhead

from . import HarnessError, accel, hostmem
from .consolidation_trio import BUSY, NAMES, Outcome, Trio, Work, fill
from .guest import Guest, pin_to
from .machine import GIB, MIB, MachineConfig, external_memory
from .manager import Manager
from .nativeswap import MemoryCgroup, SwapFile
from .patterns import drop_caches
from .sampler import Sampler
from .serveprocess import ServeProcess

# Longer than a page of memory takes to walk: /proc/PID/smaps of three guests is dear.
_NATIVE_INTERVAL = 1.0
_INTERVAL = 0.1


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large everything is, in bytes; tests have smaller ones."""

    budget: int = 3 * GIB // 2
    ram: int = 1 * GIB
    fill: int = 800 * MIB
    swap: int = 2 * GIB


@dataclass(slots=True)
class Setting:
    """What all runs have in common."""

    sizes: Sizes
    works: dict[str, Work]
    seconds: float
    settle: float  # seconds between the last fill and the first phase
    store: Path
    pins: tuple[int, ...]
    serve: dict[str, int | float | str]  # [serve], without budget and policy
    tell: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Seen:
    """Memory at one moment; seconds since the change (negative: before it)."""

    at: float
    resident: dict[str, int]
    limit: dict[str, int]
    overhead: int


@dataclass(slots=True)
class WayRun:
    """One way, once."""

    way: str
    round: int
    outcome: Outcome = field(default_factory=Outcome)
    guest_resident_bytes: int = 0  # of all guests, mean over both phases
    within_bytes: int = 0  # most that counts against the budget at one moment
    budget_bytes: int = 0
    history: list[Seen] = field(default_factory=list)
    host_swap_pages: int = 0
    policy_log: str = ""


def native(setting: Setting, number: int) -> WayRun:
    """Linux swap, one memory cgroup for all three."""
    run = WayRun("swap-file", number, budget_bytes=setting.sizes.budget)
    drop_caches()
    with (
        SwapFile(setting.store, setting.sizes.swap),
        MemoryCgroup(f"uffdmm-bench-{os.getpid()}", setting.sizes.budget) as cgroup,
        _guests(setting, lambda _: None, cgroup.enter_command()) as guests,
    ):
        rams = [hostmem.AnonymousRam(guest.pid, setting.sizes.ram) for guest in guests]

        def resident() -> int:
            mapped = sum(ram.sample().resident for ram in rams)
            return mapped + cgroup.unmapped_anonymous()

        trio = Trio(guests, setting.works, setting.seconds, setting.tell)
        time.sleep(setting.settle)
        with Sampler(resident, _NATIVE_INTERVAL) as sampled:
            run.outcome = trio.run(seed=number)
        run.guest_resident_bytes = round(sampled.mean)
        run.within_bytes = sampled.maximum
        trio.verify(run.outcome)
    return run


def managed(setting: Setting, number: int, budget: int) -> WayRun:
    """uffdmm: a manager, and ``uffdmm serve`` that shares ``budget`` out."""
    run = WayRun("uffdmm", number, budget_bytes=budget)
    swap = hostmem.host_swap()
    drop_caches()
    with contextlib.ExitStack() as exits:
        # A guest begins with its third, and with what its worker needs taken off.
        first = (budget // len(NAMES) - 32 * MIB) & -4096
        manager = exits.enter_context(Manager(limit=str(first), folder=setting.store))
        serve = exits.enter_context(
            ServeProcess(
                manager,
                {"budget": budget, "policy": "shares", **setting.serve},
            )
        )
        guests = exits.enter_context(
            _guests(setting, lambda name: external(setting, manager, name))
        )
        vms = {name: exits.enter_context(manager.vm(name)) for name in NAMES}
        files = {
            name: hostmem.MemfdFiles(guest.pid, setting.sizes.ram)
            for name, guest in zip(NAMES, guests, strict=True)
        }
        moments: list[tuple[float, Seen]] = []

        def look() -> int:
            seen = _look(vms, files)
            moments.append((time.monotonic(), seen))
            return sum(seen.resident.values()) + seen.overhead

        trio = Trio(guests, setting.works, setting.seconds, setting.tell)
        time.sleep(setting.settle)
        with Sampler(look, _INTERVAL) as sampled:
            run.outcome = trio.run(seed=number)
            during = len(moments)
            trio.verify(run.outcome)
        serve.check()
        run.policy_log = serve.log
    run.within_bytes = sampled.maximum
    phases = [seen for _, seen in moments[:during]]
    run.guest_resident_bytes = round(
        sum(sum(seen.resident.values()) for seen in phases) / len(phases)
    )
    run.history = [
        Seen(round(at - run.outcome.changed_at, 2), seen.resident, seen.limit, seen.overhead)
        for at, seen in moments[:during:5]
    ]
    moved = hostmem.host_swap() - swap
    run.host_swap_pages = moved.pages_in + moved.pages_out
    if not moved.idle:
        raise HarnessError(
            f"the host swapped during a run of uffdmm ({moved.pages_in} pages in, "
            f"{moved.pages_out} out): give it more free memory or switch its swap off"
        )
    return run


def _look(vms: dict[str, VirtualMachine], files: dict[str, hostmem.MemfdFiles]) -> Seen:
    stats = {name: vm.statistics() for name, vm in vms.items()}
    return Seen(
        0,
        {name: file.resident() for name, file in files.items()},
        {name: each.limit_bytes or each.ram_bytes for name, each in stats.items()},
        sum(overhead(each, pool_inside_limit=True) for each in stats.values()),
    )


@dataclass(frozen=True, slots=True)
class IdleRun:
    """A guest that uses a small part of its memory, under the stall-driven policy."""

    round: int
    seconds: float
    resident_before_bytes: int
    resident_after_bytes: int
    stall_share: float  # of the vCPU's time since the control plane was started
    steps_per_s: float
    verified: bool

    @property
    def reclaimed_share(self) -> float:
        """Of what was resident before."""
        return 1 - self.resident_after_bytes / self.resident_before_bytes


def idle_heavy(setting: Setting, number: int, seconds: float) -> IdleRun:
    """The guest ``idle`` with a little work, alone under the policy ``stall``.

    :raise HarnessError: a byte of its memory is wrong
    """
    with contextlib.ExitStack() as exits:
        manager = exits.enter_context(Manager(folder=setting.store))
        guest = exits.enter_context(
            _guest(setting, BUSY, external(setting, manager, BUSY), setting.pins[:1])
        )
        setting.tell("an idle-heavy guest under the policy 'stall': booting and filling")
        guest.boot()
        fill(guest, setting.sizes.fill // MIB, 1)
        vm = exits.enter_context(manager.vm(BUSY))
        file = hostmem.MemfdFiles(guest.pid, setting.sizes.ram)
        before, started, resident = vm.statistics(), time.monotonic(), file.resident()
        table = {"budget": setting.sizes.budget, "policy": "stall", **setting.serve}
        with ServeProcess(manager, table):
            setting.tell("the policy 'stall' takes what the guest does not feel")
            result = guest.port.run(
                setting.works["little"].pattern,
                seconds,
                seed=number,
                span=setting.works["little"].span,
                timeout=seconds + 300,
            )
            after, ended, left = vm.statistics(), time.monotonic(), file.resident()
        setting.tell("verifying every byte of the idle-heavy guest")
        verified = guest.port.verify(timeout=900)
        if not verified.verified:
            raise HarnessError(f"wrong memory in the idle-heavy guest: {verified.named}")
    return IdleRun(
        round=number,
        seconds=seconds,
        resident_before_bytes=resident,
        resident_after_bytes=left,
        stall_share=(after.fault_ns - before.fault_ns) / 1e9 / (ended - started),
        steps_per_s=result.steps_per_s,
        verified=verified.verified,
    )


# -- guests --------------------------------------------------------------------


def external(setting: Setting, manager: Manager, name: str) -> str:
    """Memory of the manager for a guest."""
    return external_memory(setting.sizes.ram, manager.socket, vm_name=name)


def _guest(
    setting: Setting,
    name: str,
    memory: str | None,
    pin: Sequence[int],
    enter: Sequence[str] = (),
) -> Guest:
    config = MachineConfig(
        accel=accel.choose(), ram=setting.sizes.ram, name=f"{name},debug-threads=on"
    )
    if memory:
        config.objects = [memory]
        config.memory = "mem0"
    return Guest(config, wrapper=[*enter, *(pin_to(pin[0]) if pin else ())])


@contextlib.contextmanager
def _guests(
    setting: Setting, memory: Callable[[str], str | None], enter: Sequence[str] = ()
) -> Iterator[list[Guest]]:
    """Booted and filled, one after the other."""
    with contextlib.ExitStack() as exits:
        guests = []
        for index, name in enumerate(NAMES):
            setting.tell(f"booting and filling '{name}'")
            pin = setting.pins[index % len(setting.pins) :] if setting.pins else ()
            guest = exits.enter_context(_guest(setting, name, memory(name), pin, enter))
            guest.boot()
            fill(guest, setting.sizes.fill // MIB, index + 1)
            guests.append(guest)
        yield guests
