# SPDX-License-Identifier: GPL-2.0-or-later
"""Client and command against the real manager, with a stand-in for QEMU."""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from uffdmm import (
    ConnectError,
    Manager,
    ManagerError,
    NoSuchVmError,
    TierType,
    WorkerState,
    hostfacts,
)
from uffdmm.cli.app import main
from uffdmm.serve.host import overhead
from uffdmm.trace import load_trace
from uffdmm.trace.model import unpack

pytestmark = pytest.mark.manager

MIB = 1 << 20
SIZE = 24 * MIB
LIMIT = 12 * MIB
TOP = Path(__file__).parents[2]


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait for what another process is about to do."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, f"not within 10 s: {what}"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def program() -> Path:
    path = Path(os.environ.get("UFFDMM_MANAGER", TOP / "build/native/native/uffdmm-manager"))
    if not os.access(path, os.X_OK):
        pytest.skip(f"no manager at {path}: build it, or set UFFDMM_MANAGER")
    if hostfacts.probe_host().uffd_device_error:
        pytest.skip("no permission for /dev/userfaultfd")
    return path


@pytest.fixture
def socket_path(program: Path, tmp_path: Path) -> Iterator[Path]:
    """A running manager; nothing of it is left afterwards."""
    store = tmp_path / "store"
    store.mkdir()
    # Not in tmp_path, which no other user may enter.
    folder = Path(tempfile.mkdtemp(prefix="uffdmm-pytest-"))
    folder.chmod(0o755)
    path = folder / "manager.sock"
    command = [
        *(str(program), "--socket-path", str(path)),
        *("--tier", "ram=pool,capacity=4M", "--tier", f"disk=file,path={store}"),
        *("--limit", str(LIMIT), "--no-tracking"),
    ]
    with (tmp_path / "manager.log").open("w") as log:
        process = subprocess.Popen(command, stderr=log)
    eventually(lambda: path.exists() or process.poll() is not None, "the manager listens")
    assert process.poll() is None, (tmp_path / "manager.log").read_text()
    yield path
    process.terminate()
    assert process.wait(10) == 0
    # It has removed its socket; the file by which workers find a successor stays with them.
    path.with_name("manager.sock.lock").unlink(missing_ok=True)
    folder.rmdir()
    eventually(lambda: not list(store.iterdir()), "the volumes are gone")


