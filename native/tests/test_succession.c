/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A manager that is replaced while guests run: its workers make way for those of its
 * successor, if that has the same tiers, and the guest works on meanwhile.
 */
#include "unit.h"

#include "hier.h"
#include "uffd_fixture.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { RAM_MIB = 48, BACK_MS = 20000, ROUNDS = 3 };

#define FILE_TIER "disk=file,path={store}"
#define POOL_TIER "ram=pool,capacity=12M"

static const struct hier_options options = {
    .tiers = {POOL_TIER, FILE_TIER},
    .arguments = {"--limit", "16M", NULL},
    .ram = RAM_MIB * HIER_MIB,
    .seed = 11,
    .content = LOAD_VARIED,
    .resilient = true,
};

/* Process of the worker that the manager knows, when it is not @other; 0: none in time. */
static pid_t worker_of(const struct hier *r, pid_t other, int timeout_ms)
{
    int64_t deadline = monotonic_ms() + timeout_ms;
    struct uffdmm_stats st;

    do {
        if (control_stats(r->manager.socket, "vm", &st) == 0 && st.nr_regions &&
            (pid_t)st.worker_pid != other) {
            return (pid_t)st.worker_pid;
        }
        sleep_ms(20);
    } while (monotonic_ms() < deadline);
    return 0;
}

/* Another manager on the socket, with these tiers in this order. */
static void replace(struct hier *r, const char *first, const char *second, bool killed)
{
    const char *arguments[] = {"--tier", first, "--tier", second, "--limit", "16M", NULL};

    if (killed) {
        manager_kill(&r->manager);
    } else {
        manager_terminate(&r->manager);
    }
    manager_start_again(&r->manager, "UFFDMM_MANAGER", NULL, arguments);
}

static void make_way(const char *how)
{
    struct hier_options o = options;
    char shared[64], file[200];
    struct hier r;

    snprintf(shared, sizeof(shared), "disk=file,path={store}%s", how);
    o.tiers[1] = shared;
    hier_start(&r, &o);
    snprintf(file, sizeof(file), "disk=file,path=%s%s", r.manager.store, how);
    hier_do(&r, HIER_FILL, 0, 0);
    hier_set_limit(&r, 12 * HIER_MIB);
    pid_t worker = worker_of(&r, 0, BACK_MS);
    for (unsigned i = 0; i < ROUNDS; i++) {
        hier_begin(&r, HIER_RUN, LOAD_RANDOM, 3000);
        replace(&r, POOL_TIER, file, i % 2);
        pid_t next = worker_of(&r, worker, BACK_MS);
        assert_true(next);
        assert_true(process_gone(worker, 5000));
        worker = next;
        hier_await(&r, HIER_END_MS);
        hier_do(&r, HIER_VERIFY, 0, 0);
    }
    struct peer_stats s = hier_stats(&r);
    assert_int_equal(s.vm.recoveries, ROUNDS);
    assert_int_equal(s.vm.limit_bytes, 12 * HIER_MIB);
    assert_true(manager_logged(&r.manager, "a new manager is there", 0));
    hier_expect_sound(&r);
    hier_stop(&r);
}

static void workers_make_way_for_a_new_manager(void **state)
{
    (void)state;
    make_way("");
}

static void workers_make_way_with_pages_in_a_shared_directory(void **state)
{
    (void)state;
    make_way(",shared=on");
}

/* It could not read the pages: the guest would wait for nothing. */
static void workers_stay_when_the_new_manager_has_other_tiers(void **state)
{
    char file[200];
    struct hier r;
    (void)state;

    hier_start(&r, &options);
    snprintf(file, sizeof(file), "disk=file,path=%s", r.manager.store);
    hier_do(&r, HIER_FILL, 0, 0);
    pid_t worker = worker_of(&r, 0, BACK_MS);
    replace(&r, file, POOL_TIER, false);
    assert_true(manager_logged(&r.manager, "has other tiers than this worker", BACK_MS));
    hier_do(&r, HIER_RUN, LOAD_RANDOM, 2500);
    hier_do(&r, HIER_VERIFY, 0, 0);
    assert_false(process_gone(worker, 0));
    /* the right one is still welcome */
    replace(&r, POOL_TIER, file, false);
    assert_true(worker_of(&r, worker, BACK_MS));
    hier_do(&r, HIER_VERIFY, 0, 0);
    hier_expect_sound(&r);
    hier_stop(&r);
}

static void workers_stay_while_there_is_no_new_manager(void **state)
{
    char file[200];
    struct hier r;
    (void)state;

    hier_start(&r, &options);
    snprintf(file, sizeof(file), "disk=file,path=%s", r.manager.store);
    hier_do(&r, HIER_FILL, 0, 0);
    pid_t worker = worker_of(&r, 0, BACK_MS);
    manager_kill(&r.manager);
    hier_do(&r, HIER_RUN, LOAD_RANDOM, 3000);
    assert_false(process_gone(worker, 0));
    const char *arguments[] = {"--tier",  POOL_TIER, "--tier", file,
                               "--limit", "16M",     NULL};
    manager_start_again(&r.manager, "UFFDMM_MANAGER", NULL, arguments);
    assert_true(worker_of(&r, worker, BACK_MS));
    hier_do(&r, HIER_VERIFY, 0, 0);
    hier_expect_sound(&r);
    hier_stop(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(workers_make_way_for_a_new_manager),
        cmocka_unit_test(workers_make_way_with_pages_in_a_shared_directory),
        cmocka_unit_test(workers_stay_when_the_new_manager_has_other_tiers),
        cmocka_unit_test(workers_stay_while_there_is_no_new_manager),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
