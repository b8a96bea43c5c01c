/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Stream detection.  A fixed window is ruinous for random patterns and a
 * window of one for sequential ones, hence doubling on proof.  A few pages of
 * the next window may already be there (the guest skips some), so a hit is a
 * fault within a window's length behind the end of the last one.
 */
#include "readahead.h"

#include <string.h>

#define CAP_MIN 4

/* Windows of the largest size that a stream must use up before there are larger ones. */
#define PROOFS 2

void readahead_init(struct readahead *ra)
{
    memset(ra, 0, sizeof(*ra));
    ra->cap = UINT32_MAX / 2;
}

static struct readahead_stream *find(struct readahead *ra, uint64_t pfn)
{
    for (int i = 0; i < READAHEAD_STREAMS; i++) {
        struct readahead_stream *s = &ra->streams[i];

        if (s->window && pfn >= s->next && pfn - s->next < s->window) {
            return s;
        }
    }
    return NULL;
}

/* Nobody came to the end of the last window of @s. */
static void give_up(struct readahead *ra, const struct readahead_stream *s)
{
    if (s->window <= 1) {
        return;
    }
    ra->wasted += s->window - 1;
    /* half of what was too much, and never so small that a stream cannot begin */
    ra->cap = s->window / 2 > CAP_MIN ? s->window / 2 : CAP_MIN;
}

uint32_t readahead_window(struct readahead *ra, uint64_t pfn, uint32_t max, bool *hit)
{
    struct readahead_stream *s = find(ra, pfn);
    struct readahead_stream *oldest = &ra->streams[0];
    uint32_t now = ++ra->clock;

    *hit = s != NULL;
    if (s) {
        if (s->window >= ra->cap && ++s->at_cap >= PROOFS && ra->cap < UINT32_MAX / 2) {
            ra->cap *= 2;
            s->at_cap = 0;
        }
        max = max < ra->cap ? max : ra->cap;
        s->window = 2 * s->window < max ? 2 * s->window : max;
        s->used = now;
        s->next = pfn;
        return s->window;
    }
    for (int i = 1; i < READAHEAD_STREAMS; i++) {
        if ((int32_t)(ra->streams[i].used - oldest->used) < 0) {
            oldest = &ra->streams[i];
        }
    }
    give_up(ra, oldest);
    oldest->used = now;
    oldest->window = 1;
    oldest->at_cap = 0;
    oldest->next = pfn;
    return 1;
}

void readahead_done(struct readahead *ra, uint64_t pfn, uint64_t next)
{
    for (int i = 0; i < READAHEAD_STREAMS; i++) {
        struct readahead_stream *s = &ra->streams[i];

        if (s->window && s->next == pfn) {
            s->next = next;
            return;
        }
    }
}
