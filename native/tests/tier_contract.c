/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "unit.h"

#include "tier_contract.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "tier_contract_fixture.h"

enum {
    FULL_MIB = 8,     /* capacity where a tier is to be filled */
    THREADS = 4,      /* that use a tier at the same time */
    ROUNDS = 60,      /* of each thread */
    THREAD_PAGES = 96 /* of each round */
};

#define SLOT_END (1ULL << 40)
#define NO_SUCH_SLOT (SLOT_END - 1)

/* ---- slots ----------------------------------------------------------------- */

static void slots_are_distinct_valid_and_ascend(void **state)
{
    struct contract *c = *state;

    contract_store(c, 1, 0, PAGES);
    contract_expect_distinct(c->slots, PAGES);
    for (unsigned i = 0; i < PAGES; i++) {
        assert_in_range(c->slots[i], 1, SLOT_END - 1);
        assert_true(c->tier.ops->valid(&c->tier, c->slots[i]));
        /* a tier without neighbours need not care for their order */
        if (i % BATCH && !c->tier.put_stores) {
            assert_true(c->slots[i] > c->slots[i - 1]);
        }
    }
}

static void slots_outside_are_refused(void **state)
{
    struct contract *c = *state;

    assert_false(c->tier.ops->valid(&c->tier, 0));
    assert_false(c->tier.ops->valid(&c->tier, NO_SUCH_SLOT));
    assert_false(c->tier.ops->free(&c->tier, 0));
    assert_false(c->tier.ops->free(&c->tier, NO_SUCH_SLOT));
    assert_true(contract_read_one(c, 0, 0, c->read) < 0);
    assert_true(contract_read_one(c, NO_SUCH_SLOT, 0, c->read) < 0);
    contract_store(c, 2, 0, 10);
    contract_verify(c, 0, 10);
}

static void slot_is_freed_once(void **state)
{
    struct contract *c = *state;

    contract_store(c, 3, 0, 300);
    contract_free(c, 0, 300, 1);
    for (unsigned i = 0; i < 300; i++) {
        assert_false(c->tier.ops->free(&c->tier, c->slots[i]));
    }
}

static void extents_cover_what_was_put(void **state)
{
    struct contract *c = *state;
    uint64_t n;

    contract_store(c, 4, 0, PAGES);
    for (unsigned i = 0; i < PAGES; i++) {
        for (uint64_t nr = 1; nr <= 64; nr *= 4) {
            n = c->tier.ops->extent(&c->tier, c->slots[i], nr);
            assert_in_range(n, 1, nr);
        }
    }
}

static void use_is_accounted(void **state)
{
    struct contract *c = *state;

    assert_int_equal(tier_pages(&c->tier), 0);
    contract_store(c, 5, 0, 700);
    assert_int_equal(tier_pages(&c->tier), 700);
    assert_true(c->tier.ops->used(&c->tier) > 0);
    contract_free(c, 0, 700, 2);
    assert_int_equal(tier_pages(&c->tier), 350);
    contract_free(c, 1, 699, 2);
    assert_int_equal(tier_pages(&c->tier), 0);
}

/* ---- content --------------------------------------------------------------- */

static void what_was_written_is_read(void **state)
{
    struct contract *c = *state;

    contract_store(c, 6, 0, PAGES);
    contract_verify(c, 0, PAGES);
    for (unsigned i = 0; i < PAGES; i += 37) {
        contract_verify(c, i, 1);
    }
    assert_true(c->stats->reads > 0);
    assert_true(c->stats->read_bytes >= PAGES * (uint64_t)PAGE_SIZE_4K);
    assert_int_equal(c->stats->write_bytes, PAGES * (uint64_t)PAGE_SIZE_4K);
    assert_int_equal(c->stats->errors, 0);
}

/* Many requests of one page at once, in no order, each ending by itself. */
static void many_transfers_are_in_flight(void **state)
{
    enum { FLIGHT = 64 };
    struct contract *c = *state;
    struct tier_io ios[FLIGHT];
    struct iovec iovs[FLIGHT];
    unsigned ended = 0;

    contract_store(c, 7, 0, PAGES);
    for (unsigned i = 0; i < FLIGHT; i++) {
        unsigned page = i * 997 % PAGES;

        iovs[i] = (struct iovec){page_at(c->read, page), PAGE_SIZE_4K};
        ios[i] = (struct tier_io){.tier = &c->tier,
                                  .slot = c->slots[page],
                                  .region_id = REGION,
                                  .pfn = page,
                                  .iov = &iovs[i],
                                  .nr_iov = 1,
                                  .length = PAGE_SIZE_4K,
                                  .owner = &ios[i]};
        tier_submit(&c->queue, &ios[i]);
    }
    uint64_t deadline = clock_ns() + 20 * NSEC_PER_SEC;
    while (ended < FLIGHT && clock_ns() < deadline) {
        struct tier_io *io = tier_poll(&c->queue);

        if (io) {
            assert_ptr_equal(io->owner, io);
            assert_true(io->done);
            assert_int_equal(io->result, 0);
            assert_memory_equal(page_at(c->read, (unsigned)io->pfn),
                                page_at(c->written, (unsigned)io->pfn), PAGE_SIZE_4K);
            ended++;
        }
    }
    assert_int_equal(ended, FLIGHT);
    assert_null(tier_poll(&c->queue));
}

