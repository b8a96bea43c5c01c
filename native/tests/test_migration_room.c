/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A destination whose only tier is the one that the source still has: more is loaded
 * than its limit, and nothing can go out before the volume is its own.
 */
#include "unit.h"

#include "migration_rig.h"
#include "uffd_fixture.h"

enum { LIMIT_BYTES = 8 << 20, LOADED_PAGES = RIG_PAGES / 2 };

static uint64_t target_resident(const struct rig *g)
{
    struct peer_stats stats;

    assert_int_equal(control_tier_stats(g->target_manager.socket, "vm", &stats), 0);
    return stats.vm.resident_bytes;
}

static void expect_below_limit(const struct rig *g)
{
    int64_t deadline = monotonic_ms() + 10000;

    while (target_resident(g) > LIMIT_BYTES) {
        assert_true(monotonic_ms() < deadline);
        sleep_ms(10);
    }
}

/* QEMU's rounds: half of the guest goes by content, and most of that by location in the end. */
static void load(struct rig *g)
{
    uint64_t copied = g->copied;

    for (uint64_t pfn = 0; pfn < LOADED_PAGES; pfn++) {
        rig_write(g, &g->source, pfn, 2);
        rig_hook(g, pfn);
    }
    /* what the test is about: that much has come, and had to have room */
    assert_true((g->copied - copied) * 4096 > LIMIT_BYTES * 3 / 2);
    for (uint64_t pfn = 0; pfn < RIG_PAGES; pfn++) {
        rig_hook(g, pfn);
    }
    rig_stream(g);
}

static void loading_passes_the_limit_when_no_tier_takes_pages(void **state)
{
    static struct rig g;
    uint64_t count, digest, epoch;
    (void)state;

    rig_init(&g);
    g.target_bare = true;
    rig_start_source(&g);
    rig_fill(&g, 1);
    rig_start_target(&g);
    rig_begin(&g);
    assert_int_equal(rig_prepare(&g), 0);
    load(&g);
    assert_true(target_resident(&g) > LIMIT_BYTES);
    rig_sum(&g, &count, &digest);
    assert_int_equal(rig_source_end(&g, UFFDMM_MIG_SENT), 0);
    assert_int_equal(rig_install(&g, count, digest, 5000), 0);
    assert_int_equal(rig_release(&g, &epoch), 0);
    assert_int_equal(rig_take(&g, epoch), 0);
    rig_stop_source(&g);
    expect_below_limit(&g);
    rig_expect_all(&g, &g.target);
    expect_below_limit(&g);
    rig_end(&g);
}

/* The limit holds when there is a tier that takes pages. */
static void loading_stays_below_the_limit_when_a_tier_takes_pages(void **state)
{
    static struct rig g;
    (void)state;

    rig_init(&g);
    rig_start_source(&g);
    rig_fill(&g, 1);
    rig_start_target(&g);
    rig_begin(&g);
    assert_int_equal(rig_prepare(&g), 0);
    load(&g);
    assert_true(target_resident(&g) <= LIMIT_BYTES);
    assert_int_equal(rig_source_end(&g, UFFDMM_MIG_FAILED), 0);
    rig_end(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(loading_passes_the_limit_when_no_tier_takes_pages),
        cmocka_unit_test(loading_stays_below_the_limit_when_a_tier_takes_pages),
    };

    return cmocka_run_group_tests_name("migration_room", tests, end_process_when_hung,
                                       NULL);
}
