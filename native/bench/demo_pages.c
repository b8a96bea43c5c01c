/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "demo_pages.h"

#include "content.h"

#define SEED 7

/* Of the two top bits, which say "noise" when both are clear, one is set. */
static uint64_t base_of(uint64_t pfn)
{
    return page_base(SEED, pfn) | 1ULL << 62;
}

void demo_page_fill(void *page, uint64_t pfn)
{
    uint64_t *words = page;
    uint64_t base = base_of(pfn);

    words[0] = content_stamp(base, 0);
    for (uint32_t i = 1; i < PAGE_WORDS; i++) {
        words[i] = content_filled(base, i);
    }
}

bool demo_page_ok(const void *page, uint64_t pfn)
{
    const uint64_t *words = page;
    uint64_t base = base_of(pfn);

    return words[0] == content_stamp(base, 0) &&
           words[PAGE_WORDS - 1] == content_filled(base, PAGE_WORDS - 1);
}

uint64_t demo_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}
