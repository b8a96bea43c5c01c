# SPDX-License-Identifier: GPL-2.0-or-later
"""The NBD servers that tests break on purpose."""

import contextlib
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from uffdmm_harness import HarnessError
from uffdmm_harness.nbdserver import NbdMissingError, NbdServer

MIB = 1 << 20
# The first bytes that a server sends to whoever connects.
GREETING = b"NBDMAGICIHAVEOPT"


def greeting(server: NbdServer, seconds: float) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(seconds)
        probe.connect(server.uri.partition("socket=")[2])
        return probe.recv(len(GREETING), socket.MSG_WAITALL)


@pytest.fixture(params=["nbdkit", "qemu-nbd"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NbdServer]:
    program: str = request.param
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    with NbdServer(4 * MIB, tmp_path, program=program, written=False) as started:
        yield started


def test_a_file_full_of_holes_is_served(server: NbdServer) -> None:
    assert greeting(server, 5) == GREETING
    assert server.file.stat().st_size == 4 * MIB
    assert server.file.stat().st_blocks == 0


def test_paused_it_answers_nothing_and_then_goes_on(server: NbdServer) -> None:
    with server.paused(), pytest.raises(TimeoutError):
        greeting(server, 0.3)
    assert greeting(server, 5) == GREETING


def test_killed_and_started_again_it_serves_the_same_file(server: NbdServer) -> None:
    server.file.write_bytes(b"kept".ljust(4 * MIB, b"\0"))
    server.kill()
    with pytest.raises(ConnectionRefusedError):
        greeting(server, 5)
    server.start()
    assert greeting(server, 5) == GREETING
    assert server.file.read_bytes().startswith(b"kept")


def test_what_fails_an_assertion_of_its_own_is_started_again(server: NbdServer) -> None:
    first = server.pid
    os.kill(first, signal.SIGABRT)
    deadline = time.monotonic() + 10
    greeted = b""
    while greeted != GREETING and time.monotonic() < deadline:
        time.sleep(0.05)
        with contextlib.suppress(OSError):
            greeted = greeting(server, 5)
    assert greeted == GREETING
    assert server.pid != first


def test_a_written_file_has_its_blocks(tmp_path: Path) -> None:
    if shutil.which("nbdkit") is None:
        pytest.skip("nbdkit is not installed")
    with NbdServer(4 * MIB, tmp_path) as started:
        assert started.file.stat().st_blocks * 512 >= 4 * MIB
    assert not list(tmp_path.iterdir())


def test_a_bad_parameter_is_told_and_nothing_left(tmp_path: Path) -> None:
    if shutil.which("nbdkit") is None:
        pytest.skip("nbdkit is not installed")
    server = NbdServer(4 * MIB, tmp_path, filters=["error"], parameters=["error-rate=often"])
    with pytest.raises(HarnessError, match=r"nbdkit does not serve: .*error-rate"), server:
        pass
    assert not list(tmp_path.iterdir())


def test_a_missing_program_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uffdmm_harness.nbdserver.shutil.which", lambda _: None)
    with pytest.raises(NbdMissingError, match="qemu-nbd is not installed"):
        NbdServer(4 * MIB, tmp_path, program="qemu-nbd")
