/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Compaction of the pool, and all that the pool does from several threads at once. */
#include "unit.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "clock.h"
#include "pool_fixture.h"
#include "pool_pages.h"
#include "pool_priv.h"

static uint64_t waste_percent(struct pool_fixture *f)
{
    struct pool_usage u;

    pool_usage(f->pool, &u);
    return u.arena_bytes ? (u.arena_bytes - u.object_bytes) * 100 / u.arena_bytes : 0;
}

static void assert_memory_is_as_counted(struct pool_fixture *f)
{
    struct pool_usage u;
    struct stat st;

    pool_usage(f->pool, &u);
    assert_int_equal(fstat(pool_fd(f->pool), &st), 0);
    assert_int_equal((uint64_t)st.st_blocks * 512, u.arena_bytes);
}

static void sparse_slabs_are_emptied(void **state)
{
    struct pool_fixture *f = pool_fixture_new(64 * MIB, TIER_CODEC_LZ4);
    struct pool_mover m = fixture_mover(f);
    struct pool_usage before, after;
    unsigned total = 0, n;
    (void)state;

    fixture_fill(f);
    fixture_thin_out(f, 60);
    pool_usage(f->pool, &before);
    assert_true(waste_percent(f) > 40);
    while ((n = pool_compact(f->pool, &m, 64, 15)) > 0) {
        assert_in_range(n, 1, 64);
        total += n;
    }
    pool_usage(f->pool, &after);
    assert_int_equal(total, f->moves);
    assert_int_equal(before.objects, after.objects);
    assert_int_equal(before.data_bytes, after.data_bytes);
    /* no class could do with a slab less */
    for (unsigned i = 0; i < f->pool->nr_classes; i++) {
        const struct pool_class *c = &f->pool->classes[i];

        assert_true(c->slabs * c->capacity - c->used < c->capacity);
    }
    assert_true(after.arena_bytes * 10 < before.arena_bytes * 7);
    /* an object moves once, or seldom more */
    assert_true(total < before.objects);
    assert_memory_is_as_counted(f);
    fixture_assert_holds(f);
    pool_fixture_free(f);
}

static void dense_slabs_are_left_alone(void **state)
{
    struct pool_fixture *f = pool_fixture_new(64 * MIB, TIER_CODEC_LZ4);
    struct pool_mover m = fixture_mover(f);
    (void)state;

    fixture_fill(f);
    assert_int_equal(pool_compact(f->pool, &m, ANY >> 32, 15), 0);
    assert_int_equal(f->claims, 0);
    fixture_thin_out(f, 30);
    assert_int_equal(pool_compact(f->pool, &m, ANY >> 32, 60), 0);
    assert_int_equal(f->claims, 0);
    assert_true(pool_compact(f->pool, &m, ANY >> 32, 10) > 0);
    pool_fixture_free(f);
}

static void refused_objects_stay_where_they_are(void **state)
{
    struct pool_fixture *f = pool_fixture_new(64 * MIB, TIER_CODEC_LZ4);
    struct pool_mover m = fixture_mover(f);
    struct pool_usage before, after;
    (void)state;

    fixture_fill(f);
    fixture_thin_out(f, 60);
    f->refuse_every = 1;
    (void)pool_compact(f->pool, &m, 1, 100); /* spare slabs */
    (void)pool_compact(f->pool, &m, 1, 100);
    pool_usage(f->pool, &before);
    assert_int_equal(pool_compact(f->pool, &m, 1000, 0), 0);
    assert_true(f->claims > 0);
    pool_usage(f->pool, &after);
    assert_memory_equal(&before, &after, sizeof(before));
    fixture_assert_holds(f);

    f->refuse_every = 3;
    while (pool_compact(f->pool, &m, 1000, 15) > 0 && f->claims < 100000) {
    }
    assert_in_range(f->claims, 1, 99999);
    assert_true(f->moves > 0);
    fixture_assert_holds(f);
    pool_fixture_free(f);
}

/* The callback may free what has just moved: the guest gave the page back. */
static void page_may_vanish_while_it_moves(void **state)
{
    struct pool_fixture *f = pool_fixture_new(64 * MIB, TIER_CODEC_LZ4);
    struct pool_mover m = fixture_mover(f);
    struct pool_usage u;
    uint64_t before;
    (void)state;

    fixture_fill(f);
    fixture_thin_out(f, 60);
    pool_usage(f->pool, &u);
    before = u.objects;
    f->discard = true;
    assert_int_equal(pool_compact(f->pool, &m, 200, 0), 200);
    pool_usage(f->pool, &u);
    assert_int_equal(u.objects, before - 200);
    fixture_assert_holds(f);
    pool_fixture_free(f);
}

