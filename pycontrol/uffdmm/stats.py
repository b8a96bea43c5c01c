# SPDX-License-Identifier: GPL-2.0-or-later
"""The statistics of a VM: pages that its worker writes and everybody else reads.

The first page is about the VM, those behind it about its tiers.  :class:`StatsPages` maps them,
:class:`Stats` and :class:`TierStats` are snapshots, :class:`Histogram` turns the log-linear buckets
into percentiles.  The worker never waits for a reader: single words are whole, two words need not
belong to the same instant.
"""

import mmap
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer

from ._native import ffi, lib
from .errors import ProtocolError, VersionError
from .wire import text_of

_STRUCT = "struct uffdmm_stats"
_TIER_STRUCT = "struct uffdmm_tier_stats"
# The page of tier i is number 1 + i, whatever the page size of this host.
_PAGE = 4096
_SUB_BUCKETS = 1 << lib.UFFDMM_HIST_SUB_BITS


class WorkerState(Enum):
    """What a worker says of itself."""

    STARTING = "starting"
    RUNNING = "running"
    STORE_FULL = "store-full"
    STORE_ERROR = "store-error"


_STATES = {
    lib.UFFDMM_WORKER_STARTING: WorkerState.STARTING,
    lib.UFFDMM_WORKER_RUNNING: WorkerState.RUNNING,
    lib.UFFDMM_WORKER_STORE_FULL: WorkerState.STORE_FULL,
    lib.UFFDMM_WORKER_STORE_ERROR: WorkerState.STORE_ERROR,
}


class TierType(Enum):
    """What a tier is."""

    ZERO = "zero"
    POOL = "pool"
    FILE = "file"
    NBD = "nbd"


_TYPES = {
    lib.UFFDMM_TIER_ZERO: TierType.ZERO,
    lib.UFFDMM_TIER_POOL: TierType.POOL,
    lib.UFFDMM_TIER_FILE: TierType.FILE,
    lib.UFFDMM_TIER_NBD: TierType.NBD,
}


class TierState(Enum):
    """How a tier is."""

    OK = "ok"
    FULL = "full"
    SLOW = "slow"
    ERROR = "error"
    AWAY = "away"


_TIER_STATES = {
    lib.UFFDMM_TIER_OK: TierState.OK,
    lib.UFFDMM_TIER_FULL: TierState.FULL,
    lib.UFFDMM_TIER_SLOW: TierState.SLOW,
    lib.UFFDMM_TIER_ERROR: TierState.ERROR,
    lib.UFFDMM_TIER_AWAY: TierState.AWAY,
}


def bucket_bounds(index: int) -> tuple[int, int]:
    """The durations in nanoseconds, from (included) and to (excluded), of a bucket.

    The last bucket also holds everything longer than its upper bound.
    """
    octave, sub = divmod(index, _SUB_BUCKETS)
    shift = octave + lib.UFFDMM_HIST_MIN_LOG2 - lib.UFFDMM_HIST_SUB_BITS
    low = (_SUB_BUCKETS + sub) << shift if index else 0
    return low, (_SUB_BUCKETS + sub + 1) << shift


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of durations, one a bucket of :func:`bucket_bounds`."""

    counts: tuple[int, ...]

    @property
    def total(self) -> int:
        """Number of durations counted."""
        return sum(self.counts)

    def percentile(self, share: float) -> float | None:
        """The duration in seconds that ``share`` (0..1) of all do not exceed.

        Interpolated inside its bucket, so at most one eighth off; None when nothing was counted.
        Durations in the last bucket are reported as its lower bound.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"a percentile is a share of 0 to 1, not {share}")
        total = self.total
        if not total:
            return None
        # The rank of the duration sought, counted from 1.
        rank = max(1.0, share * total)
        below = 0
        for index, count in enumerate(self.counts):
            if count and below + count >= rank:
                low, high = bucket_bounds(index)
                if index == len(self.counts) - 1:
                    return low / 1e9
                return (low + (high - low) * (rank - below) / count) / 1e9
            below += count
        raise AssertionError("the ranks end with the total")

    def buckets(self) -> Iterator[tuple[int, int, int]]:
        """The buckets in use: from, to (nanoseconds), count."""
        for index, count in enumerate(self.counts):
            if count:
                yield *bucket_bounds(index), count

    def __sub__(self, earlier: Self) -> "Histogram":
        """What was counted since an earlier snapshot of the same histogram."""
        pairs = zip(self.counts, earlier.counts, strict=True)
        return Histogram(tuple(now - then for now, then in pairs))


