/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Regions of 2 MiB pages: faulted, stored and given back whole, under the limit.
 * Huge pages are reserved for the time of the test; where that cannot be done
 * each test is skipped with the reason.
 */
#include "unit.h"

#include "hier.h"
#include "kill_loop.h"
#include "uffd_fixture.h"

#include <fcntl.h>
#include <linux/memfd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define HUGE ((uint64_t)2 << 20)
#define RAM (128 * HIER_MIB)
#define LIMIT (32 * HIER_MIB)
/* Sampled residency may pass the limit by two huge pages. */
#define OVERSHOOT (2 * HUGE)

enum { FILES = 1, SECOND = 2, PAGES_NEEDED = 32, HUGE_PAGES = HUGE / PAGE };

#define NR_HUGEPAGES "/proc/sys/vm/nr_hugepages"
#define FREE_HUGEPAGES "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages"

/* ---- huge pages of the host ------------------------------------------------ */

static long reserved_before = -1;

static long read_number(const char *path)
{
    long n = -1;
    FILE *f = fopen(path, "re");

    if (f) {
        if (fscanf(f, "%ld", &n) != 1) {
            n = -1;
        }
        fclose(f);
    }
    return n;
}

static void reserve(long nr)
{
    FILE *f = fopen(NR_HUGEPAGES, "we");

    if (f) {
        fprintf(f, "%ld\n", nr);
        fclose(f);
    }
}

static int reserve_pages(void **state)
{
    long have = read_number(FREE_HUGEPAGES);

    reserved_before = read_number(NR_HUGEPAGES);
    if (reserved_before >= 0 && have >= 0 && have < PAGES_NEEDED) {
        reserve(reserved_before + PAGES_NEEDED - have);
    }
    return end_process_when_hung(state);
}

static int give_pages_back(void **state)
{
    (void)state;
    if (reserved_before >= 0) {
        reserve(reserved_before);
    }
    return 0;
}

static void need_huge_pages(void)
{
    long have = read_number(FREE_HUGEPAGES);

    if (have < PAGES_NEEDED) {
        print_message(
            "skipped: %ld huge pages of 2 MiB are free and %d are needed (needs root or "
            "vm.nr_hugepages)\n",
            have, PAGES_NEEDED);
        skip();
    }
}

/* Takes all free huge pages but @left; the descriptor that holds them. */
static int hold_huge_pages(long left)
{
    int fd = memfd_create("held", MFD_CLOEXEC | MFD_HUGETLB | MFD_HUGE_2MB);
    off_t bytes = (read_number(FREE_HUGEPAGES) - left) * (off_t)HUGE;

    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, bytes), 0);
    assert_int_equal(fallocate(fd, 0, 0, bytes), 0);
    return fd;
}

/* ---- overcommit --------------------------------------------------------------- */

static const struct hier_options plain = {
    .tiers = {"file=file,path={store}"},
    .arguments = {"--limit", "32M"},
    .ram = RAM,
    .page_size = HUGE,
    .seed = 31,
    .nr_threads = 4,
    .content = LOAD_MIXED,
};

static struct peer_stats run_load(const struct hier_options *options,
                                  enum load_pattern pattern)
{
    struct hier h;

    need_huge_pages();
    hier_start(&h, options);
    hier_do(&h, HIER_FILL, 0, 0);
    hier_do(&h, HIER_RUN, pattern, 4000);
    hier_do(&h, HIER_VERIFY, 0, 0);
    struct peer_stats s = hier_stats(&h);
    hier_expect_sound(&h);
    hier_print(&h);
    print_message("resident at most %llu KiB\n",
                  (unsigned long long)hier_resident_max(&h) / 1024);
    assert_true(hier_resident_max(&h) <= LIMIT + OVERSHOOT);
    assert_true(hier_resident_max(&h) > LIMIT / 2);
    assert_true(s.vm.evicted > 0);
    assert_int_equal(s.vm.evicted % HUGE_PAGES, 0);
    assert_int_equal(s.vm.resident_bytes % HUGE, 0);
    assert_int_equal(s.vm.store_errors, 0);
    hier_do(&h, HIER_DISCARD_ALL, 0, 0);
    hier_do(&h, HIER_VERIFY, 0, 0);
    hier_stop(&h);
    return s;
}

