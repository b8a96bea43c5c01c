# SPDX-License-Identifier: GPL-2.0-or-later
"""Judgement of made-up findings, and the real probes on this host."""

import dataclasses
import errno
import os
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from made_up_host import GOOD, GOOD_STORE
from uffdmm import SelfTestError, hostcheck, hostfacts, selftest
from uffdmm._native import lib
from uffdmm.hostcheck import Status
from uffdmm.hostfacts import SKIPPED
from uffdmm.selftest import RaceResult


def test_a_good_host_passes_everything() -> None:
    checks = hostcheck.check_host(GOOD)
    assert [check.id for check in checks if check.status is not Status.PASS] == []
    assert len({check.id for check in checks}) == len(checks) >= 17
    assert all(check.remedy is None for check in checks)


ALL_UFFD_SKIPPED = {
    "uffd_api_error": SKIPPED,
    "shmem_register_error": SKIPPED,
    "shmem_copy_error": SKIPPED,
    "shmem_zeropage_error": SKIPPED,
    "shmem_writeprotect_error": SKIPPED,
    "punch_hole_error": SKIPPED,
    "pagemap_scan_error": SKIPPED,
}


@pytest.mark.parametrize(
    ("change", "check_id", "status", "detail", "remedy"),
    [
        ({"byteorder": "big"}, "platform", "FAIL", "big-endian", "little-endian"),
        ({"page_size": 65536}, "platform", "FAIL", "64.0 KiB", "4 KiB pages"),
        (
            {"uffd_device_error": errno.EACCES} | ALL_UFFD_SKIPPED,
            "userfaultfd",
            "FAIL",
            "permission denied.*unprivileged_userfaultfd is 0",
            "udev rule",
        ),
        (
            {"uffd_device_error": errno.ENOENT, "uffd_syscall_error": errno.ENOSYS},
            "userfaultfd",
            "FAIL",
            "function not implemented",
            "CONFIG_USERFAULTFD",
        ),
        (
            {"uffd_device_error": errno.ENOENT, "uffd_syscall_error": 0},
            "userfaultfd",
            "PASS",
            "the system call can be used",
            None,
        ),
        (ALL_UFFD_SKIPPED, "userfaultfd-features", "FAIL", "not tried", "check before"),
        ({"uffd_api_error": errno.EINVAL}, "userfaultfd-features", "FAIL", "invalid", "kernel"),
        (
            {"uffd_features": 0x1FFFF & ~lib.UFFDMM_UFFD_WP_HUGETLBFS_SHMEM},
            "userfaultfd-features",
            "FAIL",
            "missing: WP_HUGETLBFS_SHMEM$",
            "CONFIG_PTE_MARKER_UFFD_WP",
        ),
        ({"uffd_features": 0}, "userfaultfd-features", "FAIL", "MISSING_SHMEM.*THREAD_ID", "5.19"),
        (
            {"uffd_features": 0x1121},
            "userfaultfd-features",
            "PASS",
            "optional ones: none",
            None,
        ),
        (ALL_UFFD_SKIPPED, "shmem-missing", "FAIL", "not tried", "checks before"),
        ({"shmem_register_error": errno.EINVAL}, "shmem-missing", "FAIL", "registration", "kernel"),
        ({"shmem_copy_error": errno.EBADMSG}, "shmem-missing", "FAIL", "wrong result", "kernel"),
        ({"shmem_zeropage_error": errno.EIO}, "shmem-missing", "FAIL", "ZEROPAGE", "kernel"),
        (
            {"shmem_writeprotect_error": errno.EINVAL},
            "shmem-write-protect",
            "FAIL",
            "UFFDIO_WRITEPROTECT",
            "5.19",
        ),
        ({"punch_hole_error": errno.EOPNOTSUPP}, "punch-hole", "FAIL", "PUNCH_HOLE", "SHMEM"),
        (
            {"pagemap_scan_error": errno.ENOTTY},
            "pagemap-scan",
            "WARN",
            "PAGEMAP",
            "order",
        ),
        ({"memfd_seal_error": errno.EINVAL}, "memfd-seals", "FAIL", "F_ADD_SEALS", "container"),
        ({"pidfd_error": errno.ENOSYS}, "pidfd", "FAIL", "pidfd_open", "5.3"),
        ({"io_uring_error": errno.ENOSYS}, "io-uring", "FAIL", "io_uring_setup", "CONFIG_IO_URING"),
        (
            {"io_uring_error": errno.EPERM, "io_uring_disabled": 2},
            "io-uring",
            "FAIL",
            "not permitted",
            "kernel.io_uring_disabled=0",
        ),
        ({"io_uring_op_error": errno.EOPNOTSUPP}, "io-uring", "FAIL", "operations", "kernel"),
        (
            {"memlock_limit": 8 << 20},
            "memlock",
            "FAIL",
            "8.00 MiB: .* up to 0 B",
            "LimitMEM",
        ),
        ({"memlock_limit": 64 << 20}, "memlock", "WARN", "up to 10.9 GiB", "LimitMEMLOCK"),
        ({"memlock_limit": 1 << 30}, "memlock", "PASS", "1.00 GiB", None),
        ({"memlock_limit": 0, "cap_ipc_lock": True}, "memlock", "PASS", "CAP_IPC_LOCK", None),
        ({"nofile_limit": 64}, "open-files", "FAIL", "limit of 64", "LimitNOFILE"),
        ({"overcommit_memory": 2}, "overcommit", "WARN", "is 2", "overcommit_memory=0"),
        ({"overcommit_memory": 1}, "overcommit", "PASS", "is 1", None),
        ({"swap_devices": ("/a", "/b")}, "host-swap", "WARN", "/a, /b", "memory.swap.max"),
        ({"shmem_huge_pages": "always"}, "shmem-huge-pages", "WARN", "always", "echo never"),
        ({"shmem_huge_pages": "within_size"}, "shmem-huge-pages", "WARN", "within", "echo never"),
        ({"shmem_huge_pages": "advise"}, "shmem-huge-pages", "PASS", "advise", None),
        ({"shmem_huge_pages": None}, "shmem-huge-pages", "PASS", "not offered", None),
        ({"hugetlb_pages": 7}, "hugetlb", "PASS", "7 reserved", None),
        ({"kvm_error": errno.ENOENT}, "kvm", "WARN", "no such file", "-accel tcg"),
    ],
)
def test_judgement(
    change: dict[str, object], check_id: str, status: str, detail: str, remedy: str | None
) -> None:
    facts = dataclasses.replace(GOOD, **change)  # type: ignore[arg-type]
    checks = {check.id: check for check in hostcheck.check_host(facts)}
    check = checks[check_id]
    assert check.status.value == status
    assert re.search(detail, check.detail)
    if remedy is None:
        assert check.remedy is None
    else:
        assert check.remedy is not None
        assert re.search(remedy, check.remedy)