/* One request whose pages lie all over memory, in pieces of one and of two pages. */
static void pieces_of_memory_make_one_transfer(void **state)
{
    enum { RUN = 48 };
    struct contract *c = *state;
    struct iovec iovs[RUN];
    unsigned most, n = 0;
    uint64_t start;

    contract_store(c, 8, 0, RUN);
    start = c->slots[0];
    for (most = 1; most < RUN && c->slots[most] == start + most; most++) {
    }
    most = (unsigned)c->tier.ops->extent(&c->tier, start, most);
    /* backwards through the buffer */
    for (unsigned i = 0; i < most; n++) {
        unsigned len = i % 3 == 0 && i + 1 < most ? 2 : 1;

        iovs[n] =
            (struct iovec){page_at(c->read, PAGES - i - len), (size_t)len * PAGE_SIZE_4K};
        i += len;
    }
    struct tier_io io = {.tier = &c->tier,
                         .slot = start,
                         .region_id = REGION,
                         .iov = iovs,
                         .nr_iov = (int)n,
                         .length = (uint64_t)most * PAGE_SIZE_4K};
    assert_int_equal(tier_run(&c->queue, &io, 1, 0), 0);
    for (unsigned i = 0, k = 0; k < n; k++) {
        assert_memory_equal(iovs[k].iov_base, page_at(c->written, i), iovs[k].iov_len);
        i += (unsigned)(iovs[k].iov_len / PAGE_SIZE_4K);
    }
    if (c->tier.put_stores) {
        return;
    }
    io.write = true; /* the same pieces, written back in one request */
    assert_int_equal(tier_run(&c->queue, &io, 1, 0), 0);
    contract_verify(c, 0, RUN);
}

static void freed_slots_are_used_again_and_neighbours_stay(void **state)
{
    struct contract *c = *state;

    contract_store(c, 9, 0, 1000);
    for (unsigned round = 0; round < 5; round++) {
        unsigned step = round + 2;

        for (unsigned i = 0; i < 1000; i += step) {
            assert_true(c->tier.ops->free(&c->tier, c->slots[i]));
        }
        for (unsigned i = 0; i < 1000; i += step) {
            contract_store(c, 10 + round, i, 1);
        }
        assert_int_equal(tier_pages(&c->tier), 1000);
        contract_expect_distinct(c->slots, 1000);
        contract_verify(c, 0, 1000);
    }
}

static void tidying_leaves_what_is_taken(void **state)
{
    struct contract *c = *state;
    unsigned rounds = 0;

    if (!c->tier.ops->tidy) {
        print_message("skip: this tier has nothing to tidy\n");
        skip();
    }
    contract_store(c, 20, 0, PAGES);
    contract_free(c, 256, 1024, 1);
    while (c->tier.ops->tidy(&c->tier)) {
        assert_true(rounds++ < 100000);
    }
    assert_int_equal(tier_pages(&c->tier), PAGES - 1024);
    contract_verify(c, 0, 256);
    contract_verify(c, 1280, PAGES - 1280);
    contract_store(c, 21, 256, 1024);
    contract_verify(c, 0, PAGES);
}

/* ---- room ------------------------------------------------------------------ */

static void growing_keeps_what_is_stored(void **state)
{
    struct contract *c = *state;
    char err[512] = "";
    uint64_t small;

    contract_close(c);
    contract_open(c, ROOM / 8);
    small = c->stats->capacity_bytes;
    contract_store(c, 22, 0, 900);
    assert_int_equal(c->tier.ops->reserve(&c->tier, ROOM, err, sizeof(err)), 0);
    assert_true(c->stats->capacity_bytes >= small);
    small = c->stats->capacity_bytes;
    contract_store(c, 23, 900, PAGES - 900);
    assert_int_equal(c->tier.ops->reserve(&c->tier, ROOM / 8, err, sizeof(err)), 0);
    assert_true(c->stats->capacity_bytes >= small || c->tier.put_stores);
    contract_verify(c, 0, PAGES);
}

