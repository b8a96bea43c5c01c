# SPDX-License-Identifier: GPL-2.0-or-later
"""Static probes of the manager: they are in the program, and scripts use those that there are."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
SCRIPTS = sorted((TOP / "scripts" / "bpftrace").glob("*.bt"))
# Name and number of arguments, as native/src/probes.h describes them.
PROBES = {
    "fault__begin": 3,
    "fault__end": 4,
    "evict__batch": 5,
    "read__end": 4,
    "write__end": 4,
    "tier__state": 3,
}


@pytest.fixture(scope="module")
def program() -> Path:
    path = Path(os.environ.get("UFFDMM_MANAGER", TOP / "build/native/native/uffdmm-manager"))
    if not os.access(path, os.X_OK):
        pytest.skip(f"no manager at {path}: build it, or set UFFDMM_MANAGER")
    return path


def notes(program: Path) -> str:
    if shutil.which("readelf") is None:
        pytest.skip("readelf is not installed")
    done = subprocess.run(
        ["readelf", "--notes", program], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_the_program_has_all_probes(program: Path) -> None:
    text = notes(program)
    if "stapsdt" not in text and not list(Path("/usr/include").glob("**/sys/sdt.h")):
        pytest.skip("built without sys/sdt.h: install systemtap-sdt-dev")
    found = re.findall(r"Provider: uffdmm\s+Name: (\S+)\s+Location: .*\s+Arguments: (.*)", text)
    assert {name: len(arguments.split()) for name, arguments in found} == PROBES


def test_the_header_describes_all_probes() -> None:
    header = (TOP / "native" / "src" / "probes.h").read_text()
    assert set(re.findall(r"PROBE\d\((\w+__\w+),", header)) == set(PROBES)


@pytest.mark.parametrize("script", SCRIPTS, ids=[path.name for path in SCRIPTS])
def test_scripts_use_probes_that_there_are(script: Path) -> None:
    text = script.read_text()
    used = re.findall(r"^usdt:/usr/bin/uffdmm-manager:uffdmm:(\w+),?$", text, re.MULTILINE)
    assert used
    assert set(used) <= set(PROBES)
    # No argument is read that the probe does not have.
    blocks = re.split(r"^(?=usdt:|interval:|BEGIN)", text, flags=re.MULTILINE)
    for block in blocks:
        named = re.findall(r"^usdt:\S+:(\w+),?$", block, re.MULTILINE)
        for number in re.findall(r"\barg(\d)\b", block):
            assert all(int(number) < PROBES[name] for name in named)


@pytest.mark.parametrize("script", SCRIPTS, ids=[path.name for path in SCRIPTS])
def test_bpftrace_understands_the_script(script: Path, program: Path, tmp_path: Path) -> None:
    bpftrace = shutil.which("bpftrace")
    if bpftrace is None:
        pytest.skip("bpftrace is not installed")
    if "stapsdt" not in notes(program):
        pytest.skip("built without sys/sdt.h: install systemtap-sdt-dev")

    def parse(text: str) -> subprocess.CompletedProcess[str]:
        file = tmp_path / script.name
        file.write_text(text.replace("/usr/bin/uffdmm-manager", str(program.resolve())))
        # -d: parse, resolve and compile, attach nothing.
        return subprocess.run(
            [bpftrace, "-d", file], capture_output=True, text=True, check=False, timeout=60
        )

    done = parse(script.read_text())
    if "ERROR: bpftrace currently only supports running as the root user" in done.stderr:
        pytest.skip("bpftrace needs root")
    assert done.returncode == 0, done.stderr
    wrong = parse(script.read_text().replace("arg0", "argument0"))
    assert wrong.returncode != 0
