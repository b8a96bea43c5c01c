/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "copies.h"

#include "vm.h"

/* Given up at a time. */
#define RECLAIM_PAGES 2048

/* Fewer than this are not worth looking for. */
#define RECLAIM_MIN 64

unsigned copies_reclaim(struct vm *vm, struct tier *t, uint64_t *hand)
{
    unsigned freed = 0;

    if ((int64_t)tier_pages(t) - atomic_load(&vm->stored[t->index]) < RECLAIM_MIN) {
        return 0;
    }
    for (unsigned k = 0; k < UFFDMM_REGIONS_MAX && freed < RECLAIM_PAGES; k++) {
        struct region *r = vm->regions[k];

        for (uint64_t n = 0; r && n < r->nr_pages && freed < RECLAIM_PAGES; n++) {
            uint64_t pfn = (*hand)++ % r->nr_pages;
            uint64_t e = entry_load(&r->entries[pfn]);

            if (entry_state(e) != UFFDMM_PAGE_CLEAN || entry_busy(e) ||
                entry_tier(e) != t->index) {
                continue;
            }
            if (entry_cas(&r->entries[pfn], e,
                          entry_make(UFFDMM_PAGE_RESIDENT,
                                     (unsigned)e & UFFDMM_ENTRY_MAYHOLE, 0, entry_gen(e),
                                     0))) {
                region_free_slots(r, pfn, e);
                freed += region_units(r);
            }
        }
    }
    return freed;
}
