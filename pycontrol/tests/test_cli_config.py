# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands ``uffdmm config`` and ``uffdmm manager``."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from uffdmm.cli.app import main
from uffdmm.cli.config import CommandLine, ConfigReport, ShownConfig
from uffdmm.cli.manager import find_manager
from uffdmm.config import load
from uffdmm.errors import UffdmmError

GOOD = """
[manager]
socket = "/run/of-the-file.sock"
limit = "50%"
[[tier]]
name = "ssd"
type = "file"
path = "/var/lib/uffdmm"
"""
WARNING = GOOD + "error = { rate = 0.5 }\n"
BAD = GOOD.replace("path", "paht")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "uffdmm.toml"
    path.write_text(GOOD)
    return path


@pytest.mark.parametrize(
    ("text", "code", "status", "last"),
    [
        (GOOD, 0, "PASS", "1 file(s), 0 error(s), 0 warning(s)"),
        (WARNING, 0, "WARN", "1 file(s), 0 error(s), 1 warning(s)"),
        (BAD, 1, "FAIL", "1 file(s), 2 error(s), 0 warning(s)"),
    ],
)
def test_check(
    file: Path, capfd: pytest.CaptureFixture[str], text: str, code: int, status: str, last: str
) -> None:
    file.write_text(text)
    assert main(["config", "check", str(file)]) == code
    assert capfd.readouterr().out.splitlines()[-1] == last
    assert main(["config", "check", str(file), "--json"]) == code
    document = json.loads(capfd.readouterr().out)
    assert set(document) == set(ConfigReport.model_fields)
    assert (document["status"], document["files"]) == (status, [str(file)])
    keys = {"severity", "file", "key", "value", "message", "remedy"}
    assert all(set(problem) == keys for problem in document["problems"])


