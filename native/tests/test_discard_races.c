/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What happens to a page at the same time in two places: it is given back, used,
 * handed down or moved inside the pool while somebody else works on it.  Each of the
 * protections against that has its control: without it the same test sees the harm.
 */
#include "unit.h"

#include "hier.h"
#include "uffd_fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { POOL = 1, FILES = 2, STUCK_MS = 10000 };

static uint64_t used_bytes(const struct peer_stats *s)
{
    return s->tiers[1].used_bytes + s->tiers[2].used_bytes;
}

static uint64_t stored_pages(const struct peer_stats *s)
{
    return s->tiers[0].stored_pages + s->tiers[1].stored_pages + s->tiers[2].stored_pages;
}

/* ---- discards -------------------------------------------------------------------- */

static void count_discarded(struct vmm *v, struct guest_load *l, uint64_t a, uint64_t b)
{
    (void)a;
    (void)b;
    hier_report(v, 0, standin_count(l->standin, UFFDMM_PAGE_DISCARDED));
}

/* Whatever the manager was at when a page was given back: it gets round to freeing it. */
static void expect_none_forgotten(struct hier *h)
{
    int64_t deadline = monotonic_ms() + 3000;

    do {
        sleep_ms(50);
        hier_do(h, HIER_EXTRA, 0, 0);
    } while (hier_result(h, 0) && monotonic_ms() < deadline);
    assert_int_equal(hier_result(h, 0), 0);
}

/* Gives everything back: it reads as zero, and no tier keeps anything of it. */
static void expect_all_freed(struct hier *h)
{
    hier_do(h, HIER_DISCARD_ALL, 0, 0);
    hier_wait_stat(h, "bytes in all tiers", used_bytes, 0, 0, 10000);
    hier_wait_stat(h, "pages in all tiers", stored_pages, 0, 0, 5000);
    hier_do(h, HIER_VERIFY, 0, 0);
    assert_int_equal(hier_kept_pages(h), 0);
}

static void expect_discards(const struct hier_options *o, enum load_pattern pattern)
{
    struct hier h;

    hier_start(&h, o);
    hier_do(&h, HIER_FILL, 0, 0);
    hier_do(&h, HIER_RUN, pattern, 5000);
    expect_none_forgotten(&h);
    hier_do(&h, HIER_VERIFY, 0, 0);
    hier_expect_sound(&h);
    struct peer_stats s = hier_stats(&h);
    assert_true(s.vm.discarded > 1000);
    assert_true(s.vm.evicted > 1000);
    assert_true(s.vm.demoted > 100);
    assert_true(s.tiers[POOL].compactions > 0);
    assert_int_equal(hier_kept_pages(&h), 0);
    expect_all_freed(&h);
    hier_expect_sound(&h);
    hier_stop(&h);
}

static void discards_race_with_everything_and_win(void **state)
{
    (void)state;
    for (uint64_t seed = 31; seed < 33; seed++) {
        expect_discards(
            &(struct hier_options){
                .tiers = {"pool=pool,capacity=3M", "file=file,path={store}"},
                .arguments = {"--limit", "8M", "--demote-after", "500ms"},
                .ram = 32 * HIER_MIB,
                .seed = seed,
                .nr_shards = 2,
                .nr_threads = 4,
                .content = LOAD_VARIED,
                .extra = count_discarded,
            },
            LOAD_DISCARD);
    }
}

static void discards_race_with_read_ahead_and_win(void **state)
{
    (void)state;
    expect_discards(
        &(struct hier_options){
            .tiers = {"pool=pool,capacity=3M", "file=file,path={store}"},
            .arguments = {"--limit", "8M", "--demote-after", "500ms"},
            .ram = 32 * HIER_MIB,
            .seed = 33,
            .nr_threads = 2,
            .content = LOAD_VARIED,
            .extra = count_discarded,
        },
        LOAD_DISCARD_AHEAD);
}

/* Reads and writes that take long: most discards meet one. */
static void discards_race_with_slow_transfers_and_win(void **state)
{
    (void)state;
    expect_discards(
        &(struct hier_options){
            .tiers = {"pool=pool,capacity=2M,error-rate=0.1,error-ops=both",
                      "file=file,path={store},delay-read=2ms,delay-write=20ms,"
                      "delay-shape=exponential,error-rate=0.02"},
            .arguments = {"--limit", "8M", "--demote-after", "500ms"},
            .ram = 24 * HIER_MIB,
            .seed = 34,
            .nr_threads = 8,
            .content = LOAD_VARIED,
            .extra = count_discarded,
        },
        LOAD_DISCARD);
}

/* ---- the wait for INSTALL ---------------------------------------------------------- */

/* Pages seen after they were given back while copies into guest memory take long. */
static uint64_t kept_pages(bool impatient)
{
    const struct hier_options options = {
        .variable = "UFFDMM_MANAGER_HOOKS",
        .tiers = {"pool=pool", "file=file,path={store}"},
        .arguments = {"--limit", "8M"},
        .ram = 24 * HIER_MIB,
        .seed = 35,
        .nr_threads = 4,
        .content = LOAD_VARIED,
        .impatient = impatient,
    };
    struct hier h;

    setenv("UFFDMM_TEST_INSTALL_DELAY_US", "500", 1);
    hier_start(&h, &options);
    unsetenv("UFFDMM_TEST_INSTALL_DELAY_US");
    hier_do(&h, HIER_FILL, 0, 0);
    hier_do(&h, HIER_RUN, LOAD_DISCARD_AHEAD, 5000);
    hier_do(&h, HIER_VERIFY, 0, 0);
    hier_expect_sound(&h);
    uint64_t kept = hier_kept_pages(&h);
    print_message("kept %llu\n", (unsigned long long)kept);
    hier_stop(&h);
    return kept;
}

