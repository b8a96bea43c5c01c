# SPDX-License-Identifier: GPL-2.0-or-later
"""Findings of a host and a store on which everything is right."""

import errno

from uffdmm.hostfacts import HostFacts, StoreFacts

GOOD = HostFacts(
    user="qemu",
    kernel="6.12.0",
    machine="x86_64",
    byteorder="little",
    page_size=4096,
    uffd_device_error=0,
    uffd_syscall_error=errno.EPERM,
    uffd_api_error=0,
    uffd_features=0x1FFFF,
    shmem_register_error=0,
    shmem_copy_error=0,
    shmem_zeropage_error=0,
    shmem_writeprotect_error=0,
    punch_hole_error=0,
    pagemap_scan_error=0,
    memfd_seal_error=0,
    pidfd_error=0,
    io_uring_error=0,
    io_uring_op_error=0,
    kvm_error=0,
    cap_ipc_lock=False,
    memlock_limit=None,
    nofile_limit=1024,
    unprivileged_userfaultfd=0,
    io_uring_disabled=0,
    overcommit_memory=0,
    swap_devices=(),
    shmem_huge_pages="never",
    hugetlb_pages=0,
)
GOOD_STORE = StoreFacts(
    directory="/var/lib/uffdmm",
    open_error=0,
    direct_error=0,
    fallocate_error=0,
    io_error=0,
    punch_hole_error=0,
    on_tmpfs=False,
    free_bytes=100 << 30,
)
