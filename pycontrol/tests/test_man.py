# SPDX-License-Identifier: GPL-2.0-or-later
"""The manual pages: well formed, and true to the command."""

import os
import re
import shutil
import subprocess
from collections.abc import Collection
from pathlib import Path

import pytest
import typer
from pydantic import BaseModel

from uffdmm.cli.app import app
from uffdmm.cli.check_host import TestedHostReport
from uffdmm.cli.config import CommandLine, ConfigReport, ShownConfig
from uffdmm.cli.exits import Exit
from uffdmm.cli.move import MoveReport
from uffdmm.cli.policy import PolicyReport
from uffdmm.cli.record import RecordReport
from uffdmm.cli.tiers import TierReport, TiersReport, VmTiers
from uffdmm.cli.top import TopReport, TopVm
from uffdmm.cli.vms import ListedVm, ListReport, StatusReport
from uffdmm.config import Config, Problem, examine, read_document
from uffdmm.config.model import (
    DelayTable,
    ErrorTable,
    FileTier,
    ManagerTable,
    MigrationTable,
    NbdTier,
    PoolTier,
    ServeTable,
    TierTable,
    VmTable,
    VmTierTable,
)
from uffdmm.events import Event, EventKind
from uffdmm.hostcheck import Check
from uffdmm.migration.plan import Forecast
from uffdmm.migration.request import DryRun, Report
from uffdmm.simulate import SimulationReport, VmReport

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


@pytest.mark.parametrize("page", ["uffdmm.1", "uffdmm.toml.5", "uffdmm-manager.8"])
def test_no_warnings(page: str) -> None:
    assert "SEE ALSO" in render(page)


def test_a_broken_page_would_be_noticed(tmp_path: Path) -> None:
    broken = tmp_path / "broken.1"
    broken.write_text((MAN / "uffdmm.1").read_text() + "\n.NOSUCHMACRO x\n")
    with pytest.raises(AssertionError, match="NOSUCHMACRO"):
        render(str(broken))


@pytest.mark.parametrize(
    "model",
    [
        *(ListReport, ListedVm, StatusReport, PolicyReport, TestedHostReport, Check),
        *(TopReport, TopVm, Event, MoveReport, Report, DryRun, Forecast),
        *(RecordReport, SimulationReport, VmReport),
        *(TiersReport, VmTiers, TierReport, ConfigReport, Problem, ShownConfig, CommandLine),
    ],
)
def test_every_json_key_is_documented(model: type[BaseModel]) -> None:
    words = set(re.findall(r"\w+", render("uffdmm.1")))
    assert set(model.model_fields) - words == set()


@pytest.mark.parametrize(
    "model",
    [
        *(StatusReport, TierReport, PolicyReport, TopReport, TopVm, Event, MoveReport),
        *(Report, DryRun, Forecast),
        *(RecordReport, SimulationReport, VmReport),
    ],
)
def test_every_key_has_its_description(model: type[BaseModel]) -> None:
    text = " ".join(render("uffdmm.1").split())
    for name, field in model.model_fields.items():
        assert f"{name} {field.description}" in text


# Sections of uffdmm.toml(5) and what they describe.
TABLES = [
    ("Top level", Config, ()),
    ("[manager]", ManagerTable, ()),
    ("[serve]", ServeTable, ()),
    ("[migration]", MigrationTable, ()),
    ("[[tier]]", TierTable, ()),
    ("[[tier]] of type pool", PoolTier, TierTable.model_fields),
    ("[[tier]] of type file", FileTier, TierTable.model_fields),
    ("[[tier]] of type nbd", NbdTier, TierTable.model_fields),
    ("[tier.error]", ErrorTable, ()),
    ("[tier.delay]", DelayTable, ()),
    ("[vm.NAME]", VmTable, ()),
    ("[vm.NAME.tier.TIER]", VmTierTable, ()),
]


@pytest.mark.parametrize(("section", "model", "elsewhere"), TABLES)
def test_every_key_of_the_file_has_its_description(
    section: str, model: type[BaseModel], elsewhere: Collection[str]
) -> None:
    page = render("uffdmm.toml.5").split("\nTABLES")[1].split("\nFILES")[0]
    sections = {part.partition("\n")[0].strip(): part for part in re.split(r"\n   (?=\S)", page)}
    assert set(sections) - {""} == {name for name, _, _ in TABLES}
    words = " ".join(sections[section].split())
    described = [
        f"{field.alias} {field.description}"
        for name, field in model.model_fields.items()
        if name not in elsewhere and name != "type"
    ]
    places = [words.find(text) for text in described]
    assert -1 not in places, described[places.index(-1)]
    assert places == sorted(places)
    # Nothing else is described there.
    keys = re.findall(r"^ {7}([a-z-]+)(?= |$)", sections[section], re.MULTILINE)
    known = {field.alias for field in model.model_fields.values()} | {"type"}
    assert set(keys) <= known | {"table", "the"}


def test_the_example_of_the_page_is_valid(tmp_path: Path) -> None:
    examples = render("uffdmm.toml.5").split("EXAMPLES")[1].split("SEE ALSO")[0]
    for index, part in enumerate(re.split(r"^ {7}\S.*:$", examples, flags=re.MULTILINE)[1:]):
        file = tmp_path / f"{index}.toml"
        file.write_text(part)
        assert examine(read_document(file)).require().tier


def test_every_key_of_the_options_is_documented() -> None:
    text = render("uffdmm-manager.8")
    for model in (PoolTier, FileTier, NbdTier):
        for field in model.model_fields.values():
            if field.alias not in {"name", "type", "error", "delay"}:
                assert f"{field.alias}=" in text
    for prefix, faults in (("error", ErrorTable), ("delay", DelayTable)):
        for field in faults.model_fields.values():
            assert f"{prefix}-{field.alias}=" in text
    # The manager's own; bounds and shares are the control plane's.
    for name in ("limit", "readahead", "demote_after", "tier"):
        field = VmTable.model_fields[name]
        assert field.alias is not None
        assert field.alias in text


def test_every_command_and_option_is_documented() -> None:
    text = render("uffdmm.1")
    group = typer.main.get_command(app)
    commands = dict(group.commands)  # type: ignore[attr-defined]
    assert set(commands) == {
        *("list", "status", "tiers", "set-policy", "check-host", "manager", "serve", "config"),
        *("top", "events", "exporter", "evict", "prefetch", "migrate", "record", "simulate"),
    }
    group_of_config = commands.pop("config").commands
    assert set(group_of_config) == {"check", "show", "command"}
    commands |= {f"config {name}": command for name, command in group_of_config.items()}
    for name, command in commands.items():
        assert f"uffdmm {name}" in text
        for parameter in command.params:
            for option in parameter.opts:
                if option.startswith("--"):
                    assert option in text, f"{name} {option}"
    for parameter in group.params:
        for option in parameter.opts:
            assert option in text, option


def test_every_event_is_documented() -> None:
    words = render("uffdmm.1").split("uffdmm events")[1].split("uffdmm exporter")[0]
    for kind in EventKind:
        assert kind.value in words


def test_every_exit_code_is_documented() -> None:
    section = render("uffdmm.1").split("EXIT STATUS")[1].split("ENVIRONMENT")[0]
    assert re.findall(r"^ {7}(\d)\b", section, re.MULTILINE) == [str(int(code)) for code in Exit]
