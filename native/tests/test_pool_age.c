/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Which pages the pool has held longest. */
#include "unit.h"

#include <string.h>

#include "clock.h"
#include "pool_fixture.h"
#include "pool_pages.h"
#include "pool_priv.h"

/* Stores page @pfn as if at @stored_ns. */
static void store_at(struct pool_fixture *f, uint64_t pfn, uint64_t stored_ns)
{
    struct pool_place place;
    uint8_t page[PAGE_SIZE_4K];
    const void *data;
    uint32_t length;

    pool_page_of_kind(page, 1, PAGE_TEXT); /* all of one class */
    length = pool_compress(f->scratch, page, &data);
    assert_int_equal(pool_place_take(f->pool, length, stored_ns, ANY, &place), 0);
    pool_object_write(f->pool, &place, fixture_owner(pfn), data, length, stored_ns);
    f->rows[pfn].slot = pool_slot_of(f->pool, place.header);
}

/* A pool whose ring of ages goes back to the start of the machine. */
static struct pool_fixture *aged_fixture(void)
{
    struct pool_fixture *f = pool_fixture_new(64 * MIB, TIER_CODEC_LZ4);

    f->pool->age_base = 0;
    f->pool->age_first = 0;
    f->pool->age_last = 0;
    return f;
}

static void oldest_are_found_in_order_and_once(void **state)
{
    enum { NR = 1000 };
    static unsigned seen[NR];
    struct pool_fixture *f = aged_fixture();
    uint64_t now = clock_ns(), last_slab = 0, last_bound = 0, slab;
    struct pool_object out[16];
    unsigned n, total = 0;
    (void)state;

    memset(seen, 0, sizeof(seen));
    for (uint64_t i = 0; i < NR; i++) {
        store_at(f, i, now / NR * i);
    }
    /* objects of the younger half are none of the answer */
    while ((n = pool_oldest(f->pool, now / NR * (NR / 2), out, 16)) > 0) {
        for (unsigned i = 0; i < n; i++) {
            assert_in_range(out[i].owner.pfn, 0, NR / 2 - 1);
            assert_int_equal(out[i].owner.region_id, 7);
            assert_int_equal(out[i].slot, f->rows[out[i].owner.pfn].slot);
            assert_int_equal(out[i].stored_ns, now / NR * out[i].owner.pfn);
            seen[out[i].owner.pfn]++;
            slab = out[i].slot >> (POOL_SLAB_SHIFT - POOL_ALIGN_SHIFT);
            if (slab != last_slab) {
                /* a slab after the other, the one with the oldest page first */
                assert_true(f->pool->slabs[slab].bound_ns >= last_bound);
                last_bound = f->pool->slabs[slab].bound_ns;
                last_slab = slab;
            }
        }
        total += n;
        if (total == NR / 2) {
            break;
        }
    }
    assert_int_equal(total, NR / 2);
    for (unsigned i = 0; i < NR / 2; i++) {
        assert_int_equal(seen[i], 1);
    }
    pool_fixture_free(f);
}

/* Nothing is freed: the caller still gets to see all of them, again and again. */
static void objects_that_stay_do_not_hide_others(void **state)
{
    enum { NR = 500 };
    static unsigned seen[NR];
    struct pool_fixture *f = aged_fixture();
    uint64_t now = clock_ns();
    struct pool_object out[7];
    (void)state;

    memset(seen, 0, sizeof(seen));
    for (uint64_t i = 0; i < NR; i++) {
        store_at(f, i, now / NR * i);
    }
    for (unsigned calls = 0; calls < 3 * NR; calls++) {
        unsigned n = pool_oldest(f->pool, ANY, out, 7);

        assert_in_range(n, 1, 7);
        for (unsigned i = 0; i < n; i++) {
            seen[out[i].owner.pfn]++;
        }
    }
    for (unsigned i = 0; i < NR; i++) {
        assert_in_range(seen[i], 3 * 7 - 2, 3 * 7 + 2);
    }
    for (uint64_t i = 0; i < NR; i++) {
        assert_true(fixture_drop(f, i));
    }
    assert_int_equal(pool_oldest(f->pool, ANY, out, 7), 0);
    pool_fixture_free(f);
}

