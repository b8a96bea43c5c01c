/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Tiers that fail and tiers that are slow, by the wrappers of the product itself.
 * The guest verifies what it touches, or waits and goes on by itself; and who needs
 * nothing of a slow tier does not wait for it.
 */
#include "unit.h"

#include "hier.h"
#include "uffd_fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FIRST = 1, SECOND = 2 };

static uint64_t worker_state(const struct peer_stats *s)
{
    return s->vm.state;
}

static uint64_t first_errors(const struct peer_stats *s)
{
    return s->tiers[FIRST].errors;
}

/* ---- errors now and then ------------------------------------------------------ */

static struct peer_stats run_with_errors(const struct hier_options *o)
{
    struct hier h;

    hier_start(&h, o);
    hier_do(&h, HIER_FILL, 0, 0);
    hier_do(&h, HIER_RUN, LOAD_RANDOM, 4000);
    hier_do(&h, HIER_VERIFY, 0, 0);
    hier_expect_sound(&h);
    struct peer_stats s = hier_stats(&h);
    assert_true(hier_resident_max(&h) <= 8 * HIER_MIB + HIER_OVERSHOOT);
    hier_stop(&h);
    return s;
}

static void reads_that_fail_now_and_then_are_tried_again(void **state)
{
    (void)state;
    struct peer_stats s = run_with_errors(&(struct hier_options){
        .tiers = {"file=file,path={store},error-rate=0.2,error-ops=read,error-errno=EIO"},
        .arguments = {"--limit", "8M"},
        .ram = 24 * HIER_MIB,
        .seed = 11,
        .content = LOAD_MIXED,
    });

    assert_true(s.tiers[FIRST].errors > 20);
    assert_non_null(strstr(s.tiers[FIRST].last_error, "Input/output error"));
}

static void writes_that_fail_now_and_then_are_tried_again(void **state)
{
    static const char *const errnos[] = {"EIO", "ENOSPC"};
    (void)state;

    for (int i = 0; i < 2; i++) {
        char tier[128];
        snprintf(tier, sizeof(tier),
                 "file=file,path={store},error-rate=0.2,error-ops=write,error-errno=%s",
                 errnos[i]);
        struct peer_stats s = run_with_errors(&(struct hier_options){
            .tiers = {tier},
            .arguments = {"--limit", "8M"},
            .ram = 24 * HIER_MIB,
            .seed = 12,
            .content = LOAD_MIXED,
        });
        assert_true(s.tiers[FIRST].errors > 5);
    }
}

static void errors_in_all_tiers_lose_nothing(void **state)
{
    (void)state;
    struct peer_stats s = run_with_errors(&(struct hier_options){
        .tiers = {"pool=pool,capacity=3M,error-rate=0.2,error-ops=both",
                  "one=file,path={store},error-rate=0.2,error-ops=both",
                  "two=file,path={second},error-rate=0.2,error-ops=both"},
        .arguments = {"--limit", "8M", "--demote-after", "1s"},
        .ram = 24 * HIER_MIB,
        .seed = 13,
        .content = LOAD_VARIED,
    });

    assert_true(s.tiers[1].errors > 5);
    assert_true(s.tiers[2].errors > 5);
    assert_true(s.tiers[3].errors > 5);
    assert_true(s.vm.demoted > 0);
}

/* ---- errors for a while ------------------------------------------------------- */

static void guest_waits_for_a_tier_that_cannot_be_read(void **state)
{
    static const struct hier_options options = {
        .tiers =
            {"file=file,path={store},error-rate=1,error-ops=read,error-trigger={dir}/"
             "broken"},
        .arguments = {"--limit", "8M"},
        .ram = 24 * HIER_MIB,
        .seed = 14,
        .content = LOAD_MIXED,
    };
    struct hier h;
    (void)state;

    hier_start(&h, &options);
    hier_do(&h, HIER_FILL, 0, 0);
    hier_trigger(&h, "broken", true);
    sleep_ms(200);
    hier_begin(&h, HIER_VERIFY, 0, 0);
    hier_expect_stuck(&h, 500);
    hier_wait_stat(&h, "state", worker_state, UFFDMM_WORKER_STORE_ERROR,
                   UFFDMM_WORKER_STORE_ERROR, 5000);
    hier_wait_stat(&h, "errors", first_errors, 3, UINT64_MAX, 5000);
    assert_true(manager_logged(&h.manager, "the guest waits for it", 1000));
    hier_trigger(&h, "broken", false);
    hier_await(&h, HIER_END_MS);
    hier_wait_stat(&h, "state", worker_state, UFFDMM_WORKER_RUNNING,
                   UFFDMM_WORKER_RUNNING, 5000);
    hier_expect_sound(&h);
    hier_stop(&h);
}

