# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``scripts/bench stores`` concludes from what it measures, and what it leaves behind."""

import json
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from uffdmm_harness import (
    HarnessError,
    memoryprocess,
    patterns,
    places,
    stores,
    stores_faults,
    stores_guest,
    stores_tiers,
    zram,
)
from uffdmm_harness.manager import Manager
from uffdmm_harness.progress import Progress
from uffdmm_harness.spread import ratios, spread


def test_spread_is_median_and_range() -> None:
    found = spread([3, 1, 20])
    assert found is not None
    assert (found.median, found.least, found.most, found.count) == (3, 1, 20, 3)
    assert found.as_json() == {"median": 3, "min": 1, "max": 20, "count": 3}
    assert found.text() == "3.0 (1.0-20.0)"
    one = spread([1234.56])
    assert one is not None
    assert one.text(0.001, 2) == "1.23"
    assert one.as_json()["median"] == 1235
    assert spread([]) is None


def test_ratio_is_of_neighbours_in_time() -> None:
    # Of the medians it would be 1: the machine was three times as fast in the second round.
    found = ratios([20, 30], [10, 30])
    assert found is not None
    assert (found.median, found.least, found.most) == (1.5, 1, 2)
    assert ratios([1], [0]) is None
    assert ratios([], [1]) is None


# -- tiers -------------------------------------------------------------------


def record(subject: str, number: int, p50: int) -> dict[str, Any]:
    return {
        "subject": subject,
        "operation": "read",
        "pages": 8,
        "round": number,
        "samples": 5,
        "p50_ns": p50,
        "p99_ns": 2 * p50,
        "mean_ns": 2_000_000,
    }


def test_tier_is_put_beside_what_it_is_made_of() -> None:
    bench = stores_tiers.TierBench(Path("/"), 3, 1, [])
    for number, (device, file) in enumerate([(10, 40), (30, 20), (20, 33)]):
        bench.records += [record("device", number, device), record("file", number, file)]
    bench.skipped["nbd"] = "nbdkit is not installed"
    outcome = stores_tiers.summary(bench)
    device_row, file_row = outcome["rows"]
    assert "beside" not in device_row
    assert file_row["p50_ns"] == {"median": 33, "min": 20, "max": 40, "count": 3}
    assert file_row["p99_ns"]["median"] == 66
    assert (file_row["beside"], file_row["p50_over_ns"]) == ("device", 13)
    assert file_row["mib_per_s"] == pytest.approx(8 * 4096 / (1 << 20) / 2e-3, rel=0.01)
    console = Console(record=True, width=140)
    stores_tiers.show(console, outcome)
    assert "nbdkit is not installed" in console.export_text()


def test_without_nbdkit_the_nbd_tier_is_skipped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[list[str]] = []

    def execute(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, json.dumps(record("file", 1, 9)) + "\n", "")

    monkeypatch.setattr("uffdmm_harness.nbdserver.shutil.which", lambda _: None)
    monkeypatch.setattr(places, "bench_program", Path)
    monkeypatch.setattr("uffdmm_harness.stores_tiers.subprocess.run", execute)
    bench = stores_tiers.TierBench(tmp_path, 1, 1, ["taskset"])
    bench.run()
    assert bench.skipped == {"nbd": "nbdkit is not installed"}
    assert asked[0][0] == "taskset"
    assert not any(word.startswith("nbd=") for word in asked[0])
    assert not list(tmp_path.iterdir())


# -- faults ------------------------------------------------------------------


def fault_bench() -> stores_faults.FaultBench:
    return stores_faults.FaultBench(Path("/"), 1, 100, 0, Progress("bench", 1))


