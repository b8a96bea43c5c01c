/* SPDX-License-Identifier: GPL-2.0-or-later */
/* See hier.h.  Words shared with the stand-in: report->user, by the names below. */
#include "unit.h"

#include "hier.h"
#include "uffd_fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum user_word {
    USER_COMMAND,
    USER_A,
    USER_B,
    USER_RESIDENT,
    USER_TOTAL,
    USER_KEPT,
    USER_RESULT
};

/* ---- in the stand-in's process -------------------------------------------- */

static void publish(struct vmm *v, const struct guest_load *l)
{
    atomic_store(&v->report->user[USER_RESIDENT], atomic_load(&l->resident_max));
    atomic_store(&v->report->user[USER_TOTAL], atomic_load(&l->total_max));
    atomic_store(&v->report->user[USER_KEPT], atomic_load(&l->kept_pages));
}

/* Carries out one command; false after the last one. */
static bool obey(struct vmm *v, const struct hier_options *o, struct guest_load *l)
{
    uint64_t a = atomic_load(&v->report->user[USER_A]);
    uint64_t b = atomic_load(&v->report->user[USER_B]);

    switch (atomic_load(&v->report->user[USER_COMMAND])) {
    case HIER_FILL:
        load_fill(l);
        break;
    case HIER_RUN:
        load_run(l, (enum load_pattern)a, (int)b);
        break;
    case HIER_VERIFY:
        load_verify(l);
        break;
    case HIER_VERIFY_PART:
        for (uint64_t pfn = a; pfn < a + b; pfn++) {
            load_verify_page(l, pfn);
        }
        break;
    case HIER_DISCARD_ALL:
        load_discard(l, 0, l->nr_pages);
        break;
    case HIER_EXTRA:
        o->extra(v, l, a, b);
        break;
    case HIER_DETACH:
        load_sampler_stop(l);
        vmm_check(v, l->standin, standin_detach(l->standin));
        return false;
    default:
        vmm_fail(v, "command %llu is unknown",
                 (unsigned long long)atomic_load(&v->report->user[USER_COMMAND]));
    }
    return true;
}

void hier_report(struct vmm *v, unsigned i, uint64_t value)
{
    atomic_store(&v->report->user[USER_RESULT + i], value);
}

static void guest_body(struct vmm *v, const void *arg)
{
    const struct hier_options *o = arg;
    struct standin s;
    struct guest_load l;
    bool more = true;

    vmm_check(v, &s,
              standin_open_pages(&s, v->socket, "vm", o->ram,
                                 o->page_size ? o->page_size : PAGE,
                                 o->nr_shards ? o->nr_shards : 1));
    s.impatient = o->impatient;
    s.resilient = o->resilient;
    load_init(&l, v, &s, o->seed, o->nr_threads ? o->nr_threads : 2, o->content);
    load_sampler_start(&l);
    vmm_set_phase(v, 1);
    for (uint32_t n = 1; more; n++) {
        vmm_await_command(v, n);
        more = obey(v, o, &l);
        publish(v, &l);
        vmm_set_phase(v, n + 1);
    }
}

/* ---- in the test ------------------------------------------------------------ */

void hier_start(struct hier *r, const struct hier_options *o)
{
    *r = (struct hier){.options = o};
    manager_start_tiers(&r->manager, o->variable ? o->variable : "UFFDMM_MANAGER",
                        o->tiers, o->arguments);
    vmm_start(&r->vmm, r->manager.socket, guest_body, o);
    vmm_await_phase(&r->vmm, 1, HIER_END_MS);
}

void hier_begin(struct hier *r, enum hier_command command, uint64_t a, uint64_t b)
{
    struct vmm_report *report = r->vmm.report;

    atomic_store(&report->user[USER_COMMAND], command);
    atomic_store(&report->user[USER_A], a);
    atomic_store(&report->user[USER_B], b);
    r->last_steps = atomic_load(&report->steps);
    r->last_look_ms = r->last_progress_ms = monotonic_ms();
    r->awaited_ms = 0;
    vmm_command(&r->vmm, ++r->commands);
}

