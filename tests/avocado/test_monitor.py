# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's monitor commands, in both forms."""

import os
import signal
import time

from uffdmm_test import LIMIT, MIB, RAM, SLACK, VM, WORKING_SET, UffdmmTest


class Monitor(UffdmmTest):
    """
    :avocado: tags=machine:q35
    """

    def test_query_shows_what_the_manager_shows(self) -> None:
        manager = self.manager()
        guest = self.booted(manager)
        guest.port.fill(WORKING_SET)
        (vm,) = guest.qmp("uffdmm-query")
        self.assertEqual(vm["vm-name"], VM)
        self.assertEqual(vm["socket"], str(manager.socket))
        (backend,) = vm["backends"]
        self.assertEqual(backend["id"], "mem0")
        self.assertEqual(backend["size"], RAM)
        self.assertEqual(backend["link"], "live")
        stats = self.statistics(manager)
        seen = vm["stats"]
        self.assertEqual(seen["worker-pid"], stats.worker_pid)
        self.assertEqual(seen["state"], "running")
        self.assertEqual(seen["limit"], LIMIT)
        self.assertEqual(seen["ram"], RAM)
        self.assertGreater(seen["faults"], 0)
        self.assertLessEqual(seen["faults"], stats.faults)
        self.assertGreater(seen["stored"], 0)

    def test_set_policy_lowers_the_limit_of_a_running_guest(self) -> None:
        manager = self.manager()
        guest = self.booted(manager)
        guest.port.fill(WORKING_SET, seed=3)
        guest.qmp("uffdmm-set-policy", limit=96 * MIB, readahead=8)
        self.wait_until(
            lambda: guest.qmp("uffdmm-query")[0]["stats"]["limit"] == 96 * MIB, "new limit"
        )
        self.assertEqual(self.statistics(manager).readahead_pages, 8)
        self.wait_until(
            lambda: self.statistics(manager).resident_bytes <= 96 * MIB, "eviction to the new limit"
        )
        with self.resident_sampler(guest) as resident:
            guest.port.run("random", 3)
            self.assertTrue(guest.port.verify().verified)
        self.assertLessEqual(resident.maximum, 96 * MIB + SLACK)

    def test_set_policy_refuses_nonsense(self) -> None:
        guest = self.booted(self.manager())
        self.assert_qmp_refuses(guest, "uffdmm-set-policy")
        self.assert_qmp_refuses(guest, "uffdmm-set-policy", "readahead", readahead=65)
        self.assert_qmp_refuses(
            guest, "uffdmm-set-policy", "elsewhere", vm_name="elsewhere", limit=RAM
        )
        # What only the manager can judge is refused by it, and shown.
        guest.qmp("uffdmm-set-policy", limit=4096)
        self.wait_until(
            lambda: "policy-error" in guest.qmp("uffdmm-query")[0]["backends"][0], "the refusal"
        )
        (vm,) = guest.qmp("uffdmm-query")
        self.assert_contains(vm["backends"][0]["policy-error"], "too small", "4096")
        self.assertEqual(vm["stats"]["limit"], LIMIT)

    def test_human_monitor(self) -> None:
        guest = self.booted(self.manager())
        text = guest.hmp("info uffdmm")
        self.assert_contains(text, VM, "mem0", "live")
        self.assertEqual(guest.hmp("uffdmm_set_policy limit 100").strip(), "")
        self.wait_until(
            lambda: guest.qmp("uffdmm-query")[0]["stats"]["limit"] == 100 * MIB, "new limit"
        )
        self.assertNotEqual(guest.hmp("uffdmm_set_policy colour blue").strip(), "")

    def test_query_answers_while_the_worker_is_stopped(self) -> None:
        """The monitor never waits for the manager."""
        manager = self.manager()
        guest = self.booted(manager)
        worker = self.statistics(manager).worker_pid
        guest.port.fill(WORKING_SET)
        guest.port.send("run pattern=random ms=0 report_ms=200")
        guest.port.read(5)
        os.kill(worker, signal.SIGSTOP)
        try:
            time.sleep(0.5)
            for _ in range(10):
                start = time.monotonic()
                guest.qmp("uffdmm-query", timeout=5)
                guest.qmp("uffdmm-set-policy", timeout=5, readahead=16)
                self.assertLess(time.monotonic() - start, 1)
        finally:
            os.kill(worker, signal.SIGCONT)
        guest.port.ask("stop", {"ran"}, 20)
        self.wait_until(lambda: self.statistics(manager).readahead_pages == 16, "queued policy")
        self.assertTrue(guest.port.verify().verified)
