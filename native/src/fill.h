/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Bringing pages in: from a hole, a repeated word or a slot, into guest memory. */
#ifndef UFFDMM_FILL_H
#define UFFDMM_FILL_H

#include <stdbool.h>
#include <stdint.h>

struct shard;

enum serve_outcome {
    SERVED,      /* whoever waited has been woken */
    AGAIN_SOON,  /* somebody works on the page: microseconds */
    AGAIN_ROOM,  /* the VM is at its limit: wait for the evictor */
    AGAIN_STORE, /* the content cannot be had now: wait and try again */
    BLOCKED,     /* the content cannot be had: the waiter stays */
    GONE         /* the process behind the userfaultfd has ended */
};

/*
 * Brings in page @pfn of the shard's region, which is EMPTY, DISCARDED or
 * STORED, and with it what can be had of the pages [@first, @first + @nr), which
 * contain it and belong to the shard; @nr is at most WINDOW_MAX.  @guess: the
 * others are not known to be wanted.  Called by the shard's own thread only.
 */
enum serve_outcome fill_pages(struct shard *sh, uint64_t pfn, uint64_t first, uint32_t nr,
                              bool guess);

#endif
