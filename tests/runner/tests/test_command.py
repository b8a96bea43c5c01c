# SPDX-License-Identifier: GPL-2.0-or-later
"""Child processes: status, time limit, nothing left behind."""

import time
from pathlib import Path

from uffdmm_runner.command import NOT_FOUND, TIMED_OUT, run


def test_output_and_status_are_kept(tmp_path: Path) -> None:
    shown: list[str] = []

    def show(line: str) -> None:
        shown.append(line)

    argv = ["sh", "-c", "echo one; echo two >&2; printf three; exit 3"]
    done = run("t", argv, log=tmp_path / "log", cwd=tmp_path, timeout=30, show=show)
    assert done.status == 3
    assert done.output == "one\ntwo\nthree"
    assert shown == ["one", "two", "three"]


def test_standard_output_alone(tmp_path: Path) -> None:
    argv = ["sh", "-c", "echo path; echo progress >&2"]
    done = run("t", argv, log=tmp_path / "log", cwd=tmp_path, timeout=30, stdout_only=True)
    assert done.output == "path\n"
    assert (tmp_path / "log.err").read_text() == "progress\n"


def test_program_that_does_not_exist_is_a_status(tmp_path: Path) -> None:
    done = run("t", ["./no-such-program"], log=tmp_path / "log", cwd=tmp_path, timeout=30)
    assert done.status == NOT_FOUND
    assert "no-such-program" in done.output


def test_time_limit_ends_the_whole_process_group(tmp_path: Path) -> None:
    argv = ["sh", "-c", "sleep 300 & echo $! ; wait"]
    started = time.monotonic()
    done = run("t", argv, log=tmp_path / "log", cwd=tmp_path, timeout=0.5)
    assert done.status == TIMED_OUT
    assert time.monotonic() - started < 20
    assert not alive(int(done.output.splitlines()[0]))


def test_process_left_behind_is_ended(tmp_path: Path) -> None:
    argv = ["sh", "-c", "sleep 300 >/dev/null 2>&1 & echo $!"]
    done = run("t", argv, log=tmp_path / "log", cwd=tmp_path, timeout=30)
    assert done.status == 0
    assert not alive(int(done.output))


def alive(pid: int) -> bool:
    """Whether it runs; what waits to be reaped does not."""
    for _ in range(50):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return False
        if state in "ZX":
            return False
        time.sleep(0.1)
    return True