def test_check_names_place_and_remedy(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file.write_text(BAD)
    main(["config", "check", str(file)])
    lines = capfd.readouterr().out.splitlines()
    place = lines.index(f'error: {file}: tier.ssd.paht = "/var/lib/uffdmm": unknown key')
    assert lines[place + 1] == "  remedy: did you mean 'path'?"


def test_check_of_the_default_file(
    file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(load, "DEFAULT_FILE", file)
    assert main(["config", "check", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["files"] == [str(file)]


def test_show(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (file.parent / "uffdmm.toml.d").mkdir()
    drop_in = file.parent / "uffdmm.toml.d" / "10.toml"
    drop_in.write_text('[manager]\nlimit = "1G"\n')
    assert main(["config", "show", str(file)]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert f'limit = "1G"  # {drop_in}' in lines
    assert f'path = "/var/lib/uffdmm"  # {file}' in lines
    assert main(["config", "show", str(file), "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert set(document) == set(ShownConfig.model_fields)
    assert document["files"] == [str(file), str(drop_in)]
    assert document["config"]["manager"]["limit"] == "1G"


def test_show_of_what_is_no_toml(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file.write_text("[manager")
    assert main(["config", "show", str(file)]) == 1
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"uffdmm: {file}: this is not TOML: ")


LINE = [
    *("--socket-path", "/run/of-the-file.sock"),
    *("--tier", "ssd=file,path=/var/lib/uffdmm", "--limit", "50%"),
]


def test_command(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "command", str(file)]) == 0
    assert capfd.readouterr().out.split() == ["uffdmm-manager", *LINE]
    assert main(["config", "command", str(file), "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert set(document) == set(CommandLine.model_fields)
    assert document["command"] == ["uffdmm-manager", *LINE]


def test_command_of_a_bad_file(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file.write_text(BAD)
    assert main(["config", "command", str(file)]) == 1
    captured = capfd.readouterr()
    assert captured.out == ""
    assert [line[:8] for line in captured.err.splitlines()] == ["uffdmm: ", "  remedy"] * 2


class Replaced(BaseException):
    """In place of a process that goes on as another program."""


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What ``exec`` was called with; the program is as if installed."""
    calls: list[Any] = []

    def execv(program: str, words: list[str]) -> None:
        calls.append((program, words))
        raise Replaced

    monkeypatch.setattr(os, "execv", execv)
    monkeypatch.setattr("uffdmm.cli.manager.find_manager", lambda: "/usr/bin/uffdmm-manager")
    monkeypatch.delenv("UFFDMM_SOCKET", raising=False)
    return calls


@pytest.mark.parametrize(
    ("before", "after", "wanted"),
    [
        ([], [], LINE),
        ([], ["--", "--log-level", "debug"], [*LINE, "--log-level", "debug"]),
        (["--socket", "/x"], [], ["--socket-path", "/x", *LINE[2:]]),
        ([], ["--", "--fd", "3"], [*LINE[2:], "--fd", "3"]),
        (["--socket", "/x"], ["--", "--fd=3"], [*LINE[2:], "--fd=3"]),
        ([], ["--", "--socket-path", "/y"], [*LINE[2:], "--socket-path", "/y"]),
    ],
)
def test_manager_becomes_the_program(
    file: Path, executed: list[Any], before: list[str], after: list[str], wanted: list[str]
) -> None:
    with pytest.raises(Replaced):
        main([*before, "manager", "--config", str(file), *after])
    assert executed == [("/usr/bin/uffdmm-manager", ["uffdmm-manager", *wanted])]


def test_the_environment_outranks_the_file(
    file: Path, executed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UFFDMM_SOCKET", "/from/environment")
    with pytest.raises(Replaced):
        main(["manager", "--config", str(file)])
    assert executed[0][1][1:3] == ["--socket-path", "/from/environment"]


def test_manager_warns_and_starts(
    file: Path, executed: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    file.write_text(WARNING)
    with pytest.raises(Replaced):
        main(["manager", "--config", str(file)])
    assert capfd.readouterr().err.startswith(f"uffdmm: warning: {file}: tier.ssd.error: ")


def test_manager_does_not_start_with_errors(
    file: Path, executed: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    file.write_text(BAD)
    assert main(["manager", "--config", str(file)]) == 1
    assert executed == []
    assert "did you mean 'path'?" in capfd.readouterr().err


@pytest.mark.parametrize("extra", [["--no-such-option"], ["surplus", "--store"]])
def test_what_is_not_behind_the_dashes_is_wrong_usage(
    file: Path, executed: list[Any], extra: list[str]
) -> None:
    assert main(["manager", "--config", str(file), *extra]) == 2
    assert executed == []


def program_in(folder: Path, text: str = "#!/bin/sh\nexit 0\n") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "uffdmm-manager"
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_the_program_beside_this_one_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_path = program_in(tmp_path / "path")
    monkeypatch.setenv("PATH", str(on_path.parent))
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "here" / "uffdmm")])
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python" / "python3"))
    assert find_manager() == str(on_path)
    beside = program_in(tmp_path / "here")
    assert find_manager() == str(beside)
    beside.unlink()
    on_path.unlink()
    with pytest.raises(UffdmmError, match="no uffdmm-manager beside this program nor on PATH"):
        find_manager()


def test_as_a_process(file: Path, tmp_path: Path) -> None:
    """The whole way: the arguments arrive in a program that only prints them."""
    folder = tmp_path / "bin"
    program_in(folder, '#!/bin/sh\nprintf "%s\\n" "$@"\n')
    script = (
        f"import sys; sys.argv = ['{folder}/uffdmm']; from uffdmm.cli.app import main;"
        f" sys.exit(main(['manager', '--config', '{file}', '--', '--log-level', 'a b']))"
    )
    environment = {name: os.environ[name] for name in os.environ if name != "UFFDMM_SOCKET"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [*LINE, "--log-level", "a b"]


def test_a_program_that_cannot_be_run(
    file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("uffdmm.cli.manager.find_manager", lambda: "/dev/null")
    assert main(["manager", "--config", str(file)]) == 1
    assert "cannot run '/dev/null': permission denied" in capfd.readouterr().err
