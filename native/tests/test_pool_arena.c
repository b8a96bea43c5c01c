/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The arena as others see it: read by a later worker, written to by a hostile QEMU. */
#include "unit.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "pool_fixture.h"
#include "pool_pages.h"
#include "pool_priv.h"

/* What a later worker would do: find all pages with nothing but the memfd. */
static void arena_describes_itself(void **state)
{
    static uint8_t slab[POOL_SLAB_BYTES];
    static uint64_t found[FIXTURE_PAGES];
    struct pool_fixture *f = pool_fixture_new(32 * MIB, TIER_CODEC_ZSTD);
    (void)state;

    memset(found, 0, sizeof(found));
    fixture_fill(f);
    fixture_thin_out(f, 100);
    fixture_fill(f); /* some of it in slabs that had another class before */
    fixture_thin_out(f, 50);
    for (uint64_t at = 0; at < 32 * MIB; at += sizeof(slab)) {
        const struct pool_slab_header *h = (const void *)slab;

        assert_int_equal(pread(pool_fd(f->pool), slab, sizeof(slab), (off_t)at),
                         sizeof(slab));
        if (h->magic != POOL_MAGIC) {
            continue;
        }
        assert_int_equal(h->layout, POOL_LAYOUT);
        assert_int_equal(h->codec, TIER_CODEC_ZSTD);
        assert_true(h->objects * h->object_size <= sizeof(slab) - sizeof(*h));
        for (unsigned i = 0; i < h->objects; i++) {
            uint64_t offset = sizeof(*h) + (uint64_t)i * h->object_size;
            struct pool_owner owner;
            uint32_t length;
            uint64_t key;

            memcpy(&key, slab + offset, sizeof(key));
            if (pool_key_parse(key, (at + offset) >> POOL_ALIGN_SHIFT, &owner, &length)) {
                assert_int_equal(owner.region_id, 7);
                assert_in_range(owner.pfn, 0, FIXTURE_PAGES - 1);
                found[owner.pfn] = (at + offset) >> POOL_ALIGN_SHIFT;
            } else {
                assert_int_equal(key, 0);
            }
        }
    }
    for (unsigned i = 0; i < FIXTURE_PAGES; i++) {
        assert_int_equal(found[i], f->rows[i].slot);
    }
    pool_fixture_free(f);
}

static void flipped_bit_of_a_header_is_noticed(void **state)
{
    struct pool_fixture *f = pool_fixture_new(MIB, TIER_CODEC_LZ4);
    uint8_t back[PAGE_SIZE_4K];
    uint64_t key, bad;
    off_t at;
    (void)state;

    assert_int_equal(fixture_store(f, f->scratch, 100, 4, ANY), 0);
    at = (off_t)(f->rows[100].slot << POOL_ALIGN_SHIFT);
    assert_int_equal(pread(pool_fd(f->pool), &key, sizeof(key), at), sizeof(key));
    for (unsigned bit = 0; bit < 64; bit++) {
        bad = key ^ (1ULL << bit);
        assert_int_equal(pwrite(pool_fd(f->pool), &bad, sizeof(bad), at), sizeof(bad));
        assert_int_equal(
            pool_get(f->pool, f->scratch, f->rows[100].slot, fixture_owner(100), back),
            -EUCLEAN);
    }
    assert_int_equal(pwrite(pool_fd(f->pool), &key, sizeof(key), at), sizeof(key));
    assert_true(fixture_holds(f, f->scratch, 100));
    pool_fixture_free(f);
}

/* Valid keys of the wrong length or place: only private memory can tell. */
static void forged_header_is_not_believed(void **state)
{
    struct pool_fixture *f = pool_fixture_new(MIB, TIER_CODEC_LZ4);
    uint8_t back[PAGE_SIZE_4K];
    uint64_t slot, key;
    (void)state;

    assert_int_equal(fixture_store(f, f->scratch, 100, 4, ANY), 0);
    slot = f->rows[100].slot;
    for (uint32_t length = 1; length < 4096; length++) {
        key = pool_key(fixture_owner(100), length, slot);
        assert_int_equal(pwrite(pool_fd(f->pool), &key, sizeof(key),
                                (off_t)(slot << POOL_ALIGN_SHIFT)),
                         sizeof(key));
        /* lz4 may make do with less or more, if it still makes one page */
        int ret = pool_get(f->pool, f->scratch, slot, fixture_owner(100), back);
        assert_true(ret == 0 || ret == -EUCLEAN);
        if (length > 3072) {
            assert_int_equal(ret, -EUCLEAN);
        }
    }
    assert_true(pool_free(f->pool, slot));
    struct pool_usage u;
    pool_usage(f->pool, &u);
    assert_int_equal(u.data_bytes, 0);
    assert_int_equal(u.objects, 0);
    pool_fixture_free(f);
}

