/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A pool whose memory counts against the limit of its VM: both together stay below it,
 * and whatever the configuration asks for there is room left for the guest.
 */
#include "unit.h"

#include "hier.h"
#include "uffd_fixture.h"

#include <stdio.h>
#include <string.h>

#define LIMIT (16 * HIER_MIB)
#define SLACK (8 * HIER_MIB)

enum { POOL = 1, FILES = 2, STALL_MS = 1500 };

static uint64_t worker_state(const struct peer_stats *s)
{
    return s->vm.state;
}

/* Runs all of it with the file behind the pool; the statistics at the end. */
static struct peer_stats run_inside(const char *pool, enum load_content content)
{
    const struct hier_options options = {
        .tiers = {pool, "file=file,path={store}"},
        .arguments = {"--limit", "16M"},
        .ram = 48 * HIER_MIB,
        .seed = 21,
        .nr_threads = 3,
        .content = content,
    };
    struct hier h;

    hier_start(&h, &options);
    hier_do(&h, HIER_FILL, 0, 0);
    hier_do(&h, HIER_RUN, LOAD_RANDOM, 2500);
    hier_do(&h, HIER_RUN, LOAD_SEQUENTIAL, 1000);
    hier_do(&h, HIER_VERIFY, 0, 0);
    struct peer_stats s = hier_stats(&h);
    hier_expect_sound(&h);
    print_message("%s: together at most %llu KiB\n", pool,
                  (unsigned long long)hier_total_max(&h) / 1024);
    assert_true(hier_total_max(&h) <= LIMIT + SLACK);
    assert_true(h.longest_stall_ms < STALL_MS);
    assert_true(s.vm.resident_bytes > LIMIT / 4); /* the guest has its share */
    hier_stop(&h);
    return s;
}

static void pool_of_a_hundredth_of_the_limit_leaves_it_to_the_guest(void **state)
{
    (void)state;
    struct peer_stats s =
        run_inside("pool=pool,inside-limit=on,capacity=164K", LOAD_VARIED);

    assert_true(s.tiers[POOL].used_bytes <= 164 * 1024);
    assert_true(s.vm.resident_bytes > LIMIT * 3 / 4);
}

static void pool_of_a_third_of_the_limit_is_used(void **state)
{
    (void)state;
    struct peer_stats s =
        run_inside("pool=pool,inside-limit=on,capacity=5033K", LOAD_VARIED);

    assert_true(s.tiers[POOL].used_bytes > 5033 * 1024 / 2);
    assert_true(s.tiers[POOL].used_bytes <= 5033 * 1024);
}

static void pool_of_five_times_the_limit_is_kept_to_half_of_it(void **state)
{
    (void)state;
    struct peer_stats s =
        run_inside("pool=pool,inside-limit=on,capacity=80M", LOAD_VARIED);

    assert_true(s.tiers[POOL].used_bytes > LIMIT / 4);
    assert_true(s.tiers[POOL].used_bytes <= LIMIT / 2);
}

static void pool_without_a_capacity_takes_its_share(void **state)
{
    (void)state;
    struct peer_stats s = run_inside("pool=pool,inside-limit=on", LOAD_COMPRESSIBLE);

    assert_true(s.tiers[POOL].used_bytes > LIMIT / 8);
    assert_true(s.tiers[POOL].used_bytes <= LIMIT / 2);
}

static void pool_of_noise_takes_nothing(void **state)
{
    (void)state;
    struct peer_stats s = run_inside("pool=pool,inside-limit=on", LOAD_INCOMPRESSIBLE);

    assert_int_equal(s.tiers[POOL].stored_pages, 0);
    assert_true(s.vm.resident_bytes > LIMIT * 3 / 4);
}

/* Lowering the limit shrinks pool and guest alike. */
static void lower_limit_holds_for_both_together(void **state)
{
    static const struct hier_options options = {
        .tiers = {"pool=pool,inside-limit=on", "file=file,path={store}"},
        .arguments = {"--limit", "32M"},
        .ram = 48 * HIER_MIB,
        .seed = 22,
        .content = LOAD_COMPRESSIBLE,
    };
    struct hier h;
    (void)state;

    hier_start(&h, &options);
    hier_do(&h, HIER_FILL, 0, 0);
    hier_do(&h, HIER_RUN, LOAD_RANDOM, 1000);
    hier_set_limit(&h, 12 * HIER_MIB);
    hier_do(&h, HIER_RUN, LOAD_RANDOM, 3000);
    struct peer_stats s = hier_stats(&h);
    assert_true(s.vm.resident_bytes + s.vm.arena_bytes <= 12 * HIER_MIB + HIER_OVERSHOOT);
    assert_true(s.tiers[POOL].used_bytes <= 6 * HIER_MIB);
    assert_true(h.longest_stall_ms < STALL_MS);
    hier_do(&h, HIER_VERIFY, 0, 0);
    hier_expect_sound(&h);
    hier_stop(&h);
}

/* Nothing takes its pages: it stands at its limit, says so, and loses nothing. */
static void noise_in_a_pool_alone_waits_for_a_higher_limit(void **state)
{
    static const struct hier_options options = {
        .tiers = {"pool=pool,inside-limit=on"},
        .arguments = {"--limit", "16M"},
        .ram = 32 * HIER_MIB,
        .seed = 23,
        .content = LOAD_INCOMPRESSIBLE,
    };
    struct hier h;
    (void)state;

    hier_start(&h, &options);
    hier_begin(&h, HIER_FILL, 0, 0);
    hier_wait_stat(&h, "state", worker_state, UFFDMM_WORKER_STORE_FULL,
                   UFFDMM_WORKER_STORE_FULL, 10000);
    hier_expect_stuck(&h, 500);
    assert_true(hier_stats(&h).vm.resident_max_bytes <= LIMIT + HIER_OVERSHOOT);
    hier_set_limit(&h, 24 * HIER_MIB);
    sleep_ms(200);
    hier_expect_stuck(&h, 500);
    hier_set_limit(&h, 0);
    hier_await(&h, HIER_END_MS);
    hier_do(&h, HIER_VERIFY, 0, 0);
    hier_expect_sound(&h);
    hier_stop(&h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pool_of_a_hundredth_of_the_limit_leaves_it_to_the_guest),
        cmocka_unit_test(pool_of_a_third_of_the_limit_is_used),
        cmocka_unit_test(pool_of_five_times_the_limit_is_kept_to_half_of_it),
        cmocka_unit_test(pool_without_a_capacity_takes_its_share),
        cmocka_unit_test(pool_of_noise_takes_nothing),
        cmocka_unit_test(lower_limit_holds_for_both_together),
        cmocka_unit_test(noise_in_a_pool_alone_waits_for_a_higher_limit),
    };

    return cmocka_run_group_tests_name("inside limit", tests, end_process_when_hung,
                                       NULL);
}
