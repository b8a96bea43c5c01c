/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The log-linear histogram: protocol.h promises its bounds to every reader. */
#include "unit.h"

#include "hist.h"

static void short_durations_share_bucket_zero(void **state)
{
    (void)state;
    assert_int_equal(hist_bucket(0), 0);
    assert_int_equal(hist_bucket(255), 0);
    assert_int_equal(hist_bucket(256), 0);
    assert_int_equal(hist_bucket(256 + 31), 0);
    assert_int_equal(hist_bucket(256 + 32), 1);
}

static void bucket_and_floor_are_inverse(void **state)
{
    (void)state;
    for (unsigned b = 1; b < UFFDMM_HIST_BUCKETS; b++) {
        assert_int_equal(hist_bucket(hist_floor(b)), b);
        assert_int_equal(hist_bucket(hist_floor(b) - 1), b - 1);
    }
}

static void bucket_is_at_most_an_eighth_wide(void **state)
{
    (void)state;
    for (unsigned b = 1; b + 1 < UFFDMM_HIST_BUCKETS; b++) {
        uint64_t width = hist_floor(b + 1) - hist_floor(b);
        assert_true(width * 8 <= hist_floor(b));
    }
}

static void long_durations_share_the_last_bucket(void **state)
{
    (void)state;
    assert_int_equal(hist_bucket(60ULL * 1000000000), UFFDMM_HIST_BUCKETS - 1);
    assert_int_equal(hist_bucket(UINT64_MAX), UFFDMM_HIST_BUCKETS - 1);
    /* The header says from about 15 s. */
    assert_true(hist_floor(UFFDMM_HIST_BUCKETS - 1) > 14ULL * 1000000000);
    assert_true(hist_floor(UFFDMM_HIST_BUCKETS - 1) < 17ULL * 1000000000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(short_durations_share_bucket_zero),
        cmocka_unit_test(bucket_and_floor_are_inverse),
        cmocka_unit_test(bucket_is_at_most_an_eighth_wide),
        cmocka_unit_test(long_durations_share_the_last_bucket),
    };

    return cmocka_run_group_tests_name("hist", tests, NULL, NULL);
}
