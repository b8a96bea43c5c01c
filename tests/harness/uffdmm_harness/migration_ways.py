# SPDX-License-Identifier: GPL-2.0-or-later
"""One migration of the benchmark's guest, by Linux swap or by uffdmm, measured from outside.

Both ways go through the same steps: fill without a limit, lower the limit until the wanted part of
what is used is swapped, let the guest run, migrate it while it runs, watch it for a while on the
other side, verify every byte there.  What is measured is read from the same places: times from the
events of both QEMUs and from the guest's records, sizes from QEMU.
"""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import HarnessError, accel, hostmem, places
from .certificates import Authority
from .guest import Guest
from .hosts import ControlPlane
from .machine import GIB, MIB, MachineConfig, external_memory
from .manager import Manager
from .migration_guest import (
    REPORT_MS,
    Growth,
    StepWatch,
    longest_gap_ms,
    longest_stand_ms,
    rate,
)
from .nativeswap import MemoryCgroup, SwapFile
from .patterns import FILL, RAM, SEED, VM, drop_caches
from .progress import Progress

STOCK, UFFDMM = "stock", "uffdmm"
STEPS_OF_CASE = 4
_PAGE = 4096
_SQUEEZE_SECONDS = 120.0
_MIGRATE_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What one case is.

    :param swapped: percent of what the guest uses
    :param placement: how pages came into their slots: ``hot`` by the guest's running, ``random``
        by a pattern of that name before, ``ordered`` by nothing but the lowered limit; there the
        guest does nothing at all
    :param roomy: the destination has room for all of the guest
    """

    name: str
    way: str
    swapped: int
    placement: str = "hot"
    tls: bool = False
    roomy: bool = False
    prefetch: bool = True


@dataclass(frozen=True, slots=True)
class Size:
    """How large and long a case is."""

    seconds: float  # of each stretch before the migration
    after: float = 10.0
    ram: int = RAM
    fill: int = FILL


@dataclass(slots=True)
class Case:
    """What was measured of one case in one round; milliseconds, bytes, pages of 4 KiB."""

    name: str
    way: str
    swapped_percent: int
    round: int
    used_bytes: int
    limit_bytes: int | None
    swapped_bytes: int
    total_ms: float
    downtime_ms: float | None  # how long the guest's clock stood
    stopped_ms: float  # between the events STOP and RESUME
    gap_max_ms: float | None  # longest between two steps by the guest's clock
    bytes: int
    location_bytes: int
    pages_by_location: int
    pages_by_content: int
    bypass_pages: int
    source_swap_ins: int
    steps_per_s_before: float | None
    steps_per_s_during: float | None
    guest_slowdown: float | None
    steps_per_s_after: float | None
    dest_demand_faults_10s: int
    iterations: int
    host_swap_pages: int
    handover_ms: float | None = None
    verified: bool = False

    @property
    def location_bytes_per_page(self) -> float | None:
        """Bytes of locations for each page that was swapped."""
        pages = self.swapped_bytes // _PAGE
        return self.location_bytes / pages if pages and self.way == UFFDMM else None


@dataclass(frozen=True, slots=True)
class _Side:
    """One side of a migration, and how to look at it."""

    guest: Guest
    faults: Callable[[], int]  # demand faults so far
    swapped: Callable[[], int] = lambda: 0


@dataclass(frozen=True, slots=True)
class _Sent:
    """What a way itself knows of its migration."""

    bytes: int
    swap_ins: int
    iterations: int
    location_bytes: int = 0
    by_location: int = 0
    by_content: int = 0
    bypass: int = 0
    handover_ms: float | None = None


@dataclass(frozen=True, slots=True)
class _Squeezed:
    used: int
    limit: int | None


class Ways:
    """Runs cases.

    :param folder: where swap file and shared tier lie
    """

    def __init__(self, size: Size, folder: Path, progress: Progress) -> None:
        self._size, self._folder, self._progress = size, folder, progress
        self._accel = accel.choose()

    def run(self, plan: Plan, number: int) -> Case:
        """One case.

        :raise HarnessError: it failed, or a byte is wrong on the destination
        """
        drop_caches()
        self._step(plan, number, f"booting and filling {self._size.fill // MIB} MiB")
        with tempfile.TemporaryDirectory(prefix="uffdmm-bench-", dir=self._folder) as folder:
            way = self._stock if plan.way == STOCK else self._uffdmm
            with way(plan, Path(folder)) as run:
                return run(number)

    def _step(self, plan: Plan, number: int, text: str) -> None:
        self._progress.step(f"{plan.name} {plan.swapped} %, round {number}: {text}")

    def _config(self, memory: str | None, words: list[str]) -> MachineConfig:
        config = MachineConfig(accel=self._accel, ram=self._size.ram, name=VM, arguments=words)
        if memory:
            config.objects, config.memory = [memory], "mem0"
        return config

    @contextlib.contextmanager
    def _filled(self, config: MachineConfig, wrapper: list[str]) -> Iterator[Guest]:
        with Guest(config, wrapper=wrapper) as guest:
            guest.boot()
            guest.port.fill(self._size.fill, seed=SEED, timeout=600)
            yield guest

    # -- Linux swap ----------------------------------------------------------

    @contextlib.contextmanager
    def _stock(self, plan: Plan, folder: Path) -> Iterator[Callable[[int], Case]]:
        tag = f"uffdmm-bench-{os.getpid()}"
        ram = self._size.ram
        with contextlib.ExitStack() as exits:
            cgroups: list[MemoryCgroup] = []
            if plan.swapped:
                # Each side has its own in the end; one file holds what both have out.
                exits.enter_context(SwapFile(folder, 2 * GIB))
                cgroups = [
                    exits.enter_context(MemoryCgroup(f"{tag}-{side}", 4 * GIB)) for side in "ab"
                ]
            wrappers = [cgroup.enter_command() for cgroup in cgroups] or [[], []]
            source = exits.enter_context(self._filled(self._config(None, []), wrappers[0]))
            memory = hostmem.AnonymousRam(source.pid, ram)
            used = memory.sample().resident
            limit = None
            if cgroups:
                limit = hostmem.process_charged(source.pid) - used * plan.swapped // 100
                cgroups[0].squeeze(limit)
                cgroups[1].set_limit(limit)
            destination = exits.enter_context(
                Guest(self._config(None, ["-incoming", "defer"]), wrapper=wrappers[1])
            )
            destination.launch()
            vcpu = int(source.qmp("query-cpus-fast")[0]["thread-id"])

            def migrate() -> _Sent:
                before = _major_faults(source.pid, vcpu)
                _stock_migration(source, destination)
                info = source.qmp("query-migrate")
                return _Sent(
                    bytes=info["ram"]["transferred"],
                    swap_ins=_major_faults(source.pid, vcpu) - before,
                    iterations=info["ram"]["dirty-sync-count"],
                )

            sides = (
                _Side(source, lambda: 0, lambda: memory.sample().swapped),
                _Side(destination, lambda: _major_faults(destination.pid)),
            )
            yield lambda number: self._measure(plan, number, sides, _Squeezed(used, limit), migrate)

    # -- uffdmm --------------------------------------------------------------

    @contextlib.contextmanager
    def _uffdmm(self, plan: Plan, folder: Path) -> Iterator[Callable[[int], Case]]:
        shared = folder / "shared"
        shared.mkdir()
        ram = self._size.ram
        settings: dict[str, Any] = {
            "tiers": (f"far=file,path={shared},shared=on",),
            "arguments": ["--demote-after", "never"],
            "folder": folder,
        }
        with contextlib.ExitStack() as exits:
            authority = Authority(folder / "authority")
            here = exits.enter_context(Manager(limit=str(ram), **settings))
            planes = [self._plane(exits, folder / "a", here, authority)]
            words = planes[0].monitor(VM)
            config = self._config(external_memory(ram, here.socket), words)
            source = exits.enter_context(self._filled(config, []))
            vm = exits.enter_context(here.vm(VM))
            resident = hostmem.MemfdFiles(source.pid, ram).resident
            used = resident()
            limit = used * (100 - plan.swapped) // 100 & -_PAGE if plan.swapped else ram
            vm.set_policy(limit_bytes=limit)
            _wait(lambda: resident() <= limit, f"{limit} bytes resident", _SQUEEZE_SECONDS)

            over_there = ram if plan.roomy else limit
            there = exits.enter_context(Manager(limit=str(over_there), **settings))
            more = "" if plan.prefetch else "prefetch = false"
            planes.append(self._plane(exits, folder / "b", there, authority, more))
            words = [*planes[1].monitor(VM), "-S", "-incoming", "defer"]
            config = self._config(external_memory(ram, there.socket), words)
            destination = exits.enter_context(Guest(config))
            destination.launch()
            moved = exits.enter_context(there.vm(VM))

            def migrate() -> _Sent:
                target = ["--to", planes[1].target, "--keep"]
                target += [] if plan.tls else ["--direct"]
                report = planes[0].migrated(VM, *target, timeout=_MIGRATE_SECONDS)
                info = source.qmp("query-migrate")
                return _Sent(
                    bytes=report["bytes"],
                    swap_ins=report["source_swap_ins"],
                    iterations=info["ram"]["dirty-sync-count"],
                    location_bytes=report["location_bytes"],
                    by_location=report["pages_by_location"],
                    by_content=report["pages_by_content"],
                    bypass=report["bypass_pages"],
                    handover_ms=report["handover_ms"],
                )

            sides = (
                _Side(source, lambda: 0, lambda: vm.statistics().stored_bytes),
                _Side(destination, lambda: moved.statistics().faults_store),
            )
            yield lambda number: self._measure(plan, number, sides, _Squeezed(used, limit), migrate)

    def _plane(
        self,
        exits: contextlib.ExitStack,
        folder: Path,
        manager: Manager,
        authority: Authority,
        more: str = "",
    ) -> ControlPlane:
        pki = authority.host(folder / "pki", "127.0.0.1", "localhost")
        return exits.enter_context(ControlPlane(folder, manager.socket, pki, more=more, vms=(VM,)))

    # -- what both have in common --------------------------------------------

    def _measure(
        self,
        plan: Plan,
        number: int,
        sides: tuple[_Side, _Side],
        squeezed: _Squeezed,
        migrate: Callable[[], _Sent],
    ) -> Case:
        source, destination = (side.guest for side in sides)
        seconds = self._size.seconds
        self._step(plan, number, "before the migration")
        if plan.placement == "random":
            source.port.run("random", seconds, seed=number, timeout=600)
        watch = None
        if plan.placement != "ordered":
            source.port.send(f"run pattern=hot ms=0 seed={number} report_ms={REPORT_MS}")
            watch = StepWatch(source.port)
            # The first half is for the memory that the pattern needs to come in.
            time.sleep(2 * seconds)
            watch.check()
            watch.expect(destination.port)
        self._step(plan, number, "migrating")
        for side in sides:
            side.guest.qmp(
                "migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}]
            )
            side.guest.events()
        swapped = sides[0].swapped()
        host = hostmem.host_swap()
        faults = Growth(sides[1].faults)
        sent = migrate()
        moved = hostmem.host_swap() - host
        at = dict(reversed(source.events()))
        begin, stopped = at["MIGRATION"], at["STOP"]
        resumed = dict(destination.events())["RESUME"]
        time.sleep(max(0.0, resumed + self._size.after - time.time()))
        faults.stop()
        stretches = []
        if watch is not None:
            watch.finish()
            stretches = watch.stretches
        before = rate(stretches, begin - seconds, begin)
        during = rate(stretches, begin, stopped)
        case = Case(
            name=plan.name,
            way=plan.way,
            swapped_percent=plan.swapped,
            round=number,
            used_bytes=squeezed.used,
            limit_bytes=squeezed.limit,
            swapped_bytes=swapped,
            total_ms=round((resumed - begin) * 1000, 1),
            downtime_ms=_rounded(longest_stand_ms(stretches, begin, resumed)),
            stopped_ms=round((resumed - stopped) * 1000, 1),
            gap_max_ms=_rounded(longest_gap_ms(stretches, begin, resumed)),
            bytes=sent.bytes,
            location_bytes=sent.location_bytes,
            pages_by_location=sent.by_location,
            pages_by_content=sent.by_content,
            bypass_pages=sent.bypass,
            source_swap_ins=sent.swap_ins,
            steps_per_s_before=_rounded(before),
            steps_per_s_during=_rounded(during),
            guest_slowdown=round(during / before, 3) if before and during else None,
            steps_per_s_after=_rounded(rate(stretches, resumed, resumed + self._size.after)),
            dest_demand_faults_10s=faults.between(resumed, resumed + self._size.after),
            iterations=sent.iterations,
            host_swap_pages=moved.pages_in + moved.pages_out,
            handover_ms=sent.handover_ms,
        )
        self._step(plan, number, "verifying every byte on the destination")
        verified = destination.port.verify(timeout=900)
        case.verified = verified.verified and verified.pages == self._size.fill // _PAGE
        if not case.verified:
            raise HarnessError(f"wrong memory after {plan.name} at {plan.swapped} %: {verified}")
        return case


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def _wait(condition: Callable[[], bool], what: str, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise HarnessError(f"{what}: not within {timeout:.0f} s")
        time.sleep(0.05)


def _stock_migration(source: Guest, destination: Guest) -> None:
    """As QEMU by itself does it, with the same bandwidth and downtime limit.

    :raise HarnessError: it failed, or came to no end
    """
    destination.qmp("migrate-incoming", uri="tcp:127.0.0.1:0")
    port = destination.qmp("query-migrate")["socket-address"][0]["port"]
    source.qmp("migrate-set-parameters", max_bandwidth=1 << 40)
    source.qmp("migrate", uri=f"tcp:127.0.0.1:{port}")
    ending = ""

    def ended() -> bool:
        nonlocal ending
        ending = source.qmp("query-migrate", timeout=60)["status"]
        return ending in ("completed", "failed", "cancelled")

    _wait(ended, "stock migration", _MIGRATE_SECONDS)
    if ending != "completed":
        raise HarnessError(f"the stock migration {ending}: {source.stderr} {destination.stderr}")
    _wait(
        lambda: bool(destination.qmp("query-status", timeout=60)["running"]),
        *("the guest on the destination", _MIGRATE_SECONDS),
    )


def _major_faults(pid: int, but_thread: int | None = None) -> int:
    """Major faults of a process, those of one thread left out."""
    faults = _majflt(Path(f"/proc/{pid}/stat"))
    if but_thread is not None:
        faults -= _majflt(Path(f"/proc/{pid}/task/{but_thread}/stat"))
    return faults


def _majflt(stat: Path) -> int:
    # Word 12; the second may contain blanks.
    return int(stat.read_text().rsplit(")", 1)[1].split()[9])


def check_places() -> None:
    """Find all programs before anything is measured.

    :raise HarnessError: one is missing
    """
    places.qemu()
    places.guest_image()
    places.manager()


__all__ = ["STEPS_OF_CASE", "STOCK", "UFFDMM", "Case", "Plan", "Size", "Ways", "check_places"]
