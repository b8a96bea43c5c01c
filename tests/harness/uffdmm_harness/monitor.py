# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's monitor for programs that are not asynchronous, with a time-out on everything."""

import asyncio
import contextlib
from collections.abc import Container, Coroutine, Mapping
from pathlib import Path
from typing import Any, cast

from qemu.qmp import EventListener, QMPClient

_CLOSE_SECONDS = 5.0


class Monitor:
    """A connection that is made at once.

    :raise TimeoutError: QEMU does not greet within ``timeout`` seconds
    :raise qemu.qmp.ConnectError: it closes the connection
    """

    def __init__(self, path: Path, timeout: float) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = QMPClient("guest")
        self._events = EventListener()
        self._client.register_listener(self._events)
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

    def event(self, names: Container[str], timeout: float) -> tuple[str, Any]:
        """Name and data of the next event with one of these names; others before it are dropped.

        :raise TimeoutError: there is none in time
        """
        return cast(tuple[str, Any], self._wait(self._next_event(names), timeout))

    async def _next_event(self, names: Container[str]) -> tuple[str, Any]:
        while True:
            event = await self._client.events.get()
            if event["event"] in names:
                return str(event["event"]), event.get("data")

    def events(self) -> list[tuple[str, float]]:
        """Events that came before the last answer: name, and seconds since 1970 at QEMU."""
        return [
            (str(event["event"]), _seconds(cast(Mapping[str, int], event["timestamp"])))
            for event in self._events.clear()
        ]

    def close(self) -> None:
        """Hang up."""
        # A QEMU that was killed has hung up already, and the client reports that as an error.
        with contextlib.suppress(Exception):
            self._wait(self._client.disconnect(), _CLOSE_SECONDS)
        self._loop.close()


def _seconds(stamp: Mapping[str, int]) -> float:
    return stamp["seconds"] + stamp["microseconds"] / 1e6