class Vmm:
    """The stand-in process."""

    def __init__(self, socket_path: Path, vm_name: str) -> None:
        script = Path(__file__).with_name("standin_vmm.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(socket_path), vm_name, str(SIZE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def expect(self, line: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        got = self.process.stdout.readline().strip()
        assert got == line, got or self.process.stderr.read()

    def end(self) -> None:
        self.process.communicate(timeout=10)
        assert self.process.returncode == 0


@pytest.fixture
def vmm(socket_path: Path) -> Iterator[Vmm]:
    """A VM of 24 MiB named demo that has verified its memory under a limit of 12 MiB."""
    process = Vmm(socket_path, "demo")
    try:
        process.expect("attached")
        process.expect("verified")
        yield process
    finally:
        # SIGKILL: a process that waits in a fault ends by nothing else.
        process.process.kill()
        process.process.communicate()


def test_nothing_to_list(socket_path: Path) -> None:
    assert Manager(socket_path).list_vms() == []


def test_unknown_vm(socket_path: Path) -> None:
    with pytest.raises(NoSuchVmError, match="serves no VM named 'other'"):
        Manager(socket_path).open_vm("other")


def test_a_vm_comes_and_goes(socket_path: Path, vmm: Vmm) -> None:
    manager = Manager(socket_path)
    (entry,) = manager.list_vms()
    assert entry.vm_name == "demo"
    assert entry.qemu_pid == vmm.process.pid
    assert Path(f"/proc/{entry.worker_pid}").exists()
    vmm.end()
    eventually(lambda: manager.list_vms() == [], "the VM left the list")
    with pytest.raises(NoSuchVmError):
        manager.open_vm("demo")
    eventually(lambda: not Path(f"/proc/{entry.worker_pid}").exists(), "the worker ended")


def test_statistics_add_up(socket_path: Path, vmm: Vmm) -> None:
    with Manager(socket_path).open_vm("demo") as vm:
        stats = vm.statistics()
        assert stats.vm_name == "demo"
        assert stats.state is WorkerState.RUNNING
        assert stats.qemu_pid == vmm.process.pid
        assert (stats.nr_regions, stats.ram_bytes, stats.limit_bytes) == (1, SIZE, LIMIT)
        assert 0 < stats.resident_bytes <= LIMIT
        assert stats.resident_max_bytes <= LIMIT + 8 * MIB
        # Every page was written once: what is not resident is in the store.
        eventually(
            lambda: _resident_and_stored(vm.statistics()) == SIZE, "resident and stored fill the VM"
        )
        stats = vm.statistics()
        assert stats.faults >= stats.faults_zero + stats.faults_store > 0
        assert stats.evicted * 4096 >= SIZE - LIMIT
        assert stats.store_write_bytes >= SIZE - LIMIT
        assert stats.store_errors == stats.checksum_errors == stats.lost_pages == 0
        assert stats.fault_hist.total > 0
        # The sum of all times lies between the bounds of the buckets.
        low = sum(low * count for low, _, count in stats.fault_hist.buckets())
        high = sum(high * count for _, high, count in stats.fault_hist.buckets())
        assert low <= stats.fault_ns <= high
        p50, p99 = stats.fault_hist.percentile(0.5), stats.fault_hist.percentile(0.99)
        assert p50 is not None
        assert p99 is not None
        assert 0 < p50 <= p99 < 10


def _resident_and_stored(stats: Any) -> int:
    total: int = stats.resident_bytes + stats.stored_bytes + stats.zero_bytes
    return total


def test_tiers_add_up(socket_path: Path, vmm: Vmm) -> None:
    with Manager(socket_path).open_vm("demo") as vm:
        zero, ram, disk = vm.tiers()
        assert [tier.name for tier in (zero, ram, disk)] == ["zero", "ram", "disk"]
        assert [tier.type for tier in (zero, ram, disk)] == [
            *(TierType.ZERO, TierType.POOL, TierType.FILE)
        ]
        eventually(
            lambda: (
                sum(tier.stored_pages for tier in vm.tiers()) * 4096
                == vm.statistics().stored_bytes + vm.statistics().zero_bytes
            ),
            "the pages of the tiers are those of the VM",
        )
        ram, disk = vm.tiers()[1:]
        # Every page was out at least once, and the pool holds a part of them only.
        assert ram.writes > 0
        assert ram.used_bytes <= ram.capacity_bytes == 4 * MIB
        assert disk.writes > 0
        assert disk.read_hist.total == disk.reads
        assert ram.errors == disk.errors == ram.checksum_errors == disk.checksum_errors == 0


def test_policy_of_tiers(socket_path: Path, vmm: Vmm) -> None:
    with Manager(socket_path).open_vm("demo") as vm:
        policy = vm.set_policy(tier_bytes={"disk": 16 * MIB}, demote_after_ms=60_000)
        assert policy.tier_bytes == {"ram": 4 * MIB, "disk": 16 * MIB}
        assert (policy.demote_after_ms, vm.statistics().demote_after_ms) == (60_000, 60_000)
        assert vm.set_policy(tier_bytes={"disk": 0}).tier_bytes["disk"] == 0


def test_heartbeat_beats_while_idle(socket_path: Path, vmm: Vmm) -> None:
    with Manager(socket_path).open_vm("demo") as vm:
        before = vm.statistics().heartbeat_ns
        eventually(lambda: vm.statistics().heartbeat_ns > before, "a heartbeat")
        assert vm.statistics().heartbeat_age < 5


def test_lower_limit_takes_effect(socket_path: Path, vmm: Vmm) -> None:
    with Manager(socket_path).open_vm("demo") as vm:
        policy = vm.set_policy(limit_bytes=9 * MIB)
        assert (policy.limit_bytes, vm.statistics().limit_bytes) == (9 * MIB, 9 * MIB)
        eventually(lambda: vm.statistics().resident_bytes <= 9 * MIB, "memory was evicted")
        assert vm.set_policy(readahead_pages=4).limit_bytes == 9 * MIB
        assert vm.statistics().readahead_pages == 4
        assert vm.set_policy(limit_bytes=0).limit_bytes == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"limit_bytes": 4096}, "too small"),
        ({"readahead_pages": 65}, "read-ahead of 65 pages"),
        ({"limit_bytes": 10 * MIB, "readahead_pages": 1000}, "read-ahead of 1000 pages"),
    ],
)
def test_refused_policy_changes_nothing(
    socket_path: Path, vmm: Vmm, change: dict[str, Any], words: str
) -> None:
    with Manager(socket_path).open_vm("demo") as vm:
        before = vm.statistics()
        with pytest.raises(ManagerError, match=words):
            vm.set_policy(**change)
        after = vm.statistics()
    assert after.limit_bytes == before.limit_bytes
    assert after.readahead_pages == before.readahead_pages


