/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What this host's kernel offers: one function a finding.
 *
 * Theory of operation
 *
 * A feature bit says that the kernel knows a thing, not that this user may do
 * it or that a sandbox lets it through, so whatever can be tried is tried, on
 * a private mapping of two pages.  The probing thread itself must never touch
 * that mapping while it is registered: nobody serves its faults.  It looks at
 * the pages with pread() on the memfd instead.
 *
 * Headers of a distribution may be older than the running kernel; numbers
 * that Debian 12 does not declare are declared here.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/capability.h>
#include <linux/io_uring.h>
#include <linux/kvm.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "uffdmm/hostprobe.h"

#define TMPFS_MAGIC_NUMBER 0x01021994
#define STORE_PAGE 4096

/* <linux/fs.h> of kernel 6.7 and later; Debian 12 has 6.1's. */
struct pm_scan_arg_v1 {
    uint64_t size;
    uint64_t flags;
    uint64_t start;
    uint64_t end;
    uint64_t walk_end;
    uint64_t vec;
    uint64_t vec_len;
    uint64_t max_pages;
    uint64_t category_inverted;
    uint64_t category_mask;
    uint64_t category_anyof_mask;
    uint64_t return_mask;
};

struct page_region_v1 {
    uint64_t start;
    uint64_t end;
    uint64_t categories;
};

#define PAGEMAP_SCAN_V1 _IOWR('f', 16, struct pm_scan_arg_v1)
#define PAGE_IS_PRESENT_V1 (1ULL << 3)

/* The features that an attached region asks for. */
#define WANTED_FEATURES                                                                  \
    (UFFDMM_UFFD_PAGEFAULT_FLAG_WP | UFFDMM_UFFD_MISSING_SHMEM | UFFDMM_UFFD_THREAD_ID | \
     UFFDMM_UFFD_WP_HUGETLBFS_SHMEM)

/* What the shmem steps work on. */
struct shmem_trial {
    int uffd;
    int memfd;
    uint8_t *map; /* two pages, never touched */
    uint8_t *buf; /* one page, ordinary memory */
    size_t page;
};

/**
 * open_device() - a userfaultfd by way of /dev/userfaultfd
 *
 * Return: descriptor, or -errno
 */
static int open_device(void)
{
    int dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    if (dev < 0) {
        return -errno;
    }

    int uffd = ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
    int ret = uffd < 0 ? -errno : uffd;
    close(dev);
    return ret;
}

/**
 * open_syscall() - a userfaultfd by way of the system call
 *
 * Without UFFD_USER_MODE_ONLY: KVM and system calls of QEMU fault in kernel
 * mode, and those faults must arrive too.
 *
 * Return: descriptor, or -errno
 */
static int open_syscall(void)
{
    int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    return uffd < 0 ? -errno : uffd;
}

/**
 * open_either() - a userfaultfd by the door that QEMU tries first
 *
 * Return: descriptor, or -errno
 */
static int open_either(void)
{
    int uffd = open_device();
    return uffd < 0 ? open_syscall() : uffd;
}

/**
 * enable_api() - shake hands on @uffd, asking for @features
 * @offered: set to all features of the kernel; may be NULL
 *
 * Return: 0, or -errno
 */
static int enable_api(int uffd, uint64_t features, uint64_t *offered)
{
    struct uffdio_api api = {.api = UFFD_API, .features = features};

    if (ioctl(uffd, UFFDIO_API, &api) < 0) {
        return -errno;
    }
    if (offered) {
        *offered = api.features;
    }
    return 0;
}

/**
 * probe_uffd() - both doors, and the features behind them
 */
