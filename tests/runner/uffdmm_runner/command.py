# SPDX-License-Identifier: GPL-2.0-or-later
"""One child process: its own process group, a log file, a time limit.

While it runs its chosen lines are shown as they come, and a sign of life when
there are none.  When it has ended, nothing of its process group is left.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

POLL_SECONDS = 0.2
QUIET_SECONDS = 20.0
GRACE_SECONDS = 15.0

TIMED_OUT = 124
"""Exit status of a command that was ended by its time limit, as timeout(1) has it."""

NOT_FOUND = 127

START = time.monotonic()


def say(text: str) -> None:
    """A progress line with the time since the start."""
    elapsed = int(time.monotonic() - START)
    print(f"[{elapsed // 60:2d}:{elapsed % 60:02d}] {text}", flush=True)


@dataclass(frozen=True)
class Finished:
    status: int
    output: str
    log: Path
    seconds: float


def run(
    label: str,
    argv: Sequence[str | Path],
    *,
    log: Path,
    cwd: Path,
    timeout: float,
    env: Mapping[str, str] | None = None,
    show: Callable[[str], str | None] | None = None,
    stdout_only: bool = False,
) -> Finished:
    """Runs argv with no standard input.

    show(line) returns what to print of an output line, None for nothing.
    With stdout_only the returned output is standard output alone, while
    standard error goes to `log`.err and is what is shown.
    """
    started = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    errors = log.with_name(log.name + ".err") if stdout_only else log
    watched = errors if stdout_only else log
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(log.open("wb"))
        err = stack.enter_context(errors.open("wb")) if stdout_only else subprocess.STDOUT
        try:
            child = subprocess.Popen(
                [str(a) for a in argv],
                cwd=cwd,
                env=dict(os.environ) | dict(env or {}),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        except OSError as error:
            return Finished(NOT_FOUND, f"{argv[0]}: {error.strerror}", log, 0.0)
        try:
            status = watch(label, child, watched, started + timeout, show)
        finally:
            end_group(child)
    text = log.read_text(errors="replace")
    if status == TIMED_OUT:
        text += f"\n{label}: ended by its time limit of {timeout:.0f} s"
    elif stdout_only and status != 0:
        text += errors.read_text(errors="replace")
    return Finished(status, text, log, time.monotonic() - started)


def watch(
    label: str,
    child: subprocess.Popen[bytes],
    log: Path,
    deadline: float,
    show: Callable[[str], str | None] | None,
) -> int:
    """Follows the log until the child ends or its time does."""
    last_word = time.monotonic()
    began = last_word
    partial = ""
    with log.open(errors="replace") as lines:
        while True:
            status = child.poll()
            for line in (partial + lines.read()).splitlines(keepends=True):
                if not line.endswith("\n") and status is None:
                    partial = line
                    break
                partial = ""
                shown = show(line.rstrip()) if show else None
                if shown:
                    say(f"{label}: {shown}")
                    last_word = time.monotonic()
            if status is not None:
                return status
            now = time.monotonic()
            if now > deadline:
                return TIMED_OUT
            if now - last_word > QUIET_SECONDS:
                say(f"{label}: still running after {now - began:.0f} s")
                last_word = now
            time.sleep(POLL_SECONDS)


def end_group(child: subprocess.Popen[bytes]) -> None:
    """SIGTERM, some time, SIGKILL; for what the child left behind at once."""
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
