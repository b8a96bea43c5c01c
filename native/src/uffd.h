/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A thin layer over the userfaultfd ioctls: what can happen, as types. */
#ifndef UFFDMM_UFFD_H
#define UFFDMM_UFFD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "uapi.h"

enum uffd_outcome {
    UFFD_DONE,    /* all of it */
    UFFD_PRESENT, /* stopped at a page that is there already (EEXIST) */
    UFFD_AGAIN,   /* the mapping is being changed, try later (EAGAIN) */
    UFFD_NO_PAGE, /* no memory for it (huge.c) */
    UFFD_GONE,    /* the process behind it has ended (ESRCH) */
    UFFD_ERROR    /* anything else; errno is set */
};

/*
 * UFFDIO_COPY of @len bytes from @src to @dst, clearing write protection, and
 * waking who waits there.
 * *@done: bytes in place, also when stopped early.
 */
enum uffd_outcome uffd_copy(int fd, uint64_t dst, const void *src, size_t len,
                            size_t *done);

/* UFFDIO_ZEROPAGE, otherwise as uffd_copy(). */
enum uffd_outcome uffd_zero(int fd, uint64_t dst, size_t len, size_t *done);

/* Sets or lifts write protection; lifting wakes who waits there. */
enum uffd_outcome uffd_wp(int fd, uint64_t addr, size_t len, bool protect);

/*
 * UFFDIO_POISON: who touches the range, or waits there, gets SIGBUS until something is
 * put in its place.
 */
enum uffd_outcome uffd_poison(int fd, uint64_t addr, size_t len);

/* Whether the kernel has UFFDIO_POISON: 1, 0, or a negative errno when it cannot be asked. */
int uffd_can_poison(void);

/* Wakes who waits in the range: each faults again. */
enum uffd_outcome uffd_wake(int fd, uint64_t addr, size_t len);

/*
 * Reads up to @max messages.  Returns their number, 0 when there are none now,
 * or a negative errno.
 */
int uffd_read(int fd, struct uffd_msg *msgs, int max);

#endif
