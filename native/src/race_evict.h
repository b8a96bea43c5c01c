/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The smallest evictor that follows the eviction protocol, for the race test:
 * one thread that evicts runs of pages and serves their faults, pages kept in
 * plain memory.  It differs from the manager's evictor in what it lacks
 * (stores, limits, read-ahead), not in the order of its system calls.
 */
#ifndef UFFDMM_RACE_EVICT_H
#define UFFDMM_RACE_EVICT_H

#include <stdbool.h>
#include <stdint.h>

struct race_evictor {
    int memfd;         /* guest memory, borrowed */
    int uffd;          /* non-blocking, borrowed */
    uint64_t base;     /* address of the memory in the process that owns uffd */
    uint32_t nr_pages; /* of RACE_PAGE_SIZE bytes */
    bool protect;      /* write-protect before reading */
    uint8_t *kept;     /* content of the pages that are out */
    bool *out;         /* page is out: only `kept` has its content */
    uint64_t random;
    uint64_t evictions; /* pages */
    uint64_t served;    /* faults */
};

enum { RACE_PAGE_SIZE = 4096 };

/* All pages begin "out" with zero content.  Returns 0 or -ENOMEM. */
int race_evictor_init(struct race_evictor *e, int memfd, int uffd, uint64_t base,
                      uint32_t nr_pages, bool protect);
void race_evictor_deinit(struct race_evictor *e);

/* Evicts one run of resident pages, if there is one.  Returns 0 or -errno. */
int race_evictor_evict(struct race_evictor *e);

/*
 * Serves every fault that waits.  Returns 0, or -errno; -ESRCH when the process
 * that owns the memory is gone.
 */
int race_evictor_serve(struct race_evictor *e);

#endif
