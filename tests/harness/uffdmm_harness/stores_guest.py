# SPDX-License-Identifier: GPL-2.0-or-later
"""``scripts/bench stores``, section ``guest``: the guest of ``overcommit`` on pools.

Two comparisons, all four in turns:

* Linux swap on zram against a pool of the same codec.  Neither store is in the limit: the kernel
  charges no cgroup for zram, and the pool is told not to be.  The limit of the manager is, pattern
  by pattern, the guest memory that the zram run before it kept.  A quarter of the pages does not
  compress; zram keeps them as they are, and so does a pool that is the last tier.
* A pool inside the limit with a file behind it against the file alone: 512 MiB for guest and pool
  together, or for the guest.

In a guest of its own the bound of the pool inside the limit is then moved through its range while
the guest runs, and stalls for want of room are looked for.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from uffdmm.client import VirtualMachine
from uffdmm.stats import WorkerState

from . import HarnessError, hostmem
from .machine import MIB, external_memory
from .manager import Manager
from .nativeswap import MemoryCgroup
from .patterns import (
    FILL,
    LIMIT,
    RAM,
    VM,
    Counters,
    PatternBench,
    Probe,
    Run,
    steps_of_boot,
)
from .progress import Progress
from .sampler import Sampler
from .spread import Spread, ratios, spread
from .zram import ZramMissingError, ZramSwap

ZRAM, POOL, FILE, BOTH = "zram", "pool", "file", "pool+file"
WAYS = (ZRAM, POOL, FILE, BOTH)
# (name of the ratio, ours, theirs)
PAIRS = (("pool_to_zram", POOL, ZRAM), ("pool_and_file_to_file", BOTH, FILE))
# Bounds of the pool inside the limit, in MiB; 0 is none but the manager's own.
SETTINGS = (16, 64, 128, 256, 384, 0)
# No step for so long, and the guest has stalled.
STALL_MS = 2000
_OUTSIDE = "pool=pool,codec=lz4,inside-limit=off"
_INSIDE = "pool=pool,codec=zstd,inside-limit=on"
_DISK = "disk=file,path={store}"


@dataclass(slots=True)
class Setting:
    """One bound of the pool, tried while the guest ran."""

    pool_bound_bytes: int
    steps_per_s: float
    gap_max_ms: float
    store_full_samples: int
    faults_waited: int
    resident_and_pool_max_bytes: int

    @property
    def stalled(self) -> bool:
        """Whether the guest waited for want of room."""
        return self.store_full_samples > 0 or self.gap_max_ms > STALL_MS


class GuestBench:
    """Runs all ways; :attr:`runs` and :attr:`settings` grow meanwhile."""

    def __init__(
        self,
        *,
        folder: Path,
        repeat: int,
        seconds: float,
        patterns: Sequence[str],
        pin: int | None,
    ) -> None:
        self._folder = folder
        self._repeat = repeat
        self._seconds = seconds
        self._patterns = tuple(patterns)
        self.runs: list[Run] = []
        self.settings: list[Setting] = []
        self.settings_verified = False
        self.host_swap_pages = 0
        self.skipped: dict[str, str] = {}
        boots = len(WAYS) * repeat
        self._progress = Progress("bench", boots * steps_of_boot(patterns) + 2 + len(SETTINGS))
        self._bench = PatternBench(
            patterns=self._patterns,
            seconds=seconds,
            pin=pin,
            progress=self._progress,
            keep=self.runs.append,
        )

    def run(self) -> None:
        """Measure everything.

        :raise HarnessError: a run is worth nothing, and why
        """
        for repeat in range(1, self._repeat + 1):
            try:
                kept = self._zram(repeat)
            except ZramMissingError as reason:
                self.skipped[ZRAM] = str(reason)
                # What zram keeps within the limit, besides QEMU itself.
                kept = dict.fromkeys(self._patterns, LIMIT)
            self._pool(repeat, kept)
            self._inside(repeat, FILE)
            self._inside(repeat, BOTH)
        self._try_settings()

    def of(self, memory: str, pattern: str) -> list[Run]:
        """The runs of one way and one pattern, by repeat."""
        return [run for run in self.runs if (run.memory, run.pattern) == (memory, pattern)]

    # -- the four ways -----------------------------------------------------

    def _zram(self, repeat: int) -> dict[str, int]:
        """Returns the mean guest residency of each pattern."""
        with (
            ZramSwap(2 * RAM) as zram,
            MemoryCgroup(f"uffdmm-bench-{os.getpid()}", LIMIT) as cgroup,
            self._bench.boot(self._bench.config(), ZRAM, repeat, cgroup.enter_command()) as guest,
        ):
            ram = hostmem.AnonymousRam(guest.pid, RAM)

            def swapped() -> Counters:
                moved = hostmem.host_swap()
                return {"pages_in": moved.pages_in, "pages_out": moved.pages_out}

            def held() -> Counters:
                memory = zram.memory()
                return {
                    "store_memory_bytes": memory.memory_bytes,
                    "stored_bytes": memory.stored_bytes,
                    "raw_bytes": memory.raw_pages * 4096,
                }

            probe = Probe(
                lambda: ram.sample().resident + cgroup.unmapped_anonymous(),
                limit=LIMIT,
                count=swapped,
                gauge=held,
            )
            runs = self._bench.measure(guest, ZRAM, repeat, probe)
        return {run.pattern: run.guest_resident_bytes for run in runs}

    def _pool(self, repeat: int, kept: dict[str, int]) -> None:
        with self._managed(POOL, repeat, (_OUTSIDE,), kept[self._patterns[0]]) as (guest, vm):

            def set_limit(pattern: str) -> int:
                vm.set_policy(limit_bytes=kept[pattern] & -4096)
                return kept[pattern]

            probe = Probe(
                hostmem.MemfdFiles(guest.pid, RAM).resident,
                prepare=set_limit,
                bounded=True,
                count=lambda: counted(vm),
                gauge=lambda: _held(vm),
            )
            self._bench.measure(guest, POOL, repeat, probe)

    def _inside(self, repeat: int, way: str) -> None:
        tiers = (_INSIDE, _DISK) if way == BOTH else (_DISK,)
        with self._managed(way, repeat, tiers, LIMIT) as (guest, vm):
            probe = Probe(
                _guest_and_arena(guest.pid, vm),
                limit=LIMIT,
                bounded=True,
                count=lambda: counted(vm),
                gauge=lambda: _held(vm),
            )
            self._bench.measure(guest, way, repeat, probe)

    def _try_settings(self) -> None:
        way = f"{BOTH}, bounds of the pool"
        with self._managed(way, 1, (_INSIDE, _DISK), LIMIT) as (guest, vm):
            for mib in SETTINGS:
                self._progress.step(f"pool of at most {mib or 'any'} MiB")
                vm.set_policy(tier_bytes={"pool": mib * MIB})
                self.settings.append(self._try(guest, vm, mib * MIB))
            self._progress.step(f"{way}: verifying every byte")
            verified = guest.port.verify(timeout=900)
        self.settings_verified = verified.verified
        if not verified.verified:
            raise HarnessError(f"wrong memory while the pool was resized: {verified.named}")

    def _try(self, guest: Any, vm: VirtualMachine, bound: int) -> Setting:
        before = vm.statistics()
        full: list[int] = []

        def look() -> int:
            stats = vm.statistics()
            full.append(stats.state is WorkerState.STORE_FULL)
            return stats.arena_bytes

        resident = hostmem.MemfdFiles(guest.pid, RAM).resident
        with Sampler(lambda: look() + resident()) as together:
            result = guest.port.run(self._patterns[0], self._seconds, seed=17, timeout=600)
        return Setting(
            pool_bound_bytes=bound,
            steps_per_s=result.steps_per_s,
            gap_max_ms=result.gap_max_ms,
            store_full_samples=sum(full),
            faults_waited=vm.statistics().faults_waited - before.faults_waited,
            resident_and_pool_max_bytes=together.maximum,
        )

    # -- what they share ---------------------------------------------------

    @contextlib.contextmanager
    def _managed(
        self, way: str, repeat: int, tiers: Sequence[str], limit: int
    ) -> Iterator[tuple[Any, VirtualMachine]]:
        """A guest on a manager with these tiers; the host's own swap must not move meanwhile."""
        with Manager(limit=str(limit & -4096), tiers=tiers, folder=self._folder) as manager:
            config = self._bench.config(external_memory(RAM, manager.socket))
            swap = hostmem.host_swap()
            with self._bench.boot(config, way, repeat) as guest, manager.vm(VM) as vm:
                yield guest, vm
            moved = hostmem.host_swap() - swap
        self.host_swap_pages += moved.pages_in + moved.pages_out
        if not moved.idle:
            raise HarnessError(
                f"the host swapped during a run of uffdmm ({moved.pages_in} pages in, "
                f"{moved.pages_out} out): give it more free memory or switch its swap off"
            )


