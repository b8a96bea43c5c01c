# SPDX-License-Identifier: GPL-2.0-or-later
"""A process with memory whose faults are timed from inside (native/bench/bench_memory.c)."""

import json
import select
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from . import HarnessError, places

_ANSWER_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Touches:
    """Touches of pages that were not in memory."""

    samples: int
    p50_ns: int
    p99_ns: int
    mean_ns: int
    ns: int  # all of it, with the looking for missing pages


class MemoryProcess:
    """Owns the memory until it is closed.

    :param size: bytes
    :param region: socket of the manager and name of the VM; None: anonymous memory
    :param wrapper: words in front of the command, to pin it or to put it into a cgroup
    """

    def __init__(
        self,
        size: int,
        *,
        region: tuple[Path, str] | None = None,
        wrapper: Sequence[str] = (),
    ) -> None:
        where = [] if region is None else [str(region[0]), region[1]]
        self._command = [
            *wrapper,
            str(places.bench_program("bench-memory")),
            str(size),
            *where,
        ]
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # In a session of its own: it ends with us, not before us.
            start_new_session=True,
        )
        try:
            self.answer()
        except BaseException:
            self._end()
            raise
        return self

    def send(self, command: str) -> None:
        """Send a command; its answer is fetched later."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()

    def answer(self, timeout: float = _ANSWER_SECONDS) -> dict[str, Any]:
        """The answer of the oldest command that has none yet.

        :raise HarnessError: none came in time, the process ended, or it reports an error
        """
        process = self._process
        assert process is not None
        assert process.stdout is not None
        assert process.stderr is not None
        # One line an answer and one answer a command: nothing is left in the buffer of the pipe.
        ready, _, _ = select.select([process.stdout], [], [], timeout)
        if not ready:
            raise HarnessError(f"bench-memory has not answered for {timeout:.0f} s")
        line = process.stdout.readline()
        if not line:
            raise HarnessError(f"bench-memory ended: {process.stderr.read().strip()}")
        answer = json.loads(line)
        if "error" in answer:
            raise HarnessError(f"bench-memory says: {answer['error']}")
        if answer.get("wrong"):
            raise HarnessError(f"{answer['wrong']} words were wrong: memory was lost")
        assert isinstance(answer, dict)
        return answer

    def ask(self, command: str) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self.send(command)
        return self.answer()

    # -- what it can do ----------------------------------------------------

    def fill(self) -> None:
        """Write every page."""
        self.ask("fill")

    def resident(self) -> int:
        """Bytes in memory."""
        return int(self.ask("resident")["resident_bytes"])

    def random(self, count: int) -> Touches:
        """Touch pages that are not there, at random places."""
        return _touches(self.ask(f"random {count}"))

    def sweep(self) -> Touches:
        """Touch all pages that are not there, in order.

        :raise HarnessError: there is none
        """
        swept = _touches(self.ask("sweep"))
        if not swept.samples:
            raise HarnessError("no page was missing: the limit had no effect")
        return swept

    def raw_reads(self, path: Path, count: int) -> Touches:
        """Reads of a page at random places of a file, past the page cache."""
        return _touches(self.ask(f"raw {path} {count}"))

    def page_out(self) -> tuple[int, float]:
        """MADV_PAGEOUT of everything: pages that went, and the seconds that took."""
        answer = self.ask("pageout")
        return int(answer["pages"]), answer["ns"] / 1e9

    def await_resident(self, size: int, start: float) -> tuple[int, float]:
        """After ``send(f"await {size}")``: bytes that are resident, seconds since ``start``.

        :raise HarnessError: it did not come to that
        """
        answer = self.answer()
        if not answer["reached"]:
            raise HarnessError(
                f"{answer['resident_bytes']} bytes are still resident at a limit of {size}"
            )
        return int(answer["resident_bytes"]), answer["at_ns"] / 1e9 - start

    def _end(self) -> None:
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()


def _touches(answer: dict[str, Any]) -> Touches:
    names = ("samples", "p50_ns", "p99_ns", "mean_ns", "ns")
    return Touches(**{name: int(answer[name]) for name in names})


def now() -> float:
    """The clock of the process's answers."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)
