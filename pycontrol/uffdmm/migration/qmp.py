# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's monitor, as a migration needs it: every command has a time-out and a sentence."""

import asyncio
import contextlib
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from qemu.qmp import ExecuteError, QMPClient, QMPError

from ..errors import UffdmmError

_SECONDS = 20.0
_LOOK_SECONDS = 0.1


class QmpFailedError(UffdmmError):
    """QEMU cannot be reached, or refuses."""


class QmpSilentError(QmpFailedError):
    """QEMU is there, and does not answer: its main loop waits for something."""


class Qmp:
    """One connection to the monitor of a VM."""

    def __init__(self, vm: str, path: Path) -> None:
        self._vm, self._path = vm, path
        self._client = QMPClient(f"uffdmm-{vm}")

    async def connect(self) -> None:
        """Connect.

        :raise QmpFailedError: nobody listens, or somebody else is connected
        """
        if not self._path.exists():
            raise QmpFailedError(
                f"there is no monitor socket '{self._path}' of VM '{self._vm}'",
                "start QEMU with -qmp unix:PATH,server=on,wait=off, and name PATH by --qmp or in"
                " [migration] qmp",
            )
        try:
            async with asyncio.timeout(_SECONDS):
                await self._client.connect(str(self._path))
        except TimeoutError:
            await self.close()
            raise QmpFailedError(
                f"the monitor of VM '{self._vm}' at '{self._path}' does not greet",
                "it serves one client at a time: give QEMU another -qmp for uffdmm",
            ) from None
        except (QMPError, OSError) as error:
            raise QmpFailedError(
                f"cannot use the monitor of VM '{self._vm}' at '{self._path}': {error}"
            ) from None

    async def execute(self, command: str, /, **arguments: object) -> Any:
        """The return value of a command; ``_`` in names of arguments stands for ``-``.

        :raise QmpFailedError: QEMU refuses, hangs or has gone
        """
        given = {key.replace("_", "-"): value for key, value in arguments.items()}
        try:
            async with asyncio.timeout(_SECONDS):
                return await self._client.execute(command, cast(Mapping[str, object], given))
        except TimeoutError:
            raise QmpSilentError(
                f"QEMU of VM '{self._vm}' did not answer '{command}' within {_SECONDS:g} s"
            ) from None
        except ExecuteError as error:
            raise QmpFailedError(f"QEMU of VM '{self._vm}' refuses '{command}': {error}") from None
        except (QMPError, OSError) as error:
            raise QmpFailedError(
                f"QEMU of VM '{self._vm}' has gone or hung up: {error}".rstrip(": ")
            ) from None

    async def give(self, fd: int, name: str) -> None:
        """Let QEMU have a descriptor under a name.

        :raise QmpFailedError: QEMU refuses, hangs or has gone
        """
        try:
            self._client.send_fd_scm(fd)
        except (QMPError, OSError) as error:
            raise QmpFailedError(
                f"cannot hand a descriptor to QEMU of VM '{self._vm}': {error}"
            ) from None
        await self.execute("getfd", fdname=name)

    async def capabilities(self, wanted: Mapping[str, bool]) -> None:
        """Set migration capabilities."""
        await self.execute(
            "migrate-set-capabilities",
            capabilities=[{"capability": name, "state": on} for name, on in wanted.items()],
        )

    async def known_capabilities(self) -> dict[str, bool]:
        """All that this QEMU has."""
        return {
            item["capability"]: item["state"]
            for item in await self.execute("query-migrate-capabilities")
        }

    async def migration(self) -> dict[str, Any]:
        """What ``query-migrate`` says; ``status`` is ``none`` before the first."""
        info: dict[str, Any] = await self.execute("query-migrate")
        info.setdefault("status", "none")
        return info

    async def run_state(self) -> str:
        """``running``, ``paused``, ``inmigrate``, ``postmigrate`` or another."""
        return str((await self.execute("query-status"))["status"])

    async def quit(self) -> None:
        """End QEMU, and wait until it has hung up; it may have gone already.

        :raise QmpSilentError: it does not answer, or not end
        """
        try:
            async with asyncio.timeout(_SECONDS):
                await self.execute("quit")
                while True:  # until it has nobody left to answer
                    await asyncio.sleep(_LOOK_SECONDS)
                    await self.run_state()
        except TimeoutError:
            raise QmpSilentError(
                f"QEMU of VM '{self._vm}' did not end within {_SECONDS:g} s"
            ) from None
        except QmpSilentError:
            raise
        except QmpFailedError:
            return

    async def stream(self, name: str) -> socket.socket:
        """One end of a pair of sockets, of which QEMU has the other under ``name``."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            await self.give(theirs.fileno(), name)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        return ours

    async def close(self) -> None:
        """Hang up."""
        # A QEMU that has ended is reported as an error once more.
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_SECONDS):
                await self._client.disconnect()


def monitor_path(pattern: str, vm: str) -> Path:
    """``{vm}`` in the pattern becomes the name of the VM."""
    return Path(pattern.replace("{vm}", vm)).expanduser()