def test_the_command(socket_path: Path, vmm: Vmm, capfd: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> Any:
        assert main(["--socket", str(socket_path), *arguments, "--json"]) == 0
        return json.loads(capfd.readouterr().out)

    (listed,) = run("list")["vms"]
    assert listed["vm_name"] == "demo"
    assert listed["state"] == "running"
    assert run("set-policy", "demo", "--limit", "50%")["limit_bytes"] == SIZE // 2
    status = run("status", "demo")
    assert status["limit_bytes"] == SIZE // 2
    assert 0 < status["fault_p50_us"] <= status["fault_p99_us"]
    assert main(["--socket", str(socket_path), "status", "demo"]) == 0
    assert re.search(r"^state +running$", capfd.readouterr().out, re.MULTILINE)
    assert main(["--socket", str(socket_path), "status", "other"]) == 4
    assert main(["--socket", str(socket_path), "set-policy", "demo", "--limit", "8K"]) == 5
    assert "too small" in capfd.readouterr().err


def test_pages_go_out_and_come_in_when_told(socket_path: Path, vmm: Vmm) -> None:
    command = ["--socket", str(socket_path)]
    with Manager(socket_path).open_vm("demo") as vm:
        before = vm.statistics().resident_bytes
        assert before > 8 * MIB
        assert main([*command, "evict", "demo", "4M"]) == 0
        eventually(lambda: vm.statistics().resident_bytes <= before - 3 * MIB, "the pages are out")
        out = vm.statistics().resident_bytes
        assert main([*command, "prefetch", "demo", "2M"]) == 0
        eventually(lambda: vm.statistics().resident_bytes >= out + MIB, "pages are in again")


def test_manager_that_has_ended(program: Path, tmp_path: Path) -> None:
    with pytest.raises(ConnectError):
        Manager(tmp_path / "manager.sock").list_vms()


def as_another_user(socket_path: Path) -> int:
    """Exit code of ``uffdmm list`` as nobody; a child, since there is no way back from it."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            code = main(["--socket", str(socket_path), "list"])
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_cannot_connect(socket_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert as_another_user(socket_path) == 3
    assert "no permission to connect to the manager socket" in capfd.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_turned_away(socket_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Opened up by an administrator, the socket still serves nobody else."""
    socket_path.chmod(0o666)
    assert as_another_user(socket_path) == 5
    error = capfd.readouterr().err
    assert "user 65534 may not use this manager: start it with --allow-uid" in error


@contextlib.contextmanager
def control_plane(socket_path: Path, log: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A running ``uffdmm serve``."""
    command = [
        *(sys.executable, "-m", "uffdmm", "--socket", str(socket_path)),
        *("serve", "--interval", "0.1", *words),
    ]
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stderr=stderr)
    try:
        yield process
        process.terminate()
        assert process.wait(10) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def test_the_control_plane_shares_a_budget(socket_path: Path, vmm: Vmm, tmp_path: Path) -> None:
    """The limit of a VM follows budget and settings, and holds when the control plane ended."""
    manager, log = Manager(socket_path), tmp_path / "serve.log"
    with manager.open_vm("demo") as vm:

        def taken() -> int:
            return overhead(vm.statistics(), pool_inside_limit=False)

        budget = taken() + 24 * MIB
        words = ("--policy", "fixed", "--budget", str(budget))
        with control_plane(socket_path, log, *words) as process:
            # Adopted while it ran, and raised to what the budget leaves.
            eventually(lambda: vm.statistics().limit_bytes > LIMIT, "the limit is raised")
            eventually(
                lambda: vm.statistics().limit_bytes + taken() <= budget + 2 * MIB, "within budget"
            )
            eventually(lambda: vm.statistics().prefetched > 0, "pages come back before they fault")
            vm.set_policy(max_bytes=17 * MIB)
            eventually(lambda: vm.statistics().limit_bytes == 17 * MIB, "the maximum is kept")
            eventually(lambda: vm.statistics().resident_bytes <= 17 * MIB, "memory was given back")
            vm.set_policy(opt_out=True, limit_bytes=18 * MIB)
            time.sleep(0.5)
            assert vm.statistics().limit_bytes == 18 * MIB
            assert process.poll() is None
        # Nobody needs it for a limit to hold.
        assert vm.statistics().limit_bytes == 18 * MIB
    assert "event=adopted" in log.read_text()
    assert "<3>" not in log.read_text()


def test_regions_of_the_real_worker(socket_path: Path, vmm: Vmm) -> None:
    with Manager(socket_path).open_vm("demo") as vm:
        (region,) = vm.regions()
        assert (region.size, region.page_size, region.table.nr_pages) == (SIZE, 4096, SIZE // 4096)
        stats = vm.statistics()
        resident = region.table.age_histogram().sum() * 4096
        assert abs(resident - stats.resident_bytes) <= 4 * MIB
        region.close()
        vm.evict(4 * MIB)
        eventually(
            lambda: vm.statistics().resident_bytes <= stats.resident_bytes - 3 * MIB, "evicted"
        )
        before = vm.statistics().prefetched
        vm.prefetch(MIB, range(64), region_id=region.region_id)
        vm.prefetch(2 * MIB)
        eventually(lambda: vm.statistics().prefetched > before, "prefetched")
        with pytest.raises(ManagerError, match="has no region 9"):
            vm.prefetch(MIB, [0], region_id=9)


def test_record(
    socket_path: Path, vmm: Vmm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "demo.npz"
    words = ("record", "demo", "--seconds", "1", "--interval", "0.2", "-o", str(file), "--json")
    assert main(["--socket", str(socket_path), *words]) == 0
    report = json.loads(capsys.readouterr().out)
    trace = load_trace(file)
    assert report["samples"] == len(trace.times) >= 5
    assert (trace.name, trace.ram_bytes, trace.stride) == ("demo", SIZE, 1)
    # Each page was filled, and is in one place or the other.
    resident, stored = (unpack(row, trace.nr_units) for row in (trace.resident, trace.stored))
    assert (resident | stored).all()
    assert not (resident & stored).any()
    # Table and counter are read one after the other, and evictions go on meanwhile.
    counted = int(trace.counters["resident_bytes"][0])
    assert abs(int(resident.sum()) * 4096 - counted) <= 1 << 20
    assert counted <= LIMIT
    assert trace.counters["faults_store"][0] > 0
    # Nothing happens to it, and nobody looks.
    assert (report["looked"], report["used_mean_bytes"]) == (0, 0)
