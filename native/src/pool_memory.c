/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Memory for the pool: large, sparse, locked.
 *
 * The worker has called mlockall(MCL_CURRENT | MCL_FUTURE), which makes mmap()
 * bring every page of a new mapping into memory: for an arena as large as a
 * guest that would be the guest's memory once more.  There is no flag of mmap()
 * against it.  But the kernel does not populate what nobody may access, so the
 * range is mapped with PROT_NONE, then marked to be locked page by page as they
 * are touched (MLOCK_ONFAULT), and only then made accessible.
 */
#include "pool_priv.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

int pool_map_on_fault(int fd, size_t bytes, void **out)
{
    int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE : MAP_SHARED;
    void *addr = mmap(NULL, bytes, PROT_NONE, flags, fd, 0);
    int ret;

    if (addr == MAP_FAILED) {
        return -errno;
    }
    /*
     * Not allowed to lock as much: then the process is not locked either, or what
     * it inherited from mlockall() has to go before the range can be touched.
     */
    if (mlock2(addr, bytes, MLOCK_ONFAULT) < 0 && munlock(addr, bytes) < 0) {
        goto fail;
    }
    /* The memory in use is counted in slabs, which a huge page would make a lie. */
    if (madvise(addr, bytes, MADV_NOHUGEPAGE) < 0 && errno != EINVAL) {
        goto fail;
    }
    if (mprotect(addr, bytes, PROT_READ | PROT_WRITE) < 0) {
        goto fail;
    }
    *out = addr;
    return 0;

fail:
    ret = -errno;
    munmap(addr, bytes);
    return ret;
}

int pool_memfd(uint64_t bytes)
{
    int fd = memfd_create("uffdmm-pool", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    int ret;

    if (fd < 0) {
        return -errno;
    }
    /* QEMU holds it as well: a file that shrinks would be SIGBUS in the worker */
    if (ftruncate(fd, (off_t)bytes) < 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
        ret = -errno;
        close(fd);
        return ret;
    }
    return fd;
}

int pool_populate(void *addr, size_t bytes)
{
    while (madvise(addr, bytes, MADV_POPULATE_WRITE) < 0) {
        if (errno != EINTR && errno != EAGAIN) {
            return -errno;
        }
    }
    return 0;
}

int pool_punch(int fd, uint64_t offset, uint64_t bytes)
{
    while (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
                     (off_t)bytes) < 0) {
        if (errno != EINTR) {
            return -errno;
        }
    }
    return 0;
}