_HistogramField = Annotated[
    Histogram,
    PlainSerializer(lambda hist: [list(bucket) for bucket in hist.buckets()], list[list[int]]),
]


class Stats(BaseModel):
    """One snapshot of the statistics of a VM.

    The fields are those of ``struct uffdmm_stats``; counters only grow while the worker lives.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    worker_pid: int = Field(description="process that serves the VM")
    qemu_pid: int = Field(description="QEMU process of the VM")
    vm_name: str = Field(description="name of the VM")
    heartbeat_ns: int = Field(
        description="CLOCK_MONOTONIC of the last sign of life of the worker, nanoseconds"
    )
    state: WorkerState = Field(description="starting, running, store-full or store-error")
    nr_regions: int = Field(description="memory regions of the VM")
    ram_bytes: int = Field(description="guest memory in all regions")
    limit_bytes: int = Field(description="limit in force on resident_bytes, 0 is none")
    readahead_pages: int = Field(description="largest read-ahead window in force")
    resident_bytes: int = Field(description="guest memory that is in RAM now")
    resident_max_bytes: int = Field(description="largest resident_bytes seen")
    stored_bytes: int = Field(description="guest memory that is in a store only")
    zero_bytes: int = Field(description="guest memory kept as one repeated word")
    slots_used: int = Field(description="slots taken in all stores, clean copies included")
    slots_total: int = Field(description="slots of all stores")
    table_bytes: int = Field(description="memory of the page-state tables")
    worker_rss_bytes: int = Field(description="resident memory of the worker process")
    age_tracking: int = Field(description="1 while access tracking runs")
    faults: int = Field(description="faults served")
    faults_zero: int = Field(description="of those: by a zero page")
    faults_store: int = Field(description="of those: from a store")
    faults_wp: int = Field(description="writes to a page on its way out, which stayed")
    faults_spurious: int = Field(description="faults whose page was already there")
    faults_deferred: int = Field(description="faults put back at least once")
    faults_waited: int = Field(description="faults that waited for room under the limit")
    fault_ns: int = Field(description="time spent in all faults, nanoseconds")
    readahead_in: int = Field(description="pages brought in beside a fault")
    readahead_hits: int = Field(description="read-ahead windows used to their end")
    evicted: int = Field(description="pages evicted")
    evicted_clean: int = Field(description="of those: unchanged, without a write")
    evicted_zero: int = Field(description="of those: zero or same-filled")
    evicted_cancelled: int = Field(description="pages taken back on their way out")
    discarded: int = Field(description="pages given back by the guest")
    zaps: int = Field(description="windows of page-table entries dropped to see use")
    scanned_pages: int = Field(description="pages looked at by access scans")
    touched_pages: int = Field(description="of those: in use")
    store_reads: int = Field(description="read requests to stores")
    store_read_bytes: int = Field(description="bytes of them")
    store_writes: int = Field(description="write requests to stores")
    store_write_bytes: int = Field(description="bytes of them")
    store_trim_bytes: int = Field(description="bytes given back to stores")
    store_errors: int = Field(description="requests to stores that failed")
    checksum_errors: int = Field(description="stored pages that did not match their checksum")
    lost_pages: int = Field(description="pages whose content cannot be had")
    nr_tiers: int = Field(description="tiers of the VM, the zero tier among them")
    demote_after_ms: int = Field(
        description="a page unused for this long moves one tier down, milliseconds, 0 is never"
    )
    arena_bytes: int = Field(description="memory of the tiers that keep pages in memory")
    readahead_wasted: int = Field(description="pages brought in beside a fault and not used")
    demoted: int = Field(description="pages moved to a later tier")
    demote_cancelled: int = Field(description="of those begun: used or discarded meanwhile")
    passed_on: int = Field(description="pages that a tier did not take and the next one did")
    min_bytes: int = Field(description="setting: least that the control plane gives this VM")
    max_bytes: int = Field(
        description="setting: most that the control plane gives this VM, 0 is no bound"
    )
    shares: int = Field(description="setting: weight among the VMs of the host")
    priority: int = Field(description="setting: 0 to 100, higher ones are served first")
    opt_out: int = Field(description="setting: 1 when the control plane leaves this VM alone")
    track_permille: int = Field(
        description="setting: of a CPU, most that access tracking may cost, 0 is none"
    )
    pinned: int = Field(description="pages not evicted because a device held their address")
    prefetched: int = Field(
        description="pages brought in because somebody asked for them beforehand"
    )
    migration_swap_ins: int = Field(
        description="pages that a thread of a migration brought in, which it is meant not to"
    )
    bypass_pages: int = Field(
        description="stored pages that a migration read without bringing them in"
    )
    recoveries: int = Field(description="workers that took over from a dead one")
    recovery_ns: int = Field(description="how long the last one took for that, nanoseconds")
    quarantined: int = Field(description="slots that wait for late writes of a dead worker")
    features: int = Field(
        description="what the worker can beyond its protocol's version, bit 0: records by volume"
    )
    fault_hist: _HistogramField = Field(
        description="fault times as [from_ns, to_ns, count], buckets in use only"
    )

    @property
    def heartbeat_age(self) -> float:
        """Seconds since the worker's last sign of life."""
        return max(0.0, (time.clock_gettime_ns(time.CLOCK_MONOTONIC) - self.heartbeat_ns) / 1e9)