def _guest_and_arena(pid: int, vm: VirtualMachine) -> Callable[[], int]:
    resident = hostmem.MemfdFiles(pid, RAM).resident
    return lambda: resident() + vm.statistics().arena_bytes


def counted(vm: VirtualMachine) -> Counters:
    """Counters of a worker; those of tiers with the tier's name before them."""
    stats = vm.statistics()
    moved = hostmem.host_swap()
    counted = {
        "host_pages_in": moved.pages_in,
        "host_pages_out": moved.pages_out,
        "faults": stats.faults,
        "faults_waited": stats.faults_waited,
        "evicted": stats.evicted,
        "evicted_clean": stats.evicted_clean,
        "readahead_in": stats.readahead_in,
        "readahead_wasted": stats.readahead_wasted,
        "demoted": stats.demoted,
        "passed_on": stats.passed_on,
    }
    for tier in vm.tiers()[1:]:
        counted[f"{tier.name}_pages_read"] = tier.read_bytes // 4096
        counted[f"{tier.name}_pages_written"] = tier.write_bytes // 4096
    return counted


def _held(vm: VirtualMachine) -> Counters:
    stats = vm.statistics()
    held = {
        "store_memory_bytes": stats.arena_bytes,
        "stored_bytes": stats.stored_bytes,
        "manager_rss_bytes": stats.worker_rss_bytes,
        "table_bytes": stats.table_bytes,
    }
    for tier in vm.tiers()[1:]:
        held[f"{tier.name}_used_bytes"] = tier.used_bytes
        held[f"{tier.name}_stored_pages"] = tier.stored_pages
    return held


