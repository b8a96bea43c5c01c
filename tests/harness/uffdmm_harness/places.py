# SPDX-License-Identifier: GPL-2.0-or-later
"""Where things are: binaries, guest image, caches.

Each of UFFDMM_QEMU, UFFDMM_MANAGER, UFFDMM_BENCH and UFFDMM_GUEST overrides one place; without
them the scripts of the tree say where their product is, and make it when it is missing.
"""

import os
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from . import HarnessError

TOP = Path(__file__).resolve().parents[3]
MANAGER = TOP / "build/native/native/uffdmm-manager"
BENCH = TOP / "build/native/native/bench"
# Where temporary files are on a disk by convention: a store must not lie in memory.
DISK_FOLDER = Path("/var/tmp")
FIRMWARE = (Path("/usr/share/seabios"), Path("/usr/share/qemu"))


@dataclass(frozen=True, slots=True)
class GuestImage:
    """What a test guest boots."""

    kernel: Path
    initrd: Path


def cache_dir() -> Path:
    """The folder for what is dear to make again; it exists when this returns."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    path = Path(base) / "uffdmm"
    path.mkdir(parents=True, exist_ok=True)
    return path


def _from_script(script: str) -> Path:
    """The path that a script of the tree prints; its progress goes to our standard error."""
    command = [str(TOP / "scripts" / script), "--print-path"]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    lines = result.stdout.splitlines()
    if result.returncode or not lines:
        raise HarnessError(f"'scripts/{script} --print-path' failed, its output above says why")
    return Path(lines[-1])


def _checked(path: Path, what: str, variable: str) -> Path:
    if not path.exists():
        raise HarnessError(f"{what} '{path}' does not exist: check {variable} or run scripts/setup")
    return path


@cache
def qemu() -> Path:
    """The QEMU with the series."""
    override = os.environ.get("UFFDMM_QEMU")
    path = Path(override) if override else _from_script("qemu-build")
    return _checked(path, "QEMU", "UFFDMM_QEMU")


@cache
def manager() -> Path:
    """The manager's binary."""
    path = Path(os.environ.get("UFFDMM_MANAGER", MANAGER))
    return _checked(path, "the manager", "UFFDMM_MANAGER")


@cache
def manager_hooks() -> Path:
    """The manager with switches that leave a protection out (native/src/test_hooks.h)."""
    beside = manager().with_name("uffdmm-manager-hooks")
    path = Path(os.environ.get("UFFDMM_MANAGER_HOOKS", beside))
    return _checked(path, "the manager with hooks", "UFFDMM_MANAGER_HOOKS")


@cache
def bench_program(name: str) -> Path:
    """A micro-benchmark of native/bench."""
    path = Path(os.environ.get("UFFDMM_BENCH", BENCH)) / name
    return _checked(path, "the benchmark", "UFFDMM_BENCH")


@cache
def guest_image() -> GuestImage:
    """Kernel and initramfs of the test guest."""
    override = os.environ.get("UFFDMM_GUEST")
    folder = Path(override) if override else _from_script("guest-image")
    return GuestImage(
        kernel=_checked(folder / "vmlinuz", "the guest kernel", "UFFDMM_GUEST"),
        initrd=_checked(folder / "initrd", "the guest initramfs", "UFFDMM_GUEST"),
    )