static void guest_waits_at_its_limit_for_a_tier_that_cannot_be_written(void **state)
{
    static const struct hier_options options = {
        .tiers =
            {"file=file,path={store},error-rate=1,error-ops=write,error-errno=ENOSPC,"
             "error-trigger={dir}/broken"},
        .arguments = {"--limit", "8M"},
        .ram = 24 * HIER_MIB,
        .seed = 15,
        .content = LOAD_INCOMPRESSIBLE,
    };
    struct hier h;
    (void)state;

    hier_start(&h, &options);
    hier_trigger(&h, "broken", true);
    hier_begin(&h, HIER_FILL, 0, 0);
    hier_expect_stuck(&h, 500);
    hier_wait_stat(&h, "state", worker_state, UFFDMM_WORKER_STORE_ERROR,
                   UFFDMM_WORKER_STORE_ERROR, 5000);
    struct peer_stats s = hier_stats(&h);
    assert_int_equal(s.tiers[FIRST].stored_pages, 0);
    assert_int_equal(s.tiers[FIRST].used_bytes, 0);
    assert_true(s.vm.resident_max_bytes <= 8 * HIER_MIB + HIER_OVERSHOOT);
    hier_trigger(&h, "broken", false);
    hier_await(&h, HIER_END_MS);
    hier_do(&h, HIER_VERIFY, 0, 0);
    hier_expect_sound(&h);
    hier_stop(&h);
}

static void next_tier_takes_over_from_one_that_cannot_be_written(void **state)
{
    static const char *const first[] = {
        "first=file,path={store},error-rate=1,error-ops=write",
        "first=pool,error-rate=1,error-ops=write",
    };
    (void)state;

    for (int i = 0; i < 2; i++) {
        struct peer_stats s = run_with_errors(&(struct hier_options){
            .tiers = {first[i], "second=file,path={second}"},
            .arguments = {"--limit", "8M"},
            .ram = 24 * HIER_MIB,
            .seed = 16,
            .content = LOAD_COMPRESSIBLE,
        });
        assert_true(s.tiers[FIRST].errors > 0);
        assert_int_equal(s.tiers[FIRST].write_bytes, 0);
        assert_int_equal(s.tiers[FIRST].stored_pages, 0);
        assert_true(s.tiers[SECOND].stored_pages > 3000);
    }
}

/* ---- slow reads ---------------------------------------------------------------- */

struct race_thread {
    struct guest_load *load;
    uint64_t *pages;
    uint64_t nr;
    _Atomic uint64_t done;
    _Atomic int *stop;
    pthread_t thread;
};

static void *touch_pages(void *opaque)
{
    struct race_thread *t = opaque;

    for (uint64_t i = 0; i < t->nr && !atomic_load(t->stop); i++) {
        load_verify_page(t->load, t->pages[i]);
        atomic_fetch_add(&t->done, 1);
    }
    return NULL;
}

static void start_thread(struct vmm *v, struct race_thread *t)
{
    if (pthread_create(&t->thread, NULL, touch_pages, t) != 0) {
        vmm_fail(v, "cannot start a thread");
    }
}

/*
 * A thread touches pages of tier a until another one has touched b pages of the pool,
 * of one word, or never written; reports how many each has done by then.
 */
