# SPDX-License-Identifier: GPL-2.0-or-later
"""Completion: what the shell's function gets from the command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fake_manager import FakeManager, FakeVm, no_answer


def complete(*words: str, socket: Path) -> list[str]:
    """What is offered in place of the last word, as bash asks for it."""
    done = subprocess.run(
        [
            *(sys.executable, "-c"),
            "import sys; sys.argv[0] = 'uffdmm'; from uffdmm.cli.app import main; sys.exit(main())",
        ],
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join(sys.path),
            "UFFDMM_SOCKET": str(socket),
            "_UFFDMM_COMPLETE": "complete_bash",
            "COMP_WORDS": " ".join(["uffdmm", *words]),
            "COMP_CWORD": str(len(words)),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "Traceback" not in done.stderr
    return done.stdout.split()


def test_commands(fake: FakeManager) -> None:
    assert complete("ev", socket=fake.path)[0] == "events"


@pytest.mark.parametrize("command", ["status", "tiers", "set-policy", "events", "record"])
def test_names_of_vms(fake: FakeManager, command: str) -> None:
    fake.vms["web"] = FakeVm(fake.vms["demo"].page)
    assert complete(command, "d", socket=fake.path) == ["demo"]
    assert complete(command, "", socket=fake.path) == ["demo", "web"]


def test_the_socket_that_was_named(fake: FakeManager, tmp_path: Path) -> None:
    words = ["--socket", str(fake.path), "status", ""]
    assert complete(*words, socket=tmp_path / "none.sock") == ["demo"]


def test_no_manager(fake: FakeManager, tmp_path: Path) -> None:
    assert complete("status", "", socket=tmp_path / "none.sock") == []
    fake.tamper = no_answer
    assert complete("status", "", socket=fake.path) == []
