/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The pages of one fill, between the table, the stores and guest memory.  A
 * shard has some windows, so that it can serve faults while reads for others
 * are under way.
 */
#ifndef UFFDMM_WINDOW_H
#define UFFDMM_WINDOW_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "config.h"
#include "fill.h"
#include "tier_io.h"

struct shard;

enum claim_kind {
    CLAIM_NONE,
    CLAIM_ZERO,
    CLAIM_WORD, /* one repeated word */
    CLAIM_SLOT
};

struct claim {
    enum claim_kind kind;
    bool ready;       /* its bytes are in the buffer and checked */
    uint64_t before;  /* entry to go back to */
    uint64_t filling; /* entry while claimed */
    uint64_t after;   /* entry when in place */
};

struct window {
    struct shard *shard;
    struct deferred fault; /* that it is for */
    uint64_t pfn;          /* first page */
    uint32_t nr;           /* pages looked at */
    uint32_t demand;       /* the one that somebody waits for */
    bool guess;            /* the others come on a guess, see fault.c */
    unsigned tier;         /* that is read from and waited for, 0: none */
    unsigned pending;      /* transfers under way */
    unsigned retries;      /* of the demanded page */
    int error;             /* why the demanded page was not read, 0: checksum */
    char *buffer;          /* WINDOW_MAX pages, or one huge page */
    struct claim claims[WINDOW_MAX];
    struct tier_io ios[WINDOW_MAX];
    struct iovec iovs[WINDOW_MAX];
};

/* Where the bytes of page @i are gathered; of huge pages there is one. */
static inline void *window_buffer(const struct window *w, uint32_t i)
{
    return w->buffer + (size_t)i * PAGE_SIZE_4K;
}

/* Gives a claimed page back as it was; a discard that came meanwhile stays. */
void window_unclaim(struct window *w, uint32_t i);

/*
 * Puts claimed pages [@i, @end), all data or all @zero, into guest memory.
 * SERVED when each is in place, else why the rest of them are not.
 */
enum serve_outcome window_install(struct window *w, uint32_t i, uint32_t end, bool zero);

#endif