static void random_touches_verify_under_the_limit(void **state)
{
    (void)state;
    struct peer_stats s = run_load(&plain, LOAD_RANDOM);

    assert_true(s.vm.evicted >= (RAM - LIMIT) / PAGE);
    assert_true(s.vm.faults_store > 0);
    assert_true(s.tiers[FILES].write_bytes >= RAM - LIMIT - OVERSHOOT);
}

static void sequential_touches_of_three_shards_verify_under_the_limit(void **state)
{
    (void)state;
    struct hier_options o = plain;

    o.nr_shards = 3;
    run_load(&o, LOAD_SEQUENTIAL);
}

/* 512 slots in a row cross chunks of 256: each page is several transfers. */
static void pages_are_striped_over_two_paths(void **state)
{
    (void)state;
    struct hier_options o = plain;

    o.tiers[0] = "file=file,path={store},path={second}";
    struct peer_stats s = run_load(&o, LOAD_RANDOM);
    assert_true(s.tiers[FILES].reads >= 2 * s.vm.faults_store);
}

static void discards_under_load_read_as_zero(void **state)
{
    (void)state;
    struct peer_stats s = run_load(&plain, LOAD_DISCARD);

    assert_true(s.vm.discarded > 0);
    assert_int_equal(s.vm.discarded % HUGE_PAGES, 0);
}

/* A pool in front takes none of them and does no harm. */
static void pool_passes_huge_pages_on(void **state)
{
    (void)state;
    struct hier_options o = plain;

    o.tiers[0] = "pool=pool";
    o.tiers[1] = "file=file,path={store}";
    o.content = LOAD_COMPRESSIBLE;
    struct peer_stats s = run_load(&o, LOAD_RANDOM);
    assert_int_equal(s.tiers[1].stored_pages, 0);
    assert_true(s.tiers[SECOND].stored_pages > 0);
    assert_int_equal(s.tiers[SECOND].stored_pages % HUGE_PAGES, 0);
}

/* The first tier is full after a while: whole pages go to the next one. */
static void full_tier_passes_whole_pages_on(void **state)
{
    (void)state;
    struct hier_options o = plain;

    o.tiers[0] = "small=file,path={second},capacity=17M";
    o.tiers[1] = "file=file,path={store}";
    struct peer_stats s = run_load(&o, LOAD_RANDOM);
    assert_true(s.tiers[1].used_bytes > 0);
    assert_true(s.tiers[1].used_bytes <= 8 * HUGE);
    assert_true(s.tiers[SECOND].stored_pages > 0);
}

/* ---- single behaviours --------------------------------------------------------- */

/* Writes one word over each huge page, or checks it. */
static void words(struct vmm *v, struct guest_load *l, uint64_t write, uint64_t b)
{
    (void)b;
    for (uint64_t page = 0; page < l->standin->size / HUGE; page++) {
        uint64_t *at = (uint64_t *)(void *)(l->standin->base + page * HUGE);
        uint64_t word = page % 4 ? 0x0101010101010101 * page : 0;

        for (uint64_t i = 0; i < HUGE / sizeof(word); i++) {
            if (write) {
                at[i] = word;
            } else if (at[i] != word) {
                vmm_fail(v, "huge page %llu: word %llu is %#llx",
                         (unsigned long long)page, (unsigned long long)i,
                         (unsigned long long)at[i]);
            }
        }
        atomic_fetch_add(&v->report->steps, 1);
    }
}

static void pages_of_one_word_take_no_slot(void **state)
{
    struct hier_options o = plain;
    struct hier h;
    (void)state;

    need_huge_pages();
    o.extra = words;
    hier_start(&h, &o);
    hier_do(&h, HIER_EXTRA, 1, 0);
    hier_do(&h, HIER_EXTRA, 0, 0);
    struct peer_stats s = hier_stats(&h);
    hier_expect_sound(&h);
    assert_true(s.vm.evicted_zero >= (RAM - LIMIT - OVERSHOOT) / PAGE);
    assert_true(s.vm.zero_bytes > 0);
    assert_int_equal(s.tiers[FILES].used_bytes, 0);
    assert_int_equal(s.vm.store_write_bytes, 0);
    hier_stop(&h);
}

