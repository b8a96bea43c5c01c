/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How many pages to bring in with a fault.  Several streams are followed at
 * once; each has a window that doubles when the guest reaches its end and
 * starts again at one page elsewhere, so that a random pattern pays nothing.  Windows
 * whose end nobody reaches were wasted, and halve the largest one there may be; those
 * that were used double it.
 */
#ifndef UFFDMM_READAHEAD_H
#define UFFDMM_READAHEAD_H

#include <stdbool.h>
#include <stdint.h>

#define READAHEAD_STREAMS 16

struct readahead_stream {
    uint64_t next;   /* first page behind the last window */
    uint32_t window; /* pages brought in last time */
    uint32_t used;   /* value of readahead.clock at the last hit */
    uint32_t at_cap; /* windows of the largest size that were used up */
};

struct readahead {
    struct readahead_stream streams[READAHEAD_STREAMS];
    uint32_t clock;
    uint32_t cap;    /* largest window for now */
    uint64_t wasted; /* pages of windows whose end was not reached, in all */
};

void readahead_init(struct readahead *ra);

/*
 * Window for a fault at @pfn: 1 .. @max pages beginning there.  *@hit: the
 * fault went on where an earlier window ended.
 */
uint32_t readahead_window(struct readahead *ra, uint64_t pfn, uint32_t max, bool *hit);

/* What was really brought in for that fault: pages [@pfn, @next). */
void readahead_done(struct readahead *ra, uint64_t pfn, uint64_t next);

#endif
