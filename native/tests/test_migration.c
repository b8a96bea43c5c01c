/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Migration by location between two managers: a test plays QEMU's hook and the control
 * plane.  The destination's guest finds every byte; what goes wrong costs nobody a slot.
 */
#include "unit.h"

#include "migration_rig.h"
#include "uffd_fixture.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SHARED_AT_SOURCE = 1, SHARED_AT_TARGET = 2 };

static uint64_t random_page(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005ULL + 1442695040888963407ULL;
    return (*seed >> 33) % RIG_PAGES;
}

/* The guest writes while the migration goes on, and gives pages back; QEMU sees to both. */
static void iterate(struct rig *g)
{
    static bool dirty[RIG_PAGES];
    uint64_t seed = 42;

    for (uint64_t pfn = 0; pfn < RIG_PAGES; pfn++) {
        dirty[pfn] = true;
    }
    for (uint32_t round = 0; round < 4; round++) {
        for (uint64_t pfn = 0; pfn < RIG_PAGES; pfn++) {
            if (dirty[pfn]) {
                dirty[pfn] = false;
                rig_hook(g, pfn);
            }
        }
        rig_stream(g);
        for (int i = 0; round < 3 && i < 1500; i++) {
            uint64_t pfn = random_page(&seed);

            if (i % 100 == 7) {
                assert_int_equal(standin_discard(&g->source, pfn, 1), 0);
                g->version[pfn] = 0;
            } else {
                rig_write(g, &g->source, pfn, round + 2);
            }
            dirty[pfn] = true;
        }
    }
}

/* Up to the moment at which both sides have everything. */
static void migrate(struct rig *g)
{
    uint64_t count, digest;

    rig_begin(g);
    assert_int_equal(rig_prepare(g), 0);
    iterate(g);
    rig_sum(g, &count, &digest);
    assert_true(count > RIG_PAGES / 2);
    assert_int_equal(rig_source_end(g, UFFDMM_MIG_SENT), 0);
    assert_int_equal(rig_install(g, count, digest, 5000), 0);
    assert_int_equal(rig_status(&g->target_manager).stage, UFFDMM_MIG_INSTALLED);
    assert_int_equal(rig_status(&g->target_manager).located, count);
}

static void whole_migration(struct rig *g)
{
    struct peer_stats stats;
    uint64_t epoch, none;

    rig_start_source(g);
    rig_fill(g, 1);
    rig_start_target(g);
    migrate(g);
    assert_int_equal(rig_take(g, 2), -EPERM); /* not released */
    assert_int_equal(rig_release(g, &epoch), 0);
    assert_true(epoch > 1);
    assert_int_equal(rig_release(g, &none), -EPERM);
    assert_int_equal(rig_source_end(g, UFFDMM_MIG_FAILED), -EBUSY);
    assert_int_equal(rig_take(g, epoch + 1), -EPERM);
    assert_int_equal(rig_take(g, epoch - 1), -EPERM);
    assert_int_equal(rig_take(g, epoch), 0);
    assert_int_equal(rig_take(g, epoch), -EPERM);
    rig_stop_source(g); /* takes nothing with it */
    rig_expect_all(g, &g->target);
    for (uint64_t pfn = 0; pfn < RIG_PAGES; pfn += 2) {
        rig_write(g, &g->target, pfn, 9);
    }
    rig_expect_all(g, &g->target);
    rig_expect_slots(&g->target_manager, &g->target, SHARED_AT_TARGET);
    assert_int_equal(control_tier_stats(g->target_manager.socket, "vm", &stats), 0);
    assert_int_equal(stats.vm.checksum_errors, 0);
    assert_int_equal(stats.vm.lost_pages, 0);
    print_message("skipped %llu, copied %llu\n", (unsigned long long)g->skipped,
                  (unsigned long long)g->copied);
    rig_end(g);
}

static void guest_finds_all_its_bytes_over_a_shared_folder(void **state)
{
    static struct rig g;
    (void)state;

    rig_init(&g);
    whole_migration(&g);
}

static void guest_finds_all_its_bytes_over_nbd(void **state)
{
    static struct rig g;
    (void)state;

    if (!rig_init_nbd(&g)) {
        print_message("skip: nbdkit does not run\n");
        skip();
    }
    whole_migration(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(guest_finds_all_its_bytes_over_a_shared_folder),
        cmocka_unit_test(guest_finds_all_its_bytes_over_nbd),
    };

    return cmocka_run_group_tests_name("migration", tests, end_process_when_hung, NULL);
}
