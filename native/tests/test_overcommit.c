/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The real manager under a stand-in VMM with more memory than its limit: every
 * byte verified at every touch, the limit sampled all along.
 */
#include "unit.h"

#include "guest_load.h"
#include "manager_process.h"
#include "standin.h"
#include "uffd_fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    MIB = 1 << 20,
    RAM = 64 * MIB,
    LIMIT = 16 * MIB,
    /* Sampled residency may pass the limit by this much: a window a fault thread. */
    OVERSHOOT = 2 * MIB,
    END_MS = 120000
};

static const char *const limited[] = {"--limit", "16M", NULL};
static const char *const unlimited[] = {NULL};

struct run {
    uint32_t nr_shards;
    enum load_pattern pattern;
    enum load_content content;
    unsigned nr_threads;
    int milliseconds;
};

/* Fill, touch, verify; the largest residency in user[0]. */
static void run_body(struct vmm *v, const void *arg)
{
    const struct run *run = arg;
    struct standin s;
    struct guest_load l;

    vmm_check(v, &s, standin_open(&s, v->socket, "vm", RAM, run->nr_shards));
    load_init(&l, v, &s, 4711, run->nr_threads, run->content);
    load_sampler_start(&l);
    load_fill(&l);
    load_run(&l, run->pattern, run->milliseconds);
    load_verify(&l);
    atomic_store(&v->report->user[0], load_sampler_stop(&l));
    atomic_store(&v->report->user[1], atomic_load(&s.zaps));
    atomic_store(&v->report->user[2], atomic_load(&l.kept_pages));
    vmm_set_phase(v, 1);
    vmm_await_command(v, 1);
    if (standin_detach(&s) < 0) {
        vmm_fail(v, "detach failed: %s", s.error);
    }
}

/* Runs the whole of it, and gives the statistics from just before the end. */
static struct uffdmm_stats run_load(const struct run *run, const char *const *arguments,
                                    uint64_t *resident_max)
{
    struct manager m;
    struct vmm v;
    struct uffdmm_stats stats;

    manager_start(&m, "UFFDMM_MANAGER", arguments);
    vmm_start(&v, m.socket, run_body, run);
    vmm_await_phase(&v, 1, END_MS);
    assert_int_equal(control_stats(m.socket, "vm", &stats), 0);
    *resident_max = atomic_load(&v.report->user[0]);
    print_message(
        "steps=%llu faults=%llu evicted=%llu zero=%llu clean=%llu cancelled=%llu "
        "zaps=%llu kept=%llu resident_max=%llu KiB\n",
        (unsigned long long)atomic_load(&v.report->steps),
        (unsigned long long)stats.faults, (unsigned long long)stats.evicted,
        (unsigned long long)stats.evicted_zero, (unsigned long long)stats.evicted_clean,
        (unsigned long long)stats.evicted_cancelled,
        (unsigned long long)atomic_load(&v.report->user[1]),
        (unsigned long long)atomic_load(&v.report->user[2]),
        (unsigned long long)*resident_max / 1024);
    assert_int_equal(atomic_load(&v.report->wrong), 0);
    vmm_command(&v, 1);
    vmm_join(&v, END_MS);
    manager_stop(&m);
    return stats;
}

static void expect_overcommit(const struct run *run)
{
    uint64_t resident_max;
    struct uffdmm_stats stats = run_load(run, limited, &resident_max);

    assert_true(resident_max <= LIMIT + OVERSHOOT);
    assert_true(resident_max > LIMIT / 2); /* the limit is used, too */
    assert_true(stats.evicted >= (RAM - LIMIT - OVERSHOOT) / PAGE);
    assert_true(stats.faults_store > 0);
    assert_true(stats.evicted_zero > 0);
    assert_true(stats.store_write_bytes > 0);
    assert_int_equal(stats.store_errors, 0);
    assert_int_equal(stats.checksum_errors, 0);
    assert_int_equal(stats.lost_pages, 0);
}

static void random_touches_verify_under_the_limit(void **state)
{
    (void)state;
    expect_overcommit(&(struct run){1, LOAD_RANDOM, LOAD_MIXED, 3, 3000});
}

static void sequential_touches_verify_under_the_limit(void **state)
{
    (void)state;
    expect_overcommit(&(struct run){1, LOAD_SEQUENTIAL, LOAD_MIXED, 2, 3000});
}

static void several_shards_verify_under_the_limit(void **state)
{
    (void)state;
    expect_overcommit(&(struct run){3, LOAD_RANDOM, LOAD_MIXED, 4, 3000});
}

static void expect_discards(const struct run *run)
{
    uint64_t resident_max;
    struct uffdmm_stats stats = run_load(run, limited, &resident_max);

    assert_true(resident_max <= LIMIT + OVERSHOOT);
    assert_true(stats.evicted > 0);
    assert_true(stats.discarded > 0);
    assert_int_equal(stats.checksum_errors, 0);
    assert_int_equal(stats.lost_pages, 0);
}

static void discards_under_load_take_effect_or_leave_the_page_whole(void **state)
{
    (void)state;
    expect_discards(&(struct run){2, LOAD_DISCARD, LOAD_MIXED, 4, 4000});
}

