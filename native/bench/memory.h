/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A piece of memory as a guest has it: a region of a manager, or anonymous
 * memory that Linux swaps.  What is done with it is the same for both.
 */
#ifndef UFFDMM_BENCH_MEMORY_H
#define UFFDMM_BENCH_MEMORY_H

#include <stdbool.h>
#include <stdint.h>

#include "samples.h"
#include "standin.h"

struct memory {
    uint8_t *base;
    uint64_t nr_pages;
    uint8_t *resident; /* scratch of memory_missing() */
    bool external;
    struct standin standin; /* external alone */
};

/*
 * A region of @bytes at the manager behind @socket, or anonymous memory when that is
 * NULL.  0, or a negative errno after a sentence on stderr.
 */
int memory_open(struct memory *m, const char *socket, const char *vm_name,
                uint64_t bytes);
void memory_close(struct memory *m);

/* Writes every page. */
void memory_fill(struct memory *m);

/* Bytes in memory. */
uint64_t memory_resident(struct memory *m);

/* True when a touch of @pfn has to be waited for: it is neither mapped nor cached. */
bool memory_missing(const struct memory *m, uint64_t pfn);

/* Reads one word of the page and adds how long that took; false when the word is wrong. */
bool memory_touch(struct memory *m, uint64_t pfn, struct samples *s);

#endif
