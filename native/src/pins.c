/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Pinned pages and the limit; pins.h has the whole picture. */
#include "pins.h"

#include "log.h"
#include "clock.h"

/* Pinned pages in memory; it stops to count at PINS_ROOM_MAX. */
static int64_t pinned_in_memory(const struct vm *vm)
{
    int64_t n = 0;

    for (unsigned k = 0; k < UFFDMM_REGIONS_MAX; k++) {
        const struct region *r = vm->regions[k];

        for (uint64_t pfn = 0; r && pfn < r->nr_pages; pfn++) {
            unsigned state;

            if (!page_pinned(r, pfn)) {
                continue;
            }
            state = entry_state(entry_load(&r->entries[pfn]));
            if (state == UFFDMM_PAGE_RESIDENT || state == UFFDMM_PAGE_CLEAN) {
                n += region_units(r);
            }
            if (n >= PINS_ROOM_MAX) {
                return PINS_ROOM_MAX;
            }
        }
    }
    return n;
}

void pins_give_room(struct vm *vm)
{
    static uint64_t logged;
    int64_t n = pinned_in_memory(vm);

    atomic_store_explicit(&vm->pins_room, n, memory_order_relaxed);
    if (n && log_ratelimit(&logged, 10 * NSEC_PER_SEC)) {
        log_warn(
            "devices hold %lld MiB of guest memory for transfers, which leaves too little "
            "of the limit: VM '%s' may pass it by as much (128 MiB at most) until they end",
            (long long)(n >> (20 - PAGE_SHIFT_4K)), vm->name);
    }
}

void pins_take_room(struct vm *vm)
{
    int64_t room = atomic_load_explicit(&vm->pins_room, memory_order_relaxed);
    int64_t n = room ? pinned_in_memory(vm) : 0;

    if (n < room) {
        atomic_store_explicit(&vm->pins_room, n, memory_order_relaxed);
    }
}
