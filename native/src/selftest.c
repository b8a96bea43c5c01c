/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The eviction race as a library call.  What the writers do is here; the evictor
 * is race_evict.c.
 *
 * Theory of operation.  The caller may be a Python process with threads, so the
 * work is split so that the forked child needs nothing but system calls and
 * pthread_create: all memory is mapped, and all errors are words in a shared
 * page.  The child maps the memfd, registers it and passes its userfaultfd over
 * a socket; the socket's end also tells either side that the other one died.
 *
 * Every writer owns one 8-byte word of each page, so pages are shared between
 * writers and words are not.  A writer remembers each word's value in memory
 * that is never evicted: when the word does not hold what it last stored there,
 * updates were lost.  After the deadline the writers end, and a last pass over
 * all words (whose pages fault in again) catches losses that nobody came by.
 */
#include "uffdmm/selftest.h"

#include "race_evict.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

enum {
    NR_PAGES = 256,
    NR_WRITERS = 2,
    BURST = 64,          /* increments of one visit to a page */
    START_TIMEOUT = 5,   /* seconds until the child must have registered */
    FINISH_TIMEOUT = 10, /* seconds for the last pass after the deadline */
    SECONDS_MAX = 60
};

/* Shared by caller and child; anonymous, so nothing here is ever evicted. */
struct race_shared {
    _Atomic uint32_t stop;
    _Atomic uint32_t finished; /* last pass done, `lost` is final */
    _Atomic uint64_t lost;
    _Atomic uint64_t updates;
    int32_t failure;    /* errno of the child's set-up, 0 if it went well */
    uint32_t failed_at; /* index into child_steps */
    uint64_t base;      /* address of the memory in the child */
    uint64_t expected[NR_WRITERS][NR_PAGES];
};

static const char *const child_steps[] = {
    "open a userfaultfd", "map the memory",       "register the memory",
    "start a writer",     "pass the userfaultfd",
};
enum { STEP_OPEN, STEP_MAP, STEP_REGISTER, STEP_THREAD, STEP_PASS };

struct writer {
    struct race_shared *shared;
    uint8_t *memory;
    uint32_t index;
};

/* ---- child --------------------------------------------------------------- */

static void check_word(struct race_shared *s, uint32_t writer, uint32_t pfn,
                       uint64_t seen)
{
    uint64_t expected = s->expected[writer][pfn];

    if (seen != expected) {
        /* An older value is that many updates lost; anything else is one wrong word. */
        atomic_fetch_add(&s->lost, seen < expected ? expected - seen : 1);
        s->expected[writer][pfn] = seen;
    }
}

static volatile uint64_t *word_of(uint8_t *memory, uint32_t writer, uint32_t pfn)
{
    return (volatile uint64_t *)(memory + (size_t)pfn * RACE_PAGE_SIZE) + writer;
}

static void *write_counters(void *opaque)
{
    struct writer *w = opaque;
    struct race_shared *s = w->shared;
    uint64_t random = 0x2545f4914f6cdd1dULL + w->index;
    uint64_t updates = 0;

    while (!atomic_load_explicit(&s->stop, memory_order_relaxed)) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        uint32_t pfn = (uint32_t)(random % NR_PAGES);
        volatile uint64_t *word = word_of(w->memory, w->index, pfn);
        for (int i = 0; i < BURST; i++) {
            uint64_t seen = *word;
            check_word(s, w->index, pfn, seen);
            *word = seen + 1;
            s->expected[w->index][pfn] = seen + 1;
        }
        updates += BURST;
    }
    atomic_fetch_add(&s->updates, updates);
    return NULL;
}

static int open_uffd(void)
{
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

    if (fd >= 0 || errno != EPERM) {
        return fd < 0 ? -errno : fd;
    }
    /* Without the capability the device node may still be open to us. */
    int dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    if (dev < 0) {
        return -EPERM;
    }
    fd = ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
    int ret = fd < 0 ? -errno : fd;
    close(dev);
    return ret;
}

static int register_memory(int uffd, uint8_t *memory, size_t size)
{
    struct uffdio_api api = {
        .api = UFFD_API,
        .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_MISSING_SHMEM |
                    UFFD_FEATURE_WP_HUGETLBFS_SHMEM,
    };
    struct uffdio_register reg = {
        .range = {.start = (uint64_t)(uintptr_t)memory, .len = size},
        .mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP,
    };

    if (ioctl(uffd, UFFDIO_API, &api) < 0 || ioctl(uffd, UFFDIO_REGISTER, &reg) < 0) {
        return -errno;
    }
    return 0;
}

static int send_fd(int sock, int fd)
{
    char byte = 0;
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct iovec iov = {.iov_base = &byte, .iov_len = 1};
    struct msghdr msg = {
        .msg_iov = &iov,
        .msg_iovlen = 1,
        .msg_control = control.bytes,
        .msg_controllen = sizeof(control.bytes),
    };
    struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);

    cmsg->cmsg_level = SOL_SOCKET;
    cmsg->cmsg_type = SCM_RIGHTS;
    cmsg->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(cmsg), &fd, sizeof(fd));
    return sendmsg(sock, &msg, MSG_NOSIGNAL) == 1 ? 0 : -errno;
}

