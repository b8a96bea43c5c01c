/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Whether a page of a hugetlbfs memfd is there.  Theory of operation at the head of
 * presence.c.
 */
#ifndef UFFDMM_PRESENCE_H
#define UFFDMM_PRESENCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct presence {
    int uffd;
    char *map; /* of the whole memfd, readable, nothing in it */
    uint64_t size;
};

/* Nothing to undo. */
void presence_clear(struct presence *p);

/* Prepares to look at @memfd, of @size bytes.  0 or a negative errno. */
int presence_init(struct presence *p, int memfd, uint64_t size);
void presence_deinit(struct presence *p);

/*
 * True when the page of @bytes at @offset is there.  It neither comes nor goes by
 * that.  From any thread, several at a time.
 */
bool presence_of(const struct presence *p, uint64_t offset, size_t bytes);

#endif
