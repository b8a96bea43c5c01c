/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The slot allocator: a slot handed out twice is two pages in one place. */
#include "unit.h"

#include "slots.h"

#include <stdlib.h>
#include <string.h>

static void slot_zero_is_never_handed_out(void **state)
{
    struct slots s;
    uint64_t start;
    (void)state;

    assert_int_equal(slots_init(&s, 100), 0);
    assert_int_equal(slots_alloc(&s, 99, &start), 99);
    assert_int_equal(start, 1);
    assert_int_equal(slots_alloc(&s, 1, &start), 0);
    assert_false(slots_free(&s, 0));
    assert_false(slots_valid(&s, 0));
    assert_true(slots_valid(&s, 99));
    assert_false(slots_valid(&s, 100));
    slots_deinit(&s);
}

static void full_store_hands_out_nothing_until_one_is_freed(void **state)
{
    struct slots s;
    uint64_t start;
    (void)state;

    assert_int_equal(slots_init(&s, 130), 0);
    for (int i = 0; i < 129; i++) {
        assert_int_equal(slots_alloc(&s, 1, &start), 1);
    }
    assert_int_equal(slots_alloc(&s, 1, &start), 0);
    assert_int_equal(s.used, 129);
    assert_true(slots_free(&s, 77));
    assert_int_equal(slots_alloc(&s, 64, &start), 1);
    assert_int_equal(start, 77);
    slots_deinit(&s);
}

static void slot_is_freed_once(void **state)
{
    struct slots s;
    uint64_t start;
    (void)state;

    assert_int_equal(slots_init(&s, 64), 0);
    assert_int_equal(slots_alloc(&s, 1, &start), 1);
    assert_true(slots_free(&s, start));
    assert_false(slots_free(&s, start));
    assert_false(slots_free(&s, 64));
    assert_false(slots_free(&s, UINT64_MAX));
    assert_int_equal(s.used, 0);
    slots_deinit(&s);
}

static void run_is_found_behind_fragments(void **state)
{
    struct slots s;
    uint64_t start;
    (void)state;

    assert_int_equal(slots_init(&s, 1024), 0);
    assert_int_equal(slots_alloc(&s, 1023, &start), 1023);
    for (uint64_t i = 2; i < 100; i += 2) {
        assert_true(slots_free(&s, i)); /* holes of one */
    }
    for (uint64_t i = 500; i < 516; i++) {
        assert_true(slots_free(&s, i)); /* a hole of 16 */
    }
    assert_int_equal(slots_alloc(&s, 16, &start), 16);
    assert_int_equal(start, 500);
    assert_int_equal(slots_alloc(&s, 16, &start), 1);
    slots_deinit(&s);
}

static void growing_keeps_what_is_taken(void **state)
{
    struct slots s;
    uint64_t start;
    (void)state;

    assert_int_equal(slots_init(&s, 0), 0);
    assert_int_equal(slots_alloc(&s, 1, &start), 0);
    assert_int_equal(slots_grow(&s, 70), 0);
    assert_int_equal(slots_alloc(&s, 69, &start), 69);
    assert_int_equal(slots_grow(&s, 200), 0);
    assert_int_equal(slots_grow(&s, 100), 0); /* never shrinks */
    assert_int_equal(slots_alloc(&s, 130, &start), 130);
    assert_int_equal(start, 70);
    assert_true(slots_free(&s, 3));
    slots_deinit(&s);
}

static void run_being_trimmed_is_not_handed_out(void **state)
{
    struct slots s;
    uint64_t start;
    uint64_t trimmed;
    (void)state;

    assert_int_equal(slots_init(&s, 129), 0);
    assert_int_equal(slots_alloc(&s, 128, &start), 128);
    for (uint64_t i = 1; i <= 64; i++) {
        assert_true(slots_free(&s, i));
    }
    assert_int_equal(slots_take_untrimmed(&s, 16, 64, &trimmed), 64);
    assert_int_equal(trimmed, 1);
    assert_int_equal(slots_alloc(&s, 1, &start), 0);
    slots_trimmed(&s, trimmed, 64, true);
    /* Trimmed once is trimmed: nothing is left to do until it is written again. */
    assert_int_equal(slots_take_untrimmed(&s, 1, 64, &trimmed), 0);
    assert_int_equal(slots_alloc(&s, 64, &start), 64);
    slots_deinit(&s);
}

static void failed_trim_is_tried_again(void **state)
{
    struct slots s;
    uint64_t start;
    (void)state;

    assert_int_equal(slots_init(&s, 65), 0);
    assert_int_equal(slots_alloc(&s, 64, &start), 64);
    for (uint64_t i = 1; i <= 64; i++) {
        assert_true(slots_free(&s, i));
    }
    assert_int_equal(slots_take_untrimmed(&s, 1, 64, &start), 64);
    slots_trimmed(&s, start, 64, false);
    bool again = slots_take_untrimmed(&s, 1, 64, &start) == 64 ||
                 slots_take_untrimmed(&s, 1, 64, &start) == 64; /* the hand wraps */
    assert_true(again);
    slots_deinit(&s);
}

