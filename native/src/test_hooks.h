/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Switches of the manager that tests build for themselves (uffdmm-manager-hooks): they
 * leave a protection out, so that its test is seen to fail without it, or widen the
 * window of a race.  Environment variables; nothing of it is in an installed manager.
 */
#ifndef UFFDMM_TEST_HOOKS_H
#define UFFDMM_TEST_HOOKS_H

#include <stdbool.h>
#include <stdint.h>

#ifdef UFFDMM_TEST_HOOKS

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* True when the switch is on. */
static inline bool test_hook(const char *name)
{
    return getenv(name) != NULL;
}

/*
 * Kills the process at this point of its work, if that is the one named by
 * UFFDMM_TEST_CRASH: once for each time that somebody makes UFFDMM_TEST_CRASH_FILE.
 */
static inline void test_hook_crash(const char *point)
{
    const char *named = getenv("UFFDMM_TEST_CRASH");
    const char *file = getenv("UFFDMM_TEST_CRASH_FILE");

    if (named && file && !strcmp(named, point) && unlink(file) == 0) {
        kill(getpid(), SIGKILL);
    }
}

/* The number that the variable says, else @usual. */
static inline uint64_t test_hook_number(const char *name, uint64_t usual)
{
    const char *text = getenv(name);

    return text ? strtoull(text, NULL, 10) : usual;
}

/* Waits for as many microseconds as the variable says. */
static inline void test_hook_delay(const char *name)
{
    const char *us = getenv(name);

    if (us) {
        usleep((useconds_t)strtoul(us, NULL, 10));
    }
}

#else

static inline bool test_hook(const char *name)
{
    (void)name;
    return false;
}

static inline void test_hook_crash(const char *point)
{
    (void)point;
}

static inline uint64_t test_hook_number(const char *name, uint64_t usual)
{
    (void)name;
    return usual;
}

static inline void test_hook_delay(const char *name)
{
    (void)name;
}

#endif
#endif
