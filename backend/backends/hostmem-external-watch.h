/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Trouble with the stores of a memory manager, seen in its statistics
 */

#ifndef BACKENDS_HOSTMEM_EXTERNAL_WATCH_H
#define BACKENDS_HOSTMEM_EXTERNAL_WATCH_H

#include "system/uffdmm-protocol.h"
#include "hostmem-external-news.h"
#include "hostmem-external-region.h"

typedef struct ExternalTrouble {
    uint64_t state;
    uint64_t errors;
    uint64_t checksum_errors;
} ExternalTrouble;

/* What was seen at the last look.  All zero: nothing yet. */
typedef struct ExternalWatch {
    uint32_t worker_pid;
    uint64_t lost_pages;
    ExternalTrouble all;
    ExternalTrouble tier[UFFDMM_TIERS_MAX];
} ExternalWatch;

/**
 * external_watch_look: has there been trouble since the last look?
 *
 * @watch: is brought up to date
 * @stats: mapped
 *
 * Returns: news without names, or NULL.  Trouble is a request that failed, a
 * page that was not what had been stored or is lost, a tier that has begun to
 * fail or whose server has gone, and an eviction that has stopped.
 */
ExternalNews *external_watch_look(ExternalWatch *watch,
                                  const ExternalStats *stats);

/**
 * external_stats_serving: do these statistics say that all is well?
 *
 * Returns: false if the manager shows no sign of life, or if pages wait for a
 * store that fails, is away or has no room
 */
bool external_stats_serving(const ExternalStats *stats);

#endif