/* Stores pages until there is no room; returns how many there are now. */
static unsigned fill_up(struct contract *c, uint64_t **slots)
{
    unsigned nr = 0, stored = BATCH;
    unsigned most = 16 * FULL_MIB * 256; /* pages, at any compression */

    *slots = calloc(most, sizeof(**slots));
    assert_non_null(*slots);
    while (stored == BATCH && nr + BATCH <= most) {
        for (unsigned i = 0; i < BATCH; i++) {
            contract_page(page_at(c->written, i), (24ULL << 20) + i);
        }
        stored = contract_put(c, &c->queue, c->written, c->slots, 0, BATCH);
        assert_int_not_equal(stored, UINT32_MAX);
        for (unsigned i = 0; i < BATCH; i++) {
            if (c->slots[i]) {
                (*slots)[nr++] = c->slots[i];
            }
        }
    }
    assert_true(stored < BATCH);
    return nr;
}

static void full_tier_says_so_and_recovers(void **state)
{
    struct contract *c = *state;
    uint64_t *slots;
    unsigned nr;

    contract_close(c);
    c->config.capacity = (uint64_t)FULL_MIB << 20;
    contract_open(c, ROOM);
    assert_in_range(c->stats->capacity_bytes, 1, c->config.capacity);
    nr = fill_up(c, &slots);
    assert_true(c->tier.ops->used(&c->tier) <= c->config.capacity);
    assert_true(nr >= c->config.capacity / PAGE_SIZE_4K * 9 / 10);
    contract_expect_distinct(slots, nr);
    for (unsigned i = 0; i < 200; i++) {
        assert_true(c->tier.ops->free(&c->tier, slots[i]));
    }
    contract_store(c, 25, 0, 100);
    contract_verify(c, 0, 100);
    free(slots);
}

static void policy_bounds_what_is_stored(void **state)
{
    struct contract *c = *state;
    uint64_t *slots;

    __atomic_store_n(&c->tier.max_bytes, 2 << 20, __ATOMIC_RELAXED);
    fill_up(c, &slots);
    assert_in_range(c->tier.ops->used(&c->tier), 1 << 20, 2 << 20);
    assert_true(c->stats->refused > 0);
    __atomic_store_n(&c->tier.max_bytes, UINT64_MAX, __ATOMIC_RELAXED);
    contract_store(c, 26, 0, 500);
    contract_verify(c, 0, 500);
    free(slots);
}

static void closed_volume_is_gone(void **state)
{
    struct contract *c = *state;

    for (unsigned round = 0; round < 3; round++) {
        assert_int_equal(tier_pages(&c->tier), 0);
        contract_store(c, 27 + round, 0, 500);
        contract_verify(c, 0, 500);
        contract_close(c);
        contract_open(c, ROOM);
    }
}

/* ---- wrappers -------------------------------------------------------------- */

static void injected_errors_do_no_harm(void **state)
{
    struct contract *c = *state;
    struct tier_faults *f = &c->config.faults;

    contract_store(c, 30, 0, 400);
    f->error_rate = 1;
    f->error_errno = ENOMEDIUM;
    f->error_reads = true;
    for (unsigned i = 0; i < 20; i++) {
        assert_int_equal(contract_read_one(c, c->slots[i], i, c->read), -ENOMEDIUM);
    }
    assert_int_equal(c->stats->errors, 20);
    f->error_rate = 0;
    contract_verify(c, 0, 400);
}

static void injected_delays_are_kept(void **state)
{
    struct contract *c = *state;
    uint64_t before;

    contract_store(c, 31, 0, 400);
    c->config.faults.delay_read_ns = 30 * NSEC_PER_MSEC;
    before = clock_ns();
    contract_verify(c, 0, 1);
    assert_true(clock_ns() - before >= 30 * NSEC_PER_MSEC);
    c->config.faults.delay_read_ns = 0;
    contract_verify(c, 0, 400);
}

/* From tier_quiesce() on nothing is stored; a write that is under way is waited for. */
static void closed_tier_takes_no_page_and_no_write(void **state)
{
    struct contract *c = *state;
    struct iovec iov = {.iov_base = page_at(c->written, 0), .iov_len = PAGE_SIZE_4K};
    struct tier_put put = {.data = page_at(c->written, 500), .region_id = REGION};
    struct tier_io io;

    contract_store(c, 32, 0, 400);
    io = (struct tier_io){.tier = &c->tier,
                          .write = true,
                          .slot = c->slots[0],
                          .region_id = REGION,
                          .iov = &iov,
                          .nr_iov = 1,
                          .length = PAGE_SIZE_4K};
    if (!c->tier.put_stores) {
        c->config.faults.delay_write_ns = 100 * NSEC_PER_MSEC;
        tier_submit(&c->queue, &io);
        assert_int_equal(tier_quiesce(&c->tier, 20 * NSEC_PER_MSEC), -ETIMEDOUT);
        assert_int_equal(tier_hold(&c->tier), TIER_HELD);
        while (!tier_poll(&c->queue)) {
        }
        assert_int_equal(io.result, 0);
        c->config.faults.delay_write_ns = 0;
    }
    assert_int_equal(tier_quiesce(&c->tier, NSEC_PER_SEC), 0);
    tier_put(&c->tier, tier_queue_scratch(&c->queue, &c->tier), &put, 1);
    assert_int_equal(put.result, -ENOSPC);
    if (!c->tier.put_stores) {
        assert_int_equal(tier_run(&c->queue, &io, 1, 0), 1);
        assert_int_equal(io.result, -EROFS);
    }
    contract_verify(c, 0, 400);
    c->tier.hold = TIER_HELD;
    contract_store(c, 33, 400, 100);
    contract_verify(c, 0, 500);
}

