# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures of all tests."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from fake_manager import FakeManager, FakeVm, pages_of, stats_bytes, tier_bytes
from uffdmm import Manager
from uffdmm._native import lib

# A busy machine is no failure of a property.
settings.register_profile("uffdmm", deadline=None)
settings.load_profile("uffdmm")

MIB = 1 << 20


def open_fds() -> set[str]:
    """The descriptors of this process, and what each is."""
    found = set()
    for name in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that reads the list
            found.add(f"{name.name} {name.readlink()}")
    return found


@pytest.fixture
def no_fd_leak() -> Iterator[None]:
    """The test closes every descriptor that it or its peer made."""
    before = open_fds()
    yield
    assert open_fds() <= before


@pytest.fixture
def fake(tmp_path: Path, no_fd_leak: None) -> Iterator[FakeManager]:
    """A manager with one VM named demo, which has the tiers zero, ram and ssd."""
    with FakeManager(tmp_path / "manager.sock") as peer:
        hist = [0] * 208
        hist[20], hist[60] = 98, 2
        read_hist, write_hist = [0] * 208, [0] * 208
        read_hist[80], write_hist[100] = 10, 5
        vm_page = stats_bytes(
            worker_pid=11,
            qemu_pid=22,
            vm_name=b"demo",
            nr_regions=1,
            ram_bytes=1024 * MIB,
            limit_bytes=512 * MIB,
            resident_bytes=500 * MIB,
            resident_max_bytes=510 * MIB,
            stored_bytes=300 * MIB,
            faults=100,
            fault_ns=1_000_000,
            fault_hist=hist,
            nr_tiers=3,
        )
        zero = tier_bytes(name=b"zero", type=lib.UFFDMM_TIER_ZERO, shared=1, stored_pages=7)
        ram = tier_bytes(
            name=b"ram",
            type=lib.UFFDMM_TIER_POOL,
            state=lib.UFFDMM_TIER_FULL,
            capacity_bytes=128 * MIB,
            used_bytes=100 * MIB,
            stored_pages=50000,
            stored_bytes=250 * MIB,
            reads=10,
            writes=5,
            read_hist=read_hist,
            write_hist=write_hist,
        )
        ssd = tier_bytes(
            name=b"ssd",
            type=lib.UFFDMM_TIER_FILE,
            used_bytes=50 * MIB,
            stored_pages=12800,
            stored_bytes=50 * MIB,
            errors=2,
            checksum_errors=1,
            last_error_ns=1_700_000_000_000_000_000,
            last_error=b"cannot read 4096 bytes at 8192: input/output error",
        )
        peer.vms["demo"] = FakeVm(pages_of(vm_page, zero, ram, ssd))
        yield peer


@pytest.fixture
def manager(fake: FakeManager) -> Manager:
    """A client of the fake, which need not be waited for long."""
    return Manager(fake.path, timeout=1.0)
