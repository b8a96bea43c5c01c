/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The wrappers `error:` and `delay:` around a tier: which transfers fail, and
 * which end late.  Pages are never damaged: a transfer that fails was not begun,
 * one that is late has really ended.
 */
#ifndef UFFDMM_TIER_INJECT_H
#define UFFDMM_TIER_INJECT_H

#include <stdbool.h>
#include <stdint.h>

#include "tier_config.h"

/*
 * Whether the trigger file of a wrapper is there, as seen a moment ago.  Shared
 * by all threads; zero to begin with.
 */
struct inject_trigger {
    uint64_t look_at_ns; /* when to look again; atomic */
    bool armed;          /* atomic */
};

/*
 * True when a wrapper with the trigger file @path is to act at time @now_ns: always
 * with the path "", else while the file exists, which is looked up at most once in
 * INJECT_TRIGGER_NS.
 */
#define INJECT_TRIGGER_NS 10000000ULL
bool inject_armed(struct inject_trigger *t, const char *path, uint64_t now_ns);

/* The next of a sequence of numbers in [0, 1); *@rng is never 0. */
double inject_random(uint64_t *rng);

/* True when the next transfer fails, its trigger being armed. */
bool inject_fails(const struct tier_faults *f, bool write, uint64_t *rng);

/* By how much the next transfer is late, in nanoseconds, its trigger being armed. */
uint64_t inject_delay(const struct tier_faults *f, bool write, uint64_t *rng);

#endif
