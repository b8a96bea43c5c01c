# SPDX-License-Identifier: GPL-2.0-or-later
"""What QEMU's monitor tells by itself, and that its settings are those of the command line."""

import os
import signal
from typing import Any

from store_test import StoreTest
from uffdmm_test import MIB, VM

from uffdmm_harness.guest import Guest

LOST = "UFFDMM_MANAGER_LOST"
ATTACHED = "UFFDMM_MANAGER_ATTACHED"
STORE_ERROR = "UFFDMM_STORE_ERROR"
EVENTS = (LOST, ATTACHED, STORE_ERROR)


class Events(StoreTest):
    """Events of memory-backend-external.

    :avocado: tags=machine:q35
    """

    def next_event(self, guest: Guest) -> tuple[str, Any]:
        """The next event, but for that of the first time, which may come before we listen."""
        name, data = guest.event(*EVENTS)
        if name == ATTACHED and not data["reconnects"]:
            name, data = guest.event(*EVENTS)
        self.assertEqual((data["id"], data["vm-name"]), ("mem0", VM))
        return name, data

    def test_killed_worker_is_lost_and_another_one_attached(self) -> None:
        manager = self.store_manager("disk=file,path={store}")
        guest = self.stepping(manager, seed=71)
        for reconnects in (1, 2):
            killed = manager.worker_pid(VM)
            os.kill(killed, signal.SIGKILL)
            name, data = self.next_event(guest)
            self.assertEqual(name, LOST)
            self.assert_contains(data["reason"], "memory manager")
            name, data = self.next_event(guest)
            self.assertEqual(name, ATTACHED)
            self.assertEqual(data["reconnects"], reconnects)
            self.assertNotEqual(data["worker-pid"], killed)
            self.assertEqual(data["worker-pid"], self.statistics(manager).worker_pid)
        self.assert_verifies(guest)

    def test_store_that_fails_is_reported(self) -> None:
        trigger = self.folder / "trigger"
        manager = self.store_manager(
            "disk=file,path={store},error-ops=read,error-errno=EIO,error-rate=1,"
            f"error-trigger={trigger}"
        )
        guest = self.stepping(manager, seed=72)
        trigger.touch()
        name, data = self.next_event(guest)
        self.assertEqual(name, STORE_ERROR)
        self.assertGreater(data["store-errors"], 0)
        self.assertEqual(data["lost-pages"], 0)
        (tier,) = data["tiers"]
        self.assertEqual(tier["name"], "disk")
        self.assertEqual(tier["state"], "error")
        self.assertGreater(tier["errors"], 0)
        self.assert_contains(tier["reason"], "Input/output error")
        trigger.unlink()
        self.assert_verifies(guest)
        self.assert_state(guest, "running")


class Settings(StoreTest):
    """Settings by QMP and by the command line.

    :avocado: tags=machine:q35
    """

    def test_both_ways_change_and_show_the_same(self) -> None:
        manager = self.store_manager("disk=file,path={store}")
        guest = self.booted(manager)

        guest.qmp(
            "uffdmm-set-policy",
            limit=96 * MIB,
            readahead=8,
            demote_after=60_000,
            min=32 * MIB,
            max=128 * MIB,
            shares=300,
            priority=60,
            opt_out=True,
            track_permille=5,
            tiers=[{"name": "disk", "size": 200 * MIB}],
        )
        self.wait_until(lambda: self.query(guest)["shares"] == 300, "the change by QMP")
        self.assertNotIn("policy-error", guest.qmp("uffdmm-query")[0]["backends"][0])
        status = self.uffdmm(manager, "status", VM)
        shown = {
            "limit_bytes": 96 * MIB,
            "readahead_pages": 8,
            "demote_after_ms": 60_000,
            "min_bytes": 32 * MIB,
            "max_bytes": 128 * MIB,
            "shares": 300,
            "priority": 60,
            "opt_out": 1,
            "track_permille": 5,
        }
        self.assertEqual({name: status[name] for name in shown}, shown)
        # Bounds of tiers are shown by whoever changes something.
        report = self.uffdmm(manager, "set-policy", VM, "--shares", "300")
        self.assertEqual(report["tier_bytes"], {"disk": 200 * MIB})

        report = self.uffdmm(
            manager,
            *("set-policy", VM, "--limit", "80M", "--readahead", "16", "--demote-after", "never"),
            *("--min", "none", "--max", "none", "--shares", "100", "--priority", "50"),
            *("--no-opt-out", "--track-permille", "0", "--tier", "disk=100M"),
        )
        self.assertEqual(report["track_permille"], 0)
        stats = self.query(guest)
        expected = {
            "limit": 80 * MIB,
            "readahead": 16,
            "demote-after": 0,
            "min": 0,
            "max": 0,
            "shares": 100,
            "priority": 50,
            "opt-out": False,
            "track-permille": 0,
        }
        self.assertEqual({name: stats[name] for name in expected}, expected)
        self.assertEqual(self.query_tier(guest, "disk")["budget"], 100 * MIB)

    def test_what_the_worker_refuses_is_shown(self) -> None:
        manager = self.store_manager("disk=file,path={store}")
        guest = self.booted(manager)
        guest.qmp("uffdmm-set-policy", max=64 * MIB)
        # QEMU puts what has not been sent yet into one request, which is refused as a whole.
        self.wait_until(
            lambda: guest.qmp("uffdmm-query")[0]["stats"]["max"] == 64 * MIB, "the maximum"
        )
        guest.qmp("uffdmm-set-policy", min=65 * MIB)
        self.wait_until(
            lambda: "policy-error" in guest.qmp("uffdmm-query")[0]["backends"][0], "the refusal"
        )
        (vm,) = guest.qmp("uffdmm-query")
        self.assert_contains(vm["backends"][0]["policy-error"], "minimum", "maximum")
        self.assertEqual((vm["stats"]["min"], vm["stats"]["max"]), (0, 64 * MIB))
