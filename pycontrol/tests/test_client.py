# SPDX-License-Identifier: GPL-2.0-or-later
"""The client's requests and what it makes of good replies."""

import dataclasses
from typing import Any

import pytest

from fake_manager import FakeManager, FakeVm, Outgoing, stats_bytes, struct_bytes
from uffdmm import (
    Manager,
    NoSuchTierError,
    NoSuchVmError,
    ProtocolError,
    TierState,
    VersionError,
    WorkerState,
)
from uffdmm._native import ffi, lib


def test_list_is_sorted_and_complete_over_several_replies(
    fake: FakeManager, manager: Manager
) -> None:
    page = fake.vms["demo"].page
    for number in range(10):
        fake.vms[f"vm{9 - number}"] = FakeVm(page, worker_pid=100 + number)
    fake.page_entries = 3
    names = [entry.vm_name for entry in manager.list_vms()]
    assert names == ["demo", *(f"vm{number}" for number in range(10))]
    starts = [
        ffi.from_buffer("struct uffdmm_list *", payload).start
        for kind, payload in fake.requests
        if kind == lib.UFFDMM_MSG_LIST
    ]
    assert starts == [0, 3, 6, 9, 11]


def test_list_of_nothing(fake: FakeManager, manager: Manager) -> None:
    fake.vms.clear()
    assert manager.list_vms() == []


def test_list_that_never_ends(fake: FakeManager, manager: Manager) -> None:
    def endless(reply: Outgoing) -> Outgoing:
        if reply.request_type == lib.UFFDMM_MSG_LIST:
            reply.payload = struct_bytes("struct uffdmm_list_entry", {"vm_name": b"x"}) * 200
        return reply

    fake.tamper = endless
    assert len(manager.list_vms()) == 1
    assert len(fake.requests) < 400


def test_list_with_a_nameless_vm(fake: FakeManager, manager: Manager) -> None:
    def blank(reply: Outgoing) -> Outgoing:
        if reply.request_type == lib.UFFDMM_MSG_LIST:
            reply.payload = bytes(ffi.sizeof("struct uffdmm_list_entry"))
        return reply

    fake.tamper = blank
    with pytest.raises(ProtocolError, match="a VM without a name"):
        manager.list_vms()


def test_list_with_half_an_entry(fake: FakeManager, manager: Manager) -> None:
    def cut(reply: Outgoing) -> Outgoing:
        if reply.request_type == lib.UFFDMM_MSG_LIST:
            reply.payload = reply.payload[:-1]
        return reply

    fake.tamper = cut
    with pytest.raises(ProtocolError, match="71 bytes of list, an entry has 72"):
        manager.list_vms()


def test_statistics(manager: Manager) -> None:
    with manager.open_vm("demo") as vm:
        stats = vm.statistics()
    assert stats.vm_name == "demo"
    assert (stats.worker_pid, stats.qemu_pid) == (11, 22)
    assert stats.state is WorkerState.RUNNING
    assert stats.limit_bytes == 512 << 20
    assert stats.fault_hist.total == 100


def test_second_snapshot_asks_nobody(fake: FakeManager, manager: Manager) -> None:
    with manager.open_vm("demo") as vm:
        vm.statistics()
        asked = len(fake.requests)
        vm.statistics()
        assert len(fake.requests) == asked


def test_unknown_vm(manager: Manager) -> None:
    with pytest.raises(NoSuchVmError, match="serves no VM named 'other'") as caught:
        manager.open_vm("other")
    assert caught.value.code == 2
    assert caught.value.remedy is not None
    assert "uffdmm list" in caught.value.remedy


