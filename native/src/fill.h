/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Bringing pages in: from a hole, a repeated word or a slot, into guest memory. */
#ifndef UFFDMM_FILL_H
#define UFFDMM_FILL_H

#include <stdbool.h>
#include <stdint.h>

struct shard;

/* Windows of a shard, and so the fills that can be under way at a time. */
#define WINDOWS 16

/* The same of a shard of huge pages: their buffers are 2 MiB. */
#define WINDOWS_HUGE 4

/* Of them, kept for pages that come from memory when the rest waits for stores. */
#define WINDOWS_MEMORY 2

enum serve_outcome {
    SERVED,      /* whoever waited has been woken */
    PENDING,     /* fill_poll() will tell */
    AGAIN_SOON,  /* somebody works on the page: microseconds */
    AGAIN_ROOM,  /* the VM is at its limit: wait for the evictor */
    AGAIN_STORE, /* the content cannot be had now: wait and try again */
    BLOCKED,     /* the content cannot be had: the waiter stays */
    GONE         /* the process behind the userfaultfd has ended */
};

/* A fault that cannot be served yet. */
struct deferred {
    uint64_t pfn;        /* page of the region */
    uint64_t since;      /* clock_ns() when its message was read */
    uint64_t not_before; /* clock_ns() of the next try */
    uint32_t tid;
    uint64_t failing_since; /* clock_ns() when its content could not be had first, or 0 */
    unsigned tries;
    bool wp;
    bool ahead;  /* nobody waits: a fill of prefetch.c */
    bool repair; /* nobody's fault: a poisoned page is tried again (lost.h) */
};

/*
 * Starts to bring in the page of @f, which is EMPTY, DISCARDED or STORED, and
 * with it what can be had of the pages [@first, @first + @nr), which contain it
 * and belong to the shard; @nr is at most WINDOW_MAX, 1 of huge pages.  @guess: the others are not known
 * to be wanted.  Called by the shard's own thread only.
 */
enum serve_outcome fill_begin(struct shard *sh, const struct deferred *f, uint64_t first,
                              uint32_t nr, bool guess);

/* Finishes a fill whose reads have ended: *@f and *@out tell which and how.  False: none. */
bool fill_poll(struct shard *sh, struct deferred *f, enum serve_outcome *out);

/*
 * Waits for the reads under way and gives their pages back: for the end of the
 * thread.  Transfers of a store that does not answer must have been cancelled.
 */
void fill_abandon(struct shard *sh);

#endif
