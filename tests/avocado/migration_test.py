# SPDX-License-Identifier: GPL-2.0-or-later
"""Base of the tests of migration by location: two hosts, one store that both reach."""

import contextlib
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from qemu.qmp import QMPError
from uffdmm_test import MIB, VM, UffdmmTest

from uffdmm_harness import HarnessError, places
from uffdmm_harness.certificates import Authority
from uffdmm_harness.guest import Guest
from uffdmm_harness.hosts import ControlPlane, Network
from uffdmm_harness.manager import Manager
from uffdmm_harness.port import Record

SECONDS = 90.0
# Smaller than other guests: each of these tests starts two.  The kernel leaves it about 110 of it.
RAM = 160 * MIB
LIMIT = 64 * MIB
WORKING_SET = 88 * MIB
# With it the memory of these guests takes some seconds.
SLOWLY = ("--bandwidth", "12M")
# Bytes of content after which there is more behind and before the cut than a buffer.
IN_THE_MIDDLE = 16 * MIB


class Host:
    """A manager and a control plane."""

    def __init__(self, name: str, manager: Manager, plane: ControlPlane) -> None:
        self.name, self.manager, self.plane = name, manager, plane


class MigrationTest(UffdmmTest):
    """A test with hosts; a file on a path that all of them share is the store."""

    timeout = 300

    def setUp(self) -> None:
        super().setUp()
        self.authority = Authority(self.folder / "authority")
        self.shared = Path(
            self.exits.enter_context(
                tempfile.TemporaryDirectory(prefix="uffdmm-shared-", dir=places.DISK_FOLDER)
            )
        )

    def host(
        self,
        name: str,
        *,
        tiers: tuple[str, ...] | None = None,
        network: Network | None = None,
        **arguments: Any,
    ) -> Host:
        """A host with a running manager and control plane; arguments are those of the manager.

        :param network: in which it is the host of that name, else it is on this one's
        """
        address = network.address(name) if network else "127.0.0.1"
        wrapper = network.wrapper(name) if network else []
        shared = (f"far=file,path={self.shared},shared=on",)
        manager = self.manager(
            **{
                "tiers": shared if tiers is None else tiers,
                "arguments": ["--demote-after", "never"],
                "limit": f"{LIMIT // MIB}M",
                "wrapper": wrapper,
                **arguments,
            }
        )
        plane = self.plane(name, manager, address=address, wrapper=wrapper)
        return Host(name, manager, plane)

    def plane(
        self, name: str, manager: Manager, *, address: str = "127.0.0.1", **arguments: Any
    ) -> ControlPlane:
        """The control plane of a host, running."""
        plane = ControlPlane(
            self.folder / name,
            manager.socket,
            self.authority.host(self.folder / name / "pki", address, "localhost"),
            address=address,
            **arguments,
        )
        self.exits.callback(lambda: self.log.info("%s: %s", name, plane.log))
        return self.exits.enter_context(plane)

    def source(self, host: Host, seed: int = 41) -> Guest:
        """A guest whose memory is filled, for the most part swapped out."""
        guest = self.booted(host.manager, ram=RAM, arguments=host.plane.monitor(VM))
        guest.port.fill(WORKING_SET, seed=seed)
        return guest

    def destination(self, host: Host, **arguments: Any) -> Guest:
        """QEMU on a host, waiting for a migration."""
        words = [*host.plane.monitor(VM), "-S", "-incoming", "defer"]
        guest = self.guest(
            self.config(host.manager.socket, **{"ram": RAM, "arguments": words, **arguments})
        )
        guest.launch()
        return guest

    def moving(self, here: Host, source: Guest, *words: str) -> "subprocess.Popen[str]":
        """``uffdmm migrate`` in the middle of its work, slowed down."""
        process = here.plane.migrate(VM, *SLOWLY, *words)
        self.exits.callback(end_process, process)

        def in_the_middle() -> bool:
            if process.poll() is not None:
                self.fail(f"uffdmm migrate has ended: {process.communicate()}")
            info = source.qmp("query-migrate")
            return bool(
                info.get("status") == "active" and info["ram"]["transferred"] > IN_THE_MIDDLE
            )

        self.wait_until(in_the_middle, "the middle of the migration")
        return process

    def failure(self, process: "subprocess.Popen[str]", timeout: float = SECONDS) -> str:
        """What ``uffdmm migrate`` says as it fails, in one line."""
        out, err = process.communicate(timeout=timeout)
        self.assertGreater(process.returncode, 0, f"{out}{err}")
        text = " ".join(err.split())
        self.log.info("uffdmm migrate said: %s", text)
        return text

    def runs(self, guest: Guest) -> bool:
        """Whether a guest runs, on this side."""
        if guest.ended:
            return False
        try:
            return bool(guest.qmp("query-status")["running"])
        except (QMPError, OSError, HarnessError):
            # It has ended between the two.
            return False

    def assert_runs_only_on(self, here: Guest, elsewhere: Guest) -> None:
        """The guest runs on one side, intact, and not on the other."""
        self.assertFalse(self.runs(elsewhere), "the guest runs on the other side too")
        self.assertTrue(self.runs(here), "the guest does not run")
        self.assert_verifies(here)
        self.assertFalse(self.runs(elsewhere), "the guest runs on the other side by now")

    def assert_went_back(self, text: str, source: Guest, destination: Guest) -> None:
        """A migration failed while it could, and left one guest."""
        self.assert_contains(text, "the guest runs here")
        self.assert_runs_only_on(source, destination)
        self.wait_until(lambda: destination.ended, "the end of QEMU on the destination")

    def assert_moves_after_all(self, here: Host, there: Host, source: Guest) -> None:
        """A second attempt, to a QEMU started anew, succeeds."""
        self.gone(there)
        destination = self.destination(there)
        here.plane.migrated(VM, "--to", there.plane.target)
        self.wait_until(lambda: source.ended, "the end of QEMU on the source")
        self.assert_runs_only_on(destination, source)

    def ran(self, source: Guest, destination: Guest) -> None:
        """A run that began before the migration has met no wrong word; it may end on any side."""
        ends = {"ran", "run-failed"}
        records: list[Record] = []
        if source is not destination:
            with contextlib.suppress(HarnessError):
                records = list(source.port.records(ends, 0.5))
        records = records or list(destination.port.records(ends, SECONDS))
        self.assertEqual(records[-1]["event"], "ran", str(records))

    def gone(self, host: Host) -> None:
        """Wait until the worker of a guest that has ended has ended too."""
        self.wait_until(lambda: not host.manager.client.list_vms(), "the end of the worker")

    def assert_verifies(self, guest: Guest) -> None:
        """Every byte of the guest's memory is right."""
        result = guest.port.verify(timeout=SECONDS)
        self.assertTrue(result.verified, str(result))
        self.assertEqual(result.pages, WORKING_SET // 4096)


def end_process(process: "subprocess.Popen[str]") -> None:
    """Kill a process unless it has ended."""
    if process.poll() is None:
        process.kill()
    process.communicate()


__all__ = [
    "LIMIT",
    "MIB",
    "RAM",
    "SECONDS",
    "SLOWLY",
    "VM",
    "WORKING_SET",
    "Host",
    "MigrationTest",
    "end_process",
]
