/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The real manager over the life of a VM: several regions, regions that come and
 * go, policy changed while the guest runs, an idle guest.
 */
#include "unit.h"

#include "guest_load.h"
#include "manager_process.h"
#include "standin.h"
#include "uffd_fixture.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { MIB = 1 << 20, RAM = 32 * MIB, OVERSHOOT = 2 * MIB, END_MS = 120000 };

/* limit NULL: none. */
static void start_with_limit(struct manager *m, const char *limit)
{
    const char *const arguments[] = {limit ? "--limit" : NULL, limit, NULL};

    manager_start(m, "UFFDMM_MANAGER", arguments);
}

static struct uffdmm_stats stats_of(const struct manager *m)
{
    struct uffdmm_stats stats;

    assert_int_equal(control_stats(m->socket, "vm", &stats), 0);
    return stats;
}

/* ---- two regions ---------------------------------------------------------- */

struct region_thread {
    struct vmm *vmm;
    struct standin *standin;
    uint64_t seed;
    pthread_t thread;
};

static void *run_region(void *opaque)
{
    struct region_thread *t = opaque;
    struct guest_load l;

    load_init(&l, t->vmm, t->standin, t->seed, 2, LOAD_MIXED);
    load_fill(&l);
    load_run(&l, LOAD_RANDOM, 2000);
    load_verify(&l);
    return NULL;
}

static void two_regions_body(struct vmm *v, const void *arg)
{
    struct standin regions[2];
    struct region_thread threads[2];
    (void)arg;

    for (int i = 0; i < 2; i++) {
        vmm_check(v, &regions[i], standin_open(&regions[i], v->socket, "vm", RAM, 1));
    }
    if (regions[0].id == regions[1].id) {
        vmm_fail(v, "both regions have the id %u", regions[0].id);
    }
    for (int i = 0; i < 2; i++) {
        threads[i] = (struct region_thread){v, &regions[i], 100 + (uint64_t)i, 0};
        pthread_create(&threads[i].thread, NULL, run_region, &threads[i]);
    }
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i].thread, NULL);
    }
    vmm_set_phase(v, 1);
    vmm_await_command(v, 1);
    for (int i = 0; i < 2; i++) {
        if (standin_detach(&regions[i]) < 0) {
            vmm_fail(v, "detach of region %d failed: %s", i, regions[i].error);
        }
    }
}

static void two_regions_share_one_worker_and_one_limit(void **state)
{
    struct manager m;
    struct vmm v;
    struct uffdmm_list_entry entries[4];
    (void)state;

    start_with_limit(&m, "16M");
    vmm_start(&v, m.socket, two_regions_body, NULL);
    vmm_await_phase(&v, 1, END_MS);
    assert_int_equal(control_list(m.socket, entries, 4), 1);
    assert_string_equal(entries[0].vm_name, "vm");
    assert_int_equal(entries[0].qemu_pid, v.pid);
    struct uffdmm_stats stats = stats_of(&m);
    assert_int_equal(stats.nr_regions, 2);
    assert_int_equal(stats.ram_bytes, 2 * RAM);
    assert_int_equal(stats.worker_pid, entries[0].worker_pid);
    assert_true(stats.resident_max_bytes <= 16 * MIB + OVERSHOOT);
    assert_true(stats.evicted > 0);
    vmm_command(&v, 1);
    vmm_join(&v, END_MS);
    manager_stop(&m);
}

/* ---- detach and create again ---------------------------------------------- */

static void expect_zeros(struct vmm *v, const struct standin *s)
{
    static const uint8_t zeros[PAGE];

    for (uint64_t pfn = 0; pfn < s->size / PAGE; pfn++) {
        if (memcmp(s->base + pfn * PAGE, zeros, PAGE) != 0) {
            vmm_fail(v, "page %llu of the new region %u is not zero",
                     (unsigned long long)pfn, s->id);
        }
    }
}

/* A first region stays, so that the worker does too. */
static void hotplug_body(struct vmm *v, const void *arg)
{
    struct standin kept;
    struct guest_load kept_load;
    (void)arg;

    vmm_check(v, &kept, standin_open(&kept, v->socket, "vm", RAM, 1));
    load_init(&kept_load, v, &kept, 1, 1, LOAD_MIXED);
    load_fill(&kept_load);
    for (uint32_t round = 1; round <= 4; round++) {
        struct standin s;
        struct guest_load l;
        vmm_check(v, &s, standin_open(&s, v->socket, "vm", RAM, 1 + round % 2));
        expect_zeros(v, &s);
        load_init(&l, v, &s, round, 2, LOAD_MIXED);
        load_fill(&l);
        load_verify(&l);
        if (standin_detach(&s) < 0) {
            vmm_fail(v, "detach in round %u failed: %s", round, s.error);
        }
    }
    load_verify(&kept_load);
    vmm_set_phase(v, 1);
    vmm_await_command(v, 1);
}

