# SPDX-License-Identifier: GPL-2.0-or-later
"""Events: each change is told once, none is made up, none is missed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fake_manager import FakeManager, no_answer
from live_vm import LiveVm, live_vm
from uffdmm import ConnectError, Manager
from uffdmm._native import lib
from uffdmm.cli.app import main
from uffdmm.events import Event, EventKind, EventSource
from uffdmm.watch import SILENT, Watcher

Told = list[tuple[str, str | None, str | None, str | None, str | None]]


def told(events: list[Event]) -> Told:
    return [(e.event.value, e.vm_name, e.tier, e.before, e.after) for e in events]


@pytest.fixture
def vm(fake: FakeManager) -> Iterator[LiveVm]:
    fake.vms.clear()
    with live_vm(fake, "web") as made:
        yield made


@pytest.fixture
def source(vm: LiveVm, manager: Manager) -> Iterator[EventSource]:
    """It has told of the VM already."""
    with Watcher(manager) as watcher:
        made = EventSource(watcher)
        assert told(made.poll()) == [("vm-appeared", "web", None, None, "running")]
        assert made.poll() == []
        yield made


def test_a_vm_comes_and_goes(source: EventSource, fake: FakeManager) -> None:
    with live_vm(fake, "db"):
        assert told(source.poll()) == [("vm-appeared", "db", None, None, "running")]
    assert told(source.poll()) == [("vm-gone", "db", None, "running", None)]
    assert source.poll() == []


def test_another_vm_takes_the_name(source: EventSource, vm: LiveVm) -> None:
    vm.vm.qemu_pid = 23
    vm.worker(12)
    assert told(source.poll()) == [
        ("vm-gone", "web", None, "running", None),
        ("vm-appeared", "web", None, None, "running"),
    ]


def test_states_of_the_vm(source: EventSource, vm: LiveVm) -> None:
    vm.set(state=lib.UFFDMM_WORKER_STORE_FULL)
    assert told(source.poll()) == [("vm-state", "web", None, "running", "store-full")]
    vm.set(state=lib.UFFDMM_WORKER_STORE_ERROR)
    assert told(source.poll()) == [("vm-state", "web", None, "store-full", "store-error")]
    vm.set(state=lib.UFFDMM_WORKER_RUNNING)
    assert told(source.poll()) == [("vm-state", "web", None, "store-error", "running")]
    assert source.poll() == []


def test_a_worker_dies_and_another_one_takes_over(source: EventSource, vm: LiveVm) -> None:
    vm.worker(0)
    (lost,) = source.poll()
    assert told([lost]) == [("worker-lost", "web", None, "running", "worker-died")]
    assert lost.detail is not None
    assert source.poll() == []
    vm.worker(12)
    assert told(source.poll()) == [("worker-back", "web", None, "worker-died", "running")]


def test_another_worker_between_two_looks(source: EventSource, vm: LiveVm) -> None:
    vm.worker(12)
    assert told(source.poll()) == [("worker-back", "web", None, "running", "running")]


def test_a_worker_falls_silent(source: EventSource, vm: LiveVm) -> None:
    long_ago = time.clock_gettime_ns(time.CLOCK_MONOTONIC) - int((SILENT + 1) * 1e9)
    vm.set(heartbeat_ns=long_ago)
    assert told(source.poll()) == [("worker-lost", "web", None, "running", "silent")]
    vm.set(heartbeat_ns=time.clock_gettime_ns(time.CLOCK_MONOTONIC))
    assert told(source.poll()) == [("worker-back", "web", None, "silent", "running")]


def test_states_and_errors_of_a_tier(source: EventSource, vm: LiveVm) -> None:
    vm.set_tier(
        state=lib.UFFDMM_TIER_AWAY,
        last_error_ns=1_700_000_000_000_000_000,
        last_error=b"connection refused",
    )
    state, error = source.poll()
    assert told([state]) == [("tier-state", "web", "ssd", "ok", "away")]
    assert (error.event, error.tier) == (EventKind.TIER_ERROR, "ssd")
    assert error.detail == "connection refused"
    assert error.time.timestamp() == 1_700_000_000
    assert source.poll() == []
    # The same sentence again is another error.
    vm.set_tier(state=lib.UFFDMM_TIER_OK, last_error_ns=1_700_000_001_000_000_000)
    assert told(source.poll()) == [
        ("tier-state", "web", "ssd", "away", "ok"),
        ("tier-error", "web", "ssd", None, None),
    ]


def test_a_tier_that_is_ill_is_told_of_at_the_first_look(vm: LiveVm, manager: Manager) -> None:
    vm.set_tier(state=lib.UFFDMM_TIER_FULL)
    with Watcher(manager) as watcher:
        assert told(EventSource(watcher).poll()) == [
            ("vm-appeared", "web", None, None, "running"),
            ("tier-state", "web", "ssd", None, "full"),
        ]


def test_lost_pages(source: EventSource, vm: LiveVm) -> None:
    vm.set(lost_pages=3)
    (event,) = source.poll()
    assert (event.event, event.detail) == (
        EventKind.PAGES_LOST,
        "3 pages whose content cannot be had",
    )
    assert source.poll() == []
    # The counter of a new worker begins anew: one more is one.
    vm.set(lost_pages=1)
    vm.worker(12)
    assert [event.event for event in source.poll()] == [
        EventKind.WORKER_BACK,
        EventKind.PAGES_LOST,
    ]


def test_only_one_vm(vm: LiveVm, fake: FakeManager, manager: Manager) -> None:
    with live_vm(fake, "db") as other, Watcher(manager) as watcher:
        source = EventSource(watcher, "web")
        assert told(source.poll()) == [("vm-appeared", "web", None, None, "running")]
        other.set(state=lib.UFFDMM_WORKER_STORE_FULL)
        assert source.poll() == []


def test_the_manager_goes_and_comes_back(source: EventSource, fake: FakeManager) -> None:
    fake.tamper = no_answer
    assert told(source.poll()) == [("manager-lost", None, None, None, None)]
    assert source.poll() == []
    fake.tamper = None
    # Its VMs were served on all the time.
    assert told(source.poll()) == [("manager-back", None, None, None, None)]
    assert source.poll() == []


def test_no_manager_at_all(tmp_path: Path) -> None:
    watcher = Watcher(Manager(tmp_path / "none.sock", timeout=1))
    with watcher, pytest.raises(ConnectError):
        EventSource(watcher).poll()


def test_a_worker_that_does_not_answer_is_asked_again_later(
    vm: LiveVm, fake: FakeManager, manager: Manager
) -> None:
    now = [0.0]
    fake.tamper = lambda reply: None if reply.request_type == lib.UFFDMM_MSG_QUERY else reply
    with Watcher(manager, clock=lambda: now[0]) as watcher:
        source = EventSource(watcher)
        assert told(source.poll()) == [
            ("vm-appeared", "web", None, None, "no-answer"),
            ("worker-lost", "web", None, None, "no-answer"),
        ]
        fake.requests.clear()
        source.poll()
        assert lib.UFFDMM_MSG_QUERY not in [kind for kind, _ in fake.requests]
        fake.tamper = None
        now[0] = 11.0
        assert told(source.poll()) == [("worker-back", "web", None, "no-answer", "running")]


def test_the_command(vm: LiveVm, fake: FakeManager, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--socket", str(fake.path), "events", "--json"]) == 0
    (line,) = capfd.readouterr().out.splitlines()
    document = json.loads(line)
    assert set(document) == set(Event.model_fields)
    assert (document["event"], document["vm_name"]) == ("vm-appeared", "web")
    vm.set_tier(state=lib.UFFDMM_TIER_SLOW)
    assert main(["--socket", str(fake.path), "events", "web"]) == 0
    appeared, tier = capfd.readouterr().out.splitlines()
    assert appeared.endswith(" web vm-appeared running")
    assert tier.endswith(" web/ssd tier-state slow")
    assert main(["--socket", str(fake.path), "events", "none"]) == 4


def test_following_until_interrupted(vm: LiveVm, fake: FakeManager) -> None:
    process = subprocess.Popen(
        [
            # whoever started the tests in the background had SIGINT ignored
            *("env", "--default-signal=INT"),
            *(sys.executable, "-m", "uffdmm", "--socket", str(fake.path)),
            *("events", "--follow", "--interval", "0.1", "--json"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    watchdog = threading.Timer(30, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None
        assert event_of(process.stdout.readline()) == "vm-appeared"
        vm.set(state=lib.UFFDMM_WORKER_STORE_FULL)
        assert event_of(process.stdout.readline()) == "vm-state"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
        assert process.returncode == 130
        assert "Traceback" not in errors
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()


def event_of(line: str) -> Any:
    return json.loads(line)["event"]
