/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Transfers between buffers and slots, and the queue of a thread that they
 * come back to.  One queue belongs to one thread; only tier_io_done() may be
 * called from elsewhere.
 */
#ifndef UFFDMM_TIER_IO_H
#define UFFDMM_TIER_IO_H

#include <liburing.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "uffdmm/protocol.h"

struct tier;
struct tier_scratch;
struct tier_put;

struct tier_io {
    struct tier *tier;
    bool write;
    uint64_t slot;      /* first one */
    uint32_t region_id; /* whose pages they are, from pfn on */
    uint64_t pfn;
    struct iovec *iov; /* page-aligned pieces of whole pages; valid until the end */
    int nr_iov;
    uint64_t length; /* bytes, sum of iov: as many neighbouring slots */
    void *owner;     /* the submitter's */

    int result; /* 0 or a negative errno, once it came out of tier_poll() */
    bool done;

    /* the queue's and the tier's own */
    struct tier_queue *queue;
    struct tier_io *next;
    struct tier_scratch *scratch; /* of the submitting thread for this tier */
    uint64_t submitted_ns, ended_ns;
    uint64_t due_ns; /* delay wrapper: not before this */
    int injected;    /* error wrapper: the result */
    uint64_t cookie; /* the tier's */
    int fd;          /* tier_ring_submit() */
    uint64_t offset;
};

struct tier_queue {
    struct io_uring ring;
    bool deferred;      /* completions have to be asked for */
    bool enabled;       /* by the thread that it belongs to */
    unsigned unflushed; /* prepared and not yet submitted to the ring */
    unsigned in_ring;   /* in the hands of the kernel */
    unsigned in_flight; /* submitted and not polled out */

    pthread_mutex_t lock; /* around what other threads hand back */
    struct tier_io *foreign, **foreign_tail;
    _Atomic bool sleeping; /* the owner wants event_fd signalled */
    int event_fd;

    struct tier_io *ended;   /* of this thread, to be polled out */
    struct tier_io *delayed; /* by the delay wrapper, sorted by due_ns */
    struct tier *tiers[UFFDMM_TIERS_MAX];
    struct tier_scratch *scratch[UFFDMM_TIERS_MAX]; /* by tier index */
    uint64_t rng;                                   /* of the wrappers */
};

/* 0 or a negative errno.  Scratch memory for all of @tiers, which are open. */
int tier_queue_init(struct tier_queue *q, struct tier *const *tiers, unsigned nr_tiers);
void tier_queue_deinit(struct tier_queue *q);

/*
 * Makes @io, but for its owner, a write of @puts from @i on to the slots that they got
 * from @t: as many as have a slot and are neighbours, and as one request may cover.  @iov
 * has room for a piece a page; pages that lie side by side become one.  Returns the put
 * behind the last one covered.
 */
unsigned tier_build_write(struct tier_io *io, struct tier *t, const struct tier_put *puts,
                          unsigned nr, unsigned i, struct iovec *iov);

/* Starts a transfer; tier, write, slot, iov, nr_iov, length and owner are set. */
void tier_submit(struct tier_queue *q, struct tier_io *io);

/* Hands prepared requests to the kernel. */
void tier_flush(struct tier_queue *q);

/* The next transfer that has ended, or NULL.  Never waits. */
struct tier_io *tier_poll(struct tier_queue *q);

/*
 * Before sleeping: returns the longest time to sleep in ns (UINT64_MAX: any), 0
 * when there may be something already; poll event_fd for reading meanwhile.
 * tier_queue_awake() ends it.
 */
uint64_t tier_queue_sleep(struct tier_queue *q);
void tier_queue_awake(struct tier_queue *q);

/* Sleeps until a transfer may have ended, at most @max_ns. */
void tier_wait(struct tier_queue *q, uint64_t max_ns);

/*
 * Submits @nr transfers and waits for all of them: polls for up to @spin_ns, then
 * sleeps.  The queue must have nothing else in flight.  Returns how many failed.
 */
int tier_run(struct tier_queue *q, struct tier_io *ios, int nr, uint64_t spin_ns);

/* For implementations: the transfer has ended.  From any thread. */
void tier_io_done(struct tier_io *io, int result);

/*
 * For implementations on a file descriptor: transfers through the ring of the
 * queue, short ones to their end, at byte @offset of @fd.
 */
void tier_ring_submit(struct tier_queue *q, struct tier_io *io, int fd, uint64_t offset);

/* Memory of the calling thread for a tier with scratch_new(); NULL for others. */
struct tier_scratch *tier_queue_scratch(struct tier_queue *q, struct tier *t);

/* What the wrappers do to a transfer (tier_inject.c): sets injected and due_ns. */
void tier_inject(struct tier_queue *q, struct tier_io *io);

#endif
