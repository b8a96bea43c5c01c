/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Read-ahead windows: growth on proof, and nothing for a random pattern. */
#include "unit.h"

#include "readahead.h"

#include <stdlib.h>

enum { WINDOW = 64 };

/* One fault as the fault thread does it: the whole window comes in. */
static uint32_t fault(struct readahead *ra, uint64_t pfn, bool *hit)
{
    uint32_t window = readahead_window(ra, pfn, WINDOW, hit);

    readahead_done(ra, pfn, pfn + window);
    return window;
}

static void sequential_stream_doubles_up_to_the_maximum(void **state)
{
    struct readahead ra;
    bool hit;
    uint64_t pfn = 1000;
    (void)state;

    readahead_init(&ra);
    assert_int_equal(fault(&ra, pfn, &hit), 1);
    assert_false(hit);
    pfn += 1;
    for (uint32_t want = 2; want <= WINDOW; want *= 2) {
        assert_int_equal(fault(&ra, pfn, &hit), want);
        assert_true(hit);
        pfn += want;
    }
    assert_int_equal(fault(&ra, pfn, &hit), WINDOW);
}

static void random_pattern_stays_near_one_page(void **state)
{
    struct readahead ra;
    bool hit;
    uint64_t pages = 0;
    uint64_t random = 88172645463325252ULL;
    (void)state;

    readahead_init(&ra);
    for (int i = 0; i < 10000; i++) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        pages += fault(&ra, random % (1 << 18), &hit);
    }
    assert_true(pages < 10100); /* at most one page in a hundred for nothing */
}

static void two_streams_do_not_disturb_each_other(void **state)
{
    struct readahead ra;
    bool hit;
    uint64_t a = 0;
    uint64_t b = 1 << 20;
    uint32_t got_a = 0;
    uint32_t got_b = 0;
    (void)state;

    readahead_init(&ra);
    for (int i = 0; i < 8; i++) {
        got_a = fault(&ra, a, &hit);
        a += got_a;
        got_b = fault(&ra, b, &hit);
        b += got_b;
    }
    assert_int_equal(got_a, WINDOW);
    assert_int_equal(got_b, WINDOW);
}

static void window_cut_short_continues_where_it_stopped(void **state)
{
    struct readahead ra;
    bool hit;
    (void)state;

    readahead_init(&ra);
    fault(&ra, 0, &hit);
    assert_int_equal(readahead_window(&ra, 1, WINDOW, &hit), 2);
    readahead_done(&ra, 1, 2); /* the second page was there already */
    assert_int_equal(readahead_window(&ra, 2, WINDOW, &hit), 4);
    assert_true(hit);
}

static void maximum_of_one_switches_it_off(void **state)
{
    struct readahead ra;
    bool hit;
    (void)state;

    readahead_init(&ra);
    for (uint64_t pfn = 0; pfn < 100; pfn++) {
        assert_int_equal(readahead_window(&ra, pfn, 1, &hit), 1);
        readahead_done(&ra, pfn, pfn + 1);
    }
}

static void lowered_maximum_holds_at_once(void **state)
{
    struct readahead ra;
    bool hit;
    uint64_t pfn = 0;
    (void)state;

    readahead_init(&ra);
    for (int i = 0; i < 8; i++) {
        pfn += fault(&ra, pfn, &hit);
    }
    assert_int_equal(readahead_window(&ra, pfn, 4, &hit), 4);
    assert_true(hit);
}

/* Short runs at far places: @run pages each, then the next place. */
static uint64_t pages_of_short_runs(struct readahead *ra, uint32_t run, int runs)
{
    uint64_t pages = 0;
    bool hit;

    for (int i = 0; i < runs; i++) {
        uint64_t first = (uint64_t)(i + 1) << 20;

        for (uint64_t pfn = first; pfn < first + run;) {
            uint32_t window = fault(ra, pfn, &hit);

            pages += window;
            pfn += window;
        }
    }
    return pages;
}

static void windows_that_nobody_finishes_are_counted_and_shrink(void **state)
{
    struct readahead ra;
    uint64_t before, after;
    (void)state;

    readahead_init(&ra);
    /* windows of 1, 2, 4 .. 32: the last one begins inside the run and is hardly used */
    before = pages_of_short_runs(&ra, 33, READAHEAD_STREAMS);
    assert_int_equal(ra.wasted, 0);
    after = pages_of_short_runs(&ra, 33, READAHEAD_STREAMS);
    assert_true(ra.wasted >= 15 * READAHEAD_STREAMS);
    assert_true(after < before);
}

static void windows_grow_again_when_they_are_used(void **state)
{
    struct readahead ra;
    bool hit;
    uint64_t pfn = 1ULL << 30;
    uint32_t window = 0;
    (void)state;

    readahead_init(&ra);
    pages_of_short_runs(&ra, 9, 3 * READAHEAD_STREAMS);
    assert_true(ra.cap < WINDOW);
    for (int i = 0; i < 20; i++) {
        window = fault(&ra, pfn, &hit);
        pfn += window;
    }
    assert_int_equal(window, WINDOW);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sequential_stream_doubles_up_to_the_maximum),
        cmocka_unit_test(random_pattern_stays_near_one_page),
        cmocka_unit_test(two_streams_do_not_disturb_each_other),
        cmocka_unit_test(window_cut_short_continues_where_it_stopped),
        cmocka_unit_test(maximum_of_one_switches_it_off),
        cmocka_unit_test(lowered_maximum_holds_at_once),
        cmocka_unit_test(windows_that_nobody_finishes_are_counted_and_shrink),
        cmocka_unit_test(windows_grow_again_when_they_are_used),
    };

    return cmocka_run_group_tests_name("readahead", tests, NULL, NULL);
}
