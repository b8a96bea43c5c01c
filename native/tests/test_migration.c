/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Migration by location between two managers: a test plays QEMU's hook and the control
 * plane.  The destination's guest finds every byte; what goes wrong costs nobody a slot.
 */
#include "unit.h"

#include "mig.h"
#include "migration_rig.h"
#include "uffd_fixture.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { SHARED_AT_SOURCE = 1, SHARED_AT_TARGET = 2, TIERS_OF_TARGET = 3 };

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
    /* a slow or full store passes pages on to the tier that is not shared */
    assert_true(count > RIG_PAGES / 8);
    assert_int_equal(rig_source_end(g, UFFDMM_MIG_SENT), 0);
    assert_int_equal(rig_install(g, count, digest, 5000), 0);
    assert_int_equal(rig_status(g, &g->target_manager).stage, UFFDMM_MIG_INSTALLED);
    assert_int_equal(rig_status(g, &g->target_manager).located, count);
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
    rig_expect_slots(g, &g->target_manager, &g->target,
                     g->target_vm ? TIERS_OF_TARGET + 1 : SHARED_AT_TARGET);
    assert_int_equal(control_tier_stats(g->target_manager.socket,
                                        g->target_vm ? g->target_vm : "vm", &stats),
                     0);
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

/* The destination has a volume of its own in that tier: the source's stands beside it. */
static void guest_finds_all_its_bytes_under_another_name(void **state)
{
    static struct rig g;
    (void)state;

    rig_init(&g);
    g.target_vm = "moved";
    whole_migration(&g);
}

static bool volume_there(const struct rig *g)
{
    char path[200];

    snprintf(path, sizeof(path), "%s/vm.volume", g->shared);
    return access(path, F_OK) == 0;
}

/* ---- what goes wrong ----------------------------------------------------------- */

static void failed_migration_costs_no_slot_and_a_second_one_works(void **state)
{
    static struct rig g;
    uint64_t epoch;
    (void)state;

    rig_init(&g);
    rig_start_source(&g);
    rig_fill(&g, 1);
    rig_start_target(&g);
    migrate(&g);
    for (uint64_t pfn = 0; pfn < RIG_PAGES; pfn += 3) {
        rig_write(&g, &g.source, pfn, 11); /* the guest goes on, and S is not told */
    }
    assert_true(rig_status(&g, &g.source_manager).frozen_slots > 100);
    rig_stop_target(&g);
    assert_int_equal(rig_source_end(&g, UFFDMM_MIG_FAILED), 0);
    assert_int_equal(rig_status(&g, &g.source_manager).frozen_slots, 0);
    assert_int_equal(rig_status(&g, &g.source_manager).stage, UFFDMM_MIG_IDLE);
    rig_expect_slots(&g, &g.source_manager, &g.source, SHARED_AT_SOURCE);
    rig_expect_all(&g, &g.source);
    rig_start_target(&g);
    migrate(&g);
    assert_int_equal(rig_release(&g, &epoch), 0);
    assert_int_equal(rig_take(&g, epoch), 0);
    rig_expect_all(&g, &g.target);
    rig_expect_slots(&g, &g.target_manager, &g.target, SHARED_AT_TARGET);
    rig_end(&g);
}

/* The source dies between "all sent" and the release: its volume is there for a person. */
static void volume_stays_when_the_source_ends_before_its_release(void **state)
{
    static struct rig g;
    (void)state;

    rig_init(&g);
    rig_start_source(&g);
    rig_fill(&g, 1);
    rig_start_target(&g);
    migrate(&g);
    uint64_t epoch = rig_status(&g, &g.source_manager).epoch;
    rig_stop_source(&g);
    assert_true(volume_there(&g));
    assert_int_equal(rig_take(&g, epoch + 1), -EPERM);
    assert_int_equal(rig_take(&g, epoch), 0);
    rig_expect_all(&g, &g.target);
    rig_stop_target(&g);
    assert_false(volume_there(&g));
    rig_end(&g);
}

