# SPDX-License-Identifier: GPL-2.0-or-later
"""What a destination has in memory: while a VM comes, and what it fetches once it is there."""

import time

from migration_test import MIB, VM, Host, MigrationTest
from uffdmm_test import LIMIT

from uffdmm_harness.guest import Guest
from uffdmm_harness.migration_guest import StepWatch


class Room(MigrationTest):
    """Two hosts that see the same folder.

    :avocado: tags=machine:q35
    """

    def migrated(self, here: Host, there: Host) -> Guest:
        """The guest over there; it went on writing while it moved."""
        source = self.source(here)
        source.port.send("run pattern=hot ms=0 seed=1 report_ms=100")
        watch = StepWatch(source.port)
        destination = self.destination(there)
        watch.expect(destination.port)
        here.plane.migrated(VM, "--to", there.plane.target, "--keep")
        watch.finish()
        return destination

    def test_only_tier_of_the_destination_is_the_shared_one(self) -> None:
        """Nothing can go out before the volume is taken, and nothing waits for that."""
        here, there = self.host("a"), self.host("b", limit=f"{LIMIT // MIB // 2}M")
        destination = self.migrated(here, there)
        self.wait_until(
            lambda: self.statistics(there.manager).resident_bytes <= LIMIT // 2,
            "the VM to be below its limit",
        )
        self.assert_verifies(destination)

    def fetched(self, prefetch: str) -> int:
        """Bytes that came back by themselves over there, where is room for all of the guest."""
        here, there = self.host("a"), self.host("b", limit="256M")
        there.plane.close()
        there.plane = self.plane("c", there.manager, more=prefetch)
        destination = self.migrated(here, there)
        time.sleep(2)
        fetched = self.statistics(there.manager).prefetched * 4096
        self.assert_verifies(destination)
        return fetched

    def test_what_was_used_last_is_fetched(self) -> None:
        self.assertGreater(self.fetched(""), 20 * MIB)

    def test_nothing_is_fetched_when_so_configured(self) -> None:
        self.assertEqual(self.fetched("prefetch = false"), 0)
