/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation.  Three answers to a system call:
 *
 *   allowed   what a worker does
 *   killed    what it never does, and an intruder would: the worker ends at once,
 *             which the acceptor logs; its guest is stalled, not damaged
 *   ENOSYS    the rest.  A C library of tomorrow that tries a call of tomorrow finds
 *             a kernel that has none, and uses the old one, where killing it would
 *             stall a guest for nothing.  The kernel logs these (audit type 1326).
 *
 * clone3() is of the rest on purpose: its flags are in memory, where a filter cannot
 * look; clone() has them in a register.  The ioctls of userfaultfds, pagemaps and
 * block devices are allowed by number.
 */
#include "sandbox.h"

#include <errno.h>
#include <linux/fs.h>
#include <linux/sched.h>
#include <seccomp.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "uapi.h"

#ifndef UFFDIO_POISON
#define UFFDIO_POISON _IOWR(UFFDIO, 0x08, __u64[4])
#endif

static const char *const allowed[] = {
    /* memory and threads */
    "arch_prctl",
    "brk",
    "exit",
    "exit_group",
    "futex",
    "get_robust_list",
    "getcpu",
    "getpid",
    "getppid",
    "gettid",
    "madvise",
    "mbind",
    "membarrier",
    "memfd_create",
    "mincore",
    "mlock",
    "mlock2",
    "mmap",
    "mprotect",
    "mremap",
    "msync",
    "munlock",
    "munmap",
    "restart_syscall",
    "rseq",
    "rt_sigaction",
    "rt_sigpending",
    "rt_sigprocmask",
    "rt_sigreturn",
    "rt_sigtimedwait",
    "sched_get_priority_max",
    "sched_get_priority_min",
    "sched_getaffinity",
    "sched_getparam",
    "sched_getscheduler",
    "sched_setaffinity",
    "sched_setattr",
    "sched_setscheduler",
    "sched_yield",
    "set_robust_list",
    "set_tid_address",
    "setpriority",
    "sigaltstack",
    "userfaultfd",
    /* time and facts */
    "clock_getres",
    "clock_gettime",
    "clock_nanosleep",
    "getegid",
    "geteuid",
    "getgid",
    "getgroups",
    "getrandom",
    "getresgid",
    "getresuid",
    "getrlimit",
    "getrusage",
    "gettimeofday",
    "getuid",
    "nanosleep",
    "sysinfo",
    "time",
    "uname",
    /* waiting */
    "epoll_create1",
    "epoll_ctl",
    "epoll_pwait",
    "epoll_wait",
    "eventfd2",
    "pidfd_open",
    "pipe2",
    "poll",
    "ppoll",
    "pselect6",
    "select",
    "signalfd4",
    "timerfd_create",
    "timerfd_gettime",
    "timerfd_settime",
    /* descriptors and files */
    "access",
    "cachestat",
    "close",
    "close_range",
    "copy_file_range",
    "dup",
    "dup2",
    "dup3",
    "faccessat",
    "faccessat2",
    "fadvise64",
    "fallocate",
    "fcntl",
    "fdatasync",
    "flock",
    "fstat",
    "fstatfs",
    "fsync",
    "ftruncate",
    "getcwd",
    "getdents64",
    "lseek",
    "lstat",
    "newfstatat",
    "open",
    "openat",
    "pread64",
    "preadv",
    "preadv2",
    "pwrite64",
    "pwritev",
    "pwritev2",
    "read",
    "readlink",
    "readlinkat",
    "readv",
    "stat",
    "statfs",
    "statx",
    "sync_file_range",
    "unlink",
    "unlinkat",
    "write",
    "writev",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    /* sockets that are open */
    "getpeername",
    "getsockname",
    "getsockopt",
    "recvfrom",
    "recvmmsg",
    "recvmsg",
    "sendmmsg",
    "sendmsg",
    "sendto",
    "setsockopt",
    "shutdown",
};

/* With a tier that is reached over a socket; bind: for netlink, by which addresses are asked for. */
static const char *const network_allowed[] = {"bind", "connect", "socket", "socketpair"};

static const char *const killed[] = {
    /* other programs and processes */
    "execve",
    "execveat",
    "fork",
    "kcmp",
    "pidfd_getfd",
    "process_madvise",
    "process_vm_readv",
    "process_vm_writev",
    "ptrace",
    "vfork",
    /* rights */
    "add_key",
    "capset",
    "keyctl",
    "personality",
    "request_key",
    "setfsgid",
    "setfsuid",
    "setgid",
    "setgroups",
    "setns",
    "setregid",
    "setresgid",
    "setresuid",
    "setreuid",
    "setuid",
    "unshare",
    /* files of others, and what they look like */
    "chmod",
    "chown",
    "chroot",
    "fchmod",
    "fchmodat",
    "fchown",
    "fchownat",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "lchown",
    "link",
    "linkat",
    "mknod",
    "mknodat",
    "mount",
    "mount_setattr",
    "move_mount",
    "name_to_handle_at",
    "open_by_handle_at",
    "open_tree",
    "pivot_root",
    "symlink",
    "symlinkat",
    "umount2",
    /* the machine */
    "acct",
    "bpf",
    "clock_settime",
    "delete_module",
    "finit_module",
    "init_module",
    "ioperm",
    "iopl",
    "kexec_file_load",
    "kexec_load",
    "perf_event_open",
    "quotactl",
    "reboot",
    "sethostname",
    "settimeofday",
    "swapoff",
    "swapon",
    "syslog",
};

