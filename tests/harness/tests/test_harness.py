# SPDX-License-Identifier: GPL-2.0-or-later
"""What the harness concludes from what it measures."""

import json
import os
import time
from pathlib import Path

import pytest

from uffdmm_harness import HarnessError, accel, hostmem, overcommit, patterns, places
from uffdmm_harness.machine import MIB, MachineConfig
from uffdmm_harness.sampler import Sampler


def run(memory: str, repeat: int, pattern: str, rate: float, verified: bool) -> patterns.Run:
    return patterns.Run(
        memory=memory,
        repeat=repeat,
        pattern=pattern,
        steps_per_s=rate,
        gap_max_ms=1,
        limit_bytes=None,
        guest_resident_bytes=1,
        guest_resident_max_bytes=1,
        verified=verified,
    )


def options() -> overcommit.Options:
    return overcommit.Options(1, 3, ("random", "hot"), None, Path("/"))


def test_ratio_is_the_median_of_pairs() -> None:
    result = overcommit.Result()
    for repeat, (ours, theirs) in enumerate([(30, 10), (10, 10), (40, 20)]):
        result.runs.append(run(overcommit.NATIVE, repeat, "random", theirs, True))
        result.runs.append(run(overcommit.UFFDMM, repeat, "random", ours, True))
    outcome = overcommit.summary(options(), result, None)
    assert outcome["ratios"] == {"random": 2.0}
    assert outcome["spread"] == {"random": [1.0, 3.0]}
    assert outcome["verified"] is True
    json.dumps(outcome)


@pytest.mark.parametrize(("error", "verified"), [(None, False), ("wrong memory", True)])
def test_nothing_is_verified_after_a_failure(error: str | None, verified: bool) -> None:
    result = overcommit.Result(runs=[run(overcommit.UFFDMM, 1, "random", 1, verified)])
    assert overcommit.summary(options(), result, error)["verified"] is False


def test_sampler_keeps_pace_and_extremes() -> None:
    values = iter([3, 9, 4, *[5] * 100])
    with Sampler(lambda: next(values), interval=0.01) as sampler:
        time.sleep(0.3)
    assert sampler.maximum == 9
    assert 10 < len(sampler.values) <= 32


def test_sampler_that_fails_is_told() -> None:
    def broken() -> int:
        raise OSError("gone")

    sampler = Sampler(broken).start()
    time.sleep(0.1)
    with pytest.raises(HarnessError, match="gone"):
        sampler.stop()


def test_own_mappings_and_swap_counters() -> None:
    block = bytearray(b"x" * (8 * MIB))
    found = hostmem.mappings(os.getpid())
    assert any(item.resident >= len(block) for item in found)
    assert (hostmem.host_swap() - hostmem.host_swap()).pages_in <= 0


def test_arena_of_a_pool_is_no_guest_memory() -> None:
    size = 4 * MIB
    arena = os.memfd_create("uffdmm-pool")
    guest = os.memfd_create("uffdmm-ram")
    try:
        for descriptor in (arena, guest):
            os.ftruncate(descriptor, size)
        os.pwrite(arena, bytes(MIB), 0)
        os.pwrite(guest, b"x" * 8192, 0)
        assert hostmem.MemfdFiles(os.getpid(), size).resident() == 8192
    finally:
        os.close(guest)
        os.close(arena)


def test_accelerator_is_not_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UFFDMM_ACCEL", "tcg")
    assert accel.choose() == "tcg"
    monkeypatch.setenv("UFFDMM_ACCEL", "xen")
    with pytest.raises(HarnessError, match="xen"):
        accel.choose()


def test_measured_accelerator_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def measure() -> bool:
        asked.append(1)
        return True

    monkeypatch.delenv("UFFDMM_ACCEL", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("uffdmm_harness.accel.os.access", lambda *_: True)
    monkeypatch.setattr(accel, "kvm_boots", measure)
    monkeypatch.setattr(accel, "_key", lambda: "one")
    assert [accel.choose(), accel.choose()] == ["kvm", "kvm"]
    assert len(asked) == 1
    monkeypatch.setattr(accel, "_key", lambda: "another kernel")
    accel.choose()
    assert len(asked) == 2


def test_missing_binaries_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UFFDMM_MANAGER", str(tmp_path / "nothing"))
    places.manager.cache_clear()
    with pytest.raises(HarnessError, match="UFFDMM_MANAGER"):
        places.manager()
    places.manager.cache_clear()


def test_machine_without_external_memory_names_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("vmlinuz", "initrd"):
        (tmp_path / name).touch()
    monkeypatch.setenv("UFFDMM_GUEST", str(tmp_path))
    places.guest_image.cache_clear()
    config = MachineConfig(accel="tcg", machine="microvm")
    command = config.command(Path("qmp"), Path("port"), Path("console"))
    places.guest_image.cache_clear()
    assert not any("memory-backend" in word for word in command)
    assert "reboot=t" in command[command.index("-append") + 1]
