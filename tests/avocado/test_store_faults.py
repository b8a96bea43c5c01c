# SPDX-License-Identifier: GPL-2.0-or-later
"""A store that fails makes a guest wait, says so, and never gives it wrong bytes.

Each test breaks a store under a guest that touches its memory all the time.  Either the guest goes
on, or it waits and its state is reported; once the store works again the guest goes on by itself,
and compares every byte.
"""

import os
import time

from store_test import STORE_LIMIT, Damage, StoreTest
from uffdmm_test import MIB, SLACK, VM

from uffdmm_harness.guest import Guest
from uffdmm_harness.manager import Manager
from uffdmm_harness.nbdserver import NbdServer

# A server that does not answer for half a minute is what is promised to be survived; the usual
# run is shorter.
STALL_SECONDS = float(os.environ.get("UFFDMM_STALL_SECONDS", "5"))

# Where writes fail, each page has to be dirty before there is nothing left to evict.
ALL = 100


class FaultyFile(StoreTest):
    """The file tier.

    :avocado: tags=machine:q35
    """

    def triggered(self, *settings: str, more: tuple[str, ...] = ()) -> Manager:
        """A manager whose file tier fails as ``settings`` say while the trigger is there."""
        self.trigger = self.folder / "trigger"
        faults = ",".join(settings)
        tier = f"disk=file,path={{store}},{faults},error-rate=1,error-trigger={self.trigger}"
        return self.store_manager(tier, *more)

    def check_waits_and_goes_on(self, manager: Manager, guest: Guest, *words: str) -> None:
        """While the trigger is there the guest waits, and QEMU and the manager say why."""
        self.trigger.touch()
        self.assert_waits(guest)
        self.assert_state(guest, "store-error")
        self.assert_reported(manager, guest, "disk", "error", *words)
        self.assertGreater(self.query_tier(guest, "disk")["errors"], 0)
        self.assertTrue(guest.qmp("query-status")["running"])
        self.trigger.unlink()
        self.assert_verifies(guest)
        self.assert_state(guest, "running")
        self.assert_reported(manager, guest, "disk", "ok")
        self.assertEqual(self.statistics(manager).lost_pages, 0)

    def test_reads_fail(self) -> None:
        manager = self.triggered("error-ops=read", "error-errno=EIO")
        guest = self.stepping(manager, seed=51)
        self.check_waits_and_goes_on(manager, guest, "cannot be read", "Input/output error")

    def test_writes_fail(self) -> None:
        """Nothing can be evicted, so the limit is where the guest waits."""
        manager = self.triggered("error-ops=write", "error-errno=EIO")
        guest = self.stepping(manager, seed=52, write=ALL)
        with self.resident_sampler(guest) as resident:
            self.check_waits_and_goes_on(manager, guest, "cannot write", "Input/output error")
        self.assertLessEqual(resident.maximum, STORE_LIMIT + SLACK)

    def test_writes_find_no_room(self) -> None:
        manager = self.triggered("error-ops=write", "error-errno=ENOSPC")
        guest = self.stepping(manager, seed=53, write=ALL)
        with self.resident_sampler(guest) as resident:
            self.check_waits_and_goes_on(manager, guest, "cannot write", "No space left on device")
        self.assertLessEqual(resident.maximum, STORE_LIMIT + SLACK)

    def test_next_tier_takes_over_from_one_that_fails(self) -> None:
        second = self.folder / "second"
        second.mkdir()
        manager = self.triggered("error-ops=write", more=(f"spare=file,path={second}",))
        guest = self.stepping(manager, seed=54)
        before = self.tiers(manager)["spare"].writes
        self.trigger.touch()
        self.wait_until(
            lambda: self.tiers(manager)["spare"].writes > before, "a write to the spare", timeout=60
        )
        self.assert_steps(guest, 10)
        self.assert_reported(manager, guest, "disk", "error", "cannot write")
        self.trigger.unlink()
        self.assert_verifies(guest)

    def test_every_tenth_request_fails(self) -> None:
        """What is tried again succeeds: the guest gets slower and no worse."""
        manager = self.store_manager("disk=file,path={store},error-rate=0.1")
        guest = self.stepping(manager, seed=55)
        self.assert_verifies(guest)
        self.assertGreater(self.tiers(manager)["disk"].errors, 0)
        self.assertEqual(self.statistics(manager).lost_pages, 0)

    def test_every_request_is_late(self) -> None:
        manager = self.store_manager(
            "disk=file,path={store},delay-read=2ms,delay-write=10ms,delay-shape=exponential"
        )
        guest = self.stepping(manager, seed=56)
        self.assert_verifies(guest)
        read = self.tiers(manager)["disk"].read_hist.percentile(0.99)
        assert read is not None
        self.assertGreater(read, 0.002)

    def volume_in_use(self, manager: Manager) -> Damage:
        """The volume of the only VM, to be damaged."""
        (path,) = manager.store.iterdir()
        damage = Damage(path)
        self.assertGreater(len(damage) * 4096, 16 * MIB)
        return damage

    def test_slots_corrupted_at_rest(self) -> None:
        manager = self.store_manager("disk=file,path={store}")
        guest = self.stepping(manager, seed=57)
        with self.worker_stopped(manager):
            damage = self.volume_in_use(manager)
            damage.flip()
        self.assert_waits(guest)
        self.assert_state(guest, "store-error")
        self.assert_reported(manager, guest, "disk", "error", "checksum does not match")
        self.assertGreater(self.query(guest)["checksum-errors"], 0)
        with self.worker_stopped(manager):
            damage.repair()
        self.assert_verifies(guest)
        self.assert_state(guest, "running")
        self.assertEqual(self.statistics(manager).lost_pages, 0)

    def test_volume_truncated(self) -> None:
        manager = self.store_manager("disk=file,path={store}")
        guest = self.stepping(manager, seed=58)
        with self.worker_stopped(manager):
            damage = self.volume_in_use(manager)
            damage.truncate()
        self.assert_waits(guest)
        self.assert_state(guest, "store-error")
        self.assert_reported(manager, guest, "disk", "error", "cannot be read")
        with self.worker_stopped(manager):
            damage.repair()
        self.assert_verifies(guest)
        self.assertEqual(self.statistics(manager).lost_pages, 0)


