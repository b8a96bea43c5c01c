/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A tier without a store, for targets that are about which slots are named: the slot map
 * is that of the file tier, bytes are never moved.
 */
#ifndef UFFDMM_FUZZ_SLOT_TIER_H
#define UFFDMM_FUZZ_SLOT_TIER_H

#include "slots.h"
#include "tier.h"

static inline struct slots *slots_of(const struct tier *t)
{
    return t->priv;
}

static bool slot_tier_take(struct tier *t, uint64_t slot, uint32_t region_id,
                           uint64_t pfn)
{
    (void)region_id;
    (void)pfn;
    return slots_take(slots_of(t), slot);
}

static void slot_tier_untake(struct tier *t, uint64_t slot)
{
    slots_untake(slots_of(t), slot);
}

static bool slot_tier_claim(struct tier *t, uint64_t slot)
{
    return slots_claim(slots_of(t), slot);
}

static bool slot_tier_free(struct tier *t, uint64_t slot)
{
    return slots_free(slots_of(t), slot);
}

static bool slot_tier_valid(const struct tier *t, uint64_t slot)
{
    return slots_valid(slots_of(t), slot);
}

static const struct tier_ops slot_tier_ops = {
    .take = slot_tier_take,
    .untake = slot_tier_untake,
    .claim = slot_tier_claim,
    .free = slot_tier_free,
    .valid = slot_tier_valid,
};

static inline bool slot_taken(const struct tier *t, uint64_t slot)
{
    return slots_of(t)->taken[slot / 64] >> (slot % 64) & 1;
}

#endif
