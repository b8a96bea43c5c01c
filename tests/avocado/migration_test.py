# SPDX-License-Identifier: GPL-2.0-or-later
"""Base of the tests of migration by location: two hosts, one store that both reach."""

import tempfile
from pathlib import Path
from typing import Any

from uffdmm_test import LIMIT, MIB, VM, WORKING_SET, UffdmmTest

from uffdmm_harness import places
from uffdmm_harness.certificates import Authority
from uffdmm_harness.guest import Guest
from uffdmm_harness.hosts import ControlPlane
from uffdmm_harness.manager import Manager

SECONDS = 90.0


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

    def host(self, name: str, *, tiers: tuple[str, ...] | None = None, **arguments: Any) -> Host:
        """A host with a running manager and control plane; arguments are those of the manager."""
        shared = (f"far=file,path={self.shared},shared=on",)
        manager = self.manager(
            **{
                "tiers": shared if tiers is None else tiers,
                "arguments": ["--demote-after", "never"],
                **arguments,
            }
        )
        return Host(name, manager, self.plane(name, manager))

    def plane(self, name: str, manager: Manager, **arguments: Any) -> ControlPlane:
        """The control plane of a host, running."""
        plane = ControlPlane(
            self.folder / name,
            manager.socket,
            self.authority.host(self.folder / name / "pki", "127.0.0.1", "localhost"),
            **arguments,
        )
        self.exits.callback(lambda: self.log.info("%s: %s", name, plane.log))
        return self.exits.enter_context(plane)

    def source(self, host: Host, seed: int = 41) -> Guest:
        """A guest whose memory is filled, for the most part swapped out."""
        guest = self.booted(host.manager, arguments=host.plane.monitor(VM))
        guest.port.fill(WORKING_SET, seed=seed)
        return guest

    def destination(self, host: Host, **arguments: Any) -> Guest:
        """QEMU on a host, waiting for a migration."""
        words = [*host.plane.monitor(VM), "-S", "-incoming", "defer"]
        guest = self.guest(self.config(host.manager.socket, arguments=words, **arguments))
        guest.launch()
        return guest

    def assert_verifies(self, guest: Guest) -> None:
        """Every byte of the guest's memory is right."""
        result = guest.port.verify(timeout=SECONDS)
        self.assertTrue(result.verified, str(result))
        self.assertEqual(result.pages, WORKING_SET // 4096)


__all__ = ["LIMIT", "MIB", "SECONDS", "VM", "WORKING_SET", "Host", "MigrationTest"]
