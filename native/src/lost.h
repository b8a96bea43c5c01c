/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Pages whose content cannot be had, when they are poisoned rather than waited for.
 * Called by the shard's own thread only, but for init and deinit.
 */
#ifndef UFFDMM_LOST_H
#define UFFDMM_LOST_H

#include <stdbool.h>
#include <stdint.h>

#include "fill.h"

struct window;

/* The poisoned pages of a shard. */
struct lost {
    uint64_t *map; /* bitmap over the shard's pages; NULL: pages are waited for */
    uint64_t nr;   /* set bits */
    uint64_t hand; /* page of the shard that is tried after this one */
    uint64_t next_ns;
    bool trying;
};

/* For a shard of @nr_pages whose VM wants poison.  0 or -ENOMEM. */
int lost_init(struct lost *l, uint64_t nr_pages);
void lost_deinit(struct lost *l);

/*
 * The content of the page of @f cannot be had now, or no longer has to be: the first
 * time is kept in @f, and while there are such faults the worker's state shows it.
 */
void lost_note(struct shard *sh, struct deferred *f);
void lost_forget(struct shard *sh, struct deferred *f);
/* The thread ends, and with it all its faults. */
void lost_forget_all(struct shard *sh);

/* True when the page of @f has been out of reach for as long as the configuration waits. */
bool lost_due(const struct shard *sh, const struct deferred *f);

/*
 * Poisons the demanded page of a window, which cannot be read: its entry becomes LOST
 * and who waits for it gets SIGBUS.  SERVED, or why it is to be tried again.
 */
enum serve_outcome lost_give_up(struct window *w);

/* Page @pfn of the region was poisoned by a worker that died; before the thread starts. */
void lost_adopt(struct shard *sh, uint64_t pfn);

/* A fault on the page @pfn, whose entry @e is LOST. */
enum serve_outcome lost_fault(struct shard *sh, uint64_t pfn, uint64_t e);

/* Something has been put in place of page @pfn of the region: no poison is left there. */
void lost_cleared(struct shard *sh, uint64_t pfn);

/*
 * The next poisoned page whose time to be tried again has come, as a fault to be served
 * (repair is set).  lost_tried() must follow for each.
 */
bool lost_next(struct shard *sh, struct deferred *f);
void lost_tried(struct shard *sh, bool served);

/* clock_ns() of the next try, UINT64_MAX when there is nothing to try. */
uint64_t lost_next_ns(const struct lost *l);

#endif
