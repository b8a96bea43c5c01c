/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The service thread of a memory-backend-external, and its connection
 *
 * One link serves one backend.  Functions below are for other threads; none
 * but start, attach and stop waits for anything.
 */

#ifndef BACKENDS_HOSTMEM_EXTERNAL_LINK_H
#define BACKENDS_HOSTMEM_EXTERNAL_LINK_H

#include "qemu/queue.h"
#include "qemu/uuid.h"
#include "system/uffdmm-protocol.h"

typedef struct ExternalLink ExternalLink;
typedef struct ExternalMigration ExternalMigration;

typedef struct ExternalLinkConfig {
    const char *id; /* of the backend */
    const char *socket;
    const char *vm_name;
    QemuUUID uuid; /* of the VM, all zero if it has none */
    uint64_t size; /* bytes */
    uint64_t page_size; /* bytes: that of the host, or of huge pages */
    uint32_t nr_shards;
    uint32_t reconnect_ms;
} ExternalLinkConfig;

/* What a link looks like at one moment; strings belong to the snapshot. */
typedef struct ExternalLinkInfo {
    char *id;
    char *socket;
    char *vm_name;
    char *policy_error; /* the manager's answer to the last policy, or NULL */
    uint64_t size;
    uint64_t reconnects;
    uint32_t nr_shards;
    bool live;      /* guest memory is being served */
    bool was_live;  /* it was at some time */
    bool has_stats;
    struct uffdmm_stats stats;
    struct uffdmm_tier_stats *tiers;
    uint32_t nr_tiers;
    struct uffdmm_policy policy; /* in force, of which the budgets are used */
    QSIMPLEQ_ENTRY(ExternalLinkInfo) next;
} ExternalLinkInfo;

/* How much a VM may store in a tier, which is named as in the statistics. */
typedef struct ExternalTierBudget {
    const char *name;
    uint64_t size; /* bytes, 0: no limit but the capacity of the tier */
} ExternalTierBudget;

typedef QSIMPLEQ_HEAD(, ExternalLinkInfo) ExternalLinkInfoList;

/**
 * external_link_start: start the thread, and get memory from the manager
 *
 * Waits until the manager has answered, at most for a few seconds.
 *
 * Returns: the link, or NULL with the manager's reason in @errp
 */
ExternalLink *external_link_start(const ExternalLinkConfig *config,
                                  Error **errp);

/* Descriptor of the guest memory, a new duplicate; -1 with errno on error. */
int external_link_dup_memfd(ExternalLink *link);

/**
 * external_link_attach: hand the mapped memory over to the manager
 *
 * @base: where the memfd is mapped
 *
 * Waits as external_link_start() does.  From success on the manager serves.
 */
bool external_link_attach(ExternalLink *link, void *base, Error **errp);

/**
 * external_link_discard: the guest gives back pages
 *
 * Call before the hole is punched; then call external_link_discarded() with
 * the same range.
 */
void external_link_discard(ExternalLink *link, uint64_t offset,
                           uint64_t length);
void external_link_discarded(ExternalLink *link, uint64_t offset,
                             uint64_t length);

/* Count, or no longer count, a mapping of these bytes for writing. */
void external_link_pin(ExternalLink *link, uint64_t offset, uint64_t length);
void external_link_unpin(ExternalLink *link, uint64_t offset, uint64_t length);

/**
 * external_link_stop: give the region back and end the thread
 *
 * Waits a bounded time for the manager.  Nothing may need the content of the
 * memory any more; it must still be mapped.
 */
void external_link_stop(ExternalLink *link);

/* Snapshots of all links, in order of creation. */
void external_links_info(ExternalLinkInfoList *list);
void external_links_info_free(ExternalLinkInfoList *list);

/**
 * external_links_set_policy: queue a change of policy
 *
 * @vm_name: which VM, or NULL if there is only one
 * @policy: what to change, budgets of tiers apart
 * @budgets: of @nr_budgets tiers
 * @errp: if there is no such VM or tier, or no manager at the moment
 */
bool external_links_set_policy(const char *vm_name,
                               const struct uffdmm_policy *policy,
                               const ExternalTierBudget *budgets,
                               size_t nr_budgets, Error **errp);

#endif
