# SPDX-License-Identifier: GPL-2.0-or-later
"""Evict, prefetch, bounds for the control plane, working set: what the commands ask the client."""

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fake_manager import FakeManager, stats_bytes
from live_vm import live_vm
from uffdmm import ManagerError, VirtualMachine
from uffdmm.ages import Ages, ages_of
from uffdmm.cli.app import main
from uffdmm.cli.move import MoveReport
from uffdmm.pagetable import AGE_MAX

MIB = 1 << 20
PAGE = 4096


@pytest.fixture
def vm(fake: FakeManager) -> Iterator[None]:
    fake.vms.clear()
    with live_vm(fake, "web"):
        yield


Asked = list[tuple[str, int]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What the client was asked for."""
    calls: Asked = []
    monkeypatch.setattr(VirtualMachine, "evict", lambda _, size: calls.append(("evict", size)))
    monkeypatch.setattr(
        VirtualMachine, "prefetch", lambda _, size: calls.append(("prefetch", size))
    )
    return calls


@pytest.mark.parametrize(
    ("arguments", "call"),
    [
        (["evict", "web", "64M"], ("evict", 64 * MIB)),
        (["evict", "web", "25%"], ("evict", 256 * MIB)),
        (["evict", "web", "4097"], ("evict", PAGE)),
        (["prefetch", "web", "1M"], ("prefetch", MIB)),
        (["prefetch", "web"], ("prefetch", 1024 * MIB)),
    ],
)
def test_sizes(
    vm: None,
    fake: FakeManager,
    asked: Asked,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    call: tuple[str, int],
) -> None:
    assert main(["--socket", str(fake.path), *arguments, "--json"]) == 0
    assert asked == [call]
    document = json.loads(capfd.readouterr().out)
    assert set(document) == set(MoveReport.model_fields)
    assert document == {
        "vm_name": "web",
        "bytes": call[1],
        "resident_bytes": 500 * MIB,
        "stored_bytes": 300 * MIB,
    }
    assert main(["--socket", str(fake.path), *arguments]) == 0
    assert "500 MiB is resident, 300 MiB stored" in capfd.readouterr().out


def test_what_the_worker_refuses(
    vm: None, fake: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: VirtualMachine, size: int) -> None:
        raise ManagerError(22, f"cannot put out {size} bytes")

    monkeypatch.setattr(VirtualMachine, "evict", refuse)
    assert main(["--socket", str(fake.path), "evict", "web", "1M"]) == 5
    assert main(["--socket", str(fake.path), "evict", "none", "1M"]) == 4


def test_bounds_for_the_control_plane(
    vm: None, fake: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    def set_policy(_: VirtualMachine, **values: Any) -> None:
        seen.append(values)
        raise ManagerError(22, "seen")

    monkeypatch.setattr(VirtualMachine, "set_policy", set_policy)
    command = ["--socket", str(fake.path), "set-policy", "web"]
    options = ["--min", "25%", "--max", "1G", "--shares", "200", "--priority", "0", "--no-opt-out"]
    assert main([*command, *options]) == 5
    assert seen[0]["min_bytes"] == 256 * MIB
    assert seen[0]["max_bytes"] == 1024 * MIB
    assert (seen[0]["shares"], seen[0]["priority"], seen[0]["opt_out"]) == (200, 0, False)
    assert seen[0]["limit_bytes"] is None
    assert main([*command, "--max", "none", "--opt-out"]) == 5
    assert (seen[1]["max_bytes"], seen[1]["opt_out"], seen[1]["min_bytes"]) == (0, True, None)


def region(pages_by_age: dict[int, int], page_size: int = PAGE) -> Any:
    histogram = np.zeros(256)
    for age, pages in pages_by_age.items():
        histogram[age] = pages
    table = SimpleNamespace(age_histogram=lambda: histogram)
    return SimpleNamespace(page_size=page_size, table=table, close=lambda: None)


def test_the_working_set() -> None:
    ages = ages_of([region({0: 1, 3: 2, 4: 8, AGE_MAX: 16, 252: 32, 255: 64})])
    assert ages.new == 96 * PAGE
    assert ages.working_set == (1 + 2 + 96) * PAGE
    assert ages.octaves() == [
        (0, 0, PAGE),
        (2, 3, 2 * PAGE),
        (4, 7, 8 * PAGE),
        (128, AGE_MAX, 16 * PAGE),
    ]


def test_regions_of_other_page_sizes() -> None:
    ages = ages_of([region({0: 1}), region({0: 1}, 2 * MIB)])
    assert ages.by_age[0] == PAGE + 2 * MIB


def test_octaves_have_all_ages_once() -> None:
    octaves = Ages((1,) * (AGE_MAX + 1), 0).octaves()
    assert sum(size for _, _, size in octaves) == AGE_MAX + 1
    assert [age for first, last, _ in octaves for age in range(first, last + 1)] == list(
        range(AGE_MAX + 1)
    )


def test_status(
    fake: FakeManager, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(VirtualMachine, "regions", lambda _: [region({0: 512, 9: 256, 255: 256})])
    command = ["--socket", str(fake.path), "status", "demo"]
    # Without tracking ages mean nothing.
    assert main([*command, "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert (document["working_set_bytes"], document["ages"]) == (None, [])
    fake.vms["demo"].page = stats_bytes(vm_name=b"demo", age_tracking=1)
    assert main([*command, "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["working_set_bytes"] == 3 * MIB
    assert document["ages"] == [[0, 0, 2 * MIB], [8, 15, MIB]]
    assert main(command) == 0
    lines = capfd.readouterr().out.splitlines()
    assert "working set   3.00 MiB" in lines
    assert "ages          0: 2.00 MiB, 8-15: 1.00 MiB; since the last look 1.00 MiB" in lines
