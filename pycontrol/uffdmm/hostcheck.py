# SPDX-License-Identifier: GPL-2.0-or-later
"""What the findings of :mod:`uffdmm.hostfacts` mean: PASS, WARN or FAIL, and the remedy.

FAIL: a VM cannot run, or its memory would not be safe.  WARN: it runs, with a loss that the detail
names.  Each check is one small function of the facts alone, so each outcome can be tested on any
host.  The order is that of the report: what the rest depends on comes first.
"""

import errno
import os
from collections.abc import Callable, Iterable
from enum import Enum

from pydantic import BaseModel, ConfigDict, Field

from ._native import lib
from .hostfacts import SKIPPED, HostFacts, StoreFacts
from .selftest import RaceResult
from .sizes import format_size


class Status(Enum):
    """Outcome of a check, mildest first."""

    PASS = "PASS"
    WARN = "WARN"
    FAIL = "FAIL"


class Check(BaseModel):
    """One line of the report."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(description="stable name of the check")
    title: str = Field(description="what is checked, for people")
    status: Status = Field(description="PASS, WARN or FAIL")
    detail: str = Field(description="what was found")
    remedy: str | None = Field(default=None, description="what to do about it, or null")


# A worker locks its code, stacks and buffers (6 MiB when measured) and 17 bytes of tables and
# about 1 of slots a page of its VM; guest memory is not among them.
_MEMLOCK_FIXED = 8 << 20
_MEMLOCK_PAGES_PER_PAGE = 200
_MEMLOCK_LEAST = 16 << 20
_MEMLOCK_COMFORTABLE = 128 << 20
# Per VM a few descriptors and one or more userfaultfds; an acceptor holds some for each worker.
_NOFILE_NEEDED = 256
_STORE_SMALL = 1 << 30

_UFFD_REMEDY = (
    "give the user that runs QEMU access to /dev/userfaultfd, for example with the udev rule"
    ' KERNEL=="userfaultfd", GROUP="kvm", MODE="0660"; inside a container pass the device through'
)
_UFFD_NEEDED = {
    "PAGEFAULT_FLAG_WP": lib.UFFDMM_UFFD_PAGEFAULT_FLAG_WP,
    "MISSING_SHMEM": lib.UFFDMM_UFFD_MISSING_SHMEM,
    "WP_HUGETLBFS_SHMEM": lib.UFFDMM_UFFD_WP_HUGETLBFS_SHMEM,
    "THREAD_ID": lib.UFFDMM_UFFD_THREAD_ID,
}
_UFFD_OPTIONAL = {
    "WP_UNPOPULATED": lib.UFFDMM_UFFD_WP_UNPOPULATED,
    "POISON": lib.UFFDMM_UFFD_POISON,
    "WP_ASYNC": lib.UFFDMM_UFFD_WP_ASYNC,
    "MOVE": lib.UFFDMM_UFFD_MOVE,
}
_SHMEM_REMEDY = (
    "use a kernel that handles userfaultfd on shared memory with write protection (Linux 5.19 or"
    " later with CONFIG_USERFAULTFD and CONFIG_PTE_MARKER_UFFD_WP)"
)


def _reason(code: int) -> str:
    """An errno in words."""
    if code == SKIPPED:
        return "not tried, an earlier check failed"
    if code == errno.EBADMSG:
        return "it answered, with a wrong result"
    return os.strerror(code).lower()


def _platform(facts: HostFacts) -> Check:
    good = facts.byteorder == "little" and facts.page_size == 4096
    return Check(
        id="platform",
        title="platform",
        status=Status.PASS if good else Status.FAIL,
        detail=(
            f"{facts.machine}, {facts.byteorder}-endian,"
            f" pages of {format_size(facts.page_size)}, kernel {facts.kernel}"
        ),
        remedy=None if good else "use a little-endian host with 4 KiB pages, such as x86-64",
    )


def _userfaultfd(facts: HostFacts) -> Check:
    title = f"userfaultfd for user {facts.user}"
    if not facts.uffd_device_error:
        return Check(
            id="userfaultfd",
            title=title,
            status=Status.PASS,
            detail="/dev/userfaultfd can be used",
        )
    if not facts.uffd_syscall_error:
        return Check(
            id="userfaultfd",
            title=title,
            status=Status.PASS,
            detail=(
                "the system call can be used"
                f" (/dev/userfaultfd: {_reason(facts.uffd_device_error)})"
            ),
        )
    missing = facts.uffd_device_error == errno.ENOENT and facts.uffd_syscall_error == errno.ENOSYS
    detail = (
        f"/dev/userfaultfd: {_reason(facts.uffd_device_error)};"
        f" system call: {_reason(facts.uffd_syscall_error)}"
    )
    if facts.unprivileged_userfaultfd == 0:
        detail += " (vm.unprivileged_userfaultfd is 0)"
    return Check(
        id="userfaultfd",
        title=title,
        status=Status.FAIL,
        detail=detail,
        remedy="use a kernel with CONFIG_USERFAULTFD" if missing else _UFFD_REMEDY,
    )


def _userfaultfd_features(facts: HostFacts) -> Check:
    title = "userfaultfd features"
    if facts.uffd_api_error:
        return Check(
            id="userfaultfd-features",
            title=title,
            status=Status.FAIL,
            detail=_reason(facts.uffd_api_error),
            remedy="see the check before" if facts.uffd_api_error == SKIPPED else _SHMEM_REMEDY,
        )
    absent = [name for name, bit in _UFFD_NEEDED.items() if not facts.uffd_features & bit]
    offered = [name for name, bit in _UFFD_OPTIONAL.items() if facts.uffd_features & bit]
    if absent:
        return Check(
            id="userfaultfd-features",
            title=title,
            status=Status.FAIL,
            detail=f"missing: {', '.join(absent)}",
            remedy=_SHMEM_REMEDY,
        )
    return Check(
        id="userfaultfd-features",
        title=title,
        status=Status.PASS,
        detail=f"all that are needed; optional ones: {', '.join(offered) or 'none'}",
    )


def _tried(
    check_id: str, title: str, steps: dict[str, int], good: str, bad: Status, remedy: str
) -> Check:
    """A check of things that were tried: it passes when none of the steps failed."""
    for name, code in steps.items():
        if code:
            return Check(
                id=check_id,
                title=title,
                status=bad,
                detail=f"{name}: {_reason(code)}",
                remedy="see the checks before" if code == SKIPPED else remedy,
            )
    return Check(id=check_id, title=title, status=Status.PASS, detail=good)


def _shmem_faults(facts: HostFacts) -> Check:
    return _tried(
        "shmem-missing",
        "faults on shared memory",
        {
            "registration": facts.shmem_register_error,
            "UFFDIO_COPY": facts.shmem_copy_error,
            "UFFDIO_ZEROPAGE": facts.shmem_zeropage_error,
        },
        "pages of a memfd were registered and filled",
        Status.FAIL,
        _SHMEM_REMEDY,
    )


def _shmem_write_protection(facts: HostFacts) -> Check:
    return _tried(
        "shmem-write-protect",
        "write protection of shared memory",
        {"UFFDIO_WRITEPROTECT": facts.shmem_writeprotect_error},
        "a page of a memfd was protected and released",
        Status.FAIL,
        _SHMEM_REMEDY,
    )


def _punch_hole(facts: HostFacts) -> Check:
    return _tried(
        "punch-hole",
        "giving memory back",
        {"FALLOC_FL_PUNCH_HOLE": facts.punch_hole_error},
        "a hole was punched into a memfd",
        Status.FAIL,
        "use a kernel whose shared memory supports fallocate (CONFIG_SHMEM)",
    )


def _memfd_seals(facts: HostFacts) -> Check:
    return _tried(
        "memfd-seals",
        "sealed memfd",
        {"memfd_create and F_ADD_SEALS": facts.memfd_seal_error},
        "a memfd was sealed and kept its size",
        Status.FAIL,
        "use a kernel with CONFIG_MEMFD_CREATE; inside a container allow memfd_create",
    )


def _pidfd(facts: HostFacts) -> Check:
    return _tried(
        "pidfd",
        "watching processes",
        {"pidfd_open": facts.pidfd_error},
        "pidfd_open and poll work",
        Status.FAIL,
        "use Linux 5.3 or later; inside a container allow pidfd_open",
    )


def _io_uring(facts: HostFacts) -> Check:
    remedy = "use a kernel with CONFIG_IO_URING; inside a container allow io_uring_setup"
    if facts.io_uring_disabled:
        remedy = "allow it: sysctl kernel.io_uring_disabled=0"
    return _tried(
        "io-uring",
        "io_uring",
        {"io_uring_setup": facts.io_uring_error, "operations": facts.io_uring_op_error},
        "a ring was set up and has the operations of a store",
        Status.FAIL,
        remedy,
    )


def _pagemap_scan(facts: HostFacts) -> Check:
    return _tried(
        "pagemap-scan",
        "access tracking (PAGEMAP_SCAN)",
        {"PAGEMAP_SCAN": facts.pagemap_scan_error},
        "it reported exactly the page in use",
        Status.WARN,
        "use Linux 6.7 or later; without it the manager evicts in order of arrival",
    )


def _locked_memory(facts: HostFacts) -> Check:
    if facts.cap_ipc_lock:
        status, detail = Status.PASS, "CAP_IPC_LOCK: no limit applies"
    elif facts.memlock_limit is None:
        status, detail = Status.PASS, "no limit"
    else:
        limit = facts.memlock_limit
        if limit < _MEMLOCK_LEAST:
            status = Status.FAIL
        else:
            status = Status.PASS if limit >= _MEMLOCK_COMFORTABLE else Status.WARN
        largest = max(0, limit - _MEMLOCK_FIXED) * _MEMLOCK_PAGES_PER_PAGE
        detail = (
            f"limit of {format_size(limit)}: enough for VMs of up to {format_size(largest)} of RAM"
        )
    return Check(
        id="memlock",
        title=f"locked memory for user {facts.user}",
        status=status,
        detail=detail,
        remedy=None
        if status is Status.PASS
        else "raise it for the manager: LimitMEMLOCK=infinity in its systemd unit, or ulimit -l",
    )


def _open_files(facts: HostFacts) -> Check:
    enough = facts.nofile_limit >= _NOFILE_NEEDED
    return Check(
        id="open-files",
        title="open files",
        status=Status.PASS if enough else Status.FAIL,
        detail=f"limit of {facts.nofile_limit}, {_NOFILE_NEEDED} are needed",
        remedy=None if enough else "raise it: LimitNOFILE=4096 in the systemd unit, or ulimit -n",
    )


def _overcommit(facts: HostFacts) -> Check:
    strict = facts.overcommit_memory == 2
    return Check(
        id="overcommit",
        title="memory overcommit of the host",
        status=Status.WARN if strict else Status.PASS,
        detail=f"vm.overcommit_memory is {facts.overcommit_memory}"
        + (": memory may be refused while much is free" if strict else ""),
        remedy="sysctl vm.overcommit_memory=0" if strict else None,
    )


def _host_swap(facts: HostFacts) -> Check:
    devices = ", ".join(facts.swap_devices)
    return Check(
        id="host-swap",
        title="swap of the host",
        status=Status.WARN if devices else Status.PASS,
        detail=f"in use: {devices}; the kernel may swap guest memory behind the manager's back"
        if devices
        else "none",
        remedy="keep guests out of it: memory.swap.max=0 in the cgroup of QEMU, or swapoff -a"
        if devices
        else None,
    )


def _shmem_huge_pages(facts: HostFacts) -> Check:
    setting = facts.shmem_huge_pages
    wide = setting in ("always", "within_size", "force")
    return Check(
        id="shmem-huge-pages",
        title="huge pages of shared memory",
        status=Status.WARN if wide else Status.PASS,
        detail=f"shmem_enabled is {setting or 'not offered'}"
        + (": the kernel may allocate 2 MiB where one page was asked for" if wide else ""),
        remedy="echo never > /sys/kernel/mm/transparent_hugepage/shmem_enabled" if wide else None,
    )


def _hugetlb(facts: HostFacts) -> Check:
    return Check(
        id="hugetlb",
        title="reserved huge pages",
        status=Status.PASS,
        detail=f"{facts.hugetlb_pages} reserved; not used by this version",
    )


def _kvm(facts: HostFacts) -> Check:
    return _tried(
        "kvm",
        "KVM",
        {"/dev/kvm": facts.kvm_error},
        "/dev/kvm makes a VM (how fast guests run on it is not measured here)",
        Status.WARN,
        "load the KVM module and let the user of QEMU open /dev/kvm; without it use -accel tcg",
    )


_HOST_CHECKS: tuple[Callable[[HostFacts], Check], ...] = (
    _platform,
    _userfaultfd,
    _userfaultfd_features,
    _shmem_faults,
    _shmem_write_protection,
    _punch_hole,
    _pagemap_scan,
    _memfd_seals,
    _pidfd,
    _io_uring,
    _locked_memory,
    _open_files,
    _overcommit,
    _host_swap,
    _shmem_huge_pages,
    _hugetlb,
    _kvm,
)


def check_host(facts: HostFacts) -> list[Check]:
    """All checks of the host, in the order of the report."""
    return [check(facts) for check in _HOST_CHECKS]


def check_store(facts: StoreFacts) -> list[Check]:
    """The checks of one directory as the place of a file store."""
    where = f"store directory {facts.directory}"
    if facts.open_error:
        return [
            Check(
                id="store",
                title=where,
                status=Status.FAIL,
                detail=f"no file can be made there: {_reason(facts.open_error)}",
                remedy="create the directory and let the user of the manager write to it",
            )
        ]
    checks = [
        _tried(
            "store",
            where,
            {"O_DIRECT": facts.direct_error, "writing and reading a page": facts.io_error},
            "a page was written and read with O_DIRECT",
            Status.FAIL,
            "choose a directory on a local disk file system such as ext4, xfs or btrfs",
        ),
        _tried(
            "store-space-back",
            f"freed slots in {facts.directory}",
            {"fallocate": facts.fallocate_error, "punching a hole": facts.punch_hole_error},
            "room can be set aside and given back",
            Status.WARN,
            "choose a file system that supports fallocate, or expect the store to keep its size",
        ),
    ]
    small = facts.free_bytes < _STORE_SMALL
    checks.append(
        Check(
            id="store-room",
            title=f"room in {facts.directory}",
            status=Status.WARN if small else Status.PASS,
            detail=f"{format_size(facts.free_bytes)} free",
            remedy="free some, or choose another directory: guests stall when a store is full"
            if small
            else None,
        )
    )
    if facts.on_tmpfs:
        checks.append(
            Check(
                id="store-tmpfs",
                title=f"medium of {facts.directory}",
                status=Status.WARN,
                detail="tmpfs: what is evicted there stays in memory",
                remedy="choose a directory on a disk",
            )
        )
    return checks


def check_race(result: RaceResult) -> Check:
    """What the eviction race on this kernel says."""
    detail = (
        f"{result.lost} updates lost in {result.evictions} evictions; control without"
        f" protection: {result.control_lost} lost in {result.control_evictions}"
    )
    if result.lost or not result.evictions:
        return Check(
            id="self-test",
            title="eviction race",
            status=Status.FAIL,
            detail=detail,
            remedy="do not run guests on this kernel: eviction would corrupt their memory"
            if result.lost
            else "run it again on a less busy host: nothing was evicted",
        )
    if not result.control_lost:
        return Check(
            id="self-test",
            title="eviction race",
            status=Status.WARN,
            detail=detail + "; the test could not see a loss",
            remedy="run it longer with --seconds, on a host with at least two free CPUs",
        )
    return Check(id="self-test", title="eviction race", status=Status.PASS, detail=detail)


def overall(checks: Iterable[Check]) -> Status:
    """The worst of all."""
    order = list(Status)
    return max((check.status for check in checks), key=order.index, default=Status.PASS)
