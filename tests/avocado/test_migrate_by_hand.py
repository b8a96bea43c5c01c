# SPDX-License-Identifier: GPL-2.0-or-later
"""A migration driven by somebody else's program: QMP and the client, no control plane."""

import os
import secrets

import numpy as np
from migration_test import LIMIT, MIB, RAM, SECONDS, VM, WORKING_SET, MigrationTest

from uffdmm import ManagerError
from uffdmm.migration.locations import SET_PAGE, SetPages, changes
from uffdmm.migration.worker import ExportedSet, MigrationLink, Stage
from uffdmm_harness.guest import Guest
from uffdmm_harness.manager import Manager

CAPABILITIES = ("return-path", "swap-locations")


class Sender:
    """The locations of one session, from worker to worker, as docs/migration.md tells it."""

    def __init__(self, source: MigrationLink, destination: MigrationLink, session: int) -> None:
        self._source, self._destination, self._session = source, destination, session
        self._sets: list[ExportedSet] = []
        self._sent: list[SetPages] = []

    def look(self) -> int:
        """Send what has changed since the last look; the number of locations."""
        if not self._sets:
            self._sets = self._source.export()
            self._sent = [np.zeros(len(exported.pages), SET_PAGE) for exported in self._sets]
        count = 0
        for exported, sent in zip(self._sets, self._sent, strict=True):
            known = exported.changes
            found = changes(exported.pages, sent, exported.ages)
            if len(found):
                self._destination.take_in(self._session, exported.name, found)
            self._source.acknowledge(self._session, exported.region_id, known)
            count += len(found)
        return count

    def close(self) -> None:
        """Unmap what was exported."""
        for exported in self._sets:
            exported.close()


