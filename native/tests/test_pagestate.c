/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The page-state entry: no field may spill into its neighbour. */
#include "unit.h"

#include "pagestate.h"

static const uint64_t slot_max = (1ULL << 40) - 1;

static void fields_come_back_as_they_went_in(void **state)
{
    (void)state;
    uint64_t e = entry_make(UFFDMM_PAGE_STORED, 0, UFFDMM_TIER_FILE, 0xabc, 0x123456789a);

    assert_int_equal(entry_state(e), UFFDMM_PAGE_STORED);
    assert_int_equal(entry_tier(e), UFFDMM_TIER_FILE);
    assert_int_equal(entry_gen(e), 0xabc);
    assert_int_equal(entry_slot(e), 0x123456789a);
    assert_false(entry_busy(e));
}

static void extremes_do_not_spill(void **state)
{
    (void)state;
    uint64_t e = entry_make(0, 0, 0, 0, slot_max);

    assert_int_equal(entry_slot(e), slot_max);
    assert_int_equal(e & 0xffffff, 0);
    e = entry_make(0, 0, 0, UFFDMM_ENTRY_GEN_MASK + 5, 0);
    assert_int_equal(entry_gen(e), 4); /* a generation wraps, the slot stays clear */
    assert_int_equal(entry_slot(e), 0);
    e = entry_make(0, 0, UFFDMM_ENTRY_TIER_MASK, 0, 0);
    assert_int_equal(entry_gen(e), 0);
    assert_int_equal(entry_state(e), 0);
}

static void with_changes_state_and_flags_alone(void **state)
{
    (void)state;
    uint64_t e =
        entry_make(UFFDMM_PAGE_STORED, UFFDMM_ENTRY_MAYHOLE, UFFDMM_TIER_FILE, 7, 99);
    uint64_t f = entry_with(e, UFFDMM_PAGE_FILLING, UFFDMM_ENTRY_BUSY);

    assert_int_equal(entry_state(f), UFFDMM_PAGE_FILLING);
    assert_true(entry_busy(f));
    assert_int_equal(f & UFFDMM_ENTRY_MAYHOLE, 0);
    assert_int_equal(entry_tier(f), UFFDMM_TIER_FILE);
    assert_int_equal(entry_gen(f), 7);
    assert_int_equal(entry_slot(f), 99);
}

static void cas_fails_when_somebody_was_faster(void **state)
{
    (void)state;
    uint64_t old = entry_make(UFFDMM_PAGE_RESIDENT, 0, 0, 1, 0);
    uint64_t other = entry_make(UFFDMM_PAGE_DISCARDED, 0, 0, 2, 0);
    entry_t e = old;

    assert_true(entry_cas(&e, old, other));
    assert_false(entry_cas(&e, old, entry_make(UFFDMM_PAGE_EVICTING, 0, 0, 1, 5)));
    assert_int_equal(entry_load(&e), other);
}

static void clearing_busy_keeps_what_the_entry_became(void **state)
{
    (void)state;
    entry_t e =
        entry_make(UFFDMM_PAGE_DISCARDED, UFFDMM_ENTRY_BUSY, UFFDMM_TIER_FILE, 3, 17);

    entry_clear_busy(&e);
    assert_int_equal(entry_load(&e),
                     entry_make(UFFDMM_PAGE_DISCARDED, 0, UFFDMM_TIER_FILE, 3, 17));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fields_come_back_as_they_went_in),
        cmocka_unit_test(extremes_do_not_spill),
        cmocka_unit_test(with_changes_state_and_flags_alone),
        cmocka_unit_test(cas_fails_when_somebody_was_faster),
        cmocka_unit_test(clearing_busy_keeps_what_the_entry_became),
    };

    return cmocka_run_group_tests_name("pagestate", tests, NULL, NULL);
}
