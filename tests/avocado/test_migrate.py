# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that migrate with the swapped part of their memory staying where it is."""

import os
import signal

from migration_test import LIMIT, VM, WORKING_SET, Host, MigrationTest


class ByLocation(MigrationTest):
    """Two hosts that see the same folder.

    :avocado: tags=machine:q35
    """

    def test_swapped_pages_stay_on_the_store(self) -> None:
        """Most of what is swapped goes by location, none of it is brought in."""
        here, there = self.host("a"), self.host("b")
        source = self.source(here)
        stored = self.statistics(here.manager).stored_bytes
        destination = self.destination(there)
        report = here.plane.migrated(VM, "--to", there.plane.target)
        self.log.info("report: %s", report)
        self.assertGreater(stored, WORKING_SET - LIMIT)
        self.assertEqual(report["source_swap_ins"], 0)
        self.assertEqual(report["tier"], "far")
        self.assertGreater(report["pages_by_location"] * 4096, stored * 0.8)
        self.assertLess(report["location_bytes"], 16 * report["pages_by_location"])
        self.assertTrue(destination.qmp("query-status")["running"])
        self.assert_verifies(destination)
        self.assertEqual(self.statistics(there.manager).checksum_errors, 0)
        self.wait_until(lambda: source.ended, "the end of QEMU on the source")

    def test_worker_that_received_a_guest_is_killed(self) -> None:
        """The volume that it took is found again by the one that follows."""
        here, there = self.host("a"), self.host("b")
        self.source(here)
        destination = self.destination(there)
        here.plane.migrated(VM, "--to", there.plane.target)
        self.wait_until(lambda: self.noted(there), "the tier to be noted")
        os.kill(self.statistics(there.manager).worker_pid, signal.SIGKILL)
        self.assert_verifies(destination)
        statistics = self.statistics(there.manager)
        self.assertEqual(statistics.recoveries, 1)
        self.assertEqual(statistics.checksum_errors, 0)

    def noted(self, host: Host) -> bool:
        """Whether what a new worker needs to know names the volume."""
        with host.manager.vm(VM) as vm:
            tables = [region.table for region in vm.regions()]
            return all(any(table.volume_id(1)) for table in tables)
