/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Pages that cannot be read: the guest waits for them, or, when so configured, they are
 * poisoned and come back with their store.
 */
#include "unit.h"

#include "hier.h"
#include "uffd_fixture.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>

enum { FIRST = 1, AFTER_MS = 500, NO_PAGE = -1 };

#define TIER                                                                            \
    "file=file,path={store},error-rate=1,error-ops=read,error-errno=EIO,error-trigger=" \
    "{dir}/broken"

/* What the guest does, the first number of HIER_EXTRA. */
enum action {
    FIND,      /* a stored page */
    TOUCH,     /* page b: 1 when that raised SIGBUS */
    LOST,      /* 1 when page b is LOST */
    AWAIT,     /* until page b can be touched; verifies it */
    GIVE_BACK, /* page b, to the host */
    ZAP,       /* page b out of the page tables */
    RESIDENT,  /* verifies all pages that are in memory: their number */
    CHURN /* gives stored pages but b back and touches them, for as long as b waits */
};

/* ---- in the stand-in's process ------------------------------------------------ */

static sigjmp_buf back;

static void on_sigbus(int sig)
{
    siglongjmp(back, sig);
}

static bool raises_sigbus(const struct standin *s, uint64_t pfn)
{
    struct sigaction sa = {.sa_handler = on_sigbus}, old;
    bool raised = true;

    sigaction(SIGBUS, &sa, &old);
    if (sigsetjmp(back, 1) == 0) {
        (void)*(volatile uint8_t *)(s->base + pfn * PAGE);
        raised = false;
    }
    sigaction(SIGBUS, &old, NULL);
    return raised;
}

static uint64_t first_stored(struct vmm *v, const struct guest_load *l)
{
    for (uint64_t pfn = 0; pfn < l->nr_pages; pfn++) {
        if (standin_page_state(l->standin, pfn) == UFFDMM_PAGE_STORED &&
            standin_page_tier(l->standin, pfn) == FIRST) {
            return pfn;
        }
    }
    vmm_fail(v, "no page is stored");
    return 0;
}

static uint64_t verify_resident(struct guest_load *l)
{
    uint64_t n = 0;

    for (uint64_t pfn = 0; pfn < l->nr_pages; pfn++) {
        if (standin_page_state(l->standin, pfn) == UFFDMM_PAGE_RESIDENT) {
            load_verify_page(l, pfn);
            n++;
        }
    }
    return n;
}

struct waiter {
    struct guest_load *load;
    uint64_t pfn;
    _Atomic int done;
};

static void *wait_for_page(void *opaque)
{
    struct waiter *w = opaque;

    load_verify_page(w->load, w->pfn);
    atomic_store(&w->done, 1);
    return NULL;
}

/* Makes the evictor store pages all the time while a thread waits for another page. */
static void churn(struct vmm *v, struct guest_load *l, uint64_t waited)
{
    struct waiter w = {.load = l, .pfn = waited};
    pthread_t thread;
    uint64_t pfn = 0;

    VMM_EXPECT(v, pthread_create(&thread, NULL, wait_for_page, &w) == 0);
    while (!atomic_load(&w.done)) {
        pfn = (pfn + 1) % l->nr_pages;
        if (pfn != waited && standin_page_state(l->standin, pfn) == UFFDMM_PAGE_STORED) {
            load_discard(l, pfn, 1);
            load_verify_page(l, pfn);
            sleep_ms(1);
        }
    }
    pthread_join(thread, NULL);
}

static void act(struct vmm *v, struct guest_load *l, uint64_t action, uint64_t pfn)
{
    struct standin *s = l->standin;

    switch (action) {
    case FIND:
        hier_report(v, 0, first_stored(v, l));
        break;
    case TOUCH:
        hier_report(v, 0, raises_sigbus(s, pfn));
        break;
    case LOST:
        hier_report(v, 0, standin_page_state(s, pfn) == UFFDMM_PAGE_LOST);
        break;
    case AWAIT:
        while (raises_sigbus(s, pfn)) {
            sleep_ms(10);
        }
        load_verify_page(l, pfn);
        break;
    case GIVE_BACK:
        load_discard(l, pfn, 1);
        break;
    case ZAP:
        VMM_EXPECT(v, madvise(s->base + pfn * PAGE, PAGE, MADV_DONTNEED) == 0);
        break;
    case RESIDENT:
        hier_report(v, 0, verify_resident(l));
        break;
    case CHURN:
        churn(v, l, pfn);
        break;
    default:
        vmm_fail(v, "action %llu is unknown", (unsigned long long)action);
    }
}

