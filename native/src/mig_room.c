/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A VM that is being loaded and its limit; mig_room.h has the whole picture. */
#include "mig_room.h"

#include "clock.h"
#include "log.h"
#include "mig.h"

/* Part of the limit by which it may be passed at a time. */
#define ROOM_PART 4

bool mig_loading(const struct vm *vm)
{
    uint32_t stage = vm->mig ? atomic_load(&vm->mig->stage) : UFFDMM_MIG_IDLE;

    if (!vm->incoming || stage == UFFDMM_MIG_TAKEN) {
        return false;
    }
    if (stage == UFFDMM_MIG_PREPARED || stage == UFFDMM_MIG_INSTALLED) {
        return true;
    }
    /* content only: until mig_open_late() */
    for (unsigned i = 1; i <= vm->options->nr_tiers; i++) {
        if (!vm->tiers[i]) {
            return true;
        }
    }
    return false;
}

/* Pages that are in memory beyond the limit; negative when they are below. */
static int64_t beyond_limit(const struct vm *vm)
{
    return atomic_load_explicit(&vm->mig_room, memory_order_relaxed) - vm_room(vm);
}

void mig_give_room(struct vm *vm)
{
    int64_t part =
        (int64_t)(atomic_load_explicit(&vm->limit, memory_order_relaxed) / ROOM_PART);

    if (!mig_loading(vm)) {
        return;
    }
    if (!mig_room_given(vm)) {
        log_warn(
            "VM '%s' is at its limit, is being loaded, and no tier takes pages before "
            "its volume is here: it may pass the limit until then",
            vm->name);
    }
    atomic_store_explicit(&vm->mig_room, beyond_limit(vm) + vm_margin_high(vm) + part,
                          memory_order_relaxed);
}

void mig_take_room(struct vm *vm)
{
    int64_t given = atomic_load_explicit(&vm->mig_room, memory_order_relaxed);
    int64_t beyond = beyond_limit(vm), low = vm_margin_low(vm);

    if (!given || mig_loading(vm)) {
        return;
    }
    /* faults go on as they would at the limit, and so does the evictor */
    if (beyond + low <= 0) {
        atomic_store_explicit(&vm->mig_room, 0, memory_order_relaxed);
        log_info("VM '%s' is below its limit again", vm->name);
        return;
    }
    beyond += vm_margin_high(vm);
    if (beyond < given) {
        atomic_store_explicit(&vm->mig_room, beyond, memory_order_relaxed);
    }
    if (atomic_load(&vm->evict_to) < 0) {
        int64_t limit = (int64_t)atomic_load_explicit(&vm->limit, memory_order_relaxed);
        int64_t to = limit - vm_margin_high(vm) -
                     atomic_load_explicit(&vm->arena_pages, memory_order_relaxed);

        atomic_store(&vm->evict_to, to > 0 ? to : 0);
    }
}
