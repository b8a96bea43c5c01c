/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the userfaultfd tests share: a piece of shared memory registered the way
 * QEMU registers guest memory, one-line wrappers that return -errno, and a
 * thread that touches a page so that a test can watch whether it gets through.
 */
#ifndef UFFDMM_TEST_UFFD_FIXTURE_H
#define UFFDMM_TEST_UFFD_FIXTURE_H

#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Debian 12's header ends before these; values from the kernel's uapi header. */
#ifndef UFFD_FEATURE_POISON
#define UFFD_FEATURE_POISON (1 << 14)
#define _UFFDIO_POISON (0x08)
#define UFFDIO_POISON _IOWR(UFFDIO, _UFFDIO_POISON, struct uffdio_poison)
struct uffdio_poison {
    struct uffdio_range range;
    __u64 mode;
    __s64 updated;
};
#endif

enum {
    PAGE = 4096,
    /* A blocked thread is one that made no progress for this long. */
    BLOCKED_MS = 60,
    /* A thread that is free to go on does so within this time, on a busy host too. */
    GOES_ON_MS = 5000
};

struct uffd_memory {
    int memfd;
    int uffd; /* non-blocking, -1 when a test closed it */
    uint8_t *map;
    size_t nr_pages;
};

/* Opens a userfaultfd with exactly these features; -errno. */
int uffd_open(int flags, uint64_t features);
int uffd_register(int uffd, const void *start, size_t length, uint64_t mode);

/*
 * A memfd of nr_pages holes, mapped shared, registered MISSING|WP on a new
 * userfaultfd with QEMU's features and `extra_features`.  Fails the test.
 */
void uffd_memory_init(struct uffd_memory *m, size_t nr_pages, uint64_t extra_features);
void uffd_memory_deinit(struct uffd_memory *m);

/* Thin wrappers: 0 or -errno. */
int uffd_copy(int uffd, void *dst, const void *src, size_t length, uint64_t mode,
              int64_t *copied);
int uffd_zeropage(int uffd, void *dst, size_t length);
int uffd_write_protect(int uffd, void *start, size_t length, bool protect);
int uffd_wake(int uffd, void *start, size_t length);
int punch_hole(int memfd, size_t offset, size_t length);

/* Fills page pfn with `byte` by UFFDIO_COPY; fails the test when that fails. */
void uffd_fill(struct uffd_memory *m, size_t pfn, uint8_t byte);

/* Reads one message within the time; 1, 0 when none came, -errno. */
int uffd_next(int uffd, struct uffd_msg *msg, int timeout_ms);
/* Reads one page fault and checks its address; returns its flags. */
uint64_t uffd_expect_fault(struct uffd_memory *m, size_t pfn);
void uffd_expect_silence(int uffd);

enum touch_kind { TOUCH_READ, TOUCH_WRITE, TOUCH_CALL };

/* A thread that calls TOUCH_CALL's function, or reads or writes one byte. */
struct toucher {
    pthread_t thread;
    enum touch_kind kind;
    volatile uint8_t *address;
    uint8_t value; /* read: what was seen; write: what to write */
    long (*call)(void *arg);
    void *arg;
    long result; /* of call */
    pid_t tid;
    bool started;
    _Atomic int done;
};

void toucher_read(struct toucher *t, uint8_t *address);
void toucher_write(struct toucher *t, uint8_t *address, uint8_t value);
void toucher_call(struct toucher *t, long (*call)(void *arg), void *arg);
/* True when the thread got through within the time. */
bool toucher_finished(struct toucher *t, int timeout_ms);
/* The thread must get through; joins it. */
void toucher_join(struct toucher *t);
/* The thread must be stuck now. */
void toucher_expect_blocked(struct toucher *t);

void sleep_ms(int ms);
int64_t monotonic_ms(void);

/* cmocka group set-up: skips nothing, but ends the process when it hangs. */
int end_process_when_hung(void **state);

/* fork() whose child dies with the test; fails the test. */
pid_t fork_bound(void);
/* Waits for the child and returns its exit status; fails when a signal ended it. */
int join_child(pid_t pid);

#endif
