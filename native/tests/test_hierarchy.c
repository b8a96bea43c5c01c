/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Several tiers under the real manager: pages go down as they age or as room gets
 * scarce, come back when they are touched, and are verified at every touch.
 */
#include "unit.h"

#include "hier.h"
#include "uffd_fixture.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define POOL_AND_FILE(pool)                        \
    {                                              \
        "pool=pool" pool, "file=file,path={store}" \
    }

enum { POOL = 1, FILES = 2 };

static uint64_t pool_stored(const struct peer_stats *s)
{
    return s->tiers[POOL].stored_pages;
}

static uint64_t pool_used(const struct peer_stats *s)
{
    return s->tiers[POOL].used_bytes;
}

static uint64_t worker_state(const struct peer_stats *s)
{
    return s->vm.state;
}

/* ---- down and up ----------------------------------------------------------- */

static void small_pool_hands_pages_down_under_writers(void **state)
{
    static const struct hier_options options = {
        .tiers = POOL_AND_FILE(",capacity=4M"),
        .arguments = {"--limit", "12M"},
        .ram = 48 * HIER_MIB,
        .seed = 1,
        .nr_shards = 2,
        .nr_threads = 3,
        .content = LOAD_VARIED,
    };
    struct hier h;
    (void)state;

    hier_start(&h, &options);
    hier_do(&h, HIER_FILL, 0, 0);
    hier_do(&h, HIER_RUN, LOAD_RANDOM, 6000);
    hier_do(&h, HIER_VERIFY, 0, 0);
    hier_expect_sound(&h);
    struct peer_stats s = hier_stats(&h);
    assert_true(s.vm.demoted > 500);
    assert_true(s.tiers[POOL].compactions > 0);
    assert_true(s.vm.passed_on > 500);
    assert_true(s.tiers[POOL].refused > 0);
    assert_true(s.tiers[POOL].reads > 0);
    assert_true(s.tiers[FILES].reads > 0);
    assert_true(s.tiers[POOL].used_bytes <= 4 * HIER_MIB);
    assert_true(hier_resident_max(&h) <= 12 * HIER_MIB + HIER_OVERSHOOT);
    hier_stop(&h);
}

static const struct hier_options aging = {
    .tiers = POOL_AND_FILE(""),
    .arguments = {"--limit", "8M", "--demote-after", "1s"},
    .ram = 32 * HIER_MIB,
    .seed = 2,
    .content = LOAD_COMPRESSIBLE,
};

static void unused_pages_leave_the_pool_and_come_back_when_touched(void **state)
{
    struct hier h;
    (void)state;

    hier_start(&h, &aging);
    hier_do(&h, HIER_FILL, 0, 0);
    hier_wait_stat(&h, "memory of the pool", pool_used, 6 * HIER_MIB, UINT64_MAX, 1000);
    hier_wait_stat(&h, "pages in the pool", pool_stored, 0, 0, 10000);
    hier_wait_stat(&h, "memory of the pool", pool_used, 0, 2 * HIER_MIB, 10000);
    struct peer_stats aged = hier_stats(&h);
    assert_true(aged.vm.demoted > 4000);
    assert_true(aged.tiers[FILES].stored_pages > 4000);
    hier_do(&h, HIER_VERIFY, 0, 0);
    struct peer_stats back = hier_stats(&h);
    assert_true(back.tiers[FILES].reads > aged.tiers[FILES].reads);
    assert_true(back.vm.faults_store > aged.vm.faults_store);
    hier_expect_sound(&h);
    hier_stop(&h);
}

/* A page goes down when it has lain there for that time, and not at the first look. */
static void freshly_evicted_pages_are_not_handed_down(void **state)
{
    static const struct hier_options options = {
        .tiers = POOL_AND_FILE(""),
        .arguments = {"--limit", "8M", "--demote-after", "24s"},
        .ram = 32 * HIER_MIB,
        .seed = 3,
        .content = LOAD_COMPRESSIBLE,
    };
    struct hier h;
    (void)state;

    hier_start(&h, &options);
    hier_do(&h, HIER_FILL, 0, 0);
    /* two steps of age, of eight */
    sleep_ms(6500);
    assert_int_equal(hier_stats(&h).vm.demoted, 0);
    hier_do(&h, HIER_VERIFY, 0, 0);
    hier_expect_sound(&h);
    hier_stop(&h);
}

/* ---- write-through ----------------------------------------------------------- */

/* Reads all of memory until all has been stored once; a further pass writes nothing. */
static void expect_clean_eviction(const struct hier_options *o)
{
    struct hier h;

    hier_start(&h, o);
    hier_do(&h, HIER_FILL, 0, 0);
    hier_do(&h, HIER_VERIFY, 0, 0);
    hier_do(&h, HIER_VERIFY, 0, 0);
    struct peer_stats before = hier_stats(&h);
    hier_do(&h, HIER_VERIFY, 0, 0);
    /* the gauges of all tiers are brought up to date now and then */
    sleep_ms(200);
    struct peer_stats after = hier_stats(&h);
    hier_expect_sound(&h);
    assert_true(before.tiers[1].write_bytes > 0);
    assert_int_equal(after.tiers[1].write_bytes, before.tiers[1].write_bytes);
    assert_int_equal(after.tiers[2].write_bytes, before.tiers[2].write_bytes);
    assert_int_equal(after.vm.store_write_bytes,
                     after.tiers[1].write_bytes + after.tiers[2].write_bytes);
    assert_true(after.vm.evicted_clean - before.vm.evicted_clean > 4000);
    hier_stop(&h);
}