static void arena_under_fire(enum tier_codec codec)
{
    struct pool_fixture *f = pool_fixture_new(32 * MIB, codec);
    struct pool_mover m = fixture_mover(f);
    uint64_t rng = 1234567, junk[8];
    unsigned errors = 0, good = 0;
    struct pool_object out[16];
    uint8_t back[PAGE_SIZE_4K];

    fixture_fill(f);
    fixture_thin_out(f, 40);
    for (int step = 0; step < 20000; step++) {
        uint64_t i = pool_random(&rng) % FIXTURE_PAGES;
        uint64_t at = pool_random(&rng) % (f->pool->fresh << POOL_SLAB_SHIFT);

        for (unsigned k = 0; k < 8; k++) {
            junk[k] = pool_random(&rng);
        }
        /* half of it aimed at headers and what comes first in a compressed page */
        if (step % 2 && f->rows[i].slot) {
            at = (f->rows[i].slot << POOL_ALIGN_SHIFT) + pool_random(&rng) % 24;
        }
        assert_true(
            pwrite(pool_fd(f->pool), junk, 1 + pool_random(&rng) % 64, (off_t)at) > 0);
        if (f->rows[i].slot) {
            int ret =
                pool_get(f->pool, f->scratch, f->rows[i].slot, fixture_owner(i), back);

            assert_true(ret == 0 || ret == -EUCLEAN);
            errors += ret != 0;
            good += ret == 0;
        }
        if (step % 16 == 0) {
            unsigned n = pool_oldest(f->pool, ANY, out, 16);

            for (unsigned k = 0; k < n; k++) {
                assert_true(pool_valid(f->pool, out[k].slot));
                assert_true(out[k].stored_ns <= clock_ns());
            }
        }
        if (step % 64 == 0) {
            (void)pool_compact(f->pool, &m, 16, 10);
        }
    }
    assert_true(errors > 100);
    assert_true(good > 100);
    /* all of it can still be freed, and the books are right in the end */
    fixture_assert_ends_empty(f);
    pool_fixture_free(f);
}

static void damaged_arena_harms_nothing_but_its_pages(void **state)
{
    (void)state;
    arena_under_fire(TIER_CODEC_LZ4);
    arena_under_fire(TIER_CODEC_ZSTD);
}

static void punched_arena_is_noticed(void **state)
{
    struct pool_fixture *f = pool_fixture_new(4 * MIB, TIER_CODEC_LZ4);
    uint8_t back[PAGE_SIZE_4K];
    (void)state;

    assert_int_equal(fixture_store(f, f->scratch, 100, 4, ANY), 0);
    assert_int_equal(fallocate(pool_fd(f->pool),
                               FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
                               (off_t)(4 * MIB)),
                     0);
    assert_int_equal(
        pool_get(f->pool, f->scratch, f->rows[100].slot, fixture_owner(100), back),
        -EUCLEAN);
    assert_true(fixture_drop(f, 100));
    assert_int_equal(fixture_store(f, f->scratch, 100, 5, ANY), 0);
    assert_true(fixture_holds(f, f->scratch, 100));
    pool_fixture_free(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(arena_describes_itself),
        cmocka_unit_test(flipped_bit_of_a_header_is_noticed),
        cmocka_unit_test(forged_header_is_not_believed),
        cmocka_unit_test(damaged_arena_harms_nothing_but_its_pages),
        cmocka_unit_test(punched_arena_is_noticed),
    };

    return cmocka_run_group_tests_name("pool_arena", tests, NULL, NULL);
}
