/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Frozen slots.
 *
 * Theory of operation.  QEMU names a slot in S and looks at the entry of the page once
 * more, behind a full barrier; whoever frees a slot here has changed the entry
 * before, and looks at S now, behind a full barrier.  So either QEMU sees the changed
 * entry and takes the name back, or the name is seen here and the slot is put aside:
 * it stays taken, and its bytes stay what they are, until the session has failed.  In
 * the first case a slot may be put aside for nothing, which costs its room until then.
 *
 * Putting aside sets a bit: it is done by fault threads, too, which allocate nothing.
 */
#include <errno.h>
#include <stdlib.h>

#include "mig.h"
#include "test_hooks.h"
#include "vm.h"

static bool named(const struct region *r, uint64_t pfn, uint64_t e)
{
    struct uffdmm_set_page *pages = atomic_load(&r->mig.pages);
    uint64_t s;

    if (!pages) {
        return false;
    }
    s = __atomic_load_n(&pages[pfn].entry, __ATOMIC_SEQ_CST);
    return entry_state(s) == UFFDMM_PAGE_STORED && entry_tier(s) == entry_tier(e) &&
           entry_slot(s) == entry_slot(e);
}

bool mig_freeze(struct region *r, uint64_t pfn, uint64_t e)
{
    struct mig *m = r->vm->mig;
    bool keep;

    atomic_thread_fence(memory_order_seq_cst);
    if (!atomic_load(&m->freezing) || entry_tier(e) != atomic_load(&m->tier) ||
        test_hook("UFFDMM_TEST_NO_FREEZE")) {
        return false;
    }
    pthread_mutex_lock(&m->freeze_lock);
    keep = atomic_load(&m->freezing) && (atomic_load(&m->freeze_all) || named(r, pfn, e));
    for (uint64_t slot = entry_slot(e);
         keep && slot < entry_slot(e) + region_units(r) && slot < m->frozen_slots;
         slot++) {
        uint64_t bit = 1ULL << (slot % 64);

        atomic_fetch_add(&m->nr_frozen, !(m->frozen[slot / 64] & bit));
        m->frozen[slot / 64] |= bit;
    }
    pthread_mutex_unlock(&m->freeze_lock);
    return keep;
}

int mig_freeze_begin(struct mig *m)
{
    const struct tier *t = m->vm->tiers[atomic_load(&m->tier)];
    uint64_t nr = 0;

    if (t) {
        nr = stats_get(&t->stats->capacity_bytes) / PAGE_SIZE_4K + 1;
    }
    m->frozen = calloc((size_t)(nr / 64 + 1), sizeof(*m->frozen));
    if (!m->frozen) {
        return -ENOMEM;
    }
    m->frozen_slots = nr;
    m->nr_deposits = 0;
    atomic_store(&m->nr_frozen, 0);
    atomic_store(&m->freeze_all, false);
    atomic_store(&m->freezing, true);
    return 0;
}

void mig_freeze_end(struct mig *m)
{
    struct tier *t = m->vm->tiers[atomic_load(&m->tier)];

    pthread_mutex_lock(&m->freeze_lock);
    atomic_store(&m->freezing, false);
    atomic_store(&m->freeze_all, false);
    pthread_mutex_unlock(&m->freeze_lock);
    /* nobody puts anything aside any more */
    for (uint64_t slot = 1; t && slot < m->frozen_slots; slot++) {
        if (m->frozen[slot / 64] >> (slot % 64) & 1) {
            tier_free(t, slot, 1);
        }
    }
    for (; t && m->nr_deposits; m->nr_deposits--) {
        const struct mig_deposit *d = &m->deposits[m->nr_deposits - 1];

        tier_free(t, d->slot, d->nr);
    }
    free(m->frozen);
    m->frozen = NULL;
    m->frozen_slots = 0;
    atomic_store(&m->nr_frozen, 0);
}