class TierStats(BaseModel):
    """One snapshot of the statistics of a tier of a VM.

    The fields are those of ``struct uffdmm_tier_stats``; counters only grow while the worker lives.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    name: str = Field(description="name of the tier, as configured")
    type: TierType = Field(description="zero, pool, file or nbd")
    shared: int = Field(description="1 when other hosts can read it")
    state: TierState = Field(
        description="ok; full, slow or error: the next tier takes new pages; away: its server is"
        " gone and the pages in it wait"
    )
    capacity_bytes: int = Field(description="room for this VM, 0 is as much as there is")
    used_bytes: int = Field(description="of that in use, copies of pages in memory included")
    stored_pages: int = Field(description="guest pages that are here only")
    copy_pages: int = Field(description="guest pages that are in memory and have a copy here")
    stored_bytes: int = Field(description="size of both before compression")
    reads: int = Field(description="read requests")
    read_bytes: int = Field(description="bytes of the read requests")
    writes: int = Field(description="write requests")
    write_bytes: int = Field(description="bytes of the write requests")
    trim_bytes: int = Field(description="bytes given back to the store")
    errors: int = Field(description="requests that failed")
    checksum_errors: int = Field(description="pages that were not what had been stored")
    refused: int = Field(description="pages not taken, because full or not compressible")
    compactions: int = Field(description="pages moved inside the tier")
    reconnects: int = Field(description="connections to the server made anew")
    last_error_ns: int = Field(
        description="CLOCK_REALTIME of the last error, nanoseconds, 0 is none"
    )
    last_error: str = Field(description="sentence of the last error")
    read_hist: _HistogramField = Field(
        description="times of read requests as [from_ns, to_ns, count], buckets in use only"
    )
    write_hist: _HistogramField = Field(
        description="times of write requests as [from_ns, to_ns, count], buckets in use only"
    )

    @property
    def compression(self) -> float | None:
        """How many bytes of guest memory one byte of a pool holds; None for other tiers."""
        if self.type is not TierType.POOL or not self.used_bytes:
            return None
        return self.stored_bytes / self.used_bytes


class StatsPages:
    """A read-only mapping of the statistics memfd of one VM.

    :param fd: the memfd; closed in any case, the mapping outlives it
    :param size: bytes to map, as the manager announced
    :raise ProtocolError: the memfd does not hold statistics
    """

    def __init__(self, fd: int, size: int) -> None:
        try:
            # A mapping past the end of the file would raise SIGBUS at the first look.
            real = os.fstat(fd).st_size
            if not ffi.sizeof(_STRUCT) <= size <= real:
                raise ProtocolError(
                    f"the statistics have {real} bytes, the manager announced {size},"
                    f" {_STRUCT} needs {ffi.sizeof(_STRUCT)}"
                )
            try:
                self._map = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ)
            except OSError as error:
                reason = (error.strerror or str(error)).lower()
                raise ProtocolError(f"the statistics cannot be mapped: {reason}") from None
        finally:
            os.close(fd)
        self._page = ffi.from_buffer(f"{_STRUCT} *", self._map)
        self._tiers_max = min(lib.UFFDMM_TIERS_MAX, max(0, size // _PAGE - 1))
        try:
            self._check()
        except ProtocolError:
            self.close()
            raise

    def _check(self) -> None:
        magic, version = self._page.magic, self._page.version
        if magic != lib.UFFDMM_STATS_MAGIC:
            raise ProtocolError(
                f"the statistics begin with 0x{magic:08x}, not 0x{lib.UFFDMM_STATS_MAGIC:08x}"
            )
        if version != lib.UFFDMM_STATS_VERSION:
            raise VersionError(
                f"the statistics have version {version}, this program reads"
                f" {lib.UFFDMM_STATS_VERSION}",
                "install the manager and the Python package from the same release",
            )

    def snapshot(self) -> Stats:
        """The statistics of this moment.

        :raise ProtocolError: the worker is in a state that this program does not know
        """
        page = self._page
        values = {name: getattr(page, name) for name in _PLAIN_FIELDS}
        number = page.state
        if number not in _STATES:
            raise ProtocolError(f"the worker reports the unknown state {number}")
        return Stats(
            **values,
            vm_name=text_of(page.vm_name),
            state=_STATES[number],
            fault_hist=Histogram(tuple(ffi.unpack(page.fault_hist, lib.UFFDMM_HIST_BUCKETS))),
        )

    def tiers(self) -> list[TierStats]:
        """The statistics of the tiers of this moment, in their order.

        :raise ProtocolError: more tiers than pages, or a tier that this program does not know
        """
        count = self._page.nr_tiers
        if count > self._tiers_max:
            raise ProtocolError(
                f"the worker reports {count} tiers, its statistics hold {self._tiers_max}"
            )
        return [self._tier(index) for index in range(count)]

    def _tier(self, index: int) -> TierStats:
        start = (1 + index) * _PAGE
        # The page of statistics pins the mapping; this view lives no longer than the call.
        with memoryview(self._map)[start : start + ffi.sizeof(_TIER_STRUCT)] as view:
            page = ffi.from_buffer(f"{_TIER_STRUCT} *", view)
            try:
                kind, state = page.type, page.state
                if kind not in _TYPES or state not in _TIER_STATES:
                    raise ProtocolError(
                        f"the worker reports tier {index} with the unknown type {kind}"
                        f" or state {state}"
                    )
                return TierStats(
                    **{name: getattr(page, name) for name in _PLAIN_TIER_FIELDS},
                    name=text_of(page.name),
                    type=_TYPES[kind],
                    state=_TIER_STATES[state],
                    last_error=text_of(page.last_error),
                    **{
                        name: Histogram(tuple(ffi.unpack(counts, lib.UFFDMM_HIST_BUCKETS)))
                        for name, counts in (
                            ("read_hist", page.read_hist),
                            ("write_hist", page.write_hist),
                        )
                    },
                )
            finally:
                ffi.release(page)

    def close(self) -> None:
        """Unmap the pages; closing twice is allowed."""
        if not self._map.closed:
            ffi.release(self._page)
            self._map.close()


_PLAIN_TIER_FIELDS = sorted(
    TierStats.model_fields.keys()
    - {"name", "type", "state", "last_error", "read_hist", "write_hist"}
)
_PLAIN_FIELDS = sorted(Stats.model_fields.keys() - {"vm_name", "state", "fault_hist"})
