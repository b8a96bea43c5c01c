/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "pool_pages.h"

#include <string.h>

#include "config.h"

uint64_t pool_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* Words of 2 to 11 letters, some of which come often, and in the same company. */
static void text(uint8_t *to, unsigned bytes, uint64_t *rng)
{
    unsigned at = 0;

    while (at < bytes) {
        uint64_t r = pool_random(rng);
        uint64_t word = (r & 0xff) * ((r >> 8) & 0xff) / 64 + 1; /* 1 .. 1017, skewed */

        if (at >= 256 && (r >> 32) % 3 == 0) {
            unsigned again = 12 + (unsigned)(r >> 40) % 32;

            for (unsigned from = at - 64 - (unsigned)(r >> 48) % 192; again && at < bytes;
                 again--) {
                to[at++] = to[from++];
            }
            continue;
        }
        uint64_t letters = word * 0x9e3779b97f4a7c15ULL;
        unsigned length = 2 + (unsigned)(letters >> 60) * 10 / 16;

        for (unsigned i = 0; i < length && at < bytes; i++) {
            to[at++] = (uint8_t)('a' + (letters >> (5 * i)) % 26);
        }
        if (at < bytes) {
            to[at++] = (r >> 20) % 12 ? ' ' : '\n';
        }
    }
}

static void records(uint8_t *page, uint64_t *rng)
{
    struct record {
        uint64_t next, data;
        uint32_t count, flags;
        uint64_t key;
        uint8_t name[16];
        uint64_t zero[2];
    } r;
    uint64_t heap = 0x7f0000000000ULL + (pool_random(rng) << 20) % (1ULL << 38);
    uint64_t variety = pool_random(rng) % 3;

    _Static_assert(PAGE_SIZE_4K % sizeof(r) == 0, "they fill a page");
    for (unsigned i = 0; i < PAGE_SIZE_4K / sizeof(r); i++) {
        uint64_t x = pool_random(rng);

        memset(&r, 0, sizeof(r));
        r.next = heap + i * sizeof(r);
        r.data = heap + (x & 0xffff0);
        r.count = (uint32_t)((x >> 20) & 0xff);
        r.flags = (x >> 28) & 1 ? 0x11 : 0x80000001;
        r.key = variety ? pool_random(rng) : i;
        text(r.name, variety == 2 ? sizeof(r.name) : 4, rng);
        memcpy(page + i * sizeof(r), &r, sizeof(r));
    }
}

static void noise(uint8_t *page, unsigned bytes, uint64_t *rng)
{
    for (unsigned i = 0; i < bytes; i += sizeof(uint64_t)) {
        uint64_t x = pool_random(rng);

        memcpy(page + i, &x, sizeof(x));
    }
}

void pool_page_of_kind(uint8_t *page, uint64_t seed, enum page_kind kind)
{
    uint64_t rng = (seed + 1) * 0xd1342543de82ef95ULL;

    pool_random(&rng);
    switch (kind) {
    case PAGE_TEXT:
        text(page, PAGE_SIZE_4K, &rng);
        break;
    case PAGE_RECORDS:
        records(page, &rng);
        break;
    case PAGE_SPARSE:
        memset(page, 0, PAGE_SIZE_4K);
        noise(page, 16 + (unsigned)(pool_random(&rng) % 340) * 8, &rng);
        break;
    default:
        noise(page, PAGE_SIZE_4K, &rng);
        break;
    }
}

void pool_page(uint8_t *page, uint64_t seed)
{
    pool_page_of_kind(page, seed, (enum page_kind)(seed % PAGE_KINDS));
}