static void race_tiers(struct vmm *v, struct guest_load *l, uint64_t a, uint64_t b)
{
    _Atomic int stop = 0;
    struct race_thread slow = {.load = l, .stop = &stop};
    struct race_thread fast = {.load = l, .stop = &stop};

    slow.pages = calloc(l->nr_pages, sizeof(uint64_t));
    fast.pages = calloc(l->nr_pages, sizeof(uint64_t));
    VMM_EXPECT(v, slow.pages && fast.pages);
    for (uint64_t pfn = 0; pfn < l->nr_pages; pfn++) {
        unsigned state = standin_page_state(l->standin, pfn);
        if (state == UFFDMM_PAGE_STORED && standin_page_tier(l->standin, pfn) == a) {
            slow.pages[slow.nr++] = pfn;
        } else if (state == UFFDMM_PAGE_STORED && fast.nr < b) {
            fast.pages[fast.nr++] = pfn;
        }
    }
    VMM_EXPECT(v, slow.nr > 100 && fast.nr == b);
    start_thread(v, &slow);
    sleep_ms(50); /* it waits for its first page now */
    start_thread(v, &fast);
    pthread_join(fast.thread, NULL);
    atomic_store(&stop, 1);
    hier_report(v, 0, atomic_load(&slow.done));
    hier_report(v, 1, atomic_load(&fast.done));
    pthread_join(slow.thread, NULL);
    free(slow.pages);
    free(fast.pages);
}

static void slow_reads_of_one_tier_hold_up_no_other_fault(void **state)
{
    enum { FAST_PAGES = 600 };
    static const struct hier_options options = {
        .tiers = {"pool=pool", "file=file,path={store},delay-read=300ms"},
        .arguments = {"--limit", "8M", "--readahead", "1"},
        .ram = 24 * HIER_MIB,
        .seed = 17,
        .content = LOAD_VARIED,
        .extra = race_tiers,
    };
    struct hier h;
    (void)state;

    hier_start(&h, &options);
    hier_do(&h, HIER_FILL, 0, 0);
    hier_do(&h, HIER_EXTRA, SECOND, FAST_PAGES);
    print_message("%llu pages of the slow tier, %llu others\n",
                  (unsigned long long)hier_result(&h, 0),
                  (unsigned long long)hier_result(&h, 1));
    assert_int_equal(hier_result(&h, 1), FAST_PAGES);
    assert_true(hier_result(&h, 0) < FAST_PAGES / 20);
    hier_expect_sound(&h);
    hier_stop(&h);
}

/* Of one shard, with as many threads as a VM may have vCPUs. */
static void reads_for_many_threads_overlap(void **state)
{
    enum { DELAY_MS = 20 };
    static const struct hier_options options = {
        .tiers = {"file=file,path={store},delay-read=20ms"},
        .arguments = {"--limit", "8M", "--readahead", "1"},
        .ram = 16 * HIER_MIB,
        .seed = 18,
        .nr_threads = 20,
        .content = LOAD_INCOMPRESSIBLE,
    };
    struct hier h;
    (void)state;

    hier_start(&h, &options);
    hier_do(&h, HIER_FILL, 0, 0);
    uint64_t reads = hier_stats(&h).tiers[FIRST].reads;
    int64_t begin = monotonic_ms();
    hier_do(&h, HIER_VERIFY, 0, 0);
    int64_t ms = monotonic_ms() - begin;
    reads = hier_stats(&h).tiers[FIRST].reads - reads;
    print_message("%llu reads of %d ms in %lld ms\n", (unsigned long long)reads, DELAY_MS,
                  (long long)ms);
    assert_true(reads > 1000);
    assert_true((int64_t)reads * DELAY_MS > 4 * ms);
    hier_expect_sound(&h);
    hier_stop(&h);
}

/* ---- slow writes ---------------------------------------------------------------- */

static const struct hier_options slow_writes = {
    .tiers = {"slow=file,path={store},delay-write=3s,delay-trigger={dir}/slow",
              "fast=file,path={second}"},
    .arguments = {"--limit", "8M"},
    .ram = 24 * HIER_MIB,
    .seed = 19,
    .content = LOAD_MIXED,
};

/* With writes of the first tier that take 3 s, in the middle of a run of its guest. */
static void start_slow(struct hier *h)
{
    hier_start(h, &slow_writes);
    hier_do(h, HIER_FILL, 0, 0);
    assert_int_equal(hier_stats(h).tiers[SECOND].writes, 0);
    hier_trigger(h, "slow", true);
    sleep_ms(200);
}

