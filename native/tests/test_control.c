/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a control client can ask for beside statistics: the page-state table to look
 * at, pages to go out, pages to come back, and settings that the worker keeps.
 */
#include "unit.h"

#include "guest_load.h"
#include "manager_process.h"
#include "standin.h"
#include "uffd_fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MIB = 1 << 20, RAM = 32 * MIB, NR_PAGES = RAM / PAGE, END_MS = 60000 };

/* The stages of the process that holds the memory; see body(). */
enum { FILLED = 1, VERIFIED = 2, GO_VERIFY = 1, GO_END = 2 };

static const char *const unlimited[] = {NULL};
static const char *const limited[] = {"--limit", "16M", NULL};

static struct manager m;
static struct vmm v;

static void body(struct vmm *self, const void *arg)
{
    const uint32_t *nr_shards = arg;
    struct standin s;
    struct guest_load l;

    vmm_check(self, &s, standin_open(&s, self->socket, "vm", RAM, *nr_shards));
    load_init(&l, self, &s, 1234, 1, LOAD_INCOMPRESSIBLE);
    load_fill(&l);
    vmm_set_phase(self, FILLED);
    vmm_await_command(self, GO_VERIFY);
    load_verify(&l);
    vmm_set_phase(self, VERIFIED);
    vmm_await_command(self, GO_END);
    if (standin_detach(&s) < 0) {
        vmm_fail(self, "detach failed: %s", s.error);
    }
}

static void begin(const char *const *arguments, uint32_t nr_shards)
{
    static uint32_t shards;

    shards = nr_shards;
    manager_start(&m, "UFFDMM_MANAGER", arguments);
    vmm_start(&v, m.socket, body, &shards);
    vmm_await_phase(&v, FILLED, END_MS);
}

static void end(void)
{
    vmm_command(&v, GO_VERIFY);
    vmm_await_phase(&v, VERIFIED, END_MS);
    assert_int_equal(atomic_load(&v.report->wrong), 0);
    vmm_command(&v, GO_END);
    vmm_join(&v, END_MS);
    manager_stop(&m);
}

/* A request on a connection of its own; the reply's status. */
static int ask(uint32_t type, const void *payload, uint32_t length, const int *fds,
               uint32_t nr_fds, struct peer_msg *reply)
{
    int sock = peer_open(m.socket, UFFDMM_ROLE_CONTROL, "vm", reply);
    int ret;

    assert_true(sock >= 0);
    ret = peer_request(sock, type, payload, length, fds, nr_fds, reply);
    close(sock);
    return ret;
}

static int move(uint32_t type, uint64_t bytes)
{
    struct uffdmm_move request = {.bytes = bytes};
    struct peer_msg reply;

    return ask(type, &request, sizeof(request), NULL, 0, &reply);
}

static struct uffdmm_stats stats_now(void)
{
    struct uffdmm_stats stats;

    assert_int_equal(control_stats(m.socket, "vm", &stats), 0);
    return stats;
}

/* Waits until as much is resident, within @slack, and stays so for a moment. */
static void await_resident(uint64_t bytes, uint64_t slack)
{
    int held = 0;
    uint64_t now = 0;

    for (int i = 0; i < 1000 && held < 20; i++) {
        now = stats_now().resident_bytes;
        held = now + slack >= bytes && now <= bytes + slack ? held + 1 : 0;
        usleep(10000);
    }
    if (held < 20) {
        fail_msg("%llu bytes resident, not %llu", (unsigned long long)now,
                 (unsigned long long)bytes);
    }
}

/* The mapped table of the only region. */
static struct uffdmm_table_header *open_table(struct uffdmm_regions_reply *region)
{
    struct uffdmm_regions request = {0};
    struct peer_msg reply;
    void *map;

    assert_int_equal(ask(UFFDMM_MSG_REGIONS, &request, sizeof(request), NULL, 0, &reply),
                     0);
    assert_int_equal(reply.nr_fds, 1);
    memcpy(region, reply.payload, sizeof(*region));
    assert_ptr_equal(mmap(NULL, region->table_size, PROT_READ | PROT_WRITE, MAP_SHARED,
                          reply.fds[0], 0),
                     MAP_FAILED);
    map = mmap(NULL, region->table_size, PROT_READ, MAP_SHARED, reply.fds[0], 0);
    assert_ptr_not_equal(map, MAP_FAILED);
    peer_close_fds(&reply);
    return map;
}

static uint64_t *entries_of(struct uffdmm_table_header *table)
{
    return (uint64_t *)(void *)((char *)table + table->entries_offset);
}

