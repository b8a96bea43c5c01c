/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The statistics of a VM: the worker writes them, QEMU and control clients map
 * them read-only.  A page of struct uffdmm_stats, then one of struct
 * uffdmm_tier_stats for each tier.
 */
#ifndef UFFDMM_STATS_H
#define UFFDMM_STATS_H

#include <stdint.h>

#include "hist.h"
#include "uffdmm/protocol.h"

/*
 * Creates the pages.  *@fd_ro is a descriptor through which nobody can write.
 * 0 or a negative errno.
 */
int stats_create(struct uffdmm_stats **stats, int *fd_ro);

/* Bytes to map of it. */
uint64_t stats_size(void);

/* The page of tier @index. */
static inline struct uffdmm_tier_stats *stats_tier(struct uffdmm_stats *s, unsigned index)
{
    return (struct uffdmm_tier_stats *)(void *)((char *)s + (1 + index) * 4096UL);
}

static inline void stats_add(uint64_t *counter, uint64_t n)
{
    __atomic_fetch_add(counter, n, __ATOMIC_RELAXED);
}

static inline void stats_set(uint64_t *gauge, uint64_t v)
{
    __atomic_store_n(gauge, v, __ATOMIC_RELAXED);
}

static inline uint64_t stats_get(const uint64_t *p)
{
    return __atomic_load_n(p, __ATOMIC_RELAXED);
}

/* Counts a duration in a histogram of UFFDMM_HIST_BUCKETS. */
static inline void stats_hist(uint64_t *hist, uint64_t ns)
{
    stats_add(&hist[hist_bucket(ns)], 1);
}

static inline void stats_fault_time(struct uffdmm_stats *s, uint64_t ns)
{
    stats_add(&s->fault_hist[hist_bucket(ns)], 1);
    stats_add(&s->fault_ns, ns);
}

#endif
