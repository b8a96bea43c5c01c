/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Hot blocks: found soon when faults gather, never when they do not. */
#include "unit.h"

#include <stdlib.h>

#include "heat.h"

enum { BLOCKS = 4096 };

static uint64_t random_below(uint64_t *state, uint64_t n)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state % n;
}

/* Pages that are out, by block: more of them in the first half. */
static uint64_t missing_in(uint64_t block)
{
    return block < BLOCKS / 2 ? 48 : 12;
}

enum { ALL_MISSING = BLOCKS / 2 * 48 + BLOCKS / 2 * 12 };

/* A block that a fault on any page that is out falls into. */
static uint64_t random_block(uint64_t *rng)
{
    uint64_t page = random_below(rng, ALL_MISSING);

    return page < BLOCKS / 2 * 48 ? page / 48
                                  : BLOCKS / 2 + (page - BLOCKS / 2 * 48) / 12;
}

/* Share of @faults that fall into hot blocks; @percent of them in the blocks [0, @part). */
static double hot_share(struct heat *h, unsigned percent, uint64_t part, unsigned faults,
                        uint64_t *rng)
{
    unsigned hot = 0;

    for (unsigned i = 0; i < faults; i++) {
        uint64_t block = random_below(rng, 100) < percent ? random_below(rng, part)
                                                          : random_block(rng);

        hot += heat_count(h, block) && heat_hot(h, block, missing_in(block), ALL_MISSING);
    }
    return (double)hot / faults;
}

static void faults_all_over_make_nothing_hot(void **state)
{
    struct heat h;
    uint64_t rng = 88172645463325252ULL;
    (void)state;

    assert_int_equal(heat_init(&h, BLOCKS), 0);
    assert_true(hot_share(&h, 0, 1, 200000, &rng) < 0.005);
    heat_deinit(&h);
}

static void gathered_faults_make_their_blocks_hot_within_three_windows(void **state)
{
    struct heat h;
    uint64_t rng = 88172645463325252ULL;
    (void)state;

    assert_int_equal(heat_init(&h, BLOCKS), 0);
    hot_share(&h, 0, 1, 50000, &rng);
    hot_share(&h, 95, BLOCKS / 5, 3 * BLOCKS, &rng);
    assert_true(hot_share(&h, 95, BLOCKS / 5, 1000, &rng) > 0.4);
    heat_deinit(&h);
}

static void heat_ends_when_faults_spread_again(void **state)
{
    struct heat h;
    uint64_t rng = 88172645463325252ULL;
    (void)state;

    assert_int_equal(heat_init(&h, BLOCKS), 0);
    hot_share(&h, 95, BLOCKS / 5, 5 * BLOCKS, &rng);
    hot_share(&h, 0, 1, 8 * BLOCKS, &rng);
    assert_true(hot_share(&h, 0, 1, 20000, &rng) < 0.005);
    heat_deinit(&h);
}

static void a_block_that_does_not_exist_is_never_counted(void **state)
{
    struct heat h;
    (void)state;

    assert_int_equal(heat_init(&h, 1), 0);
    for (unsigned i = 0; i < 10000; i++) {
        heat_count(&h, 0);
        assert_false(heat_count(&h, 1));
    }
    assert_false(heat_hot(&h, 0, 1, 0)); /* nothing is out: nothing to bring in */
    heat_deinit(&h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(faults_all_over_make_nothing_hot),
        cmocka_unit_test(gathered_faults_make_their_blocks_hot_within_three_windows),
        cmocka_unit_test(heat_ends_when_faults_spread_again),
        cmocka_unit_test(a_block_that_does_not_exist_is_never_counted),
    };

    return cmocka_run_group_tests_name("heat", tests, NULL, NULL);
}
