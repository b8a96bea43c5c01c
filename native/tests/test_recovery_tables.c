/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a new worker makes of the tables that are handed to it: of several regions, which come
 * back one after the other, and of those that cannot be right.
 */
#include "unit.h"

#include "hier.h"
#include "nbd_rig.h"
#include "uffd_fixture.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MIB = 1 << 20, RAM = 24 * MIB, END_MS = 60000, LATE_MS = 700, ROUNDS = 5 };

static pid_t worker_of(const struct manager *m, pid_t other, uint64_t nr_regions)
{
    int64_t deadline = monotonic_ms() + END_MS;
    struct uffdmm_stats st;

    while (control_stats(m->socket, "vm", &st) != 0 || st.nr_regions < nr_regions ||
           (pid_t)st.worker_pid == other) {
        if (monotonic_ms() > deadline) {
            manager_print_log(m);
            fail_msg("no worker has taken over");
        }
        sleep_ms(1);
    }
    return (pid_t)st.worker_pid;
}

/* ---- several regions ------------------------------------------------------- */

struct half {
    struct vmm *vmm;
    struct standin s;
    struct guest_load l;
};

static void *run_half(void *opaque)
{
    struct half *h = opaque;

    load_run(&h->l, LOAD_RANDOM, 250);
    return NULL;
}

/* Two regions; the second one takes its time to come back. */
static void two_regions_body(struct vmm *v, const void *arg)
{
    static struct half halves[2];
    (void)arg;

    for (unsigned i = 0; i < 2; i++) {
        struct half *h = &halves[i];

        vmm_check(v, &h->s, standin_open(&h->s, v->socket, "vm", RAM, 1));
        h->s.resilient = true;
        h->s.reconnect_after_ms = i ? LATE_MS : 0;
        load_init(&h->l, v, &h->s, 5 + i, 1, LOAD_INCOMPRESSIBLE);
        load_fill(&h->l);
    }
    for (uint32_t n = 1; n <= ROUNDS; n++) {
        pthread_t threads[2];

        vmm_set_phase(v, n);
        for (unsigned i = 0; i < 2; i++) {
            VMM_EXPECT(v, pthread_create(&threads[i], NULL, run_half, &halves[i]) == 0);
        }
        for (unsigned i = 0; i < 2; i++) {
            pthread_join(threads[i], NULL);
        }
        vmm_await_command(v, n);
    }
    for (unsigned i = 0; i < 2; i++) {
        load_verify(&halves[i].l);
    }
    vmm_set_phase(v, ROUNDS + 1);
    vmm_await_command(v, ROUNDS + 1);
    for (unsigned i = 0; i < 2; i++) {
        vmm_check(v, &halves[i].s, standin_detach(&halves[i].s));
    }
}

static const char *const limited[] = {"--limit", "12M", NULL};

static void regions_come_back(const char *tier)
{
    const char *const tiers[] = {tier, NULL};
    struct manager m;
    struct vmm v;
    struct uffdmm_stats st;
    pid_t worker = 0;

    manager_start_tiers(&m, "UFFDMM_MANAGER", tiers, limited);
    vmm_start(&v, m.socket, two_regions_body, NULL);
    for (uint32_t n = 1; n <= ROUNDS; n++) {
        vmm_await_phase(&v, n, END_MS);
        worker = worker_of(&m, worker, 2);
        sleep_ms(60);
        kill(worker, SIGKILL);
        worker_of(&m, worker, 1);
        assert_int_equal(control_stats(m.socket, "vm", &st), 0);
        assert_true(st.nr_regions == 2 || st.quarantined > 0);
        worker_of(&m, worker, 2);
        vmm_command(&v, n);
    }
    vmm_await_phase(&v, ROUNDS + 1, END_MS);
    assert_int_equal(control_stats(m.socket, "vm", &st), 0);
    assert_int_equal(st.checksum_errors, 0);
    assert_int_equal(st.lost_pages, 0);
    assert_int_equal(st.quarantined, 0);
    assert_int_equal(st.recoveries, ROUNDS);
    assert_false(manager_logged(&m, "is damaged", 0));
    vmm_command(&v, ROUNDS + 1);
    vmm_join(&v, END_MS);
    manager_stop(&m);
}

static void regions_come_back_one_by_one(void **state)
{
    (void)state;
    regions_come_back("disk=file,path={store}");
}

static void regions_come_back_one_by_one_from_an_export(void **state)
{
    struct nbd_rig s;
    char tier[256];
    (void)state;

    rig_need("nbdkit");
    /* room enough for what each dead worker may have been writing */
    rig_init(&s, 4 * RAM);
    rig_serve_file(&s);
    snprintf(tier, sizeof(tier), "net=nbd,uri=nbd+unix:///?socket=%s", s.socket);
    regions_come_back(tier);
    rig_deinit(&s);
}

/* A worker that hands out slots before all regions are back gives away somebody's pages. */
static void slots_handed_out_early_are_somebodys(void **state)
{
    struct manager m;
    struct vmm v;
    bool harm;
    (void)state;

    setenv("UFFDMM_TEST_RECOVER_SETTLE_EARLY", "1", 1);
    manager_start(&m, "UFFDMM_MANAGER_HOOKS", limited);
    unsetenv("UFFDMM_TEST_RECOVER_SETTLE_EARLY");
    vmm_start(&v, m.socket, two_regions_body, NULL);
    vmm_await_phase(&v, 1, END_MS);
    pid_t worker = worker_of(&m, 0, 2);
    sleep_ms(60);
    kill(worker, SIGKILL);
    /* it notices, which is the next protection: the late region is refused */
    harm = manager_logged(&m, "cannot be taken over any more", 5000);
    assert_true(harm);
    vmm_kill(&v);
    manager_kill(&m);
    manager_remove(&m);
}