/* A migration by content alone: the tier is the destination's once the source has ended. */
static void tier_opens_late_when_its_old_host_gives_it_up(void **state)
{
    static struct rig g;
    struct peer_stats stats;
    (void)state;

    rig_init(&g);
    rig_start_source(&g);
    rig_fill(&g, 1);
    rig_start_target(&g);
    memcpy(g.target.base, g.source.base, RIG_RAM);
    assert_int_equal(control_tier_stats(g.target_manager.socket, "vm", &stats), 0);
    assert_int_equal(stats.tiers[SHARED_AT_TARGET].state, UFFDMM_TIER_AWAY);
    assert_int_equal(stats.tiers[SHARED_AT_TARGET].used_bytes, 0);
    assert_true(volume_there(&g));
    rig_stop_source(&g);
    int64_t deadline = monotonic_ms() + 10000;
    do {
        sleep_ms(50);
        assert_int_equal(control_tier_stats(g.target_manager.socket, "vm", &stats), 0);
    } while (stats.tiers[SHARED_AT_TARGET].state != UFFDMM_TIER_OK &&
             monotonic_ms() < deadline);
    assert_int_equal(stats.tiers[SHARED_AT_TARGET].state, UFFDMM_TIER_OK);
    assert_true(volume_there(&g));
    rig_expect_all(&g, &g.target);
    rig_end(&g);
    assert_true(access(g.shared, F_OK) < 0);
}

/* A VM that is no migration's destination does not wait for a volume that is in use. */
static void volume_in_use_refuses_a_vm_that_expects_no_migration(void **state)
{
    static struct rig g;
    struct standin s;
    (void)state;

    rig_init(&g);
    rig_start_source(&g);
    rig_start_target(&g);
    rig_stop_target(&g);
    const char *tiers[] = {g.tier, NULL};
    static const char *const none[] = {NULL};
    manager_start_tiers(&g.target_manager, "UFFDMM_MANAGER", tiers, none);
    assert_int_equal(
        standin_open_as(&s, g.target_manager.socket, "vm", "ram", 0, RIG_RAM), -EBUSY);
    standin_close(&s);
    manager_stop(&g.target_manager);
    rig_end(&g);
}

static void install_waits_for_locations_and_gives_up_in_time(void **state)
{
    static struct rig g;
    uint64_t count, digest;
    (void)state;

    rig_init(&g);
    rig_start_source(&g);
    rig_fill(&g, 1);
    rig_start_target(&g);
    rig_begin(&g);
    assert_int_equal(rig_install(&g, 0, 0, 100), -EPERM); /* nothing prepared */
    assert_int_equal(rig_prepare(&g), 0);
    for (uint64_t pfn = 0; pfn < RIG_PAGES; pfn++) {
        rig_hook(&g, pfn);
    }
    rig_sum(&g, &count, &digest);
    int64_t began = monotonic_ms();
    assert_int_equal(rig_install(&g, count, digest, 300), -ETIMEDOUT);
    assert_true(monotonic_ms() - began >= 300);
    rig_stream(&g);
    assert_int_equal(rig_install(&g, count, digest + 1, 100), -ETIMEDOUT);
    assert_int_equal(rig_install(&g, count - 1, digest, 100), -ETIMEDOUT);
    assert_int_equal(rig_take(&g, 2), -EPERM);
    assert_int_equal(rig_install(&g, count, digest, 1000), 0);
    assert_int_equal(rig_install(&g, count, digest, 1000), -EPERM);
    rig_expect_all(&g, &g.target);
    rig_end(&g);
}

static uint64_t stored(unsigned tier, uint64_t slot)
{
    return UFFDMM_PAGE_STORED | (uint64_t)tier << UFFDMM_ENTRY_TIER_SHIFT |
           slot << UFFDMM_ENTRY_SLOT_SHIFT;
}