def test_figures_of_faults() -> None:
    bench = fault_bench()
    bench.values.update(
        {
            "pool": defaultdict(
                list,
                fault_p50_ns=[11_000, 10_000, 90_000],
                evict_pages_per_s=[300, 100],
                again_writes=[0, 0],
            ),
            "file": defaultdict(list, fault_p50_ns=[70_000], sweep_ns_per_page=[6500]),
            "zram": defaultdict(list, evict_pages_per_s=[100, 100], pageout_pages_per_s=[200, 200]),
            "device": defaultdict(list, read_p50_ns=[55_000]),
        }
    )
    outcome = stores_faults.summary(bench)
    assert outcome["figures"] == {
        "pool_fault_p50_us": 11,
        "file_fault_over_device_p50_us": 15,
        "file_cluster_us_per_page": 6.5,
        "pool_eviction_to_zram_reclaim": 2,
        "pool_eviction_to_zram_pageout": 1,
        "pool_unchanged_writes": 0,
        "file_unchanged_writes": None,
    }
    json.dumps(outcome)


def test_host_without_zram_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(zram, "_CONTROL", tmp_path / "zram-control")
    monkeypatch.setattr(
        zram, "_run", lambda command: subprocess.CompletedProcess(command, 1, "", "no zram here")
    )
    with pytest.raises(zram.ZramMissingError, match="no zram here"), zram.ZramSwap(1 << 20):
        pass
    bench = fault_bench()
    bench._zram()
    assert "no zram here" in bench.skipped["zram"]
    assert stores_faults.summary(bench)["figures"]["pool_eviction_to_zram_reclaim"] is None


