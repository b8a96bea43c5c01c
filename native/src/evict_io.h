/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A batch of pages on their way into the store: the evictor's steps 4 to 6. */
#ifndef UFFDMM_EVICT_IO_H
#define UFFDMM_EVICT_IO_H

#include <stdbool.h>
#include <stdint.h>

#include "config.h"
#include "tier.h"
#include "tier_io.h"

struct region;
struct vm;

/* Batches of an evictor: all but one may wait for a tier that does not answer. */
#define EVICT_BATCHES 4u

/*
 * Blocks of one batch, and so the size of its buffer: holes are read along.  A huge page
 * is a batch by itself.
 */
#define BATCH_BLOCKS 8u
#define BATCH_BYTES (BATCH_BLOCKS * BLOCK_PAGES * PAGE_SIZE_4K)
_Static_assert(BATCH_BYTES >= PAGE_SIZE_2M, "a batch must hold a huge page");

enum item_kind {
    ITEM_CLAIMED,   /* EVICTING, not looked at yet */
    ITEM_SAME,      /* one repeated word */
    ITEM_UNCHANGED, /* its slot still holds it */
    ITEM_DIRTY,     /* gets a new slot; after batch_write(): is in it */
    ITEM_PUBLISHED, /* STORED and BUSY: may be punched */
    ITEM_DROPPED,   /* stays in memory, or was discarded */
    ITEM_GONE       /* out of memory: no longer ours */
};

struct item {
    struct region *region;
    uint64_t pfn;
    uint64_t entry; /* what the table says, while it is ours */
    const char *data;
    uint64_t word;     /* ITEM_SAME */
    uint64_t checksum; /* ITEM_DIRTY: of the new generation */
    enum item_kind kind;
    bool has_slot; /* a new slot was taken for it and is not published yet */
    bool written;  /* and holds it */
    struct tier *tier;
    uint64_t slot;
};

struct batch {
    struct vm *vm;
    struct tier_queue queue;
    char *buffer; /* BATCH_BLOCKS blocks */
    unsigned nr;
    bool store_trouble; /* the last batch could not be stored as a whole */
    bool write_errors;  /* because writes failed */
    uint64_t reclaim_hand;
    bool parked; /* laid aside while a tier does not do its writes */

    /* between calls of batch_write() */
    unsigned next_tier; /* that is offered the pages */
    bool writing;       /* its writes are under way */
    bool reclaimed;     /* it has been cleared of copies */
    bool no_room;       /* it refused pages for want of room */
    unsigned nr_puts, nr_ios;
    uint64_t began_ns;

    struct item items[BATCH_PAGES];

    /* for one tier at a time: the items put there, and the writes they need */
    struct item *chosen[BATCH_PAGES];
    struct tier_put puts[BATCH_PAGES];
    struct tier_io ios[BATCH_PAGES];
    struct iovec iovs[BATCH_PAGES];
};

/* 0 or a negative errno. */
int batch_new(struct vm *vm, struct batch **out);
void batch_free(struct batch *bt);

/* Keeps the page of @it in memory: back in the table, then unprotected. */
void batch_give_back(struct item *it);

/* Decides for each page whether and how it must be stored. */
void batch_classify(struct batch *bt);

/*
 * Stores the dirty pages, each in the first tier that takes it.  What none takes
 * is given back.  batch_write() returns false when a tier has not done its writes within
 * @stall_ns: it is to be called again then, until it returns true.
 */
void batch_write_begin(struct batch *bt);
bool batch_write(struct batch *bt, uint64_t stall_ns);

/*
 * While the batch waits for a tier, other batches go on, and a page that is taken back
 * can get into one of them.  Then only the slot in its entry tells whose it is: pages
 * that have none yet are given back.
 */
void batch_lay_aside(struct batch *bt);

/* EVICTING -> STORED with BUSY for all that is stored and that nobody took back. */
void batch_publish(struct batch *bt);

/* Queues again the blocks of which pages stayed. */
void batch_requeue(struct batch *bt);

/* Counts the VM's resident pages anew from its memfds. */
void vm_sync_resident(struct vm *vm);

#endif
