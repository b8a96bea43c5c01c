/* SPDX-License-Identifier: GPL-2.0-or-later */
/* See uffd_fixture.h.  Set-up fails the running test; the wrappers return -errno. */
#include "uffd_fixture.h"

#include "unit.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { HUNG_AFTER_S = 300 };

int uffd_open(int flags, uint64_t features)
{
    struct uffdio_api api = {.api = UFFD_API, .features = features};
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | flags);

    if (fd < 0) {
        return -errno;
    }
    if (ioctl(fd, UFFDIO_API, &api) < 0) {
        int ret = -errno;
        close(fd);
        return ret;
    }
    return fd;
}

int uffd_register(int uffd, const void *start, size_t length, uint64_t mode)
{
    struct uffdio_register reg = {
        .range = {.start = (uintptr_t)start, .len = length},
        .mode = mode,
    };

    return ioctl(uffd, UFFDIO_REGISTER, &reg) < 0 ? -errno : 0;
}

void uffd_memory_init(struct uffd_memory *m, size_t nr_pages, uint64_t extra_features)
{
    m->nr_pages = nr_pages;
    m->memfd = memfd_create("uffdmm-test", MFD_CLOEXEC);
    assert_true(m->memfd >= 0);
    assert_return_code(ftruncate(m->memfd, (off_t)(nr_pages * PAGE)), errno);
    m->map = mmap(NULL, nr_pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, m->memfd, 0);
    assert_ptr_not_equal(m->map, MAP_FAILED);
    m->uffd = uffd_open(O_NONBLOCK, UFFD_FEATURE_PAGEFAULT_FLAG_WP |
                                        UFFD_FEATURE_MISSING_SHMEM |
                                        UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
                                        UFFD_FEATURE_THREAD_ID | extra_features);
    assert_return_code(m->uffd, -m->uffd);
    int ret = uffd_register(m->uffd, m->map, nr_pages * PAGE,
                            UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP);
    assert_return_code(ret, -ret);
}

void uffd_memory_deinit(struct uffd_memory *m)
{
    munmap(m->map, m->nr_pages * PAGE);
    if (m->uffd >= 0) {
        close(m->uffd);
    }
    close(m->memfd);
}

int uffd_copy(int uffd, void *dst, const void *src, size_t length, uint64_t mode,
              int64_t *copied)
{
    struct uffdio_copy copy = {
        .dst = (uintptr_t)dst,
        .src = (uintptr_t)src,
        .len = length,
        .mode = mode,
    };
    int ret = ioctl(uffd, UFFDIO_COPY, &copy) < 0 ? -errno : 0;

    if (copied) {
        *copied = copy.copy;
    }
    return ret;
}

int uffd_zeropage(int uffd, void *dst, size_t length)
{
    struct uffdio_zeropage zero = {.range = {.start = (uintptr_t)dst, .len = length}};

    return ioctl(uffd, UFFDIO_ZEROPAGE, &zero) < 0 ? -errno : 0;
}

int uffd_write_protect(int uffd, void *start, size_t length, bool protect)
{
    struct uffdio_writeprotect wp = {
        .range = {.start = (uintptr_t)start, .len = length},
        .mode = protect ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
    };

    return ioctl(uffd, UFFDIO_WRITEPROTECT, &wp) < 0 ? -errno : 0;
}

int uffd_wake(int uffd, void *start, size_t length)
{
    struct uffdio_range range = {.start = (uintptr_t)start, .len = length};

    return ioctl(uffd, UFFDIO_WAKE, &range) < 0 ? -errno : 0;
}

int punch_hole(int memfd, size_t offset, size_t length)
{
    return fallocate(memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
                     (off_t)length) < 0
               ? -errno
               : 0;
}

void uffd_fill(struct uffd_memory *m, size_t pfn, uint8_t byte)
{
    uint8_t content[PAGE];

    memset(content, byte, sizeof(content));
    int ret = uffd_copy(m->uffd, m->map + pfn * PAGE, content, PAGE, 0, NULL);
    assert_return_code(ret, -ret);
}