static void short_runs_are_left_alone(void **state)
{
    struct slots s;
    uint64_t start;
    (void)state;

    assert_int_equal(slots_init(&s, 257), 0);
    assert_int_equal(slots_alloc(&s, 256, &start), 256);
    for (uint64_t i = 10; i < 20; i++) {
        assert_true(slots_free(&s, i));
    }
    for (uint64_t i = 100; i < 120; i++) {
        assert_true(slots_free(&s, i));
    }
    assert_int_equal(slots_take_untrimmed(&s, 16, 64, &start), 20);
    assert_int_equal(start, 100);
    slots_deinit(&s);
}

/* Exactly a run or nothing: however many fragments have to be looked at. */
static void whole_run_is_found_behind_many_fragments(void **state)
{
    enum { NR = 4096, RUN = 512 };
    struct slots s;
    uint64_t start = 0, got;
    (void)state;

    assert_int_equal(slots_init(&s, NR), 0);
    assert_int_equal(slots_alloc(&s, NR, &start), NR - 1);
    for (uint64_t i = 1; i < 3000; i += 2) {
        assert_true(slots_free(&s, i));
    }
    assert_false(slots_alloc_run(&s, RUN, &start));
    assert_int_equal(s.used, NR - 1 - 1500);
    for (uint64_t i = 3100; i < 3100 + RUN; i++) {
        assert_true(slots_free(&s, i));
    }
    got = slots_alloc(&s, RUN, &start);
    assert_true(got < RUN); /* it gives up early: the control */
    for (uint64_t i = 0; i < got; i++) {
        assert_true(slots_free(&s, start + i));
    }
    assert_true(slots_alloc_run(&s, RUN, &start));
    assert_int_equal(start, 3100);
    assert_false(slots_alloc_run(&s, RUN, &start));
    assert_int_equal(start, 3100); /* untouched */
    for (uint64_t i = 3100; i < 3100 + RUN; i++) {
        assert_true(slots_free(&s, i));
    }
    assert_true(slots_alloc_run(&s, RUN, &start));
    slots_deinit(&s);
}

/* The run may begin before the hand and end behind it. */
static void whole_run_across_the_hand_is_found(void **state)
{
    struct slots s;
    uint64_t start = 0;
    (void)state;

    assert_int_equal(slots_init(&s, 101), 0);
    assert_int_equal(slots_alloc(&s, 50, &start), 50); /* the hand is at 51 */
    for (uint64_t i = 1; i <= 50; i++) {
        assert_true(slots_free(&s, i));
    }
    assert_true(slots_alloc_run(&s, 100, &start));
    assert_int_equal(start, 1);
    assert_int_equal(s.used, 100);
    slots_deinit(&s);
}

/* Against a plain array, with a seeded random sequence of all calls. */
static void agrees_with_a_plain_model(void **state)
{
    enum { NR = 3000, STEPS = 200000 };
    static uint8_t taken[NR];
    struct slots s;
    uint64_t random = 88172645463325252ULL;
    uint64_t used = 0;
    (void)state;

    memset(taken, 0, sizeof(taken));
    assert_int_equal(slots_init(&s, NR), 0);
    for (int step = 0; step < STEPS; step++) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        uint64_t start = 0;
        if (random % 5 < 2) {
            uint64_t want = 1 + (random >> 8) % 64;
            uint64_t got = slots_alloc(&s, want, &start);
            assert_true(got <= want);
            assert_true(got > 0 || used == NR - 1);
            for (uint64_t i = start; i < start + got; i++) {
                assert_in_range(i, 1, NR - 1);
                assert_int_equal(taken[i], 0);
                taken[i] = 1;
            }
            used += got;
        } else if (random % 5 < 4) {
            for (uint64_t i = (random >> 8) % NR, n = 0; n < 32; n++, i = (i + 1) % NR) {
                assert_int_equal(slots_free(&s, i), taken[i]);
                used -= taken[i];
                taken[i] = 0;
            }
        } else {
            uint64_t got = slots_take_untrimmed(&s, 8, 64, &start);
            for (uint64_t i = start; i < start + got; i++) {
                assert_int_equal(taken[i], 0);
            }
            if (got) {
                slots_trimmed(&s, start, got, random & 0x100);
            }
        }
        assert_int_equal(s.used, used);
    }
    slots_deinit(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(slot_zero_is_never_handed_out),
        cmocka_unit_test(full_store_hands_out_nothing_until_one_is_freed),
        cmocka_unit_test(slot_is_freed_once),
        cmocka_unit_test(run_is_found_behind_fragments),
        cmocka_unit_test(whole_run_is_found_behind_many_fragments),
        cmocka_unit_test(whole_run_across_the_hand_is_found),
        cmocka_unit_test(growing_keeps_what_is_taken),
        cmocka_unit_test(run_being_trimmed_is_not_handed_out),
        cmocka_unit_test(failed_trim_is_tried_again),
        cmocka_unit_test(short_runs_are_left_alone),
        cmocka_unit_test(agrees_with_a_plain_model),
    };

    return cmocka_run_group_tests_name("slots", tests, NULL, NULL);
}