static void unchanged_pages_of_a_pool_are_not_compressed_again(void **state)
{
    (void)state;
    expect_clean_eviction(&(struct hier_options){
        .tiers = {"pool=pool"},
        .arguments = {"--limit", "8M"},
        .ram = 32 * HIER_MIB,
        .seed = 4,
        .content = LOAD_COMPRESSIBLE,
    });
}

static void unchanged_pages_of_a_file_are_not_written_again(void **state)
{
    (void)state;
    expect_clean_eviction(&(struct hier_options){
        .tiers = {"file=file,path={store}"},
        .arguments = {"--limit", "8M"},
        .ram = 32 * HIER_MIB,
        .seed = 5,
        .content = LOAD_INCOMPRESSIBLE,
    });
}

/* What was handed down and touched again has its copy in the second tier. */
static void unchanged_pages_of_two_tiers_are_not_written_again(void **state)
{
    (void)state;
    expect_clean_eviction(&(struct hier_options){
        .tiers = POOL_AND_FILE(""),
        .arguments = {"--limit", "8M"},
        .ram = 32 * HIER_MIB,
        .seed = 6,
        .content = LOAD_VARIED,
    });
}

/* ---- policy at run time ------------------------------------------------------- */

static void pool_shrinks_to_what_policy_says(void **state)
{
    static const struct hier_options options = {
        .tiers = POOL_AND_FILE(""),
        .arguments = {"--limit", "8M"},
        .ram = 32 * HIER_MIB,
        .seed = 7,
        .content = LOAD_COMPRESSIBLE,
    };
    struct hier h;
    (void)state;

    hier_start(&h, &options);
    hier_do(&h, HIER_FILL, 0, 0);
    hier_do(&h, HIER_VERIFY, 0, 0); /* some are copies now */
    assert_true(hier_stats(&h).tiers[POOL].used_bytes > 5 * HIER_MIB);
    hier_set_tier_bytes(&h, POOL, 3 * HIER_MIB);
    hier_wait_stat(&h, "memory of the pool", pool_used, 0, 3 * HIER_MIB, 10000);
    assert_true(hier_stats(&h).vm.demoted > 0);
    hier_begin(&h, HIER_RUN, LOAD_RANDOM, 2000);
    while (!hier_done(&h)) {
        assert_true(hier_stats(&h).tiers[POOL].used_bytes <= 3 * HIER_MIB);
        sleep_ms(10);
    }
    hier_set_tier_bytes(&h, POOL, 0);
    hier_do(&h, HIER_RUN, LOAD_RANDOM, 2000);
    hier_wait_stat(&h, "memory of the pool", pool_used, 4 * HIER_MIB, UINT64_MAX, 10000);
    hier_do(&h, HIER_VERIFY, 0, 0);
    hier_expect_sound(&h);
    hier_stop(&h);
}

static void demotion_begins_and_ends_at_run_time(void **state)
{
    static const struct hier_options options = {
        .tiers = POOL_AND_FILE(""),
        .arguments = {"--limit", "8M"},
        .ram = 32 * HIER_MIB,
        .seed = 8,
        .content = LOAD_COMPRESSIBLE,
    };
    struct hier h;
    (void)state;

    hier_start(&h, &options);
    hier_do(&h, HIER_FILL, 0, 0);
    sleep_ms(1000);
    struct peer_stats s = hier_stats(&h);
    assert_int_equal(s.vm.demoted, 0);
    assert_int_equal(s.vm.demote_after_ms, 0);
    hier_set_demote_after(&h, 500);
    assert_int_equal(hier_stats(&h).vm.demote_after_ms, 500);
    hier_wait_stat(&h, "pages in the pool", pool_stored, 0, 0, 10000);
    hier_set_demote_after(&h, 0);
    hier_do(&h, HIER_RUN, LOAD_RANDOM, 1000);
    uint64_t demoted = hier_stats(&h).vm.demoted;
    sleep_ms(1500);
    s = hier_stats(&h);
    assert_int_equal(s.vm.demoted, demoted);
    assert_true(s.tiers[POOL].stored_pages > 0);
    hier_do(&h, HIER_VERIFY, 0, 0);
    hier_expect_sound(&h);
    hier_stop(&h);
}

