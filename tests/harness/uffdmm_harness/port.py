# SPDX-License-Identifier: GPL-2.0-or-later
"""The line protocol of the program in the guest (tests/guest/main.c says what it understands).

A guest whose memory cannot be had makes no step and sends nothing, so every wait has a time-out and
:class:`PortTimeout` is an ordinary outcome that tests ask for.
"""

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from . import HarnessError

Record = dict[str, int | float | str]


class PortTimeout(HarnessError):
    """The guest did not answer in time."""


class GuestCorrupt(HarnessError):
    """The program in the guest found a wrong byte."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run of steps achieved."""

    pattern: str
    steps: int
    seconds: float
    steps_per_s: float
    gap_max_ms: float


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """The outcome of a comparison of every byte."""

    verified: bool
    pages: int
    wrong_pages: int
    named: tuple[Record, ...]  # the first wrong pages: page, offset, expected, found


class GuestPort:
    """The host's end of the guest's control port."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(str(path))
        self._pending = b""

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def send(self, command: str) -> None:
        """Send one command and wait for nothing."""
        self._socket.sendall(command.encode() + b"\n")

    def fileno(self) -> int:
        """For select."""
        return self._socket.fileno()

    def continue_from(self, other: "GuestPort") -> None:
        """A guest that moved goes on here with the record that it had begun there."""
        self._pending, other._pending = other._pending + self._pending, b""

    def arrived(self) -> list[Record]:
        """The records that are here already; waits for none."""
        with contextlib.suppress(BlockingIOError):
            data = self._socket.recv(1 << 16, socket.MSG_DONTWAIT)
            if not data:
                raise HarnessError("QEMU closed the port of the guest: it has ended")
            self._pending += data
        *lines, self._pending = self._pending.split(b"\n")
        return [_record_of(line) for line in lines]

    def read(self, timeout: float) -> Record:
        """The next record.

        :raise PortTimeout: none came within ``timeout`` seconds
        """
        deadline = time.monotonic() + timeout
        while b"\n" not in self._pending:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data = self._socket.recv(4096)
            except TimeoutError:
                raise PortTimeout(f"the guest sent nothing for {timeout:.1f} s") from None
            except ConnectionResetError:
                data = b""
            if not data:
                raise HarnessError("QEMU closed the port of the guest: it has ended")
            self._pending += data
        line, self._pending = self._pending.split(b"\n", 1)
        return _record_of(line)

    def records(self, until: set[str], timeout: float) -> Iterator[Record]:
        """All records up to and including the first whose event is in ``until``.

        :raise HarnessError: the guest reports an error
        """
        deadline = time.monotonic() + timeout
        while True:
            record = self.read(max(0.001, deadline - time.monotonic()))
            if record["event"] == "error":
                raise HarnessError(f"the program in the guest says: {record['text']}")
            yield record
            if record["event"] in until:
                return

    def ask(self, command: str, until: set[str], timeout: float) -> list[Record]:
        """Send a command; all records of its answer."""
        self.send(command)
        return list(self.records(until, timeout))

    def fill(
        self,
        size: int,
        seed: int = 1,
        timeout: float = 120,
        progress: Callable[[Record], None] | None = None,
    ) -> Record:
        """Fill ``size`` bytes of guest memory with the content that ``seed`` stands for."""
        self.send(f"fill bytes={size} seed={seed}")
        for record in self.records({"filled"}, timeout):
            if progress:
                progress(record)
        return record

    def run(
        self,
        pattern: str,
        seconds: float,
        *,
        seed: int = 1,
        report_ms: int = 1000,
        span: int = 100,
        timeout: float | None = None,
        progress: Callable[[Record], None] | None = None,
    ) -> RunResult:
        """Touch pages for some seconds.

        :param span: per cent of the pages that are touched, from the first on
        :raise GuestCorrupt: a step met a wrong word
        """
        self.send(
            f"run pattern={pattern} ms={round(seconds * 1000)} seed={seed} report_ms={report_ms}"
            f" span={span}"
        )
        wrong: list[Record] = []
        for record in self.records({"ran", "run-failed"}, timeout or seconds + 60):
            if record["event"] == "corrupt":
                wrong.append(record)
            elif progress:
                progress(record)
        if record["event"] != "ran":
            raise GuestCorrupt(f"wrong memory met in a {pattern} run: {wrong}")
        return RunResult(
            pattern=pattern,
            steps=int(record["steps"]),
            seconds=float(record["seconds"]),
            steps_per_s=float(record["steps_per_s"]),
            gap_max_ms=float(record["gap_max_ms"]),
        )

    def verify(
        self, timeout: float = 120, progress: Callable[[Record], None] | None = None
    ) -> VerifyResult:
        """Have the guest compare every byte of every page."""
        self.send("verify")
        named: list[Record] = []
        for record in self.records({"verified", "verify-failed"}, timeout):
            if record["event"] == "corrupt":
                named.append(record)
            elif progress:
                progress(record)
        return VerifyResult(
            verified=record["event"] == "verified" and not named,
            pages=int(record["pages"]),
            wrong_pages=int(record.get("wrong_pages", 0)),
            named=tuple(named),
        )

    def corrupt(self, page: int, offset: int = 8) -> None:
        """Have the guest flip one bit of its memory."""
        self.ask(f"corrupt page={page} offset={offset}", {"corrupted"}, 10)

    def memory(self) -> Record:
        """``total_bytes`` and ``free_bytes`` of the guest."""
        return self.ask("memory", {"memory"}, 10)[-1]


def _record_of(line: bytes) -> Record:
    try:
        record = json.loads(line)
    except ValueError:
        raise HarnessError(f"the guest sent {line!r}, which is no JSON") from None
    if not isinstance(record, dict):
        raise HarnessError(f"the guest sent {line!r}, which is no record")
    return record
