/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The pages that the benchmarks store: those of the program in the test guest
 * (tests/guest/content.h), the compressible ones alone.  A pool passes on the others,
 * and so a duration with them in it would be that of two tiers.
 */
#ifndef UFFDMM_BENCH_DEMO_PAGES_H
#define UFFDMM_BENCH_DEMO_PAGES_H

#include <stdbool.h>
#include <stdint.h>

/* Fills the 4096 bytes at @page with what page @pfn has. */
void demo_page_fill(void *page, uint64_t pfn);

/* Two words of it, first and last: cheap enough to look at every time. */
bool demo_page_ok(const void *page, uint64_t pfn);

/* A number that depends on *@state, which is not 0. */
uint64_t demo_random(uint64_t *state);

#endif
