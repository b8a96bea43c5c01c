/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Percentiles are those of the samples themselves, and the pages tell each other apart. */
#include "unit.h"

#include <string.h>

#include "content.h"
#include "demo_pages.h"
#include "samples.h"

static void percentiles_are_samples(void **state)
{
    struct samples s;

    (void)state;
    assert_true(samples_init(&s, 200));
    for (uint64_t i = 0; i < 200; i++) {
        samples_add(&s, (i * 77) % 200 + 1); /* 1..200, each once, in disorder */
    }
    assert_true(samples_full(&s));
    samples_add(&s, 1000000);
    samples_sort(&s);
    assert_int_equal(samples_percentile(&s, 50), 100);
    assert_int_equal(samples_percentile(&s, 99), 198);
    assert_int_equal(samples_percentile(&s, 100), 200);
    samples_deinit(&s);
}

static void few_samples_have_percentiles_too(void **state)
{
    struct samples s;

    (void)state;
    assert_true(samples_init(&s, 4));
    samples_sort(&s);
    assert_int_equal(samples_percentile(&s, 50), 0);
    samples_add(&s, 9);
    samples_sort(&s);
    assert_int_equal(samples_percentile(&s, 50), 9);
    assert_int_equal(samples_percentile(&s, 99), 9);
    samples_clear(&s);
    samples_add(&s, 3);
    samples_add(&s, 2);
    samples_sort(&s);
    assert_int_equal(samples_percentile(&s, 50), 2);
    samples_deinit(&s);
}

static void a_page_is_no_other_page(void **state)
{
    static uint64_t page[PAGE_WORDS];

    (void)state;
    for (uint64_t pfn = 0; pfn < 1000; pfn++) {
        demo_page_fill(page, pfn);
        assert_true(demo_page_ok(page, pfn));
        assert_false(demo_page_ok(page, pfn + 1));
        page[0]++;
        assert_false(demo_page_ok(page, pfn));
    }
    memset(page, 0, sizeof(page));
    assert_false(demo_page_ok(page, 0));
}

/* Odd words come from eight values of the page: in noise no two would be equal. */
static void every_page_compresses(void **state)
{
    static uint64_t page[PAGE_WORDS];

    (void)state;
    for (uint64_t pfn = 0; pfn < 1000; pfn++) {
        unsigned equal = 0;

        demo_page_fill(page, pfn);
        for (unsigned i = 3; i < PAGE_WORDS; i += 2) {
            equal += page[i] == page[1];
        }
        assert_true(equal > 5);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(percentiles_are_samples),
        cmocka_unit_test(few_samples_have_percentiles_too),
        cmocka_unit_test(a_page_is_no_other_page),
        cmocka_unit_test(every_page_compresses),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
