/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What this host's kernel offers to an ordinary process of the calling user.
 * Each probe tries the thing itself and reports the errno it got; nothing is
 * concluded from a kernel version.  Judging the findings (needed, wanted,
 * remedy) is the caller's job: uffdmm check-host.
 *
 * Parsed by cffi like protocol.h, hence the same rules.
 */
#ifndef UFFDMM_HOSTPROBE_H
#define UFFDMM_HOSTPROBE_H

#ifndef UFFDMM_CFFI
#include <stdint.h>
#endif

/* Features of userfaultfd, numbered as in the kernel's UFFD_FEATURE_*. */
enum uffdmm_uffd_feature {
    UFFDMM_UFFD_PAGEFAULT_FLAG_WP = 0x1,
    UFFDMM_UFFD_MISSING_HUGETLBFS = 0x10,
    UFFDMM_UFFD_MISSING_SHMEM = 0x20,
    UFFDMM_UFFD_THREAD_ID = 0x100,
    UFFDMM_UFFD_MINOR_HUGETLBFS = 0x200,
    UFFDMM_UFFD_MINOR_SHMEM = 0x400,
    UFFDMM_UFFD_EXACT_ADDRESS = 0x800,
    UFFDMM_UFFD_WP_HUGETLBFS_SHMEM = 0x1000,
    UFFDMM_UFFD_WP_UNPOPULATED = 0x2000,
    UFFDMM_UFFD_POISON = 0x4000,
    UFFDMM_UFFD_WP_ASYNC = 0x8000,
    UFFDMM_UFFD_MOVE = 0x10000
};

/*
 * Findings.  A field named *_error is 0 when the thing worked, else the errno
 * of the step that failed; UFFDMM_PROBE_SKIPPED when an earlier step that it
 * builds on failed.
 */
enum uffdmm_probe_consts { UFFDMM_PROBE_SKIPPED = -1 };

struct uffdmm_host_facts {
    /* userfaultfd that also catches faults of the kernel, by either door */
    int32_t uffd_device_error;  /* /dev/userfaultfd, USERFAULTFD_IOC_NEW */
    int32_t uffd_syscall_error; /* userfaultfd(2) */
    int32_t uffd_api_error;     /* UFFDIO_API */
    int32_t pad;
    uint64_t uffd_features; /* all that UFFDIO_API reports */

    /* on a two-page memfd mapping, one step after the other */
    int32_t shmem_register_error;     /* MISSING and WP together */
    int32_t shmem_copy_error;         /* UFFDIO_COPY, content compared */
    int32_t shmem_zeropage_error;     /* UFFDIO_ZEROPAGE */
    int32_t shmem_writeprotect_error; /* UFFDIO_WRITEPROTECT, set and cleared */
    int32_t punch_hole_error;         /* fallocate(FALLOC_FL_PUNCH_HOLE) */
    int32_t pagemap_scan_error;       /* PAGEMAP_SCAN, result compared */

    int32_t memfd_seal_error;  /* F_SEAL_SHRINK | F_SEAL_GROW, and they hold */
    int32_t pidfd_error;       /* pidfd_open, and poll on it */
    int32_t io_uring_error;    /* io_uring_setup */
    int32_t io_uring_op_error; /* the ring offers READ, WRITE and FALLOCATE */
    int32_t kvm_error;         /* /dev/kvm opens and makes a VM */
    int32_t cap_ipc_lock;      /* 1: may lock memory past RLIMIT_MEMLOCK */

    uint64_t memlock_limit; /* bytes, soft; UINT64_MAX: none */
    uint64_t nofile_limit;  /* descriptors, soft */
    uint64_t page_size;     /* bytes */
};

/* Fills @facts.  Cannot fail: what does not work is a finding. */
void uffdmm_probe_host(struct uffdmm_host_facts *facts);

struct uffdmm_store_facts {
    int32_t open_error;       /* a nameless or unlinked file in the directory */
    int32_t direct_error;     /* O_DIRECT on it */
    int32_t fallocate_error;  /* room can be set aside */
    int32_t io_error;         /* one page written, read back and compared */
    int32_t punch_hole_error; /* freed slots can be given back */
    int32_t on_tmpfs;         /* 1: the "disk" is memory */
    uint64_t free_bytes;      /* for an unprivileged user */
};

/*
 * Tries @dir as the place of a file store.  Leaves nothing behind.
 * Cannot fail: what does not work is a finding.
 */
void uffdmm_probe_store(const char *dir, struct uffdmm_store_facts *facts);

#endif
