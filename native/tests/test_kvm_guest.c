/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The eviction race with a guest under /dev/kvm as the writer: its accesses come
 * through second-level page tables, which write protection has to reach too.
 */
#include "unit.h"

#include "kvm_guest.h"
#include "manager_process.h"
#include "race_evict.h"
#include "standin.h"
#include "uffd_fixture.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { NR_PAGES = 256, RACE_MS = 3000, FINISH_MS = 60000 };

struct outcome {
    uint64_t evictions;
    uint64_t lost;
    uint64_t passes;
};

static void skip_without_kvm(void)
{
    char why[256];

    if (!kvm_guest_usable(why, sizeof(why))) {
        print_message("skip: KVM is not usable here: %s\n", why);
        skip();
    }
}

/* Compares every counter where it is now: in memory or with the evictor. */
static uint64_t lost_at_the_end(const struct kvm_guest *g, const struct race_evictor *e)
{
    uint64_t lost = 0;

    for (uint32_t pfn = 0; pfn < NR_PAGES; pfn++) {
        uint64_t seen;
        if (e->out[pfn]) {
            memcpy(&seen, e->kept + (size_t)pfn * PAGE, sizeof(seen));
        } else {
            assert_int_equal(pread(e->memfd, &seen, sizeof(seen), (off_t)pfn * PAGE),
                             sizeof(seen));
        }
        lost += g->expected[pfn] - seen;
    }
    return lost;
}

static struct outcome race(bool protect)
{
    struct uffd_memory m;
    struct kvm_guest g;
    struct race_evictor e;
    char why[256] = "";

    uffd_memory_init(&m, NR_PAGES, 0);
    if (kvm_guest_init(&g, m.map, NR_PAGES, why, sizeof(why)) < 0) {
        fail_msg("%s", why);
    }
    assert_int_equal(
        race_evictor_init(&e, m.memfd, m.uffd, (uintptr_t)m.map, NR_PAGES, protect), 0);
    assert_int_equal(kvm_guest_start(&g), 0);

    int64_t deadline = monotonic_ms() + RACE_MS;
    while (!atomic_load(&g.ended)) {
        assert_int_equal(race_evictor_serve(&e), 0);
        if (monotonic_ms() < deadline) {
            assert_int_equal(race_evictor_evict(&e), 0);
        } else {
            g.control->stop = 1;
            assert_true(monotonic_ms() < deadline + FINISH_MS);
        }
    }
    assert_true(kvm_guest_join(&g, FINISH_MS));
    if (!kvm_guest_halted(&g)) {
        fail_msg("the guest ended with KVM exit %d", g.exit_reason);
    }
    struct outcome o = {
        .evictions = e.evictions,
        .lost = g.control->lost + lost_at_the_end(&g, &e),
        .passes = g.control->passes,
    };
    print_message("protect=%d evictions=%llu passes=%llu lost=%llu\n", protect,
                  (unsigned long long)o.evictions, (unsigned long long)o.passes,
                  (unsigned long long)o.lost);
    race_evictor_deinit(&e);
    kvm_guest_deinit(&g);
    uffd_memory_deinit(&m);
    return o;
}

static void guest_loses_nothing_with_write_protection(void **state)
{
    (void)state;
    skip_without_kvm();
    struct outcome o = race(true);

    assert_true(o.evictions > 100);
    assert_true(o.passes > 0);
    assert_int_equal(o.lost, 0);
}

static void guest_loses_updates_without_write_protection(void **state)
{
    (void)state;
    skip_without_kvm();
    struct outcome o = race(false);

    assert_true(o.evictions > 100);
    assert_true(o.lost > 0);
}

/* ---- the same guest on the real manager ------------------------------------- */

enum { MIB = 1 << 20, MANAGED = 16 * MIB, MANAGED_PAGES = MANAGED / PAGE };
enum { CONTROL_MS = 30000, END_MS = 120000 };

/* *arg: run on until something is lost, if that is what the test waits for. */
static void managed_body(struct vmm *v, const void *arg)
{
    const bool *until_lost = arg;
    struct standin s;
    struct kvm_guest g;
    char why[256] = "";

    vmm_check(v, &s, standin_open(&s, v->socket, "kvm", MANAGED, 2));
    if (kvm_guest_init(&g, s.base, MANAGED_PAGES, why, sizeof(why)) < 0) {
        vmm_fail(v, "%s", why);
    }
    VMM_EXPECT(v, kvm_guest_start(&g) == 0);
    int64_t begin = monotonic_ms();
    while (monotonic_ms() < begin + RACE_MS ||
           (*until_lost && g.control->lost == 0 && monotonic_ms() < begin + CONTROL_MS)) {
        sleep_ms(10);
    }
    g.control->stop = 1;
    VMM_EXPECT(v, kvm_guest_join(&g, FINISH_MS));
    VMM_EXPECT(v, kvm_guest_halted(&g));
    uint64_t lost = g.control->lost;
    for (size_t pfn = 0; pfn < MANAGED_PAGES; pfn++) {
        lost += g.expected[pfn] - *(volatile uint64_t *)(s.base + pfn * PAGE);
    }
    atomic_store(&v->report->wrong, lost);
    atomic_store(&v->report->steps, g.control->passes);
    vmm_set_phase(v, 1);
    vmm_await_command(v, 1);
}

static struct outcome managed_race(const char *variable, bool until_lost)
{
    static const char *const arguments[] = {"--limit", "8M", NULL};
    struct manager m;
    struct vmm v;
    struct uffdmm_stats stats;

    manager_start(&m, variable, arguments);
    vmm_start(&v, m.socket, managed_body, &until_lost);
    vmm_await_phase(&v, 1, END_MS);
    assert_int_equal(control_stats(m.socket, "kvm", &stats), 0);
    struct outcome o = {
        .evictions = stats.evicted,
        .lost = atomic_load(&v.report->wrong),
        .passes = atomic_load(&v.report->steps),
    };
    print_message("evictions=%llu cancelled=%llu passes=%llu lost=%llu\n",
                  (unsigned long long)o.evictions,
                  (unsigned long long)stats.evicted_cancelled,
                  (unsigned long long)o.passes, (unsigned long long)o.lost);
    assert_true(stats.resident_max_bytes <= 10 * MIB);
    vmm_command(&v, 1);
    vmm_join(&v, END_MS);
    manager_stop(&m);
    return o;
}

static void guest_on_the_manager_loses_nothing(void **state)
{
    (void)state;
    skip_without_kvm();
    struct outcome o = managed_race("UFFDMM_MANAGER", false);

    assert_true(o.evictions > 100);
    assert_true(o.passes > 0);
    assert_int_equal(o.lost, 0);
}

static void guest_on_the_manager_loses_updates_without_write_protection(void **state)
{
    (void)state;
    skip_without_kvm();
    setenv("UFFDMM_TEST_NO_WP", "1", 1);
    struct outcome o = managed_race("UFFDMM_MANAGER_HOOKS", true);
    unsetenv("UFFDMM_TEST_NO_WP");

    assert_true(o.evictions > 100);
    assert_true(o.lost > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(guest_loses_nothing_with_write_protection),
        cmocka_unit_test(guest_loses_updates_without_write_protection),
        cmocka_unit_test(guest_on_the_manager_loses_nothing),
        cmocka_unit_test(guest_on_the_manager_loses_updates_without_write_protection),
    };

    return cmocka_run_group_tests_name("kvm_guest", tests, end_process_when_hung, NULL);
}
