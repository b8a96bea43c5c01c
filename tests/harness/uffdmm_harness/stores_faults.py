# SPDX-License-Identifier: GPL-2.0-or-later
"""``scripts/bench stores``, section ``faults``: single faults and evictions.

A process owns memory as QEMU does (:mod:`.memoryprocess`) and times each touch from inside.  It is
bound to one CPU always, since that is where a fault is served fastest, and the same things are done
on each side in turns:

* Everything is written, then the limit is lowered from all of it to a quarter: pages per second
  until no more than that is resident.  The manager evicts in its background thread; Linux reclaims
  in the thread that writes the cgroup's new limit, with nobody else wanting memory.  Where Linux
  does better by MADV_PAGEOUT of everything, that is printed too.
* The limit is lifted and all pages that went are touched in order, which reads clusters.
* Lowered and lifted once more, so that every page has been out: the one eviction after that finds
  nothing but unchanged pages, and should write nothing.
* At a limit of one half, which is reached first, pages that are not there are touched at random:
  the latency of faults while as many pages leave.  Where there is a device, reads from it take
  turns with that on the same CPU.
"""

import contextlib
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from uffdmm.client import VirtualMachine
from uffdmm.stats import TierStats

from . import HarnessError, hostmem
from .guest import pin_to
from .machine import MIB
from .manager import Manager
from .memoryprocess import MemoryProcess, now
from .nativeswap import MemoryCgroup
from .patterns import drop_caches
from .progress import Progress
from .spread import ratios, spread
from .zram import ZramMissingError, ZramSwap

SIZE = 256 * MIB
QUARTER = SIZE // 4
HALF = SIZE // 2
CLUSTER = 32
POOL, FILE, ZRAM, DEVICE = "pool", "file", "zram", "device"
SIDES = (POOL, FILE, ZRAM)
VM = "memory"
_PAGE = 4096
# For the process itself, which a cgroup counts as well.
_OWN = 32 * MIB
# Pieces in which random touches and reads of the device take turns.
_TURNS = 4
# In that time a worker brings its gauges up to date.
_GAUGE_SECONDS = 0.5
_TIERS = {POOL: "pool=pool,codec=lz4", FILE: "file=file,path={store}"}


