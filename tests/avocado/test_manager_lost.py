# SPDX-License-Identifier: GPL-2.0-or-later
"""A manager that dies costs the guest a pause, and never leaves it with wrong memory."""

import contextlib
import os
import signal
import time

from store_test import StoreTest
from uffdmm_test import RAM, WORKING_SET

from uffdmm_harness.guest import Guest
from uffdmm_harness.manager import Manager
from uffdmm_harness.port import PortTimeout


class ManagerLost(StoreTest):
    """
    :avocado: tags=machine:q35
    """

    def start_stepping(self, manager: Manager) -> Guest:
        guest = self.booted(manager)
        guest.port.fill(WORKING_SET, seed=31)
        guest.port.send("run pattern=random ms=0 report_ms=100")
        for _ in range(5):
            self.assertEqual(guest.port.read(10)["event"], "progress")
        return guest

    def check_stalled(self, guest: Guest) -> None:
        """No step any more; what was sent before the end came from correct memory."""
        deadline = time.monotonic() + 20
        quiet = False
        while not quiet and time.monotonic() < deadline:
            try:
                # A report is due every 100 ms: silence of 3 s is a guest that makes no step.
                record = guest.port.read(3)
            except PortTimeout:
                quiet = True
            else:
                self.assertEqual(record["event"], "progress", str(record))
        self.assertTrue(quiet, "the guest still makes steps although nobody serves its memory")

    def check_monitor(self, guest: Guest) -> None:
        """QEMU itself is well, and says what is wrong."""
        self.wait_until(
            lambda: guest.qmp("uffdmm-query", timeout=5)[0]["backends"][0]["link"] == "lost",
            "the lost link to show",
        )
        self.assertTrue(guest.qmp("query-status", timeout=5)["running"])
        self.assert_contains(guest.hmp("info uffdmm"), "lost")
        self.assert_qmp_refuses(guest, "uffdmm-set-policy", readahead=4)

    def check_goes_on(self, manager: Manager, guest: Guest) -> None:
        """A new worker serves the same memory: the guest makes steps, and every page is right."""
        for _ in range(5):
            self.assertEqual(guest.port.read(30)["event"], "progress")
        guest.port.ask("stop", {"ran"}, 20)
        self.assertTrue(guest.port.verify().verified)
        statistics = self.statistics(manager)
        self.assertEqual(statistics.recoveries, 1)
        self.assertEqual(statistics.checksum_errors, 0)
        self.assertEqual(statistics.lost_pages, 0)
        self.assertEqual(guest.qmp("uffdmm-query", timeout=5)[0]["backends"][0]["link"], "live")

    def test_worker_killed(self) -> None:
        """QEMU hands its memory to a new worker; the guest has a pause."""
        manager = self.manager()
        guest = self.start_stepping(manager)
        os.kill(self.statistics(manager).worker_pid, signal.SIGKILL)
        self.check_goes_on(manager, guest)

    def test_worker_killed_with_pages_on_a_server(self) -> None:
        """The same with an NBD server, which has lost its client; and with one that is away."""
        server = self.nbd_server(2 * RAM)
        manager = self.manager(
            tiers=["ram=pool,capacity=16M", f"net=nbd,uri={server.uri}"],
            arguments=["--demote-after", "never"],
        )
        guest = self.start_stepping(manager)
        self.assertGreater(self.tiers(manager)["net"].stored_pages, 0)
        server.kill()
        os.kill(self.statistics(manager).worker_pid, signal.SIGKILL)
        self.check_stalled(guest)
        self.assert_contains(manager.log, "cannot connect to nbd export")
        server.start()
        self.check_goes_on(manager, guest)

    def test_worker_and_acceptor_killed(self) -> None:
        """The guest stalls as long as there is no manager, and goes on with a new one."""
        manager = self.manager()
        guest = self.start_stepping(manager)
        manager.kill()
        self.check_stalled(guest)
        self.check_monitor(guest)
        manager.socket.unlink()
        manager.start()
        self.check_goes_on(manager, guest)

    def test_worker_stopped_and_continued(self) -> None:
        """A pause of the worker is a pause of the guest and nothing else."""
        manager = self.manager()
        guest = self.start_stepping(manager)
        worker = self.statistics(manager).worker_pid
        os.kill(worker, signal.SIGSTOP)
        self.check_stalled(guest)
        os.kill(worker, signal.SIGCONT)
        guest.port.ask("stop", {"ran"}, 20)
        self.assertTrue(guest.port.verify().verified)

    def check_ends(self, guest: Guest) -> None:
        """QEMU gives up the vCPU that waits, and says so."""
        began = time.monotonic()
        self.wait_until(lambda: guest.ended, "the end of QEMU", 30)
        # It was not ended at once: whoever is only slow has time to serve the page.
        self.assertGreater(time.monotonic() - began, 5)
        self.assert_contains(guest.stderr, "cannot stop its vCPUs", "not served by the manager")

    def test_quit_while_the_guest_waits_for_a_manager(self) -> None:
        """No manager comes, and QEMU ends all the same."""
        manager = self.manager()
        guest = self.start_stepping(manager)
        manager.kill()
        self.check_stalled(guest)
        # The answer may have to wait for the vCPU, too.
        with contextlib.suppress(TimeoutError):
            guest.qmp("quit", timeout=1)
        self.check_ends(guest)

    def test_end_while_the_guest_waits_for_a_stopped_worker(self) -> None:
        """The connection is there and nobody answers; a signal in place of the command."""
        manager = self.manager()
        guest = self.start_stepping(manager)
        worker = self.statistics(manager).worker_pid
        os.kill(worker, signal.SIGSTOP)
        self.check_stalled(guest)
        os.kill(guest.pid, signal.SIGTERM)
        self.check_ends(guest)
        os.kill(worker, signal.SIGCONT)
        self.wait_until(lambda: not manager.client.list_vms(), "the end of the worker", 20)

    def test_quit_of_a_guest_that_is_served(self) -> None:
        """The other way round: in the middle of faults QEMU ends as ever."""
        manager = self.manager()
        guest = self.start_stepping(manager)
        guest.qmp("quit")
        self.wait_until(lambda: guest.ended, "the end of QEMU", 10)
        self.assertNotIn("cannot stop", guest.stderr)

    def test_acceptor_killed_alone(self) -> None:
        """The acceptor only makes workers: the guests that have one do not need it."""
        manager = self.manager()
        guest = self.start_stepping(manager)
        os.kill(manager.pid, signal.SIGKILL)
        for _ in range(10):
            self.assertEqual(guest.port.read(10)["event"], "progress")
        guest.port.ask("stop", {"ran"}, 20)
        self.assertTrue(guest.port.verify().verified)
