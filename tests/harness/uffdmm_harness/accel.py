# SPDX-License-Identifier: GPL-2.0-or-later
"""Which accelerator guests run under.

That /dev/kvm opens does not say that a stock kernel boots under it in reasonable time: there are
software varieties of KVM that take fifty times as long as TCG.  So a guest is booted under KVM
once, with a time-out, and the answer is kept for this QEMU, this kernel and this boot of the host.
"""

import hashlib
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

from . import HarnessError, places
from .machine import firmware_arguments

# TCG needs 2 to 4 seconds for this; a KVM that needs more is of no use to us.
BOOT_SECONDS = 8.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def choose() -> str:
    """``kvm`` or ``tcg``; UFFDMM_ACCEL decides without measuring."""
    override = os.environ.get("UFFDMM_ACCEL")
    if override:
        if override not in {"kvm", "tcg"}:
            raise HarnessError(f"UFFDMM_ACCEL is '{override}': use kvm or tcg")
        return override
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    answers = places.cache_dir() / "accel.json"
    key = _key()
    try:
        known: dict[str, str] = json.loads(answers.read_text())
    except (OSError, ValueError):
        known = {}
    if known.get("key") != key or known.get("accel") not in {"kvm", "tcg"}:
        known = {"key": key, "accel": "kvm" if kvm_boots() else "tcg"}
        # By rename: two runs at once must not read half an answer.
        partial = answers.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(known))
        partial.rename(answers)
    return known["accel"]


def _key() -> str:
    qemu = places.qemu().resolve()
    parts = [os.uname().release, _BOOT_ID.read_text(), str(qemu), str(qemu.stat().st_mtime_ns)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def kvm_boots(timeout: float = BOOT_SECONDS) -> bool:
    """Boot the guest image under KVM: does its program report in time?"""
    image = places.guest_image()
    with tempfile.TemporaryDirectory(prefix="uffdmm-accel-") as folder:
        port = Path(folder) / "port"
        command = [
            *(str(places.qemu()), "-machine", "q35", "-accel", "kvm", "-m", "256"),
            *("-nodefaults", "-no-reboot", "-display", "none", *firmware_arguments()),
            *("-kernel", str(image.kernel), "-initrd", str(image.initrd)),
            *("-append", "console=ttyS0 quiet panic=-1"),
            *("-serial", "null", "-serial", f"file:{port}"),
        ]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            deadline = time.monotonic() + timeout
            while time.monotonic() < deadline and process.poll() is None:
                if port.exists() and b'"ready"' in port.read_bytes():
                    return True
                time.sleep(0.05)
            return False
        finally:
            process.kill()
            process.wait()
