# SPDX-License-Identifier: GPL-2.0-or-later
"""The program of the test guest, run on the host: everything else relies on what it says."""

import os
import pty
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from uffdmm_harness import HarnessError
from uffdmm_harness.places import TOP
from uffdmm_harness.port import GuestCorrupt, GuestPort

MIB = 1 << 20
PAGES = 2 * MIB // 4096


class PtyPort(GuestPort):
    """The program's port is a terminal here, as it is in the guest."""

    def __init__(self, controller: int) -> None:
        self._controller = controller
        self._pending = b""

    def send(self, command: str) -> None:
        os.write(self._controller, command.encode() + b"\n")

    def read(self, timeout: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        while b"\n" not in self._pending:
            wait = max(0.0, deadline - time.monotonic())
            assert select.select([self._controller], [], [], wait)[0], "no answer"
            self._pending += os.read(self._controller, 4096)
        return super().read(timeout)


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("guest") / "uffdmm-guest"
    sources = sorted(str(item) for item in (TOP / "tests/guest").glob("*.c"))
    warnings = ["-Wall", "-Wextra", "-Werror", "-fsanitize=undefined", "-fno-sanitize-recover"]
    command = ["gcc", "-std=gnu11", "-O2", *warnings, "-o", str(path), *sources]
    subprocess.run(command, check=True)
    return path


@pytest.fixture
def port(program: Path) -> Iterator[PtyPort]:
    controller, terminal = pty.openpty()
    process = subprocess.Popen([str(program), os.ttyname(terminal)])
    result = PtyPort(controller)
    assert result.read(10)["event"] == "ready"
    yield result
    result.send("poweroff")
    assert result.read(10)["event"] == "bye"
    assert process.wait(10) == 0
    os.close(terminal)
    os.close(controller)


def test_fill_then_verify(port: PtyPort) -> None:
    filled = port.fill(2 * MIB, seed=5)
    assert (filled["pages"], filled["seed"]) == (PAGES, 5)
    assert port.verify().verified


def test_span_leaves_the_rest_alone(port: PtyPort) -> None:
    port.fill(2 * MIB)
    quarter = PAGES // 4
    port.corrupt(page=quarter, offset=0)
    for pattern in ("random", "sequential", "hot"):
        assert port.run(pattern, 0.2, span=25).steps > 4 * PAGES
    # The control: the page was wrong all the time, and the first one behind the span.
    verified = port.verify()
    assert [record["page"] for record in verified.named] == [quarter]
    port.corrupt(page=quarter, offset=0)
    port.corrupt(page=quarter - 1, offset=0)
    with pytest.raises(GuestCorrupt):
        port.run("sequential", 0.2, span=25)


def test_span_is_checked(port: PtyPort) -> None:
    port.fill(2 * MIB)
    for span in (0, 101):
        with pytest.raises(HarnessError, match="span must be 1 to 100"):
            port.run("random", 0.1, span=span)


@pytest.mark.parametrize("pattern", ["random", "sequential", "hot"])
def test_patterns_write_and_verify(port: PtyPort, pattern: str) -> None:
    port.fill(2 * MIB)
    result = port.run(pattern, 0.3)
    assert result.pattern == pattern
    assert result.steps > 4 * PAGES
    verified = port.ask("verify", {"verified"}, 10)[-1]
    # A quarter of the steps write.
    assert int(verified["writes"]) == pytest.approx(result.steps / 4, rel=0.1)


@pytest.mark.parametrize("offset", [0, 7, 8, 2048, 4095])
@pytest.mark.parametrize("page", [0, 17, PAGES - 1])
@pytest.mark.parametrize("written", [False, True])
def test_one_flipped_bit_is_named(port: PtyPort, page: int, offset: int, written: bool) -> None:
    port.fill(2 * MIB)
    if written:
        port.run("random", 0.2)
    port.corrupt(page, offset)
    result = port.verify()
    assert not result.verified
    assert result.wrong_pages == 1
    assert result.named[0]["page"] == page
    assert result.named[0]["offset"] == offset // 8 * 8
    # The same bit again: whole as before.
    port.corrupt(page, offset)
    assert port.verify().verified


def test_each_wrong_page_counts_and_eight_are_named(port: PtyPort) -> None:
    port.fill(2 * MIB)
    for page in range(20):
        port.corrupt(page)
    result = port.verify()
    assert (result.wrong_pages, len(result.named)) == (20, 8)


def test_run_ends_at_a_wrong_stamp(port: PtyPort) -> None:
    port.fill(2 * MIB)
    for page in range(PAGES):
        port.corrupt(page, 0)
    records = port.ask("run pattern=sequential ms=5000", {"run-failed", "ran"}, 10)
    assert [item["event"] for item in records] == ["corrupt", "run-failed"]
    for page in range(PAGES):
        port.corrupt(page, 0)
    # Memory that was wrong once is not trusted again.
    assert not port.verify().verified


def test_stop_ends_an_endless_run(port: PtyPort) -> None:
    port.fill(2 * MIB)
    port.send("run pattern=random ms=0 report_ms=50")
    assert port.read(5)["event"] == "progress"
    port.ask("stop", {"ran"}, 5)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("verify", "nothing is filled"),
        ("run pattern=random ms=100", "nothing is filled"),
        ("run pattern=zigzag ms=100", "zigzag"),
        ("fill bytes=ten", "ten"),
        ("fill bytes=-1", "-1"),
        ("fill bytes=100", "at least one page"),
        ("corrupt page=1", "outside"),
        ("dance", "dance"),
        ("x" * 600, "longer"),
    ],
)
def test_bad_commands_are_answered(port: PtyPort, command: str, words: str) -> None:
    port.send(command)
    record = port.read(5)
    assert record["event"] == "error"
    assert words in str(record["text"])
    # What is left of an overlong line is a command of its own.
    if len(command) > 512:
        assert port.read(5)["event"] == "error"
    assert port.ask("memory", {"memory"}, 5)
