# SPDX-License-Identifier: GPL-2.0-or-later
"""What the client makes of replies that break the protocol.  Each also checks for leaked fds."""

import dataclasses
import time
from pathlib import Path

import pytest

from fake_manager import FakeManager, Outgoing, memfd_of, struct_bytes
from uffdmm import (
    ConnectError,
    LinkLostError,
    Manager,
    ManagerError,
    ProtocolError,
    VersionError,
    VmNameError,
)
from uffdmm._native import lib
from uffdmm.wire import Connection


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"magic": 0x12345678}, ProtocolError, "does not speak the uffdmm protocol"),
        ({"version": 9, "min_version": 8}, VersionError, "versions 8 to 9, this program 3 to 3"),
        ({"version": 0, "min_version": 0}, VersionError, "versions 0 to 0"),
        ({"length": lib.UFFDMM_PAYLOAD_MAX + 1}, ProtocolError, "16385 bytes of payload"),
        ({"length": 0xFFFFFFFF}, ProtocolError, "4294967295 bytes of payload"),
        ({"length": 3}, ProtocolError, "sent 3 bytes where struct uffdmm_hello_reply has"),
        ({"nr_fds": lib.UFFDMM_FDS_MAX + 1}, ProtocolError, "announced 17 descriptors"),
        ({"nr_fds": 1}, ProtocolError, "announced 1 descriptors and sent 0"),
        ({"type": lib.UFFDMM_MSG_HELLO}, ProtocolError, "of type 0x1$"),
        ({"type": lib.UFFDMM_MSG_LIST | lib.UFFDMM_MSG_REPLY}, ProtocolError, "of type 0x8009"),
        ({"request_id": 77}, ProtocolError, "answered request 1 of type 1 with message 77"),
        ({"status": 5}, ProtocolError, "impossible status 5"),
        ({"status": -5}, ProtocolError, "struct uffdmm_error has 256"),
    ],
)
def test_bad_header(
    fake: FakeManager,
    manager: Manager,
    change: dict[str, int],
    error: type[Exception],
    words: str,
) -> None:
    def spoil(reply: Outgoing) -> Outgoing:
        reply.header |= change
        return reply

    fake.tamper = spoil
    with pytest.raises(error, match=words):
        manager.list_vms()


@pytest.mark.parametrize("version", [(3, 1), (9, 0)])
def test_newer_peer_that_still_understands_us(
    fake: FakeManager, manager: Manager, version: tuple[int, int]
) -> None:
    def newer(reply: Outgoing) -> Outgoing:
        reply.header["version"], reply.header["min_version"] = version
        return reply

    fake.tamper = newer
    assert [entry.vm_name for entry in manager.list_vms()] == ["demo"]


@pytest.mark.parametrize("kept", [1, 31, 32, 37])
def test_truncated_reply(fake: FakeManager, manager: Manager, kept: int) -> None:
    def cut(reply: Outgoing) -> Outgoing:
        return dataclasses.replace(reply, raw=reply.encode()[:kept], close_after=True)

    fake.tamper = cut
    with pytest.raises(LinkLostError, match="closed the connection"):
        manager.list_vms()


def test_connection_closed_without_reply(fake: FakeManager, manager: Manager) -> None:
    fake.tamper = lambda _: None
    with pytest.raises(LinkLostError, match=r"closed the connection$") as caught:
        manager.list_vms()
    assert caught.value.remedy == "its log says why"


def test_lost_connection_stays_lost(fake: FakeManager, manager: Manager) -> None:
    with manager.open_vm("demo") as vm:
        fake.tamper = lambda _: None
        with pytest.raises(LinkLostError, match=r"closed the connection$"):
            vm.regions()
        with pytest.raises(LinkLostError, match="has been closed after an earlier failure"):
            vm.regions()


def test_no_reply_in_time(fake: FakeManager) -> None:
    def silent(reply: Outgoing) -> Outgoing:
        return dataclasses.replace(reply, raw=reply.encode()[:20])

    fake.tamper = silent
    begin = time.monotonic()
    with pytest.raises(LinkLostError, match=r"did not answer within 0\.3 s"):
        Manager(fake.path, timeout=0.3).list_vms()
    assert 0.25 < time.monotonic() - begin < 2


def test_dripping_bytes_do_not_extend_the_deadline(fake: FakeManager) -> None:
    """A time-out of each recv() alone would never strike here."""
    fake.tamper = lambda reply: dataclasses.replace(reply, drip_seconds=0.05)
    begin = time.monotonic()
    with pytest.raises(LinkLostError, match="did not answer"):
        Manager(fake.path, timeout=0.4).list_vms()
    assert time.monotonic() - begin < 1.5


def test_missing_descriptor(fake: FakeManager, manager: Manager) -> None:
    fake.tamper = lambda reply: dataclasses.replace(reply, fds=[])
    with manager.open_vm("demo") as vm, pytest.raises(ProtocolError, match="sent 0 descriptors"):
        vm.statistics()


def test_unannounced_descriptor_is_closed(fake: FakeManager, manager: Manager) -> None:
    def sneak(reply: Outgoing) -> Outgoing:
        reply.header["nr_fds"] = 0
        reply.fds = [memfd_of(b"x")]
        return reply

    fake.tamper = sneak
    with pytest.raises(ProtocolError, match="announced 0 descriptors and sent 1"):
        manager.list_vms()


