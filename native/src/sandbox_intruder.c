/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What an intruder in a worker would try, for the tests of the sandbox: of
 * uffdmm-manager-hooks alone.  The worker of the VM that UFFDMM_TEST_INTRUDER names
 * makes the attempt that UFFDMM_TEST_ATTEMPT names when it is queried, and logs what
 * came of it.
 */
#include "sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "log.h"

static long try_socket(void)
{
    return socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
}

static long try_execve(void)
{
    static char *const argv[] = {(char *)(uintptr_t) "true", NULL};

    return execve("/bin/true", argv, NULL);
}

static long try_fork(void)
{
    long pid = syscall(SYS_clone, 17 /* SIGCHLD */, NULL, NULL, NULL, NULL);

    if (pid == 0) {
        _exit(0);
    }
    return pid;
}

static long try_ptrace(void)
{
    return ptrace(PTRACE_TRACEME, 0, NULL, NULL);
}

static long try_mount(void)
{
    return mount("none", "/proc", "tmpfs", 0, NULL);
}

/* of the rest: refused, and survived */
static long try_clone3(void)
{
    return syscall(SYS_clone3, NULL, 0);
}

static long try_ioctl(void)
{
    return ioctl(0, 0x5412 /* TIOCSTI: types for the user of a terminal */, "x");
}

static long try_read_elsewhere(void)
{
    return open("/etc/passwd", O_RDONLY | O_CLOEXEC);
}

static long try_write_elsewhere(void)
{
    const char *path = getenv("UFFDMM_TEST_ELSEWHERE");

    return path ? open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600) : -1;
}

/* The same as a request of an io_uring, which no filter of system calls sees. */
static long try_ring_elsewhere(void)
{
    struct io_uring_params params = {0};
    int ring = (int)syscall(SYS_io_uring_setup, 1, &params);
    struct io_uring_sqe *sqe;
    struct io_uring_cqe *cqe;
    char *rings;
    unsigned *tail, *array;

    if (ring < 0) {
        return -1;
    }
    rings = mmap(NULL, params.cq_off.cqes + 2 * sizeof(*cqe) + 4096,
                 PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
    sqe = mmap(NULL, sizeof(*sqe), PROT_READ | PROT_WRITE, MAP_SHARED, ring,
               IORING_OFF_SQES);
    if (rings == MAP_FAILED || sqe == MAP_FAILED) {
        return -1;
    }
    *sqe = (struct io_uring_sqe){.opcode = IORING_OP_OPENAT,
                                 .fd = AT_FDCWD,
                                 .addr = (uint64_t)(uintptr_t) "/etc/passwd",
                                 .open_flags = O_RDONLY | O_CLOEXEC};
    tail = (unsigned *)(void *)(rings + params.sq_off.tail);
    array = (unsigned *)(void *)(rings + params.sq_off.array);
    array[0] = 0;
    __atomic_store_n(tail, 1, __ATOMIC_RELEASE);
    if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0) {
        return -1;
    }
    cqe = (struct io_uring_cqe *)(void *)(rings + params.cq_off.cqes);
    errno = cqe->res < 0 ? -cqe->res : 0;
    return cqe->res < 0 ? -1 : cqe->res;
}

static long try_setuid(void)
{
    return syscall(SYS_setresuid, 0, 0, 0);
}

void sandbox_test_intruder(const char *vm_name)
{
    static const struct {
        const char *name;
        long (*fn)(void);
    } attempts[] = {
        {"socket", try_socket},       {"execve", try_execve},
        {"fork", try_fork},           {"ptrace", try_ptrace},
        {"mount", try_mount},         {"clone3", try_clone3},
        {"ioctl", try_ioctl},         {"read-elsewhere", try_read_elsewhere},
        {"setuid", try_setuid},       {"write-elsewhere", try_write_elsewhere},
        {"ring", try_ring_elsewhere},
    };
    const char *name = getenv("UFFDMM_TEST_INTRUDER");
    const char *attempt = getenv("UFFDMM_TEST_ATTEMPT");

    for (size_t i = 0; name && attempt && i < sizeof(attempts) / sizeof(attempts[0]);
         i++) {
        if (!strcmp(name, vm_name) && !strcmp(attempt, attempts[i].name)) {
            long ret = attempts[i].fn();

            if (ret < 0) {
                log_info("intruder: %s refused: %s", attempt, strerrorname_np(errno));
            } else {
                log_info("intruder: %s succeeded", attempt);
            }
        }
    }
}