int uffd_next(int uffd, struct uffd_msg *msg, int timeout_ms)
{
    struct pollfd p = {.fd = uffd, .events = POLLIN};

    if (poll(&p, 1, timeout_ms) < 0) {
        return -errno;
    }
    if (p.revents & POLLERR) {
        return -EBADFD;
    }
    if (!(p.revents & POLLIN)) {
        return 0;
    }
    ssize_t got = read(uffd, msg, sizeof(*msg));
    if (got < 0) {
        return errno == EAGAIN ? 0 : -errno;
    }
    return got == sizeof(*msg) ? 1 : -EIO;
}

uint64_t uffd_expect_fault(struct uffd_memory *m, size_t pfn)
{
    struct uffd_msg msg = {0};

    assert_int_equal(uffd_next(m->uffd, &msg, GOES_ON_MS), 1);
    assert_int_equal(msg.event, UFFD_EVENT_PAGEFAULT);
    assert_int_equal(msg.arg.pagefault.address & ~(uint64_t)(PAGE - 1),
                     (uintptr_t)(m->map + pfn * PAGE));
    return msg.arg.pagefault.flags;
}

void uffd_expect_silence(int uffd)
{
    struct uffd_msg msg;

    assert_int_equal(uffd_next(uffd, &msg, BLOCKED_MS), 0);
}

static void *touch(void *opaque)
{
    struct toucher *t = opaque;

    t->tid = (pid_t)syscall(SYS_gettid);
    switch (t->kind) {
    case TOUCH_READ:
        t->value = *t->address;
        break;
    case TOUCH_WRITE:
        *t->address = t->value;
        break;
    case TOUCH_CALL:
        t->result = t->call(t->arg);
        break;
    }
    atomic_store(&t->done, 1);
    return NULL;
}

static void toucher_start(struct toucher *t)
{
    atomic_store(&t->done, 0);
    t->started = true;
    assert_int_equal(pthread_create(&t->thread, NULL, touch, t), 0);
}

void toucher_read(struct toucher *t, uint8_t *address)
{
    *t = (struct toucher){.kind = TOUCH_READ, .address = address};
    toucher_start(t);
}

void toucher_write(struct toucher *t, uint8_t *address, uint8_t value)
{
    *t = (struct toucher){.kind = TOUCH_WRITE, .address = address, .value = value};
    toucher_start(t);
}

void toucher_call(struct toucher *t, long (*call)(void *arg), void *arg)
{
    *t = (struct toucher){.kind = TOUCH_CALL, .call = call, .arg = arg};
    toucher_start(t);
}

bool toucher_finished(struct toucher *t, int timeout_ms)
{
    int64_t deadline = monotonic_ms() + timeout_ms;

    while (!atomic_load(&t->done)) {
        if (monotonic_ms() >= deadline) {
            return false;
        }
        sleep_ms(1);
    }
    return true;
}

void toucher_join(struct toucher *t)
{
    assert_true(toucher_finished(t, GOES_ON_MS));
    pthread_join(t->thread, NULL);
}

void toucher_expect_blocked(struct toucher *t)
{
    assert_false(toucher_finished(t, BLOCKED_MS));
}

void sleep_ms(int ms)
{
    struct timespec ts = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};

    nanosleep(&ts, NULL);
}

int64_t monotonic_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* UFFDMM_TESTS=pattern runs those tests of a program only: * and ? stand for any characters. */
__attribute__((constructor)) static void choose_tests(void)
{
    const char *pattern = getenv("UFFDMM_TESTS");

    if (pattern) {
        cmocka_set_test_filter(pattern);
    }
}

int end_process_when_hung(void **state)
{
    (void)state;
    /* Default action of SIGALRM: children die with us by PR_SET_PDEATHSIG. */
    alarm(HUNG_AFTER_S);
    return 0;
}

pid_t fork_bound(void)
{
    pid_t parent = getpid();
    pid_t pid = fork();

    assert_true(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) {
            _exit(127);
        }
    }
    return pid;
}

int join_child(pid_t pid)
{
    int status;

    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}
