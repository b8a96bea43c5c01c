/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Migration of guest memory that belongs to an external manager: what the
 * migration code asks of a block, and of the manager through it
 *
 * All functions are for blocks whose member external is set, and for the one
 * thread that migrates.  Those that wait do so without the help of any other
 * thread but the service thread of the block, and for a bounded time.
 */

#ifndef SYSTEM_HOSTMEM_EXTERNAL_MIGRATION_H
#define SYSTEM_HOSTMEM_EXTERNAL_MIGRATION_H

#include "exec/cpu-common.h"

typedef enum ExternalPageKind {
    /*
     * It is in memory, or somewhere on its way, and pinned: read it there,
     * then call hostmem_external_migration_unpin().
     */
    EXTERNAL_PAGE_PINNED,
    EXTERNAL_PAGE_LOCATED, /* its location goes over: send nothing */
    EXTERNAL_PAGE_ZERO,    /* it reads as zeros: do not touch it */
    EXTERNAL_PAGE_COPY,    /* read the copy, do not touch it */
} ExternalPageKind;

typedef struct ExternalPage {
    ExternalPageKind kind;
    /* its location had been taken before: now all of the page has to go */
    bool was_located;
    const uint8_t *copy; /* of the whole page; valid until the next page */
} ExternalPage;

/**
 * hostmem_external_migration_start: a migration to another host begins
 *
 * @by_location: may pages go by location?  If not they go by content.
 * @session: set to the session with the manager, 0 if none was prepared
 * @errp: if the manager refuses, or does not answer
 */
bool hostmem_external_migration_start(RAMBlock *rb, bool by_location,
                                      uint64_t *session, Error **errp);

/**
 * hostmem_external_migration_page: decide how a page goes
 *
 * @offset: in the block, of a host page whose dirty bits have been cleared
 * @wanted: so many pages from it on will be asked for next, at least 1
 * @cancelled: nobody needs the answer any more
 * @page: set on success
 * @errp: if the content cannot be had, or the manager is gone
 */
bool hostmem_external_migration_page(RAMBlock *rb, ram_addr_t offset,
                                     unsigned wanted,
                                     bool (*cancelled)(void),
                                     ExternalPage *page, Error **errp);
void hostmem_external_migration_unpin(RAMBlock *rb, ram_addr_t offset);

/* Pages that go by location at the moment: all that the destination needs. */
typedef struct ExternalLocations {
    const char *name; /* of the region */
    uint64_t count;
    uint64_t digest;
    uint64_t changes; /* so often has a page been added, taken out, replaced */
    uint64_t acked;   /* of those changes the destination knows */
} ExternalLocations;

void hostmem_external_migration_locations(RAMBlock *rb,
                                          ExternalLocations *locations);

/**
 * hostmem_external_migration_sent: all has left, and the guest is stopped
 *
 * @errp: if the manager does not know the session any more
 */
bool hostmem_external_migration_sent(RAMBlock *rb, Error **errp);

/* Forget the migration; the manager is told if it has @failed.  No waiting. */
void hostmem_external_migration_end(RAMBlock *rb, bool failed);

/* The name of the region of a block, as its manager knows it */
const char *hostmem_external_region_name(RAMBlock *rb);

typedef struct ExternalInstall ExternalInstall;

/**
 * hostmem_external_install_begin: on the destination, all RAM is loaded
 *
 * @locations: of the source
 * @timeout_ms: how long the manager may wait for those that come to agree
 */
ExternalInstall *
hostmem_external_install_begin(RAMBlock *rb, uint64_t session,
                               const ExternalLocations *locations,
                               uint32_t timeout_ms);

/* Is it answered?  Never waits. */
bool hostmem_external_install_done(ExternalInstall *install);

/* Frees it.  One that is not answered has failed. */
bool hostmem_external_install_end(ExternalInstall *install, Error **errp);

#endif