/* ---- in the test ---------------------------------------------------------------- */

static const struct hier_options poisoning = {
    .tiers = {TIER},
    .arguments = {"--limit", "8M", "--on-lost", "poison", "--on-lost-after", "500ms"},
    .ram = 24 * HIER_MIB,
    .seed = 51,
    .content = LOAD_INCOMPRESSIBLE,
    .extra = act,
};

static uint64_t worker_state(const struct peer_stats *s)
{
    return s->vm.state;
}

static uint64_t result_of(struct hier *h, enum action action, uint64_t pfn)
{
    hier_do(h, HIER_EXTRA, action, pfn);
    return hier_result(h, 0);
}

/* A guest whose store cannot be read from now on; returns a page that is in there. */
static uint64_t start_broken(struct hier *h, const struct hier_options *o)
{
    hier_start(h, o);
    hier_do(h, HIER_FILL, 0, 0);
    hier_trigger(h, "broken", true);
    sleep_ms(200); /* the wrapper looks now and then */
    return result_of(h, FIND, 0);
}

static void repair_and_stop(struct hier *h, uint64_t lost)
{
    hier_trigger(h, "broken", false);
    hier_do(h, HIER_VERIFY, 0, 0);
    hier_wait_stat(h, "state", worker_state, UFFDMM_WORKER_RUNNING, UFFDMM_WORKER_RUNNING,
                   5000);
    struct peer_stats s = hier_stats(h);
    assert_int_equal(s.vm.lost_pages, lost);
    assert_int_equal(s.vm.checksum_errors, 0);
    assert_false(hier_saw_wrong(h));
    assert_false(manager_logged(&h->manager, "the table is damaged", 0));
    hier_stop(h);
}

static void page_that_cannot_be_read_is_poisoned_and_comes_back(void **state)
{
    struct hier h;
    (void)state;

    uint64_t pfn = start_broken(&h, &poisoning);
    int64_t begin = monotonic_ms();
    assert_int_equal(result_of(&h, TOUCH, pfn), 1);
    assert_true(monotonic_ms() - begin >= AFTER_MS);
    assert_int_equal(result_of(&h, LOST, pfn), 1);
    assert_int_equal(hier_stats(&h).vm.lost_pages, 1);
    assert_true(manager_logged(&h.manager, "is poisoned", 1000));
    /* it is the one page alone, and nobody waits for anything */
    assert_true(result_of(&h, RESIDENT, 0) > 1000);
    hier_wait_stat(&h, "state", worker_state, UFFDMM_WORKER_RUNNING,
                   UFFDMM_WORKER_RUNNING, 1000);
    assert_int_equal(result_of(&h, TOUCH, pfn), 1);
    assert_int_equal(hier_stats(&h).vm.lost_pages, 1);

    hier_trigger(&h, "broken", false);
    hier_do(&h, HIER_EXTRA, AWAIT, pfn);
    assert_int_equal(result_of(&h, LOST, pfn), 0);
    hier_trigger(&h, "broken", true);
    repair_and_stop(&h, 1);
}

static void poison_stays_when_the_page_tables_are_zapped(void **state)
{
    struct hier h;
    (void)state;

    uint64_t pfn = start_broken(&h, &poisoning);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(result_of(&h, TOUCH, pfn), 1);
        hier_do(&h, HIER_EXTRA, ZAP, pfn);
    }
    assert_int_equal(result_of(&h, TOUCH, pfn), 1);
    assert_int_equal(hier_stats(&h).vm.lost_pages, 1);
    hier_trigger(&h, "broken", false);
    hier_do(&h, HIER_EXTRA, AWAIT, pfn);
    hier_trigger(&h, "broken", true);
    repair_and_stop(&h, 1);
}