static void locations_that_cannot_be_are_refused(void **state)
{
    static const struct uffdmm_mig_location good = {.pfn = 1};
    struct uffdmm_mig_location bad[] = {
        {.pfn = RIG_PAGES, .entry = UFFDMM_PAGE_EMPTY},
        {.pfn = UINT64_MAX, .entry = UFFDMM_PAGE_EMPTY},
        {.pfn = 2, .entry = UFFDMM_PAGE_EMPTY, .record = 1},
        {.pfn = 2, .entry = UFFDMM_PAGE_EMPTY | UFFDMM_ENTRY_MAYHOLE},
        {.pfn = 2, .entry = UFFDMM_PAGE_EMPTY, .pad = {1}},
        {.pfn = 2, .entry = UFFDMM_PAGE_RESIDENT},
        {.pfn = 2, .entry = UFFDMM_PAGE_FILLING},
        {.pfn = 2, .entry = 15},
        {.pfn = 2, .entry = stored(0, 7)},
        {.pfn = 2, .entry = stored(1, 7)},  /* our own pool */
        {.pfn = 2, .entry = stored(3, 7)},  /* our own file */
        {.pfn = 2, .entry = stored(15, 7)}, /* no such tier */
        {.pfn = 2, .entry = stored(SHARED_AT_TARGET, 0)},
        {.pfn = 2, .entry = stored(SHARED_AT_TARGET, 1ULL << 39)},
        {.pfn = 2, .entry = stored(SHARED_AT_TARGET, 7) | UFFDMM_ENTRY_BUSY},
    };
    static struct rig g;
    struct uffdmm_mig_location pair[2], twice[2];
    (void)state;

    rig_init(&g);
    rig_start_source(&g);
    rig_fill(&g, 1);
    rig_start_target(&g);
    rig_begin(&g);
    assert_int_equal(rig_import(&g, &good, 1), -EPERM); /* nothing prepared */
    assert_int_equal(rig_prepare(&g), 0);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        pair[0] = (struct uffdmm_mig_location){.pfn = 1, .entry = UFFDMM_PAGE_EMPTY};
        pair[1] = bad[i];
        if (rig_import(&g, pair, 2) != -EINVAL) {
            fail_msg("location %zu was taken", i);
        }
        assert_int_equal(rig_status(&g, &g.target_manager).located, 0); /* all or none */
    }
    /* one slot for two pages: whoever says so gets nothing installed */
    uint64_t e = stored(SHARED_AT_TARGET, 7);
    twice[0] = (struct uffdmm_mig_location){.pfn = 1, .entry = e};
    twice[1] = (struct uffdmm_mig_location){.pfn = 2, .entry = e};
    uint64_t digest = mig_digest(1, e, 0) + mig_digest(2, e, 0);
    assert_int_equal(rig_import(&g, twice, 2), 0);
    assert_int_equal(rig_install(&g, 2, digest, 100), -EINVAL);
    rig_expect_slots(&g, &g.target_manager, &g.target, SHARED_AT_TARGET);
    assert_int_equal(standin_count(&g.target, UFFDMM_PAGE_STORED), 0);
    /* withdrawn */
    twice[1].entry = 0;
    assert_int_equal(rig_import(&g, twice, 2), 0);
    assert_int_equal(rig_status(&g, &g.target_manager).located, 1);
    rig_end(&g);
}

static void messages_out_of_turn_are_refused(void **state)
{
    struct uffdmm_mig_arm arm = {.session = 1, .tier = 2};
    static struct rig g;
    struct peer_msg reply;
    uint64_t epoch;
    (void)state;

    rig_init(&g);
    rig_start_source(&g);
    /* the tier that is not shared, and one that is not there */
    assert_int_equal(rig_control(&g, &g.source_manager, UFFDMM_MSG_MIG_ARM, &arm,
                                 sizeof(arm), -1, &reply),
                     -EOPNOTSUPP);
    arm.tier = 9;
    assert_int_equal(rig_control(&g, &g.source_manager, UFFDMM_MSG_MIG_ARM, &arm,
                                 sizeof(arm), -1, &reply),
                     -EINVAL);
    assert_int_equal(rig_source_end(&g, UFFDMM_MIG_SENT), -ENOENT);
    assert_int_equal(rig_release(&g, &epoch), -EPERM);
    rig_begin(&g);
    assert_int_equal(rig_control(&g, &g.source_manager, UFFDMM_MSG_MIG_ARM, &arm,
                                 sizeof(arm), -1, &reply),
                     -EBUSY);
    assert_int_equal(rig_release(&g, &epoch), -EPERM); /* not sent */
    assert_int_equal(rig_source_end(&g, 3), -EINVAL);
    assert_int_equal(rig_source_end(&g, UFFDMM_MIG_FAILED), 0);
    rig_end(&g);
}

/* ---- past guest memory ------------------------------------------------------------ */

