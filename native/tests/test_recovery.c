/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Workers that are killed at any moment, and others that take their place: the guest waits
 * meanwhile and never reads a wrong byte.
 *
 * With arguments it is a long run: number of kills, seed.
 */
#include "unit.h"

#include "hier.h"
#include "kill_loop.h"
#include "uffd_fixture.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { RAM_MIB = 48, BACK_MS = KILL_BACK_MS, EVERYDAY_KILLS = 12, CRASHES = 2 };

static unsigned kills_now = EVERYDAY_KILLS;

#define FILE_TIER "disk=file,path={store}"
#define POOL_TIER "ram=pool,capacity=12M"

static struct hier_options options_of(const char *first, const char *second)
{
    return (struct hier_options){
        .tiers = {first, second},
        .arguments = {"--limit", "16M", NULL},
        .ram = RAM_MIB * HIER_MIB,
        .seed = 7,
        .content = LOAD_VARIED,
        .resilient = true,
    };
}

static void run(const char *first, const char *second, enum load_pattern pattern)
{
    struct hier_options o = options_of(first, second);
    struct hier r;

    hier_start(&r, &o);
    kill_loop(&r, (unsigned)pattern, kills_now);
    hier_stop(&r);
}

static void killed_workers_lose_nothing_in_a_file(void **state)
{
    (void)state;
    run(FILE_TIER, NULL, LOAD_RANDOM);
}

static void killed_workers_lose_nothing_in_a_pool(void **state)
{
    (void)state;
    run("ram=pool", NULL, LOAD_RANDOM);
}

static void killed_workers_lose_nothing_in_pool_and_file(void **state)
{
    (void)state;
    run(POOL_TIER, FILE_TIER, LOAD_RANDOM);
}

static void killed_workers_lose_nothing_while_pages_are_given_back(void **state)
{
    (void)state;
    run(POOL_TIER, FILE_TIER, LOAD_DISCARD);
}

/* Who does not wake those whose messages the dead worker has read leaves them asleep. */
static void guest_sleeps_on_when_nobody_is_woken(void **state)
{
    struct hier_options o = options_of(FILE_TIER, NULL);
    struct hier r;
    bool stuck = false;
    pid_t worker = 0;
    (void)state;

    o.variable = "UFFDMM_MANAGER_HOOKS";
    setenv("UFFDMM_TEST_RECOVER_NO_WAKE", "1", 1);
    hier_start(&r, &o);
    unsetenv("UFFDMM_TEST_RECOVER_NO_WAKE");
    hier_do(&r, HIER_FILL, 0, 0);
    for (unsigned i = 0; !stuck && i < 20; i++) {
        worker = kill_worker_of(&r, worker);
        hier_begin(&r, HIER_RUN, LOAD_RANDOM, 150);
        usleep((useconds_t)(kill_random() % 100000));
        kill(worker, SIGKILL);
        int64_t deadline = monotonic_ms() + 3000;
        while (!hier_done(&r) && monotonic_ms() < deadline) {
            sleep_ms(5);
        }
        stuck = !hier_done(&r);
    }
    assert_true(stuck);
    hier_abandon(&r);
}

/* The guest stalls as long as there is no manager, and goes on with a new one. */
static void new_manager_takes_over_from_a_dead_one(void **state)
{
    struct hier_options o = options_of(POOL_TIER, FILE_TIER);
    char file[200];
    const char *arguments[] = {"--tier",  POOL_TIER, "--tier", file,
                               "--limit", "16M",     NULL};
    struct hier r;
    (void)state;

    hier_start(&r, &o);
    snprintf(file, sizeof(file), "disk=file,path=%s", r.manager.store);
    hier_do(&r, HIER_FILL, 0, 0);
    hier_set_limit(&r, 12 * HIER_MIB);
    pid_t worker = kill_worker_of(&r, 0);
    manager_kill(&r.manager);
    kill(worker, SIGKILL);
    assert_true(process_gone(worker, 5000));
    hier_begin(&r, HIER_VERIFY, 0, 0);
    hier_expect_stuck(&r, 500);
    manager_start_again(&r.manager, "UFFDMM_MANAGER", NULL, arguments);
    hier_await(&r, HIER_END_MS);
    hier_expect_sound(&r);
    assert_int_equal(hier_stats(&r).vm.limit_bytes, 12 * HIER_MIB); /* chosen: it stays */
    hier_stop(&r);
}

