# SPDX-License-Identifier: GPL-2.0-or-later
"""Units, udev rule, libvirt example: checked by their own checkers, and against the project."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fake_manager import FakeManager, no_answer
from uffdmm.client import DEFAULT_SOCKET
from uffdmm.metrics.server import DEFAULT_LISTEN

CONTRIB = Path(__file__).parents[2] / "contrib"
UNITS = CONTRIB / "systemd"
HOOK = CONTRIB / "libvirt" / "qemu"


def run(program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed")
    return subprocess.run(
        [found, *arguments], capture_output=True, text=True, check=False, timeout=60
    )


def verify(folder: Path) -> list[str]:
    """What systemd complains of in all units of a folder; the program need not be installed."""
    units = sorted(path for path in folder.iterdir() if path.suffix in {".service", ".socket"})
    assert units
    for unit in units:
        text = unit.read_text()
        unit.write_text(re.sub(r"^(ExecStart=)\S+", r"\1/bin/true", text, flags=re.MULTILINE))
    done = run("systemd-analyze", "verify", "--man=no", *units)
    ours = {unit.name for unit in units}
    # It also looks at all units that ours need.
    return [
        line
        for line in done.stderr.splitlines()
        if any(name in line for name in ours) or str(folder) in line
    ]


@pytest.fixture
def units(tmp_path: Path) -> Path:
    folder = tmp_path / "systemd"
    shutil.copytree(UNITS, folder)
    return folder


def test_units(units: Path) -> None:
    assert verify(units) == []


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("manager", "KillMode=process", "KillMode=proces"),
        ("manager", "ProtectSystem=strict", "ProtectSytem=strict"),
        ("manager", "Type=exec", "Type=executable"),
        ("serve", "SystemCallFilter=@system-service", "SystemCallFiltr=@system-service"),
        ("serve", "Restart=on-failure", "Restart=on-fail"),
    ],
)
def test_a_wrong_unit_would_be_noticed(units: Path, name: str, right: str, wrong: str) -> None:
    unit = units / f"uffdmm-{name}.service"
    text = unit.read_text()
    assert right in text
    unit.write_text(text.replace(right, wrong))
    assert verify(units)


def test_units_agree_with_the_program() -> None:
    assert f"ListenStream={DEFAULT_SOCKET}\n" in (UNITS / "uffdmm-manager.socket").read_text()
    assert f"--listen {DEFAULT_LISTEN}\n" in (UNITS / "uffdmm-exporter.service").read_text()
    serve = (UNITS / "uffdmm-serve.service").read_text()
    assert "\nExecStart=/usr/bin/uffdmm serve\n" in serve
    # Nothing else has a right to the socket of the manager.
    assert "User=" not in serve
    service = (UNITS / "uffdmm-manager.service").read_text()
    # Without these guests stall when the manager is restarted, or it cannot lock its tables.
    for line in ("KillMode=process", "SendSIGKILL=no", "LimitMEMLOCK=infinity"):
        assert f"\n{line}\n" in service


def test_udev_rule() -> None:
    text = (CONTRIB / "udev" / "60-uffdmm.rules").read_text()
    rules = [line for line in text.splitlines() if line and not line.startswith("#")]
    for rule in rules:
        assert re.fullmatch(r'([A-Z]+(==|=)"[^"]+"(, |$))+', rule)
    done = run("udevadm", "verify", CONTRIB / "udev" / "60-uffdmm.rules")
    if "Unknown command" in done.stderr:
        pytest.skip("this udevadm has no verify")
    assert done.returncode == 0, done.stdout + done.stderr


def test_domain() -> None:
    done = run("xmllint", "--noout", "--nonet", CONTRIB / "libvirt" / "vm.xml")
    assert (done.returncode, done.stderr) == (0, "")
    text = (CONTRIB / "libvirt" / "vm.xml").read_text()
    assert f"socket={DEFAULT_SOCKET}" in text
    gibibytes = re.search(r'<memory unit="GiB">(\d+)<', text)
    assert gibibytes is not None
    assert f"size={gibibytes[1]}G," in text


def test_domain_fits_the_schema() -> None:
    schema = Path("/usr/share/libvirt/schemas/domain.rng")
    if not schema.exists():
        pytest.skip("libvirt's schemas are not installed")
    done = run("xmllint", "--noout", "--relaxng", schema, CONTRIB / "libvirt" / "vm.xml")
    assert done.returncode == 0, done.stderr


def test_shellcheck_of_the_hook() -> None:
    done = run("shellcheck", HOOK)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.fixture
def hook_environment(tmp_path: Path, fake: FakeManager) -> dict[str, str]:
    """``uffdmm`` on PATH, and the made-up manager behind it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    command = folder / "uffdmm"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m uffdmm "$@"\n')
    command.chmod(0o755)
    return os.environ | {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "UFFDMM_SOCKET": str(fake.path),
    }


def call_hook(
    environment: dict[str, str], operation: str, xml: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [HOOK, "web", operation, "begin", "-"],
        input=xml,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


OURS = "<domain><qemu:arg value='memory-backend-external,id=m'/></domain>"


def test_the_hook_asks_the_manager(hook_environment: dict[str, str], fake: FakeManager) -> None:
    assert call_hook(hook_environment, "prepare", OURS).returncode == 0
    assert fake.requests
    fake.tamper = no_answer
    refused = call_hook(hook_environment, "prepare", OURS)
    assert refused.returncode == 1
    assert "domain 'web' needs uffdmm-manager" in refused.stderr


def test_the_hook_leaves_other_domains_alone(
    hook_environment: dict[str, str], fake: FakeManager
) -> None:
    fake.tamper = no_answer
    assert call_hook(hook_environment, "prepare", "<domain/>").returncode == 0
    assert call_hook(hook_environment, "release", OURS).returncode == 0
    assert fake.requests == []