static void discards_race_with_read_ahead_and_leave_the_page_whole(void **state)
{
    (void)state;
    expect_discards(&(struct run){1, LOAD_DISCARD_AHEAD, LOAD_MIXED, 2, 4000});
}

static void pages_of_one_word_take_no_slot(void **state)
{
    (void)state;
    uint64_t resident_max;
    struct uffdmm_stats stats = run_load(
        &(struct run){1, LOAD_RANDOM, LOAD_SAME, 2, 1000}, limited, &resident_max);

    assert_true(resident_max <= LIMIT + OVERSHOOT);
    assert_true(stats.evicted_zero >= (RAM - LIMIT - OVERSHOOT) / PAGE);
    assert_int_equal(stats.stored_bytes, 0);
    assert_int_equal(stats.store_write_bytes, 0);
    assert_true(stats.zero_bytes > 0);
}

/* The control of the tests above: with room for all, nothing is evicted. */
static void without_a_limit_nothing_is_evicted(void **state)
{
    (void)state;
    uint64_t resident_max;
    struct uffdmm_stats stats = run_load(
        &(struct run){1, LOAD_RANDOM, LOAD_MIXED, 2, 500}, unlimited, &resident_max);

    assert_int_equal(stats.evicted, 0);
    assert_int_equal(stats.store_write_bytes, 0);
    assert_int_equal(resident_max, RAM);
}

/* ---- hammering ---------------------------------------------------------------- */

/* *arg: once more, up to ROUNDS_MAX times, until something is lost. */
static void hammer_body(struct vmm *v, const void *arg)
{
    enum { ROUND_MS = 4000, ROUNDS_MAX = 6 };
    const bool *until_lost = arg;
    struct standin s;
    uint64_t lost;
    int rounds = 0;

    vmm_check(v, &s, standin_open(&s, v->socket, "vm", RAM, 2));
    do {
        lost = load_hammer(&s, RAM / PAGE / 2, 3, ROUND_MS, &v->report->steps);
    } while (*until_lost && lost == 0 && ++rounds < ROUNDS_MAX);
    atomic_store(&v->report->wrong, lost);
    vmm_set_phase(v, 1);
    vmm_await_command(v, 1);
}

static void hammer_run(const char *variable, bool until_lost, uint64_t *lost,
                       uint64_t *evicted)
{
    /* Half of RAM is hammered, and an eighth of it may stay. */
    static const char *const arguments[] = {"--limit", "8M", NULL};
    struct manager m;
    struct vmm v;
    struct uffdmm_stats stats;

    manager_start(&m, variable, arguments);
    vmm_start(&v, m.socket, hammer_body, &until_lost);
    vmm_await_phase(&v, 1, END_MS);
    assert_int_equal(control_stats(m.socket, "vm", &stats), 0);
    *lost = atomic_load(&v.report->wrong);
    *evicted = stats.evicted;
    print_message("updates=%llu evicted=%llu cancelled=%llu lost=%llu\n",
                  (unsigned long long)atomic_load(&v.report->steps),
                  (unsigned long long)stats.evicted,
                  (unsigned long long)stats.evicted_cancelled, (unsigned long long)*lost);
    vmm_command(&v, 1);
    vmm_join(&v, END_MS);
    manager_stop(&m);
}

static void hammered_pages_lose_no_update(void **state)
{
    uint64_t lost;
    uint64_t evicted;
    (void)state;

    hammer_run("UFFDMM_MANAGER", false, &lost, &evicted);
    assert_true(evicted > 1000);
    assert_int_equal(lost, 0);
}

/* The control: the same manager, built with the hook that leaves the protection out. */
static void hammered_pages_lose_updates_without_write_protection(void **state)
{
    uint64_t lost;
    uint64_t evicted;
    (void)state;

    setenv("UFFDMM_TEST_NO_WP", "1", 1);
    hammer_run("UFFDMM_MANAGER_HOOKS", true, &lost, &evicted);
    unsetenv("UFFDMM_TEST_NO_WP");
    assert_true(evicted > 1000);
    assert_true(lost > 0);
}

/* The manager that users install must not have the hook. */
static void installed_manager_ignores_the_hook(void **state)
{
    uint64_t lost;
    uint64_t evicted;
    (void)state;

    setenv("UFFDMM_TEST_NO_WP", "1", 1);
    hammer_run("UFFDMM_MANAGER", false, &lost, &evicted);
    unsetenv("UFFDMM_TEST_NO_WP");
    assert_int_equal(lost, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_touches_verify_under_the_limit),
        cmocka_unit_test(sequential_touches_verify_under_the_limit),
        cmocka_unit_test(several_shards_verify_under_the_limit),
        cmocka_unit_test(discards_under_load_take_effect_or_leave_the_page_whole),
        cmocka_unit_test(discards_race_with_read_ahead_and_leave_the_page_whole),
        cmocka_unit_test(pages_of_one_word_take_no_slot),
        cmocka_unit_test(without_a_limit_nothing_is_evicted),
        cmocka_unit_test(hammered_pages_lose_no_update),
        cmocka_unit_test(hammered_pages_lose_updates_without_write_protection),
        cmocka_unit_test(installed_manager_ignores_the_hook),
    };

    return cmocka_run_group_tests_name("overcommit", tests, end_process_when_hung, NULL);
}