@pytest.mark.parametrize(
    ("change", "check_id", "status", "detail"),
    [
        ({"open_error": errno.ENOENT}, "store", "FAIL", "no such file"),
        ({"open_error": errno.EACCES}, "store", "FAIL", "permission denied"),
        ({"direct_error": errno.EINVAL}, "store", "FAIL", "O_DIRECT"),
        ({"io_error": errno.ENOSPC}, "store", "FAIL", "no space left"),
        ({"fallocate_error": errno.EOPNOTSUPP}, "store-space-back", "WARN", "fallocate"),
        ({"punch_hole_error": errno.EOPNOTSUPP}, "store-space-back", "WARN", "punching"),
        ({"free_bytes": 1 << 20}, "store-room", "WARN", "1.00 MiB free"),
        ({"on_tmpfs": True}, "store-tmpfs", "WARN", "stays in memory"),
    ],
)
def test_judgement_of_a_store(
    change: dict[str, object], check_id: str, status: str, detail: str
) -> None:
    facts = dataclasses.replace(GOOD_STORE, **change)  # type: ignore[arg-type]
    checks = {check.id: check for check in hostcheck.check_store(facts)}
    assert checks[check_id].status.value == status
    assert detail in checks[check_id].detail
    assert checks[check_id].remedy


def test_a_good_store_passes() -> None:
    assert hostcheck.overall(hostcheck.check_store(GOOD_STORE)) is Status.PASS


@pytest.mark.parametrize(
    ("race", "status", "words"),
    [
        (RaceResult(1000, 0, 1000, 5), "PASS", "0 updates lost in 1000 evictions"),
        (RaceResult(1000, 1, 1000, 5), "FAIL", "1 updates lost"),
        (RaceResult(1000, 1, 1000, 0), "FAIL", "1 updates lost"),
        (RaceResult(1000, 0, 1000, 0), "WARN", "could not see a loss"),
        (RaceResult(0, 0, 0, 0), "FAIL", "0 evictions"),
    ],
)
def test_judgement_of_the_race(race: RaceResult, status: str, words: str) -> None:
    check = hostcheck.check_race(race)
    assert check.status.value == status
    assert words in check.detail
    assert (check.remedy is None) == (status == "PASS")


def test_the_worst_counts() -> None:
    checks = hostcheck.check_host(dataclasses.replace(GOOD, kvm_error=2))
    assert hostcheck.overall(checks) is Status.WARN
    checks = hostcheck.check_host(dataclasses.replace(GOOD, kvm_error=2, pidfd_error=2))
    assert hostcheck.overall(checks) is Status.FAIL
    assert hostcheck.overall([]) is Status.PASS


