/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The arena of a pool, which QEMU can write to: headers of slabs and objects, and
 * compressed pages.  An input overwrites a fresh pool that holds a few pages: pieces
 * of two bytes of place, one of length, and the bytes.  Its first byte chooses the
 * codec.  Whatever it does, a page comes
 * back or is refused, and each slot is freed once.
 */
#include "fuzz.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "config.h"
#include "pool.h"
#include "tier_config.h"

enum { PAGES = 24, ARENA = 8 << 20, OBJECTS = 8 };

static uint8_t pages[PAGES][PAGE_SIZE_4K];

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    for (unsigned i = 0; i < PAGES; i++) {
        uint32_t x = i + 1;

        for (unsigned j = 0; j < PAGE_SIZE_4K; j++) {
            x = x * 1664525 + 1013904223;
            /* from hardly to well compressible */
            pages[i][j] = (uint8_t)(j % 32 < 1 + i ? x >> 24 : i);
        }
    }
    return 0;
}

static struct pool_owner owner_of(unsigned i)
{
    return (struct pool_owner){.region_id = 7, .pfn = i};
}

static void overwrite(struct pool *p, const uint8_t *data, size_t size)
{
    while (size > 3) {
        size_t at = ((size_t)data[0] << 8 | data[1]) * 2;
        size_t n = data[2];

        data += 3;
        size -= 3;
        n = n < size ? n : size;
        if (n) {
            FUZZ_EXPECT(pwrite(pool_fd(p), data, n, (off_t)at) == (ssize_t)n);
        }
        data += n;
        size -= n;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint64_t slots[PAGES] = {0};
    uint8_t back[PAGE_SIZE_4K];
    struct pool_scratch *s;
    struct pool_object objects[OBJECTS];
    struct pool *p;

    if (!size) {
        return 0;
    }
    FUZZ_EXPECT(
        pool_create(&p, ARENA, data[0] & 1 ? TIER_CODEC_ZSTD : TIER_CODEC_LZ4, 0) == 0);
    FUZZ_EXPECT(pool_scratch_new(p, &s) == 0);
    for (unsigned i = 0; i < PAGES; i++) {
        int ret = pool_put(p, s, pages[i], owner_of(i), ARENA, &slots[i]);

        FUZZ_EXPECT(ret == 0 || ret == -E2BIG);
        slots[i] = ret ? 0 : slots[i];
    }
    overwrite(p, data + 1, size - 1);
    for (unsigned i = 0; i < PAGES; i++) {
        if (slots[i]) {
            /* the checksum of the page is its owner's affair: here any bytes will do */
            int ret = pool_get(p, s, slots[i], owner_of(i), back);

            FUZZ_EXPECT(ret == 0 || ret == -EUCLEAN);
        }
    }
    unsigned nr = pool_oldest(p, UINT64_MAX, objects, OBJECTS);
    for (unsigned i = 0; i < nr; i++) {
        FUZZ_EXPECT(pool_valid(p, objects[i].slot));
    }
    for (unsigned i = 0; i < PAGES; i++) {
        FUZZ_EXPECT(!slots[i] || pool_free(p, slots[i]));
        FUZZ_EXPECT(!slots[i] || !pool_free(p, slots[i])); /* never twice */
    }
    pool_scratch_free(s);
    pool_destroy(p);
    return 0;
}
