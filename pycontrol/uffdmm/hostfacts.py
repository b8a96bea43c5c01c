# SPDX-License-Identifier: GPL-2.0-or-later
"""What this host offers, without any judgement.

The C probes (``native/src/hostprobe.c``) try what has to be tried; the rest is read from /proc and
/sys.  :mod:`uffdmm.hostcheck` says what it means.
"""

import os
import pwd
import sys
from dataclasses import dataclass
from pathlib import Path

from ._native import ffi, lib

# A probe that was not tried because an earlier step failed.
SKIPPED = lib.UFFDMM_PROBE_SKIPPED


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """How a directory does as the place of a file store; ``*_error`` is an errno or 0."""

    directory: str
    open_error: int
    direct_error: int
    fallocate_error: int
    io_error: int
    punch_hole_error: int
    on_tmpfs: bool
    free_bytes: int


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What was found; ``*_error`` is 0, an errno, or SKIPPED."""

    user: str
    kernel: str
    machine: str
    byteorder: str
    page_size: int

    uffd_device_error: int
    uffd_syscall_error: int
    uffd_api_error: int
    uffd_features: int
    shmem_register_error: int
    shmem_copy_error: int
    shmem_zeropage_error: int
    shmem_writeprotect_error: int
    punch_hole_error: int
    pagemap_scan_error: int
    memfd_seal_error: int
    pidfd_error: int
    io_uring_error: int
    io_uring_op_error: int
    kvm_error: int
    cap_ipc_lock: bool
    memlock_limit: int | None
    nofile_limit: int

    # None where the file does not exist on this kernel.
    unprivileged_userfaultfd: int | None
    io_uring_disabled: int | None
    overcommit_memory: int | None
    swap_devices: tuple[str, ...]
    shmem_huge_pages: str | None
    hugetlb_pages: int


_NO_LIMIT = (1 << 64) - 1
_READ_FROM_C = (
    "uffd_device_error",
    "uffd_syscall_error",
    "uffd_api_error",
    "uffd_features",
    "shmem_register_error",
    "shmem_copy_error",
    "shmem_zeropage_error",
    "shmem_writeprotect_error",
    "punch_hole_error",
    "pagemap_scan_error",
    "memfd_seal_error",
    "pidfd_error",
    "io_uring_error",
    "io_uring_op_error",
    "kvm_error",
    "nofile_limit",
    "page_size",
)


def probe_host(root: Path = Path("/")) -> HostFacts:
    """Look at this host.

    :param root: where proc and sys are mounted; another one in tests
    """
    found = ffi.new("struct uffdmm_host_facts *")
    lib.uffdmm_probe_host(found)
    system = os.uname()
    return HostFacts(
        **{name: getattr(found, name) for name in _READ_FROM_C},
        cap_ipc_lock=bool(found.cap_ipc_lock),
        memlock_limit=None if found.memlock_limit == _NO_LIMIT else found.memlock_limit,
        user=_user_name(),
        kernel=system.release,
        machine=system.machine,
        byteorder=sys.byteorder,
        unprivileged_userfaultfd=_number(root / "proc/sys/vm/unprivileged_userfaultfd"),
        io_uring_disabled=_number(root / "proc/sys/kernel/io_uring_disabled"),
        overcommit_memory=_number(root / "proc/sys/vm/overcommit_memory"),
        swap_devices=_swap_devices(root / "proc/swaps"),
        shmem_huge_pages=_chosen(root / "sys/kernel/mm/transparent_hugepage/shmem_enabled"),
        hugetlb_pages=_number(root / "proc/sys/vm/nr_hugepages") or 0,
    )


def probe_store(directory: Path) -> StoreFacts:
    """Try a directory as the place of a file store; leaves nothing behind."""
    found = ffi.new("struct uffdmm_store_facts *")
    lib.uffdmm_probe_store(os.fsencode(directory), found)
    return StoreFacts(
        directory=str(directory),
        open_error=found.open_error,
        direct_error=found.direct_error,
        fallocate_error=found.fallocate_error,
        io_error=found.io_error,
        punch_hole_error=found.punch_hole_error,
        on_tmpfs=bool(found.on_tmpfs),
        free_bytes=found.free_bytes,
    )


def _user_name() -> str:
    uid = os.geteuid()
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text is not None and text.strip().isdecimal() else None


def _swap_devices(path: Path) -> tuple[str, ...]:
    """First column of /proc/swaps without its heading."""
    lines = (_text(path) or "").splitlines()[1:]
    return tuple(line.split()[0] for line in lines if line.strip())


def _chosen(path: Path) -> str | None:
    """The word in brackets of a setting such as ``always [never]``."""
    text = _text(path) or ""
    return next((word[1:-1] for word in text.split() if word.startswith("[")), None)