static void pages_only_read_are_not_written_again(void **state)
{
    struct hier h;
    (void)state;

    need_huge_pages();
    hier_start(&h, &plain);
    hier_do(&h, HIER_FILL, 0, 0);
    hier_do(&h, HIER_VERIFY, 0, 0);
    struct peer_stats before = hier_stats(&h);
    hier_do(&h, HIER_VERIFY, 0, 0);
    hier_do(&h, HIER_VERIFY, 0, 0);
    struct peer_stats after = hier_stats(&h);
    hier_expect_sound(&h);
    assert_true(after.vm.evicted >= before.vm.evicted + RAM / PAGE);
    assert_int_equal(after.vm.store_write_bytes, before.vm.store_write_bytes);
    assert_true(after.vm.evicted_clean > before.vm.evicted_clean);
    hier_stop(&h);
}

static void read_errors_make_the_guest_wait_and_it_goes_on(void **state)
{
    struct hier_options o = plain;
    struct hier h;
    (void)state;

    need_huge_pages();
    o.tiers[0] =
        "file=file,path={store},error-rate=1,error-ops=read,error-trigger={dir}/x";
    hier_start(&h, &o);
    hier_do(&h, HIER_FILL, 0, 0);
    hier_trigger(&h, "x", true);
    hier_begin(&h, HIER_VERIFY, 0, 0);
    hier_expect_stuck(&h, 700);
    struct peer_stats s = hier_stats(&h);
    assert_true(s.tiers[FILES].errors > 0);
    assert_non_null(strstr(s.tiers[FILES].last_error, "cannot be read"));
    hier_trigger(&h, "x", false);
    hier_await(&h, HIER_END_MS);
    hier_expect_sound(&h);
    hier_stop(&h);
}

static uint64_t used_bytes(const struct peer_stats *s)
{
    return s->tiers[FILES].used_bytes;
}

static void write_errors_make_the_guest_wait_and_it_goes_on(void **state)
{
    struct hier_options o = plain;
    struct hier h;
    (void)state;

    need_huge_pages();
    o.tiers[0] =
        "file=file,path={store},path={second},error-rate=1,error-ops=write,error-trigger={dir}"
        "/x";
    hier_start(&h, &o);
    hier_trigger(&h, "x", true);
    hier_begin(&h, HIER_FILL, 0, 0);
    hier_expect_stuck(&h, 700);
    assert_true(hier_resident_max(&h) <= LIMIT + OVERSHOOT);
    hier_trigger(&h, "x", false);
    hier_await(&h, HIER_END_MS);
    hier_do(&h, HIER_VERIFY, 0, 0);
    hier_do(&h, HIER_DISCARD_ALL, 0, 0);
    hier_do(&h, HIER_VERIFY, 0, 0);
    /* what failed has given all its slots back, and so has what was discarded */
    hier_wait_stat(&h, "used", used_bytes, 0, 0, 5000);
    hier_expect_sound(&h);
    hier_stop(&h);
}

/*
 * The host has fewer huge pages than the limit allows.  The kernel then says that the
 * page were there already: who believes it loses data.
 */
static void host_without_huge_pages_costs_no_data(void **state)
{
    struct hier_options o = plain;
    struct hier h;
    (void)state;

    need_huge_pages();
    o.arguments[1] = "64M";
    int held = hold_huge_pages(10);
    hier_start(&h, &o);
    hier_do(&h, HIER_FILL, 0, 0);
    hier_do(&h, HIER_RUN, LOAD_RANDOM, 3000);
    hier_do(&h, HIER_VERIFY, 0, 0);
    hier_expect_sound(&h);
    assert_true(hier_resident_max(&h) <= 10 * HUGE);
    assert_true(manager_logged(&h.manager, "has no huge page left", 0));
    /* the stand-in has inherited the descriptor: closing it is not enough */
    assert_int_equal(ftruncate(held, 0), 0);
    close(held);
    hier_do(&h, HIER_RUN, LOAD_RANDOM, 3000);
    hier_do(&h, HIER_VERIFY, 0, 0);
    /* what it has got since shows that it found out */
    assert_true(hier_resident_max(&h) > 10 * HUGE);
    hier_expect_sound(&h);
    hier_stop(&h);
}

