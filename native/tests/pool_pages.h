/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Pages like those of programs, made from a number, for tests of compression. */
#ifndef UFFDMM_TEST_POOL_PAGES_H
#define UFFDMM_TEST_POOL_PAGES_H

#include <stdint.h>

enum page_kind {
    PAGE_TEXT,    /* words of a small language */
    PAGE_RECORDS, /* an array of structures with pointers, counters and flags */
    PAGE_SPARSE,  /* used in part, zero beyond */
    PAGE_NOISE,   /* does not compress */
    PAGE_KINDS
};

/* The page of number @seed: the same bytes each time.  Every fourth seed is noise. */
void pool_page(uint8_t *page, uint64_t seed);
void pool_page_of_kind(uint8_t *page, uint64_t seed, enum page_kind kind);

/* A small fast generator; *@state must not be 0. */
uint64_t pool_random(uint64_t *state);

#endif
