# SPDX-License-Identifier: GPL-2.0-or-later
"""Metrics out of statistics pages, read when somebody scrapes.

Nothing is kept between two scrapes but the mappings of the pages.  Units are Prometheus' own, bytes
and seconds.  Counters begin anew with each worker, which ``rate()`` understands.  The
log-linear histograms, eight buckets an octave, come out with one bucket an octave: its bounds are
bounds of the finer ones, so nothing is estimated.
"""

import threading
import time
from collections.abc import Iterator

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    StateSetMetricFamily,
)
from prometheus_client.registry import Collector

from .._native import lib
from ..client import Manager
from ..errors import UffdmmError
from ..stats import Histogram, Stats, TierState, TierStats, bucket_bounds
from ..watch import SILENT, VmView, Watcher

# What a field of Stats is called, without "uffdmm_vm_" in front, and what it means.
VM_GAUGES = {
    "ram_bytes": ("ram_bytes", "Guest memory in all regions."),
    "limit_bytes": ("limit_bytes", "Limit in force on resident guest memory, 0 is none."),
    "resident_bytes": ("resident_bytes", "Guest memory that is in RAM."),
    "stored_bytes": ("stored_bytes", "Guest memory that is in a store only."),
    "zero_bytes": ("same_filled_bytes", "Guest memory kept as one repeated word."),
    "slots_used": ("slots_used", "Slots taken in all stores, copies of pages in memory included."),
    "slots_total": ("slots", "Slots of all stores."),
    "table_bytes": ("table_bytes", "Memory of the page-state tables."),
    "arena_bytes": ("arena_bytes", "Memory of the tiers that keep pages in memory."),
    "worker_rss_bytes": ("worker_resident_bytes", "Resident memory of the worker process."),
    "age_tracking": ("age_tracking", "1 while access tracking runs."),
    "min_bytes": ("min_bytes", "Least that the control plane gives this VM."),
    "max_bytes": ("max_bytes", "Most that the control plane gives this VM, 0 is no bound."),
    "shares": ("shares", "Weight among the VMs of the host."),
    "priority": ("priority", "0 to 100, higher ones are served first."),
    "opt_out": ("opted_out", "1 when the control plane leaves this VM alone."),
    "quarantined": ("quarantined_slots", "Slots that wait for late writes of a dead worker."),
}
# The same in nanoseconds, told in seconds.
VM_SECONDS = {
    "recovery_ns": ("recovery_seconds", "Time that the last recovery took, 0 is none."),
}
VM_COUNTERS = {
    "faults": ("faults", "Faults served."),
    "faults_zero": ("faults_zero", "Faults served by a zero page."),
    "faults_store": ("faults_store", "Faults served from a store."),
    "faults_wp": ("faults_kept", "Writes to a page on its way out, which stayed."),
    "faults_spurious": ("faults_spurious", "Faults whose page was already there."),
    "faults_deferred": ("faults_deferred", "Faults put back at least once."),
    "faults_waited": ("faults_waited", "Faults that waited for room under the limit."),
    "readahead_in": ("readahead_pages", "Pages brought in beside a fault."),
    "readahead_wasted": ("readahead_wasted_pages", "Pages brought in beside a fault, not used."),
    "evicted": ("evicted_pages", "Pages evicted."),
    "evicted_clean": ("evicted_clean_pages", "Pages evicted without a write, unchanged."),
    "evicted_zero": ("evicted_same_filled_pages", "Pages evicted that were same-filled."),
    "evicted_cancelled": ("evicted_cancelled_pages", "Pages taken back on their way out."),
    "demoted": ("demoted_pages", "Pages moved to a later tier."),
    "discarded": ("discarded_pages", "Pages given back by the guest."),
    "scanned_pages": ("scanned_pages", "Pages looked at by access scans."),
    "touched_pages": ("touched_pages", "Pages that access scans found in use."),
    "lost_pages": ("lost_pages", "Pages whose content cannot be had."),
    "pinned": ("pinned_pages", "Pages not evicted because a device held their address."),
    "prefetched": ("prefetched_pages", "Pages brought in because somebody asked beforehand."),
    "migration_swap_ins": ("migration_swap_ins", "Pages that a thread of a migration brought in."),
    "bypass_pages": ("bypass_pages", "Stored pages that a migration read past guest memory."),
    "recoveries": ("recoveries", "Workers that took over from a dead one."),
}
TIER_GAUGES = {
    "capacity_bytes": ("capacity_bytes", "Room for this VM, 0 is as much as there is."),
    "used_bytes": ("used_bytes", "Room in use, copies of pages in memory included."),
    "stored_pages": ("stored_pages", "Guest pages that are here only."),
    "copy_pages": ("copy_pages", "Guest pages that are in memory and have a copy here."),
    "stored_bytes": ("stored_bytes", "Size of all pages here before compression."),
}
TIER_COUNTERS = {
    "read_bytes": ("read_bytes", "Bytes read."),
    "write_bytes": ("write_bytes", "Bytes written."),
    "trim_bytes": ("trim_bytes", "Bytes given back to the store."),
    "errors": ("errors", "Requests that failed."),
    "checksum_errors": ("checksum_errors", "Pages that were not what had been stored."),
    "refused": ("refused_pages", "Pages not taken, because full or not compressible."),
    "compactions": ("compacted_pages", "Pages moved inside the tier."),
    "reconnects": ("reconnects", "Connections to the server made anew."),
}

