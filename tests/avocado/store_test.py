# SPDX-License-Identifier: GPL-2.0-or-later
"""Base of the tests of stores: small guests that step, wait for their store, and go on.

A guest that waits makes no step and sends nothing, so silence is what is looked for.  What QEMU and
the manager report then tells a guest that has to wait from one that is merely slow.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from uffdmm_test import MIB, VM, UffdmmTest

from uffdmm.stats import TierStats
from uffdmm_harness.guest import Guest
from uffdmm_harness.manager import Manager
from uffdmm_harness.nbdserver import NbdMissingError, NbdServer
from uffdmm_harness.port import PortTimeout

# The kernel leaves the guest about 110 of these.
STORE_RAM = 160 * MIB
STORE_LIMIT = 64 * MIB
STORE_WORKING_SET = 88 * MIB
_PAGE = 4096
# Reports are due every 100 ms.
_SILENCE_SECONDS = 3.0
_PATIENCE_SECONDS = 60.0


class StoreTest(UffdmmTest):
    """A test with tiers of all kinds."""

    timeout = 300

    def store_manager(self, *tiers: str, **arguments: Any) -> Manager:
        """A manager with these tiers, nothing demoted unless the test says so."""
        arguments.setdefault("arguments", ["--demote-after", "never"])
        return self.manager(**{"limit": f"{STORE_LIMIT // MIB}M", "tiers": tiers, **arguments})

    def nbd_server(self, size: int = 2 * STORE_RAM, **arguments: Any) -> NbdServer:
        """An NBD server that runs.  To be asked for before the manager, which ends first then."""
        try:
            server = NbdServer(size, **{"written": False, **arguments})
        except NbdMissingError as reason:
            self.cancel(str(reason))
        return self.exits.enter_context(server)

    def tiers(self, manager: Manager, name: str = VM) -> dict[str, TierStats]:
        """A snapshot of the statistics of all tiers of a VM, by their names."""
        with manager.vm(name) as vm:
            return {tier.name: tier for tier in vm.tiers()}

    def uffdmm(self, manager: Manager, *words: str) -> Any:
        """What a command of the command line prints as JSON."""
        command = [sys.executable, "-m", "uffdmm", "--socket", str(manager.socket), *words]
        done = subprocess.run(
            [*command, "--json"], capture_output=True, text=True, check=False, timeout=30
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    # -- a guest that steps ------------------------------------------------

    def stepping(self, manager: Manager, seed: int, write: int = 25) -> Guest:
        """A guest that touches its working set at random, without end.

        :param write: percentage of the steps that change their page; with 0 every page has been
            stored before, so that evictions write nothing
        """
        guest = self.booted(manager, ram=STORE_RAM)
        guest.port.fill(STORE_WORKING_SET, seed=seed)
        for _ in range(0 if write else 2):
            self.assertTrue(guest.port.verify().verified)
        guest.port.send(f"run pattern=random ms=0 report_ms=100 write={write}")
        self.assert_steps(guest, 3)
        return guest

    def assert_steps(self, guest: Guest, reports: int = 5) -> None:
        """The guest makes steps, none of which met a wrong word."""
        for _ in range(reports):
            record = guest.port.read(_PATIENCE_SECONDS)
            self.assertEqual(record["event"], "progress", str(record))

    def assert_waits(self, guest: Guest) -> None:
        """The guest makes no step any more; those until then met correct memory."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < deadline:
            try:
                record = guest.port.read(_SILENCE_SECONDS)
            except PortTimeout:
                return
            self.assertEqual(record["event"], "progress", str(record))
        self.fail("the guest still makes steps although its store does not work")

    def assert_verifies(self, guest: Guest) -> None:
        """The guest goes on by itself, and every byte of its memory is right."""
        self.assert_steps(guest)
        guest.port.send("stop")
        *_, last = guest.port.records({"ran", "run-failed"}, _PATIENCE_SECONDS)
        self.assertEqual(last["event"], "ran", str(last))
        result = guest.port.verify(timeout=2 * _PATIENCE_SECONDS)
        self.assertTrue(result.verified, str(result))
        self.assertEqual(result.pages, STORE_WORKING_SET // _PAGE)

    # -- what is reported --------------------------------------------------

    def query(self, guest: Guest) -> Any:
        """The statistics that QEMU shows, asked for as one asks a QEMU that hangs."""
        return guest.qmp("uffdmm-query", out_of_band=True)[0]["stats"]

    def query_tier(self, guest: Guest, name: str) -> Any:
        """One of the tiers in them."""
        (tier,) = (tier for tier in self.query(guest)["tiers"] if tier["name"] == name)
        return tier

    def assert_reported(
        self, manager: Manager, guest: Guest, tier: str, state: str, *words: str
    ) -> None:
        """QEMU and the command line both show the tier in this state, and the latter why."""

        def shown() -> tuple[str, str, str]:
            report = self.uffdmm(manager, "tiers", VM)["vms"][0]["tiers"]
            (found,) = (item for item in report if item["name"] == tier)
            return self.query_tier(guest, tier)["state"], found["state"], found["last_error"]

        def as_expected() -> bool:
            by_qemu, by_manager, error = shown()
            return by_qemu == by_manager == state and all(word in error for word in words)

        self.wait_for_report(as_expected, lambda: f"{tier} {state} {words}, found {shown()}")

    def assert_state(self, guest: Guest, state: str) -> None:
        """QEMU shows the VM in this state."""
        self.wait_for_report(
            lambda: self.query(guest)["state"] == state,
            lambda: f"state {state}, found {self.query(guest)['state']}",
        )

    def wait_for_report(self, condition: Callable[[], bool], what: Callable[[], str]) -> None:
        """As :meth:`wait_until`; ``what`` is asked for at the end."""
        deadline = time.monotonic() + 20
        while not condition():
            if time.monotonic() > deadline:
                self.fail(f"not reported: {what()}")
            time.sleep(0.1)

    # -- damage ------------------------------------------------------------

    @contextmanager
    def worker_stopped(self, manager: Manager) -> Iterator[None]:
        """Nothing is read or written by the worker meanwhile."""
        pid = manager.worker_pid(VM)
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(0.3)  # for what the disk, or a server, has got already
            yield
        finally:
            os.kill(pid, signal.SIGCONT)


class Damage:
    """Pages of a store whose bytes have changed, and the way back.

    While a store is damaged a manager may still write to it: what is no longer as the damage left
    it was written since, and stays.

    :param path: file of the volume
    :param first: number of the first page that is one of the guest's
    """

    def __init__(self, path: Path, first: int = 1) -> None:
        self._path = path
        self._size = path.stat().st_size
        self._pages: dict[int, bytes] = {}  # by number, as they were
        with path.open("rb") as file:
            for number in range(self._size // _PAGE):
                page = file.read(_PAGE)
                if number >= first and page.count(0) != _PAGE:
                    self._pages[number] = page
        self._damaged: Callable[[bytes], bytes] | None = None

    def __len__(self) -> int:
        """Pages of the guest that are in the volume, those given back not long ago included."""
        return len(self._pages)

    def flip(self, every: int = 4) -> None:
        """One byte of every so manieth page becomes another."""
        self._pages = dict(list(self._pages.items())[::every])
        self._damaged = lambda page: page[:100] + bytes([page[100] ^ 0x40]) + page[101:]
        self._write(self._damaged)

    def truncate(self) -> None:
        """The file ends where half of the pages are."""
        numbers = list(self._pages)
        cut = numbers[len(numbers) // 2]
        self._pages = {number: page for number, page in self._pages.items() if number >= cut}
        self._damaged = lambda _: bytes(_PAGE)
        os.truncate(self._path, cut * _PAGE)

    def repair(self) -> None:
        """Every page is as it was, unless it was written since."""
        damaged = self._damaged
        assert damaged is not None
        if self._path.stat().st_size < self._size:
            os.truncate(self._path, self._size)
        with self._path.open("rb") as file:
            for number, page in list(self._pages.items()):
                file.seek(number * _PAGE)
                if file.read(_PAGE) != damaged(page):
                    del self._pages[number]
        self._write(lambda page: page)

    def _write(self, change: Callable[[bytes], bytes]) -> None:
        with self._path.open("r+b") as file:
            for number, page in self._pages.items():
                file.seek(number * _PAGE)
                file.write(change(page))
            file.flush()
            # The manager reads past the page cache.
            os.fsync(file.fileno())


__all__ = ["STORE_LIMIT", "STORE_RAM", "STORE_WORKING_SET", "Damage", "StoreTest"]