static void next_tier_takes_over_from_one_that_is_slow(void **state)
{
    struct hier h;
    (void)state;

    start_slow(&h);
    hier_do(&h, HIER_RUN, LOAD_RANDOM, 8000);
    struct peer_stats s = hier_stats(&h);
    assert_true(s.tiers[SECOND].writes > 10);
    assert_true(s.tiers[SECOND].stored_pages > 100);
    /* it waits for the first batch until that is laid aside, and for no other */
    assert_true(h.longest_stall_ms < 2500);
    assert_true(hier_resident_max(&h) <= 8 * HIER_MIB + HIER_OVERSHOOT);
    hier_do(&h, HIER_VERIFY, 0, 0);
    hier_trigger(&h, "slow", false);
    hier_do(&h, HIER_RUN, LOAD_RANDOM, 1000);
    hier_do(&h, HIER_VERIFY, 0, 0);
    hier_expect_sound(&h);
    assert_true(hier_resident_max(&h) <= 8 * HIER_MIB + HIER_OVERSHOOT);
    hier_stop(&h);
}

static void region_goes_while_its_pages_are_being_written_slowly(void **state)
{
    struct hier h;
    (void)state;

    start_slow(&h);
    hier_do(&h, HIER_RUN, LOAD_RANDOM, 2000);
    int64_t begin = monotonic_ms();
    hier_stop(&h);
    assert_true(monotonic_ms() - begin < 5000);
}

static void worker_ends_with_its_vm_while_writes_are_slow(void **state)
{
    struct hier h;
    (void)state;

    start_slow(&h);
    hier_do(&h, HIER_RUN, LOAD_RANDOM, 2000);
    hier_begin(&h, HIER_RUN, LOAD_RANDOM, 60000);
    sleep_ms(300);
    print_message("ended after %d ms\n", hier_kill_vmm(&h, 5000));
    manager_stop(&h.manager);
}

/* The demoter is the one that waits here: it writes run after run. */
static void worker_ends_with_its_vm_while_pages_are_handed_down_slowly(void **state)
{
    static const struct hier_options options = {
        .tiers = {"pool=pool,capacity=3M",
                  "file=file,path={store},delay-write=3s,delay-trigger={dir}/slow"},
        .arguments = {"--limit", "8M"},
        .ram = 24 * HIER_MIB,
        .seed = 20,
        .content = LOAD_COMPRESSIBLE,
    };
    struct hier h;
    (void)state;

    hier_start(&h, &options);
    hier_do(&h, HIER_FILL, 0, 0);
    hier_do(&h, HIER_RUN, LOAD_RANDOM,
            2000); /* slots of both tiers are in no order now */
    hier_trigger(&h, "slow", true);
    sleep_ms(200);
    hier_begin(&h, HIER_RUN, LOAD_RANDOM, 60000);
    sleep_ms(1500);
    hier_print(&h);
    print_message("ended after %d ms\n", hier_kill_vmm(&h, 8000));
    manager_stop(&h.manager);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_that_fail_now_and_then_are_tried_again),
        cmocka_unit_test(writes_that_fail_now_and_then_are_tried_again),
        cmocka_unit_test(errors_in_all_tiers_lose_nothing),
        cmocka_unit_test(guest_waits_for_a_tier_that_cannot_be_read),
        cmocka_unit_test(guest_waits_at_its_limit_for_a_tier_that_cannot_be_written),
        cmocka_unit_test(next_tier_takes_over_from_one_that_cannot_be_written),
        cmocka_unit_test(slow_reads_of_one_tier_hold_up_no_other_fault),
        cmocka_unit_test(reads_for_many_threads_overlap),
        cmocka_unit_test(next_tier_takes_over_from_one_that_is_slow),
        cmocka_unit_test(region_goes_while_its_pages_are_being_written_slowly),
        cmocka_unit_test(worker_ends_with_its_vm_while_writes_are_slow),
        cmocka_unit_test(worker_ends_with_its_vm_while_pages_are_handed_down_slowly),
    };

    return cmocka_run_group_tests_name("faulty tiers", tests, end_process_when_hung,
                                       NULL);
}