/* Of a VM that has the option for itself. */
static void poisoned_page_that_is_given_back_reads_as_zero(void **state)
{
    struct hier_options o = poisoning;
    struct hier h;
    (void)state;

    memset(o.arguments, 0, sizeof(o.arguments));
    o.arguments[0] = "--limit";
    o.arguments[1] = "8M";
    o.arguments[2] = "--vm";
    o.arguments[3] = "vm,on-lost=poison";
    o.arguments[4] = "--on-lost-after";
    o.arguments[5] = "500ms";
    uint64_t pfn = start_broken(&h, &o);
    assert_int_equal(result_of(&h, TOUCH, pfn), 1);
    hier_do(&h, HIER_EXTRA, GIVE_BACK, pfn);
    hier_do(&h, HIER_EXTRA, AWAIT, pfn);
    repair_and_stop(&h, 1);
}

/* The slot of a poisoned page stays its own from worker to worker. */
static void poisoned_page_comes_back_after_its_worker_was_killed(void **state)
{
    struct hier_options o = poisoning;
    struct hier h;
    (void)state;

    o.resilient = true;
    uint64_t pfn = start_broken(&h, &o);
    assert_int_equal(result_of(&h, TOUCH, pfn), 1);
    pid_t worker = (pid_t)hier_stats(&h).vm.worker_pid;
    assert_return_code(kill(worker, SIGKILL), 0);
    assert_true(process_gone(worker, 5000));
    assert_true(manager_logged(&h.manager, "taken over", HIER_END_MS));
    assert_int_equal(result_of(&h, LOST, pfn), 1);
    assert_int_equal(result_of(&h, TOUCH, pfn), 1);
    hier_trigger(&h, "broken", false);
    hier_do(&h, HIER_EXTRA, AWAIT, pfn);
    hier_trigger(&h, "broken", true);
    repair_and_stop(&h, 1);
}

static void guest_waits_unless_poison_is_configured(void **state)
{
    struct hier_options o = poisoning;
    struct hier h;
    (void)state;

    o.arguments[3] = "wait";
    uint64_t pfn = start_broken(&h, &o);
    hier_begin(&h, HIER_EXTRA, AWAIT, pfn);
    hier_expect_stuck(&h, 3 * AFTER_MS);
    assert_int_equal(hier_stats(&h).vm.state, UFFDMM_WORKER_STORE_ERROR);
    hier_trigger(&h, "broken", false);
    hier_await(&h, HIER_END_MS);
    hier_trigger(&h, "broken", true);
    repair_and_stop(&h, 0);
}

static void state_tells_of_a_page_that_waits_while_others_are_stored(void **state)
{
    struct hier_options o = poisoning;
    struct hier h;
    (void)state;

    o.arguments[2] = NULL;
    uint64_t pfn = start_broken(&h, &o);
    hier_begin(&h, HIER_EXTRA, CHURN, pfn);
    hier_wait_stat(&h, "state", worker_state, UFFDMM_WORKER_STORE_ERROR,
                   UFFDMM_WORKER_STORE_ERROR, 5000);
    uint64_t written = hier_stats(&h).tiers[FIRST].writes;
    int64_t end = monotonic_ms() + 20000;
    while (hier_stats(&h).tiers[FIRST].writes < written + 5) {
        assert_true(monotonic_ms() < end);
        assert_int_equal(hier_stats(&h).vm.state, UFFDMM_WORKER_STORE_ERROR);
    }
    hier_trigger(&h, "broken", false);
    hier_await(&h, HIER_END_MS);
    hier_trigger(&h, "broken", true);
    repair_and_stop(&h, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(page_that_cannot_be_read_is_poisoned_and_comes_back),
        cmocka_unit_test(poison_stays_when_the_page_tables_are_zapped),
        cmocka_unit_test(poisoned_page_that_is_given_back_reads_as_zero),
        cmocka_unit_test(poisoned_page_comes_back_after_its_worker_was_killed),
        cmocka_unit_test(guest_waits_unless_poison_is_configured),
        cmocka_unit_test(state_tells_of_a_page_that_waits_while_others_are_stored),
    };
    int ready = uffd_open(0, UFFD_FEATURE_POISON);

    if (ready < 0) {
        print_message("skip: this kernel has no UFFDIO_POISON\n");
        return 77;
    }
    close(ready);
    return cmocka_run_group_tests_name("lost pages", tests, end_process_when_hung, NULL);
}
