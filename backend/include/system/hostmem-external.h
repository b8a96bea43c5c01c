/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Guest memory that belongs to an external manager: what the rest of QEMU
 * has to know
 *
 * The manager takes pages away and brings them back behind QEMU's back, by
 * userfaultfd.  All accesses through QEMU's own mapping are fine; whatever
 * maps or pins guest memory in another way is not, and says so by a blocker.
 */

#ifndef SYSTEM_HOSTMEM_EXTERNAL_H
#define SYSTEM_HOSTMEM_EXTERNAL_H

#include "exec/cpu-common.h"

#define TYPE_MEMORY_BACKEND_EXTERNAL "memory-backend-external"

/* Does this machine have any memory-backend-external? */
bool hostmem_external_in_use(void);

/**
 * hostmem_external_block: begin to use what memory-backend-external cannot
 * bear
 *
 * @what: the feature, in the words of the user; a string constant
 * @why: one clause that goes with it
 * @errp: set if there is a memory-backend-external
 *
 * On success there will be none until hostmem_external_unblock().
 */
bool hostmem_external_block(const char *what, const char *why, Error **errp);
void hostmem_external_unblock(const char *what);

/* The same for nested virtualization, which a backend may tolerate. */
bool hostmem_external_block_nested(Error **errp);
void hostmem_external_unblock_nested(void);

/**
 * hostmem_external_enter: a memory-backend-external begins to exist
 *
 * @allow_nested: it tolerates nested virtualization
 * @errp: names the blocker if there is one
 */
bool hostmem_external_enter(bool allow_nested, Error **errp);
void hostmem_external_leave(bool allow_nested);

/*
 * Discards of memory in a block with an external manager.  The first is to
 * be called before the hole is punched, the second after it.
 */
void hostmem_external_discard(RAMBlock *rb, uint64_t start, size_t length);
void hostmem_external_discarded(RAMBlock *rb, uint64_t start, size_t length);

/*
 * A range of a block with an external manager is mapped for writing, and no
 * longer.  In between the kernel may hold its pages for a transfer, past any
 * write protection, so the manager must leave them in memory.  To be called
 * before the first access, and after the last one.
 */
void hostmem_external_pin(RAMBlock *rb, uint64_t start, size_t length);
void hostmem_external_unpin(RAMBlock *rb, uint64_t start, size_t length);

#endif
