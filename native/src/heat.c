/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation.  A guest that touches all of its memory at random faults on
 * every page that is out with the same chance, so a block gets faults in
 * proportion to its pages that are out.  A block that has had clearly more than its share
 * and more than chance explains (some standard deviations, for counts the root
 * of their mean) is one that the guest works in.
 */
#include "heat.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Fewest faults between two halvings. */
#define WINDOW_MIN 2048

/* A hot block has at least so many faults, so many times its share, and so many deviations more. */
#define HOT_MIN 6
#define HOT_SHARES 1.5
#define HOT_DEVIATIONS 3.0

int heat_init(struct heat *h, uint64_t nr_blocks)
{
    memset(h, 0, sizeof(*h));
    h->counts = calloc(nr_blocks, sizeof(*h->counts));
    h->nr = nr_blocks;
    h->window = nr_blocks > WINDOW_MIN ? nr_blocks : WINDOW_MIN;
    return h->counts ? 0 : -ENOMEM;
}

void heat_deinit(struct heat *h)
{
    free(h->counts);
    h->counts = NULL;
}

/* As many faults as there are blocks pay for this. */
static void halve(struct heat *h)
{
    h->sum = h->faults = 0;
    for (uint64_t i = 0; i < h->nr; i++) {
        h->counts[i] /= 2;
        h->sum += h->counts[i];
    }
}

bool heat_count(struct heat *h, uint64_t block)
{
    if (block >= h->nr) {
        return false;
    }
    if (h->counts[block] < UINT8_MAX) {
        h->counts[block]++;
        h->sum++;
    }
    if (++h->faults >= h->window) {
        halve(h);
    }
    return h->counts[block] >= HOT_MIN;
}

bool heat_hot(const struct heat *h, uint64_t block, uint64_t missing,
              uint64_t all_missing)
{
    double share;

    if (!all_missing) {
        return false;
    }
    share = (double)h->sum * (double)missing / (double)all_missing;
    return h->counts[block] > HOT_SHARES * share + HOT_DEVIATIONS * sqrt(share);
}