class FaultBench:
    """Measures each side once a round; :attr:`values` grows while it runs.

    :param folder: where the store and the file for reads of the device lie
    :param faults: random faults of each round from memory; from the disk an eighth
    """

    def __init__(
        self, folder: Path, rounds: int, faults: int, cpu: int, progress: Progress
    ) -> None:
        self._folder = folder
        self._rounds = rounds
        self._faults = faults
        self._pin = pin_to(cpu)
        self._progress = progress
        self.values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.host_swap_pages = 0
        self.skipped: dict[str, str] = {}

    def run(self) -> None:
        """Measure everything.

        :raise HarnessError: a word was wrong, or something did not start
        """
        with self._raw_file() as raw:
            for number in range(1, self._rounds + 1):
                for side in SIDES:
                    self._progress.step(f"faults, round {number}: {side}")
                    drop_caches()
                    if side == ZRAM:
                        self._zram()
                    else:
                        self._manager(side, raw if side == FILE else None)

    @contextlib.contextmanager
    def _raw_file(self) -> Iterator[Path]:
        block = bytes(1 << 20)
        with tempfile.NamedTemporaryFile(prefix="uffdmm-raw-", dir=self._folder) as file:
            for _ in range(SIZE >> 20):
                file.write(block)
            file.flush()
            yield Path(file.name)

    def _keep(self, side: str, **values: float) -> None:
        for name, value in values.items():
            self.values[side][name].append(value)

    # -- a manager ---------------------------------------------------------

    def _manager(self, side: str, raw: Path | None) -> None:
        swap = hostmem.host_swap()
        with (
            Manager(
                tiers=[_TIERS[side]],
                arguments=["--demote-after", "never"],
                folder=self._folder,
            ) as manager,
            MemoryProcess(SIZE, region=(manager.socket, VM), wrapper=self._pin) as memory,
            manager.vm(VM) as vm,
        ):
            memory.fill()
            pages, seconds = _evict(memory, vm)
            time.sleep(_GAUGE_SECONDS)
            stored = _tier(vm)
            self._keep(
                side,
                evict_pages_per_s=pages / seconds,
                store_bytes=stored.used_bytes,
                stored_pages=stored.stored_pages,
            )
            self._sweep(side, memory, vm)
            self._again(side, memory, vm)
            vm.set_policy(limit_bytes=HALF)
            self._random(side, memory, raw)
        moved = hostmem.host_swap() - swap
        self.host_swap_pages += moved.pages_in + moved.pages_out
        if not moved.idle:
            raise HarnessError(
                "the host swapped while a manager was measured: give it more free memory or "
                "switch its swap off"
            )

    def _sweep(self, side: str, memory: MemoryProcess, vm: VirtualMachine) -> None:
        before = _tier(vm)
        readahead = vm.statistics().readahead_pages
        vm.set_policy(limit_bytes=0, readahead_pages=CLUSTER)
        swept = memory.sweep()
        after = _tier(vm)
        vm.set_policy(readahead_pages=readahead)
        requests = after.reads - before.reads
        self._keep(
            side,
            sweep_ns_per_page=swept.ns / swept.samples,
            sweep_request_pages=(after.read_bytes - before.read_bytes) / _PAGE / max(1, requests),
        )

    def _again(self, side: str, memory: MemoryProcess, vm: VirtualMachine) -> None:
        _evict(memory, vm)
        vm.set_policy(limit_bytes=0)
        memory.sweep()
        before, tier_before = vm.statistics(), _tier(vm)
        pages, seconds = _evict(memory, vm)
        after, tier_after = vm.statistics(), _tier(vm)
        self._keep(
            side,
            again_pages_per_s=pages / seconds,
            again_pages=after.evicted - before.evicted,
            again_writes=tier_after.writes - tier_before.writes,
        )

    def _random(self, side: str, memory: MemoryProcess, raw: Path | None) -> None:
        count = self._faults // 8 if raw else self._faults
        # Up to the limit and somewhat beyond; the fault thread finds its CPU, the windows of
        # read-ahead shrink.
        memory.random((HALF - QUARTER) // _PAGE)
        time.sleep(_GAUGE_SECONDS)
        memory.random(max(1, count // 4))
        each = max(1, count // _TURNS)
        turns = []
        reads = []
        for _ in range(_TURNS):
            turns.append(memory.random(each))
            if raw:
                reads.append(memory.raw_reads(raw, each))
        for touched in turns:
            self._keep(
                side,
                fault_p50_ns=touched.p50_ns,
                fault_p99_ns=touched.p99_ns,
                fault_mean_ns=touched.mean_ns,
            )
        for read in reads:
            self._keep(DEVICE, read_p50_ns=read.p50_ns, read_p99_ns=read.p99_ns)

    # -- Linux -------------------------------------------------------------

    def _zram(self) -> None:
        try:
            self._zram_round()
        except ZramMissingError as reason:
            self.skipped[ZRAM] = str(reason)

    def _zram_round(self) -> None:
        with (
            ZramSwap(2 * SIZE) as zram,
            MemoryCgroup("uffdmm-bench-memory", SIZE + _OWN) as cgroup,
            MemoryProcess(SIZE, wrapper=[*cgroup.enter_command(), *self._pin]) as memory,
        ):
            memory.fill()
            pages, seconds = _reclaim(memory, cgroup)
            held = zram.memory()
            self._keep(
                ZRAM,
                evict_pages_per_s=pages / seconds,
                store_bytes=held.memory_bytes,
                stored_pages=held.stored_bytes / _PAGE,
            )
            cgroup.set_limit(SIZE + _OWN)
            swept = memory.sweep()
            self._keep(ZRAM, sweep_ns_per_page=swept.ns / swept.samples)
            _reclaim(memory, cgroup)
            cgroup.set_limit(SIZE + _OWN)
            memory.sweep()
            before = hostmem.host_swap()
            pages, seconds = _reclaim(memory, cgroup)
            written = (hostmem.host_swap() - before).pages_out
            self._keep(
                ZRAM, again_pages_per_s=pages / seconds, again_pages=pages, again_writes=written
            )
            cgroup.set_limit(HALF + _OWN)
            self._random(ZRAM, memory, None)
            cgroup.set_limit(SIZE + _OWN)
            memory.fill()
            pages, seconds = memory.page_out()
            self._keep(ZRAM, pageout_pages_per_s=pages / seconds)


def _tier(vm: VirtualMachine) -> TierStats:
    """The only one besides that of zero pages."""
    return vm.tiers()[1]


def _evict(memory: MemoryProcess, vm: VirtualMachine) -> tuple[int, float]:
    """Lower the limit to a quarter: pages that went, and the seconds until then."""
    before = memory.resident()
    memory.send(f"await {QUARTER}")
    start = now()
    vm.set_policy(limit_bytes=QUARTER)
    after, seconds = memory.await_resident(QUARTER, start)
    return (before - after) // _PAGE, seconds


def _reclaim(memory: MemoryProcess, cgroup: MemoryCgroup) -> tuple[int, float]:
    """The same by the limit of a cgroup."""
    before = memory.resident()
    start = now()
    cgroup.set_limit(QUARTER + _OWN)
    seconds = now() - start
    return (before - memory.resident()) // _PAGE, seconds


def summary(bench: FaultBench) -> dict[str, Any]:
    """What ``--json`` has of this section."""
    sides: dict[str, Any] = {}
    for side, values in bench.values.items():
        spreads = {name: spread(all_) for name, all_ in values.items()}
        sides[side] = {name: item.as_json() for name, item in spreads.items() if item}
    return {
        "size_bytes": SIZE,
        "sides": sides,
        "figures": _figures(bench),
        "host_swap_pages_in_uffdmm_runs": bench.host_swap_pages,
        "skipped": bench.skipped,
    }


def _figures(bench: FaultBench) -> dict[str, float | None]:
    """The values that goals are set for."""

    def median(side: str, name: str) -> float | None:
        found = spread(bench.values.get(side, {}).get(name, []))
        return found.median if found else None

    def microseconds(value: float | None) -> float | None:
        return None if value is None else round(value / 1e3, 2)

    device, file = median(DEVICE, "read_p50_ns"), median(FILE, "fault_p50_ns")
    evictions = ratios(
        bench.values[POOL]["evict_pages_per_s"], bench.values[ZRAM]["evict_pages_per_s"]
    )
    pageouts = ratios(
        bench.values[POOL]["evict_pages_per_s"], bench.values[ZRAM]["pageout_pages_per_s"]
    )
    return {
        "pool_fault_p50_us": microseconds(median(POOL, "fault_p50_ns")),
        "file_fault_over_device_p50_us": microseconds(
            file - device if file is not None and device is not None else None
        ),
        "file_cluster_us_per_page": microseconds(median(FILE, "sweep_ns_per_page")),
        "pool_eviction_to_zram_reclaim": round(evictions.median, 3) if evictions else None,
        "pool_eviction_to_zram_pageout": round(pageouts.median, 3) if pageouts else None,
        "pool_unchanged_writes": median(POOL, "again_writes"),
        "file_unchanged_writes": median(FILE, "again_writes"),
    }


_ROWS: Sequence[tuple[str, str, Callable[[float], str]]] = (
    ("fault_p50_ns", "fault, p50, us", lambda v: f"{v / 1e3:.1f}"),
    ("fault_p99_ns", "fault, p99, us", lambda v: f"{v / 1e3:.1f}"),
    ("fault_mean_ns", "fault, mean, us", lambda v: f"{v / 1e3:.1f}"),
    ("read_p50_ns", "read of 4 KiB, p50, us", lambda v: f"{v / 1e3:.1f}"),
    ("read_p99_ns", "read of 4 KiB, p99, us", lambda v: f"{v / 1e3:.1f}"),
    ("sweep_ns_per_page", "in order, us a page", lambda v: f"{v / 1e3:.2f}"),
    ("sweep_request_pages", "pages a request of that", lambda v: f"{v:.1f}"),
    ("evict_pages_per_s", "evicted, pages/s", lambda v: f"{v:,.0f}"),
    ("pageout_pages_per_s", "MADV_PAGEOUT, pages/s", lambda v: f"{v:,.0f}"),
    ("again_pages_per_s", "evicted unchanged, pages/s", lambda v: f"{v:,.0f}"),
    ("again_pages", "evicted unchanged, pages", lambda v: f"{v:,.0f}"),
    ("again_writes", "writes for that", lambda v: f"{v:,.0f}"),
    ("stored_pages", "pages stored", lambda v: f"{v:,.0f}"),
    ("store_bytes", "memory or room of that, MiB", lambda v: f"{v / MIB:.0f}"),
)


def show(console: Console, outcome: dict[str, Any]) -> None:
    """The section as a table."""
    sides = [name for name in (*SIDES, DEVICE) if name in outcome["sides"]]
    table = Table(title="faults and evictions, median (range)")
    table.add_column("")
    for side in sides:
        table.add_column(side, justify="right")
    for key, label, text in _ROWS:
        cells = []
        for side in sides:
            item = outcome["sides"][side].get(key)
            cells.append(
                f"{text(item['median'])} ({text(item['min'])}-{text(item['max'])})" if item else ""
            )
        if any(cells):
            table.add_row(label, *cells)
    console.print(table)
    for name, value in outcome["figures"].items():
        console.print(f"{name.replace('_', ' ')}: {'-' if value is None else value}")
    for name, reason in outcome["skipped"].items():
        console.print(f"skipped: {name}: {reason}")