static void regions_come_and_go_and_free_their_slots(void **state)
{
    struct manager m;
    struct vmm v;
    (void)state;

    start_with_limit(&m, "16M");
    vmm_start(&v, m.socket, hotplug_body, NULL);
    vmm_await_phase(&v, 1, END_MS);
    struct uffdmm_stats stats = stats_of(&m);
    assert_int_equal(stats.nr_regions, 1);
    assert_int_equal(stats.ram_bytes, RAM);
    /* What is left can only belong to the region that stayed. */
    assert_true(stats.slots_used <= RAM / PAGE);
    assert_true(stats.stored_bytes <= RAM);
    vmm_command(&v, 1);
    vmm_join(&v, END_MS);
    manager_stop(&m);
}

/* ---- policy --------------------------------------------------------------- */

static void endless_body(struct vmm *v, const void *arg)
{
    struct standin s;
    struct guest_load l;
    (void)arg;

    vmm_check(v, &s, standin_open(&s, v->socket, "vm", RAM, 1));
    load_init(&l, v, &s, 5, 2, LOAD_MIXED);
    load_fill(&l);
    vmm_set_phase(v, 1);
    while (atomic_load(&v->report->command) < 1) {
        load_run(&l, LOAD_RANDOM, 100);
        atomic_store(&v->report->user[0], load_resident(&s));
    }
    load_verify(&l);
}

static struct uffdmm_policy set_limit(const struct manager *m, uint64_t bytes)
{
    struct uffdmm_policy policy = {.fields = UFFDMM_POLICY_LIMIT, .limit_bytes = bytes};
    char err[UFFDMM_TEXT_MAX] = "";

    if (control_set_policy(m->socket, "vm", &policy, err) < 0) {
        fail_msg("%s", err);
    }
    return policy;
}

static bool resident_gets_to(const struct manager *m, uint64_t at_most, uint64_t at_least)
{
    int64_t deadline = monotonic_ms() + 20000;

    while (monotonic_ms() < deadline) {
        struct uffdmm_stats stats = stats_of(m);
        if (stats.resident_bytes <= at_most && stats.resident_bytes >= at_least) {
            return true;
        }
        sleep_ms(20);
    }
    return false;
}

static void limit_goes_down_and_up_while_the_guest_runs(void **state)
{
    struct manager m;
    struct vmm v;
    (void)state;

    start_with_limit(&m, NULL);
    vmm_start(&v, m.socket, endless_body, NULL);
    vmm_await_phase(&v, 1, END_MS);
    assert_true(resident_gets_to(&m, RAM, RAM));

    struct uffdmm_policy policy = set_limit(&m, 8 * MIB);
    assert_int_equal(policy.limit_bytes, 8 * MIB);
    assert_true(resident_gets_to(&m, 8 * MIB, 0));
    assert_int_equal(stats_of(&m).limit_bytes, 8 * MIB);

    set_limit(&m, 0); /* none */
    assert_true(resident_gets_to(&m, RAM, 24 * MIB));
    set_limit(&m, 12 * MIB);
    assert_true(resident_gets_to(&m, 12 * MIB, 0));
    vmm_command(&v, 1);
    vmm_join(&v, END_MS);
    manager_stop(&m);
}

static void readahead_changes_and_the_limit_stays(void **state)
{
    struct manager m;
    struct vmm v;
    struct uffdmm_policy policy = {.fields = UFFDMM_POLICY_READAHEAD,
                                   .readahead_pages = 4};
    (void)state;

    start_with_limit(&m, "16M");
    vmm_start(&v, m.socket, endless_body, NULL);
    vmm_await_phase(&v, 1, END_MS);
    assert_int_equal(control_set_policy(m.socket, "vm", &policy, NULL), 0);
    assert_int_equal(policy.readahead_pages, 4);
    assert_int_equal(policy.limit_bytes, 16 * MIB);
    struct uffdmm_stats stats = stats_of(&m);
    assert_int_equal(stats.readahead_pages, 4);
    assert_int_equal(stats.limit_bytes, 16 * MIB);
    vmm_command(&v, 1);
    vmm_join(&v, END_MS);
    manager_stop(&m);
}

static void policy_out_of_range_is_refused_and_changes_nothing(void **state)
{
    static const struct uffdmm_policy bad[] = {
        {.fields = UFFDMM_POLICY_READAHEAD, .readahead_pages = 0},
        {.fields = UFFDMM_POLICY_READAHEAD, .readahead_pages = 65},
        {.fields = UFFDMM_POLICY_LIMIT, .limit_bytes = PAGE},
        {.fields = 0, .limit_bytes = 16 * MIB},
        {.fields = 4, .limit_bytes = 16 * MIB, .readahead_pages = 8},
        {.fields = 0x80000000u | UFFDMM_POLICY_LIMIT, .limit_bytes = 16 * MIB},
    };
    struct manager m;
    struct vmm v;
    (void)state;

    start_with_limit(&m, "16M");
    vmm_start(&v, m.socket, endless_body, NULL);
    vmm_await_phase(&v, 1, END_MS);
    struct uffdmm_stats before = stats_of(&m);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct uffdmm_policy policy = bad[i];
        char err[UFFDMM_TEXT_MAX] = "";
        int ret = control_set_policy(m.socket, "vm", &policy, err);
        if (ret >= 0 || err[0] == '\0') {
            fail_msg("policy %zu: status %d, sentence '%s'", i, ret, err);
        }
    }
    struct uffdmm_stats after = stats_of(&m);
    assert_int_equal(after.limit_bytes, before.limit_bytes);
    assert_int_equal(after.readahead_pages, before.readahead_pages);
    vmm_command(&v, 1);
    vmm_join(&v, END_MS);
    manager_stop(&m);
}