/* Nothing goes by location: every stored page is read for QEMU, and stays where it is. */
static void stored_pages_are_read_without_bringing_them_in(void **state)
{
    struct uffdmm_mig_start start = {0};
    struct uffdmm_mig_start_reply answer;
    static struct rig g;
    struct peer_msg reply;
    struct peer_stats before, after;
    (void)state;

    rig_init(&g);
    rig_start_source(&g);
    rig_fill(&g, 1);
    start.region_id = g.source.id;
    assert_int_equal(
        standin_ask(&g.source, UFFDMM_MSG_MIG_START, &start, sizeof(start), &reply), 0);
    memcpy(&answer, reply.payload, sizeof(answer));
    assert_int_equal(answer.session, 0);
    assert_int_equal(reply.nr_fds, 1);
    const uint8_t *bounce =
        mmap(NULL, answer.bounce_size, PROT_READ, MAP_SHARED, reply.fds[0], 0);
    assert_true(bounce != MAP_FAILED);
    peer_close_fds(&reply);
    assert_int_equal(control_tier_stats(g.source_manager.socket, "vm", &before), 0);
    uint64_t read = 0;
    for (uint64_t pfn = 0; pfn < RIG_PAGES; pfn += UFFDMM_MIG_READ_MAX) {
        struct uffdmm_mig_read request = {
            .region_id = g.source.id, .nr = UFFDMM_MIG_READ_MAX, .first = pfn};
        struct uffdmm_mig_read_reply got;

        assert_int_equal(standin_ask(&g.source, UFFDMM_MSG_MIG_READ, &request,
                                     sizeof(request), &reply),
                         0);
        memcpy(&got, reply.payload, sizeof(got));
        for (unsigned i = 0; i < UFFDMM_MIG_READ_MAX; i++) {
            struct standin shown = {.base = (uint8_t *)(uintptr_t)bounce - pfn * 4096};

            if (got.valid >> i & 1) {
                assert_true(rig_page_is(&shown, pfn + i, 1));
                read++;
            }
        }
    }
    assert_int_equal(control_tier_stats(g.source_manager.socket, "vm", &after), 0);
    assert_true(read > RIG_PAGES / 2);
    assert_int_equal(after.vm.bypass_pages, read);
    assert_int_equal(after.vm.faults, before.vm.faults);
    assert_int_equal(standin_count(&g.source, UFFDMM_PAGE_STORED), read);
    struct uffdmm_mig_read beyond = {
        .region_id = g.source.id, .nr = 2, .first = RIG_PAGES - 1};
    assert_int_equal(
        standin_request(&g.source, UFFDMM_MSG_MIG_READ, &beyond, sizeof(beyond)),
        -EINVAL);
    munmap((void *)(uintptr_t)bounce, answer.bounce_size);
    rig_end(&g);
}

/* A snapshot between MIG_ARM and the migration proper leaves the session as it is. */
static void content_leaves_an_armed_session_armed(void **state)
{
    struct uffdmm_mig_arm arm = {.session = RIG_SESSION, .tier = SHARED_AT_SOURCE};
    struct uffdmm_mig_start start = {.tid = 1, .flags = UFFDMM_MIG_BY_CONTENT};
    struct uffdmm_mig_end end = {.outcome = UFFDMM_MIG_FAILED};
    struct uffdmm_mig_start_reply answer;
    static struct rig g;
    struct peer_msg reply;
    (void)state;

    rig_init(&g);
    rig_start_source(&g);
    rig_fill(&g, 1);
    start.region_id = g.source.id;
    assert_int_equal(rig_control(&g, &g.source_manager, UFFDMM_MSG_MIG_ARM, &arm,
                                 sizeof(arm), -1, &reply),
                     0);
    assert_int_equal(
        standin_ask(&g.source, UFFDMM_MSG_MIG_START, &start, sizeof(start), &reply), 0);
    memcpy(&answer, reply.payload, sizeof(answer));
    assert_int_equal(answer.session, 0);
    assert_int_equal(reply.nr_fds, 1);
    peer_close_fds(&reply);
    assert_int_equal(rig_status(&g, &g.source_manager).stage, UFFDMM_MIG_ARMED);
    assert_int_equal(standin_request(&g.source, UFFDMM_MSG_MIG_END, &end, sizeof(end)),
                     0);
    assert_int_equal(rig_status(&g, &g.source_manager).stage, UFFDMM_MIG_ARMED);
    start.flags = 2;
    assert_int_equal(
        standin_request(&g.source, UFFDMM_MSG_MIG_START, &start, sizeof(start)), -EINVAL);

    start.flags = 0;
    assert_int_equal(
        standin_ask(&g.source, UFFDMM_MSG_MIG_START, &start, sizeof(start), &reply), 0);
    memcpy(&answer, reply.payload, sizeof(answer));
    assert_int_equal(answer.session, RIG_SESSION);
    assert_int_equal(reply.nr_fds, 2);
    peer_close_fds(&reply);
    assert_int_equal(rig_status(&g, &g.source_manager).stage, UFFDMM_MIG_RUNNING);
    rig_end(&g);
}

