# SPDX-License-Identifier: GPL-2.0-or-later
"""The command: exit codes, JSON keys, one sentence and its remedy on stderr."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fake_manager import FakeManager, Outgoing, stats_bytes, struct_bytes
from made_up_host import GOOD
from uffdmm import SelfTestError, hostfacts, selftest
from uffdmm._native import lib
from uffdmm.cli.app import main
from uffdmm.cli.check_host import TestedHostReport
from uffdmm.cli.tiers import TierReport
from uffdmm.cli.vms import ListedVm, StatusReport

Run = Any

# What the fake says of its tiers, which no test changes by accident.
PLANE = (
    "  control plane: min 0 B, max none, shares 100, priority 50\n"
    "  access tracking: up to 1.5 % of a CPU\n"
)
TIERS = PLANE + "  tier ram: no bound\n  tier ssd: no bound\n"


@dataclasses.dataclass
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(fake: FakeManager, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run the command against the fake manager."""

    def run_command(*arguments: str, timeout: str = "1") -> Outcome:
        code = main(["--socket", str(fake.path), "--timeout", timeout, *arguments])
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run_command


def test_list(run: Run) -> None:
    outcome = run("list")
    assert outcome.code == 0
    heading, row = outcome.out.splitlines()
    assert " ".join(heading.split()) == "VM STATE RAM LIMIT RESIDENT STORED WORKER QEMU"
    assert " ".join(row.split()) == "demo running 1.00 GiB 512 MiB 500 MiB 300 MiB 11 22"


def test_list_as_json(run: Run) -> None:
    outcome = run("list", "--json")
    assert outcome.code == 0
    assert outcome.json == {
        "vms": [
            {
                "vm_name": "demo",
                "worker_pid": 11,
                "qemu_pid": 22,
                "state": "running",
                "ram_bytes": 1 << 30,
                "limit_bytes": 512 << 20,
                "resident_bytes": 500 << 20,
                "stored_bytes": 300 << 20,
            }
        ]
    }
    assert set(outcome.json["vms"][0]) == set(ListedVm.model_fields)


def test_list_of_nothing(run: Run, fake: FakeManager) -> None:
    fake.vms.clear()
    assert run("list").out == f"the manager at '{fake.path}' serves no VM\n"
    assert run("list", "--json").json == {"vms": []}


def test_list_shows_a_vm_that_does_not_answer(run: Run, fake: FakeManager) -> None:
    fake.tamper = lambda reply: None if reply.request_type == lib.UFFDMM_MSG_QUERY else reply
    outcome = run("list", "--json")
    assert outcome.code == 0
    assert outcome.json["vms"][0]["vm_name"] == "demo"
    assert outcome.json["vms"][0]["state"] is None
    assert "no answer" in run("list").out


def test_list_shows_a_vm_whose_worker_died(run: Run, fake: FakeManager) -> None:
    fake.vms["demo"].worker_pid = 0
    fake.tamper = lambda reply: None if reply.request_type == lib.UFFDMM_MSG_QUERY else reply
    assert "worker died" in run("list").out


def test_list_survives_a_vm_that_is_just_ending(run: Run, fake: FakeManager) -> None:
    def ending(reply: Outgoing) -> Outgoing:
        if reply.request_type == lib.UFFDMM_MSG_QUERY:
            reply.header["status"] = -11
            reply.payload = struct_bytes("struct uffdmm_error", {"text": b"ending"})
            reply.fds = []
        return reply

    fake.tamper = ending
    assert run("list", "--json").json["vms"][0]["state"] is None


def test_status(run: Run) -> None:
    outcome = run("status", "demo")
    assert outcome.code == 0
    assert "resident      500 MiB (at most 510 MiB)" in outcome.out
    assert "fault time    p50 " in outcome.out
    assert "NO SIGN OF LIFE" in outcome.out  # the fake never writes a heartbeat


def test_status_as_json(run: Run) -> None:
    document = run("status", "demo", "--json").json
    assert set(document) == set(StatusReport.model_fields)
    assert document["limit_bytes"] == 512 << 20
    assert document["state"] == "running"
    assert document["fault_mean_us"] == 10.0
    # 98 of 100 faults in bucket 20 (1.5 to 1.664 us), two in bucket 60 (48 to 54 us).
    assert 1.5 < document["fault_p50_us"] < 1.7
    assert 49 < document["fault_p99_us"] < 54
    assert [count for _, _, count in document["fault_hist"]] == [98, 2]
    assert [tier["name"] for tier in document["tiers"]] == ["zero", "ram", "ssd"]
    assert set(document["tiers"][1]) == set(TierReport.model_fields)