static void regions_are_shown_read_only(void **state)
{
    struct uffdmm_regions request = {.index = 1};
    struct uffdmm_regions_reply region;
    struct uffdmm_table_header *table;
    struct peer_msg reply;

    (void)state;
    begin(unlimited, 1);
    table = open_table(&region);
    assert_int_equal(region.size, RAM);
    assert_int_equal(region.page_size, PAGE);
    assert_int_equal(region.next, 0);
    assert_int_equal(table->nr_pages, NR_PAGES);
    for (uint64_t i = 0; i < NR_PAGES; i++) {
        assert_int_equal(entries_of(table)[i] & UFFDMM_ENTRY_STATE_MASK,
                         UFFDMM_PAGE_RESIDENT);
    }
    assert_int_equal(ask(UFFDMM_MSG_REGIONS, &request, sizeof(request), NULL, 0, &reply),
                     -ENOENT);
    munmap(table, region.table_size);
    end();
}

static void evicted_pages_come_back_when_asked_for(void **state)
{
    const uint32_t *nr_shards = *state;
    uint64_t faults;
    struct uffdmm_stats stats;

    begin(unlimited, *nr_shards);
    assert_int_equal(move(UFFDMM_MSG_EVICT, 20 * MIB), 0);
    await_resident(12 * MIB, MIB);
    assert_int_equal(move(UFFDMM_MSG_PREFETCH, 8 * MIB), 0);
    await_resident(20 * MIB, MIB);
    assert_int_equal(move(UFFDMM_MSG_PREFETCH, RAM), 0);
    await_resident(RAM, 0);
    stats = stats_now();
    faults = stats.faults;
    assert_int_equal(stats.prefetched, stats.evicted);
    assert_int_equal(stats.stored_bytes, 0);
    end();
    /* whoever reads all of it now meets no missing page */
    assert_true(faults > 0);
}

/* The same, and the guest that verifies everything afterwards does not fault. */
static void prefetched_pages_are_not_faulted_on(void **state)
{
    uint64_t faults;

    (void)state;
    begin(unlimited, 1);
    assert_int_equal(move(UFFDMM_MSG_EVICT, RAM), 0);
    await_resident(0, MIB);
    assert_int_equal(move(UFFDMM_MSG_PREFETCH, RAM), 0);
    await_resident(RAM, 0);
    faults = stats_now().faults;
    vmm_command(&v, GO_VERIFY);
    vmm_await_phase(&v, VERIFIED, END_MS);
    assert_int_equal(stats_now().faults, faults);
    end();
}

static void a_prefetch_keeps_below_the_limit(void **state)
{
    struct uffdmm_stats stats;
    uint64_t evicted;

    (void)state;
    begin(limited, 1);
    await_resident(15 * MIB, 2 * MIB);
    assert_int_equal(move(UFFDMM_MSG_EVICT, 8 * MIB), 0);
    await_resident(7 * MIB, 2 * MIB);
    evicted = stats_now().evicted;
    assert_int_equal(move(UFFDMM_MSG_PREFETCH, RAM), 0);
    usleep(500000);
    stats = stats_now();
    assert_true(stats.prefetched > 4 * MIB / PAGE);
    assert_true(stats.resident_bytes <= 16 * MIB);
    assert_int_equal(stats.evicted, evicted);
    end();
}

/*
 * Somebody who takes memory in small steps and stops in between is to know after the first one
 * what is idle: that takes two looks, and more would cost the guest for nothing.
 */
static void a_short_eviction_is_looked_at_twice(void **state)
{
    enum { LOOKS = 2, PATIENCE = 1000, AFTERWARDS_US = 3000000 };
    struct uffdmm_stats stats = {0};

    (void)state;
    begin(unlimited, 1);
    assert_int_equal(stats_now().scanned_pages, 0);
    assert_int_equal(move(UFFDMM_MSG_EVICT, MIB), 0);
    for (int i = 0; i < PATIENCE && stats.scanned_pages < LOOKS * NR_PAGES; i++) {
        usleep(10000);
        stats = stats_now();
    }
    assert_int_equal(stats.scanned_pages, LOOKS * NR_PAGES);
    usleep(AFTERWARDS_US);
    assert_int_equal(stats_now().scanned_pages, LOOKS * NR_PAGES);
    end();
}

static int page_list(const uint64_t *pages, uint32_t nr, bool sealed)
{
    int fd = memfd_create("list", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, pages, nr * sizeof(*pages)), nr * sizeof(*pages));
    if (sealed) {
        assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
    }
    return fd;
}

static int prefetch_list(const uint64_t *pages, uint32_t written, uint32_t named,
                         uint32_t region, bool sealed)
{
    struct uffdmm_move request = {.bytes = RAM, .region_id = region, .nr_pages = named};
    int fd = page_list(pages, written, sealed), ret;
    struct peer_msg reply;

    ret = ask(UFFDMM_MSG_PREFETCH, &request, sizeof(request), &fd, 1, &reply);
    close(fd);
    return ret;
}