# The real probes.


@pytest.fixture
def proc_and_sys(tmp_path: Path) -> Path:
    """A root with the files that are read, as a busy host might have them."""
    files = {
        "proc/sys/vm/unprivileged_userfaultfd": "1\n",
        "proc/sys/kernel/io_uring_disabled": "2\n",
        "proc/sys/vm/overcommit_memory": "2\n",
        "proc/sys/vm/nr_hugepages": "12\n",
        "proc/swaps": "Filename\tType\n/dev/vda2 partition 1 0 -2\n/swapfile file 1 0 -3\n",
        "sys/kernel/mm/transparent_hugepage/shmem_enabled": "always [advise] never\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_settings_are_read(proc_and_sys: Path) -> None:
    facts = hostfacts.probe_host(proc_and_sys)
    assert facts.unprivileged_userfaultfd == 1
    assert facts.io_uring_disabled == 2
    assert facts.overcommit_memory == 2
    assert facts.hugetlb_pages == 12
    assert facts.swap_devices == ("/dev/vda2", "/swapfile")
    assert facts.shmem_huge_pages == "advise"


def test_settings_that_the_kernel_lacks(tmp_path: Path) -> None:
    facts = hostfacts.probe_host(tmp_path)
    assert facts.unprivileged_userfaultfd is None
    assert facts.shmem_huge_pages is None
    assert facts.swap_devices == ()
    assert facts.hugetlb_pages == 0


def test_limits_are_those_of_this_process() -> None:
    facts = hostfacts.probe_host()
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert facts.nofile_limit == soft
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    assert facts.memlock_limit == (None if locked == resource.RLIM_INFINITY else locked)
    assert facts.page_size == os.sysconf("SC_PAGESIZE")
    assert facts.byteorder == sys.byteorder


def test_probing_leaves_no_descriptor(no_fd_leak: None, tmp_path: Path) -> None:
    for _ in range(3):
        hostfacts.probe_host()
        hostfacts.probe_store(tmp_path)


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    """No further descriptor can be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_probes_report_the_errno_that_they_got(few_descriptors: None) -> None:
    facts = hostfacts.probe_host()
    assert facts.nofile_limit == 3
    assert facts.uffd_syscall_error in {errno.EMFILE, errno.EPERM, errno.ENOSYS}
    assert facts.uffd_api_error == SKIPPED
    assert facts.shmem_copy_error == SKIPPED
    assert facts.memfd_seal_error == errno.EMFILE
    assert facts.pidfd_error == errno.EMFILE
    assert facts.io_uring_error in {errno.EMFILE, errno.EPERM, errno.ENOSYS}


def test_steps_on_shared_memory_on_this_kernel() -> None:
    facts = hostfacts.probe_host()
    if facts.uffd_api_error:
        pytest.skip(f"no userfaultfd for {facts.user}: errno {facts.uffd_syscall_error}")
    wanted = lib.UFFDMM_UFFD_WP_HUGETLBFS_SHMEM | lib.UFFDMM_UFFD_MISSING_SHMEM
    if facts.uffd_features & wanted != wanted:
        pytest.skip("this kernel cannot write-protect shared memory")
    assert facts.shmem_register_error == 0
    assert facts.shmem_copy_error == 0
    assert facts.shmem_zeropage_error == 0
    assert facts.shmem_writeprotect_error == 0
    assert facts.punch_hole_error == 0


def test_store_in_a_directory_leaves_nothing_behind(tmp_path: Path) -> None:
    facts = hostfacts.probe_store(tmp_path)
    assert facts.open_error == 0
    assert facts.io_error == 0
    assert facts.free_bytes > 0
    assert list(tmp_path.iterdir()) == []


def test_store_that_does_not_exist(tmp_path: Path) -> None:
    facts = hostfacts.probe_store(tmp_path / "absent")
    assert facts.open_error == errno.ENOENT
    assert facts.direct_error == SKIPPED


def test_store_on_tmpfs_is_noticed() -> None:
    shm = Path("/dev/shm")
    mounts = Path("/proc/mounts").read_text().splitlines()
    if not any(line.split()[1:3] == [str(shm), "tmpfs"] for line in mounts):
        pytest.skip("/dev/shm is no tmpfs here")
    assert hostfacts.probe_store(shm).on_tmpfs


def test_the_race_reports_what_it_cannot_do(few_descriptors: None) -> None:
    with pytest.raises(SelfTestError, match=r"the self-test could not run: ."):
        selftest.run_race(1, protect=True)