_CONDITIONS = (
    *("starting", "running", "store-full", "store-error"),
    *("worker-died", "no-answer", "silent"),
)
_TIER_STATES = tuple(state.value for state in TierState)
_PER_OCTAVE = 1 << lib.UFFDMM_HIST_SUB_BITS


class UffdmmCollector(Collector):
    """A custom collector for a registry of ``prometheus_client``.

    :param manager: whose VMs
    """

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._watcher = Watcher(manager)
        # Scrapes may come from several threads.
        self._lock = threading.Lock()

    def describe(self) -> list[Metric]:
        """Nothing: else registering would already ask the manager."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All metrics of this moment."""
        started = time.monotonic()
        with self._lock:
            views: list[VmView] = []
            try:
                views = self._watcher.look()
            except UffdmmError:
                # The scrape itself works: that the manager does not is what it has to tell.
                up = 0.0
            else:
                up = 1.0
            yield GaugeMetricFamily(
                "uffdmm_manager_up", "1 when the manager answered this scrape.", value=up
            )
            yield GaugeMetricFamily("uffdmm_vms", "VMs that the manager serves.", value=len(views))
            yield from _of_vms(views)
            yield from _of_tiers(views)
            yield GaugeMetricFamily(
                "uffdmm_scrape_duration_seconds",
                "Time that this scrape took.",
                value=time.monotonic() - started,
            )

    def close(self) -> None:
        """Give back all mappings."""
        with self._lock:
            self._watcher.close()


def _of_vms(views: list[VmView]) -> Iterator[Metric]:
    answered = [(view, view.stats) for view in views if view.stats is not None]
    alive = GaugeMetricFamily(
        "uffdmm_vm_up",
        f"1 while the worker of the VM gave a sign of life in the last {SILENT:g} seconds.",
        labels=["vm"],
    )
    state = StateSetMetricFamily(
        "uffdmm_vm_state", "What the worker says of itself, or why it does not.", labels=["vm"]
    )
    for view in views:
        condition = view.condition
        dead = condition in {"worker-died", "no-answer", "silent"}
        alive.add_metric([view.name], 0 if dead else 1)
        state.add_metric([view.name], {name: name == condition for name in _CONDITIONS})
    yield alive
    yield state
    age = GaugeMetricFamily(
        "uffdmm_vm_heartbeat_age_seconds",
        "Time since the worker's last sign of life.",
        labels=["vm"],
    )
    for view, stats in answered:
        age.add_metric([view.name], stats.heartbeat_age)
    yield age
    for field, (name, text) in VM_GAUGES.items():
        gauge = GaugeMetricFamily(f"uffdmm_vm_{name}", text, labels=["vm"])
        for view, stats in answered:
            gauge.add_metric([view.name], getattr(stats, field))
        yield gauge
    for field, (name, text) in VM_SECONDS.items():
        gauge = GaugeMetricFamily(f"uffdmm_vm_{name}", text, labels=["vm"])
        for view, stats in answered:
            gauge.add_metric([view.name], getattr(stats, field) / 1e9)
        yield gauge
    for field, (name, text) in VM_COUNTERS.items():
        counter = CounterMetricFamily(f"uffdmm_vm_{name}", text, labels=["vm"])
        for view, stats in answered:
            counter.add_metric([view.name], getattr(stats, field))
        yield counter
    yield _fault_histogram(answered)


