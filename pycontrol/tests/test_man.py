# SPDX-License-Identifier: GPL-2.0-or-later
"""The manual pages: well formed, and true to the command."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import typer
from pydantic import BaseModel

from uffdmm.cli.app import app
from uffdmm.cli.check_host import TestedHostReport
from uffdmm.cli.exits import Exit
from uffdmm.cli.policy import PolicyReport
from uffdmm.cli.vms import ListedVm, ListReport, StatusReport
from uffdmm.hostcheck import Check

MAN = Path(__file__).parents[1] / "man"


def render(page: str) -> str:
    """The page as a reader sees it; any complaint of man fails the test."""
    if shutil.which("man") is None:
        pytest.skip("man is not installed")
    environment = os.environ | {"MANWIDTH": "200", "LC_ALL": "C.UTF-8", "MANROFFOPT": "-ww"}
    done = subprocess.run(
        ["man", "--warnings", "--no-hyphenation", "--no-justification", "-P", "cat", "-l", page],
        cwd=MAN,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return re.sub(r".\x08", "", done.stdout)


@pytest.mark.parametrize("page", ["uffdmm.1", "uffdmm-manager.8"])
def test_no_warnings(page: str) -> None:
    assert "SEE ALSO" in render(page)


def test_a_broken_page_would_be_noticed(tmp_path: Path) -> None:
    broken = tmp_path / "broken.1"
    broken.write_text((MAN / "uffdmm.1").read_text() + "\n.NOSUCHMACRO x\n")
    with pytest.raises(AssertionError, match="NOSUCHMACRO"):
        render(str(broken))


@pytest.mark.parametrize(
    "model", [ListReport, ListedVm, StatusReport, PolicyReport, TestedHostReport, Check]
)
def test_every_json_key_is_documented(model: type[BaseModel]) -> None:
    words = set(re.findall(r"\w+", render("uffdmm.1")))
    assert set(model.model_fields) - words == set()


def test_every_status_key_has_its_description() -> None:
    text = " ".join(render("uffdmm.1").split())
    for name, field in StatusReport.model_fields.items():
        assert f"{name} {field.description}" in text


def test_every_command_and_option_is_documented() -> None:
    text = render("uffdmm.1")
    group = typer.main.get_command(app)
    commands = group.commands  # type: ignore[attr-defined]
    assert set(commands) == {"list", "status", "set-policy", "check-host"}
    for name, command in commands.items():
        assert f"uffdmm {name}" in text
        for parameter in command.params:
            for option in parameter.opts:
                if option.startswith("--"):
                    assert option in text, f"{name} {option}"
    for parameter in group.params:
        for option in parameter.opts:
            assert option in text, option


def test_every_exit_code_is_documented() -> None:
    section = render("uffdmm.1").split("EXIT STATUS")[1].split("ENVIRONMENT")[0]
    assert re.findall(r"^ {7}(\d)\b", section, re.MULTILINE) == [str(int(code)) for code in Exit]