def _rates(runs: list[Run]) -> list[float]:
    return [run.steps_per_s for run in runs]


def summary(bench: GuestBench, patterns: Sequence[str]) -> dict[str, Any]:
    """What ``--json`` has of this section."""
    found: dict[str, dict[str, Any]] = {}
    for name, ours, theirs in PAIRS:
        found[name] = {}
        for pattern in patterns:
            ratio = ratios(_rates(bench.of(ours, pattern)), _rates(bench.of(theirs, pattern)))
            if ratio:
                found[name][pattern] = ratio.as_json()
    return {
        "limit_bytes": LIMIT,
        "ram_bytes": RAM,
        "used_bytes": FILL,
        "runs": [asdict(run) for run in bench.runs],
        "ratios": found,
        "settings": [{**asdict(setting), "stalled": setting.stalled} for setting in bench.settings],
        "settings_verified": bench.settings_verified,
        "host_swap_pages_in_uffdmm_runs": bench.host_swap_pages,
        "verified": bool(bench.runs) and all(run.verified for run in bench.runs),
        "skipped": bench.skipped,
    }


def _cell(runs: list[Run]) -> str:
    rates: Spread | None = spread(_rates(runs))
    if rates is None:
        return "-"
    resident = sum(run.guest_resident_bytes for run in runs) / len(runs)
    memory = sum(run.gauges.get("store_memory_bytes", 0) for run in runs) / len(runs)
    return f"{rates.median:,.0f} ({resident / MIB:,.0f}M + {memory / MIB:,.0f}M)"


def show(console: Console, bench: GuestBench, outcome: dict[str, Any]) -> None:
    """The section as tables."""
    patterns = dict.fromkeys(run.pattern for run in bench.runs)
    table = Table(
        title="steps/s, median (in the limit, mean, MiB + memory of the store at the end, MiB)"
    )
    table.add_column("pattern")
    for name in (ZRAM, POOL, "ratio", FILE, BOTH, "ratio"):
        table.add_column(name, justify="right")
    for pattern in patterns:
        cells = []
        for name, ours, theirs in PAIRS:
            cells += [_cell(bench.of(theirs, pattern)), _cell(bench.of(ours, pattern))]
            ratio = outcome["ratios"][name].get(pattern)
            cells.append(
                f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})" if ratio else "-"
            )
        table.add_row(pattern, *cells)
    console.print(table)
    console.print(
        f"{POOL}: keeps pages that do not compress as they are, in the limit is the guest "
        f"alone; {BOTH}: guest and pool together"
    )
    if bench.settings:
        bounds = Table(title=f"{BOTH} while the bound of the pool is moved")
        for name in (
            "bound, MiB",
            "steps/s",
            "longest gap, ms",
            "store full",
            "waited",
            "together",
        ):
            bounds.add_column(name, justify="right")
        for setting in bench.settings:
            bounds.add_row(
                str(setting.pool_bound_bytes // MIB or "none"),
                f"{setting.steps_per_s:,.0f}",
                f"{setting.gap_max_ms:,.0f}",
                str(setting.store_full_samples),
                f"{setting.faults_waited:,}",
                f"{setting.resident_and_pool_max_bytes / MIB:.0f}M",
            )
        console.print(bounds)
    console.print(
        "pages swapped by the host in runs of uffdmm: "
        f"{outcome['host_swap_pages_in_uffdmm_runs']}; every byte verified: "
        f"{'yes' if outcome['verified'] else 'NO'}"
    )
    for name, reason in outcome["skipped"].items():
        console.print(f"skipped: {name}: {reason}")
