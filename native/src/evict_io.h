/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A batch of pages on their way into the store: the evictor's steps 4 to 6. */
#ifndef UFFDMM_EVICT_IO_H
#define UFFDMM_EVICT_IO_H

#include <stdbool.h>
#include <stdint.h>

#include "config.h"
#include "io.h"

struct region;
struct vm;

/* Blocks of one batch, and so the size of its buffer: holes are read along. */
#define BATCH_BLOCKS 8u

enum item_kind {
    ITEM_CLAIMED,   /* EVICTING, not looked at yet */
    ITEM_SAME,      /* one repeated word */
    ITEM_UNCHANGED, /* its slot still holds it */
    ITEM_DIRTY,     /* gets a new slot; after batch_write(): is in it */
    ITEM_PUBLISHED, /* STORED and BUSY: may be punched */
    ITEM_DROPPED    /* stays in memory, or was discarded */
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
    uint64_t slot;
};

struct batch {
    struct vm *vm;
    struct io io;
    char *buffer; /* BATCH_BLOCKS blocks */
    unsigned nr;
    bool store_trouble; /* the last batch could not be written as a whole */
    uint64_t reclaim_hand;
    struct item items[BATCH_PAGES];
    struct iovec iovs[BATCH_PAGES];
};

/* 0 or a negative errno. */
int batch_new(struct vm *vm, struct batch **out);
void batch_free(struct batch *bt);

/* Keeps the page of @it in memory: back in the table, then unprotected. */
void batch_give_back(struct batch *bt, struct item *it);

/* Decides for each page whether and how it must be stored. */
void batch_classify(struct batch *bt);

/* Takes slots for the dirty pages and writes them.  What fails is given back. */
void batch_write(struct batch *bt);

/* EVICTING -> STORED with BUSY for all that nobody took back. */
void batch_publish(struct batch *bt);

/* Queues again the blocks of which pages stayed. */
void batch_requeue(struct batch *bt);

/* Counts the VM's resident pages anew from its memfds. */
void vm_sync_resident(struct vm *vm);

#endif
