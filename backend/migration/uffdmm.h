/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Migration of memory-backend-external: swapped pages go by location, or past
 * guest memory
 */

#ifndef QEMU_MIGRATION_UFFDMM_H
#define QEMU_MIGRATION_UFFDMM_H

#include "qapi/qapi-types-migration.h"
#include "system/hostmem-external-migration.h"
#include "system/uffdmm-protocol.h"

#ifdef CONFIG_UFFDMM

/* Register the section of the stream; right after that of RAM. */
void uffdmm_mig_init(void);

/* Begin and end with all blocks; part of setup and cleanup of RAM. */
bool uffdmm_save_setup(Error **errp);
void uffdmm_save_cleanup(void);

/**
 * uffdmm_save_page: decide how a host page goes
 *
 * @rb: a block that belongs to a manager
 * @offset: in it, of a host page whose dirty bits have been cleared
 * @wanted: how many pages from it on are dirty, as far as is known
 * @page: set on success
 *
 * Returns: false if the migration has failed; its error is set.
 */
bool uffdmm_save_page(RAMBlock *rb, ram_addr_t offset, unsigned wanted,
                      ExternalPage *page);

/* The content of an EXTERNAL_PAGE_PINNED has been copied. */
void uffdmm_unpin_page(RAMBlock *rb, ram_addr_t offset);

/* Guest memory that did not have to be sent so far */
uint64_t uffdmm_located_bytes(void);

void uffdmm_populate_info(MigrationInfo *info);

#else

static inline void uffdmm_mig_init(void)
{
}

static inline bool uffdmm_save_setup(Error **errp)
{
    return true;
}

static inline void uffdmm_save_cleanup(void)
{
}

static inline bool uffdmm_save_page(RAMBlock *rb, ram_addr_t offset,
                                    unsigned wanted, ExternalPage *page)
{
    g_assert_not_reached();
}

static inline uint64_t uffdmm_located_bytes(void)
{
    return 0;
}

static inline void uffdmm_populate_info(MigrationInfo *info)
{
}

static inline void uffdmm_unpin_page(RAMBlock *rb, ram_addr_t offset)
{
}

#endif
#endif
