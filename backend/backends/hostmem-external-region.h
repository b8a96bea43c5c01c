/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Guest memory that belongs to an external manager: its descriptors, its
 * userfaultfds and its page-state table
 *
 * Nothing in here talks to the manager or knows about threads.
 */

#ifndef BACKENDS_HOSTMEM_EXTERNAL_REGION_H
#define BACKENDS_HOSTMEM_EXTERNAL_REGION_H

#include "system/uffdmm-protocol.h"

/*
 * The descriptors are QEMU's own duplicates and stay open for as long as the
 * region is mapped: once the last descriptor of a userfaultfd is closed, a
 * thread that touches a missing page reads zeros instead of waiting.
 */
typedef struct ExternalRegion {
    uint64_t size;      /* bytes */
    uint64_t page_size; /* bytes: that of the host, or of huge pages */
    uint32_t id;        /* chosen by the manager */
    uint32_t nr_shards;
    int memfd;
    int table_fd;
    int pagemap_fd;
    int uffd[UFFDMM_SHARDS_MAX];
    /* pages that the manager keeps in memory; they outlive it by this */
    int arena[UFFDMM_FDS_MAX];
    uint32_t nr_arenas;
    struct uffdmm_table_header *table; /* mapped, shared with the manager */
    uint64_t table_size;               /* bytes mapped */
    uint64_t *entries;                 /* inside table, one a page */
    const uint64_t *records;           /* likewise */
    uint32_t *pins;                    /* likewise; written by QEMU alone */
    uint8_t *base;                     /* of the memory; NULL until known */
    bool registered;
} ExternalRegion;

/* Statistics of a manager, mapped for reading; vm is NULL without them. */
typedef struct ExternalStats {
    const struct uffdmm_stats *vm;
    uint64_t size; /* bytes mapped */
} ExternalStats;

/* Set up an empty region of @size bytes that asks for @nr_shards shards. */
void external_region_init(ExternalRegion *region, uint64_t size,
                          uint64_t page_size, uint32_t nr_shards);

/**
 * external_region_adopt: take over what the manager allocated
 *
 * @region: an initialized region without descriptors
 * @reply: of REGION_CREATE
 * @fds: as they came with it: guest memory, page-state table, statistics,
 *       arenas.  Those that the region keeps, all but the statistics, are
 *       replaced by -1; on failure none is.
 * @nr_fds: how many, at least three
 * @errp: which of them is not what the protocol promises
 */
bool external_region_adopt(ExternalRegion *region,
                           const struct uffdmm_region_create_reply *reply,
                           int *fds, uint32_t nr_fds, Error **errp);

/**
 * external_region_register: watch the mapped memory by userfaultfd
 *
 * @region: an adopted region
 * @base: where its memfd is mapped shared, in whole
 * @errp: what the kernel refused, and the remedy
 *
 * From success on, threads that touch a missing page wait for the manager.
 */
bool external_region_register(ExternalRegion *region, void *base,
                              Error **errp);

/**
 * external_region_handover: what a new manager needs to go on
 *
 * @region: a registered region
 * @fds: set to the descriptors of RECONNECT in their order; they stay the
 *       region's
 *
 * Returns: how many
 */
uint32_t external_region_handover(const ExternalRegion *region,
                                  int fds[UFFDMM_FDS_MAX]);

/* Stop watching: wakes all waiters, who find zeros.  Harmless if repeated. */
void external_region_unregister(ExternalRegion *region);

/**
 * external_region_zap: drop page-table entries, and no data, of a range
 *
 * @region: a registered region
 * @range: from the manager, not trusted
 * @errp: what is wrong with it
 */
bool external_region_zap(ExternalRegion *region,
                         const struct uffdmm_range *range, Error **errp);

/**
 * external_region_discard: mark the pages of a range as given back
 *
 * Comes before the hole is punched.  Safe against changes of the entries by
 * the manager, and against other callers.  Waits for pages that the manager
 * is just putting in place: microseconds, and with a manager that stands
 * still in the midst of it about a second, for all pages of the range.
 *
 * @region: an adopted region
 * @offset: bytes, aligned to the page size
 * @length: bytes, likewise; the range must be inside the region
 *
 * Returns: number of pages that became DISCARDED
 */
uint64_t external_region_discard(ExternalRegion *region, uint64_t offset,
                                 uint64_t length);

/**
 * external_region_pin: keep the pages of a range in memory
 *
 * @region: an adopted region
 * @offset: bytes, of any alignment
 * @length: bytes, likewise; the range must be inside the region
 *
 * The manager looks at the count after it has write-protected a page.  So an
 * access after this call meets either a page that stays, or a fault.
 */
void external_region_pin(ExternalRegion *region, uint64_t offset,
                         uint64_t length);

/*
 * Undo external_region_pin() for the same range, or for a part of it.  What
 * is not inside the region, or not counted, is passed over.
 */
void external_region_unpin(ExternalRegion *region, uint64_t offset,
                           uint64_t length);

/* Close and unmap everything but the guest memory. */
void external_region_destroy(ExternalRegion *region);

/**
 * external_stats_map: map a statistics memfd of the manager
 *
 * @stats: set on success, to be unmapped by external_stats_unmap()
 * @fd: stays the caller's
 * @size: bytes, as announced with it
 * @errp: why it cannot be used
 */
bool external_stats_map(ExternalStats *stats, int fd, uint64_t size,
                        Error **errp);
void external_stats_unmap(ExternalStats *stats);

/* Number of tiers; no more than are mapped, whatever the manager says. */
uint32_t external_stats_nr_tiers(const ExternalStats *stats);

/* Statistics of one of them.  The manager may change them at any time. */
const struct uffdmm_tier_stats *external_stats_tier(const ExternalStats *stats,
                                                    uint32_t i);

#endif
