/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a worker may still do once it has read its options: see sandbox.c for the
 * stages, and SECURITY.md for whom they are meant against.
 */
#ifndef UFFDMM_SANDBOX_H
#define UFFDMM_SANDBOX_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "tier_config.h"

#define SANDBOX_GROUPS_MAX 64

/*
 * A sanitizer traces its own process, executes a symbolizer and writes a report
 * wherever it was told: builds with one leave out the last two stages.
 */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANDBOX_SANITIZED 1
#else
#define SANDBOX_SANITIZED 0
#endif

enum sandbox_mode {
    SANDBOX_ON,  /* all stages */
    SANDBOX_LOG, /* the system call filter lets everything pass, and logs it */
    SANDBOX_OFF  /* none but the limits */
};

struct sandbox_config {
    enum sandbox_mode mode;
    bool change_user; /* to this one: */
    uid_t uid;
    gid_t gid;
    gid_t groups[SANDBOX_GROUPS_MAX];
    int nr_groups;
};

/* "on", "log" or "off"; false when @text is none of them. */
bool sandbox_mode_parse(const char *text, enum sandbox_mode *mode);

/* Looks up the user of --run-as; false after an error was printed. */
bool sandbox_user_parse(const char *text, struct sandbox_config *config);

/* Stage 1, before anything is locked in memory. */
void sandbox_limits(void);

/*
 * Stages 2 to 6.  To be called while there is one thread, after mlockall().
 * @tiers are those whose stores will be opened.  0, or a negative errno with one
 * sentence in @err; the process may then be half closed in, and must end.
 */
int sandbox_enter(const struct sandbox_config *config, const struct tier_config *tiers,
                  unsigned nr_tiers, char *err, size_t err_len);

/* True when a tier is reached over a socket that the worker opens. */
bool sandbox_needs_network(const struct tier_config *tiers, unsigned nr_tiers);

/*
 * Stage 5, in sandbox_paths.c: only the stores can be opened for writing.  0, or a
 * negative errno; -EOPNOTSUPP when this kernel has no Landlock.
 */
int sandbox_paths(const struct tier_config *tiers, unsigned nr_tiers);

/* Stage 6, in sandbox_calls.c: the system call filter.  0 or a negative errno. */
int sandbox_calls(enum sandbox_mode mode, bool network);

#ifdef UFFDMM_TEST_HOOKS
/* In the worker of the VM that UFFDMM_TEST_INTRUDER names: what an intruder would try. */
void sandbox_test_intruder(const char *vm_name);
#else
static inline void sandbox_test_intruder(const char *vm_name)
{
    (void)vm_name;
}
#endif

#endif
