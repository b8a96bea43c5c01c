# SPDX-License-Identifier: GPL-2.0-or-later
"""One QEMU process with the test guest in it."""

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from qemu.qmp import ConnectError

from . import HarnessError, places
from .machine import MachineConfig
from .monitor import Monitor
from .port import GuestPort, PortTimeout

BOOT_SECONDS = 60.0


class QemuEnded(HarnessError):
    """QEMU exited before the guest was up."""

    def __init__(self, status: int, stderr: str) -> None:
        super().__init__(f"QEMU exited with status {status}: {stderr.strip() or '(no message)'}")
        self.status = status
        self.stderr = stderr


class Guest:
    """Starts QEMU, gives access to its monitor and to the program in the guest, and ends it.

    :param config: the machine
    :param qemu: the binary, default: the one with the series
    :param wrapper: words in front of the command, to pin it or to put it into a cgroup
    """

    def __init__(
        self,
        config: MachineConfig,
        *,
        qemu: Path | None = None,
        wrapper: Sequence[str] = (),
    ) -> None:
        self.config = config
        self._qemu = qemu or places.qemu()
        self._wrapper = list(wrapper)
        self._folder = tempfile.TemporaryDirectory(prefix="uffdmm-guest-")
        self.folder = Path(self._folder.name)  # sockets and logs
        self._process: subprocess.Popen[bytes] | None = None
        self._monitor: Monitor | None = None
        self._port: GuestPort | None = None

    # -- access ------------------------------------------------------------

    @property
    def pid(self) -> int:
        """QEMU's process."""
        return self._running().pid

    @property
    def port(self) -> GuestPort:
        """The program in the guest."""
        if self._port is None:
            raise HarnessError("the guest has not been booted")
        return self._port

    @property
    def stderr(self) -> str:
        """What QEMU wrote to its standard error so far."""
        return self._read("stderr")

    @property
    def console(self) -> str:
        """What the guest's kernel wrote so far."""
        return self._read("console")

    def _read(self, name: str) -> str:
        try:
            return (self.folder / name).read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise HarnessError("QEMU has not been started")
        return self._process

    def qmp(
        self, command: str, timeout: float = 10, *, out_of_band: bool = False, **arguments: Any
    ) -> Any:
        """Execute a monitor command; its return value.

        :param out_of_band: do not queue it behind others, nor wait for QEMU's main loop
        :raise qemu.qmp.ExecuteError: QEMU refuses
        :raise TimeoutError: no answer in time
        """
        if self._monitor is None:
            raise HarnessError("QEMU's monitor is not connected")
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        return self._monitor.execute(command, named, timeout, out_of_band=out_of_band)

    def event(self, *names: str, timeout: float = 20) -> tuple[str, Any]:
        """Name and data of the next of these events of the monitor; others are dropped.

        :raise TimeoutError: there is none in time
        """
        if self._monitor is None:
            raise HarnessError("QEMU's monitor is not connected")
        return self._monitor.event(names, timeout)

    def events(self) -> list[tuple[str, float]]:
        """Events of the monitor since the last call: name, and seconds since 1970."""
        self.qmp("query-status")
        assert self._monitor is not None
        return self._monitor.events()

    def hmp(self, command: str) -> str:
        """Execute a command of the human monitor; its text."""
        return str(self.qmp("human-monitor-command", command_line=command))

    # -- life --------------------------------------------------------------

    def launch(self, timeout: float = 30) -> None:
        """Start QEMU and connect to its monitor; the guest begins to boot.

        :raise QemuEnded: it exited instead
        """
        for name in ("qmp", "port", "console", "stderr"):
            (self.folder / name).unlink(missing_ok=True)
        command = [
            *self._wrapper,
            str(self._qemu),
            *self.config.command(
                self.folder / "qmp", self.folder / "port", self.folder / "console"
            ),
        ]
        with (self.folder / "stderr").open("wb") as stderr:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr
            )
        deadline = time.monotonic() + timeout
        self._wait_for_file("qmp", deadline)
        self._monitor = self._connect_monitor(deadline)
        self._wait_for_file("port", deadline)
        self._port = GuestPort(self.folder / "port")

    def _connect_monitor(self, deadline: float) -> Monitor:
        # The socket exists before QEMU listens, and that before it has made its objects: a refusal
        # may end it only now.
        while True:
            try:
                return Monitor(self.folder / "qmp", max(1, deadline - time.monotonic()))
            except (ConnectError, TimeoutError) as error:
                self._raise_if_ended(wait=0.2)
                if time.monotonic() > deadline:
                    raise HarnessError(
                        f"QEMU's monitor does not answer: {error!r}; {self.stderr.strip()}"
                    ) from error

    def _wait_for_file(self, name: str, deadline: float) -> None:
        while not (self.folder / name).exists():
            self._raise_if_ended()
            if time.monotonic() > deadline:
                raise HarnessError(f"QEMU did not open its {name} in time; {self.stderr.strip()}")
            time.sleep(0.01)

    def _raise_if_ended(self, wait: float = 0) -> None:
        process = self._running()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait) if wait else process.poll()
        if process.returncode is not None:
            raise QemuEnded(process.returncode, self.stderr)

    def boot(self, timeout: float = BOOT_SECONDS) -> Self:
        """Start QEMU and wait until the program in the guest reports."""
        self.launch()
        deadline = time.monotonic() + timeout
        try:
            while self.port.read(deadline - time.monotonic())["event"] != "ready":
                pass
        except PortTimeout:
            raise PortTimeout(
                f"the guest did not boot in {timeout:.0f} s; its console ends with "
                f"{self.console[-400:]!r}"
            ) from None
        except HarnessError:
            self._raise_if_ended(wait=2)
            raise
        return self

    @property
    def ended(self) -> bool:
        """Whether QEMU has exited."""
        return self._running().poll() is not None

    def wait(self, timeout: float = 20) -> int:
        """Wait for QEMU to exit; its status."""
        try:
            return self._running().wait(timeout)
        except subprocess.TimeoutExpired:
            raise HarnessError(f"QEMU did not exit in {timeout:.0f} s") from None

    def power_off(self, timeout: float = 20) -> int:
        """Let the guest switch itself off."""
        self.port.send("poweroff")
        return self.wait(timeout)

    def kill(self) -> None:
        """End QEMU whatever it is doing: SIGTERM does not reach one that waits in a fault."""
        if self._port is not None:
            self._port.close()
            self._port = None
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None
        if self._process is not None:
            self._process.wait()

    def close(self) -> None:
        """End QEMU and remove its folder."""
        self.kill()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def pin_to(cpu: int) -> list[str]:
    """Words in front of a command that keep it on one CPU."""
    if cpu not in os.sched_getaffinity(0):
        raise HarnessError(f"cpu {cpu} is not among those this process may use")
    return ["taskset", "--cpu-list", str(cpu)]