/* Closes what the fork copied from the caller, so that the child delays no end of file. */
static void close_all_but(int a, int b)
{
    unsigned int low = (unsigned int)(a < b ? a : b);
    unsigned int high = (unsigned int)(a < b ? b : a);

    /* Best effort: kernels before 5.9 have no close_range, and then nothing breaks. */
    if (low > 3) {
        syscall(SYS_close_range, 3U, low - 1, 0U);
    }
    if (high > low + 1) {
        syscall(SYS_close_range, low + 1, high - 1, 0U);
    }
    syscall(SYS_close_range, high + 1, ~0U, 0U);
}

static void child_fail(struct race_shared *s, uint32_t step, int error)
{
    s->failed_at = step;
    s->failure = error;
    _exit(1);
}

static _Noreturn void child_main(struct race_shared *s, pid_t parent, int memfd, int sock)
{
    const size_t size = (size_t)NR_PAGES * RACE_PAGE_SIZE;
    struct writer writers[NR_WRITERS];
    pthread_t threads[NR_WRITERS];

    /* A caller that died before the prctl would leave us waiting in a fault for ever. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) {
        _exit(1);
    }
    close_all_but(memfd, sock);

    int uffd = open_uffd();
    if (uffd < 0) {
        child_fail(s, STEP_OPEN, -uffd);
    }
    uint8_t *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
    if (memory == MAP_FAILED) {
        child_fail(s, STEP_MAP, errno);
    }
    int ret = register_memory(uffd, memory, size);
    if (ret < 0) {
        child_fail(s, STEP_REGISTER, -ret);
    }
    s->base = (uint64_t)(uintptr_t)memory;
    ret = send_fd(sock, uffd);
    if (ret < 0) {
        child_fail(s, STEP_PASS, -ret);
    }
    for (uint32_t i = 0; i < NR_WRITERS; i++) {
        writers[i] = (struct writer){.shared = s, .memory = memory, .index = i};
        ret = pthread_create(&threads[i], NULL, write_counters, &writers[i]);
        if (ret != 0) {
            child_fail(s, STEP_THREAD, ret);
        }
    }
    for (uint32_t i = 0; i < NR_WRITERS; i++) {
        pthread_join(threads[i], NULL);
    }
    for (uint32_t i = 0; i < NR_WRITERS; i++) {
        for (uint32_t pfn = 0; pfn < NR_PAGES; pfn++) {
            check_word(s, i, pfn, *word_of(memory, i, pfn));
        }
    }
    atomic_store(&s->finished, 1);
    _exit(0);
}

/* ---- caller -------------------------------------------------------------- */

static int64_t now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* Waits until fd is readable or its peer is gone; 1, 0 at the deadline, or -errno. */
static int wait_readable(int fd, int64_t deadline_ms)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};

    for (;;) {
        int64_t left = deadline_ms - now_ms();
        int ret = poll(&p, 1, left < 0 ? 0 : (int)left);
        if (ret >= 0) {
            return ret;
        }
        if (errno != EINTR) {
            return -errno;
        }
    }
}

/* Receives the userfaultfd; -EPIPE when the child ended without sending it. */
static int receive_fd(int sock)
{
    char byte;
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec iov = {.iov_base = &byte, .iov_len = 1};
    struct msghdr msg = {
        .msg_iov = &iov,
        .msg_iovlen = 1,
        .msg_control = control.bytes,
        .msg_controllen = sizeof(control.bytes),
    };
    int fd;

    int ready = wait_readable(sock, now_ms() + START_TIMEOUT * 1000);
    if (ready <= 0) {
        return ready < 0 ? ready : -ETIMEDOUT;
    }
    ssize_t got = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (got < 0) {
        return -errno;
    }
    struct cmsghdr *cmsg = got == 1 ? CMSG_FIRSTHDR(&msg) : NULL;
    if (!cmsg || cmsg->cmsg_type != SCM_RIGHTS ||
        cmsg->cmsg_len != CMSG_LEN(sizeof(int))) {
        return -EPIPE;
    }
    memcpy(&fd, CMSG_DATA(cmsg), sizeof(fd));
    return fd;
}

/*
 * Evicts until the deadline, then serves until the child's last pass is done.
 * Returns 0 or -errno; -ECHILD when the child ended on its own.
 */
static int race(struct race_evictor *e, struct race_shared *s, int sock, uint32_t seconds)
{
    int64_t deadline = now_ms() + (int64_t)seconds * 1000;
    int64_t give_up = deadline + FINISH_TIMEOUT * 1000;
    struct pollfd fds[2] = {{.fd = e->uffd, .events = POLLIN},
                            {.fd = sock, .events = POLLIN}};

    for (;;) {
        int64_t now = now_ms();
        if (atomic_load(&s->finished)) {
            return 0;
        }
        if (now >= give_up) {
            return -ETIMEDOUT;
        }
        int ret = race_evictor_serve(e);
        if (ret == 0 && now < deadline) {
            ret = race_evictor_evict(e);
        } else if (ret == 0) {
            atomic_store(&s->stop, 1);
        }
        /* -ESRCH: the child is exiting, perhaps because it has finished. */
        if (ret < 0 && ret != -ESRCH) {
            return ret;
        }
        if (poll(fds, 2, now < deadline ? 0 : 10) < 0 && errno != EINTR) {
            return -errno;
        }
        if (ret == -ESRCH || (fds[1].revents & (POLLIN | POLLHUP | POLLERR))) {
            return atomic_load(&s->finished) ? 0 : -ECHILD;
        }
    }
}

