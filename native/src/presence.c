/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation.  None of the usual questions has an answer for hugetlbfs:
 * SEEK_DATA finds data everywhere, cachestat() refuses, mincore() tells what is
 * mapped.  Nor can UFFDIO_COPY's EEXIST be believed: Linux (seen with 6.18) says so as
 * well when the host has no huge page left.  Who took that for "present" would evict a
 * hole, and the guest would read zeros in place of its data.
 *
 * So there is a mapping of our own, with a userfaultfd of our own that nobody reads:
 * USER_MODE_ONLY, so that the kernel's own access to a missing page fails at once
 * rather than wait.  MADV_POPULATE_READ is such an access: it succeeds on a page that
 * is there and fails on a hole, and fills none.
 */
#include "presence.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

void presence_clear(struct presence *p)
{
    *p = (struct presence){.uffd = -1};
}

/* A userfaultfd over the mapping that lets kernel accesses to holes fail. */
static int guard(struct presence *p)
{
    struct uffdio_api api = {.api = UFFD_API,
                             .features =
                                 UFFD_FEATURE_MISSING_HUGETLBFS | UFFD_FEATURE_SIGBUS};
    struct uffdio_register reg = {
        .range = {.start = (uint64_t)(uintptr_t)p->map, .len = p->size},
        .mode = UFFDIO_REGISTER_MODE_MISSING};

    /* this kind needs no privilege */
    p->uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
    if (p->uffd < 0 || ioctl(p->uffd, UFFDIO_API, &api) < 0 ||
        ioctl(p->uffd, UFFDIO_REGISTER, &reg) < 0) {
        return -errno;
    }
    return 0;
}

int presence_init(struct presence *p, int memfd, uint64_t size)
{
    int ret;

    /*
     * Readable only when it is guarded: the worker has called mlockall(), and a
     * mapping that can be read would be filled with huge pages at once.
     */
    p->map = mmap(NULL, size, PROT_NONE, MAP_SHARED | MAP_NORESERVE, memfd, 0);
    if (p->map == MAP_FAILED) {
        p->map = NULL;
        return -errno;
    }
    p->size = size;
    ret = guard(p);
    if (!ret && mprotect(p->map, size, PROT_READ) < 0) {
        ret = -errno;
    }
    if (ret) {
        presence_deinit(p);
    }
    return ret;
}

void presence_deinit(struct presence *p)
{
    if (p->map) {
        munmap(p->map, p->size);
    }
    if (p->uffd >= 0) {
        close(p->uffd);
    }
    presence_clear(p);
}

bool presence_of(const struct presence *p, uint64_t offset, size_t bytes)
{
    int ret;

    do {
        ret = madvise(p->map + offset, bytes, MADV_POPULATE_READ);
    } while (ret < 0 && (errno == EINTR || errno == EAGAIN));
    madvise(p->map + offset, bytes, MADV_DONTNEED);
    return ret == 0;
}