/* ---- refusals -------------------------------------------------------------------- */

struct refusal {
    uint64_t size;
    uint64_t page_size;
    const char *sentence;
};

static void refused_body(struct vmm *v, const void *arg)
{
    const struct refusal *r = arg;
    struct standin s;

    VMM_EXPECT(v, standin_open_pages(&s, v->socket, "vm", r->size, r->page_size, 1) < 0);
    snprintf(v->report->error, sizeof(v->report->error), "%s", s.error);
    VMM_EXPECT(v, strstr(s.error, r->sentence) != NULL);
    standin_close(&s);
    v->report->error[0] = '\0';
}

static void expect_refused(const char *const *tiers, const char *const *arguments,
                           const struct refusal *refusal)
{
    struct manager m;
    struct vmm v;

    manager_start_tiers(&m, "UFFDMM_MANAGER", tiers, arguments);
    vmm_start(&v, m.socket, refused_body, refusal);
    vmm_join(&v, HIER_END_MS);
    manager_stop(&m);
}

static void vm_with_nothing_but_a_pool_is_refused(void **state)
{
    static const char *const tiers[] = {"pool=pool", NULL}, *const none[] = {NULL};
    (void)state;

    expect_refused(
        tiers, none,
        &(struct refusal){RAM, HUGE, "pages of 2 MiB, which a pool does not take"});
}

static void limit_of_a_few_pages_is_refused(void **state)
{
    static const char *const tiers[] = {"file=file,path={store}", NULL};
    static const char *const limit[] = {"--limit", "8M", NULL};
    (void)state;

    expect_refused(
        tiers, limit,
        &(struct refusal){RAM, HUGE, "limit of 8 MiB is too small for VM 'vm'"});
}

static void sizes_that_are_not_whole_pages_are_refused(void **state)
{
    static const char *const tiers[] = {"file=file,path={store}", NULL}, *const none[] = {
                                                                             NULL};
    (void)state;

    expect_refused(tiers, none,
                   &(struct refusal){RAM + PAGE, HUGE, "is not a multiple of 2097152"});
    expect_refused(
        tiers, none,
        &(struct refusal){1 << 30, 1 << 30, "page size 1073741824 is not supported"});
}

/* ---- both sizes in one VM ------------------------------------------------------------ */

static void both_body(struct vmm *v, const void *arg)
{
    struct standin small, huge;
    struct guest_load a, b;
    (void)arg;

    vmm_check(v, &small, standin_open(&small, v->socket, "vm", RAM / 2, 1));
    vmm_check(v, &huge, standin_open_pages(&huge, v->socket, "vm", RAM / 2, HUGE, 1));
    load_init(&a, v, &small, 41, 2, LOAD_VARIED);
    load_init(&b, v, &huge, 42, 2, LOAD_VARIED);
    load_fill(&a);
    load_fill(&b);
    for (int i = 0; i < 4; i++) {
        load_run(&a, LOAD_RANDOM, 500);
        load_run(&b, LOAD_DISCARD, 500);
    }
    load_verify(&b);
    load_verify(&a);
    atomic_store(&v->report->user[0], load_resident(&small) + load_resident(&huge));
    vmm_set_phase(v, 1);
    vmm_await_command(v, 1);
    vmm_check(v, &huge, standin_detach(&huge));
    load_verify(&a);
    vmm_check(v, &small, standin_detach(&small));
}

static void regions_of_both_sizes_share_a_limit(void **state)
{
    static const char *const tiers[] = {"pool=pool,capacity=16M",
                                        "file=file,path={store}", NULL};
    static const char *const limit[] = {"--limit", "32M", "--demote-after", "500ms",
                                        NULL};
    struct manager m;
    struct vmm v;
    struct peer_stats s;
    (void)state;

    need_huge_pages();
    manager_start_tiers(&m, "UFFDMM_MANAGER", tiers, limit);
    vmm_start(&v, m.socket, both_body, NULL);
    vmm_await_phase(&v, 1, HIER_END_MS);
    assert_int_equal(control_tier_stats(m.socket, "vm", &s), 0);
    assert_int_equal(s.vm.checksum_errors, 0);
    assert_int_equal(s.vm.lost_pages, 0);
    assert_true(s.tiers[1].stored_pages > 0); /* the small ones */
    assert_true(s.tiers[SECOND].stored_pages > 0);
    assert_true(atomic_load(&v.report->user[0]) <= LIMIT + OVERSHOOT);
    vmm_command(&v, 1);
    vmm_join(&v, HIER_END_MS);
    manager_stop(&m);
}