static void a_list_of_pages_comes_in_and_nothing_else(void **state)
{
    enum { NR = 1000, FIRST = 100 };
    struct uffdmm_regions_reply region;
    struct uffdmm_table_header *table;
    uint64_t pages[NR];

    (void)state;
    begin(unlimited, 2);
    table = open_table(&region);
    assert_int_equal(move(UFFDMM_MSG_EVICT, RAM), 0);
    await_resident(0, 0);
    for (uint64_t i = 0; i < NR; i++) {
        pages[i] = FIRST + 7 * (NR - 1 - i);
    }
    assert_int_equal(prefetch_list(pages, NR, NR, region.region_id, true), 0);
    await_resident(NR * PAGE, 0);
    for (uint64_t i = 0; i < NR_PAGES; i++) {
        bool listed = i >= FIRST && i < FIRST + 7 * NR && (i - FIRST) % 7 == 0;

        assert_int_equal(entries_of(table)[i] & UFFDMM_ENTRY_STATE_MASK,
                         listed ? UFFDMM_PAGE_CLEAN : UFFDMM_PAGE_STORED);
    }
    munmap(table, region.table_size);
    end();
}

static void bad_lists_are_refused(void **state)
{
    uint64_t pages[] = {0, 1, NR_PAGES};
    struct uffdmm_move request = {.bytes = RAM, .nr_pages = 1};
    struct peer_msg reply;

    (void)state;
    begin(unlimited, 1);
    assert_int_equal(prefetch_list(pages, 3, 3, 0, true), -ERANGE);
    assert_int_equal(prefetch_list(pages, 2, 3, 0, true), -EINVAL);
    assert_int_equal(prefetch_list(pages, 2, 2, 1, true), -ENOENT);
    assert_int_equal(prefetch_list(pages, 2, 2, 4000000000u, true), -ENOENT);
    assert_int_equal(prefetch_list(pages, 2, 2, 0, false), -EINVAL);
    assert_int_equal(prefetch_list(pages, 2, (1u << 20) + 1, 0, true), -EINVAL);
    assert_int_equal(prefetch_list(pages, 2, 0, 0, true), -EINVAL);
    assert_int_equal(ask(UFFDMM_MSG_PREFETCH, &request, sizeof(request), NULL, 0, &reply),
                     -EINVAL);
    assert_int_equal(ask(UFFDMM_MSG_EVICT, &request, sizeof(request), NULL, 0, &reply),
                     -EINVAL);
    end();
}

static void settings_of_the_control_plane_are_kept_and_checked(void **state)
{
    static const struct uffdmm_policy bad[] = {
        {.fields = UFFDMM_POLICY_MIN, .min_bytes = 65 * MIB},
        {.fields = UFFDMM_POLICY_SHARES, .shares = 0},
        {.fields = UFFDMM_POLICY_SHARES, .shares = 10001},
        {.fields = UFFDMM_POLICY_PRIORITY, .priority = 101},
        {.fields = UFFDMM_POLICY_OPT_OUT, .opt_out = 2},
        {.fields = UFFDMM_POLICY_TRACK, .track_permille = 1001},
        {.fields = 1u << 10},
    };
    struct uffdmm_policy policy = {
        .fields = UFFDMM_POLICY_MIN | UFFDMM_POLICY_MAX | UFFDMM_POLICY_SHARES |
                  UFFDMM_POLICY_PRIORITY | UFFDMM_POLICY_OPT_OUT | UFFDMM_POLICY_TRACK,
        .min_bytes = 10 * MIB,
        .max_bytes = 64 * MIB,
        .shares = 300,
        .priority = 7,
        .opt_out = 1,
        .track_permille = 5,
    };
    char err[UFFDMM_TEXT_MAX];
    struct uffdmm_stats stats;

    (void)state;
    begin(unlimited, 1);
    assert_int_equal(stats_now().shares, 100);
    assert_int_equal(control_set_policy(m.socket, "vm", &policy, err), 0);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct uffdmm_policy p = bad[i];

        err[0] = '\0';
        assert_int_equal(control_set_policy(m.socket, "vm", &p, err), -EINVAL);
        assert_true(strlen(err) > 10);
    }
    stats = stats_now();
    assert_int_equal(stats.min_bytes, 10 * MIB);
    assert_int_equal(stats.max_bytes, 64 * MIB);
    assert_int_equal(stats.shares, 300);
    assert_int_equal(stats.priority, 7);
    assert_int_equal(stats.opt_out, 1);
    assert_int_equal(stats.track_permille, 5);
    end();
}

int main(void)
{
    static uint32_t one = 1, three = 3;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(regions_are_shown_read_only),
        {"evicted_pages_come_back_when_asked_for", evicted_pages_come_back_when_asked_for,
         NULL, NULL, &one},
        {"evicted_pages_come_back_in_several_shards",
         evicted_pages_come_back_when_asked_for, NULL, NULL, &three},
        cmocka_unit_test(prefetched_pages_are_not_faulted_on),
        cmocka_unit_test(a_prefetch_keeps_below_the_limit),
        cmocka_unit_test(a_short_eviction_is_looked_at_twice),
        cmocka_unit_test(a_list_of_pages_comes_in_and_nothing_else),
        cmocka_unit_test(bad_lists_are_refused),
        cmocka_unit_test(settings_of_the_control_plane_are_kept_and_checked),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
