# SPDX-License-Identifier: GPL-2.0-or-later
"""Migrations that fail in the middle: the guest goes on where it was, and may try again."""

import os
import signal
import time

from migration_test import SECONDS, VM, MigrationTest

from uffdmm.errors import UffdmmError
from uffdmm.migration.worker import MigrationLink, Stage
from uffdmm_harness.dying import program
from uffdmm_harness.relay import Relay


class WhileMemoryGoes(MigrationTest):
    """Up to the release of the volume whatever fails leaves the guest to its source.

    :avocado: tags=machine:q35
    """

    def setUp(self) -> None:
        super().setUp()
        self.here, self.there = self.host("a"), self.host("b")
        self.guest_here = self.source(self.here)
        self.guest_there = self.destination(self.there)

    def run_meanwhile(self, seconds: float = 3) -> None:
        """Have the guest write while it migrates, and end before anybody asks for more."""
        self.guest_here.port.send(
            f"run pattern=hot ms={round(seconds * 1000)} seed=5 report_ms=60000"
        )

    def test_stream_of_qemu_is_cut(self) -> None:
        relay = self.exits.enter_context(Relay("127.0.0.1", self.there.plane.port))
        self.run_meanwhile()
        process = self.moving(self.here, self.guest_here, "--to", relay.target)
        self.assertEqual(relay.connections, 2)
        relay.cut(1)
        text = self.failure(process)
        self.ran(self.guest_here, self.guest_here)
        self.assert_contains(text, "stage 'transfer'")
        self.assert_went_back(text, self.guest_here, self.guest_there)
        self.assert_moves_after_all(self.here, self.there, self.guest_here)

    def test_conversation_is_cut(self) -> None:
        relay = self.exits.enter_context(Relay("127.0.0.1", self.there.plane.port))
        process = self.moving(self.here, self.guest_here, "--to", relay.target)
        relay.cut(0)
        text = self.failure(process)
        self.assert_contains(text, "stage 'transfer'", "hung up")
        self.assert_went_back(text, self.guest_here, self.guest_there)

    def test_manager_of_the_destination_dies(self) -> None:
        """QEMU there may wait for it in a fault, and then cannot even be told to quit."""
        process = self.moving(self.here, self.guest_here, "--to", self.there.plane.target)
        self.there.manager.kill()
        text = self.failure(process)
        self.assert_contains(text, "stage 'transfer'", "the guest runs here")
        self.assert_verifies(self.guest_here)
        self.assertTrue(self.runs(self.guest_here))

        def ended_or_told() -> bool:
            return self.guest_there.ended or "event=migration-stuck" in self.there.plane.log

        self.wait_until(ended_or_told, "the end of QEMU, or a word about it", 60)
        self.guest_there.kill()

    def test_qemu_of_the_destination_dies(self) -> None:
        process = self.moving(self.here, self.guest_here, "--to", self.there.plane.target)
        os.kill(self.guest_there.pid, signal.SIGKILL)
        text = self.failure(process)
        self.assert_contains(text, "stage 'transfer'")
        self.assert_went_back(text, self.guest_here, self.guest_there)
        self.assert_moves_after_all(self.here, self.there, self.guest_here)

    def test_control_plane_of_the_destination_dies(self) -> None:
        process = self.moving(self.here, self.guest_here, "--to", self.there.plane.target)
        self.there.plane.kill()
        text = self.failure(process)
        self.assert_contains(text, "stage 'transfer'", "hung up")
        self.assert_contains(text, "the guest runs here")
        self.assert_runs_only_on(self.guest_here, self.guest_there)
        # Nobody was there to end it, and it is of no use any more: a new one says so.
        self.there.plane.start()
        refusal = self.here.plane.refused(VM, "--to", self.there.plane.target)
        self.assert_contains(refusal, "stage 'offer'")
        self.guest_there.kill()
        self.assert_moves_after_all(self.here, self.there, self.guest_here)

    def test_control_plane_of_the_source_dies(self) -> None:
        self.run_meanwhile()
        process = self.moving(self.here, self.guest_here, "--to", self.there.plane.target)
        process.kill()
        process.communicate()
        self.wait_until(lambda: self.guest_there.ended, "the end of QEMU on the destination")
        self.ran(self.guest_here, self.guest_here)
        self.assert_runs_only_on(self.guest_here, self.guest_there)
        self.assert_moves_after_all(self.here, self.there, self.guest_here)

    def test_user_gives_up(self) -> None:
        process = self.moving(self.here, self.guest_here, "--to", self.there.plane.target)
        process.send_signal(signal.SIGINT)
        text = self.failure(process)
        self.assert_contains(text, "stage 'transfer'", "cancelled")
        self.assert_went_back(text, self.guest_here, self.guest_there)
        self.assert_contains(self.there.plane.log, "the source gave up: cancelled")
        self.assert_moves_after_all(self.here, self.there, self.guest_here)

    def test_paused_guest_stays_paused(self) -> None:
        self.guest_here.qmp("stop")
        process = self.moving(self.here, self.guest_here, "--to", self.there.plane.target)
        process.send_signal(signal.SIGINT)
        text = self.failure(process)
        self.assert_contains(text, "the guest is paused here")
        self.assertEqual(self.guest_here.qmp("query-status")["status"], "paused")
        self.wait_until(lambda: self.guest_there.ended, "the end of QEMU on the destination")
        self.guest_here.qmp("cont")
        self.assert_runs_only_on(self.guest_here, self.guest_there)

    def test_attempts_one_after_the_other(self) -> None:
        """What an attempt froze is free again after it."""
        self.run_meanwhile(10)
        for _ in range(3):
            process = self.moving(self.here, self.guest_here, "--to", self.there.plane.target)
            process.send_signal(signal.SIGTERM)
            self.assert_contains(self.failure(process), "the guest runs here")
            self.wait_until(lambda: self.guest_there.ended, "the end of QEMU on the destination")
            self.gone(self.there)
            self.guest_there = self.destination(self.there)
        self.ran(self.guest_here, self.guest_here)
        self.guest_there.kill()
        self.assert_verifies(self.guest_here)
        with MigrationLink(self.here.manager.vm(VM)) as link:
            self.assertEqual(link.status().frozen_slots, 0)
            self.assertEqual(link.status().stage, Stage.IDLE)
        self.assert_moves_after_all(self.here, self.there, self.guest_here)

    def test_worker_of_the_source_stands_still(self) -> None:
        """As long as the manager does not answer nobody gives up, and then it goes on."""
        process = self.moving(self.here, self.guest_here, "--to", self.there.plane.target)
        worker = self.here.manager.worker_pid(VM)
        os.kill(worker, signal.SIGSTOP)
        time.sleep(2)
        os.kill(worker, signal.SIGCONT)
        out, err = process.communicate(timeout=90)
        self.assertEqual(process.returncode, 0, f"{out}{err}")
        self.assert_runs_only_on(self.guest_there, self.guest_here)


