# SPDX-License-Identifier: GPL-2.0-or-later
"""An NBD server of our own, nbdkit or qemu-nbd, with a file behind it, on a UNIX socket."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from . import HarnessError, places

_START_SECONDS = 10.0
_PORT = 10809


class NbdMissingError(HarnessError):
    """The host has no such server."""


class NbdServer:
    """Serves a fresh file, by nbdkit unless said otherwise.

    A server that fails an assertion of its own is started again, as a service is: nbdkit before
    1.34 does so now and then when a client that was killed hangs up early.

    :param size: bytes of the file
    :param folder: below which a folder with the file and the socket is made
    :param program: ``nbdkit`` or ``qemu-nbd``
    :param filters: names of nbdkit's filters, outermost first
    :param parameters: ``key=value`` for them; ``{folder}`` is this server's own folder
    :param written: the file begins full of zeros, else full of holes
    :param address: to listen on by TCP (nbdkit only), in place of the socket
    :param wrapper: words in front of the command, to put it into a network namespace
    """

    def __init__(
        self,
        size: int,
        folder: Path = places.DISK_FOLDER,
        *,
        program: str = "nbdkit",
        filters: Sequence[str] = (),
        parameters: Sequence[str] = (),
        written: bool = True,
        address: str | None = None,
        wrapper: Sequence[str] = (),
    ) -> None:
        found = shutil.which(program)
        if found is None:
            raise NbdMissingError(f"{program} is not installed")
        self._folder = tempfile.TemporaryDirectory(prefix="uffdmm-nbd-", dir=folder)
        self.path = Path(self._folder.name)  # file, socket, log, and triggers of filters
        self.file = self.path / "file"
        self._socket = self.path / "socket"
        self._ready = self.path / "pid"
        self._size = size
        self._written = written
        self._address = address
        if program == "qemu-nbd":
            self._command = [
                *(found, "--socket", str(self._socket), "--format", "raw", "--persistent"),
                *("--shared", "0", "--discard", "unmap", str(self.file)),
            ]
        else:
            self._command = [
                *(*wrapper, found, "-f", "-P", str(self._ready)),
                *(("-i", address, "-p", str(_PORT)) if address else ("-U", str(self._socket))),
                *(f"--filter={name}" for name in filters),
                *("file", str(self.file), "cache=none"),
                *(word.replace("{folder}", str(self.path)) for word in parameters),
            ]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        """How a client names it."""
        if self._address:
            return f"nbd://{self._address}:{_PORT}"
        return f"nbd+unix:///?socket={self._socket}"

    @property
    def log(self) -> str:
        """All that it wrote so far."""
        try:
            return (self.path / "log").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def __enter__(self) -> Self:
        try:
            self._make_file()
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def _make_file(self) -> None:
        with self.file.open("wb") as file:
            if not self._written:
                file.truncate(self._size)
                return
            # The first write to a block costs more than later ones, which are to be measured.
            block = bytes(1 << 20)
            for _ in range(self._size >> 20):
                file.write(block)

    def start(self) -> None:
        """Serve the file as it is, also after :meth:`kill`.

        :raise HarnessError: the server does not answer
        """
        process = self._spawn()
        threading.Thread(target=self._keep, args=(process,), daemon=True).start()

    def _spawn(self) -> subprocess.Popen[bytes]:
        self._socket.unlink(missing_ok=True)  # nbdkit does not replace one that is left behind
        self._ready.unlink(missing_ok=True)
        with (self.path / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        process = self._process
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if process.poll() is not None or time.monotonic() > deadline:
                text = self.log.strip()
                raise HarnessError(
                    f"{Path(self._command[0]).name} does not serve: {text or '(no message)'}"
                )
            time.sleep(0.01)
        return process

    def _keep(self, process: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(HarnessError):
            while process.wait() == -signal.SIGABRT and self._process is process:
                # From this thread, for nbdkit ends when the thread does that started it.
                process = self._spawn()

    def _answers(self) -> bool:
        if self._address:
            # Its network may not be ours.
            return self._ready.exists()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            return probe.connect_ex(str(self._socket)) == 0

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise HarnessError("the NBD server has not been started")
        return self._process

    @property
    def pid(self) -> int:
        """Of the process that serves now.

        :raise HarnessError: there is none
        """
        return self._running().pid

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """SIGSTOP and at the end SIGCONT: connections stay, and nothing is answered."""
        pid = self.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL: what it had not written to the file is lost."""
        process = self._running()
        process.kill()
        process.wait()

    def close(self) -> None:
        """Stop it and remove its folder."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._folder.cleanup()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
