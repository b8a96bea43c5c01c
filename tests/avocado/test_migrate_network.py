# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosts with a network of their own between them, and a server of the store on a third."""

import signal
import time

from migration_test import VM, Host, MigrationTest

from uffdmm_harness import HarnessError
from uffdmm_harness.dying import program
from uffdmm_harness.guest import Guest
from uffdmm_harness.hosts import Network
from uffdmm_harness.nbdserver import NbdServer


class Hosts(MigrationTest):
    """Two hosts that have local tiers too, and reach the same store over the network.

    :avocado: tags=machine:q35
    """

    def setUp(self) -> None:
        super().setUp()
        try:
            self.network = self.exits.enter_context(Network(["a", "b", "store"]))
        except HarnessError as reason:
            self.cancel(str(reason))

    def hosts(self, far: str) -> tuple[Host, Host]:
        """Both, with a pool in front of this tier."""
        tiers = ("near=pool,capacity=16M", far)
        return (
            self.host("a", tiers=tiers, network=self.network),
            self.host("b", tiers=tiers, network=self.network),
        )

    def on_nbd(self) -> tuple[Host, Host]:
        """Both, the store being a server on the third host."""
        return self.hosts(f"far=nbd,uri={self.server().uri}")

    def on_a_shared_path(self) -> tuple[Host, Host]:
        """Both, the store being a folder that they share."""
        return self.hosts(f"far=file,path={self.shared},shared=on")

    def server(self) -> NbdServer:
        """The store."""
        return self.exits.enter_context(
            NbdServer(
                512 << 20,
                written=False,
                address=self.network.address("store"),
                wrapper=self.network.wrapper("store"),
            )
        )

    def check_moves(self, here: Host, there: Host) -> Guest:
        """A guest that writes all the time moves, and is whole after it."""
        source = self.source(here)
        destination = self.destination(there)
        source.port.send("run pattern=hot ms=5000 seed=3 report_ms=60000")
        process = self.moving(here, source, "--to", there.plane.target, "--json")
        out, err = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 0, err)
        self.log.info("report: %s", out)
        self.ran(source, destination)
        self.assert_runs_only_on(destination, source)
        self.assertEqual(self.statistics(there.manager).checksum_errors, 0)
        self.assertIn('"tier": "far"', out)
        return destination

    def test_server_on_a_third_host(self) -> None:
        self.check_moves(*self.on_nbd())

    def test_shared_path(self) -> None:
        self.check_moves(*self.on_a_shared_path())

    def test_there_and_back(self) -> None:
        """The volume goes back and forth with its VM; what is swapped stays where it is."""
        here, there = self.on_nbd()
        guest = self.check_moves(here, there)
        self.gone(here)
        back = self.destination(here)
        report = there.plane.migrated(VM, "--to", here.plane.target)
        self.assertEqual(report["tier"], "far")
        self.assert_runs_only_on(back, guest)

    def test_network_fails_for_a_moment(self) -> None:
        """What was under way is sent again by TCP, and nobody notices."""
        here, there = self.on_a_shared_path()
        source, destination = self.source(here), self.destination(there)
        process = self.moving(here, source, "--to", there.plane.target)
        self.network.cut("b")
        time.sleep(2)
        self.assertTrue(self.runs(source))
        self.network.join("b")
        out, err = process.communicate(timeout=90)
        self.assertEqual(process.returncode, 0, f"{out}{err}")
        self.assert_runs_only_on(destination, source)

    def test_network_fails_for_good(self) -> None:
        """The guest goes on, and nobody waits for TCP to lose its patience."""
        here, there = self.on_a_shared_path()
        source, destination = self.source(here), self.destination(there)
        process = self.moving(here, source, "--to", there.plane.target)
        self.network.cut("b")
        text = self.failure(process)
        self.assert_contains(text, "stage 'transfer'")
        self.assert_went_back(text, source, destination)
        self.network.join("b")
        self.assert_moves_after_all(here, there, source)

    def test_store_fails_for_a_moment(self) -> None:
        """A guest that needs it waits, and the migration with it."""
        server = self.server()
        here, there = self.hosts(f"far=nbd,uri={server.uri}")
        source, destination = self.source(here), self.destination(there)
        process = self.moving(here, source, "--to", there.plane.target)
        with server.paused():
            time.sleep(3)
            self.assertFalse(self.runs(destination))
        out, err = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 0, f"{out}{err}")
        self.assert_runs_only_on(destination, source)

    def test_store_is_started_anew(self) -> None:
        """It is gone while memory goes, and comes back: either side waits for it."""
        server = self.server()
        here, there = self.hosts(f"far=nbd,uri={server.uri}")
        source, destination = self.source(here), self.destination(there)
        process = self.moving(here, source, "--to", there.plane.target)
        server.kill()
        time.sleep(3)
        server.start()
        out, err = process.communicate(timeout=180)
        self.log.info("%s %s %s", process.returncode, out, err)
        self.wait_until(
            lambda: self.runs(source) != self.runs(destination), "one guest that runs", 60
        )
        if process.returncode == 0:
            self.assert_runs_only_on(destination, source)
        else:
            self.assert_runs_only_on(source, destination)

    def test_destination_is_lost_after_the_release(self) -> None:
        """The export says that nobody has taken it: the source may have it back, and use it."""
        here, there = self.on_nbd()
        source, destination = self.source(here), self.destination(there)
        words = (VM, "--to", there.plane.target)
        process = here.plane.migrate(*words, program=program("take"))
        process.communicate(timeout=90)
        self.assertEqual(process.returncode, -signal.SIGKILL)
        destination.kill()
        here.plane.commanded(VM, "--reclaim")
        self.assert_runs_only_on(source, destination)
        with here.manager.vm(VM) as vm:
            written = vm.tiers()[2].write_bytes
            source.port.run("random", 3, seed=8)
            self.assert_verifies(source)
            self.assertGreater(vm.tiers()[2].write_bytes, written)
        self.assert_moves_after_all(here, there, source)