class WorkerDies(MigrationTest):
    """The worker of the source is killed; QEMU finds the next one, which knows of no migration.

    :avocado: tags=machine:q35
    """

    def setUp(self) -> None:
        super().setUp()
        pool = ("near=pool,capacity=128M",)
        self.here, self.there = self.host("a", tiers=pool), self.host("b", tiers=pool)
        self.guest_here = self.source(self.here)
        self.guest_there = self.destination(self.there)

    def kill_worker(self) -> None:
        """Kill it, and wait until another has taken its place."""
        former = self.here.manager.worker_pid(VM)
        os.kill(former, signal.SIGKILL)

        def replaced() -> bool:
            try:
                return self.here.manager.worker_pid(VM) != former
            except UffdmmError:
                return False

        self.wait_until(replaced, "the next worker", 60)

    def test_in_the_middle(self) -> None:
        process = self.moving(self.here, self.guest_here, "--to", self.there.plane.target)
        self.kill_worker()
        text = self.failure(process)
        self.assert_contains(text, "stage 'transfer'")
        self.wait_until(lambda: self.runs(self.guest_here), "the guest to run", 60)
        self.assert_runs_only_on(self.guest_here, self.guest_there)
        self.wait_until(lambda: self.guest_there.ended, "the end of QEMU on the destination", 60)
        self.assert_moves_after_all(self.here, self.there, self.guest_here)

    def test_before_release(self) -> None:
        """Nobody on this side knows whether it was given away: a person has to."""
        process = self.here.plane.migrate(
            VM, "--to", self.there.plane.target, program=program("release")
        )
        process.communicate(timeout=SECONDS)
        self.kill_worker()
        refusal = self.here.plane.refused(VM, "--to", self.there.plane.target)
        self.assert_contains(refusal, "neither running nor paused: postmigrate")
        refusal = self.here.plane.refused(VM, "--abandon")
        self.assert_contains(refusal, "it may run elsewhere", "'cont' by QMP")
        self.assertFalse(self.runs(self.guest_here))
        self.assertFalse(self.runs(self.guest_there))
        self.guest_there.kill()
        self.guest_here.qmp("cont")
        self.assert_runs_only_on(self.guest_here, self.guest_there)
