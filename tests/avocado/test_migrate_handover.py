# SPDX-License-Identifier: GPL-2.0-or-later
"""The hand-over, interrupted at each of its steps: the guest runs on one side, or waits on one."""

import os
import signal

from migration_test import VM, MigrationTest

from uffdmm_harness.dying import program


class HandOver(MigrationTest):
    """All has arrived; whose is the guest?

    :avocado: tags=machine:q35
    """

    def setUp(self) -> None:
        super().setUp()
        self.here, self.there = self.host("a"), self.host("b")
        self.guest_here = self.source(self.here)
        self.guest_there = self.destination(self.there)

    def die_at(self, moment: str) -> None:
        """Migrate, the command being killed as it begins this stage."""
        target = self.there.plane.target
        process = self.here.plane.migrate(VM, "--to", target, program=program(moment))
        process.communicate(timeout=90)
        self.assertEqual(process.returncode, -signal.SIGKILL)

    def assert_nobody_runs(self) -> None:
        """The guest is paused on both sides."""
        self.assertEqual(self.guest_here.qmp("query-status")["status"], "postmigrate")
        self.assertFalse(self.guest_there.qmp("query-status")["running"])

    def assert_there(self) -> None:
        """The guest runs on the destination only."""
        self.assert_runs_only_on(self.guest_there, self.guest_here)

    def migrate_again(self) -> None:
        """The same command once more, to the end."""
        self.here.plane.migrated(VM, "--to", self.there.plane.target)
        self.wait_until(lambda: self.guest_here.ended, "the end of QEMU on the source")

    # ---- the source's control plane dies

    def test_again_after_death_before_release(self) -> None:
        self.die_at("release")
        self.wait_until(
            lambda: "event=migration-waits" in self.there.plane.log, "the destination's word"
        )
        self.assert_contains(self.there.plane.log, f"uffdmm migrate {VM} --take")
        self.assert_nobody_runs()
        self.migrate_again()
        self.assert_there()

    def test_abandoned_before_release(self) -> None:
        """It goes on here; the destination may not take it, and a new one may have it."""
        self.die_at("release")
        refusal = self.there.plane.refused(VM, "--take")
        self.assert_contains(refusal, "has not been released", "must not run here")
        self.assert_nobody_runs()
        port = self.there.plane.port
        refusal = self.here.plane.refused(VM, "--to", f"127.0.0.2:{port}")
        self.assert_contains(refusal, "stage 'connect'", "stands still here", "--abandon")
        self.here.plane.commanded(VM, "--abandon")
        self.assert_contains(self.there.plane.refused(VM, "--take"), "must not run here")
        self.assert_runs_only_on(self.guest_here, self.guest_there)
        self.guest_there.kill()
        self.assert_moves_after_all(self.here, self.there, self.guest_here)

    def test_guest_that_was_told_to_go_on_is_no_hand_over(self) -> None:
        """Somebody said 'cont' to QEMU: then what has arrived is old, and is not handed over."""
        self.die_at("release")
        self.guest_here.qmp("cont")
        refusal = self.here.plane.refused(VM, "--to", self.there.plane.target)
        self.assert_contains(refusal, "stage 'offer'", "does not wait for a migration (paused)")
        self.assert_runs_only_on(self.guest_here, self.guest_there)

    def test_again_after_death_before_the_destination_heard(self) -> None:
        self.die_at("take")
        self.assert_nobody_runs()
        self.assert_contains(self.here.plane.refused(VM, "--abandon"), "is its destination's")
        self.assert_nobody_runs()
        self.migrate_again()
        self.assert_there()

    def test_destination_without_s(self) -> None:
        """QEMU that was not told to wait would run the guest as soon as it is loaded."""
        self.guest_there.kill()
        self.gone(self.there)
        words = [*self.there.plane.monitor(VM), "-incoming", "defer"]
        self.guest_there = self.destination(self.there, arguments=words)
        self.die_at("release")
        self.wait_until(
            lambda: "event=migration-waits" in self.there.plane.log, "the destination's word"
        )
        self.assert_nobody_runs()
        self.migrate_again()
        self.assert_there()

    def test_taken_by_hand(self) -> None:
        """Released, and the source is lost: a person may say so."""
        self.die_at("take")
        self.guest_here.kill()
        self.there.plane.commanded(VM, "--take")
        self.assert_there()

    def test_death_before_the_source_was_ended(self) -> None:
        self.die_at("finish")
        self.assertEqual(self.guest_here.qmp("query-status")["status"], "postmigrate")
        self.assert_contains(self.here.plane.refused(VM, "--abandon"), "is its destination's")
        self.assert_contains(self.here.plane.refused(VM, "--reclaim"), "must not run here")
        self.assert_there()
        self.migrate_again()
        self.assert_there()

    # ---- the destination's control plane dies

    def migrate_with_a_dying_peer(self, moment: str) -> None:
        """It dies at a moment of its own, and comes back while the source still asks for it."""
        plane = self.there.plane
        plane.close()
        plane.start(program(moment))
        process = self.here.plane.migrate(VM, "--to", plane.target)
        plane.wait(60)
        self.assertFalse(self.runs(self.guest_there))
        self.assertFalse(self.runs(self.guest_here))
        plane.start()
        out, err = process.communicate(timeout=90)
        self.assertEqual(process.returncode, 0, f"{out}{err}")
        self.assert_there()

    def test_peer_dies_before_it_takes(self) -> None:
        self.migrate_with_a_dying_peer("released")

    def test_peer_dies_before_the_guest_runs(self) -> None:
        self.migrate_with_a_dying_peer("cont")

    def test_peer_dies_and_the_source_gives_up(self) -> None:
        """What was taken is let run by hand."""
        plane = self.there.plane
        plane.close()
        plane.start(program("cont"))
        process = self.here.plane.migrate(VM, "--to", plane.target)
        plane.wait(60)
        process.kill()
        process.communicate()
        self.guest_here.kill()
        plane.commanded(VM, "--take")
        self.assert_there()

    # ---- QEMU or a host dies

    def test_qemu_of_the_source_dies_before_release(self) -> None:
        """Its worker leaves the volume to whoever has the rest: a person decides."""
        self.die_at("release")
        self.guest_here.kill()
        self.gone(self.here)
        self.assertFalse(self.runs(self.guest_there))
        self.there.plane.commanded(VM, "--take")
        self.assert_there()

    def test_host_of_the_source_dies_before_release(self) -> None:
        """The volume says that it is the source's: nobody may have it."""
        self.die_at("release")
        self.here.manager.kill()
        self.guest_here.kill()
        refusal = self.there.plane.refused(VM, "--take")
        self.assert_contains(refusal, "has not been released", "must not run here")
        self.assertFalse(self.runs(self.guest_there))

    def test_qemu_of_the_destination_dies_after_release(self) -> None:
        """What is in memory is on the source only: it is kept, and runs when a person says so."""
        self.die_at("take")
        self.guest_there.kill()
        self.gone(self.there)
        refusal = self.here.plane.refused(VM, "--to", self.there.plane.target)
        self.assert_contains(refusal, "stage 'take'", "not on this host any more")
        self.assertEqual(self.guest_here.qmp("query-status")["status"], "postmigrate")
        self.here.plane.commanded(VM, "--reclaim")
        self.assert_runs_only_on(self.guest_here, self.guest_there)
        self.assert_moves_after_all(self.here, self.there, self.guest_here)

    def test_reclaimed_from_a_destination_that_is_not_lost(self) -> None:
        """The person was wrong, and nothing comes of it: it runs on one side."""
        self.die_at("take")
        self.here.plane.commanded(VM, "--reclaim")
        self.assert_contains(self.there.plane.refused(VM, "--take"), "must not run here")
        self.assert_runs_only_on(self.guest_here, self.guest_there)
        self.assert_contains(self.here.plane.refused(VM, "--reclaim"), "is not released (idle)")

    def test_qemu_of_the_destination_dies_before_release(self) -> None:
        """Nothing was given away, so the guest goes on where it was."""
        self.die_at("release")
        os.kill(self.guest_there.pid, signal.SIGKILL)
        self.here.plane.commanded(VM, "--abandon")
        self.assert_runs_only_on(self.guest_here, self.guest_there)
        self.assert_moves_after_all(self.here, self.there, self.guest_here)
