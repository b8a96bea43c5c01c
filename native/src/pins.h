/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Pages that must stay where they are because a transfer into them may be in
 * flight.
 *
 * Theory of operation.  A device of QEMU that maps guest memory for writing may
 * leave the transfer to the kernel (O_DIRECT, io_uring), which pins the page and
 * has hardware write to it past any write protection.  If it were punched
 * meanwhile the bytes would land in a page that belongs to nobody.  QEMU counts
 * such mappings per page in the page-state table:
 *
 *   QEMU    count, full barrier, pin (the kernel checks the page-table entry)
 *   worker  write-protect, full barrier, read the count
 *
 * So a pin that was taken earlier shows in the count, and one that comes later
 * finds the protection: it faults, and that takes the page back or waits for
 * it.  Either the count is seen or the fault.
 *
 * Mapped pages can be more than the limit: a disk has hundreds of requests of a
 * megabyte.  A transfer begins when all of its pages are there, so that waiting
 * at the limit would be waiting for ever.  When nothing but pinned pages is left
 * to evict, those in memory do not count against the limit, up to PINS_ROOM_MAX.
 *
 * The count is input.  Whatever QEMU writes there concerns its own pages alone: one
 * that says "pinned" for ever stays in memory, and the VM has that much more than
 * its limit at most; one that says "free" in error loses the guest's own transfer.
 */
#ifndef UFFDMM_PINS_H
#define UFFDMM_PINS_H

#include "test_hooks.h"
#include "vm.h"

/* Pages by which pinned ones may pass the limit: 128 MiB. */
#define PINS_ROOM_MAX (128 << (20 - PAGE_SHIFT_4K))

/* True when the page has a pin.  Counts only behind pins_barrier(), as a hint anywhere. */
static inline bool page_pinned(const struct region *r, uint64_t pfn)
{
    return atomic_load_explicit(&r->pins[pfn], memory_order_relaxed) != 0 &&
           !test_hook("UFFDMM_TEST_NO_PINS");
}

/*
 * Nothing but pinned pages could be evicted: lets those in memory pass the limit.
 * Called by the evictor under regions_lock, like the next one.
 */
void pins_give_room(struct vm *vm);

/* Takes back as much of it as is no longer pinned. */
void pins_take_room(struct vm *vm);

/* Between write-protecting pages and page_pinned(). */
static inline void pins_barrier(void)
{
    atomic_thread_fence(memory_order_seq_cst);
}

#endif
