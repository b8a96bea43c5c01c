/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The limit of a VM that is being loaded and has nowhere to put pages.
 *
 * What QEMU loads in early rounds partly goes by location in the end, so more may have
 * come than will stay.  The volume of the source takes no page before it was taken, and
 * where there is no other tier nothing can go out: whoever loads would wait until the
 * migration fails, with the guest stopped.  So such a VM may pass its limit, and goes back
 * below it in the background as soon as the volume is its own.
 */
#ifndef UFFDMM_MIG_ROOM_H
#define UFFDMM_MIG_ROOM_H

#include <stdbool.h>
#include <stdint.h>

#include "vm.h"

/* True while a tier may be this VM's only later: nothing is wrong when none takes pages. */
bool mig_loading(const struct vm *vm);

/* The evictor found no tier that takes pages: lets a VM that is loaded have more. */
void mig_give_room(struct vm *vm);

/*
 * Takes back what is not used of it, and has the evictor make it unused once it can.
 * To be called from time to time while mig_room_given().
 */
void mig_take_room(struct vm *vm);

static inline bool mig_room_given(const struct vm *vm)
{
    return atomic_load_explicit(&vm->mig_room, memory_order_relaxed) != 0;
}

#endif