static const char *const network_killed[] = {"accept",  "accept4", "bind",
                                             "connect", "listen",  "socket"};

static const uint32_t ioctls[] = {
    UFFDIO_API,
    UFFDIO_REGISTER,
    UFFDIO_UNREGISTER,
    UFFDIO_WAKE,
    UFFDIO_COPY,
    UFFDIO_ZEROPAGE,
    UFFDIO_WRITEPROTECT,
    UFFDIO_CONTINUE,
    UFFDIO_POISON,
    PAGEMAP_SCAN,
    BLKGETSIZE64,
    BLKSSZGET,
    BLKDISCARD,
    BLKZEROOUT,
    FIONBIO,
    FIONREAD,
    TCGETS, /* the C library asks whether its output is a terminal */
};

static const uint32_t prctls[] = {PR_SET_NAME, PR_GET_NAME, PR_GET_DUMPABLE,
                                  0x53564d41 /* PR_SET_VMA: names of heaps */};

/* Rules for calls by name; one that this architecture lacks is none to care about. */
static int add_names(scmp_filter_ctx filter, uint32_t action, const char *const *names,
                     size_t nr)
{
    int ret = 0;

    for (size_t i = 0; i < nr && !ret; i++) {
        int call = seccomp_syscall_resolve_name(names[i]);

        /* newer than this libseccomp: falls under the rest */
        if (call != __NR_SCMP_ERROR) {
            ret = seccomp_rule_add(filter, action, call, 0);
        }
    }
    return ret;
}

/* @call with one of @nr values as its argument number @arg, of which 32 bits count. */
static int add_values(scmp_filter_ctx filter, int call, unsigned arg,
                      const uint32_t *values, size_t nr)
{
    int ret = 0;

    for (size_t i = 0; i < nr && !ret; i++) {
        ret = seccomp_rule_add(filter, SCMP_ACT_ALLOW, call, 1,
                               SCMP_CMP(arg, SCMP_CMP_MASKED_EQ, UINT32_MAX, values[i]));
    }
    return ret;
}

static int add_arguments(scmp_filter_ctx filter)
{
    const uint32_t self = (uint32_t)getpid(), none = 0;
    const uint32_t who[] = {none, self};
    int ret;

    ret = add_values(filter, SCMP_SYS(ioctl), 1, ioctls,
                     sizeof(ioctls) / sizeof(ioctls[0]));
    ret = ret ? ret
              : add_values(filter, SCMP_SYS(prctl), 0, prctls,
                           sizeof(prctls) / sizeof(prctls[0]));
    /* abort() and the like; no signals to others, but the question whether they live */
    ret = ret ? ret : add_values(filter, SCMP_SYS(tgkill), 0, &self, 1);
    ret = ret ? ret : add_values(filter, SCMP_SYS(kill), 1, &none, 1);
    ret = ret ? ret : add_values(filter, SCMP_SYS(prlimit64), 0, who, 2);
    /* threads */
    return ret ? ret
               : seccomp_rule_add(
                     filter, SCMP_ACT_ALLOW, SCMP_SYS(clone), 1,
                     SCMP_A0(SCMP_CMP_MASKED_EQ, CLONE_THREAD, CLONE_THREAD));
}

#define NAMES(list) list, sizeof(list) / sizeof((list)[0])

static int add_killed(scmp_filter_ctx filter, bool network)
{
    int ret = add_names(filter, SCMP_ACT_KILL_PROCESS, NAMES(killed));

    if (!ret && !network) {
        ret = add_names(filter, SCMP_ACT_KILL_PROCESS, NAMES(network_killed));
    }
    /* a process, where add_arguments() allows threads */
    return ret ? ret
               : seccomp_rule_add(filter, SCMP_ACT_KILL_PROCESS, SCMP_SYS(clone), 1,
                                  SCMP_A0(SCMP_CMP_MASKED_EQ, CLONE_THREAD, 0));
}

static int add_rules(scmp_filter_ctx filter, enum sandbox_mode mode, bool network)
{
    int ret = add_names(filter, SCMP_ACT_ALLOW, NAMES(allowed));

    if (!ret && network) {
        ret = add_names(filter, SCMP_ACT_ALLOW, NAMES(network_allowed));
    }
    ret = ret ? ret : add_arguments(filter);
    return ret || mode == SANDBOX_LOG ? ret : add_killed(filter, network);
}

int sandbox_calls(enum sandbox_mode mode, bool network)
{
    scmp_filter_ctx filter =
        seccomp_init(mode == SANDBOX_LOG ? SCMP_ACT_LOG : SCMP_ACT_ERRNO(ENOSYS));
    int ret;

    if (!filter) {
        return -ENOMEM;
    }
    /*
     * Log what is refused.  A sorted tree, since ioctl is on the fault path and a
     * filter that looks at arguments runs each time.  No mitigation of speculative
     * stores: nothing in this process runs code of others.
     */
    (void)seccomp_attr_set(filter, SCMP_FLTATR_CTL_LOG, 1);
    (void)seccomp_attr_set(filter, SCMP_FLTATR_CTL_OPTIMIZE, 2);
    (void)seccomp_attr_set(filter, SCMP_FLTATR_CTL_SSB, 1);
    ret = add_rules(filter, mode, network);
    ret = ret ? ret : seccomp_load(filter);
    seccomp_release(filter);
    return ret;
}
