# SPDX-License-Identifier: GPL-2.0-or-later
"""Mistakes that people make: each ends with one sentence that says what to do, not half a guest."""

import os
import shutil
import socket
import subprocess
import threading
from pathlib import Path

from uffdmm_test import LIMIT, MIB, RAM, SLACK, VM, WORKING_SET, UffdmmTest, places

from uffdmm._native import ffi, lib
from uffdmm_harness.machine import external_memory
from uffdmm_harness.manager import Manager, ManagerEnded
from uffdmm_harness.port import PortTimeout

NOBODY = 65534


class Peer:
    """Something that listens where a manager should, and says ``answer`` to whoever speaks."""

    def __init__(self, path: Path, answer: bytes) -> None:
        self._answer = answer
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.recv(4096)
            connection.sendall(self._answer)

    def close(self) -> None:
        self._listener.close()


def hello_reply(version: int) -> bytes:
    """The reply of a manager of another version to the first message of a connection."""
    body = bytes(ffi.buffer(ffi.new("struct uffdmm_hello_reply *")))
    header = ffi.new(
        "struct uffdmm_msg_header *",
        {
            "magic": lib.UFFDMM_MAGIC,
            "version": version,
            "min_version": version,
            "type": lib.UFFDMM_MSG_HELLO | lib.UFFDMM_MSG_REPLY,
            "length": len(body),
            "request_id": 1,
        },
    )
    return bytes(ffi.buffer(header)) + body


class BadSocket(UffdmmTest):
    """Whom the backend talks to."""

    def peer(self, answer: bytes) -> Path:
        path = self.folder / "peer.sock"
        self.exits.callback(Peer(path, answer).close)
        return path

    def test_missing(self) -> None:
        path = self.folder / "nothing.sock"
        text = self.assert_refused_at_start(self.config(path), str(path))
        self.assert_contains(text, "No such file or directory", "uffdmm-manager")

    def test_no_socket_but_a_file(self) -> None:
        path = self.folder / "file"
        path.touch()
        self.assert_refused_at_start(self.config(path), str(path))

    def test_left_behind_by_a_dead_manager(self) -> None:
        path = self.folder / "dead.sock"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        listener.close()
        self.assert_refused_at_start(
            self.config(path), str(path), "Connection refused", "uffdmm-manager"
        )

    def test_peer_that_speaks_something_else(self) -> None:
        path = self.peer(b"HTTP/1.1 400 Bad Request\r\n" + b"x" * 4096)
        self.assert_refused_at_start(self.config(path), "does not speak the uffdmm protocol")

    def test_manager_of_another_version(self) -> None:
        path = self.peer(hello_reply(lib.UFFDMM_VERSION + 7))
        self.assert_refused_at_start(self.config(path), "version", str(lib.UFFDMM_VERSION + 7))

    def test_peer_that_never_answers(self) -> None:
        path = self.peer(b"")
        self.assert_refused_at_start(self.config(path), "did not answer in time")


class BadRequest(UffdmmTest):
    """What the backend is asked for."""

    def test_size_not_a_multiple_of_the_page_size(self) -> None:
        manager = self.manager()
        config = self.config(manager.socket)
        config.objects = [external_memory(RAM + 1, manager.socket)]
        self.assert_refused_at_start(config, str(RAM + 1), "multiple of the page size", "4096")

    def test_second_vm_of_the_same_name(self) -> None:
        manager = self.manager()
        first = self.booted(manager)
        text = self.assert_refused_at_start(self.config(manager.socket), f"'{VM}'", "vm-name")
        self.assert_contains(text, str(first.pid))
        first.port.fill(WORKING_SET)
        self.assertTrue(first.port.verify().verified)

    def test_user_that_the_manager_does_not_know(self) -> None:
        manager = self.manager()
        self.assert_refused_for_nobody(manager, f"--allow-uid {NOBODY}")

    def test_no_permission_for_userfaultfd(self) -> None:
        manager = self.manager(arguments=["--allow-uid", str(NOBODY)])
        if os.access("/dev/userfaultfd", os.F_OK):
            mode = Path("/dev/userfaultfd").stat().st_mode
            if mode & 0o006:
                self.cancel("/dev/userfaultfd is open to everybody on this host")
        if int(Path("/proc/sys/vm/unprivileged_userfaultfd").read_text()):
            self.cancel("vm.unprivileged_userfaultfd allows everybody on this host")
        self.assert_refused_for_nobody(manager, "userfaultfd", "/dev/userfaultfd")
        self.wait_until(lambda: manager.client.list_vms() == [], "end of the half-started VM")

    def assert_refused_for_nobody(self, manager: Manager, *words: str) -> None:
        """QEMU as an unprivileged user that may reach the manager's socket."""
        if os.getuid():
            self.cancel("root is needed to become another user")
        # What belongs to root's home cannot be reached by others.
        self.folder.chmod(0o755)
        qemu = Path(shutil.copy2(places.qemu(), self.folder))
        manager.path.chmod(0o755)
        os.chown(manager.socket, NOBODY, NOBODY)
        wrapper = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        guest = self.guest(self.config(manager.socket), qemu=qemu, wrapper=wrapper)
        os.chown(guest.folder, NOBODY, NOBODY)
        self.assert_launch_refused(guest, *words)