def squeezed(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


TIER_ROWS = [
    "zero zero ok - - 7 - 0 - - 0 - - 0",
    "ram pool full 100 MiB 128 MiB 50000 2.50 10 278.5 us 294.6 us 5 1.6 ms 1.7 ms 0",
    "ssd file ok 50.0 MiB - 12800 - 0 - - 0 - - 3",
]
LAST_ERROR = "ssd: cannot read 4096 bytes at 8192: input/output error (2023-11-1"


def test_status_shows_the_tiers(run: Run) -> None:
    lines = squeezed(run("status", "demo").out)
    assert lines[-4:-1] == TIER_ROWS
    assert lines[-1].startswith("last error of " + LAST_ERROR)


def test_tiers(run: Run) -> None:
    outcome = run("tiers")
    assert outcome.code == 0
    lines = squeezed(outcome.out)
    assert lines[0] == (
        "VM TIER TYPE STATE USED CAPACITY PAGES RATIO READS P50 P99 WRITES P50 P99 ERRORS"
    )
    assert lines[1:4] == ["demo " + row for row in TIER_ROWS]
    assert lines[4].startswith("last error of demo: " + LAST_ERROR)
    assert run("tiers", "demo").out == outcome.out


def test_tiers_as_json(run: Run) -> None:
    document = run("tiers", "--json").json
    assert [vm["vm_name"] for vm in document["vms"]] == ["demo"]
    zero, ram, ssd = document["vms"][0]["tiers"]
    assert set(ram) == set(TierReport.model_fields)
    assert (ram["type"], ram["state"], ram["ratio"]) == ("pool", "full", 2.5)
    assert 262 < ram["read_p50_us"] < ram["read_p99_us"] < 295
    assert zero["ratio"] is None
    assert ssd["read_p50_us"] is None
    assert ssd["last_error"].startswith("cannot read")
    assert run("tiers", "demo", "--json").json == document


def test_tiers_of_a_vm_that_does_not_answer(run: Run, fake: FakeManager) -> None:
    fake.tamper = lambda reply: None if reply.request_type == lib.UFFDMM_MSG_QUERY else reply
    assert run("tiers", "--json").json == {"vms": [{"vm_name": "demo", "tiers": None}]}
    assert squeezed(run("tiers").out)[1] == "demo no answer"
    assert run("tiers", "demo").code == 3


def test_tiers_of_nothing(run: Run, fake: FakeManager) -> None:
    fake.vms.clear()
    assert run("tiers").out == f"the manager at '{fake.path}' serves no VM\n"
    assert run("tiers", "demo").code == 4


def test_status_without_faults(run: Run, fake: FakeManager) -> None:
    fake.vms["demo"].page = stats_bytes(vm_name=b"demo")
    document = run("status", "demo", "--json").json
    assert document["fault_p50_us"] is None
    assert document["fault_hist"] == []
    assert "p50 -, p99 -, mean -" in run("status", "demo").out


def test_no_limit_is_shown_as_such(run: Run, fake: FakeManager) -> None:
    fake.vms["demo"].page = stats_bytes(vm_name=b"demo", limit_bytes=0)
    assert "limit         none" in run("status", "demo").out
    assert " none " in run("list").out


def test_status_of_a_living_worker_is_not_alarming(run: Run, fake: FakeManager) -> None:
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    fake.vms["demo"].page = stats_bytes(vm_name=b"demo", heartbeat_ns=now)
    assert "state         running\n" in run("status", "demo").out


@pytest.mark.parametrize("state", ["starting", "running", "store-full", "store-error"])
def test_status_names_the_state(run: Run, fake: FakeManager, state: str) -> None:
    number = getattr(lib, "UFFDMM_WORKER_" + state.upper().replace("-", "_"))
    fake.vms["demo"].page = stats_bytes(vm_name=b"demo", state=number)
    assert run("status", "demo", "--json").json["state"] == state


def test_status_of_an_unknown_vm(run: Run) -> None:
    outcome = run("status", "other", "--json")
    assert outcome.code == 4
    assert outcome.out == ""
    assert "serves no VM named 'other'" in outcome.err
    assert "  remedy: 'uffdmm list' shows" in outcome.err


def test_status_of_an_impossible_name(run: Run) -> None:
    assert run("status", "x" * 64).code == 2


def test_set_policy(run: Run, fake: FakeManager) -> None:
    outcome = run("set-policy", "demo", "--limit", "256M", "--readahead", "16")
    assert (outcome.code, outcome.out) == (
        0,
        "demo: limit 256 MiB, read-ahead up to 16 pages, demotion never\n" + TIERS,
    )
    assert fake.vms["demo"].limit_bytes == 256 << 20
    assert fake.vms["demo"].readahead_pages == 16


def test_set_policy_of_access_tracking(run: Run, fake: FakeManager) -> None:
    outcome = run("set-policy", "demo", "--track-permille", "40")
    assert (outcome.code, fake.vms["demo"].plane[5]) == (0, 40)
    assert "access tracking: up to 4 % of a CPU\n" in outcome.out
    outcome = run("set-policy", "demo", "--track-permille", "0")
    assert (outcome.code, fake.vms["demo"].plane[5]) == (0, 0)
    assert "access tracking: off\n" in outcome.out


def test_set_policy_as_json(run: Run) -> None:
    outcome = run("set-policy", "demo", "--readahead", "1", "--json")
    assert outcome.json == {
        "limit_bytes": 1 << 30,
        "readahead_pages": 1,
        "demote_after_ms": 0,
        "tier_bytes": {"ram": 0, "ssd": 0},
        "min_bytes": 0,
        "max_bytes": 0,
        "shares": 100,
        "priority": 50,
        "opt_out": False,
        "track_permille": 15,
        "vm_name": "demo",
    }


def test_set_policy_of_tiers(run: Run, fake: FakeManager) -> None:
    outcome = run(
        *("set-policy", "demo", "--demote-after", "90s"),
        *("--tier", "ssd=4G", "--tier", "ram=64M"),
    )
    assert outcome.code == 0
    assert outcome.out == (
        "demo: limit 1.00 GiB, read-ahead up to 64 pages, demotion after 90s\n"
        + PLANE
        + "  tier ram: 64.0 MiB\n  tier ssd: 4.00 GiB\n"
    )
    assert fake.vms["demo"].tier_bytes[1:3] == [64 << 20, 4 << 30]
    assert fake.vms["demo"].demote_after_ms == 90_000
    assert run("set-policy", "demo", "--tier", "ssd=none", "--demote-after", "never").code == 0
    assert fake.vms["demo"].tier_bytes[2] == 0
    assert fake.vms["demo"].demote_after_ms == 0


def test_set_policy_of_an_unknown_tier(run: Run) -> None:
    outcome = run("set-policy", "demo", "--tier", "hdd=1G")
    assert outcome.code == 2
    assert outcome.err == (
        "uffdmm: the VM has no tier 'hdd' that could be bounded\n  remedy: it has ram, ssd\n"
    )


@pytest.mark.parametrize(
    ("limit", "size"),
    [("25%", 256 << 20), ("33.3%", 357552128), ("4097", 4096), ("0.3G", 322121728)],
)
def test_set_policy_by_share_in_whole_pages(
    run: Run, fake: FakeManager, limit: str, size: int
) -> None:
    assert run("set-policy", "demo", "--limit", limit).code == 0
    assert fake.vms["demo"].limit_bytes == size
    assert size % 4096 == 0


@pytest.mark.parametrize("limit", ["none", "0", "None"])
def test_set_policy_lifts_the_limit(run: Run, fake: FakeManager, limit: str) -> None:
    outcome = run("set-policy", "demo", "--limit", limit)
    assert outcome.out == "demo: limit none, read-ahead up to 64 pages, demotion never\n" + TIERS
    assert fake.vms["demo"].limit_bytes == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["set-policy", "demo"],
        ["set-policy", "demo", "--limit", "5MB"],
        ["set-policy", "demo", "--limit", "lots"],
        ["set-policy", "demo", "--limit", "120%"],
        ["set-policy", "demo", "--limit", "0%"],
        ["set-policy", "demo", "--limit", "4095"],
        ["set-policy", "demo", "--readahead", "0"],
        ["set-policy", "demo", "--readahead", "x"],
        ["set-policy", "demo", "--demote-after", "5"],
        ["set-policy", "demo", "--demote-after", "10us"],
        ["set-policy", "demo", "--tier", "ssd"],
        ["set-policy", "demo", "--tier", "=1G"],
        ["set-policy", "demo", "--tier", "ssd=lots"],
        ["set-policy", "demo", "--tier", "ssd=0"],
        ["set-policy", "demo", "--tier", "ssd=1G", "--tier", "ssd=2G"],
        ["set-policy", "demo", "--min", "lots"],
        ["set-policy", "demo", "--max", "12"],
        ["set-policy", "demo", "--shares", "0"],
        ["set-policy", "demo", "--priority", "101"],
        ["set-policy", "demo", "--track-permille", "1001"],
        ["evict", "demo"],
        ["evict", "demo", "lots"],
        ["evict", "demo", "0"],
        ["prefetch", "demo", "1KB"],
        ["set-policy", "--limit", "5M"],
        ["status"],
        ["no-such-command"],
        ["list", "--no-such-option"],
        ["check-host", "--self-test", "--seconds", "0"],
    ],
)
def test_wrong_usage(run: Run, fake: FakeManager, arguments: list[str]) -> None:
    outcome = run(*arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err
    assert "Traceback" not in outcome.err
    assert lib.UFFDMM_MSG_SET_POLICY not in [kind for kind, _ in fake.requests]


def test_a_wrong_size_is_found_without_a_manager(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    socket = str(tmp_path / "absent")
    assert main(["--socket", socket, "set-policy", "x", "--limit", "5MB"]) == 2
    assert capfd.readouterr().err == (
        "uffdmm: size '5MB': the unit is ambiguous (1000 or 1024)\n  remedy: write 5M or 5MiB\n"
    )


def test_refused_policy(run: Run, fake: FakeManager) -> None:
    fake.refuse_policy = (22, "limit 4096 is below the least of 8 MiB: choose a larger one")
    outcome = run("set-policy", "demo", "--limit", "4K")
    assert outcome.code == 5
    assert outcome.err == ("uffdmm: limit 4096 is below the least of 8 MiB: choose a larger one\n")


@pytest.mark.parametrize(
    "command", [["list"], ["status", "x"], ["set-policy", "x", "--limit", "1G"]]
)
def test_no_manager(tmp_path: Path, capfd: pytest.CaptureFixture[str], command: list[str]) -> None:
    assert main(["--socket", str(tmp_path / "absent"), *command]) == 3
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("uffdmm: no manager socket at '")
    assert "  remedy: start uffdmm-manager" in captured.err


def test_manager_that_hangs(run: Run, fake: FakeManager) -> None:
    fake.tamper = lambda reply: dataclasses.replace(reply, raw=b"U")
    outcome = run("list", timeout="0.2")
    assert outcome.code == 3
    assert "did not answer within 0.2 s" in outcome.err


def test_manager_of_another_version(run: Run, fake: FakeManager) -> None:
    def newer(reply: Outgoing) -> Outgoing:
        reply.header |= {"version": 5, "min_version": 4}
        return reply

    fake.tamper = newer
    outcome = run("list")
    assert outcome.code == 6
    assert "speaks protocol versions 4 to 5, this program 3 to 3" in outcome.err
    assert "remedy: install the manager and the Python package from the same release" in outcome.err


def test_not_a_manager(run: Run, fake: FakeManager) -> None:
    fake.tamper = lambda reply: dataclasses.replace(reply, raw=b"HTTP/1.1 400 Bad Request" * 10)
    outcome = run("list")
    assert outcome.code == 6
    assert "does not speak the uffdmm protocol (magic 0x50545448" in outcome.err


def test_version(run: Run) -> None:
    outcome = run("--version")
    assert (outcome.code, outcome.out) == (0, "uffdmm 0.1.0\n")


def test_socket_from_the_environment(
    fake: FakeManager, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UFFDMM_SOCKET", str(fake.path))
    assert main(["list"]) == 0
    assert "demo" in capfd.readouterr().out


def test_as_a_process(fake: FakeManager) -> None:
    """The module form."""
    command = [sys.executable, "-m", "uffdmm", "--socket", str(fake.path), "list", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["vms"][0]["vm_name"] == "demo"


def test_output_that_cannot_be_written(fake: FakeManager) -> None:
    command = [sys.executable, "-m", "uffdmm", "--socket", str(fake.path), "list"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "uffdmm: cannot write the result: no space left on device\n"


# check-host


@pytest.fixture
def good_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostfacts, "probe_host", lambda: GOOD)


@pytest.fixture
def good_race(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """A race without the kernel; records how it was called."""
    calls: list[tuple[int, bool]] = []

    def race(seconds: int, *, protect: bool) -> tuple[int, int]:
        calls.append((seconds, protect))
        return (1000, 0) if protect else (900, 17)

    monkeypatch.setattr(selftest, "run_race", race)
    return calls


def test_good_host(run: Run, good_host: None) -> None:
    outcome = run("check-host")
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert len(lines) == 17
    assert all(" PASS  " in line for line in lines)


def test_good_host_as_json(run: Run, good_host: None) -> None:
    outcome = run("check-host", "--json")
    document = outcome.json
    assert outcome.code == 0
    assert set(document) == {"status", "user", "kernel", "checks"}
    assert document["status"] == "PASS"
    assert {key for check in document["checks"] for key in check} == {
        "id",
        "title",
        "status",
        "detail",
        "remedy",
    }


def test_bad_host(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = dataclasses.replace(GOOD, uffd_device_error=13)
    monkeypatch.setattr(hostfacts, "probe_host", lambda: bad)
    outcome = run("check-host")
    assert outcome.code == 1
    failed = [line for line in outcome.out.splitlines() if " FAIL  " in line]
    assert len(failed) == 1
    assert "->  give the user that runs QEMU access to /dev/userfaultfd" in outcome.out
    outcome = run("check-host", "--json")
    assert outcome.code == 1
    assert outcome.json["status"] == "FAIL"


def test_warnings_do_not_fail(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    poor = dataclasses.replace(GOOD, kvm_error=2)
    monkeypatch.setattr(hostfacts, "probe_host", lambda: poor)
    outcome = run("check-host", "--json")
    assert outcome.code == 0
    assert outcome.json["status"] == "WARN"


def test_store_directories(run: Run, good_host: None, tmp_path: Path) -> None:
    outcome = run("check-host", "--json", "--store", str(tmp_path / "absent"))
    assert outcome.code == 1
    last = outcome.json["checks"][-1]
    assert last["id"] == "store"
    assert "no such file" in last["detail"]
    assert "create the directory" in last["remedy"]


def test_self_test(run: Run, good_host: None, good_race: list[tuple[int, bool]]) -> None:
    outcome = run("check-host", "--self-test", "--seconds", "7")
    assert outcome.code == 0
    assert good_race == [(7, True), (7, False)]
    assert outcome.out.splitlines()[-4:] == [
        "evictions          1000",
        "lost               0",
        "control_evictions  900",
        "control_lost       17",
    ]
    assert "eviction race, with write protection: 7 s" in outcome.err


def test_self_test_as_json(run: Run, good_host: None, good_race: list[tuple[int, bool]]) -> None:
    document = run("check-host", "--self-test", "--json").json
    assert set(document) == set(TestedHostReport.model_fields)
    assert document["evictions"] == 1000
    assert document["lost"] == 0
    assert document["control_evictions"] == 900
    assert document["control_lost"] == 17


@pytest.mark.parametrize(
    ("protected", "control", "code", "status"),
    [((10, 3), (10, 5), 1, "FAIL"), ((10, 0), (10, 0), 0, "WARN")],
)
def test_self_test_with_another_outcome(
    run: Run,
    good_host: None,
    monkeypatch: pytest.MonkeyPatch,
    protected: tuple[int, int],
    control: tuple[int, int],
    code: int,
    status: str,
) -> None:
    monkeypatch.setattr(
        selftest, "run_race", lambda _, *, protect: protected if protect else control
    )
    outcome = run("check-host", "--self-test", "--json")
    assert outcome.code == code
    assert outcome.json["status"] == status


def test_self_test_that_cannot_run(
    run: Run, good_host: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(seconds: int, *, protect: bool) -> tuple[int, int]:
        raise SelfTestError("the self-test could not run: no userfaultfd")

    monkeypatch.setattr(selftest, "run_race", fail)
    outcome = run("check-host", "--self-test", "--json")
    assert outcome.code == 1
    assert "evictions" not in outcome.json
    assert outcome.json["checks"][-1]["detail"] == "the self-test could not run: no userfaultfd"


def test_self_test_on_this_kernel(run: Run) -> None:
    """The whole way through cffi and fork, two seconds a half."""
    if hostfacts.probe_host().uffd_api_error or os.cpu_count() == 1:
        pytest.skip("needs userfaultfd and two CPUs")
    outcome = run("check-host", "--self-test", "--seconds", "2", "--json")
    document = outcome.json
    assert document["evictions"] > 0
    assert document["control_evictions"] > 0
    assert document["lost"] == 0
    assert document["control_lost"] > 0


def test_interrupt_ends_the_self_test_soon() -> None:
    if hostfacts.probe_host().uffd_api_error:
        pytest.skip("needs userfaultfd")
    command = [
        # whoever started the tests in the background had SIGINT ignored
        *("env", "--default-signal=INT", sys.executable, "-m", "uffdmm"),
        *("check-host", "--self-test", "--seconds", "60"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "eviction race" in process.stderr.readline()
    time.sleep(0.5)
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert time.monotonic() - begin < 10
