/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Copies: pages that are in memory and still have their bytes in a tier (CLEAN).
 * They save a write when the page is evicted again unchanged, and are the first
 * thing to give up when the tier has no room.
 */
#ifndef UFFDMM_COPIES_H
#define UFFDMM_COPIES_H

#include <stdint.h>

struct tier;
struct vm;

/*
 * Gives up copies in @t, some at a time.  @hand: where the last call ended, one a
 * caller.  Called under regions_lock.  Returns how many, 0 when there are too few to
 * be worth a walk over the tables.
 */
unsigned copies_reclaim(struct vm *vm, struct tier *t, uint64_t *hand);

#endif
