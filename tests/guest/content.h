/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a page of the test program must contain, as a pure function of the
 * seed, the page's number and how often the program has written to it.
 *
 * Nothing here reads memory under test: the verifier computes every word anew
 * and compares.  A page that comes back as zeros, as another page, or as an
 * older version of itself therefore never matches.
 *
 * Layout of a page of 512 words: word 0 is a stamp that changes with each
 * write; write number v also replaces one of the words 1..511 in turn.  So a
 * write costs two stores, and yet each byte of the page depends on the count.
 */
#ifndef GUEST_CONTENT_H
#define GUEST_CONTENT_H

#include <stdbool.h>
#include <stdint.h>

enum {
    PAGE_BYTES = 4096,
    PAGE_WORDS = PAGE_BYTES / 8,
    BODY_WORDS = PAGE_WORDS - 1 /* the words a write replaces in turn */
};

/* The finaliser of splitmix64: a bijection with good diffusion. */
static inline uint64_t mix(uint64_t x)
{
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9ULL;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebULL;
    return x ^ (x >> 31);
}

/* One value a page; everything in the page derives from it. */
static inline uint64_t page_base(uint64_t seed, uint64_t page)
{
    return mix(mix(seed + 0x9e3779b97f4a7c15ULL) + page * 0xd1342543de82ef95ULL + 1);
}

/* A quarter of the pages are noise that no store can compress. */
static inline bool page_is_noise(uint64_t base)
{
    return (base >> 62) == 0;
}

/* Word 0 of a page that has been written @version times. */
static inline uint64_t content_stamp(uint64_t base, uint32_t version)
{
    return mix(base + (uint64_t)version * 0x9e3779b97f4a7c15ULL);
}

/* The word that write number @version (counted from 1) replaces. */
static inline uint32_t content_target(uint64_t page, uint32_t version)
{
    return 1 + (uint32_t)(((uint64_t)version - 1 + page) % BODY_WORDS);
}

/* What that write puts there: always noise, so that losing it cannot go unseen. */
static inline uint64_t content_written(uint64_t base, uint32_t version)
{
    return mix(base ^ ((uint64_t)version * 0xda942042e4dd58b5ULL));
}

/*
 * Word @index (1..511) as filled, before any write.  Compressible pages look
 * like program data to a codec: few distinct words, and small integers in
 * between (lz4 halves such a page, about as it does with executables).
 */
static inline uint64_t content_filled(uint64_t base, uint32_t index)
{
    uint64_t noise = mix(base + (uint64_t)index * 0xbea225f9eb34556dULL);

    if (page_is_noise(base)) {
        return noise;
    }
    if (index % 2 == 0) {
        return noise & 0xffffff;
    }
    return mix(base + (noise >> 61)); /* one of eight words of this page */
}

/* Word @index (1..511) of a page that has been written @version times. */
static inline uint64_t content_word(uint64_t base, uint64_t page, uint32_t version,
                                    uint32_t index)
{
    uint32_t first; /* the first write that replaced this word */

    first = 1 + (uint32_t)((index - 1 + BODY_WORDS - page % BODY_WORDS) % BODY_WORDS);
    if (version < first) {
        return content_filled(base, index);
    }
    return content_written(base, first + (version - first) / BODY_WORDS * BODY_WORDS);
}

#endif