static void probe_uffd(struct uffdmm_host_facts *facts)
{
    int by_device = open_device();
    int by_syscall = open_syscall();
    int uffd = by_device >= 0 ? by_device : by_syscall;

    facts->uffd_device_error = by_device < 0 ? -by_device : 0;
    facts->uffd_syscall_error = by_syscall < 0 ? -by_syscall : 0;
    facts->uffd_api_error = UFFDMM_PROBE_SKIPPED;
    if (uffd >= 0) {
        facts->uffd_api_error = -enable_api(uffd, 0, &facts->uffd_features);
    }
    if (by_device >= 0) {
        close(by_device);
    }
    if (by_syscall >= 0) {
        close(by_syscall);
    }
}

/* Return: 0 when page @index of the memfd is all @value, else an errno */
static int expect_page(const struct shmem_trial *trial, size_t index, int value)
{
    off_t offset = (off_t)(index * trial->page);
    ssize_t got = pread(trial->memfd, trial->buf, trial->page, offset);

    if (got != (ssize_t)trial->page) {
        return got < 0 ? errno : EIO;
    }
    for (size_t i = 0; i < trial->page; i++) {
        if (trial->buf[i] != (uint8_t)value) {
            return EBADMSG;
        }
    }
    return 0;
}

/* Return: 0 or an errno, as all the steps below */
static int step_register(const struct shmem_trial *trial)
{
    struct uffdio_register reg = {
        .range = {.start = (uintptr_t)trial->map, .len = 2 * trial->page},
        .mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP,
    };
    const uint64_t needed = (1ULL << _UFFDIO_WAKE) | (1ULL << _UFFDIO_COPY) |
                            (1ULL << _UFFDIO_ZEROPAGE) | (1ULL << _UFFDIO_WRITEPROTECT);

    if (ioctl(trial->uffd, UFFDIO_REGISTER, &reg) < 0) {
        return errno;
    }
    return (reg.ioctls & needed) == needed ? 0 : EOPNOTSUPP;
}

static int step_copy(const struct shmem_trial *trial)
{
    struct uffdio_copy copy = {
        .dst = (uintptr_t)trial->map,
        .src = (uintptr_t)trial->buf,
        .len = trial->page,
    };

    memset(trial->buf, 0xa5, trial->page);
    if (ioctl(trial->uffd, UFFDIO_COPY, &copy) < 0) {
        return errno;
    }
    return expect_page(trial, 0, 0xa5);
}

static int step_zeropage(const struct shmem_trial *trial)
{
    struct uffdio_zeropage zero = {
        .range = {.start = (uintptr_t)trial->map + trial->page, .len = trial->page},
    };

    if (ioctl(trial->uffd, UFFDIO_ZEROPAGE, &zero) < 0) {
        return errno;
    }
    return expect_page(trial, 1, 0);
}

static int step_writeprotect(const struct shmem_trial *trial)
{
    struct uffdio_writeprotect wp = {
        .range = {.start = (uintptr_t)trial->map, .len = trial->page},
        .mode = UFFDIO_WRITEPROTECT_MODE_WP,
    };

    if (ioctl(trial->uffd, UFFDIO_WRITEPROTECT, &wp) < 0) {
        return errno;
    }
    wp.mode = 0;
    return ioctl(trial->uffd, UFFDIO_WRITEPROTECT, &wp) < 0 ? errno : 0;
}

/*
 * The second page loses its page-table entry first, as a zap of QEMU does it:
 * exactly the first one must be reported.
 */
static int step_pagemap_scan(const struct shmem_trial *trial)
{
    struct page_region_v1 regions[2];
    struct pm_scan_arg_v1 arg = {
        .size = sizeof(arg),
        .start = (uintptr_t)trial->map,
        .end = (uintptr_t)trial->map + 2 * trial->page,
        .vec = (uintptr_t)regions,
        .vec_len = 2,
        .category_mask = PAGE_IS_PRESENT_V1,
        .return_mask = PAGE_IS_PRESENT_V1,
    };

    if (madvise(trial->map + trial->page, trial->page, MADV_DONTNEED) < 0) {
        return errno;
    }

    int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (pagemap < 0) {
        return errno;
    }
    int found = ioctl(pagemap, PAGEMAP_SCAN_V1, &arg);
    int err = found < 0 ? errno : 0;
    close(pagemap);
    if (err) {
        return err;
    }
    return found == 1 && regions[0].start == arg.start &&
                   regions[0].end == arg.start + trial->page
               ? 0
               : EBADMSG;
}

