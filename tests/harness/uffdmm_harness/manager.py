# SPDX-License-Identifier: GPL-2.0-or-later
"""One uffdmm-manager in a folder of its own."""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from uffdmm.client import Manager as Client
from uffdmm.client import VirtualMachine

from . import HarnessError, places

_START_SECONDS = 10.0
_STOP_SECONDS = 5.0


class ManagerEnded(HarnessError):
    """The manager exited."""

    def __init__(self, status: int, log: str) -> None:
        super().__init__(f"the manager exited with status {status}: {log.strip()}")
        self.status = status
        self.log = log


class Manager:
    """Starts the manager, knows its socket, and stops it.

    :param limit: default limit of a VM as ``--limit`` takes it (``128M``, ``50%``)
    :param store: directory of the store; default: one in the manager's own folder
    :param store_size: bound of each volume as ``--store`` takes it
    :param tiers: words of ``--tier`` in order, in place of the store; ``{store}`` in them is its
        directory
    :param arguments: more arguments
    :param folder: below which its own folder with socket, log and store is made
    :param program: another one, such as that with the switches of tests
    :param wrapper: words in front of the command, to put it into a network namespace
    """

    def __init__(
        self,
        *,
        limit: str | None = None,
        store: Path | None = None,
        store_size: str | None = None,
        tiers: Sequence[str] = (),
        arguments: Sequence[str] = (),
        folder: Path = places.DISK_FOLDER,
        program: Path | None = None,
        wrapper: Sequence[str] = (),
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="uffdmm-manager-", dir=folder)
        self.path = Path(self._folder.name)
        self.socket = self.path / "manager.sock"
        self.store = store or self.path / "store"
        if store is None:
            self.store.mkdir()
        option = f"file:{self.store}" + (f",size={store_size}" if store_size else "")
        stores = [
            word for tier in tiers for word in ("--tier", tier.replace("{store}", str(self.store)))
        ] or ["--store", option]
        self._command = [
            *wrapper,
            str(program or places.manager()),
            *("--socket-path", str(self.socket), *stores),
            *(("--limit", limit) if limit else ()),
            *arguments,
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start it and wait for its socket.

        :raise ManagerEnded: it exited instead
        """
        with (self.path / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self.socket.exists():
            if self._process.poll() is not None:
                raise ManagerEnded(self._process.returncode, self.log)
            if time.monotonic() > deadline:
                raise HarnessError(f"the manager made no socket in time: {self.log.strip()}")
            time.sleep(0.01)
        return self

    @property
    def pid(self) -> int:
        """The acceptor's process."""
        if self._process is None:
            raise HarnessError("the manager has not been started")
        return self._process.pid

    @property
    def log(self) -> str:
        """All that it and its workers wrote so far."""
        try:
            return (self.path / "log").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    @property
    def client(self) -> Client:
        """A client of the Python package on this manager's socket."""
        return Client(self.socket)

    def vm(self, name: str) -> VirtualMachine:
        """A connection to the worker of a VM; close it after use."""
        return self.client.open_vm(name)

    def worker_pid(self, name: str) -> int:
        """The process that serves a VM."""
        with self.vm(name) as vm:
            return vm.statistics().worker_pid

    def kill(self) -> None:
        """SIGKILL for the acceptor and all of its workers."""
        victims = [entry.worker_pid for entry in self.client.list_vms()]
        for pid in (self.pid, *victims):
            os.kill(pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def stop(self) -> int:
        """SIGTERM, as an operator does it; the exit status.

        :raise HarnessError: it did not end quickly
        """
        process = self._process
        if process is None:
            return 0
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise HarnessError(
                    f"the manager did not end within {_STOP_SECONDS:.0f} s of SIGTERM"
                ) from None
        return process.returncode

    def close(self) -> None:
        """Stop it and remove its folder."""
        try:
            self.stop()
        finally:
            self._folder.cleanup()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