static void policy_for_tiers_that_are_not_there_is_refused(void **state)
{
    static const uint32_t masks[] = {0, 1, 1 << 3, 1 << 7, 1u << 31, 2 | 1 << 5};
    struct hier h;
    (void)state;

    hier_start(&h, &aging);
    for (size_t i = 0; i < sizeof(masks) / sizeof(masks[0]); i++) {
        struct uffdmm_policy p = {.fields = UFFDMM_POLICY_TIERS, .tier_mask = masks[i]};
        char err[UFFDMM_TEXT_MAX] = "";
        p.tier_bytes[1] = 4096;
        assert_int_equal(control_set_policy(h.manager.socket, "vm", &p, err), -EINVAL);
        assert_non_null(strstr(err, "has tiers 1 to 2"));
    }
    /* nothing of it is in force */
    struct uffdmm_policy p = {.fields = UFFDMM_POLICY_READAHEAD, .readahead_pages = 8};
    char err[UFFDMM_TEXT_MAX] = "";
    assert_int_equal(control_set_policy(h.manager.socket, "vm", &p, err), 0);
    assert_int_equal(p.tier_mask, 1 << POOL | 1 << FILES);
    assert_int_equal(p.tier_bytes[POOL], 0);
    hier_stop(&h);
}

/* ---- all full ------------------------------------------------------------------ */

/* Fills until no tier takes more: the guest stands still at its limit, nothing is lost. */
static void fill_until_full(struct hier *h, const struct hier_options *o)
{
    hier_start(h, o);
    hier_set_tier_bytes(h, FILES, 6 * HIER_MIB);
    hier_begin(h, HIER_FILL, 0, 0);
    hier_wait_stat(h, "state", worker_state, UFFDMM_WORKER_STORE_FULL,
                   UFFDMM_WORKER_STORE_FULL, 10000);
    hier_expect_stuck(h, 500);
    struct peer_stats s = hier_stats(h);
    assert_int_equal(s.vm.state, UFFDMM_WORKER_STORE_FULL);
    assert_int_equal(s.tiers[FILES].state, UFFDMM_TIER_FULL);
    assert_true(s.tiers[FILES].used_bytes <= 6 * HIER_MIB);
    assert_true(s.vm.resident_max_bytes <= 8 * HIER_MIB + HIER_OVERSHOOT);
    assert_true(manager_logged(&h->manager, "no tier takes more pages", 1000));
}

static const struct hier_options noise = {
    .tiers = POOL_AND_FILE(""),
    .arguments = {"--limit", "8M"},
    .ram = 32 * HIER_MIB,
    .seed = 9,
    .content = LOAD_INCOMPRESSIBLE,
};

static void full_tiers_stop_the_guest_until_one_gets_room(void **state)
{
    struct hier h;
    (void)state;

    fill_until_full(&h, &noise);
    hier_set_tier_bytes(&h, FILES, 0);
    hier_await(&h, HIER_END_MS);
    hier_wait_stat(&h, "state", worker_state, UFFDMM_WORKER_RUNNING,
                   UFFDMM_WORKER_RUNNING, 5000);
    hier_do(&h, HIER_VERIFY, 0, 0);
    hier_expect_sound(&h);
    hier_stop(&h);
}

static void full_tiers_stop_the_guest_until_its_limit_is_raised(void **state)
{
    struct hier h;
    (void)state;

    fill_until_full(&h, &noise);
    hier_set_limit(&h, 32 * HIER_MIB);
    hier_await(&h, HIER_END_MS);
    hier_do(&h, HIER_VERIFY, 0, 0);
    hier_expect_sound(&h);
    hier_stop(&h);
}

/* The room of what is given back is room again. */
static void full_tiers_take_pages_again_after_discards(void **state)
{
    struct hier h;
    (void)state;

    fill_until_full(&h, &noise);
    hier_set_limit(&h, 32 * HIER_MIB);
    hier_await(&h, HIER_END_MS);
    hier_do(&h, HIER_DISCARD_ALL, 0, 0);
    hier_set_limit(&h, 8 * HIER_MIB);
    hier_do(&h, HIER_VERIFY_PART, 0, 3000); /* zero pages need no tier */
    hier_expect_sound(&h);
    assert_int_equal(hier_kept_pages(&h), 0);
    hier_stop(&h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(small_pool_hands_pages_down_under_writers),
        cmocka_unit_test(unused_pages_leave_the_pool_and_come_back_when_touched),
        cmocka_unit_test(freshly_evicted_pages_are_not_handed_down),
        cmocka_unit_test(unchanged_pages_of_a_pool_are_not_compressed_again),
        cmocka_unit_test(unchanged_pages_of_a_file_are_not_written_again),
        cmocka_unit_test(unchanged_pages_of_two_tiers_are_not_written_again),
        cmocka_unit_test(pool_shrinks_to_what_policy_says),
        cmocka_unit_test(demotion_begins_and_ends_at_run_time),
        cmocka_unit_test(policy_for_tiers_that_are_not_there_is_refused),
        cmocka_unit_test(full_tiers_stop_the_guest_until_one_gets_room),
        cmocka_unit_test(full_tiers_stop_the_guest_until_its_limit_is_raised),
        cmocka_unit_test(full_tiers_take_pages_again_after_discards),
    };

    return cmocka_run_group_tests_name("hierarchy", tests, end_process_when_hung, NULL);
}