def _fault_histogram(answered: list[tuple[VmView, Stats]]) -> Metric:
    histogram = HistogramMetricFamily(
        "uffdmm_vm_fault_duration_seconds",
        "Time from the message of a fault to its page being there.",
        labels=["vm"],
    )
    for view, stats in answered:
        histogram.add_metric([view.name], octaves(stats.fault_hist), stats.fault_ns / 1e9)
    return histogram


def _of_tiers(views: list[VmView]) -> Iterator[Metric]:
    labels = ["vm", "tier"]
    tiers = [(view.name, tier) for view in views for tier in view.tiers]
    state = StateSetMetricFamily(
        "uffdmm_tier_state", "How the tier is; new pages go to one that is ok.", labels=labels
    )
    for vm_name, tier in tiers:
        state.add_metric(
            [vm_name, tier.name], {name: name == tier.state.value for name in _TIER_STATES}
        )
    yield state
    info = GaugeMetricFamily(
        "uffdmm_tier_info", "1, with the type of the tier.", labels=[*labels, "type"]
    )
    for vm_name, tier in tiers:
        info.add_metric([vm_name, tier.name, tier.type.value], 1)
    yield info
    last = GaugeMetricFamily(
        "uffdmm_tier_last_error_timestamp_seconds",
        "When the last error was, in seconds since 1970; 0 is never.",
        labels=labels,
    )
    for vm_name, tier in tiers:
        last.add_metric([vm_name, tier.name], tier.last_error_ns / 1e9)
    yield last
    for field, (name, text) in TIER_GAUGES.items():
        gauge = GaugeMetricFamily(f"uffdmm_tier_{name}", text, labels=labels)
        for vm_name, tier in tiers:
            gauge.add_metric([vm_name, tier.name], getattr(tier, field))
        yield gauge
    for field, (name, text) in TIER_COUNTERS.items():
        counter = CounterMetricFamily(f"uffdmm_tier_{name}", text, labels=labels)
        for vm_name, tier in tiers:
            counter.add_metric([vm_name, tier.name], getattr(tier, field))
        yield counter
    yield _request_histogram(tiers, "read")
    yield _request_histogram(tiers, "write")


def _request_histogram(tiers: list[tuple[str, TierStats]], which: str) -> Metric:
    histogram = HistogramMetricFamily(
        f"uffdmm_tier_{which}_duration_seconds",
        f"Time that {which} requests took; the sum is that of the middles of fine buckets.",
        labels=["vm", "tier"],
    )
    for vm_name, tier in tiers:
        counts = tier.read_hist if which == "read" else tier.write_hist
        histogram.add_metric([vm_name, tier.name], octaves(counts), approximate_sum(counts))
    return histogram


def octaves(counts: Histogram) -> list[tuple[str, float]]:
    """Cumulative counts by upper bound in seconds, one bucket an octave, the last one +Inf."""
    buckets: list[tuple[str, float]] = []
    below = 0
    for first in range(0, len(counts.counts), _PER_OCTAVE):
        below += sum(counts.counts[first : first + _PER_OCTAVE])
        _, high = bucket_bounds(first + _PER_OCTAVE - 1)
        # The last bucket holds all that is longer, too.
        last = first + _PER_OCTAVE >= len(counts.counts)
        buckets.append(("+Inf" if last else repr(high / 1e9), float(below)))
    return buckets


def approximate_sum(counts: Histogram) -> float:
    """Seconds of all durations together, each taken as the middle of its bucket."""
    return sum((low + high) / 2 * count for low, high, count in counts.buckets()) / 1e9
