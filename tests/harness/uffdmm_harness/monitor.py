# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's monitor for programs that are not asynchronous, with a time-out on everything."""

import asyncio
import contextlib
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from qemu.qmp import QMPClient

_CLOSE_SECONDS = 5.0


class Monitor:
    """A connection that is made at once.

    :raise TimeoutError: QEMU does not greet within ``timeout`` seconds
    :raise qemu.qmp.ConnectError: it closes the connection
    """

    def __init__(self, path: Path, timeout: float) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = QMPClient("guest")
        try:
            self._wait(self._client.connect(str(path)), timeout)
        except BaseException:
            self.close()
            raise

    def _wait(self, work: Coroutine[Any, Any, Any], timeout: float) -> Any:
        return self._loop.run_until_complete(asyncio.wait_for(work, timeout))

    def execute(
        self, command: str, arguments: dict[str, Any], timeout: float, *, out_of_band: bool = False
    ) -> Any:
        """The return value of a command.

        :param out_of_band: have it executed in the thread that reads the monitor, ahead of others
        :raise qemu.qmp.ExecuteError: QEMU refuses
        :raise TimeoutError: no answer in time
        """
        return self._wait(self._client.execute(command, arguments, out_of_band), timeout)

    def close(self) -> None:
        """Hang up."""
        # A QEMU that was killed has hung up already, and the client reports that as an error.
        with contextlib.suppress(Exception):
            self._wait(self._client.disconnect(), _CLOSE_SECONDS)
        self._loop.close()