static void *touch_rest(void *arg)
{
    struct rig *g = arg;

    for (uint64_t pfn = RIG_PAGES / 2; pfn < RIG_PAGES; pfn++) {
        if (!rig_page_is(&g->source, pfn, 1)) {
            return g; /* assertions are the main thread's */
        }
    }
    return NULL;
}

/* Faults of QEMU's thread that migrates are counted apart, until the migration ends. */
static void swap_ins_are_those_of_the_thread_that_migrates(void **state)
{
    struct uffdmm_mig_start start = {.tid = (uint32_t)gettid()};
    struct uffdmm_mig_end end = {.outcome = UFFDMM_MIG_FAILED};
    static struct rig g;
    pthread_t other;
    void *wrong;
    (void)state;

    rig_init(&g);
    rig_start_source(&g);
    rig_fill(&g, 1);
    start.region_id = g.source.id;
    assert_int_equal(
        standin_request(&g.source, UFFDMM_MSG_MIG_START, &start, sizeof(start)), 0);
    assert_int_equal(rig_status(&g, &g.source_manager).swap_ins, 0);
    assert_int_equal(pthread_create(&other, NULL, touch_rest, &g), 0);
    pthread_join(other, &wrong);
    assert_null(wrong);
    assert_int_equal(rig_status(&g, &g.source_manager).swap_ins, 0);
    for (uint64_t pfn = 0; pfn < RIG_PAGES / 2; pfn++) {
        assert_true(rig_page_is(&g.source, pfn, 1));
    }
    uint64_t swap_ins = rig_status(&g, &g.source_manager).swap_ins;
    assert_true(swap_ins > 10);
    assert_int_equal(standin_request(&g.source, UFFDMM_MSG_MIG_END, &end, sizeof(end)),
                     0);
    assert_null(touch_rest(&g));
    assert_int_equal(rig_status(&g, &g.source_manager).swap_ins, swap_ins);
    rig_end(&g);
}

/* A read that takes long is answered late; the worker answers everything else meanwhile. */
static void slow_store_holds_up_reads_and_nobody_else(void **state)
{
    struct uffdmm_mig_start start = {0};
    static struct rig g;
    struct peer_msg reply;
    int64_t longest = 0;
    (void)state;

    rig_init(&g);
    snprintf(g.tier + strlen(g.tier), sizeof(g.tier) - strlen(g.tier),
             ",delay-read=1500ms");
    rig_start_source(&g);
    rig_fill(&g, 1);
    start.region_id = g.source.id;
    assert_int_equal(
        standin_request(&g.source, UFFDMM_MSG_MIG_START, &start, sizeof(start)), 0);
    uint64_t pfn = 0;
    while (standin_page_state(&g.source, pfn) != UFFDMM_PAGE_STORED ||
           standin_page_tier(&g.source, pfn) != SHARED_AT_SOURCE) {
        assert_true(++pfn < RIG_PAGES);
    }
    struct uffdmm_mig_read request = {.region_id = g.source.id, .nr = 1, .first = pfn};
    struct uffdmm_msg_header header =
        peer_header(UFFDMM_MSG_MIG_READ, sizeof(request), 77, 0);
    pthread_mutex_lock(&g.source.lock);
    g.source.pending_id = 77;
    assert_int_equal(peer_send(g.source.sock, &header, &request, NULL), 0);
    pthread_mutex_unlock(&g.source.lock);
    int64_t began = monotonic_ms();
    for (int i = 0; i < 50; i++) {
        int64_t asked = monotonic_ms();

        assert_int_equal(rig_control(&g, &g.source_manager, UFFDMM_MSG_MIG_STATUS, NULL,
                                     0, -1, &reply),
                         0);
        longest = monotonic_ms() - asked > longest ? monotonic_ms() - asked : longest;
    }
    assert_true(monotonic_ms() - began < 1500);
    assert_true(longest < 1000);
    pthread_mutex_lock(&g.source.lock);
    assert_int_equal(g.source.pending_id, 77); /* not answered yet */
    pthread_mutex_unlock(&g.source.lock);
    while (monotonic_ms() - began < 5000) {
        pthread_mutex_lock(&g.source.lock);
        bool answered = g.source.pending_id == 0;
        pthread_mutex_unlock(&g.source.lock);
        if (answered) {
            break;
        }
        sleep_ms(10);
    }
    assert_int_equal(g.source.pending_id, 0);
    assert_int_equal(g.source.reply.header.status, 0);
    rig_end(&g);
}