class BadStore(UffdmmTest):
    """The store that the manager is given."""

    def assert_manager_ends(self, store: Path, *words: str) -> None:
        manager = Manager(store=store)
        self.exits.callback(manager.close)
        with self.assertRaises(ManagerEnded) as caught:
            manager.start()
        self.assertGreater(caught.exception.status, 0)
        self.assert_contains(caught.exception.log, str(store), *words)
        self.assertEqual(len(caught.exception.log.strip().splitlines()), 1)

    def test_missing(self) -> None:
        self.assert_manager_ends(self.folder / "nowhere")

    def test_no_directory_but_a_file(self) -> None:
        path = self.folder / "file"
        path.touch()
        self.assert_manager_ends(path)

    def test_too_small_for_the_guest(self) -> None:
        manager = self.manager(store_size="32M")
        self.assert_refused_at_start(
            self.config(manager.socket), "too small", "32 MiB", "raise a capacity"
        )
        self.wait_until(lambda: manager.client.list_vms() == [], "end of the half-started VM")

    def test_too_small_for_a_lower_limit(self) -> None:
        """A limit that the store cannot take is refused while the guest runs on with the old."""
        manager = self.manager(limit="192M", store_size="80M")
        guest = self.booted(manager)
        guest.qmp("uffdmm-set-policy", limit=64 * MIB)
        self.wait_until(
            lambda: "policy-error" in guest.qmp("uffdmm-query")[0]["backends"][0], "the refusal"
        )
        (vm,) = guest.qmp("uffdmm-query")
        self.assert_contains(vm["backends"][0]["policy-error"], "too small", "80 MiB")
        self.assertEqual(vm["stats"]["limit"], 192 * MIB)
        guest.port.fill(WORKING_SET, seed=41)
        self.assertTrue(guest.port.verify().verified)

    def test_just_large_enough(self) -> None:
        """Copies of pages that are in memory make room for pages that are not."""
        manager = self.manager(store_size="132M")
        guest = self.booted(manager)
        with self.resident_sampler(guest) as resident:
            guest.port.fill(WORKING_SET, seed=43)
            guest.port.run("random", 3)
            guest.port.run("sequential", 3)
            self.assertTrue(guest.port.verify().verified)
        self.assertLessEqual(resident.maximum, LIMIT + SLACK)
        stats = self.statistics(manager)
        self.assertLessEqual(stats.slots_total * 4096, 132 * MIB)
        self.assertEqual(stats.state.value, "running")

    def test_filesystem_full(self) -> None:
        if os.getuid():
            self.cancel("root is needed to mount a small file system")
        store = self.folder / "small"
        store.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=32M", "uffdmm-test", str(store)]
        subprocess.run(mount, check=True)
        self.exits.callback(subprocess.run, ["umount", str(store)], check=True)
        manager = self.manager(store=store)
        self.assert_refused_at_start(self.config(manager.socket), str(store), "32 MiB are free")
        self.wait_until(lambda: manager.client.list_vms() == [], "end of the half-started VM")
        self.assertEqual(list(store.iterdir()), [])

    def test_damaged_pages_never_reach_the_guest(self) -> None:
        manager = self.manager(limit="64M")
        guest = self.booted(manager)
        guest.port.fill(WORKING_SET, seed=42)
        (volume,) = manager.store.iterdir()
        with volume.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            for _ in range(size // MIB):
                file.write(os.urandom(MIB))
            file.flush()
            os.fsync(file.fileno())
        guest.port.send("run pattern=random ms=0 report_ms=100")
        with self.assertRaises(PortTimeout):
            while True:
                self.assertEqual(guest.port.read(4)["event"], "progress")
        stats = self.statistics(manager)
        self.assertGreater(stats.checksum_errors, 0)
        self.assertEqual(guest.qmp("uffdmm-query")[0]["stats"]["state"], "store-error")
        self.assert_contains(manager.log, "checksum")
