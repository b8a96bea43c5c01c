# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosts between which VMs migrate: each has its control plane, and may have its own network.

A host on its own network is a network namespace; processes are put into it by ``ip netns exec``.
All are joined by a bridge in a namespace of its own, so the host that runs the tests keeps its
network as it is.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from . import HarnessError

_START_SECONDS = 60.0
_STOP_SECONDS = 20.0
_MIGRATE_SECONDS = 120.0

PROGRAM = ("-m", "uffdmm")
"""Python's arguments for the command as users have it."""


class Network:
    """Namespaces joined by a bridge; namespace i has the address ``10.213.7.(i + 1)``.

    :param names: of the hosts
    :raise HarnessError: not root, or no ``ip``
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._tag = f"um{os.getpid() % 100000}"
        self.names = list(names)
        self._made: list[str] = []

    def namespace(self, name: str) -> str:
        """What ``ip netns`` calls a host."""
        return f"{self._tag}-{name}"

    def address(self, name: str) -> str:
        """The address of a host."""
        return f"10.213.7.{self.names.index(name) + 1}"

    def wrapper(self, name: str) -> list[str]:
        """Words in front of a command that is to run on a host."""
        return ["ip", "netns", "exec", self.namespace(name)]

    def cut(self, name: str) -> None:
        """Pull the cable of a host."""
        self._ip("-n", self.namespace(name), "link", "set", "eth0", "down")

    def join(self, name: str) -> None:
        """Put it back."""
        self._ip("-n", self.namespace(name), "link", "set", "eth0", "up")

    def _ip(self, *words: str) -> None:
        try:
            done = subprocess.run(
                ["ip", *words], capture_output=True, text=True, check=False, timeout=20
            )
        except FileNotFoundError:
            raise HarnessError("there is no 'ip' on this host (package iproute2)") from None
        if done.returncode:
            raise HarnessError(f"ip {' '.join(words)}: {done.stderr.strip()}")

    def __enter__(self) -> Self:
        try:
            switch = self.namespace("switch")
            self._ip("netns", "add", switch)
            self._made.append(switch)
            self._ip("-n", switch, "link", "add", "bridge", "type", "bridge")
            self._ip("-n", switch, "link", "set", "bridge", "up")
            for name in self.names:
                host = self.namespace(name)
                self._ip("netns", "add", host)
                self._made.append(host)
                self._ip(
                    *("-n", host, "link", "add", "eth0", "type", "veth"),
                    *("peer", "name", f"to-{name}", "netns", switch),
                )
                self._ip("-n", switch, "link", "set", f"to-{name}", "master", "bridge", "up")
                self._ip("-n", host, "addr", "add", f"{self.address(name)}/24", "dev", "eth0")
                self._ip("-n", host, "link", "set", "lo", "up")
                self._ip("-n", host, "link", "set", "eth0", "up")
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Remove all of it."""
        while self._made:
            with contextlib.suppress(HarnessError):
                self._ip("netns", "del", self._made.pop())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class ControlPlane:
    """``uffdmm serve`` of one host, and ``uffdmm migrate`` on it.

    :param folder: for its configuration, its log and the monitor sockets of its VMs
    :param socket: of the host's manager
    :param certificates: its folder of certificates
    :param address: that it listens on
    :param wrapper: words in front of its commands
    :param more: TOML that follows in ``[migration]``
    :param vms: whose limits the control plane leaves as the manager has them
    """

    def __init__(
        self,
        folder: Path,
        socket: Path,
        certificates: Path,
        *,
        address: str = "127.0.0.1",
        wrapper: Sequence[str] = (),
        more: str = "",
        vms: Sequence[str] = ("vm1",),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._socket, self.address = folder, socket, address
        self._wrapper = list(wrapper)
        self._file = folder / "uffdmm.toml"
        self._file.write_text(
            f'[serve]\npolicy = "fixed"\n[migration]\nlisten = "{address}:0"\n'
            f'certificates = "{certificates}"\nqmp = "{folder}/{{vm}}.qmp"\n{more}\n'
            # What managers are started with; the control plane only wants to see one.
            f'[[tier]]\nname = "far"\ntype = "file"\npath = "{folder}"\n'
            + "".join(f"[vm.{vm}]\nopt-out = true\n" for vm in vms)
        )
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def monitor(self, vm: str) -> list[str]:
        """Arguments by which QEMU offers a VM's monitor to this control plane."""
        return ["-qmp", f"unix:{self.folder}/{vm}.qmp,server=on,wait=off"]

    @property
    def log(self) -> str:
        """What it has written so far."""
        file = self.folder / "serve.log"
        return file.read_text(errors="replace") if file.exists() else ""

    @property
    def pid(self) -> int:
        """Its process."""
        if self._process is None:
            raise HarnessError("the control plane has not been started")
        return self._process.pid

    @property
    def target(self) -> str:
        """Where other hosts find it."""
        return f"{self.address}:{self.port}"

    def start(self, program: Sequence[str] = PROGRAM) -> Self:
        """Start it and wait until it listens; where it did before, if it did."""
        began = len(self.log)
        if self.port:
            text = self._file.read_text().replace(f'{self.address}:0"', f'{self.target}"')
            self._file.write_text(text)
        with (self.folder / "serve.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command("serve", "--config", str(self._file), program=program),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + _START_SECONDS
        while True:
            found = re.search(r"event=migration-listening .*port=(\d+)", self.log[began:])
            if found:
                self.port = int(found[1])
                return self
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise HarnessError(f"the control plane does not listen: {self.log[began:].strip()}")
            time.sleep(0.02)

    def _command(self, *words: str, program: Sequence[str] = PROGRAM) -> list[str]:
        return [*self._wrapper, sys.executable, *program, "--socket", str(self._socket), *words]

    def migrate(
        self, vm: str, *words: str, program: Sequence[str] = PROGRAM
    ) -> "subprocess.Popen[str]":
        """Start ``uffdmm migrate`` on this host."""
        return subprocess.Popen(
            self._command("migrate", vm, "--config", str(self._file), *words, program=program),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def migrated(self, vm: str, *words: str, timeout: float = _MIGRATE_SECONDS) -> dict[str, Any]:
        """Migrate to the end; the report.

        :raise HarnessError: it failed, with what it said
        """
        report: dict[str, Any] = json.loads(self.commanded(vm, *words, "--json", timeout=timeout))
        return report

    def commanded(self, vm: str, *words: str, timeout: float = _MIGRATE_SECONDS) -> str:
        """What ``uffdmm migrate`` prints when it succeeds.

        :raise HarnessError: it failed, with what it said
        """
        status, out, err = self._ended(vm, *words, timeout=timeout)
        if status:
            raise HarnessError(f"uffdmm migrate {vm}: {status}: {err.strip()}")
        return out

    def refused(self, vm: str, *words: str) -> str:
        """Migrate, which must fail; what it said, in one line.

        :raise HarnessError: it did not fail
        """
        status, out, err = self._ended(vm, *words)
        if status <= 0:
            raise HarnessError(f"uffdmm migrate {vm}: {status}: {out}{err}")
        return " ".join(err.split())

    def _ended(
        self, vm: str, *words: str, timeout: float = _MIGRATE_SECONDS
    ) -> tuple[int, str, str]:
        with self.migrate(vm, *words) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                raise HarnessError(f"uffdmm migrate {vm}: no end in {timeout:g} s") from None
        return process.returncode, out, err

    def wait(self, timeout: float = 20) -> None:
        """Wait for it to die by itself.

        :raise HarnessError: it lives
        """
        if self._process is not None:
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                raise HarnessError(f"the control plane still runs after {timeout:g} s") from None
            self._process = None

    def kill(self) -> None:
        """Kill it, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """End it."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
