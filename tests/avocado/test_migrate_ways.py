# SPDX-License-Identifier: GPL-2.0-or-later
"""Ways a guest can go: past TLS, on several channels, without a shared store, to other memory."""

from pathlib import Path
from typing import Any

from migration_test import LIMIT, MIB, RAM, SECONDS, VM, WORKING_SET, Host, MigrationTest

from uffdmm.migration.worker import MigrationLink, Status
from uffdmm_harness import HarnessError
from uffdmm_harness.guest import Guest
from uffdmm_harness.machine import external_memory
from uffdmm_harness.stores_huge import HUGE_PAGE, huge_pages

POOL = ("near=pool,capacity=128M",)


class Ways(MigrationTest):
    """By 'uffdmm migrate'.

    :avocado: tags=machine:q35
    """

    def check(self, *words: str, **arguments: Any) -> dict[str, Any]:
        """Migrate an idle guest, and look at it; the report."""
        here, there = self.host("a", **arguments), self.host("b", **arguments)
        source, destination = self.source(here), self.destination(there)
        report = here.plane.migrated(VM, "--to", there.plane.target, *words)
        self.log.info("report: %s", report)
        self.assert_runs_only_on(destination, source)
        self.assertEqual(report["source_swap_ins"], 0)
        return report

    def test_direct(self) -> None:
        self.assertEqual(self.check("--direct")["tier"], "far")

    def test_channels(self) -> None:
        """Content goes on several, locations as always."""
        report = self.check("--direct", "--channels", "2")
        self.assertGreater(report["pages_by_location"], 0)
        self.assertGreater(report["pages_by_content"], 0)

    def test_pages_of_2_mib(self) -> None:
        """They go whole, by one location each; content in what QEMU calls a page."""
        try:
            self.exits.enter_context(huge_pages(2 * (LIMIT // HUGE_PAGE + 8)))
        except HarnessError as error:
            self.cancel(str(error))
        here, there = self.host("a"), self.host("b")
        source = self.booted(here.manager, **self.huge(here))
        source.port.fill(WORKING_SET, seed=43)
        stored = self.statistics(here.manager).stored_bytes
        words = self.huge(there)
        words["arguments"] += ["-S", "-incoming", "defer"]
        destination = self.guest(self.config(there.manager.socket, **words))
        destination.launch()
        source.port.send("run pattern=hot ms=1500 seed=7 report_ms=60000")
        report = here.plane.migrated(VM, "--to", there.plane.target)
        self.log.info("report: %s", report)
        self.ran(source, destination)
        self.assert_runs_only_on(destination, source)
        self.assertEqual(report["source_swap_ins"], 0)
        self.assertGreater(report["pages_by_location"] * HUGE_PAGE, stored // 2)
        self.assertGreater(report["pages_by_content"], 0)

    def huge(self, host: Host) -> dict[str, Any]:
        """A machine with such pages on a host."""
        memory = external_memory(RAM, host.manager.socket, extra=",hugetlb=on")
        return {
            "ram": RAM,
            "objects": [memory],
            "memory": "mem0",
            "arguments": host.plane.monitor(VM),
        }

    def test_without_a_shared_store(self) -> None:
        """What is swapped goes by content, past the guest, and it is said."""
        report = self.check(tiers=POOL)
        self.assertIsNone(report["tier"])
        self.assertGreater(report["bypass_pages"] * 4096, WORKING_SET - LIMIT)
        self.assert_contains(str(report["notes"]), "all goes by content")

    def test_paused_guest_arrives_paused_and_warm(self) -> None:
        """Nobody lets it run but who paused it; what it used last is brought in before it asks."""
        here, there = self.host("a", limit="48M"), self.host("b", limit="128M")
        source, destination = self.source(here), self.destination(there)
        source.qmp("stop")
        before = self.statistics(here.manager)
        here.plane.migrated(VM, "--to", there.plane.target)
        self.assertFalse(self.runs(destination))
        self.wait_until(
            lambda: (
                self.statistics(there.manager).resident_bytes > before.resident_bytes + 24 * MIB
            ),
            "pages that come back by themselves",
        )
        self.assertFalse(self.runs(destination))
        self.assertGreater(self.statistics(there.manager).prefetched, 0)
        destination.qmp("cont")
        self.assert_runs_only_on(destination, source)

    def test_forecast_is_what_happens(self) -> None:
        """Of a guest that stands still; and asking changes nothing on either side."""
        here, there = self.host("a"), self.host("b")
        source, destination = self.source(here), self.destination(there)
        source.qmp("stop")
        said = here.plane.migrated(VM, "--to", there.plane.target, "--dry-run")
        self.assertTrue(said["possible"], str(said))
        self.assertEqual(said["tier"], "far")
        self.assertEqual(source.qmp("query-migrate"), {})
        self.assertEqual(destination.qmp("query-migrate"), {})
        report = here.plane.migrated(VM, "--to", there.plane.target)
        expected = said["forecast"]
        self.assertEqual(
            expected["by_location_bytes"] + expected["bypass_bytes"] + expected["content_bytes"],
            RAM,
        )
        self.assertAlmostEqual(
            report["pages_by_location"] * 4096, expected["by_location_bytes"], delta=4 * MIB
        )
        self.assertAlmostEqual(
            report["pages_by_content"] * 4096, expected["content_bytes"], delta=8 * MIB
        )
        self.assertLessEqual(report["location_bytes"], expected["location_bytes"])
        destination.qmp("cont")
        self.assert_runs_only_on(destination, source)

    def test_forecast_names_obstacles(self) -> None:
        """Nobody waits there: it is said in the report, and by the status of the command."""
        here, there = self.host("a"), self.host("b")
        source = self.source(here)
        with here.plane.migrate(VM, "--to", there.plane.target, "--dry-run") as process:
            out, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 1, err)
        self.assert_contains(out, "not possible", "obstacle:", f"no VM '{VM}' waits")
        self.assertTrue(self.runs(source))

    def test_memory_that_was_never_used_costs_nothing(self) -> None:
        here, there = self.host("a"), self.host("b")
        source = self.booted(here.manager, ram=RAM, arguments=here.plane.monitor(VM))
        source.port.fill(16 * MIB, seed=6)
        destination = self.destination(there)
        used = self.statistics(here.manager)
        report = here.plane.migrated(VM, "--to", there.plane.target)
        self.assertLess(report["bytes"], used.resident_bytes * 1.2 + 4 * MIB)
        self.assertLess(report["location_bytes"], 256 << 10)
        arrived = self.statistics(there.manager)
        self.assertLess(arrived.resident_bytes, used.resident_bytes + 8 * MIB)
        result = destination.port.verify(timeout=SECONDS)
        self.assertTrue(result.verified, str(result))

    def test_two_regions(self) -> None:
        """The memory of two NUMA nodes, of which each has its set."""
        here, there = self.host("a"), self.host("b")
        source = self.guest(self.config(None, ram=RAM, **self.nodes(here, [])))
        source.boot()
        source.port.fill(WORKING_SET, seed=7)
        destination = self.guest(
            self.config(None, ram=RAM, **self.nodes(there, ["-S", "-incoming", "defer"]))
        )
        destination.launch()
        source.port.send("run pattern=hot ms=3000 seed=2 report_ms=60000")
        report = here.plane.migrated(VM, "--to", there.plane.target)
        self.ran(source, destination)
        self.assertGreater(report["pages_by_location"] * 4096, WORKING_SET - LIMIT)
        self.assertEqual(self.statistics(there.manager).nr_regions, 2)
        self.assert_runs_only_on(destination, source)

    def nodes(self, host: Any, more: list[str]) -> dict[str, Any]:
        """Arguments for a machine of two nodes."""
        names = ("node0", "node1")
        socket = host.manager.socket
        return {
            "memory": "",
            "cpus": 2,
            "objects": [external_memory(RAM // 2, socket, ident=name) for name in names],
            "arguments": [
                *host.plane.monitor(VM),
                *("-numa", "node,cpus=0,memdev=node0", "-numa", "node,cpus=1,memdev=node1"),
                *more,
            ],
        }


class WithoutControlPlane(MigrationTest):
    """QEMU's own migration: all goes by content, what is swapped past the guest.

    :avocado: tags=machine:q35
    """

    def setUp(self) -> None:
        super().setUp()
        self.here = self.manager(tiers=POOL, limit=f"{LIMIT // MIB}M")
        self.guest_here = self.booted(self.here, ram=RAM)
        self.guest_here.port.fill(WORKING_SET, seed=8)

    def migrate(self, uri: str) -> None:
        """Until QEMU says that it is over; no page is brought in for it."""
        before, stored = self.counters(), self.statistics(self.here).stored_bytes
        self.guest_here.qmp("migrate-set-parameters", max_bandwidth=1 << 30)
        self.guest_here.qmp("migrate", uri=uri)

        def completed() -> bool:
            info = self.guest_here.qmp("query-migrate")
            self.assertNotIn(info["status"], ("failed", "cancelled"), str(info))
            return bool(info["status"] == "completed")

        self.wait_until(completed, "the migration", SECONDS)
        after = self.counters()
        self.assertGreater(stored, WORKING_SET - LIMIT)
        self.assertGreater((after.bypass_pages - before.bypass_pages) * 4096, stored * 0.8)
        self.assertEqual(after.swap_ins, before.swap_ins)

    def counters(self) -> Status:
        """The counters of the worker."""
        with MigrationLink(self.here.vm(VM)) as link:
            return link.status()

    def test_to_ordinary_memory(self) -> None:
        """A guest that leaves external memory for good, with the same id."""
        memory = f"memory-backend-memfd,id=mem0,size={RAM},share=on"
        config = self.config(None, ram=RAM, memory="mem0", objects=[memory])
        config.arguments = ["-incoming", "defer"]
        destination = self.guest(config)
        destination.launch()
        uri = f"unix:{destination.folder}/migrate"
        destination.qmp("migrate-incoming", uri=uri)
        self.migrate(uri)
        self.assert_runs_only_on(destination, self.guest_here)

    def test_to_external_memory(self) -> None:
        """The other way: a guest on ordinary memory comes to external memory."""
        memory = f"memory-backend-memfd,id=mem0,size={RAM},share=on"
        ordinary = self.guest(self.config(None, ram=RAM, memory="mem0", objects=[memory])).boot()
        ordinary.port.fill(WORKING_SET, seed=9)
        there = self.manager(tiers=POOL, limit=f"{LIMIT // MIB}M")
        destination = self.guest(
            self.config(there.socket, ram=RAM, arguments=["-incoming", "defer"])
        )
        destination.launch()
        uri = f"unix:{destination.folder}/migrate"
        destination.qmp("migrate-incoming", uri=uri)
        ordinary.qmp("migrate-set-parameters", max_bandwidth=1 << 30)
        ordinary.qmp("migrate", uri=uri)
        self.wait_until(
            lambda: ordinary.qmp("query-migrate")["status"] == "completed", "it", SECONDS
        )
        self.assert_runs_only_on(destination, ordinary)
        self.assertGreater(self.statistics(there).stored_bytes, 0)

    def test_to_a_file_and_back(self) -> None:
        self.check_saved(f"file:{self.shared}/saved")

    def test_through_a_program_and_back(self) -> None:
        self.check_saved(f"exec:cat > {self.shared}/saved", f"exec:cat {self.shared}/saved")

    def check_saved(self, uri: str, back: str | None = None) -> Guest:
        """Save the guest, end it, and start it from what was saved."""
        self.migrate(uri)
        self.assertGreater(Path(self.shared / "saved").stat().st_size, WORKING_SET)
        self.guest_here.kill()
        self.wait_until(lambda: not self.here.client.list_vms(), "the end of the worker")
        restored = self.guest(
            self.config(self.here.socket, ram=RAM, arguments=["-incoming", "defer"])
        )
        restored.launch()
        restored.qmp("migrate-incoming", uri=back or uri)
        self.wait_until(lambda: self.runs(restored), "the guest to run", SECONDS)
        self.assert_verifies(restored)
        return restored