class FakeZram:
    """Files where the kernel has its own, and a record of the commands."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, fail: str = "") -> None:
        self.commands: list[list[str]] = []
        self.root = root
        self.control = root / "zram-control"
        self.control.mkdir()
        (self.control / "hot_add").write_text("5\n")
        (self.control / "hot_remove").write_text("")
        (root / "comp_algorithm").write_text("lzo [lz4] zstd\n")
        (root / "device").touch()
        self._fail = fail
        monkeypatch.setattr(zram, "_CONTROL", self.control)
        monkeypatch.setattr(zram.ZramSwap, "_sys", property(lambda _: root))
        monkeypatch.setattr(zram.ZramSwap, "_device", property(lambda _: root / "device"))
        monkeypatch.setattr(zram, "_run", self.run)

    def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        failed = bool(self._fail) and command[0] == self._fail
        return subprocess.CompletedProcess(command, int(failed), "", "it fails")

    def removed(self) -> bool:
        return (self.control / "hot_remove").read_text() == "5"


def test_zram_is_removed_at_the_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = FakeZram(tmp_path, monkeypatch)
    with zram.ZramSwap(1 << 20) as swap:
        (tmp_path / "mm_stat").write_text("4096000 2000000 2100000 0 2100000 3 0 17 0\n")
        assert swap.memory() == zram.ZramMemory(4096000, 2000000, 2100000, 17)
        assert not fake.removed()
    assert fake.removed()
    assert [command[0] for command in fake.commands] == ["mkswap", "swapon", "swapoff"]
    assert (tmp_path / "disksize").read_text() == str(1 << 20)


def test_zram_is_removed_when_it_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = FakeZram(tmp_path, monkeypatch, fail="mkswap")
    with pytest.raises(HarnessError, match="it fails"), zram.ZramSwap(1 << 20):
        pass
    assert fake.removed()
    (tmp_path / "zram-control/hot_remove").write_text("")
    with pytest.raises(zram.ZramMissingError, match="842"), zram.ZramSwap(1 << 20, codec="842"):
        pass
    assert fake.removed()


def test_memory_process_reports_lost_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = tmp_path / "bench-memory"
    fake.write_text(
        "#!/bin/sh\n"
        "echo '{\"ready\":true}'\n"
        "while read -r verb rest; do\n"
        "  case $verb in\n"
        '    resident) echo "{\\"resident_bytes\\":4096}" ;;\n'
        '    sweep) echo "{\\"wrong\\":2}" ;;\n'
        '    pageout) echo "{\\"error\\":\\"no such thing\\"}" ;;\n'
        "    *) echo 'gone wrong' >&2; exit 1 ;;\n"
        "  esac\n"
        "done\n"
    )
    fake.chmod(0o755)
    monkeypatch.setattr(places, "bench_program", lambda _: fake)
    with memoryprocess.MemoryProcess(1 << 20) as memory:
        assert memory.resident() == 4096
        with pytest.raises(HarnessError, match="2 words were wrong"):
            memory.sweep()
        with pytest.raises(HarnessError, match="no such thing"):
            memory.page_out()
        with pytest.raises(HarnessError, match="gone wrong"):
            memory.fill()


# -- guest -------------------------------------------------------------------


def guest_bench(monkeypatch: pytest.MonkeyPatch) -> stores_guest.GuestBench:
    monkeypatch.setenv("UFFDMM_ACCEL", "tcg")
    return stores_guest.GuestBench(
        folder=Path("/"), repeat=2, seconds=1, patterns=("random",), pin=None
    )


def run(memory: str, repeat: int, rate: float, verified: bool = True) -> patterns.Run:
    return patterns.Run(
        memory=memory,
        repeat=repeat,
        pattern="random",
        steps_per_s=rate,
        gap_max_ms=1,
        limit_bytes=None,
        guest_resident_bytes=1 << 20,
        guest_resident_max_bytes=1 << 20,
        verified=verified,
        gauges={"store_memory_bytes": 5 << 20},
    )


def test_ratios_of_guests(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = guest_bench(monkeypatch)
    for repeat, rates in enumerate([(10, 20, 5, 5), (20, 20, 5, 15)], 1):
        bench.runs += [
            run(way, repeat, rate) for way, rate in zip(stores_guest.WAYS, rates, strict=True)
        ]
    outcome = stores_guest.summary(bench, ("random", "hot"))
    assert outcome["ratios"]["pool_to_zram"]["random"]["median"] == 1.5
    assert outcome["ratios"]["pool_and_file_to_file"]["random"]["max"] == 3
    assert "hot" not in outcome["ratios"]["pool_to_zram"]
    assert outcome["verified"] is True
    json.dumps(outcome)
    console = Console(record=True, width=140)
    stores_guest.show(console, bench, outcome)
    assert "1.50 (1.00-2.00)" in console.export_text()
    bench.runs[0].verified = False
    assert stores_guest.summary(bench, ("random",))["verified"] is False


@pytest.mark.parametrize(
    ("full", "gap", "stalled"), [(0, 100, False), (1, 100, True), (0, 5000, True)]
)
def test_stall_for_want_of_room(full: int, gap: float, stalled: bool) -> None:
    setting = stores_guest.Setting(1 << 20, 9, gap, full, 3, 1 << 20)
    assert setting.stalled is stalled


def test_tiers_of_a_manager_replace_its_store(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("UFFDMM_MANAGER", "/bin/true")
    manager = Manager(tiers=["pool=pool", "far=nbd,uri=nbd://h/{vm}", "disk=file,path={store}"])
    try:
        command = manager._command
        assert "--store" not in command
        at = command.index("--tier")
        assert command[at : at + 6] == [
            *("--tier", "pool=pool"),
            *("--tier", "far=nbd,uri=nbd://h/{vm}"),
            *("--tier", f"disk=file,path={manager.store}"),
        ]
    finally:
        manager.close()


# -- command line ------------------------------------------------------------


def test_sections_keep_their_order() -> None:
    options, _ = stores._parse(["--sections", "guest", "tiers", "--pin", "1"])
    assert options.sections == ("tiers", "guest")
    assert options.pin == 1
    outcome = stores.summary(options, {"tiers": {"rows": []}}, "interrupted")
    assert outcome["error"] == "interrupted"
    assert outcome["tiers"] == {"rows": []}


@pytest.mark.parametrize(
    "words",
    [
        ["--repeat", "0"],
        ["--seconds", "0"],
        ["--faults", "1"],
        ["--slice-ms", "0"],
        ["--store", "/nowhere"],
        ["--json", "/nowhere/file"],
        ["--sections", "disks"],
    ],
)
def test_command_line_is_checked(words: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        stores._parse(words)
    assert end.value.code == 2
