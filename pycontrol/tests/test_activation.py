# SPDX-License-Identifier: GPL-2.0-or-later
"""The manager on a socket that somebody else made, as a service manager does it."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from uffdmm import Manager

TOP = Path(__file__).parents[2]
pytestmark = pytest.mark.manager

# Descriptor 3 and the two variables, and nothing between: LISTEN_PID names the program itself.
AS_SYSTEMD = 'export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@"'
OF_ANOTHER = 'export LISTEN_PID=1 LISTEN_FDS=1; exec "$@"'
SEVERAL = 'export LISTEN_PID=$$ LISTEN_FDS=2; exec "$@"'


@pytest.fixture(scope="module")
def program() -> Path:
    path = Path(os.environ.get("UFFDMM_MANAGER", TOP / "build/native/native/uffdmm-manager"))
    if not os.access(path, os.X_OK):
        pytest.skip(f"no manager at {path}: build it, or set UFFDMM_MANAGER")
    return path


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.bind(str(tmp_path / "m.sock"))
    made.listen(8)
    yield made
    made.close()


def start(
    program: Path, passed: socket.socket, script: str, store: Path, *arguments: str
) -> subprocess.Popen[str]:
    """The manager with the socket as its descriptor 3."""
    store.mkdir(exist_ok=True)
    saved = os.dup(3) if Path("/proc/self/fd/3").exists() else -1
    try:
        if passed.fileno() != 3:
            os.dup2(passed.fileno(), 3)
        return subprocess.Popen(
            [
                *("/bin/sh", "-c", script, "sh", str(program)),
                *("--tier", f"disk=file,path={store}", *arguments),
            ],
            pass_fds=[3],
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        if saved >= 0:
            os.dup2(saved, 3)
            os.close(saved)
        elif passed.fileno() != 3:
            os.close(3)


def refusal(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=10)
    return process.returncode, errors


@pytest.mark.parametrize("arguments", [[], ["--fd", "3"]])
def test_a_start_by_a_service_manager(
    program: Path, listener: socket.socket, tmp_path: Path, arguments: list[str]
) -> None:
    path = tmp_path / "m.sock"
    # Who connects before the manager runs waits, and is answered.
    early = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    early.connect(str(path))
    process = start(program, listener, AS_SYSTEMD, tmp_path / "store", *arguments)
    try:
        assert Manager(path, timeout=10).list_vms() == []
        early.close()
        process.terminate()
        assert process.wait(10) == 0
        # The socket is the service manager's: the next start needs it.
        assert path.exists()
        again = start(program, listener, AS_SYSTEMD, tmp_path / "store", *arguments)
        try:
            assert Manager(path, timeout=10).list_vms() == []
        finally:
            again.terminate()
            again.communicate(timeout=10)
    finally:
        process.kill()
        process.communicate()


def test_sockets_of_another_process_are_not_ours(
    program: Path, listener: socket.socket, tmp_path: Path
) -> None:
    code, errors = refusal(start(program, listener, OF_ANOTHER, tmp_path / "store"))
    assert code == 2
    assert "exactly one of --socket-path and --fd is needed" in errors


def test_several_sockets(program: Path, listener: socket.socket, tmp_path: Path) -> None:
    code, errors = refusal(start(program, listener, SEVERAL, tmp_path / "store"))
    assert code == 2
    assert "passes several sockets: give one" in errors


def test_a_socket_that_does_not_listen(program: Path, tmp_path: Path) -> None:
    silent = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with silent:
        code, errors = refusal(start(program, silent, AS_SYSTEMD, tmp_path / "store"))
    assert code == 1
    assert "descriptor 3 is not a UNIX stream socket that listens" in errors


def test_a_descriptor_that_is_not_open(program: Path, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    done = subprocess.run(
        [program, "--fd", "77", "--tier", f"disk=file,path={tmp_path / 'store'}"],
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    assert done.returncode == 1
    assert "descriptor 77 is not open" in done.stderr


def test_through_the_command_of_the_unit(
    program: Path, listener: socket.socket, tmp_path: Path
) -> None:
    """What uffdmm-manager.service runs: ``uffdmm manager -- --fd 3`` keeps process and socket."""
    store = tmp_path / "store"
    store.mkdir()
    config = tmp_path / "uffdmm.toml"
    config.write_text(f'[[tier]]\nname = "disk"\ntype = "file"\npath = "{store}"\n')
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "uffdmm-manager").symlink_to(program)
    # Else the program beside the interpreter is taken, if there is one.
    code = f"import sys; sys.argv[0] = {str(folder / 'uffdmm')!r}; sys.path[:0] = {sys.path!r};"
    code += "from uffdmm.cli.app import main; sys.exit(main())"
    words = [sys.executable, "-c", code, "manager", "--config", str(config), "--", "--fd", "3"]
    saved = os.dup(3) if Path("/proc/self/fd/3").exists() else -1
    if listener.fileno() != 3:
        os.dup2(listener.fileno(), 3)
    process = subprocess.Popen(words, pass_fds=[3])
    if saved >= 0:
        os.dup2(saved, 3)
        os.close(saved)
    elif listener.fileno() != 3:
        os.close(3)
    try:
        assert Manager(tmp_path / "m.sock", timeout=20).list_vms() == []
        deadline = time.monotonic() + 5
        while Path(f"/proc/{process.pid}/comm").read_text() != "uffdmm-manager\n":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.terminate()
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