/* ---- hammering -------------------------------------------------------------------- */

static void hammer(struct vmm *v, struct guest_load *l, uint64_t rounds, uint64_t b)
{
    uint64_t lost = 0;
    (void)b;

    while (rounds-- && !lost) {
        lost = load_hammer(l->standin, l->nr_pages, 3, 3000, &v->report->steps);
    }
    hier_report(v, 0, lost);
}

static uint64_t lost_updates(const char *variable, uint64_t rounds)
{
    struct hier_options o = plain;
    struct hier h;

    need_huge_pages();
    o.variable = variable;
    o.ram = 64 * HIER_MIB;
    o.arguments[1] = "16M";
    o.extra = hammer;
    hier_start(&h, &o);
    hier_do(&h, HIER_EXTRA, rounds, 0);
    struct peer_stats s = hier_stats(&h);
    uint64_t lost = hier_result(&h, 0);
    print_message("updates=%llu evicted=%llu cancelled=%llu lost=%llu\n",
                  (unsigned long long)atomic_load(&h.vmm.report->steps),
                  (unsigned long long)s.vm.evicted,
                  (unsigned long long)s.vm.evicted_cancelled, (unsigned long long)lost);
    assert_true(s.vm.evicted > 100 * HUGE_PAGES);
    hier_stop(&h);
    return lost;
}

static void hammered_pages_lose_no_update(void **state)
{
    (void)state;
    assert_int_equal(lost_updates("UFFDMM_MANAGER", 1), 0);
}

/* The control of the test above. */
static void hammered_pages_lose_updates_without_write_protection(void **state)
{
    (void)state;
    setenv("UFFDMM_TEST_NO_WP", "1", 1);
    uint64_t lost = lost_updates("UFFDMM_MANAGER_HOOKS", 6);
    unsetenv("UFFDMM_TEST_NO_WP");
    assert_true(lost > 0);
}

/* ---- recovery ----------------------------------------------------------------- */

static void killed_workers_lose_nothing_of_huge_pages(void **state)
{
    enum { KILLS = 6 };
    struct hier_options o = plain;
    struct hier h;
    (void)state;

    need_huge_pages();
    o.resilient = true;
    hier_start(&h, &o);
    kill_loop(&h, LOAD_RANDOM, KILLS);
    hier_stop(&h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_touches_verify_under_the_limit),
        cmocka_unit_test(sequential_touches_of_three_shards_verify_under_the_limit),
        cmocka_unit_test(pages_are_striped_over_two_paths),
        cmocka_unit_test(discards_under_load_read_as_zero),
        cmocka_unit_test(pool_passes_huge_pages_on),
        cmocka_unit_test(full_tier_passes_whole_pages_on),
        cmocka_unit_test(pages_of_one_word_take_no_slot),
        cmocka_unit_test(pages_only_read_are_not_written_again),
        cmocka_unit_test(read_errors_make_the_guest_wait_and_it_goes_on),
        cmocka_unit_test(write_errors_make_the_guest_wait_and_it_goes_on),
        cmocka_unit_test(host_without_huge_pages_costs_no_data),
        cmocka_unit_test(vm_with_nothing_but_a_pool_is_refused),
        cmocka_unit_test(limit_of_a_few_pages_is_refused),
        cmocka_unit_test(sizes_that_are_not_whole_pages_are_refused),
        cmocka_unit_test(regions_of_both_sizes_share_a_limit),
        cmocka_unit_test(killed_workers_lose_nothing_of_huge_pages),
        cmocka_unit_test(hammered_pages_lose_no_update),
        cmocka_unit_test(hammered_pages_lose_updates_without_write_protection),
    };

    return cmocka_run_group_tests_name("huge", tests, reserve_pages, give_pages_back);
}