class FaultyServer(StoreTest):
    """The nbd tier.

    :avocado: tags=machine:q35
    """

    def nbd_manager(self, server: NbdServer) -> Manager:
        return self.store_manager(f"net=nbd,uri={server.uri}")

    def check_filter(self, *parameters: str, words: tuple[str, ...], write: int = 25) -> None:
        """nbdkit answers with an error while its trigger is there."""
        server = self.nbd_server(filters=["error"], parameters=parameters)
        manager = self.nbd_manager(server)
        guest = self.stepping(manager, seed=61, write=write)
        trigger = server.path / "trigger"
        trigger.touch()
        self.assert_waits(guest)
        self.assert_state(guest, "store-error")
        self.assert_reported(manager, guest, "net", "error", *words)
        self.assertGreater(self.query_tier(guest, "net")["errors"], 0)
        trigger.unlink()
        self.assert_verifies(guest)
        self.assert_state(guest, "running")
        self.assertEqual(self.statistics(manager).lost_pages, 0)

    def test_reads_fail(self) -> None:
        self.check_filter(
            "error-pread=EIO",
            "error-pread-rate=100%",
            "error-pread-file={folder}/trigger",
            words=("cannot be read", "Input/output error"),
        )

    def test_writes_fail(self) -> None:
        self.check_filter(
            "error-pwrite=EIO",
            "error-pwrite-rate=100%",
            "error-pwrite-file={folder}/trigger",
            words=("cannot write", "Input/output error"),
            write=ALL,
        )

    def test_writes_find_no_room(self) -> None:
        self.check_filter(
            "error-pwrite=ENOSPC",
            "error-pwrite-rate=100%",
            "error-pwrite-file={folder}/trigger",
            words=("cannot write", "No space left on device"),
            write=ALL,
        )

    def test_every_request_is_late(self) -> None:
        server = self.nbd_server(filters=["delay"], parameters=["rdelay=3ms", "wdelay=10ms"])
        manager = self.nbd_manager(server)
        guest = self.stepping(manager, seed=62)
        self.assert_verifies(guest)
        read = self.tiers(manager)["net"].read_hist.percentile(0.5)
        assert read is not None
        self.assertGreater(read, 0.003)

    def check_stall(self, seed: int, write: int) -> None:
        """Links stay and nothing is answered: no request is given up, and none gets an error."""
        server = self.nbd_server()
        manager = self.nbd_manager(server)
        guest = self.stepping(manager, seed=seed, write=write)
        began = time.monotonic()
        with server.paused():
            self.assert_waits(guest)
            self.assertLess(self.query(guest)["heartbeat-age"], 10_000)
            self.assert_reported(manager, guest, "net", "slow")
            time.sleep(max(0, began + STALL_SECONDS - time.monotonic()))
            self.assert_reported(manager, guest, "net", "slow")
        self.assert_verifies(guest)
        tier = self.tiers(manager)["net"]
        self.assertEqual(tier.errors, 0, tier.last_error)
        self.assert_reported(manager, guest, "net", "ok")

    def test_server_stalls_under_writes(self) -> None:
        self.check_stall(seed=63, write=ALL)

    def test_server_stalls_under_reads(self) -> None:
        """All that is evicted has a copy, so that nothing but reads is under way."""
        self.check_stall(seed=68, write=0)

    def test_server_killed_and_started_again(self) -> None:
        server = self.nbd_server()
        manager = self.nbd_manager(server)
        guest = self.stepping(manager, seed=64)
        server.kill()
        self.assert_waits(guest)
        self.assert_reported(manager, guest, "net", "away", "is away")
        server.start()
        self.assert_verifies(guest)
        self.assert_reported(manager, guest, "net", "ok")
        self.assertGreater(self.tiers(manager)["net"].reconnects, 0)
        self.assertEqual(self.statistics(manager).lost_pages, 0)

    def test_server_comes_back_with_a_blank_export(self) -> None:
        """An empty disk where pages were is no reason to read zeros from it."""
        server = self.nbd_server()
        manager = self.nbd_manager(server)
        guest = self.stepping(manager, seed=65)
        server.kill()
        kept = server.file.rename(server.path / "kept")
        with server.file.open("wb") as blank:
            blank.truncate(kept.stat().st_size)
        server.start()
        self.assert_waits(guest)
        self.assert_reported(manager, guest, "net", "away", "is blank")
        self.assertEqual(server.file.stat().st_blocks, 0)
        server.kill()
        kept.rename(server.file)
        server.start()
        self.assert_verifies(guest)

    def test_slots_corrupted_at_rest(self) -> None:
        server = self.nbd_server()
        manager = self.nbd_manager(server)
        guest = self.stepping(manager, seed=66)
        with self.worker_stopped(manager):
            damage = Damage(server.file)
            self.assertGreater(len(damage) * 4096, 16 * MIB)
            damage.flip()
        self.assert_waits(guest)
        self.assert_state(guest, "store-error")
        self.assert_reported(manager, guest, "net", "error", "checksum does not match")
        self.assertGreater(self.query(guest)["checksum-errors"], 0)
        with self.worker_stopped(manager):
            damage.repair()
        self.assert_verifies(guest)
        self.assertEqual(self.statistics(manager).lost_pages, 0)

    def test_fast_tier_before_a_server_that_is_gone(self) -> None:
        """Pages in other tiers are served, and new ones stored, while a server is away."""
        server = self.nbd_server()
        manager = self.store_manager(
            f"net=nbd,uri={server.uri},capacity=24M",
            "disk=file,path={store}",
        )
        guest = self.stepping(manager, seed=67)
        self.wait_until(
            lambda: self.tiers(manager)["disk"].stored_pages > 0, "both tiers in use", timeout=60
        )
        server.kill()
        writes = self.tiers(manager)["disk"].writes
        # The only vCPU waits as soon as it meets a page of the server's.
        self.assert_waits(guest)
        self.assert_reported(manager, guest, "net", "away", "is away")
        self.uffdmm(manager, "set-policy", VM, "--limit", f"{STORE_LIMIT // 2 // MIB}M")
        self.wait_until(
            lambda: (
                self.tiers(manager)["disk"].writes > writes
                and self.statistics(manager).resident_bytes <= STORE_LIMIT // 2
            ),
            "eviction to the tier that is there",
            timeout=60,
        )
        server.start()
        self.assert_verifies(guest)
        self.assertLessEqual(self.tiers(manager)["net"].used_bytes, 24 * MIB)
