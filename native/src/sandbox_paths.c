/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which files a worker can open: Landlock, which needs no privilege, holds for
 * io_uring as well, and is kept by what the worker does later.
 *
 * Descriptors that are open already, and memfds, are not concerned.  Looking
 * whether a file is there is not either: triggers of the tiers' test options work.
 */
#include "sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/landlock.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/*
 * Of later versions of the interface than the oldest header we build with; the
 * kernel says which it has.  Values are of the kernel's include/uapi/linux/landlock.h.
 */
#define ACCESS_REFER (1ULL << 13)
#define ACCESS_TRUNCATE (1ULL << 14)
#define ACCESS_IOCTL_DEV (1ULL << 15)
#define ACCESS_NET_BIND (1ULL << 0)
#define ACCESS_NET_CONNECT (1ULL << 1)
#define SCOPE_ABSTRACT_SOCKETS (1ULL << 0)
#define SCOPE_SIGNALS (1ULL << 1)

struct ruleset {
    uint64_t access_fs;
    uint64_t access_net; /* version 4 */
    uint64_t scoped;     /* version 6 */
};

#define READ_FILES (LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR)
#define WRITE_FILES                                                   \
    (LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_REMOVE_FILE | \
     LANDLOCK_ACCESS_FS_MAKE_REG | ACCESS_TRUNCATE)
/* what can be said of something that is no directory */
#define OF_FILES                                                                      \
    (LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_WRITE_FILE | ACCESS_TRUNCATE | \
     ACCESS_IOCTL_DEV)

/* All that version @abi can restrict. */
static uint64_t all_access(int abi)
{
    uint64_t all = (LANDLOCK_ACCESS_FS_MAKE_SYM << 1) - 1;

    if (abi >= 2) {
        all |= ACCESS_REFER;
    }
    if (abi >= 3) {
        all |= ACCESS_TRUNCATE;
    }
    if (abi >= 5) {
        all |= ACCESS_IOCTL_DEV;
    }
    return all;
}

/* Allows @access to @path and what is below it; a path that is not there is no error. */
static int allow(int ruleset, const char *path, uint64_t access)
{
    struct landlock_path_beneath_attr rule = {.allowed_access = access};
    struct stat st;
    int ret = 0;

    rule.parent_fd = open(path, O_PATH | O_CLOEXEC);
    if (rule.parent_fd < 0) {
        return 0; /* who opens it later says what is wrong */
    }
    if (fstat(rule.parent_fd, &st) == 0 && !S_ISDIR(st.st_mode)) {
        rule.allowed_access &= OF_FILES;
    }
    if (syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0) <
        0) {
        ret = -errno;
    }
    close(rule.parent_fd);
    return ret;
}

static int allow_all(int ruleset, const struct tier_config *tiers, unsigned nr_tiers,
                     uint64_t all)
{
    int ret = 0;

    /* an nbd tier reads certificates, names of hosts and libraries, wherever they are */
    if (sandbox_needs_network(tiers, nr_tiers)) {
        ret = allow(ruleset, "/", READ_FILES);
    } else {
        ret = allow(ruleset, "/proc", READ_FILES);
        ret = ret ? ret : allow(ruleset, "/sys", READ_FILES);
        ret = ret ? ret : allow(ruleset, "/etc/machine-id", READ_FILES);
    }
    for (unsigned i = 0; i < nr_tiers && !ret; i++) {
        for (unsigned j = 0; j < tiers[i].nr_paths && !ret; j++) {
            ret = allow(ruleset, tiers[i].paths[j],
                        (READ_FILES | WRITE_FILES | ACCESS_IOCTL_DEV) & all);
        }
    }
    return ret;
}

int sandbox_paths(const struct tier_config *tiers, unsigned nr_tiers)
{
    long abi =
        syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    struct ruleset rules = {0};
    size_t size = sizeof(rules.access_fs);
    int ruleset, ret;

    if (abi < 1) {
        return -EOPNOTSUPP;
    }
    rules.access_fs = all_access((int)abi);
    if (abi >= 4) {
        size = sizeof(rules.access_fs) + sizeof(rules.access_net);
        rules.access_net = ACCESS_NET_BIND;
        if (!sandbox_needs_network(tiers, nr_tiers)) {
            rules.access_net |= ACCESS_NET_CONNECT;
        }
    }
    if (abi >= 6) {
        size = sizeof(rules);
        rules.scoped = SCOPE_ABSTRACT_SOCKETS | SCOPE_SIGNALS;
    }
    ruleset = (int)syscall(SYS_landlock_create_ruleset, &rules, size, 0);
    if (ruleset < 0) {
        return -errno;
    }
    ret = allow_all(ruleset, tiers, nr_tiers, rules.access_fs);
    if (!ret && syscall(SYS_landlock_restrict_self, ruleset, 0) < 0) {
        ret = -errno;
    }
    close(ruleset);
    return ret;
}