/* ---- threads --------------------------------------------------------------- */

struct user {
    struct contract *c;
    unsigned id;
    const char *wrong; /* what went wrong, if anything */
};

/* Stores, reads and frees pages of its own, over and over. */
static const char *use_tier(struct contract *c, struct tier_queue *q, unsigned id)
{
    char *out = page_at(c->written, id * THREAD_PAGES);
    char *in = page_at(c->read, id * THREAD_PAGES);
    uint64_t slots[THREAD_PAGES];

    for (unsigned round = 0; round < ROUNDS; round++) {
        for (unsigned i = 0; i < THREAD_PAGES; i++) {
            contract_page(page_at(out, i), ((uint64_t)(id * ROUNDS + round) << 20) + i);
        }
        if (contract_put(c, q, out, slots, 0, THREAD_PAGES) != THREAD_PAGES) {
            return "put";
        }
        if (contract_transfer(c, q, true, out, slots, 0, THREAD_PAGES) ||
            contract_transfer(c, q, false, in, slots, 0, THREAD_PAGES)) {
            return "transfer";
        }
        if (memcmp(in, out, (size_t)THREAD_PAGES * PAGE_SIZE_4K) != 0) {
            return "content";
        }
        for (unsigned i = 0; i < THREAD_PAGES; i++) {
            if (!c->tier.ops->free(&c->tier, slots[i])) {
                return "free";
            }
        }
    }
    return NULL;
}

static void *run_user(void *arg)
{
    struct user *u = arg;
    struct tier *tiers[1] = {&u->c->tier};
    struct tier_queue q;

    if (tier_queue_init(&q, tiers, 1)) {
        u->wrong = "queue";
        return NULL;
    }
    u->wrong = use_tier(u->c, &q, u->id);
    tier_queue_deinit(&q);
    return NULL;
}

static void threads_do_not_disturb_each_other(void **state)
{
    struct contract *c = *state;
    struct user users[THREADS];
    pthread_t threads[THREADS];

    for (unsigned i = 0; i < THREADS; i++) {
        users[i] = (struct user){.c = c, .id = i};
        assert_int_equal(pthread_create(&threads[i], NULL, run_user, &users[i]), 0);
    }
    for (unsigned i = 0; i < 200 && c->tier.ops->tidy; i++) {
        c->tier.ops->tidy(&c->tier); /* beside them, as in the manager */
        usleep(1000);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        if (users[i].wrong) {
            fail_msg("thread %u: wrong %s", i, users[i].wrong);
        }
    }
    assert_int_equal(tier_pages(&c->tier), 0);
}

int tier_contract(const char *name, const struct tier_config *config)
{
#define CONTRACT(test)                                                              \
    {                                                                               \
#test, test, contract_set_up, contract_tear_down, (void *)(uintptr_t)config \
    }
    const struct CMUnitTest tests[] = {
        CONTRACT(slots_are_distinct_valid_and_ascend),
        CONTRACT(slots_outside_are_refused),
        CONTRACT(slot_is_freed_once),
        CONTRACT(extents_cover_what_was_put),
        CONTRACT(use_is_accounted),
        CONTRACT(what_was_written_is_read),
        CONTRACT(many_transfers_are_in_flight),
        CONTRACT(pieces_of_memory_make_one_transfer),
        CONTRACT(freed_slots_are_used_again_and_neighbours_stay),
        CONTRACT(tidying_leaves_what_is_taken),
        CONTRACT(growing_keeps_what_is_stored),
        CONTRACT(full_tier_says_so_and_recovers),
        CONTRACT(policy_bounds_what_is_stored),
        CONTRACT(closed_volume_is_gone),
        CONTRACT(injected_errors_do_no_harm),
        CONTRACT(injected_delays_are_kept),
        CONTRACT(closed_tier_takes_no_page_and_no_write),
        CONTRACT(threads_do_not_disturb_each_other),
    };
#undef CONTRACT

    return _cmocka_run_group_tests(name, tests, sizeof(tests) / sizeof(tests[0]), NULL,
                                   NULL);
}