/* ---- statistics ----------------------------------------------------------- */

static void statistics_add_up(void **state)
{
    struct manager m;
    struct vmm v;
    uint64_t histogram = 0;
    (void)state;

    start_with_limit(&m, "16M");
    vmm_start(&v, m.socket, endless_body, NULL);
    vmm_await_phase(&v, 1, END_MS);
    struct uffdmm_stats first = stats_of(&m);
    sleep_ms(1500);
    struct uffdmm_stats s = stats_of(&m);
    assert_int_equal(s.magic, UFFDMM_STATS_MAGIC);
    assert_int_equal(s.version, UFFDMM_STATS_VERSION);
    assert_string_equal(s.vm_name, "vm");
    assert_int_equal(s.qemu_pid, v.pid);
    assert_int_equal(s.state, UFFDMM_WORKER_RUNNING);
    assert_true(s.heartbeat_ns > first.heartbeat_ns);
    assert_true(s.faults > first.faults);
    assert_true(s.evicted > first.evicted);
    assert_true(s.faults >= s.faults_zero + s.faults_store + s.faults_wp);
    assert_true(s.slots_used <= s.slots_total);
    assert_true(s.stored_bytes <= s.slots_used * PAGE + 256 * PAGE); /* not one instant */
    assert_true(s.resident_bytes <= s.resident_max_bytes);
    assert_true(s.table_bytes >= RAM / PAGE * 8);
    assert_true(s.worker_rss_bytes > MIB);
    /*
     * A page is in memory, stored, one repeated word, empty, or on its way: the
     * parts cannot exceed RAM by more than what moves while they are read.
     */
    assert_true(s.resident_bytes + s.stored_bytes + s.zero_bytes <= RAM + 4 * MIB);
    for (int b = 0; b < UFFDMM_HIST_BUCKETS; b++) {
        histogram += s.fault_hist[b];
    }
    assert_true(histogram > 0);
    assert_true(histogram <= s.faults + 64);
    vmm_command(&v, 1);
    vmm_join(&v, END_MS);
    manager_stop(&m);
}

/* ---- idle ----------------------------------------------------------------- */

static void idle_body(struct vmm *v, const void *arg)
{
    struct standin s;
    struct guest_load l;
    (void)arg;

    vmm_check(v, &s, standin_open(&s, v->socket, "vm", RAM, 1));
    load_init(&l, v, &s, 5, 1, LOAD_MIXED);
    load_fill(&l);
    vmm_set_phase(v, 1);
    vmm_await_command(v, 1);
}

/* User and system time of a process, in clock ticks. */
static long cpu_ticks(uint32_t pid)
{
    char path[64];
    long user = -1;
    long system = -1;

    snprintf(path, sizeof(path), "/proc/%u/stat", pid);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    int got =
        fscanf(f, "%*d (%*[^)]) %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %ld %ld",
               &user, &system);
    fclose(f);
    assert_int_equal(got, 2);
    return user + system;
}

static void idle_guest_costs_no_cpu(void **state)
{
    enum { SECONDS = 4 };
    struct manager m;
    struct vmm v;
    (void)state;

    start_with_limit(&m, NULL);
    vmm_start(&v, m.socket, idle_body, NULL);
    vmm_await_phase(&v, 1, END_MS);
    sleep_ms(1000);
    uint32_t worker = stats_of(&m).worker_pid;
    long before = cpu_ticks(worker);
    sleep_ms(SECONDS * 1000);
    long used = cpu_ticks(worker) - before;
    print_message("worker used %ld ticks of %ld\n", used, SECONDS * sysconf(_SC_CLK_TCK));
    /* 1 %, and one tick because that is how coarse the clock is. */
    assert_true(used * 100 <= SECONDS * sysconf(_SC_CLK_TCK) + 100);
    vmm_command(&v, 1);
    vmm_join(&v, END_MS);
    manager_stop(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(two_regions_share_one_worker_and_one_limit),
        cmocka_unit_test(regions_come_and_go_and_free_their_slots),
        cmocka_unit_test(limit_goes_down_and_up_while_the_guest_runs),
        cmocka_unit_test(readahead_changes_and_the_limit_stays),
        cmocka_unit_test(policy_out_of_range_is_refused_and_changes_nothing),
        cmocka_unit_test(statistics_add_up),
        cmocka_unit_test(idle_guest_costs_no_cpu),
    };

    return cmocka_run_group_tests_name("regions", tests, end_process_when_hung, NULL);
}
