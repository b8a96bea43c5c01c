/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation.  A worker reads messages of a QEMU that a guest may have
 * taken over, decompresses pages and reads volumes that others may have written
 * to.  Whoever takes over a worker shall find a process that holds the memory of
 * that one VM, its stores, and nothing else.
 *
 *   1  limits        may lock all its memory; the last that the OOM killer takes
 *   2  namespaces    no network and no System V IPC, unless a tier is nbd
 *   3  user          --run-as
 *   4  capabilities  none, and none can come back; no new privileges; no dumps
 *   5  paths         the stores for writing; /proc and little else for reading
 *   6  calls         a filter of system calls and of ioctl numbers
 *
 * All of it is done at once: after mlockall(), which wants a capability, and before
 * the first message is read and the first thread is there, since all but the
 * namespaces are properties of a thread that later ones inherit.  So the stores are
 * opened inside, and so are those of a worker that starts over (see farewell() in
 * worker.c), memfds and userfaultfds of memory that is plugged in later, and
 * connections to servers that were lost.
 *
 * io_uring passes stage 6 by: its requests are no system calls.  It does not pass
 * by 2 to 5, which the kernel checks where the work is done.  This is why stage 5
 * is Landlock and not a matter of the filter.
 *
 * Stages 2 and 5 need the kernel's and the administrator's leave; without it the
 * worker says so and goes on with the others.  There is no mount namespace: after
 * 4 and 6 nothing can be mounted, and of a private root Landlock gives the same,
 * with the names of descriptors in /proc still true, which region.c relies on.
 */
#include "sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <pwd.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "log.h"

/* Capabilities are two words since version 3 of their format. */
#define CAPABILITY_WORDS _LINUX_CAPABILITY_U32S_3

bool sandbox_mode_parse(const char *text, enum sandbox_mode *mode)
{
    static const char *const names[] = {
        [SANDBOX_ON] = "on", [SANDBOX_LOG] = "log", [SANDBOX_OFF] = "off"};

    for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (!strcmp(text, names[i])) {
            *mode = (enum sandbox_mode)i;
            return true;
        }
    }
    return false;
}

bool sandbox_user_parse(const char *text, struct sandbox_config *config)
{
    const struct passwd *user = getpwnam(text);

    if (!user) {
        fprintf(stderr,
                "uffdmm-manager: --run-as '%s': there is no such user; name one of "
                "/etc/passwd\n",
                text);
        return false;
    }
    if (geteuid() != 0) {
        fprintf(stderr,
                "uffdmm-manager: --run-as '%s' needs a manager that is started as root\n",
                text);
        return false;
    }
    config->nr_groups = SANDBOX_GROUPS_MAX;
    if (getgrouplist(text, user->pw_gid, config->groups, &config->nr_groups) < 0) {
        fprintf(stderr, "uffdmm-manager: --run-as '%s' is in more than %d groups\n", text,
                SANDBOX_GROUPS_MAX);
        return false;
    }
    config->change_user = true;
    config->uid = user->pw_uid;
    config->gid = user->pw_gid;
    return true;
}

bool sandbox_needs_network(const struct tier_config *tiers, unsigned nr_tiers)
{
    for (unsigned i = 0; i < nr_tiers; i++) {
        if (tiers[i].type == UFFDMM_TIER_NBD) {
            return true;
        }
    }
    return false;
}

/* As nice(1) counts, for all threads of a worker together: about ten times the default. */
#define SESSION_NICE "-10"

/* ---- 1: limits ------------------------------------------------------------ */

/* Writes to a file of /proc/self.  What a kernel lacks or refuses is no condition for anything. */
static void tell_kernel(const char *path, const char *value, const char *purpose)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);

    if (fd < 0) {
        return;
    }
    if (write(fd, value, strlen(value)) < 0) {
        log_debug("cannot %s: %s", purpose, strerror(errno));
    }
    close(fd);
}

