/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The log-linear histogram of protocol.h: which bucket a duration falls in. */
#ifndef UFFDMM_HIST_H
#define UFFDMM_HIST_H

#include <stdint.h>

#include "uffdmm/protocol.h"

/* Bucket of a duration in nanoseconds, 0 .. UFFDMM_HIST_BUCKETS - 1. */
static inline unsigned hist_bucket(uint64_t ns)
{
    unsigned log2, sub, bucket;

    if (ns < (1ULL << UFFDMM_HIST_MIN_LOG2)) {
        return 0;
    }
    log2 = 63 - (unsigned)__builtin_clzll(ns);
    sub = (unsigned)(ns >> (log2 - UFFDMM_HIST_SUB_BITS)) &
          ((1u << UFFDMM_HIST_SUB_BITS) - 1);
    bucket = ((log2 - UFFDMM_HIST_MIN_LOG2) << UFFDMM_HIST_SUB_BITS) + sub;
    return bucket < UFFDMM_HIST_BUCKETS ? bucket : UFFDMM_HIST_BUCKETS - 1;
}

/* Smallest duration of a bucket, nanoseconds; 0 for the first. */
static inline uint64_t hist_floor(unsigned bucket)
{
    unsigned log2 = (bucket >> UFFDMM_HIST_SUB_BITS) + UFFDMM_HIST_MIN_LOG2;
    uint64_t sub = bucket & ((1u << UFFDMM_HIST_SUB_BITS) - 1);

    if (!bucket) {
        return 0;
    }
    return (1ULL << log2) + (sub << (log2 - UFFDMM_HIST_SUB_BITS));
}

#endif