static void discard_that_waits_for_a_copy_leaves_nothing(void **state)
{
    (void)state;
    assert_int_equal(kept_pages(false), 0);
}

/* The control: whole pages from before the discard, though no wrong ones. */
static void discard_that_does_not_wait_leaves_old_pages(void **state)
{
    (void)state;
    assert_true(kept_pages(true) > 0);
}

/* ---- demotion and compaction ---------------------------------------------------------- */

/*
 * True when a page was lost, wrong, or not what its checksum says, a slot did not hold
 * the page that the table names (nothing else makes a pool fail), the table is damaged,
 * or the guest is stuck.
 */
static bool harmed(struct hier *h)
{
    struct peer_stats s;

    return hier_saw_wrong(h) || h->longest_stall_ms > STUCK_MS ||
           (control_tier_stats(h->manager.socket, "vm", &s) == 0 &&
            (s.vm.checksum_errors || s.vm.lost_pages || s.tiers[POOL].errors)) ||
           manager_logged(&h->manager, "the table is damaged", 0);
}

/* Tells the guest to do something, and looks for harm all the while. */
static bool harmed_by_its_end(struct hier *h, enum hier_command command, uint64_t a,
                              uint64_t b)
{
    hier_begin(h, command, a, b);
    while (!hier_done(h)) {
        if (harmed(h)) {
            return true;
        }
        assert_true(h->awaited_ms < HIER_END_MS);
        sleep_ms(10);
    }
    return harmed(h);
}

/* Runs until harm is seen, or for as long as given.  True when it was. */
static bool run_until_harmed(const struct hier_options *o, int milliseconds)
{
    struct hier h;
    bool seen;

    hier_start(&h, o);
    seen = harmed_by_its_end(&h, HIER_FILL, 0, 0) ||
           harmed_by_its_end(&h, HIER_RUN, LOAD_RANDOM, (uint64_t)milliseconds);
    hier_print(&h);
    print_message("the guest said: %s\n", h.vmm.report->error);
    if (seen) {
        hier_abandon(&h);
        return true;
    }
    hier_do(&h, HIER_VERIFY, 0, 0);
    hier_expect_sound(&h);
    struct peer_stats s = hier_stats(&h);
    assert_true(s.vm.demoted > 1000 || s.tiers[POOL].compactions > 500);
    hier_stop(&h);
    return false;
}

/* Slow writes: many a page is used while it is on its way down. */
static const struct hier_options demotion = {
    .variable = "UFFDMM_MANAGER_HOOKS",
    .tiers = {"pool=pool,capacity=3M", "file=file,path={store},delay-write=10ms"},
    .arguments = {"--limit", "8M", "--demote-after", "100ms"},
    .ram = 24 * HIER_MIB,
    .seed = 36,
    .nr_threads = 3,
    .content = LOAD_COMPRESSIBLE,
};

static void pages_used_on_their_way_down_are_not_harmed(void **state)
{
    (void)state;
    assert_false(run_until_harmed(&demotion, 5000));
}

static void pages_are_harmed_when_demotion_swaps_blindly(void **state)
{
    (void)state;
    setenv("UFFDMM_TEST_DEMOTE_BLIND", "1", 1);
    bool seen = run_until_harmed(&demotion, 20000);
    unsetenv("UFFDMM_TEST_DEMOTE_BLIND");
    assert_true(seen);
}

static const struct hier_options compaction = {
    .variable = "UFFDMM_MANAGER_HOOKS",
    .tiers = {"pool=pool", "file=file,path={store}"},
    .arguments = {"--limit", "8M"},
    .ram = 24 * HIER_MIB,
    .seed = 37,
    .nr_threads = 3,
    .content = LOAD_COMPRESSIBLE,
};

static bool compact_until_harmed(int milliseconds)
{
    setenv("UFFDMM_TEST_COMPACT_DELAY_US", "1000", 1);
    bool seen = run_until_harmed(&compaction, milliseconds);
    unsetenv("UFFDMM_TEST_COMPACT_DELAY_US");
    return seen;
}

static void pages_used_while_they_are_moved_in_the_pool_are_not_harmed(void **state)
{
    (void)state;
    assert_false(compact_until_harmed(5000));
}

static void pages_are_harmed_when_compaction_does_not_claim_them(void **state)
{
    (void)state;
    setenv("UFFDMM_TEST_COMPACT_UNCLAIMED", "1", 1);
    bool seen = compact_until_harmed(20000);
    unsetenv("UFFDMM_TEST_COMPACT_UNCLAIMED");
    assert_true(seen);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(discards_race_with_everything_and_win),
        cmocka_unit_test(discards_race_with_read_ahead_and_win),
        cmocka_unit_test(discards_race_with_slow_transfers_and_win),
        cmocka_unit_test(discard_that_waits_for_a_copy_leaves_nothing),
        cmocka_unit_test(discard_that_does_not_wait_leaves_old_pages),
        cmocka_unit_test(pages_used_on_their_way_down_are_not_harmed),
        cmocka_unit_test(pages_are_harmed_when_demotion_swaps_blindly),
        cmocka_unit_test(pages_used_while_they_are_moved_in_the_pool_are_not_harmed),
        cmocka_unit_test(pages_are_harmed_when_compaction_does_not_claim_them),
    };

    return cmocka_run_group_tests_name("discard races", tests, end_process_when_hung,
                                       NULL);
}
