/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Where faults come from: a count for each block, over the last some thousand
 * faults.  It tells within a fraction of a second that a guest has turned to a part
 * of its memory, long before the access history does.
 */
#ifndef UFFDMM_HEAT_H
#define UFFDMM_HEAT_H

#include <stdbool.h>
#include <stdint.h>

/* Of one shard, whose thread alone uses it. */
struct heat {
    uint8_t *counts; /* of faults, by block of the shard; halved now and then */
    uint64_t nr;     /* blocks */
    uint64_t sum;    /* of the counts, about */
    uint64_t window; /* faults between two halvings */
    uint64_t faults; /* since the last one */
};

/* 0 or -ENOMEM. */
int heat_init(struct heat *h, uint64_t nr_blocks);
void heat_deinit(struct heat *h);

/* Counts a fault in @block of the shard.  False when it has too few to be hot. */
bool heat_count(struct heat *h, uint64_t block);

/*
 * True when @block, of which @missing pages are out, has had clearly more faults
 * than faults that hit the @all_missing pages of the shard at random give it.
 */
bool heat_hot(const struct heat *h, uint64_t block, uint64_t missing,
              uint64_t all_missing);

#endif