static pid_t fork_child(struct race_shared *s, int memfd, const int sock[2])
{
    sigset_t all;
    sigset_t before;
    pid_t parent = getpid();

    /* The caller's signal handlers have no business in the child. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pid_t pid = fork();
    if (pid == 0) {
        child_main(s, parent, memfd, sock[1]);
    }
    int saved = errno;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = saved;
    return pid;
}

static void reap(pid_t pid)
{
    kill(pid, SIGKILL);
    /* ECHILD when the caller ignores SIGCHLD: the kernel has reaped it then. */
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR) {
    }
}

static int fail(char *err, size_t err_len, int error, const char *what,
                const char *remedy)
{
    snprintf(err, err_len, "eviction self-test: cannot %s: %s%s", what, strerror(error),
             remedy);
    return -error;
}

static int child_failure(const struct race_shared *s, char *err, size_t err_len)
{
    const char *remedy = "";

    if (s->failed_at == STEP_OPEN && s->failure == EPERM) {
        remedy = "; run as root, or give this user /dev/userfaultfd";
    } else if (s->failed_at == STEP_REGISTER && s->failure == EINVAL) {
        remedy =
            "; the kernel cannot write-protect shared memory, use Linux 5.19 or newer";
    }
    return fail(err, err_len, s->failure, child_steps[s->failed_at], remedy);
}

/* Everything after the fork; the caller reaps the child. */
static int race_with_child(struct race_shared *s, int memfd, int sock, uint32_t seconds,
                           bool protect, uint64_t *evictions, char *err, size_t err_len)
{
    struct race_evictor evictor;

    int uffd = receive_fd(sock);
    if (uffd < 0) {
        if (uffd == -EPIPE && s->failure) {
            return child_failure(s, err, err_len);
        }
        return fail(err, err_len, -uffd, "reach the writer process", "");
    }
    int ret = race_evictor_init(&evictor, memfd, uffd, s->base, NR_PAGES, protect);
    if (ret < 0) {
        close(uffd);
        return fail(err, err_len, -ret, "allocate the store", "");
    }
    ret = race(&evictor, s, sock, seconds);
    *evictions = evictor.evictions;
    race_evictor_deinit(&evictor);
    close(uffd);
    if (ret == -ECHILD && s->failure) {
        return child_failure(s, err, err_len);
    }
    if (ret == -ECHILD) {
        return fail(err, err_len, ECHILD, "finish: the writer process was killed", "");
    }
    if (ret < 0) {
        return fail(err, err_len, -ret, "evict and serve", "");
    }
    if (evictor.evictions == 0 || atomic_load(&s->updates) == 0) {
        return fail(err, err_len, EAGAIN, "make the writers and the evictor meet",
                    "; the host is too busy, run for more seconds");
    }
    return 0;
}

int uffdmm_selftest_race(uint32_t seconds, int protect, struct uffdmm_race_result *out,
                         char *err, size_t err_len)
{
    const size_t size = (size_t)NR_PAGES * RACE_PAGE_SIZE;
    int sock[2] = {-1, -1};
    uint64_t evictions = 0;
    int ret;

    if (seconds < 1 || seconds > SECONDS_MAX) {
        snprintf(err, err_len,
                 "eviction self-test: cannot run for %u seconds, choose 1 to %d", seconds,
                 SECONDS_MAX);
        return -EINVAL;
    }
    struct race_shared *s =
        mmap(NULL, sizeof(*s), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (s == MAP_FAILED) {
        return fail(err, err_len, errno, "map the shared counters", "");
    }
    int memfd = memfd_create("uffdmm-selftest", MFD_CLOEXEC);
    if (memfd < 0 || ftruncate(memfd, (off_t)size) < 0) {
        ret = fail(err, err_len, errno, "create a memfd", "");
        goto out;
    }
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sock) < 0) {
        ret = fail(err, err_len, errno, "create a socket pair", "");
        goto out;
    }
    pid_t pid = fork_child(s, memfd, sock);
    if (pid < 0) {
        ret = fail(err, err_len, errno, "fork the writer process", "");
        goto out;
    }
    close(sock[1]);
    sock[1] = -1;
    ret = race_with_child(s, memfd, sock[0], seconds, protect != 0, &evictions, err,
                          err_len);
    reap(pid);
    if (ret == 0) {
        out->evictions = evictions;
        out->lost = atomic_load(&s->lost);
    }
out:
    for (int i = 0; i < 2; i++) {
        if (sock[i] >= 0) {
            close(sock[i]);
        }
    }
    if (memfd >= 0) {
        close(memfd);
    }
    munmap(s, sizeof(*s));
    return ret;
}
