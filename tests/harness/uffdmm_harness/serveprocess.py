# SPDX-License-Identifier: GPL-2.0-or-later
"""``uffdmm serve`` as an operator runs it: its own process, its own configuration file."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from . import HarnessError
from .manager import Manager

_START_SECONDS = 20.0
_STOP_SECONDS = 10.0


class ServeProcess:
    """Starts the control plane of a manager and ends it; limits stay as they were then.

    :param manager: whose VMs; configuration file and log are in its folder
    :param settings: the table ``[serve]``, its keys as the file has them
    """

    def __init__(self, manager: Manager, settings: Mapping[str, int | float | str]) -> None:
        self._socket = manager.socket
        self._log = manager.path / "serve.log"
        self._file = manager.path / "uffdmm.toml"
        # The file is that of the manager as well: its tier stands in it, too.
        tier = {"name": "disk", "type": "file", "path": str(manager.store)}
        self._file.write_text("[[tier]]\n" + _lines(tier) + "\n[serve]\n" + _lines(settings))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        """All that it wrote so far."""
        try:
            return self._log.read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def check(self) -> None:
        """Whether it still runs and its policy answers.

        :raise HarnessError: it ended, or a line of its log is an error
        """
        if self._process is None or self._process.poll() is not None:
            raise HarnessError(f"'uffdmm serve' ended: {self.log.strip()[-2000:]}")
        errors = [line for line in self.log.splitlines() if line.startswith("<3>")]
        if errors:
            raise HarnessError(f"'uffdmm serve' reports: {errors[0]}")

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "uffdmm", "--socket", str(self._socket)),
                    *("serve", "--config", str(self._file)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        try:
            self._await_start()
        except BaseException:
            self._end()
            raise
        return self

    def _await_start(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while "event=started" not in self.log:
            self.check()
            if time.monotonic() > deadline:
                raise HarnessError(f"'uffdmm serve' did not start in {_START_SECONDS:.0f} s")
            time.sleep(0.02)

    def _end(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.check()
        finally:
            self._end()


def _lines(table: Mapping[str, int | float | str]) -> str:
    return "".join(f"{key} = {_toml(value)}\n" for key, value in table.items())


def _toml(value: float | str) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)
