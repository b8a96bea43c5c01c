/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "unit.h"

#include "pool_fixture.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "config.h"
#include "pool_pages.h"

struct pool_fixture *pool_fixture_new(uint64_t bytes, enum tier_codec codec)
{
    struct pool_fixture *f = calloc(1, sizeof(*f));

    assert_non_null(f);
    assert_int_equal(pool_create(&f->pool, bytes, codec, 0), 0);
    assert_int_equal(pool_scratch_new(f->pool, &f->scratch), 0);
    for (unsigned i = 0; i < FIXTURE_PAGES; i++) {
        pthread_mutex_init(&f->rows[i].lock, NULL);
    }
    return f;
}

void pool_fixture_free(struct pool_fixture *f)
{
    for (unsigned i = 0; i < FIXTURE_PAGES; i++) {
        pthread_mutex_destroy(&f->rows[i].lock);
    }
    pool_scratch_free(f->scratch);
    pool_destroy(f->pool);
    free(f);
}

struct pool_owner fixture_owner(uint64_t pfn)
{
    return (struct pool_owner){.region_id = 7, .pfn = pfn};
}

int fixture_store(struct pool_fixture *f, struct pool_scratch *s, uint64_t pfn,
                  uint64_t seed, uint64_t max_bytes)
{
    uint8_t page[PAGE_SIZE_4K];
    int ret;

    pool_page(page, seed);
    f->rows[pfn].seed = seed;
    ret = pool_put(f->pool, s, page, fixture_owner(pfn), max_bytes, &f->rows[pfn].slot);
    if (ret) {
        f->rows[pfn].slot = 0;
    }
    return ret;
}

bool fixture_holds(struct pool_fixture *f, struct pool_scratch *s, uint64_t pfn)
{
    uint8_t page[PAGE_SIZE_4K], back[PAGE_SIZE_4K];

    pool_page(page, f->rows[pfn].seed);
    return pool_get(f->pool, s, f->rows[pfn].slot, fixture_owner(pfn), back) == 0 &&
           memcmp(page, back, sizeof(page)) == 0;
}

bool fixture_drop(struct pool_fixture *f, uint64_t pfn)
{
    uint64_t slot = f->rows[pfn].slot;

    f->rows[pfn].slot = 0;
    return pool_free(f->pool, slot);
}

void fixture_fill(struct pool_fixture *f)
{
    for (uint64_t i = 0; i < FIXTURE_PAGES; i++) {
        int ret = fixture_store(f, f->scratch, i, i, ANY);

        assert_int_equal(ret, i % PAGE_KINDS == PAGE_NOISE ? -E2BIG : 0);
    }
}

void fixture_thin_out(struct pool_fixture *f, unsigned percent)
{
    uint64_t rng = 2463534242;

    for (uint64_t i = 0; i < FIXTURE_PAGES; i++) {
        if (f->rows[i].slot && pool_random(&rng) % 100 < percent) {
            assert_true(fixture_drop(f, i));
        }
    }
}

void fixture_assert_holds(struct pool_fixture *f)
{
    struct pool_usage u;
    uint64_t nr = 0;

    for (uint64_t i = 0; i < FIXTURE_PAGES; i++) {
        if (f->rows[i].slot) {
            assert_true(fixture_holds(f, f->scratch, i));
            nr++;
        }
    }
    pool_usage(f->pool, &u);
    assert_int_equal(u.objects, nr);
}

static bool claim(void *opaque, struct pool_owner owner, uint64_t from)
{
    struct pool_fixture *f = opaque;
    unsigned n = atomic_fetch_add(&f->claims, 1);
    struct pool_row *row;

    if (owner.region_id != 7 || owner.pfn >= FIXTURE_PAGES ||
        (f->refuse_every && n % f->refuse_every == 0)) {
        return false;
    }
    row = &f->rows[owner.pfn];
    if (pthread_mutex_trylock(&row->lock)) {
        return false;
    }
    if (row->slot != from) {
        pthread_mutex_unlock(&row->lock);
        return false;
    }
    return true;
}

static void moved(void *opaque, struct pool_owner owner, uint64_t from, uint64_t to)
{
    struct pool_fixture *f = opaque;
    struct pool_row *row = &f->rows[owner.pfn];

    if (to != from) {
        atomic_fetch_add(&f->moves, 1);
        row->slot = to;
        if (f->discard && !fixture_drop(f, owner.pfn)) {
            abort();
        }
    }
    pthread_mutex_unlock(&row->lock);
}

struct pool_mover fixture_mover(struct pool_fixture *f)
{
    return (struct pool_mover){.claim = claim, .moved = moved, .opaque = f};
}

void fixture_assert_ends_empty(struct pool_fixture *f)
{
    struct pool_mover m = fixture_mover(f);
    struct pool_usage u;

    for (uint64_t i = 0; i < FIXTURE_PAGES; i++) {
        if (f->rows[i].slot) {
            assert_true(fixture_drop(f, i));
        }
    }
    (void)pool_compact(f->pool, &m, 1, 0);
    (void)pool_compact(f->pool, &m, 1, 0); /* idle for a whole round */
    pool_usage(f->pool, &u);
    assert_int_equal(u.objects, 0);
    assert_int_equal(u.object_bytes, 0);
    assert_int_equal(u.data_bytes, 0);
    assert_int_equal(u.arena_bytes, 0);
}
