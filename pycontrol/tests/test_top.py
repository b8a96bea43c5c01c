# SPDX-License-Identifier: GPL-2.0-or-later
"""``uffdmm top``: rates out of two looks, the order, one screen."""

import fcntl
import json
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator

import pytest

from fake_manager import FakeManager, no_answer
from live_vm import LiveVm, live_vm
from uffdmm import Manager
from uffdmm._native import lib
from uffdmm.cli.app import main
from uffdmm.cli.top import BY_LETTER, SortKey, TopReport, TopVm, compare, sort_vms, take_look
from uffdmm.watch import Watcher

MIB = 1 << 20


@pytest.fixture
def web(fake: FakeManager) -> Iterator[LiveVm]:
    fake.vms.clear()
    with live_vm(fake, "web") as made:
        yield made


def test_rates_are_differences(web: LiveVm, manager: Manager) -> None:
    hist = [0] * lib.UFFDMM_HIST_BUCKETS
    hist[10] = 1000
    web.set(faults=1000, fault_ns=10**9, fault_hist=list(hist), store_read_bytes=MIB)
    with Watcher(manager) as watcher:
        before = take_look(watcher)
        hist[60] = 100
        web.set(
            faults=1100,
            fault_ns=10**9 + 5 * 10**8,
            fault_hist=list(hist),
            store_read_bytes=5 * MIB,
            store_write_bytes=6 * MIB,
        )
        now = take_look(watcher)
        before.at = now.at - 2.0
        (vm,) = compare(before, now, SortKey.NAME).vms
    assert vm.faults_per_s == 50
    assert vm.stall_share == 0.25
    assert (vm.in_bytes_per_s, vm.out_bytes_per_s) == (2 * MIB, 3 * MIB)
    # Only the faults of the interval count: bucket 60, not the thousand in bucket 10.
    assert vm.fault_p99_us is not None
    assert 48 < vm.fault_p99_us < 54


def test_no_rates_across_two_workers(web: LiveVm, manager: Manager) -> None:
    web.set(faults=1000)
    with Watcher(manager) as watcher:
        before = take_look(watcher)
        web.set(faults=10)
        web.worker(12)
        now = take_look(watcher)
        (vm,) = compare(before, now, SortKey.NAME).vms
    assert vm.faults_per_s is None
    assert vm.resident_bytes == 500 * MIB


def test_a_dead_worker_keeps_its_line(web: LiveVm, manager: Manager) -> None:
    with Watcher(manager) as watcher:
        before = take_look(watcher)
        web.worker(0)
        (vm,) = compare(before, take_look(watcher), SortKey.NAME).vms
    assert (vm.vm_name, vm.condition) == ("web", "worker-died")


@pytest.mark.parametrize("key", [key for key in SortKey if key is not SortKey.NAME])
def test_largest_first_and_unknown_last(key: SortKey) -> None:
    values = {"a": 1, "b": 3, "c": None, "d": 2, "e": 2}
    field = {
        "resident": "resident_bytes",
        "stored": "stored_bytes",
        "faults": "faults_per_s",
        "latency": "fault_p99_us",
        "stall": "stall_share",
        "in": "in_bytes_per_s",
        "out": "out_bytes_per_s",
    }[key.value]
    vms = [
        TopVm.model_validate({"vm_name": name, "condition": "running", "tiers": {}, field: value})
        for name, value in values.items()
    ]
    assert [vm.vm_name for vm in sort_vms(vms, key)] == ["b", "d", "e", "a", "c"]
    assert [vm.vm_name for vm in sort_vms(vms[::-1], SortKey.NAME)] == list("abcde")


def test_each_sort_key_has_its_own_letter() -> None:
    assert sorted(BY_LETTER.values()) == sorted(SortKey)
    assert "q" not in BY_LETTER
    assert all(letter in key.value for letter, key in BY_LETTER.items())


def test_once(web: LiveVm, fake: FakeManager, capfd: pytest.CaptureFixture[str]) -> None:
    web.set_tier(state=lib.UFFDMM_TIER_FULL)
    command = ["--socket", str(fake.path), "top", "--once", "--interval", "0.1"]
    assert main(command) == 0
    sums, heading, row = (" ".join(x.split()) for x in capfd.readouterr().out.splitlines())
    assert sums == "1 VM(s), RAM 1.00 GiB, resident 500 MiB, stored 300 MiB, 0 faults/s"
    assert heading.startswith("VM STATE RAM LIMIT RESIDENT STORED FAULTS/S P99 STALL")
    assert row == "web running 1.00 GiB 512 MiB 500 MiB 300 MiB 0 - 0.00% 0 B 0 B ssd:full"
    assert main([*command, "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert set(document) == set(TopReport.model_fields)
    assert set(document["vms"][0]) == set(TopVm.model_fields)
    assert document["vms"][0]["tiers"] == {"zero": "ok", "ssd": "full"}


def test_without_a_manager(tmp_path: object) -> None:
    assert main(["--socket", f"{tmp_path}/none.sock", "top", "--once"]) == 3


class Terminal:
    """``uffdmm top`` on a terminal of 150 columns and ten lines."""

    def __init__(self, fake: FakeManager) -> None:
        self._main, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 10, 150, 0, 0))
        self.other = other
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "uffdmm", "--socket", str(fake.path)),
                *("top", "--interval", "0.2", "--sort", "name"),
            ],
            stdin=other,
            stdout=other,
            stderr=other,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm"},
        )

    def until(self, text: str) -> str:
        """What came until the text did."""
        seen = b""
        deadline = time.monotonic() + 20
        while text.encode() not in seen:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self._main], [], [], max(0.0, left))
            assert ready, f"no '{text}' in {seen!r}"
            seen += os.read(self._main, 65536)
        return seen.decode()

    def press(self, key: str) -> None:
        os.write(self._main, key.encode())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._main)
        os.close(self.other)


def test_on_a_terminal(web: LiveVm, fake: FakeManager) -> None:
    others = [live_vm(fake, f"vm{number:02}") for number in range(20)]
    for other in others:
        other.__enter__()
    terminal = Terminal(fake)
    watchdog = threading.Timer(60, terminal.process.kill)
    watchdog.start()
    try:
        saved = termios.tcgetattr(terminal.other)
        screen = terminal.until("and 15 more")
        assert "vm00" in screen
        assert "vm19" not in screen
        web.set(resident_bytes=900 * MIB)
        terminal.press("r")
        assert "web" in terminal.until("by resident") + terminal.until("and 15 more")
        # A manager that is away is told of, and nothing ends.
        fake.tamper = no_answer
        terminal.until("closed the connection")
        fake.tamper = None
        terminal.until("sort: ")
        terminal.press("q")
        assert terminal.process.wait(20) == 0
        assert termios.tcgetattr(terminal.other)[3] == saved[3]
    finally:
        watchdog.cancel()
        terminal.close()
        for other in others:
            other.__exit__(None, None, None)