/* ---- frozen slots -------------------------------------------------------------------- */

static struct {
    struct rig rig;
    _Atomic bool stop;
} race;

/* The guest: rewrites pages, which go out to other slots and leave their old ones. */
static void *rewrite(void *arg)
{
    uint64_t seed = 7;

    (void)arg;
    for (uint32_t version = 2; !atomic_load(&race.stop); version++) {
        for (int i = 0; i < 4000 && !atomic_load(&race.stop); i++) {
            rig_write(&race.rig, &race.rig.source, random_page(&seed), version);
        }
    }
    return NULL;
}

/* Slots that S names and that another page has got, after QEMU's hook ran against a guest. */
static uint64_t reused_after_a_race(const char *variable)
{
    pthread_t guest;
    uint64_t reused;

    rig_init(&race.rig);
    race.rig.variable = variable;
    atomic_store(&race.stop, false);
    rig_start_source(&race.rig);
    rig_fill(&race.rig, 1);
    rig_begin(&race.rig);
    assert_int_equal(pthread_create(&guest, NULL, rewrite, NULL), 0);
    int64_t end = monotonic_ms() + 3000;
    for (uint64_t pfn = 0; monotonic_ms() < end; pfn = (pfn + 1) % RIG_PAGES) {
        rig_skip(&race.rig, pfn);
    }
    /* S stays as it is now, and the guest goes on */
    end = monotonic_ms() + 3000;
    while (monotonic_ms() < end) {
        sleep_ms(10);
    }
    atomic_store(&race.stop, true);
    pthread_join(guest, NULL);
    reused = rig_reused(&race.rig);
    print_message(
        "%llu pages skipped, %llu slots kept, %llu used again\n",
        (unsigned long long)race.rig.skipped,
        (unsigned long long)rig_status(&race.rig, &race.rig.source_manager).frozen_slots,
        (unsigned long long)reused);
    assert_int_equal(rig_source_end(&race.rig, UFFDMM_MIG_FAILED), 0);
    rig_expect_slots(&race.rig, &race.rig.source_manager, &race.rig.source,
                     SHARED_AT_SOURCE);
    rig_expect_all(&race.rig, &race.rig.source);
    rig_end(&race.rig);
    return reused;
}

static void slot_that_s_names_is_not_used_again(void **state)
{
    (void)state;
    assert_int_equal(reused_after_a_race(NULL), 0);
}

static void control_without_freezing_slots_are_used_again(void **state)
{
    (void)state;
    setenv("UFFDMM_TEST_NO_FREEZE", "1", 1);
    uint64_t reused = reused_after_a_race("UFFDMM_MANAGER_HOOKS");
    unsetenv("UFFDMM_TEST_NO_FREEZE");
    assert_true(reused > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(guest_finds_all_its_bytes_over_a_shared_folder),
        cmocka_unit_test(guest_finds_all_its_bytes_over_nbd),
        cmocka_unit_test(guest_finds_all_its_bytes_under_another_name),
        cmocka_unit_test(failed_migration_costs_no_slot_and_a_second_one_works),
        cmocka_unit_test(volume_stays_when_the_source_ends_before_its_release),
        cmocka_unit_test(tier_opens_late_when_its_old_host_gives_it_up),
        cmocka_unit_test(volume_in_use_refuses_a_vm_that_expects_no_migration),
        cmocka_unit_test(slow_store_holds_up_reads_and_nobody_else),
        cmocka_unit_test(install_waits_for_locations_and_gives_up_in_time),
        cmocka_unit_test(locations_that_cannot_be_are_refused),
        cmocka_unit_test(messages_out_of_turn_are_refused),
        cmocka_unit_test(stored_pages_are_read_without_bringing_them_in),
        cmocka_unit_test(content_leaves_an_armed_session_armed),
        cmocka_unit_test(swap_ins_are_those_of_the_thread_that_migrates),
        cmocka_unit_test(slot_that_s_names_is_not_used_again),
        cmocka_unit_test(control_without_freezing_slots_are_used_again),
    };

    return cmocka_run_group_tests_name("migration", tests, end_process_when_hung, NULL);
}
