/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What bench-tiers measures: something that stores runs of pages and gives
 * them back.  A tier is one, and so is whatever a tier is made of.
 */
#ifndef UFFDMM_BENCH_SUBJECT_H
#define UFFDMM_BENCH_SUBJECT_H

#include <stdbool.h>
#include <stdint.h>

/* Pages of the working set, and the longest run. */
#define SET_PAGES 16384u
#define RUN_MAX 32u

struct subject {
    char name[32];
    /*
     * Stores the @nr pages at @from, or brings the pages from @pfn on to @to.  Returns the
     * nanoseconds that took, or a negative errno.  What has to be done around it, like
     * taking room and giving it back, is not in them.
     */
    int64_t (*put)(struct subject *s, uint64_t pfn, const uint8_t *from, unsigned nr);
    int64_t (*read)(struct subject *s, uint64_t pfn, uint8_t *to, unsigned nr);
    void (*end)(struct subject *s);
    void *priv;
};

/*
 * Each of these gets the working set, page-aligned at @pages, and stores it for read() to
 * find.  0, or a negative errno after a sentence on stderr.
 */
int subject_memcpy(struct subject *s, const uint8_t *pages);
/* Calls of the codec that a pool makes; @zstd: level 1, else lz4. */
int subject_codec(struct subject *s, const uint8_t *pages, bool zstd);
/* A file of its own in @folder: pread() and pwrite() with O_DIRECT. */
int subject_device(struct subject *s, const uint8_t *pages, const char *folder);
/* A tier as --tier takes it; its name is the subject's. */
int subject_tier(struct subject *s, const uint8_t *pages, const char *option);

#endif
