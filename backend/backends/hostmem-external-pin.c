/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Mappings of guest memory that its external manager must know of
 *
 * Device emulation maps guest memory (address_space_map()) and leaves the
 * transfer to the kernel, which for O_DIRECT and io_uring pins the pages and
 * has hardware write to them.  userfaultfd does not see that.  So each page
 * has a count of the mappings for writing, in the table that is shared with
 * the manager, who does not evict a page while it is not zero.
 *
 * A mapping for reading needs no count: if the page goes meanwhile, the
 * kernel still holds the old one, with the bytes as they were when the
 * device was told to read them.
 */

#include "qemu/osdep.h"
#include "exec/ramblock.h"
#include "system/hostmem-external.h"
#include "hostmem-external-link.h"

void hostmem_external_pin(RAMBlock *rb, uint64_t start, size_t length)
{
    external_link_pin(rb->external, start, length);
}

void hostmem_external_unpin(RAMBlock *rb, uint64_t start, size_t length)
{
    external_link_unpin(rb->external, start, length);
}
