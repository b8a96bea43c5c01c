# SPDX-License-Identifier: GPL-2.0-or-later
"""Parts of a migration by themselves: certificates, targets, forecasts, options, threads."""

import asyncio
import ssl
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uffdmm import Manager
from uffdmm._native import lib
from uffdmm.addresses import parse_target
from uffdmm.cli.app import main
from uffdmm.cli.exits import Exit
from uffdmm.errors import AddressError
from uffdmm.migration import frames
from uffdmm.migration.aside import aside
from uffdmm.migration.certificates import (
    CertificateError,
    client_context,
    peer_names,
    server_context,
)
from uffdmm.migration.frames import PeerError
from uffdmm.migration.plan import forecast, shared_tier
from uffdmm.migration.request import Request
from uffdmm.migration.source import Refused, Source
from uffdmm.migration.stages import STAGES, MigrationError, Stage
from uffdmm.pagetable import Region
from uffdmm.stats import TierStats, TierType

# ---- certificates


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with certificates of both sides, signed by themselves."""
    made = tmp_path / "pki"
    made.mkdir()
    for side in ("server", "client"):
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"),
                *("-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=here"),
                *("-keyout", made / f"{side}-key.pem", "-out", made / f"{side}-cert.pem"),
            ],
            check=True,
            capture_output=True,
        )
        (made / f"{side}-key.pem").chmod(0o600)
    (made / "ca-cert.pem").write_bytes((made / "server-cert.pem").read_bytes())
    return made


def test_certificates_that_are_all_there(folder: Path) -> None:
    for context in (server_context(folder), client_context(folder)):
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3
    assert client_context(folder).check_hostname


@pytest.mark.parametrize("name", ["ca-cert.pem", "server-cert.pem", "server-key.pem"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CertificateError, match=f"there is no certificate file '.*{name}'"):
        server_context(folder)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_key_that_others_can_reach_is_refused(folder: Path, mode: int) -> None:
    (folder / "client-key.pem").chmod(mode)
    with pytest.raises(CertificateError, match="can be read by others") as caught:
        client_context(folder)
    assert str(caught.value.remedy).startswith("chmod 600 ")
    server_context(folder)


@pytest.mark.parametrize("name", ["ca-cert.pem", "client-cert.pem", "client-key.pem"])
def test_a_file_that_is_none_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_text("nothing\n")
    (folder / name).chmod(0o600)
    with pytest.raises(CertificateError, match="cannot be used"):
        client_context(folder)


def test_a_key_of_another_certificate_is_refused(folder: Path) -> None:
    (folder / "client-key.pem").write_bytes((folder / "server-key.pem").read_bytes())
    with pytest.raises(CertificateError, match="cannot be used"):
        client_context(folder)


def test_names_in_a_certificate() -> None:
    assert peer_names(None) == []
    assert peer_names({}) == []
    names = peer_names(
        {
            "subject": ((("organizationName", "o"),), (("commonName", "here"),)),
            "subjectAltName": (("DNS", "a.example"), ("IP Address", "192.0.2.1")),
        }
    )
    assert names == ["a.example", "192.0.2.1", "here"]


# ---- where to


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("host", ("host", 7661)),
        ("host.example:1", ("host.example", 1)),
        ("192.0.2.1:65535", ("192.0.2.1", 65535)),
        ("[2001:db8::1]", ("2001:db8::1", 7661)),
        ("[2001:db8::1]:70", ("2001:db8::1", 70)),
    ],
)
def test_targets(text: str, target: tuple[str, int]) -> None:
    assert parse_target(text, 7661) == target


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "host:", ":1", "host:0", "host:65536", "host:-1", "2001:db8::1", "[host]"),
        *("a b", "host:1:2", "host\n", "host:\u0661", "host/x", "[2001:db8::1", "tcp:host:1"),
    ],
)
def test_what_is_no_target(text: str) -> None:
    with pytest.raises(AddressError, match="is not a host and a port"):
        parse_target(text, 7661)


@given(st.text())
def test_any_text_is_a_target_or_an_error(text: str) -> None:
    try:
        host, port = parse_target(text, 7661)
    except AddressError:
        return
    assert host.isascii()
    assert host
    assert 1 <= port <= 65535


# ---- what would go how


class _Table:
    def __init__(self, entries: list[int]) -> None:
        self._entries = np.array(entries, np.uint64)

    def entries(self) -> "np.ndarray[tuple[int], np.dtype[np.uint64]]":
        return self._entries


class _Region:
    def __init__(self, entries: list[int], page_size: int = 4096) -> None:
        self.table, self.page_size = _Table(entries), page_size


def _entry(state: int, tier: int = 0) -> int:
    return state | tier << lib.UFFDMM_ENTRY_TIER_SHIFT


def _forecast(tier: int | None, *regions: _Region) -> dict[str, int]:
    found = cast(list[Region], list(regions))
    return {
        name.removesuffix("_bytes"): value // 4096
        for name, value in forecast(found, tier).model_dump().items()
        if name != "location_bytes"
    }


def test_forecast_counts_every_page_once() -> None:
    stored, empty, resident = lib.UFFDMM_PAGE_STORED, lib.UFFDMM_PAGE_EMPTY, 5
    assert resident not in {stored, empty}
    region = _Region(
        [_entry(empty)] * 2
        + [_entry(stored, 0)] * 3
        + [_entry(stored, 1)] * 5
        + [_entry(stored, 2)] * 7
        + [_entry(resident)] * 11
    )
    assert _forecast(2, region) == {"by_location": 12, "zero": 5, "bypass": 5, "content": 11}
    assert _forecast(1, region) == {"by_location": 10, "zero": 5, "bypass": 7, "content": 11}
    # Without a shared tier what is empty goes as such, and the rest as content.
    assert _forecast(None, region) == {"by_location": 5, "zero": 5, "bypass": 12, "content": 11}


def test_forecast_counts_in_bytes_of_each_region() -> None:
    huge = _Region([_entry(lib.UFFDMM_PAGE_STORED, 1)], 2 << 20)
    small = _Region([_entry(lib.UFFDMM_PAGE_STORED, 1)])
    assert _forecast(1, huge, small)["by_location"] == 513


@dataclass
class _Tier:
    name: str
    type: TierType
    shared: bool
    stored_pages: int = 0


def test_the_shared_tier_is_the_fullest_or_the_named_one() -> None:
    made = [
        _Tier("zero", TierType.ZERO, True, 99),
        _Tier("ram", TierType.POOL, False, 80),
        _Tier("near", TierType.FILE, False, 70),
        _Tier("far", TierType.FILE, True, 1),
        _Tier("farther", TierType.NBD, True, 2),
    ]
    tiers = cast(list[TierStats], made)
    assert shared_tier(tiers) == 4
    assert shared_tier(tiers, "far") == 3
    assert shared_tier(tiers, "near") is None
    assert shared_tier(tiers, "zero") is None
    assert shared_tier(tiers[:3]) is None


# ---- the command


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], Exit.USAGE, "none or several of --to, --take, --abandon and"),
        (["--to", "h", "--take"], Exit.USAGE, "none or several of --to, --take, --abandon and"),
        (["--reclaim", "--abandon"], Exit.USAGE, "none or several of --to, --take, --abandon and"),
        (["--take", "--abandon"], Exit.USAGE, "none or several of --to, --take, --abandon and"),
        (["--to", "h:0"], Exit.USAGE, "'h:0' is not a host and a port"),
        (["--to", "h", "--channels", "2"], Exit.USAGE, "--channels was given without --direct"),
        (["--to", "h", "--direct", "--channels", "65"], Exit.USAGE, "--channels"),
        (["--to", "h", "--bandwidth", "much"], Exit.USAGE, "much"),
        (["--to", "h", "--downtime", "0"], Exit.USAGE, "--downtime"),
    ],
)
def test_options_that_do_not_fit(
    words: list[str],
    code: Exit,
    said: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Typer draws boxes around its own errors.
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("NO_COLOR", "1")
    try:
        ended = main(["--socket", str(tmp_path / "none"), "migrate", "vm1", *words])
    except SystemExit as ending:
        ended = Exit(int(ending.code or 0))
    assert ended == code
    assert said in capfd.readouterr().err


@pytest.mark.parametrize(
    "words", [["--to", "h"], ["--take"], ["--abandon"], ["--to=h", "--dry-run"]]
)
def test_no_manager(words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--socket", str(tmp_path / "none"), "migrate", "vm1", *words]) != 0
    assert "no manager socket at" in capfd.readouterr().err


# ---- the hand-over


class _Answers:
    """A channel on which one answer comes."""

    def __init__(self, answer: frames.AnyMessage) -> None:
        self._answer = answer

    async def send(self, message: frames.Message) -> None:
        assert message == frames.Resume(vm="vm1", session=7)

    async def receive(self, _timeout: float) -> frames.AnyMessage:
        return self._answer


def _resumed(answer: frames.AnyMessage) -> bool:
    request = Request(vm="vm1", host="h", port=1, qmp=Path("none"), certificates=Path("none"))
    source = Source(Manager(Path("none")), request, lambda _: None)
    source._channel = cast(frames.Channel, _Answers(answer))
    source._state.session = 7
    return asyncio.run(source._resume())


def test_a_hand_over_that_waits_or_is_done() -> None:
    assert _resumed(frames.Waiting(running=False))
    assert not _resumed(frames.Waiting(running=True))


def test_a_refused_hand_over_is_final() -> None:
    with pytest.raises(Refused, match="gone"):
        _resumed(frames.Refuse(stage=Stage.TAKE, message="gone"))


@pytest.mark.parametrize(
    "answer",
    [frames.Refuse(stage=Stage.OFFER, message="under way already"), frames.Running()],
)
def test_a_destination_that_still_has_the_former_connection_is_asked_again(
    answer: frames.AnyMessage,
) -> None:
    with pytest.raises(PeerError) as caught:
        _resumed(answer)
    assert not isinstance(caught.value, Refused)


# ---- errors and threads


def test_every_stage_has_a_meaning() -> None:
    assert list(STAGES) == list(Stage)
    for stage in Stage:
        error = MigrationError(stage, "why", "how")
        assert f"at stage '{stage}': why; {STAGES[stage].failed}" in error.message


def test_a_thread_is_waited_for_when_its_caller_is_cancelled() -> None:
    done: list[str] = []

    def work() -> None:
        time.sleep(0.2)
        done.append("work")

    async def run() -> None:
        task = asyncio.create_task(aside(work))
        await asyncio.sleep(0.05)
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0.01)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert done == ["work"]

    asyncio.run(run())


def test_a_thread_left_alone_is_the_control_of_the_one_before() -> None:
    """Else that test would pass without what it tests."""
    done: list[str] = []

    def work() -> None:
        time.sleep(0.2)
        done.append("work")

    async def run() -> None:
        task = asyncio.create_task(asyncio.to_thread(work))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert done == []

    asyncio.run(run())


def test_results_and_errors_of_a_thread() -> None:
    def fail() -> None:
        raise ValueError("no")

    async def run() -> None:
        assert await aside(divmod, 7, 2) == (3, 1)
        with pytest.raises(ValueError, match="no"):
            await aside(fail)

    asyncio.run(run())
