/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The memory under test and the three things done with it: fill, touch, verify.
 * Results go out through report.h, one JSON line each.
 */
#ifndef GUEST_WORK_H
#define GUEST_WORK_H

#include <stdbool.h>
#include <stdint.h>

enum pattern { PATTERN_RANDOM, PATTERN_SEQUENTIAL, PATTERN_HOT };

struct work {
    uint64_t seed;
    uint64_t pages;
    uint64_t *memory;  /* pages * PAGE_WORDS words */
    uint32_t *version; /* one write count a page, kept apart from the pages */
    uint64_t writes;   /* sum of version[] as the program believes it to be */
    bool broken;       /* a wrong word was seen: nothing verifies from now on */
};

struct work_run {
    enum pattern pattern;
    const char *pattern_name;
    uint64_t seed;        /* of the choice of pages, not of their content */
    uint64_t duration_ms; /* 0: until stopped */
    uint64_t report_ms;
    uint32_t write_percent;
    uint32_t span_percent; /* of the pages, from the first on, are touched */
    bool (*stop_requested)(void);
};

/* Map and fill @bytes; false with a report when they cannot be had. */
bool work_fill(struct work *w, uint64_t seed, uint64_t bytes);

/* Unmap everything. */
void work_release(struct work *w);

/* Touch one page a step until the time is over, a stop, or a wrong word. */
void work_run(struct work *w, const struct work_run *run);

/* Compare every byte of every page, and say so. */
void work_verify(struct work *w);

/* Flip one bit of a byte: the control that shows work_verify() can fail. */
bool work_corrupt(struct work *w, uint64_t page, uint32_t offset);

#endif