void sandbox_limits(void)
{
    const struct rlimit all = {.rlim_cur = RLIM_INFINITY, .rlim_max = RLIM_INFINITY};

    /*
     * With it CAP_IPC_LOCK can go: MCL_FUTURE asks for one of the two with each
     * mapping that is made.  Who may not raise it has been told by mlockall().
     */
    (void)setrlimit(RLIMIT_MEMLOCK, &all);
    /*
     * The end of a worker frees little, for its VM holds the same memory, and stalls
     * that VM for good: let another process go.  It takes CAP_SYS_RESOURCE.
     */
    tell_kernel("/proc/self/oom_score_adj", "-1000", "keep the OOM killer away");
    /*
     * A session is a group of the scheduler (CONFIG_SCHED_AUTOGROUP), whose weight is divided
     * among CPUs by load.  An evictor that ran little has next to nothing of it on a CPU that a
     * vCPU keeps busy: it was seen to run a millisecond in five seconds, while the guest
     * waited for room.  It takes CAP_SYS_NICE.
     */
    tell_kernel("/proc/self/autogroup", SESSION_NICE,
                "give the worker's threads more weight");
    umask(0077); /* volumes and whatever else it makes are nobody else's */
}

/* ---- 2: namespaces -------------------------------------------------------- */

static void leave_network(void)
{
    if (unshare(CLONE_NEWNET | CLONE_NEWIPC) < 0) {
        log_info("sandbox: no network namespace of its own: %s", strerror(errno));
    }
}

/* ---- 3: user -------------------------------------------------------------- */

static int change_user(const struct sandbox_config *config)
{
    if (prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) < 0 || /* stage 4 says what stays */
        setgroups((size_t)config->nr_groups, config->groups) < 0 ||
        setresgid(config->gid, config->gid, config->gid) < 0 ||
        setresuid(config->uid, config->uid, config->uid) < 0) {
        return -errno;
    }
    return 0;
}

/* ---- 4: capabilities ------------------------------------------------------ */

static bool memory_is_unlimited(void)
{
    struct rlimit limit;

    return getrlimit(RLIMIT_MEMLOCK, &limit) == 0 && limit.rlim_cur == RLIM_INFINITY;
}

/* What no program that is executed can have; takes CAP_SETPCAP, so before stage 3. */
static int drop_bounding_set(void)
{
    /* it ends where the kernel's capabilities do, with EINVAL */
    for (unsigned long cap = 0; prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++) {
        if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0) {
            return errno == EPERM ? 0 : -errno; /* a user without it gains none either */
        }
    }
    return 0;
}

static int drop_capabilities(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct now[CAPABILITY_WORDS] = {0};
    struct __user_cap_data_struct keep[CAPABILITY_WORDS] = {0};

    if (syscall(SYS_capget, &header, now) < 0) {
        return -errno;
    }
    (void)prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    if (!memory_is_unlimited()) {
        keep[0].permitted = keep[0].effective =
            now[0].permitted & CAP_TO_MASK(CAP_IPC_LOCK);
    }
    if (syscall(SYS_capset, &header, keep) < 0) {
        return -errno;
    }
    /* user 0 without capabilities could get them back by executing a program */
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) {
        return -errno;
    }
    /* a core would hold pages of the guest; and no process of the same user looks inside */
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0) {
        return -errno;
    }
    return 0;
}

/* ---- all of them ---------------------------------------------------------- */

int sandbox_enter(const struct sandbox_config *config, const struct tier_config *tiers,
                  unsigned nr_tiers, char *err, size_t err_len)
{
    bool network = sandbox_needs_network(tiers, nr_tiers);
    const char *stage = "drop its capabilities";
    int ret = 0;

    tzset(); /* reads a file */
    if (config->mode != SANDBOX_OFF) {
        if (!network) {
            leave_network();
        }
        ret = drop_bounding_set();
    }
    if (!ret && config->change_user) {
        stage = "change to the user of --run-as";
        ret = change_user(config);
    }
    if (!ret && config->mode != SANDBOX_OFF) {
        stage = "drop its capabilities";
        ret = drop_capabilities();
        if (!ret && !SANDBOX_SANITIZED) {
            stage = "restrict itself to its stores";
            ret = sandbox_paths(tiers, nr_tiers);
            if (ret == -EOPNOTSUPP) {
                log_info(
                    "sandbox: this kernel has no Landlock, so files are not restricted");
                ret = 0;
            }
        }
        if (!ret && !SANDBOX_SANITIZED) {
            stage = "filter its system calls";
            ret = sandbox_calls(config->mode, network);
        }
    }
    if (ret) {
        snprintf(err, err_len,
                 "the worker cannot %s: %s; --sandbox=off serves VMs without protection",
                 stage, strerror(-ret));
    }
    return ret;
}