struct worker {
    struct pool_fixture *f;
    pthread_t thread;
    uint64_t seed;
};

/* Puts, reads and frees random pages: for a while more of this, then of that. */
static void *guest_thread(void *arg)
{
    struct worker *w = arg;
    struct pool_fixture *f = w->f;
    struct pool_scratch *s;
    uint64_t rng = w->seed;
    unsigned steps = 0;

    if (pool_scratch_new(f->pool, &s)) {
        abort();
    }
    while (!f->stop) {
        uint64_t r = pool_random(&rng), pfn = (r >> 8) % FIXTURE_PAGES;
        struct pool_row *row = &f->rows[pfn];
        bool fewer = steps++ / 4096 % 2;

        pthread_mutex_lock(&row->lock);
        if (row->slot) {
            f->wrong += !fixture_holds(f, s, pfn);
            f->gets++;
            if (fewer || r % 4 == 0) {
                f->wrong += !fixture_drop(f, pfn);
                f->frees++;
            }
        } else if (!fewer || r % 8 == 0) {
            int ret = fixture_store(f, s, pfn, r >> 20, ANY);

            f->puts += ret == 0;
            f->full += ret == -ENOSPC;
        }
        pthread_mutex_unlock(&row->lock);
    }
    pool_scratch_free(s);
    return NULL;
}

/* Demotes: frees the oldest pages, in bursts that leave slabs half empty. */
static void *demote_thread(void *arg)
{
    struct worker *w = arg;
    struct pool_fixture *f = w->f;
    struct pool_object out[64];

    while (!f->stop) {
        unsigned n = pool_oldest(f->pool, clock_ns() - 100 * NSEC_PER_MSEC, out, 64);

        for (unsigned i = 0; i < n; i++) {
            struct pool_row *row = &f->rows[out[i].owner.pfn];

            pthread_mutex_lock(&row->lock);
            if (row->slot == out[i].slot) {
                f->wrong += !fixture_drop(f, out[i].owner.pfn);
                f->frees++;
            }
            pthread_mutex_unlock(&row->lock);
        }
        sched_yield();
    }
    return NULL;
}

static void *compact_thread(void *arg)
{
    struct worker *w = arg;
    struct pool_fixture *f = w->f;
    struct pool_mover m = fixture_mover(f);

    while (!f->stop) {
        (void)pool_compact(f->pool, &m, 64, 5);
        sched_yield();
    }
    return NULL;
}

/* Enough of everything has happened to have shown a race, were there one. */
static bool enough(const struct pool_fixture *f)
{
    return f->puts > 20000 && f->gets > 20000 && f->frees > 20000 && f->moves > 1000;
}

static void threads_on(enum tier_codec codec)
{
    void *(*const mains[])(void *) = {guest_thread,  guest_thread,   guest_thread,
                                      demote_thread, compact_thread, compact_thread};
    enum { THREADS = sizeof(mains) / sizeof(mains[0]) };
    struct worker workers[THREADS];
    struct pool_fixture *f = pool_fixture_new(6 * MIB, codec); /* at times too small */
    uint64_t deadline = clock_ns() + 60 * NSEC_PER_SEC;

    for (uint64_t i = 0; i < FIXTURE_PAGES; i++) {
        (void)fixture_store(f, f->scratch, i, i, ANY);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        workers[i].f = f;
        workers[i].seed = 0x9e3779b97f4a7c15ULL * (i + 1);
        assert_int_equal(pthread_create(&workers[i].thread, NULL, mains[i], &workers[i]),
                         0);
    }
    while (!enough(f) && !f->wrong && clock_ns() < deadline) {
        usleep(10000);
    }
    f->stop = true;
    for (unsigned i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_join(workers[i].thread, NULL), 0);
    }
    print_message("%llu puts, %llu gets, %llu frees, %llu times full, %u moves\n",
                  (unsigned long long)f->puts, (unsigned long long)f->gets,
                  (unsigned long long)f->frees, (unsigned long long)f->full, f->moves);
    assert_int_equal(f->wrong, 0);
    assert_true(enough(f));
    fixture_assert_holds(f);
    fixture_assert_ends_empty(f);
    assert_memory_is_as_counted(f);
    pool_fixture_free(f);
}

static void threads_lose_no_page(void **state)
{
    (void)state;
    threads_on(TIER_CODEC_LZ4);
    threads_on(TIER_CODEC_ZSTD);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sparse_slabs_are_emptied),
        cmocka_unit_test(dense_slabs_are_left_alone),
        cmocka_unit_test(refused_objects_stay_where_they_are),
        cmocka_unit_test(page_may_vanish_while_it_moves),
        cmocka_unit_test(threads_lose_no_page),
    };

    return cmocka_run_group_tests_name("pool_move", tests, NULL, NULL);
}
