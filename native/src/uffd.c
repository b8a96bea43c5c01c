/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The userfaultfd ioctls.  UFFDIO_COPY and ZEROPAGE report a partial success
 * by EAGAIN with the number of bytes done in their struct: an EEXIST in the
 * middle of a range looks the same as a real EAGAIN, so callers go on behind
 * what is done and learn the truth from the next call.
 */
#include "uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static enum uffd_outcome outcome_of_errno(void)
{
    switch (errno) {
    case EEXIST:
        return UFFD_PRESENT;
    case EAGAIN:
        return UFFD_AGAIN;
    case ESRCH:
        return UFFD_GONE;
    default:
        return UFFD_ERROR;
    }
}

enum uffd_outcome uffd_copy(int fd, uint64_t dst, const void *src, size_t len,
                            size_t *done)
{
    struct uffdio_copy arg = {
        .dst = dst,
        .src = (uint64_t)(uintptr_t)src,
        .len = len,
    };

    if (ioctl(fd, UFFDIO_COPY, &arg) == 0) {
        *done = len;
        return UFFD_DONE;
    }
    *done = arg.copy > 0 ? (size_t)arg.copy : 0;
    return outcome_of_errno();
}

enum uffd_outcome uffd_zero(int fd, uint64_t dst, size_t len, size_t *done)
{
    struct uffdio_zeropage arg = {.range = {.start = dst, .len = len}};

    if (ioctl(fd, UFFDIO_ZEROPAGE, &arg) == 0) {
        *done = len;
        return UFFD_DONE;
    }
    *done = arg.zeropage > 0 ? (size_t)arg.zeropage : 0;
    return outcome_of_errno();
}

enum uffd_outcome uffd_wp(int fd, uint64_t addr, size_t len, bool protect)
{
    struct uffdio_writeprotect arg = {
        .range = {.start = addr, .len = len},
        .mode = protect ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
    };

    return ioctl(fd, UFFDIO_WRITEPROTECT, &arg) == 0 ? UFFD_DONE : outcome_of_errno();
}

enum uffd_outcome uffd_poison(int fd, uint64_t addr, size_t len)
{
    struct uffdio_poison arg = {.range = {.start = addr, .len = len}};

    return ioctl(fd, UFFDIO_POISON, &arg) == 0 ? UFFD_DONE : outcome_of_errno();
}

int uffd_can_poison(void)
{
    struct uffdio_api api = {.api = UFFD_API};
    /* of this kind anybody may have one */
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
    int ret;

    if (fd < 0) {
        return -errno;
    }
    ret = ioctl(fd, UFFDIO_API, &api) < 0 ? -errno
                                          : (api.features & UFFD_FEATURE_POISON) != 0;
    close(fd);
    return ret;
}

enum uffd_outcome uffd_wake(int fd, uint64_t addr, size_t len)
{
    struct uffdio_range arg = {.start = addr, .len = len};

    return ioctl(fd, UFFDIO_WAKE, &arg) == 0 ? UFFD_DONE : outcome_of_errno();
}

int uffd_read(int fd, struct uffd_msg *msgs, int max)
{
    ssize_t n = read(fd, msgs, (size_t)max * sizeof(*msgs));

    if (n < 0) {
        return errno == EAGAIN || errno == EINTR ? 0 : -errno;
    }
    return (int)(n / (ssize_t)sizeof(*msgs));
}
