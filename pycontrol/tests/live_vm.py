# SPDX-License-Identifier: GPL-2.0-or-later
"""A VM of the made-up manager whose statistics change while somebody has them mapped."""

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any

from fake_manager import FakeManager, FakeVm, memfd_of, pages_of, stats_bytes, tier_bytes
from uffdmm._native import lib

MIB = 1 << 20


class LiveVm:
    """Values are set one by one; all others stay."""

    def __init__(self, fake: FakeManager, name: str) -> None:
        self._fake = fake
        self.name = name
        self.values: dict[str, Any] = {
            "vm_name": name.encode(),
            "worker_pid": 11,
            "qemu_pid": 22,
            "ram_bytes": 1024 * MIB,
            "limit_bytes": 512 * MIB,
            "resident_bytes": 500 * MIB,
            "stored_bytes": 300 * MIB,
            "nr_tiers": 2,
        }
        self.tier: dict[str, Any] = {"name": b"ssd", "type": lib.UFFDMM_TIER_FILE}
        self.vm = FakeVm(self._page())
        self.vm.live = memfd_of(self.vm.page)
        fake.vms[name] = self.vm

    def _page(self) -> bytes:
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        stats = stats_bytes(**({"heartbeat_ns": now} | self.values))
        zero = tier_bytes(name=b"zero", type=lib.UFFDMM_TIER_ZERO)
        return pages_of(stats, zero, tier_bytes(**self.tier))

    def set(self, **values: Any) -> None:
        """Change fields of the VM; the worker gives a sign of life."""
        self.values |= values
        self._write()

    def set_tier(self, **values: Any) -> None:
        """Change fields of its tier."""
        self.tier |= values
        self._write()

    def _write(self) -> None:
        assert self.vm.live is not None
        os.pwrite(self.vm.live, self._page(), 0)

    def worker(self, pid: int, *, anew: bool = True) -> None:
        """Another worker, with statistics of its own; 0: it has died."""
        self.vm.worker_pid = pid
        if pid and anew:
            assert self.vm.live is not None
            os.close(self.vm.live)
            self.values["worker_pid"] = pid
            self.vm.live = memfd_of(self._page())

    def close(self) -> None:
        self._fake.vms.pop(self.name, None)
        if self.vm.live is not None:
            os.close(self.vm.live)
            self.vm.live = None


@contextlib.contextmanager
def live_vm(fake: FakeManager, name: str) -> Iterator[LiveVm]:
    vm = LiveVm(fake, name)
    try:
        yield vm
    finally:
        vm.close()