@pytest.mark.parametrize(
    ("change", "limit", "readahead"),
    [
        ({"limit_bytes": 256 << 20}, 256 << 20, 64),
        ({"readahead_pages": 8}, 1 << 30, 8),
        ({"limit_bytes": 128 << 20, "readahead_pages": 1}, 128 << 20, 1),
        ({"limit_bytes": 0}, 0, 64),
    ],
)
def test_policy_changes_only_what_is_named(
    manager: Manager, change: dict[str, Any], limit: int, readahead: int
) -> None:
    with manager.open_vm("demo") as vm:
        policy = vm.set_policy(**change)
    assert (policy.limit_bytes, policy.readahead_pages) == (limit, readahead)


def test_tiers(manager: Manager) -> None:
    with manager.open_vm("demo") as vm:
        tiers = vm.tiers()
    assert [tier.name for tier in tiers] == ["zero", "ram", "ssd"]
    assert tiers[1].state is TierState.FULL


def test_policy_of_tiers_goes_by_name(fake: FakeManager, manager: Manager) -> None:
    with manager.open_vm("demo") as vm:
        policy = vm.set_policy(tier_bytes={"ssd": 1 << 30}, demote_after_ms=1500)
    assert fake.vms["demo"].tier_bytes[2] == 1 << 30
    assert fake.vms["demo"].demote_after_ms == 1500
    assert policy.tier_bytes == {"ram": 0, "ssd": 1 << 30}
    assert policy.demote_after_ms == 1500
    assert policy.limit_bytes == 1 << 30


@pytest.mark.parametrize("name", ["hdd", "zero"])
def test_policy_of_an_unknown_tier_changes_nothing(
    fake: FakeManager, manager: Manager, name: str
) -> None:
    with (
        manager.open_vm("demo") as vm,
        pytest.raises(NoSuchTierError, match=f"no tier '{name}'") as caught,
    ):
        vm.set_policy(limit_bytes=1 << 20, tier_bytes={name: 1})
    assert caught.value.remedy == "it has ram, ssd"
    assert lib.UFFDMM_MSG_SET_POLICY not in [kind for kind, _ in fake.requests]


def test_policy_without_a_change(fake: FakeManager, manager: Manager) -> None:
    with manager.open_vm("demo") as vm, pytest.raises(ValueError, match="nothing to set"):
        vm.set_policy()
    assert lib.UFFDMM_MSG_SET_POLICY not in [kind for kind, _ in fake.requests]


@pytest.mark.parametrize(
    ("page", "error", "words"),
    [
        (stats_bytes(magic=1), ProtocolError, "begin with 0x00000001"),
        (stats_bytes(version=7), VersionError, "version 7, this program reads 2"),
        (stats_bytes()[:-1], ProtocolError, "needs"),
        (b"", ProtocolError, "the statistics have 0 bytes"),
        (stats_bytes(state=99), ProtocolError, "unknown state 99"),
    ],
)
def test_bad_statistics_page(
    fake: FakeManager, manager: Manager, page: bytes, error: type[Exception], words: str
) -> None:
    fake.vms["demo"].page = page
    with manager.open_vm("demo") as vm, pytest.raises(error, match=words):
        vm.statistics()


def test_statistics_larger_than_their_memfd(fake: FakeManager, manager: Manager) -> None:
    """Mapping what was announced would end in SIGBUS at the first look."""

    def boast(reply: Outgoing) -> Outgoing:
        if reply.request_type == lib.UFFDMM_MSG_QUERY:
            size = ffi.new("struct uffdmm_query_reply *", {"stats_size": 1 << 20})
            reply = dataclasses.replace(reply, payload=bytes(ffi.buffer(size)))
        return reply

    fake.tamper = boast
    with manager.open_vm("demo") as vm, pytest.raises(ProtocolError, match="announced 1048576"):
        vm.statistics()


def test_statistics_outlive_the_manager(fake: FakeManager, manager: Manager) -> None:
    with manager.open_vm("demo") as vm:
        vm.statistics()
        fake.tamper = lambda _: None
        assert vm.statistics().worker_pid == 11


def test_closing_twice(manager: Manager) -> None:
    vm = manager.open_vm("demo")
    vm.statistics()
    vm.close()
    vm.close()
