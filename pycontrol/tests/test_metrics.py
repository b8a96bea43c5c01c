# SPDX-License-Identifier: GPL-2.0-or-later
"""Metrics: what a scrape says, whether Prometheus' own checker likes it, who may be away."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from fake_manager import FakeManager, no_answer
from live_vm import LiveVm, live_vm
from uffdmm import Histogram, Manager, UffdmmError
from uffdmm._native import lib
from uffdmm.addresses import parse_address
from uffdmm.cli.app import main
from uffdmm.metrics import MetricsServer, UffdmmCollector
from uffdmm.metrics.collector import (
    VM_COUNTERS,
    VM_GAUGES,
    VM_SECONDS,
    approximate_sum,
    octaves,
)
from uffdmm.stats import Stats, bucket_bounds

MIB = 1 << 20
BUCKETS = lib.UFFDMM_HIST_BUCKETS

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def web(fake: FakeManager) -> Iterator[LiveVm]:
    fake.vms.clear()
    with live_vm(fake, "web") as made:
        yield made


@pytest.fixture
def collector(manager: Manager) -> Iterator[UffdmmCollector]:
    made = UffdmmCollector(manager)
    yield made
    made.close()


def scrape(collector: UffdmmCollector) -> str:
    registry = CollectorRegistry()
    registry.register(collector)
    return generate_latest(registry).decode()


def samples(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def of_vm(found: Samples, name: str, **labels: str) -> float:
    return found[f"uffdmm_vm_{name}", tuple(sorted({"vm": "web", **labels}.items()))]


def test_gauges_and_counters(web: LiveVm, collector: UffdmmCollector) -> None:
    web.set(faults=7, evicted=9, slots_total=3)
    web.set_tier(write_bytes=4096, state=lib.UFFDMM_TIER_AWAY)
    found = samples(scrape(collector))
    assert found["uffdmm_manager_up", ()] == 1
    assert found["uffdmm_vms", ()] == 1
    assert of_vm(found, "up") == 1
    assert of_vm(found, "resident_bytes") == 500 * MIB
    assert of_vm(found, "faults_total") == 7
    assert of_vm(found, "evicted_pages_total") == 9
    assert of_vm(found, "slots") == 3
    assert of_vm(found, "state", uffdmm_vm_state="running") == 1
    assert of_vm(found, "state", uffdmm_vm_state="store-full") == 0
    ssd = ("tier", "ssd"), ("vm", "web")
    assert found["uffdmm_tier_write_bytes_total", ssd] == 4096
    assert found["uffdmm_tier_info", (ssd[0], ("type", "file"), ssd[1])] == 1
    away = ("uffdmm_tier_state", "away")
    assert found["uffdmm_tier_state", (*ssd[:1], away, *ssd[1:])] == 1
    # Each scrape looks anew.
    web.set(faults=8)
    assert of_vm(samples(scrape(collector)), "faults_total") == 8


def test_what_protocol_3_added(web: LiveVm, collector: UffdmmCollector) -> None:
    web.set(
        pinned=1,
        prefetched=2,
        migration_swap_ins=3,
        bypass_pages=4,
        recoveries=5,
        recovery_ns=6_500_000_000,
        quarantined=7,
        shares=300,
        opt_out=1,
    )
    found = samples(scrape(collector))
    assert of_vm(found, "pinned_pages_total") == 1
    assert of_vm(found, "prefetched_pages_total") == 2
    assert of_vm(found, "migration_swap_ins_total") == 3
    assert of_vm(found, "bypass_pages_total") == 4
    assert of_vm(found, "recoveries_total") == 5
    assert of_vm(found, "recovery_seconds") == 6.5
    assert of_vm(found, "quarantined_slots") == 7
    assert of_vm(found, "shares") == 300
    assert of_vm(found, "opted_out") == 1


# Fields that are told in another way, or about which a graph would say nothing.
NO_METRIC = {
    *("worker_pid", "qemu_pid", "vm_name"),  # labels, or of no use over time
    *("heartbeat_ns", "state", "fault_ns", "fault_hist"),  # an age, a state set, a histogram
    *("nr_regions", "nr_tiers", "readahead_pages", "demote_after_ms", "track_permille"),  # settings
    "resident_max_bytes",  # what max_over_time() says
    # what the tiers have one by one
    *("store_reads", "store_read_bytes", "store_writes", "store_write_bytes"),
    *("store_trim_bytes", "store_errors", "checksum_errors"),
    *("readahead_hits", "zaps", "demote_cancelled", "passed_on"),  # how, not what
    "features",  # what a version is to people
}


def test_every_field_has_a_metric_or_a_reason() -> None:
    told = [*VM_GAUGES, *VM_SECONDS, *VM_COUNTERS]
    assert len(told) == len(set(told))
    assert not set(told) & NO_METRIC
    assert set(told) | NO_METRIC == set(Stats.model_fields)


def test_the_histogram_of_faults(web: LiveVm, collector: UffdmmCollector) -> None:
    hist = [0] * BUCKETS
    hist[0], hist[20], hist[60], hist[BUCKETS - 1] = 1, 2, 4, 8
    web.set(fault_hist=hist, fault_ns=3 * 10**9)
    found = samples(scrape(collector))
    assert of_vm(found, "fault_duration_seconds_count") == 15
    assert of_vm(found, "fault_duration_seconds_sum") == 3
    bounds = {
        float(dict(labels)["le"]): value
        for (name, labels), value in found.items()
        if name == "uffdmm_vm_fault_duration_seconds_bucket"
    }
    assert bounds[512e-9] == 1
    assert bounds[2048e-9] == 3  # bucket 20 is 1.5 to 1.664 us
    assert bounds[32.768e-6] == 3
    assert bounds[65.536e-6] == 7  # bucket 60 is 48 to 54 us
    assert bounds[8.589934592] == 7
    assert bounds[float("inf")] == 15


def test_octaves_lose_no_count_and_end_where_fine_buckets_end() -> None:
    counts = Histogram(tuple(range(BUCKETS)))
    found = octaves(counts)
    assert found[-1] == ("+Inf", float(counts.total))
    ends = {bucket_bounds(index)[1] for index in range(BUCKETS)}
    assert {round(float(bound) * 1e9) for bound, _ in found[:-1]} <= ends
    values = [value for _, value in found]
    assert values == sorted(values)


def test_the_sum_is_a_sixteenth_off_at_most() -> None:
    for index in (8, 100, 200):
        counts = [0] * BUCKETS
        counts[index] = 1
        low, high = bucket_bounds(index)
        estimate = approximate_sum(Histogram(tuple(counts))) * 1e9
        assert max(estimate - low, high - estimate) <= low / 16


def test_a_manager_that_is_away(collector: UffdmmCollector, fake: FakeManager) -> None:
    fake.tamper = no_answer
    found = samples(scrape(collector))
    assert found["uffdmm_manager_up", ()] == 0
    assert not any(name == "uffdmm_vm_up" for name, _ in found)
    fake.tamper = None
    assert samples(scrape(collector))["uffdmm_manager_up", ()] == 1


def test_a_worker_that_died(web: LiveVm, collector: UffdmmCollector) -> None:
    scrape(collector)
    web.worker(0)
    found = samples(scrape(collector))
    assert of_vm(found, "up") == 0
    assert of_vm(found, "state", uffdmm_vm_state="worker-died") == 1


def test_promtool_finds_nothing(web: LiveVm, collector: UffdmmCollector) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    done = subprocess.run(
        [promtool, "check", "metrics"],
        input=scrape(collector),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    # It would say so.
    bad = "# TYPE uffdmm_bad_total gauge\nuffdmm_bad_total 1\n"
    done = subprocess.run(
        [promtool, "check", "metrics"], input=bad, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9184", ("127.0.0.1", 9184)),
        ("0.0.0.0:0", ("0.0.0.0", 0)),
        ("[::1]:80", ("::1", 80)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text", ["", "9184", ":9184", "localhost:1", "::1:80", "[127.0.0.1]:1", "1.2.3.4:65536", "1:x"]
)
def test_no_addresses(text: str) -> None:
    with pytest.raises(UffdmmError, match="is not an address and a port"):
        parse_address(text)
    assert main(["exporter", "--listen", text]) == 2


def test_an_address_in_use(web: LiveVm, manager: Manager) -> None:
    server = MetricsServer(UffdmmCollector(manager), "127.0.0.1", 0)
    with server, pytest.raises(UffdmmError, match="cannot listen on"):
        MetricsServer(UffdmmCollector(manager), "127.0.0.1", server.port)


def test_the_command(web: LiveVm, fake: FakeManager) -> None:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "uffdmm", "--socket", str(fake.path)),
            *("exporter", "--listen", "127.0.0.1:0"),
        ],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    watchdog = threading.Timer(30, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None
        match = re.search(r"http://127\.0\.0\.1:\d+/metrics", process.stdout.readline())
        assert match is not None
        with urllib.request.urlopen(match[0], timeout=10) as answer:
            assert 'uffdmm_vm_up{vm="web"} 1.0' in answer.read().decode()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]