class ByHand(MigrationTest):
    """The recipe of docs/migration.md, step by step.

    :avocado: tags=machine:q35
    """

    def setUp(self) -> None:
        super().setUp()
        tiers = (f"far=file,path={self.shared},shared=on",)
        self.managers = [
            self.manager(
                tiers=tiers, limit=f"{LIMIT // MIB}M", arguments=["--demote-after", "never"]
            )
            for _ in range(2)
        ]
        self.guest_here = self.booted(self.managers[0], ram=RAM)
        self.guest_here.port.fill(WORKING_SET, seed=51)
        self.session = secrets.randbits(63) | 1

    def waiting(self, manager: Manager) -> Guest:
        """Step 1: QEMU on the destination."""
        guest = self.guest(
            self.config(manager.socket, ram=RAM, arguments=["-S", "-incoming", "defer"])
        )
        guest.launch()
        self.enable(guest)
        return guest

    def enable(self, guest: Guest) -> None:
        """The capabilities, on both sides."""
        guest.qmp(
            "migrate-set-capabilities",
            capabilities=[{"capability": name, "state": True} for name in CAPABILITIES],
        )

    def links(self) -> tuple[MigrationLink, MigrationLink]:
        """Connections to both workers."""
        made = [MigrationLink(manager.vm(VM)) for manager in self.managers]
        for link in made:
            self.exits.callback(link.close)
        return made[0], made[1]

    def transfer(self, sender: Sender, destination: Guest) -> None:
        """Steps 4 and 5: until QEMU says that all has arrived."""
        uri = f"unix:{destination.folder}/migrate"
        destination.qmp("migrate-incoming", uri=uri)
        self.guest_here.qmp("migrate-set-parameters", max_bandwidth=1 << 30)
        self.guest_here.qmp("migrate", uri=uri)

        def completed() -> bool:
            sender.look()
            info = self.guest_here.qmp("query-migrate")
            self.assertNotIn(info["status"], ("failed", "cancelled"), str(info))
            return bool(info["status"] == "completed")

        self.wait_until(completed, "the migration", SECONDS)

    def test_recipe(self) -> None:
        destination = self.waiting(self.managers[1])
        self.enable(self.guest_here)
        here, there = self.links()
        tier = next(i for i, tier in enumerate(here.vm.tiers()) if tier.name == "far")
        here.arm(self.session, tier)
        armed = here.status()
        there.prepare(self.session, tier, armed.epoch, armed.volume_uuid, VM)
        sender = Sender(here, there, self.session)
        self.exits.callback(sender.close)
        self.guest_here.port.send("run pattern=hot ms=2000 seed=1 report_ms=60000")
        self.transfer(sender, destination)

        self.assertEqual(here.status().stage, Stage.ALL_SENT)
        self.assertEqual(there.status().stage, Stage.INSTALLED)
        with self.assertRaisesRegex(ManagerError, "has not been released"):
            there.take(self.session, armed.epoch + 1)
        epoch = here.release(self.session, "there")
        self.assertEqual(epoch, armed.epoch + 1)
        with self.assertRaisesRegex(ManagerError, "must not go on here"):
            here.failed(self.session)
        there.take(self.session, epoch)
        destination.qmp("cont")
        self.guest_here.qmp("quit")
        self.ran(self.guest_here, destination)
        self.wait_until(lambda: self.guest_here.ended, "the end of QEMU on the source")
        self.assert_runs_only_on(destination, self.guest_here)
        located = there.status().located * 4096
        self.assertGreater(located, WORKING_SET - LIMIT)
        self.assertEqual(self.statistics(self.managers[1]).checksum_errors, 0)

    def test_no_locations_no_end(self) -> None:
        """Who forgets to carry them gets no guest that lacks its memory: QEMU waits for them."""
        destination = self.waiting(self.managers[1])
        self.enable(self.guest_here)
        here, there = self.links()
        here.arm(self.session, 1)
        armed = here.status()
        there.prepare(self.session, 1, armed.epoch, armed.volume_uuid, VM)
        uri = f"unix:{destination.folder}/migrate"
        destination.qmp("migrate-incoming", uri=uri)
        self.guest_here.qmp("migrate", uri=uri)
        self.wait_until(lambda: here.status().located > 0, "the first locations")

        def status() -> str:
            # Its main loop may wait for a stream that the destination does not read meanwhile.
            return str(self.guest_here.qmp("query-migrate", timeout=SECONDS)["status"])

        with self.assertRaises(AssertionError):
            self.wait_until(lambda: status() == "completed", "no end", 5)
        with self.assertRaisesRegex(ManagerError, "must not run here"):
            there.take(self.session, armed.epoch)
        self.assertFalse(self.runs(destination))
        self.guest_here.qmp("migrate_cancel", timeout=SECONDS)
        self.wait_until(lambda: status() in {"cancelled", "failed"}, "its end", SECONDS)
        self.wait_until(lambda: here.status().stage is Stage.IDLE, "the end of the session")
        self.assert_runs_only_on(self.guest_here, destination)

    def test_failure_by_hand(self) -> None:
        """The way back: QEMU's migration cancelled, and the session ended by QEMU itself."""
        destination = self.waiting(self.managers[1])
        self.enable(self.guest_here)
        here, there = self.links()
        here.arm(self.session, 1)
        armed = here.status()
        there.prepare(self.session, 1, armed.epoch, armed.volume_uuid, VM)
        sender = Sender(here, there, self.session)
        self.exits.callback(sender.close)
        uri = f"unix:{destination.folder}/migrate"
        destination.qmp("migrate-incoming", uri=uri)
        self.guest_here.qmp("migrate-set-parameters", max_bandwidth=20 << 20)
        self.guest_here.qmp("migrate", uri=uri)
        self.wait_until(lambda: sender.look() > 0, "the first locations")
        self.assertGreater(here.status().located, 0)
        os.kill(destination.pid, 9)
        self.wait_until(
            lambda: self.guest_here.qmp("query-migrate")["status"] == "failed", "its failure"
        )
        self.wait_until(lambda: here.status().stage is Stage.IDLE, "the end of the session")
        self.assertEqual(here.status().frozen_slots, 0)
        self.assert_runs_only_on(self.guest_here, destination)
