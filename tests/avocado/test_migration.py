# SPDX-License-Identifier: GPL-2.0-or-later
"""Migration of guests most of whose memory is swapped out, without locations."""

from uffdmm_test import WORKING_SET, UffdmmTest

from uffdmm_harness.guest import Guest
from uffdmm_harness.manager import Manager

SECONDS = 90.0


class Bypass(UffdmmTest):
    """Stored pages are read by the manager for QEMU, which does not touch them.

    :avocado: tags=machine:q35
    """

    def destination(self, manager: Manager) -> Guest:
        """A guest that waits for a migration."""
        guest = self.guest(self.config(manager.socket, arguments=["-incoming", "defer"]))
        guest.launch()
        guest.qmp("migrate-incoming", uri=f"unix:{guest.folder}/migrate")
        return guest

    def migrate(self, source: Guest, destination: Guest) -> None:
        """Start a migration and wait until it is completed."""
        source.qmp("migrate-set-parameters", max_bandwidth=1 << 30)
        source.qmp("migrate", uri=f"unix:{destination.folder}/migrate")

        def completed() -> bool:
            info = source.qmp("query-migrate")
            self.assertNotIn(info["status"], ("failed", "cancelled"), str(info))
            return bool(info["status"] == "completed")

        self.wait_until(completed, "migration", SECONDS)

    def test_stopped_guest_causes_no_fault(self) -> None:
        managers = [self.manager(), self.manager()]
        source = self.booted(managers[0])
        source.port.fill(WORKING_SET, seed=31)
        destination = self.destination(managers[1])
        # From here on whoever faults is a thread of QEMU.
        source.qmp("stop")
        before = self.statistics(managers[0])
        self.migrate(source, destination)
        after = self.statistics(managers[0])
        sent = source.qmp("query-migrate")["swap-locations"]
        self.log.info("sent: %s", sent)
        self.assertEqual(after.faults - before.faults, 0)
        self.assertGreaterEqual(sent["bypass-bytes"], before.stored_bytes)
        self.assertEqual(sent["by-location"], 0)
        destination.qmp("cont")
        result = destination.port.verify()
        self.assertTrue(result.verified, str(result))
        self.assertEqual(result.pages, WORKING_SET // 4096)

    def test_guest_that_writes_meanwhile(self) -> None:
        managers = [self.manager(), self.manager()]
        source = self.booted(managers[0])
        source.port.fill(WORKING_SET, seed=32)
        # no report before the end: one could be cut in two by the move
        source.port.send("run pattern=hot ms=6000 seed=1 report_ms=60000")
        destination = self.destination(managers[1])
        self.migrate(source, destination)
        *_, last = destination.port.records({"ran", "run-failed"}, SECONDS)
        self.assertEqual(last["event"], "ran", str(last))
        result = destination.port.verify()
        self.assertTrue(result.verified, str(result))
        self.assertEqual(result.pages, WORKING_SET // 4096)
