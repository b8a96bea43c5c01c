# SPDX-License-Identifier: GPL-2.0-or-later
"""Base of the functional tests: real guests on memory-backend-external, in QEMU's avocado style.

A test asks for what it needs (:meth:`UffdmmTest.manager`, :meth:`UffdmmTest.guest`) and never
cleans up: what was started is ended in reverse order when the test is over, whatever became of it.
Guests are small (256 MiB with a limit of 128 MiB), so that each test takes seconds under TCG.
"""

import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from avocado import Test
from qemu.qmp import ExecuteError

from uffdmm.stats import Stats
from uffdmm_harness import accel, hostmem, places
from uffdmm_harness.guest import Guest, QemuEnded
from uffdmm_harness.machine import MIB, MachineConfig, external_memory
from uffdmm_harness.manager import Manager
from uffdmm_harness.sampler import Sampler

RAM = 256 * MIB
LIMIT = 128 * MIB
WORKING_SET = 180 * MIB
# What the limit may be exceeded by at any sample.
SLACK = 8 * MIB
VM = "vm1"


class UffdmmTest(Test):
    """A test with managers and guests."""

    timeout = 120

    def setUp(self) -> None:
        self.exits = contextlib.ExitStack()
        # avocado's own work folder has too long a name for sockets.
        self.folder = Path(self.exits.enter_context(tempfile.TemporaryDirectory(prefix="uffdmm-")))
        self.accel = accel.choose()

    def tearDown(self) -> None:
        self.exits.close()

    def manager(self, **arguments: Any) -> Manager:
        """A running manager; the arguments are those of the harness's class."""
        manager = Manager(**{"limit": f"{LIMIT // MIB}M", **arguments})
        self.exits.enter_context(manager)
        # Before its folder goes.
        self.exits.callback(self._log_of, manager)
        return manager

    def _log_of(self, manager: Manager) -> None:
        for line in manager.log.splitlines():
            self.log.info("manager: %s", line)

    def config(self, socket: Path | None, **arguments: Any) -> MachineConfig:
        """A machine whose RAM is one memory-backend-external at ``socket`` (None: plain RAM)."""
        config = MachineConfig(accel=self.accel, **{"ram": RAM, "name": VM, **arguments})
        if socket and config.memory is None and not config.objects:
            config.memory = "mem0"
            config.objects = [external_memory(config.ram, socket)]
        return config

    def guest(self, config: MachineConfig, **arguments: Any) -> Guest:
        """A guest that is not started yet and will be ended in any case."""
        guest = Guest(config, **arguments)
        self.exits.callback(guest.close)
        return guest

    def booted(self, manager: Manager, **arguments: Any) -> Guest:
        """A booted guest on external memory of ``manager``."""
        return self.guest(self.config(manager.socket, **arguments)).boot()

    def statistics(self, manager: Manager, name: str = VM) -> Stats:
        """A snapshot of the statistics of a VM."""
        with manager.vm(name) as vm:
            return vm.statistics()

    def resident_sampler(self, guest: Guest) -> Sampler:
        """Samples of the guest memory that is in RAM, taken from the memfd that QEMU holds."""
        return Sampler(hostmem.MemfdFiles(guest.pid, guest.config.ram).resident)

    def wait_until(self, condition: Callable[[], bool], what: str, timeout: float = 20) -> None:
        """Poll for something that takes an unknown, short time."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                self.fail(f"{what}: not within {timeout:.0f} s")
            time.sleep(0.05)

    def assert_refused_at_start(self, config: MachineConfig, *words: str) -> str:
        """QEMU must exit with an error that contains all ``words``; its text."""
        return self.assert_launch_refused(self.guest(config), *words)

    def assert_launch_refused(self, guest: Guest, *words: str) -> str:
        """As :meth:`assert_refused_at_start`, of a guest made by the test."""
        try:
            guest.launch()
        except QemuEnded as ended:
            # A signal (negative) would be a crash, not a refusal.
            self.assertEqual(ended.status, 1, ended.stderr)
            self.assert_contains(ended.stderr, *words)
            return ended.stderr
        self.fail(f"QEMU started although it should refuse: {guest.config}")
        raise AssertionError

    def assert_qmp_refuses(self, guest: Guest, command: str, *words: str, **arguments: Any) -> str:
        """A monitor command must fail with an error that contains all ``words``; its text."""
        try:
            guest.qmp(command, **arguments)
        except ExecuteError as error:
            self.assert_contains(str(error), *words)
            return str(error)
        self.fail(f"{command} {arguments} succeeded although it should be refused")
        raise AssertionError

    def assert_contains(self, text: str, *words: str) -> None:
        """Each of ``words`` occurs in ``text``."""
        for word in words:
            self.assertIn(word, text)

    def has_device(self, name: str) -> bool:
        """Whether this QEMU was built with a device."""
        config = self.config(None, arguments=["-S"])
        guest = self.guest(config)
        guest.launch()
        try:
            found = guest.qmp("qom-list-types", abstract=False)
        finally:
            guest.kill()
        return any(item["name"] == name for item in found)


__all__ = ["LIMIT", "MIB", "RAM", "SLACK", "VM", "WORKING_SET", "UffdmmTest", "places"]