/* A manager without the tiers that pages are in says so, and changes nothing. */
static void manager_with_other_tiers_is_refused(void **state)
{
    struct hier_options o = options_of(POOL_TIER, FILE_TIER);
    char file[200];
    const char *swapped[] = {"--tier", file, "--tier", POOL_TIER, "--limit", "16M", NULL};
    const char *right[] = {"--tier", POOL_TIER, "--tier", file, "--limit", "16M", NULL};
    struct hier r;
    (void)state;

    hier_start(&r, &o);
    snprintf(file, sizeof(file), "disk=file,path=%s", r.manager.store);
    hier_do(&r, HIER_FILL, 0, 0);
    pid_t worker = kill_worker_of(&r, 0);
    manager_kill(&r.manager);
    kill(worker, SIGKILL);
    assert_true(process_gone(worker, 5000));
    manager_start_again(&r.manager, "UFFDMM_MANAGER", NULL, swapped);
    hier_begin(&r, HIER_VERIFY, 0, 0);
    assert_true(manager_logged(&r.manager, "has pages in tier 1 'ram'", 5000));
    hier_expect_stuck(&r, 500);
    manager_kill(&r.manager);
    manager_start_again(&r.manager, "UFFDMM_MANAGER", NULL, right);
    hier_await(&r, HIER_END_MS);
    hier_expect_sound(&r);
    hier_stop(&r);
}

/* A worker that dies between two steps whose order is a rule. */
static void dies_at(void **state)
{
    const char *point = *state;
    struct hier_options o = options_of(POOL_TIER, FILE_TIER);
    char file[64];
    struct hier r;
    bool recovering = strncmp(point, "recover", 7) == 0;

    snprintf(file, sizeof(file), "/var/tmp/uffdmm-crash-%d", (int)getpid());
    o.variable = "UFFDMM_MANAGER_HOOKS";
    o.arguments[2] = "--sandbox=off"; /* the hook removes a file */
    o.arguments[3] = NULL;
    setenv("UFFDMM_TEST_CRASH", point, 1);
    setenv("UFFDMM_TEST_CRASH_FILE", file, 1);
    hier_start(&r, &o);
    unsetenv("UFFDMM_TEST_CRASH");
    unsetenv("UFFDMM_TEST_CRASH_FILE");
    hier_do(&r, HIER_FILL, 0, 0);
    if (strncmp(point, "demote", 6) == 0) {
        hier_set_demote_after(&r, 400); /* stays in force from worker to worker */
    }
    for (unsigned i = 0; i < CRASHES; i++) {
        pid_t worker = kill_worker_of(&r, 0);
        int64_t deadline = monotonic_ms() + BACK_MS;

        close(open(file, O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
        hier_begin(&r, HIER_RUN, LOAD_RANDOM, 200);
        if (recovering) {
            sleep_ms(20);
            kill(worker, SIGKILL);
        }
        hier_await(&r, HIER_END_MS);
        while (access(file, F_OK) == 0 && monotonic_ms() < deadline) {
            hier_do(&r, HIER_RUN, LOAD_RANDOM, 100);
        }
        assert_int_not_equal(access(file, F_OK), 0); /* it has died there */
        kill_worker_of(&r, worker);
    }
    hier_do(&r, HIER_VERIFY, 0, 0);
    hier_expect_sound(&r);
    assert_true(hier_stats(&r).vm.recoveries >= CRASHES);
    hier_stop(&r);
}

#define DIES_AT(point)                                                      \
    {                                                                       \
        "killed_at_" point, dies_at, NULL, NULL, (void *)(uintptr_t)(point) \
    }

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(killed_workers_lose_nothing_in_a_file),
        cmocka_unit_test(killed_workers_lose_nothing_in_a_pool),
        cmocka_unit_test(killed_workers_lose_nothing_in_pool_and_file),
        cmocka_unit_test(killed_workers_lose_nothing_while_pages_are_given_back),
        cmocka_unit_test(new_manager_takes_over_from_a_dead_one),
        cmocka_unit_test(manager_with_other_tiers_is_refused),
        cmocka_unit_test(guest_sleeps_on_when_nobody_is_woken),
        DIES_AT("evict-claimed"),
        DIES_AT("evict-protected"),
        DIES_AT("evict-announced"),
        DIES_AT("evict-written"),
        DIES_AT("evict-published"),
        DIES_AT("evict-punched"),
        DIES_AT("fill-claimed"),
        DIES_AT("fill-marked"),
        DIES_AT("fill-copied"),
        DIES_AT("demote-written"),
        DIES_AT("demote-swapped"),
        DIES_AT("recover-planned"),
        DIES_AT("recover-applied"),
        DIES_AT("recover-resumed"),
    };

    if (argc > 1) {
        const struct CMUnitTest loop[] = {tests[0], tests[1], tests[2], tests[3]};

        kills_now = ((unsigned)strtoul(argv[1], NULL, 10) + 3) / 4;
        kill_seed(argc > 2 ? strtoull(argv[2], NULL, 10) : 1);
        return cmocka_run_group_tests_name("recovery", loop, end_process_when_hung, NULL);
    }
    return cmocka_run_group_tests_name("recovery", tests, end_process_when_hung, NULL);
}
