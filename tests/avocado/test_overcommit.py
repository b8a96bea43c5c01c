# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest whose memory is overcommitted: its content, its limit, and what an idle guest costs."""

import os
import time
from pathlib import Path

from uffdmm_test import LIMIT, MIB, RAM, SLACK, WORKING_SET, UffdmmTest

from uffdmm_harness import hostmem


class Overcommit(UffdmmTest):
    """
    :avocado: tags=machine:q35
    """

    def test_every_byte_verified_and_limit_held(self) -> None:
        swap = hostmem.host_swap()
        manager = self.manager()
        guest = self.booted(manager)
        with self.resident_sampler(guest) as resident:
            guest.port.fill(WORKING_SET, seed=11)
            for pattern in ("random", "sequential", "hot"):
                guest.port.run(pattern, 3)
            result = guest.port.verify()
        self.assertTrue(result.verified, str(result))
        self.assertEqual(result.pages, WORKING_SET // 4096)
        self.assertLessEqual(resident.maximum, LIMIT + SLACK)
        stats = self.statistics(manager)
        # More than the limit was in use, so at least the rest went out and came back.
        self.assertGreater(stats.evicted * 4096, WORKING_SET - LIMIT)
        self.assertGreater(stats.faults_store, 0)
        self.assertGreaterEqual(stats.stored_bytes + stats.zero_bytes, WORKING_SET - LIMIT)
        self.assertEqual((stats.lost_pages, stats.checksum_errors, stats.store_errors), (0, 0, 0))
        self.assertTrue((hostmem.host_swap() - swap).idle, "the host's own swap was used")

    def test_verification_sees_one_flipped_bit(self) -> None:
        """The control of all other tests: what they rely on can fail."""
        guest = self.booted(self.manager())
        guest.port.fill(WORKING_SET, seed=12)
        self.assertTrue(guest.port.verify().verified)
        guest.port.corrupt(page=4711, offset=3210)
        result = guest.port.verify()
        self.assertFalse(result.verified)
        self.assertEqual(result.wrong_pages, 1)
        self.assertEqual(result.named[0]["page"], 4711)
        self.assertEqual(result.named[0]["offset"], 3208)  # of the word with the byte

    def test_released_memory_given_back_by_balloon(self) -> None:
        manager = self.manager()
        guest = self.booted(manager, arguments=["-device", "virtio-balloon-pci"])
        guest.port.fill(WORKING_SET, seed=13)
        guest.port.ask("release", {"released"}, 10)
        guest.qmp("balloon", value=RAM - 150 * MIB)
        self.wait_until(
            lambda: self.statistics(manager).discarded * 4096 >= 120 * MIB, "balloon of 150 MiB"
        )
        stats = self.statistics(manager)
        held = stats.resident_bytes + stats.stored_bytes
        self.assertLess(held, RAM - 100 * MIB, "given back, but still in memory or in the store")
        guest.qmp("balloon", value=RAM)
        self.wait_until(
            lambda: guest.qmp("query-balloon")["actual"] == RAM, "balloon to be emptied"
        )
        guest.port.fill(WORKING_SET, seed=14)
        guest.port.run("random", 2)
        self.assertTrue(guest.port.verify().verified)

    def test_clean_end_frees_the_volume(self) -> None:
        manager = self.manager()
        guest = self.booted(manager)
        guest.port.fill(WORKING_SET, seed=15)
        worker = self.statistics(manager).worker_pid
        self.assertEqual(guest.power_off(), 0)
        self.wait_until(lambda: not Path(f"/proc/{worker}").exists(), "end of the worker")
        self.assertEqual(manager.client.list_vms(), [])
        self.assertEqual(list(manager.store.iterdir()), [])


class Idle(UffdmmTest):
    """
    :avocado: tags=machine:q35
    """

    def test_manager_cpu_of_idle_guest(self) -> None:
        """Nothing swapped and nothing to do: at most 1 % of a core."""
        manager = self.manager(limit="256M")
        self.booted(manager)
        time.sleep(2)
        worker = self.statistics(manager).worker_pid
        before = _cpu_seconds(worker) + _cpu_seconds(manager.pid)
        time.sleep(8)
        used = _cpu_seconds(worker) + _cpu_seconds(manager.pid) - before
        self.assertLessEqual(used / 8, 0.01, f"{used:.2f} s of CPU in 8 s")


def _cpu_seconds(pid: int) -> float:
    """User and system time of a process; utime and stime are words 14 and 15 of its stat."""
    words = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