/* ---- hostile tables -------------------------------------------------------- */

enum forgery {
    BAD_TIER,
    BAD_SLOT,
    SLOT_TWICE,
    BAD_STATE,
    BAD_HEADER,
    HALF_INSTALLED, /* not forged: a worker died while it put locations in place */
    FORGERIES
};

static const char *const said_of[FORGERIES] = {
    [BAD_TIER] = "is damaged",     [BAD_SLOT] = "is damaged",
    [SLOT_TWICE] = "is damaged",   [BAD_STATE] = "is damaged",
    [BAD_HEADER] = "does not fit", [HALF_INSTALLED] = "that a migration had brought",
};

/* In the stand-in, which has no manager now. */
static void forge(struct vmm *v, struct guest_load *l, uint64_t kind, uint64_t undo)
{
    static uint64_t victim, was;
    struct standin *s = l->standin;
    const uint64_t slot_mask = ~((1ULL << UFFDMM_ENTRY_SLOT_SHIFT) - 1);
    uint64_t other = 0, pages = s->size / PAGE;

    if (undo) {
        atomic_store(&s->entries[victim], was);
        s->table->nr_pages = pages;
        /* one that waits for a migration is taken over like any other */
        s->table->region_state = UFFDMM_REGION_INCOMING;
        return;
    }
    for (uint64_t pfn = 0; pfn < pages; pfn++) {
        if (standin_page_state(s, pfn) == UFFDMM_PAGE_STORED &&
            standin_page_tier(s, pfn) != UFFDMM_TIER_ZERO) {
            other = victim;
            victim = pfn;
        }
    }
    VMM_EXPECT(v, other && victim);
    was = atomic_load(&s->entries[victim]);
    switch ((enum forgery)kind) {
    case BAD_TIER:
        atomic_store(&s->entries[victim], (was & ~(0xfULL << UFFDMM_ENTRY_TIER_SHIFT)) |
                                              5ULL << UFFDMM_ENTRY_TIER_SHIFT);
        break;
    case BAD_SLOT:
        atomic_store(&s->entries[victim],
                     (was & ~slot_mask) | 0xffffff0ULL << UFFDMM_ENTRY_SLOT_SHIFT);
        break;
    case SLOT_TWICE:
        atomic_store(&s->entries[victim],
                     (was & ~slot_mask) | (atomic_load(&s->entries[other]) & slot_mask));
        break;
    case BAD_STATE:
        atomic_store(&s->entries[victim], (was & ~0xfULL) | 12);
        break;
    case HALF_INSTALLED:
        s->table->region_state = UFFDMM_REGION_INSTALLING;
        break;
    case BAD_HEADER:
    default:
        s->table->nr_pages = pages * 2;
    }
}

static void refuse_forgeries(const char *tier)
{
    struct hier_options o = {
        .tiers = {tier},
        .arguments = {"--limit", "8M", NULL},
        .ram = RAM,
        .seed = 3,
        .content = LOAD_COMPRESSIBLE,
        .resilient = true,
        .extra = forge,
    };
    char file[200];
    const char *arguments[] = {"--tier", file, "--limit", "8M", NULL};
    struct hier r;

    hier_start(&r, &o);
    if (strstr(tier, "{store}")) {
        snprintf(file, sizeof(file), "disk=file,path=%s", r.manager.store);
    } else {
        snprintf(file, sizeof(file), "%s", tier);
    }
    hier_do(&r, HIER_FILL, 0, 0);
    for (uint64_t kind = 0; kind < FORGERIES; kind++) {
        pid_t worker = worker_of(&r.manager, 0, 1);

        manager_kill(&r.manager);
        kill(worker, SIGKILL);
        assert_true(process_gone(worker, 5000));
        hier_do(&r, HIER_EXTRA, kind, 0);
        unlink(r.manager.log);
        manager_start_again(&r.manager, "UFFDMM_MANAGER", NULL, arguments);
        assert_true(manager_logged(&r.manager, said_of[kind], 5000));
        struct uffdmm_stats st;
        assert_true(control_stats(r.manager.socket, "vm", &st) != 0 || !st.nr_regions);
        /* nothing was harmed by it */
        hier_do(&r, HIER_EXTRA, kind, 1);
        hier_do(&r, HIER_VERIFY, 0, 0);
        hier_expect_sound(&r);
    }
    hier_stop(&r);
}

static void forged_tables_are_refused_with_a_file(void **state)
{
    (void)state;
    refuse_forgeries("disk=file,path={store}");
}

static void forged_tables_are_refused_with_a_pool(void **state)
{
    (void)state;
    refuse_forgeries("ram=pool");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(regions_come_back_one_by_one),
        cmocka_unit_test(regions_come_back_one_by_one_from_an_export),
        cmocka_unit_test(slots_handed_out_early_are_somebodys),
        cmocka_unit_test(forged_tables_are_refused_with_a_file),
        cmocka_unit_test(forged_tables_are_refused_with_a_pool),
    };

    return cmocka_run_group_tests_name("recovery_tables", tests, end_process_when_hung,
                                       NULL);
}