static int step_punch_hole(const struct shmem_trial *trial)
{
    if (fallocate(trial->memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
                  (off_t)trial->page) < 0) {
        return errno;
    }
    return expect_page(trial, 0, 0);
}

/**
 * run_shmem_steps() - walk through the life of a page; stop at what fails
 */
static void run_shmem_steps(const struct shmem_trial *trial,
                            struct uffdmm_host_facts *facts)
{
    const struct {
        int (*run)(const struct shmem_trial *trial);
        int32_t *finding;
    } steps[] = {
        {step_register, &facts->shmem_register_error},
        {step_copy, &facts->shmem_copy_error},
        {step_zeropage, &facts->shmem_zeropage_error},
        {step_writeprotect, &facts->shmem_writeprotect_error},
    };

    for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
        *steps[i].finding = steps[i].run(trial);
        if (*steps[i].finding) {
            return;
        }
    }
    /* These two need the pages, not one another. */
    facts->pagemap_scan_error = step_pagemap_scan(trial);
    facts->punch_hole_error = step_punch_hole(trial);
}

/**
 * probe_shmem() - set up the two-page mapping and run the steps on it
 *
 * A failure of the set-up itself is reported as one of registration.
 */
static void probe_shmem(struct uffdmm_host_facts *facts)
{
    struct shmem_trial trial = {
        .uffd = -1,
        .memfd = -1,
        .map = MAP_FAILED,
        .buf = MAP_FAILED,
        .page = (size_t)sysconf(_SC_PAGESIZE),
    };
    int err = 0;

    facts->shmem_register_error = UFFDMM_PROBE_SKIPPED;
    facts->shmem_copy_error = UFFDMM_PROBE_SKIPPED;
    facts->shmem_zeropage_error = UFFDMM_PROBE_SKIPPED;
    facts->shmem_writeprotect_error = UFFDMM_PROBE_SKIPPED;
    facts->punch_hole_error = UFFDMM_PROBE_SKIPPED;
    facts->pagemap_scan_error = UFFDMM_PROBE_SKIPPED;
    if (facts->uffd_api_error) {
        return;
    }

    trial.uffd = open_either();
    if (trial.uffd < 0) {
        err = -trial.uffd;
        goto out;
    }
    /* UFFDIO_API refuses unknown bits: ask for what was offered. */
    err = -enable_api(trial.uffd, facts->uffd_features & WANTED_FEATURES, NULL);
    if (err) {
        goto out;
    }
    trial.memfd = memfd_create("uffdmm-probe", MFD_CLOEXEC);
    if (trial.memfd < 0 || ftruncate(trial.memfd, (off_t)(2 * trial.page)) < 0) {
        err = errno;
        goto out;
    }
    trial.map =
        mmap(NULL, 2 * trial.page, PROT_READ | PROT_WRITE, MAP_SHARED, trial.memfd, 0);
    trial.buf = mmap(NULL, trial.page, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (trial.map == MAP_FAILED || trial.buf == MAP_FAILED) {
        err = errno;
        goto out;
    }
    run_shmem_steps(&trial, facts);

out:
    if (err) {
        facts->shmem_register_error = err;
    }
    if (trial.buf != MAP_FAILED) {
        munmap(trial.buf, trial.page);
    }
    if (trial.map != MAP_FAILED) {
        munmap(trial.map, 2 * trial.page);
    }
    if (trial.memfd >= 0) {
        close(trial.memfd);
    }
    if (trial.uffd >= 0) {
        close(trial.uffd);
    }
}

/* Return: 0 when a memfd can be sealed and then refuses to shrink, or errno */
static int probe_memfd_seals(void)
{
    int fd = memfd_create("uffdmm-probe", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    int err = 0;

    if (fd < 0) {
        return errno;
    }
    if (ftruncate(fd, STORE_PAGE) < 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
        err = errno;
    } else if (ftruncate(fd, 0) == 0 || errno != EPERM) {
        err = EBADMSG;
    }
    close(fd);
    return err;
}

/* Return: 0 when the end of a process can be waited for with poll(), or errno */
static int probe_pidfd(void)
{
#ifdef SYS_pidfd_open
    int fd = (int)syscall(SYS_pidfd_open, getpid(), 0);
    if (fd < 0) {
        return errno;
    }

    /* A living process: poll() must accept the descriptor and find nothing. */
    struct pollfd pfd = {.fd = fd, .events = POLLIN};
    int n = poll(&pfd, 1, 0);
    int err = n < 0 ? errno : n > 0 ? EBADMSG : 0;
    close(fd);
    return err;
#else
    return ENOSYS;
#endif
}

/* Return: 0 when the ring @fd knows the operations of a store, or an errno */
static int probe_io_uring_ops(int fd)
{
    static const uint8_t needed[] = {IORING_OP_READ, IORING_OP_WRITE,
                                     IORING_OP_FALLOCATE};
    enum { NR_OPS = 256 };
    size_t size =
        sizeof(struct io_uring_probe) + NR_OPS * sizeof(struct io_uring_probe_op);
    struct io_uring_probe *probe = calloc(1, size);
    int err = 0;

    if (!probe) {
        return ENOMEM;
    }
    if (syscall(SYS_io_uring_register, fd, IORING_REGISTER_PROBE, probe, NR_OPS) < 0) {
        err = errno;
    }
    for (size_t i = 0; !err && i < sizeof(needed); i++) {
        if (needed[i] >= probe->ops_len ||
            !(probe->ops[needed[i]].flags & IO_URING_OP_SUPPORTED)) {
            err = EOPNOTSUPP;
        }
    }
    free(probe);
    return err;
}

/* io_uring may be compiled out, switched off by sysctl or filtered. */
static void probe_io_uring(struct uffdmm_host_facts *facts)
{
    struct io_uring_params params = {0};

    facts->io_uring_op_error = UFFDMM_PROBE_SKIPPED;
    int fd = (int)syscall(SYS_io_uring_setup, 4, &params);
    if (fd < 0) {
        facts->io_uring_error = errno;
        return;
    }
    facts->io_uring_op_error = probe_io_uring_ops(fd);
    close(fd);
}

/* Return: 0 when /dev/kvm opens and makes an (empty) VM, or an errno */
static int probe_kvm(void)
{
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    int err = 0;

    if (kvm < 0) {
        return errno;
    }
    if (ioctl(kvm, KVM_GET_API_VERSION, 0) != KVM_API_VERSION) {
        err = EPROTONOSUPPORT;
    } else {
        int vm = ioctl(kvm, KVM_CREATE_VM, 0);
        if (vm < 0) {
            err = errno;
        } else {
            close(vm);
        }
    }
    close(kvm);
    return err;
}

/* Return: 1 when CAP_IPC_LOCK is effective, else 0 */
static int has_cap_ipc_lock(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {{0}};

    if (syscall(SYS_capget, &header, data) < 0) {
        return 0;
    }
    return !!(data[CAP_TO_INDEX(CAP_IPC_LOCK)].effective & CAP_TO_MASK(CAP_IPC_LOCK));
}

/* Return: the soft limit of @resource, UINT64_MAX when there is none */
static uint64_t soft_limit(int resource)
{
    struct rlimit limit;

    if (getrlimit((__rlimit_resource_t)resource, &limit) < 0) {
        return 0;
    }
    return limit.rlim_cur == RLIM_INFINITY ? UINT64_MAX : (uint64_t)limit.rlim_cur;
}

void uffdmm_probe_host(struct uffdmm_host_facts *facts)
{
    *facts = (struct uffdmm_host_facts){0};
    probe_uffd(facts);
    probe_shmem(facts);
    facts->memfd_seal_error = probe_memfd_seals();
    facts->pidfd_error = probe_pidfd();
    probe_io_uring(facts);
    facts->kvm_error = probe_kvm();
    facts->cap_ipc_lock = has_cap_ipc_lock();
    facts->memlock_limit = soft_limit(RLIMIT_MEMLOCK);
    facts->nofile_limit = soft_limit(RLIMIT_NOFILE);
    facts->page_size = (uint64_t)sysconf(_SC_PAGESIZE);
}

/**
 * open_nameless() - a file in @dir that is gone when it is closed
 *
 * O_TMPFILE is not known to every file system (NFS has none): a named file
 * is made and unlinked then.
 *
 * Return: descriptor, or -errno
 */
static int open_nameless(const char *dir)
{
    char path[PATH_MAX];

    int fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd >= 0) {
        return fd;
    }
    if (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL) {
        return -errno;
    }

    int len = snprintf(path, sizeof(path), "%s/.uffdmm-probe-XXXXXX", dir);
    if (len < 0 || (size_t)len >= sizeof(path)) {
        return -ENAMETOOLONG;
    }
    fd = mkostemp(path, O_CLOEXEC);
    if (fd < 0) {
        return -errno;
    }
    unlink(path);
    return fd;
}

/* Return: 0 when the page at @buf survives a trip to @fd, or an errno */
static int write_and_compare(int fd, uint8_t *buf)
{
    ssize_t done;

    memset(buf, 0x5a, STORE_PAGE);
    done = pwrite(fd, buf, STORE_PAGE, 0);
    if (done != STORE_PAGE) {
        return done < 0 ? errno : EIO;
    }
    memset(buf, 0, STORE_PAGE);
    done = pread(fd, buf, STORE_PAGE, 0);
    if (done != STORE_PAGE) {
        return done < 0 ? errno : EIO;
    }
    for (size_t i = 0; i < STORE_PAGE; i++) {
        if (buf[i] != 0x5a) {
            return EBADMSG;
        }
    }
    return 0;
}

void uffdmm_probe_store(const char *dir, struct uffdmm_store_facts *facts)
{
    struct statvfs space;
    struct statfs kind;
    void *buf = NULL;

    *facts = (struct uffdmm_store_facts){
        .direct_error = UFFDMM_PROBE_SKIPPED,
        .fallocate_error = UFFDMM_PROBE_SKIPPED,
        .io_error = UFFDMM_PROBE_SKIPPED,
        .punch_hole_error = UFFDMM_PROBE_SKIPPED,
    };
    int fd = open_nameless(dir);
    if (fd < 0) {
        facts->open_error = -fd;
        return;
    }

    if (fstatvfs(fd, &space) == 0) {
        facts->free_bytes = (uint64_t)space.f_bavail * space.f_frsize;
    }
    if (fstatfs(fd, &kind) == 0) {
        facts->on_tmpfs = kind.f_type == TMPFS_MAGIC_NUMBER;
    }
    /* Set on the open file: the flag passes the same check as in open(). */
    facts->direct_error = fcntl(fd, F_SETFL, O_DIRECT) < 0 ? errno : 0;
    facts->fallocate_error = fallocate(fd, 0, 0, 2 * STORE_PAGE) < 0 ? errno : 0;
    if (posix_memalign(&buf, STORE_PAGE, STORE_PAGE) == 0) {
        facts->io_error = write_and_compare(fd, buf);
        free(buf);
    } else {
        facts->io_error = ENOMEM;
    }
    if (!facts->io_error) {
        facts->punch_hole_error =
            fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, STORE_PAGE) < 0
                ? errno
                : 0;
    }
    close(fd);
}
