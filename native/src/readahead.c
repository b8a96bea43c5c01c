/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Stream detection.  A fixed window is ruinous for random patterns and a
 * window of one for sequential ones, hence doubling on proof.  A few pages of
 * the next window may already be there (the guest skips some), so a hit is a
 * fault within a window's length behind the end of the last one.
 */
#include "readahead.h"

#include <string.h>

void readahead_init(struct readahead *ra)
{
    memset(ra, 0, sizeof(*ra));
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

uint32_t readahead_window(struct readahead *ra, uint64_t pfn, uint32_t max, bool *hit)
{
    struct readahead_stream *s = find(ra, pfn);
    struct readahead_stream *oldest = &ra->streams[0];
    uint32_t now = ++ra->clock;

    *hit = s != NULL;
    if (s) {
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
    oldest->used = now;
    oldest->window = 1;
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
