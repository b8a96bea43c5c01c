/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Discards of guest memory, on their way to its external manager
 */

#include "qemu/osdep.h"
#include "exec/memory.h"
#include "exec/ramblock.h"
#include "system/hostmem-external.h"
#include "hostmem-external-link.h"

void hostmem_external_discard(RAMBlock *rb, uint64_t start, size_t length)
{
    if (rb->external) {
        external_link_discard(rb->external, start, length);
    }
}

void hostmem_external_discarded(RAMBlock *rb, uint64_t start, size_t length)
{
    if (rb->external) {
        external_link_discarded(rb->external, start, length);
        /* a destination may have the old content, or its location */
        memory_region_set_dirty(rb->mr, start, length);
    }
}