/* New pages in places of old ones: the slab is looked at once, not each time. */
static void slab_with_new_pages_counts_as_new(void **state)
{
    struct pool_fixture *f = aged_fixture();
    uint64_t now = clock_ns(), slot;
    struct pool_object out[8];
    struct pool_slab *s;
    (void)state;

    for (uint64_t i = 0; i < 10; i++) {
        store_at(f, i, i < 5 ? 1000 : now);
    }
    slot = f->rows[0].slot;
    s = &f->pool->slabs[slot >> (POOL_SLAB_SHIFT - POOL_ALIGN_SHIFT)];
    assert_int_equal(s->bound_ns, 1000);
    assert_int_equal(pool_oldest(f->pool, now, out, 8), 5);
    for (uint64_t i = 0; i < 5; i++) {
        assert_true(fixture_drop(f, i));
        store_at(f, i, now);
    }
    assert_int_equal(f->rows[4].slot >> (POOL_SLAB_SHIFT - POOL_ALIGN_SHIFT),
                     s - f->pool->slabs);
    assert_int_equal(pool_oldest(f->pool, now, out, 8), 0);
    assert_int_equal(s->bound_ns, now);
    assert_int_equal(pool_oldest(f->pool, now + 1, out, 8), 8);
    pool_fixture_free(f);
}

/* Years between pages: what falls off the ring's end is still found. */
static void pages_older_than_the_ring_are_found(void **state)
{
    enum { NR = 300 };
    static unsigned seen[NR];
    struct pool_fixture *f = aged_fixture();
    struct pool_object out[16];
    unsigned n, total = 0;
    (void)state;

    memset(seen, 0, sizeof(seen));
    for (uint64_t i = 0; i < NR; i++) {
        store_at(f, i, (i * POOL_AGE_BUCKETS / 40) << POOL_AGE_SHIFT);
    }
    assert_true(f->pool->age_base > 0);
    while (total < NR && (n = pool_oldest(f->pool, ANY, out, 16)) > 0) {
        for (unsigned i = 0; i < n; i++) {
            seen[out[i].owner.pfn]++;
        }
        total += n;
    }
    for (unsigned i = 0; i < NR; i++) {
        assert_int_equal(seen[i], 1);
    }
    pool_fixture_free(f);
}

static void age_survives_a_move(void **state)
{
    enum { NR = 900 };
    struct pool_fixture *f = aged_fixture();
    struct pool_mover m = fixture_mover(f);
    uint64_t now = clock_ns();
    struct pool_object out[32];
    unsigned n, found = 0;
    (void)state;

    for (uint64_t i = 0; i < NR; i++) {
        store_at(f, i, now / NR * i);
    }
    for (uint64_t i = 0; i < NR; i++) {
        if (i % 3) {
            assert_true(fixture_drop(f, i));
        }
    }
    while (pool_compact(f->pool, &m, 100, 10) > 0) {
    }
    assert_true(f->moves > 0);
    while (found < NR / 6 &&
           (n = pool_oldest(f->pool, now / NR * (NR / 2), out, 32)) > 0) {
        for (unsigned i = 0; i < n; i++) {
            assert_int_equal(out[i].stored_ns, now / NR * out[i].owner.pfn);
            assert_int_equal(out[i].slot, f->rows[out[i].owner.pfn].slot);
            assert_true(fixture_drop(f, out[i].owner.pfn));
        }
        found += n;
    }
    assert_int_equal(found, NR / 6);
    assert_int_equal(pool_oldest(f->pool, now / NR * (NR / 2), out, 32), 0);
    pool_fixture_free(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(oldest_are_found_in_order_and_once),
        cmocka_unit_test(objects_that_stay_do_not_hide_others),
        cmocka_unit_test(slab_with_new_pages_counts_as_new),
        cmocka_unit_test(pages_older_than_the_ring_are_found),
        cmocka_unit_test(age_survives_a_move),
    };

    return cmocka_run_group_tests_name("pool_age", tests, NULL, NULL);
}