static void note_progress(struct hier *r)
{
    enum { STOOD_STILL_MS = 500 };
    uint64_t steps = atomic_load(&r->vmm.report->steps);
    int64_t now = monotonic_ms();
    int64_t elapsed = now - r->last_look_ms;

    /* a virtual machine may be stopped for a minute: nobody's progress suffers from that */
    if (elapsed > STOOD_STILL_MS) {
        r->last_progress_ms += elapsed;
    } else {
        r->awaited_ms += elapsed;
    }
    r->last_look_ms = now;
    if (now - r->last_progress_ms > r->longest_stall_ms) {
        r->longest_stall_ms = now - r->last_progress_ms;
    }
    if (steps != r->last_steps) {
        r->last_steps = steps;
        r->last_progress_ms = now;
    }
}

bool hier_done(struct hier *r)
{
    note_progress(r);
    return atomic_load(&r->vmm.report->phase) > r->commands;
}

static bool vmm_ended(struct hier *r)
{
    siginfo_t info = {0};

    return waitid(P_PID, (id_t)r->vmm.pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
           info.si_pid != 0;
}

void hier_await(struct hier *r, int timeout_ms)
{
    r->awaited_ms = 0;
    while (!hier_done(r)) {
        if (vmm_ended(r) && !hier_done(r)) {
            hier_print(r);
            manager_print_log(&r->manager);
            fail_msg("the stand-in has ended: %s", r->vmm.report->error);
        }
        if (r->awaited_ms > timeout_ms) {
            hier_print(r);
            manager_print_log(&r->manager);
            fail_msg("the guest is not done after %d ms", timeout_ms);
        }
        sleep_ms(2);
    }
}

void hier_do(struct hier *r, enum hier_command command, uint64_t a, uint64_t b)
{
    hier_begin(r, command, a, b);
    hier_await(r, HIER_END_MS);
}

void hier_stop(struct hier *r)
{
    hier_do(r, HIER_DETACH, 0, 0);
    vmm_join(&r->vmm, HIER_END_MS);
    assert_true(manager_vms_become(&r->manager, 0, 5000));
    manager_stop(&r->manager);
}

void hier_abandon(struct hier *r)
{
    vmm_kill(&r->vmm);
    manager_vms_become(&r->manager, 0, HIER_END_MS);
    manager_kill(&r->manager);
    manager_remove(&r->manager);
}

int hier_kill_vmm(struct hier *r, int timeout_ms)
{
    int64_t start = monotonic_ms();

    vmm_kill(&r->vmm);
    if (!manager_vms_become(&r->manager, 0, timeout_ms)) {
        manager_print_log(&r->manager);
        fail_msg("the worker is still there %d ms after its VM", timeout_ms);
    }
    return (int)(monotonic_ms() - start);
}

void hier_expect_stuck(struct hier *r, int milliseconds)
{
    r->awaited_ms = 0;
    note_progress(r);
    while (monotonic_ms() - r->last_progress_ms < milliseconds) {
        assert_false(hier_done(r));
        assert_false(vmm_ended(r));
        if (r->awaited_ms > HIER_END_MS) {
            fail_msg("the guest goes on and on");
        }
        sleep_ms(2);
    }
    r->longest_stall_ms = 0;
}

bool hier_saw_wrong(struct hier *r)
{
    return atomic_load(&r->vmm.report->wrong) != 0;
}

struct peer_stats hier_stats(struct hier *r)
{
    struct peer_stats s;

    assert_int_equal(control_tier_stats(r->manager.socket, "vm", &s), 0);
    return s;
}

void hier_wait_stat(struct hier *r, const char *name,
                    uint64_t (*pick)(const struct peer_stats *s), uint64_t least,
                    uint64_t most, int timeout_ms)
{
    int64_t deadline = monotonic_ms() + timeout_ms;

    for (;;) {
        struct peer_stats s = hier_stats(r);
        uint64_t value = pick(&s);
        if (value >= least && value <= most) {
            return;
        }
        if (vmm_ended(r)) {
            fail_msg("the stand-in has ended: %s", r->vmm.report->error);
        }
        if (monotonic_ms() > deadline) {
            hier_print(r);
            manager_print_log(&r->manager);
            fail_msg("%s is %llu after %d ms, expected %llu to %llu", name,
                     (unsigned long long)value, timeout_ms, (unsigned long long)least,
                     (unsigned long long)most);
        }
        sleep_ms(10);
    }
}

uint64_t hier_resident_max(const struct hier *r)
{
    return atomic_load(&r->vmm.report->user[USER_RESIDENT]);
}

uint64_t hier_total_max(const struct hier *r)
{
    return atomic_load(&r->vmm.report->user[USER_TOTAL]);
}

uint64_t hier_kept_pages(const struct hier *r)
{
    return atomic_load(&r->vmm.report->user[USER_KEPT]);
}

uint64_t hier_result(const struct hier *r, unsigned i)
{
    return atomic_load(&r->vmm.report->user[USER_RESULT + i]);
}

static void set_policy(struct hier *r, struct uffdmm_policy *p)
{
    char err[UFFDMM_TEXT_MAX] = "";

    if (control_set_policy(r->manager.socket, "vm", p, err) != 0) {
        fail_msg("the policy was refused: %s", err);
    }
}

void hier_set_limit(struct hier *r, uint64_t bytes)
{
    set_policy(
        r, &(struct uffdmm_policy){.fields = UFFDMM_POLICY_LIMIT, .limit_bytes = bytes});
}

void hier_set_tier_bytes(struct hier *r, unsigned tier, uint64_t bytes)
{
    struct uffdmm_policy p = {.fields = UFFDMM_POLICY_TIERS, .tier_mask = 1u << tier};

    p.tier_bytes[tier] = bytes;
    set_policy(r, &p);
    assert_int_equal(p.tier_bytes[tier], bytes);
}

void hier_set_demote_after(struct hier *r, uint64_t ms)
{
    set_policy(r, &(struct uffdmm_policy){.fields = UFFDMM_POLICY_DEMOTE,
                                          .demote_after_ms = ms});
}

void hier_trigger(struct hier *r, const char *name, bool on)
{
    char path[256];

    snprintf(path, sizeof(path), "%s/%s", r->manager.dir, name);
    if (on) {
        int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        assert_return_code(fd, errno);
        close(fd);
    } else {
        assert_return_code(unlink(path), errno);
    }
}

void hier_print(struct hier *r)
{
    struct peer_stats s;

    if (control_tier_stats(r->manager.socket, "vm", &s) != 0) {
        print_message("no statistics\n");
        return;
    }
    print_message(
        "steps=%llu state=%llu faults=%llu waited=%llu evicted=%llu clean=%llu zero=%llu "
        "cancelled=%llu demoted=%llu (-%llu) passed_on=%llu discarded=%llu stall=%lld ms "
        "resident_max=%llu KiB checksum_errors=%llu lost=%llu\n",
        (unsigned long long)atomic_load(&r->vmm.report->steps),
        (unsigned long long)s.vm.state, (unsigned long long)s.vm.faults,
        (unsigned long long)s.vm.faults_waited, (unsigned long long)s.vm.evicted,
        (unsigned long long)s.vm.evicted_clean, (unsigned long long)s.vm.evicted_zero,
        (unsigned long long)s.vm.evicted_cancelled, (unsigned long long)s.vm.demoted,
        (unsigned long long)s.vm.demote_cancelled, (unsigned long long)s.vm.passed_on,
        (unsigned long long)s.vm.discarded, (long long)r->longest_stall_ms,
        (unsigned long long)s.vm.resident_max_bytes / 1024,
        (unsigned long long)s.vm.checksum_errors, (unsigned long long)s.vm.lost_pages);
    for (unsigned i = 1; i < s.vm.nr_tiers && i < UFFDMM_TIERS_MAX; i++) {
        const struct uffdmm_tier_stats *t = &s.tiers[i];
        print_message(
            "  %s: state=%llu used=%llu KiB stored=%llu copies=%llu reads=%llu "
            "writes=%llu written=%llu KiB errors=%llu refused=%llu "
            "compactions=%llu\n",
            t->name, (unsigned long long)t->state,
            (unsigned long long)t->used_bytes / 1024, (unsigned long long)t->stored_pages,
            (unsigned long long)t->copy_pages, (unsigned long long)t->reads,
            (unsigned long long)t->writes, (unsigned long long)t->write_bytes / 1024,
            (unsigned long long)t->errors, (unsigned long long)t->refused,
            (unsigned long long)t->compactions);
    }
}

void hier_expect_sound(struct hier *r)
{
    struct peer_stats s = hier_stats(r);

    hier_print(r);
    assert_int_equal(s.vm.checksum_errors, 0);
    assert_int_equal(s.vm.lost_pages, 0);
    assert_false(hier_saw_wrong(r));
    assert_false(manager_logged(&r->manager, "the table is damaged", 0));
    assert_false(manager_logged(&r->manager, "was free while it was written", 0));
}