@pytest.mark.parametrize("count", [2, 12])
def test_too_many_descriptors_are_closed(fake: FakeManager, manager: Manager, count: int) -> None:
    def flood(reply: Outgoing) -> Outgoing:
        reply.fds = [memfd_of(b"x") for _ in range(count)]
        return reply

    fake.tamper = flood
    with pytest.raises(ProtocolError, match=f"sent {count} descriptors where 0 belong"):
        manager.list_vms()


@pytest.mark.parametrize("count", [17, 40])
def test_more_descriptors_than_a_message_may_carry(
    fake: FakeManager, manager: Manager, count: int
) -> None:
    def flood(reply: Outgoing) -> Outgoing:
        reply.header["nr_fds"] = 16
        reply.fds = [memfd_of(b"x") for _ in range(count)]
        return reply

    fake.tamper = flood
    with pytest.raises(ProtocolError, match="sent more than 16 descriptors"):
        manager.list_vms()


def test_descriptors_of_an_error_are_closed(fake: FakeManager, manager: Manager) -> None:
    def refuse(reply: Outgoing) -> Outgoing:
        reply.header["status"] = -13
        reply.payload = struct_bytes("struct uffdmm_error", {"text": b"uid 7 may not do this"})
        reply.fds = [memfd_of(b"x")]
        return reply

    fake.tamper = refuse
    with pytest.raises(ManagerError, match="uid 7 may not do this") as caught:
        manager.list_vms()
    assert caught.value.code == 13


def test_error_without_text_names_the_errno(fake: FakeManager, manager: Manager) -> None:
    def refuse(reply: Outgoing) -> Outgoing:
        reply.header["status"] = -13
        reply.payload = struct_bytes("struct uffdmm_error", {})
        return reply

    fake.tamper = refuse
    with pytest.raises(ManagerError, match="the manager refused: permission denied"):
        manager.list_vms()


def test_error_text_without_end(fake: FakeManager, manager: Manager) -> None:
    def refuse(reply: Outgoing) -> Outgoing:
        reply.header["status"] = -13
        reply.payload = b"\xff" * lib.UFFDMM_TEXT_MAX
        return reply

    fake.tamper = refuse
    with pytest.raises(ManagerError) as caught:
        manager.list_vms()
    assert caught.value.message == "\ufffd" * lib.UFFDMM_TEXT_MAX


@pytest.mark.parametrize("pause", [0, 0.1])
def test_turned_away_before_the_request(fake: FakeManager, pause: float) -> None:
    """The manager has spoken and closed, maybe before we have sent anything."""
    fake.turn_away = (13, "user 7 may not use this manager: start it with --allow-uid 7")
    connection = Connection.connect(fake.path, timeout=1)
    time.sleep(pause)
    with pytest.raises(ManagerError, match="user 7 may not use this manager") as caught:
        connection.call(lib.UFFDMM_MSG_HELLO, bytes(160))
    connection.close()
    assert caught.value.code == 13


def test_refusal_keeps_the_connection(fake: FakeManager, manager: Manager) -> None:
    with manager.open_vm("demo") as vm:
        fake.refuse_policy = (22, "limit_bytes 1 is not a multiple of 4096")
        with pytest.raises(ManagerError, match="not a multiple"):
            vm.set_policy(limit_bytes=1)
        fake.refuse_policy = None
        assert vm.set_policy(limit_bytes=4096).limit_bytes == 4096


def test_no_socket(tmp_path: Path, no_fd_leak: None) -> None:
    with pytest.raises(ConnectError, match=r"no manager socket at '.*/absent'") as caught:
        Manager(tmp_path / "absent").list_vms()
    assert caught.value.remedy is not None
    assert "--socket" in caught.value.remedy


def test_nobody_behind_the_socket(tmp_path: Path, no_fd_leak: None) -> None:
    with FakeManager(tmp_path / "s") as peer:
        path = peer.path
    with pytest.raises(ConnectError, match="nobody listens"):
        Manager(path).list_vms()


def test_socket_path_is_a_file(tmp_path: Path, no_fd_leak: None) -> None:
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(ConnectError, match=r"nobody listens|cannot connect"):
        Manager(path).list_vms()


def test_socket_path_too_long(tmp_path: Path, no_fd_leak: None) -> None:
    with pytest.raises(ConnectError, match="cannot connect to the manager socket"):
        Manager("/" + "x" * 200).list_vms()


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 64, "ä" * 32])
def test_impossible_vm_name(fake: FakeManager, manager: Manager, name: str) -> None:
    with pytest.raises(VmNameError, match="cannot be the name of a VM"):
        manager.open_vm(name)
    assert fake.requests == []


def test_longest_vm_name_arrives_whole(fake: FakeManager, manager: Manager) -> None:
    name = "ä" * 31 + "x"
    fake.vms[name] = fake.vms["demo"]
    with manager.open_vm(name) as vm:
        assert vm.statistics().vm_name == "demo"
    assert name in [entry.vm_name for entry in manager.list_vms()]
