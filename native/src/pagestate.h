/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The 8-byte page-state entry: taking it apart, putting it together, changing
 * it.  The layout is protocol.h's, the states and who may change what into
 * what are in docs/architecture.md.
 *
 * Every change is a compare-and-swap on the whole word, because fault threads,
 * the evictor and QEMU (discards) race for it.  Whoever loses drops what it
 * was about to do.  BUSY is a lock on one page: who set it works on the page
 * outside the table (punches, lifts write protection, copies in), everybody
 * else leaves the page alone until it is clear.  QEMU writes this table too, so
 * an entry is input: slots are range-checked where they are used.
 */
#ifndef UFFDMM_PAGESTATE_H
#define UFFDMM_PAGESTATE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "uffdmm/protocol.h"

typedef _Atomic uint64_t entry_t;

/*
 * Tier in an entry that is FILLING with zeros because nothing was stored, so that it is
 * told from one that is filled with its record (zero tier).  No tier has this number.
 */
#define ENTRY_TIER_HOLE UFFDMM_ENTRY_TIER_MASK

static inline unsigned entry_state(uint64_t e)
{
    return (unsigned)(e & UFFDMM_ENTRY_STATE_MASK);
}

static inline unsigned entry_tier(uint64_t e)
{
    return (unsigned)(e >> UFFDMM_ENTRY_TIER_SHIFT) & UFFDMM_ENTRY_TIER_MASK;
}

static inline unsigned entry_gen(uint64_t e)
{
    return (unsigned)(e >> UFFDMM_ENTRY_GEN_SHIFT) & UFFDMM_ENTRY_GEN_MASK;
}

static inline uint64_t entry_slot(uint64_t e)
{
    return e >> UFFDMM_ENTRY_SLOT_SHIFT;
}

static inline bool entry_busy(uint64_t e)
{
    return (e & UFFDMM_ENTRY_BUSY) != 0;
}

/* A new entry; @flags is an or of UFFDMM_ENTRY_BUSY, _MAYHOLE, _WRITING. */
static inline uint64_t entry_make(unsigned state, unsigned flags, unsigned tier,
                                  unsigned gen, uint64_t slot)
{
    return (uint64_t)state | flags | ((uint64_t)tier << UFFDMM_ENTRY_TIER_SHIFT) |
           ((uint64_t)(gen & UFFDMM_ENTRY_GEN_MASK) << UFFDMM_ENTRY_GEN_SHIFT) |
           (slot << UFFDMM_ENTRY_SLOT_SHIFT);
}

/* @e with another state and other flags; tier, generation and slot stay. */
static inline uint64_t entry_with(uint64_t e, unsigned state, unsigned flags)
{
    return (e & ~(uint64_t)0xff) | state | flags;
}

static inline uint64_t entry_load(entry_t *p)
{
    return atomic_load_explicit(p, memory_order_acquire);
}

/* Changes *@p from @from to @to; false when somebody was faster. */
static inline bool entry_cas(entry_t *p, uint64_t from, uint64_t to)
{
    return atomic_compare_exchange_strong_explicit(p, &from, to, memory_order_acq_rel,
                                                   memory_order_acquire);
}

/* Ends the work on a page: whatever the entry became meanwhile stays. */
static inline void entry_clear_busy(entry_t *p)
{
    atomic_fetch_and_explicit(p, ~(uint64_t)UFFDMM_ENTRY_BUSY, memory_order_acq_rel);
}

#endif
