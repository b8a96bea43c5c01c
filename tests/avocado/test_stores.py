# SPDX-License-Identifier: GPL-2.0-or-later
"""Tiers of all kinds together, under real guests: where pages go, what they cost, who decides."""

import os
from pathlib import Path

from store_test import STORE_LIMIT, STORE_RAM, STORE_WORKING_SET, StoreTest
from uffdmm_test import MIB, SLACK, VM

from uffdmm_harness import hostmem
from uffdmm_harness.guest import Guest
from uffdmm_harness.manager import Manager
from uffdmm_harness.sampler import Sampler

_PAGE = 4096


def arena_bytes(pid: int) -> int:
    """Memory in the arenas that a QEMU process keeps open for its manager."""
    found = {}
    for path in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if str(path.readlink()).startswith("/memfd:uffdmm-pool"):
                status = path.stat()
                found[status.st_ino] = status.st_blocks * 512
        except FileNotFoundError:
            continue  # closed since the folder was listed
    return sum(found.values())


class Hierarchy(StoreTest):
    """Pages flow down as they age and come back up when touched.

    :avocado: tags=machine:q35
    """

    def check_all_used(self, server: str) -> None:
        export = self.nbd_server(program=server)
        manager = self.store_manager(
            "ram=pool,codec=lz4,capacity=16M",
            "disk=file,path={store},capacity=24M",
            f"net=nbd,uri={export.uri}",
            arguments=["--demote-after", "1s"],
        )
        guest = self.booted(manager, ram=STORE_RAM)
        with self.resident_sampler(guest) as resident:
            guest.port.fill(STORE_WORKING_SET, seed=71)
            guest.port.run("hot", 3)
            self.wait_until(
                lambda: (
                    all(
                        self.tiers(manager)[name].stored_pages > 0
                        for name in ("zero", "disk", "net")
                    )
                    and self.statistics(manager).demoted > 0
                ),
                "pages in every tier",
                timeout=60,
            )
            guest.port.run("random", 3)
            result = guest.port.verify()
        self.assertTrue(result.verified, str(result))
        self.assertLessEqual(resident.maximum, STORE_LIMIT + SLACK)
        tiers = self.tiers(manager)
        self.assertEqual(list(tiers), ["zero", "ram", "disk", "net"])
        for name in ("ram", "disk", "net"):
            self.assertGreater(tiers[name].reads, 0, name)
            self.assertEqual(tiers[name].errors + tiers[name].checksum_errors, 0, name)
        self.assertEqual(guest.power_off(), 0)

    def test_pool_file_and_nbdkit(self) -> None:
        self.check_all_used("nbdkit")

    def test_pool_file_and_qemu_nbd(self) -> None:
        self.check_all_used("qemu-nbd")

    def test_pool_inside_the_limit(self) -> None:
        """Guest and pool together stay within the limit, sampled on the memory itself."""
        manager = self.store_manager(
            "ram=pool,codec=lz4,inside-limit=on",
            "disk=file,path={store}",
            arguments=["--demote-after", "never"],
        )
        guest = self.booted(manager, ram=STORE_RAM)
        pid = guest.pid
        memory = hostmem.MemfdFiles(pid, STORE_RAM)
        with Sampler(lambda: memory.resident() + arena_bytes(pid)) as together:
            guest.port.fill(STORE_WORKING_SET, seed=72)
            for pattern in ("random", "sequential", "hot"):
                guest.port.run(pattern, 2)
            result = guest.port.verify()
        self.assertTrue(result.verified, str(result))
        self.assertGreater(arena_bytes(pid), 4 * MIB)
        self.assertLessEqual(together.maximum, STORE_LIMIT + SLACK)
        self.assertEqual(self.query(guest)["state"], "running")

    def check_evicted_again(self, manager: Manager, *tiers: str) -> None:
        """Pages that were read and not changed leave memory without a write."""
        guest = self.booted(manager, ram=STORE_RAM)
        guest.port.fill(STORE_WORKING_SET, seed=73)
        guest.port.run("sequential", 3)
        # Under a low limit every page leaves once, and has a copy in a store from then on.
        with manager.vm(VM) as vm:
            vm.set_policy(limit_bytes=STORE_LIMIT // 3)
            self.assertTrue(guest.port.verify().verified)
            vm.set_policy(limit_bytes=STORE_LIMIT)
        self.assertTrue(guest.port.verify().verified)
        before, written = self.statistics(manager), self.written(manager, tiers)
        self.assertTrue(guest.port.verify().verified)
        after = self.statistics(manager)
        left = after.evicted - before.evicted
        self.assertGreater(left * _PAGE, STORE_WORKING_SET // 4)
        # The guest's kernel writes to a few pages of its own meanwhile.
        grown = self.written(manager, tiers) - written
        self.assertLess(grown, left // 20, f"{grown} pages written, {left} evicted")
        self.assertGreater(after.evicted_clean - before.evicted_clean, left * 9 // 10)

    def written(self, manager: Manager, tiers: tuple[str, ...]) -> int:
        """Pages written to these tiers so far."""
        found = self.tiers(manager)
        return sum(found[name].write_bytes for name in tiers) // _PAGE

    def test_evicted_again_unchanged_from_a_file(self) -> None:
        self.check_evicted_again(self.store_manager("disk=file,path={store}"), "disk")

    def test_evicted_again_unchanged_from_a_server(self) -> None:
        server = self.nbd_server()
        self.check_evicted_again(self.store_manager(f"net=nbd,uri={server.uri}"), "net")


class GivenBack(StoreTest):
    """Memory that the guest gives back frees its slots, and costs no I/O.

    :avocado: tags=machine:q35
    """

    def guest_with_balloon(self, manager: Manager, extra: str = "") -> Guest:
        if not self.has_device("virtio-balloon-pci"):
            self.cancel("this QEMU is built without virtio-balloon-pci")
        device = f"virtio-balloon-pci,id=balloon0{extra}"
        return self.booted(manager, ram=STORE_RAM, arguments=["-device", device])

    def check_given_back(self, manager: Manager, discarded: int) -> None:
        """Discards show, and slots get free."""
        self.wait_until(
            lambda: self.statistics(manager).discarded - discarded > 40 * MIB // _PAGE,
            "discards",
            timeout=60,
        )
        # The kernel's own pages stay, and so do free ones in pieces too small to report.
        self.wait_until(
            lambda: self.used_before - self.used(manager) > 16 * MIB,
            "slots to get free",
            timeout=60,
        )

    def used(self, manager: Manager) -> int:
        """Bytes taken in all tiers."""
        return sum(tier.used_bytes for tier in self.tiers(manager).values())

    def fill_and_release(self, manager: Manager, guest: Guest) -> int:
        """Fill memory so that much of it is in stores, release it; discards until then."""
        guest.port.fill(STORE_WORKING_SET, seed=81)
        guest.port.run("random", 1)
        self.used_before = self.used(manager)
        self.assertGreater(self.used_before, 16 * MIB)
        discarded = self.statistics(manager).discarded
        guest.port.ask("release", {"released"}, 30)
        return discarded

    def check_memory_afterwards(self, guest: Guest) -> None:
        guest.port.fill(STORE_WORKING_SET, seed=82)
        guest.port.run("random", 2)
        result = guest.port.verify()
        self.assertTrue(result.verified, str(result))

    def test_free_page_reporting(self) -> None:
        manager = self.store_manager("ram=pool,capacity=24M", "disk=file,path={store}")
        guest = self.guest_with_balloon(manager, ",free-page-reporting=on")
        discarded = self.fill_and_release(manager, guest)
        reads = self.tiers(manager)["disk"].reads
        self.check_given_back(manager, discarded)
        # Giving back reads nothing; the kernel touches some pages of its own.
        self.assertLess(self.tiers(manager)["disk"].reads - reads, 200)
        self.check_memory_afterwards(guest)

    def test_balloon(self) -> None:
        server = self.nbd_server()
        manager = self.store_manager("ram=pool,capacity=24M", f"net=nbd,uri={server.uri}")
        guest = self.guest_with_balloon(manager)
        discarded = self.fill_and_release(manager, guest)
        target = STORE_RAM - 80 * MIB
        guest.qmp("balloon", value=target)
        self.wait_until(
            lambda: guest.qmp("query-balloon")["actual"] <= target, "the balloon", timeout=60
        )
        self.check_given_back(manager, discarded)
        guest.qmp("balloon", value=STORE_RAM)
        self.wait_until(
            lambda: guest.qmp("query-balloon")["actual"] == STORE_RAM, "its end", timeout=60
        )
        self.check_memory_afterwards(guest)


class Policy(StoreTest):
    """What may be stored where is changed under a running guest.

    :avocado: tags=machine:q35
    """

    def assert_in_force(self, manager: Manager, guest: Guest, ram: int, demote_ms: int) -> None:
        """QEMU, the client and the command line show the same."""

        def seen() -> tuple[int, ...]:
            stats = self.query(guest)
            return stats["demote-after"], self.statistics(manager).demote_after_ms

        self.wait_until(lambda: seen() == (demote_ms, demote_ms), "the new policy")
        self.assertEqual(self.query(guest)["limit"], STORE_LIMIT)
        # Nothing is changed by naming what is in force.
        report = self.uffdmm(manager, "set-policy", VM, "--limit", str(STORE_LIMIT))
        self.assertEqual(report["tier_bytes"]["ram"], ram)
        self.assertEqual(report["tier_bytes"]["disk"], 0)
        self.assertEqual(report["demote_after_ms"], demote_ms)

    def test_by_monitor_and_by_command_line(self) -> None:
        manager = self.store_manager("ram=pool", "disk=file,path={store}")
        guest = self.booted(manager, ram=STORE_RAM)
        guest.port.fill(STORE_WORKING_SET, seed=91)
        self.assert_in_force(manager, guest, ram=0, demote_ms=0)
        self.assertGreater(self.tiers(manager)["ram"].used_bytes, 12 * MIB)

        guest.qmp(
            "uffdmm-set-policy", tiers=[{"name": "ram", "size": 12 * MIB}], demote_after=60_000
        )
        self.assert_in_force(manager, guest, ram=12 * MIB, demote_ms=60_000)
        self.wait_until(
            lambda: self.tiers(manager)["ram"].used_bytes <= 12 * MIB, "demotion", timeout=60
        )
        self.assertGreater(self.tiers(manager)["disk"].stored_pages, 0)

        self.uffdmm(manager, "set-policy", VM, "--tier", "ram=8M", "--demote-after", "30s")
        self.assert_in_force(manager, guest, ram=8 * MIB, demote_ms=30_000)
        self.wait_until(
            lambda: self.tiers(manager)["ram"].used_bytes <= 8 * MIB, "demotion", timeout=60
        )
        guest.port.run("random", 2)
        result = guest.port.verify()
        self.assertTrue(result.verified, str(result))
        self.assertLessEqual(self.tiers(manager)["ram"].used_bytes, 8 * MIB)

    def test_tier_that_is_not_there(self) -> None:
        guest = self.booted(self.store_manager("ram=pool", "disk=file,path={store}"))
        self.assert_qmp_refuses(
            guest, "uffdmm-set-policy", "tape", tiers=[{"name": "tape", "size": MIB}]
        )


class RefusedStores(StoreTest):
    """A store that cannot take a VM refuses it at its start, and the manager lives on."""

    def check_refused(self, manager: Manager, *words: str, name: str = VM) -> None:
        """QEMU says so in one sentence, and the manager still answers."""
        config = self.config(manager.socket, ram=STORE_RAM, name=name)
        text = self.assert_refused_at_start(config, *words)
        self.assertEqual(len(text.strip().splitlines()), 1, text)
        self.wait_until(
            lambda: name not in {vm.vm_name for vm in manager.client.list_vms()},
            "end of the half-started VM",
        )

    def test_pool_too_small_by_itself(self) -> None:
        manager = self.store_manager("ram=pool,capacity=16M")
        self.check_refused(manager, "too small", "16 MiB", "raise a capacity or the limit")
        # The same manager takes one that fits into its limit.
        config = self.config(manager.socket, ram=STORE_LIMIT, name="small")
        guest = self.guest(config)
        guest.launch()
        self.assertEqual(guest.qmp("query-status")["status"], "running")

    def test_server_absent(self) -> None:
        path = self.folder / "nobody"
        manager = self.store_manager(f"net=nbd,uri=nbd+unix:///?socket={path}")
        self.check_refused(manager, "cannot connect to", str(path), "start its server")

    def test_server_comes_late(self) -> None:
        """The manager does not remember a server that was absent once."""
        server = self.nbd_server()
        manager = self.store_manager(f"net=nbd,uri={server.uri}")
        server.kill()
        self.check_refused(manager, "cannot connect to", "start its server")
        server.start()
        guest = self.booted(manager, ram=STORE_RAM)
        guest.port.fill(STORE_WORKING_SET, seed=95)
        self.assertTrue(guest.port.verify().verified)

    def test_export_in_use_by_another_vm(self) -> None:
        server = self.nbd_server()
        manager = self.store_manager(f"net=nbd,uri={server.uri}")
        guest = self.booted(manager, ram=STORE_RAM)
        guest.port.fill(STORE_WORKING_SET, seed=96)
        self.check_refused(manager, "is owned by VM vm1", "volume of its own", name="vm2")
        self.assertTrue(guest.port.verify().verified)

    def test_export_with_data_of_somebody(self) -> None:
        server = self.nbd_server()
        server.file.write_bytes(b"a file system or so".ljust(4 * MIB, b"."))
        os.truncate(server.file, 2 * STORE_RAM)
        manager = self.store_manager(f"net=nbd,uri={server.uri}")
        self.check_refused(manager, "holds data that is not a volume")
        with server.file.open("rb") as file:
            self.assertTrue(file.read(_PAGE).startswith(b"a file system or so"))

    def test_export_too_small(self) -> None:
        server = self.nbd_server(32 * MIB)
        manager = self.store_manager(f"net=nbd,uri={server.uri}")
        self.check_refused(manager, "too small", "raise a capacity or the limit")
