/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Durations in nanoseconds, kept one by one: percentiles of them are exact. */
#ifndef UFFDMM_BENCH_SAMPLES_H
#define UFFDMM_BENCH_SAMPLES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct samples {
    uint64_t *ns;
    size_t nr, max;
};

/* Room for @max durations; false without memory.  It is touched here, not while measuring. */
bool samples_init(struct samples *s, size_t max);
void samples_deinit(struct samples *s);

static inline void samples_clear(struct samples *s)
{
    s->nr = 0;
}

/* Keeps a duration; those beyond the room are left out, so stop at samples_full(). */
static inline void samples_add(struct samples *s, uint64_t ns)
{
    if (s->nr < s->max) {
        s->ns[s->nr++] = ns;
    }
}

static inline bool samples_full(const struct samples *s)
{
    return s->nr == s->max;
}

/* Sorts them; before any percentile. */
void samples_sort(struct samples *s);

/* The least of the sorted durations that @percent of all do not exceed; 0 without any. */
uint64_t samples_percentile(const struct samples *s, unsigned percent);

/* Prints `"samples":N,"p50_ns":..,"p99_ns":..,"mean_ns":..` and sorts them. */
void samples_print(struct samples *s);

#endif
