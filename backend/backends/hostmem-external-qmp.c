/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * QMP commands for externally managed guest memory
 *
 * uffdmm-query may run out-of-band: no BQL, nothing that waits.
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-uffdmm.h"
#include "qapi/util.h"
#include "qemu/cutils.h"
#include "qemu/timer.h"
#include "hostmem-external-link.h"

#define READAHEAD_MAX 64

static UffdmmManagerState uffdmm_manager_state(uint64_t state)
{
    switch (state) {
    case UFFDMM_WORKER_STARTING:
        return UFFDMM_MANAGER_STATE_STARTING;
    case UFFDMM_WORKER_RUNNING:
        return UFFDMM_MANAGER_STATE_RUNNING;
    case UFFDMM_WORKER_STORE_FULL:
        return UFFDMM_MANAGER_STATE_STORE_FULL;
    case UFFDMM_WORKER_STORE_ERROR:
        return UFFDMM_MANAGER_STATE_STORE_ERROR;
    default:
        return UFFDMM_MANAGER_STATE_UNKNOWN;
    }
}

static UffdmmTierType uffdmm_tier_type(uint32_t type)
{
    switch (type) {
    case UFFDMM_TIER_ZERO:
        return UFFDMM_TIER_TYPE_ZERO;
    case UFFDMM_TIER_POOL:
        return UFFDMM_TIER_TYPE_POOL;
    case UFFDMM_TIER_FILE:
        return UFFDMM_TIER_TYPE_FILE;
    case UFFDMM_TIER_NBD:
        return UFFDMM_TIER_TYPE_NBD;
    default:
        return UFFDMM_TIER_TYPE_UNKNOWN;
    }
}

static UffdmmTierState uffdmm_tier_state(uint64_t state)
{
    switch (state) {
    case UFFDMM_TIER_OK:
        return UFFDMM_TIER_STATE_OK;
    case UFFDMM_TIER_FULL:
        return UFFDMM_TIER_STATE_FULL;
    case UFFDMM_TIER_SLOW:
        return UFFDMM_TIER_STATE_SLOW;
    case UFFDMM_TIER_ERROR:
        return UFFDMM_TIER_STATE_ERROR;
    case UFFDMM_TIER_AWAY:
        return UFFDMM_TIER_STATE_AWAY;
    default:
        return UFFDMM_TIER_STATE_UNKNOWN;
    }
}

static UffdmmTier *uffdmm_tier(const struct uffdmm_tier_stats *t)
{
    UffdmmTier *tier = g_new0(UffdmmTier, 1);

    /* the manager may have written anything there */
    tier->name = g_utf8_make_valid(t->name, strnlen(t->name,
                                                    sizeof(t->name)));
    tier->type = uffdmm_tier_type(t->type);
    tier->state = uffdmm_tier_state(t->state);
    tier->shared = t->shared;
    tier->capacity = t->capacity_bytes;
    tier->used = t->used_bytes;
    tier->stored_pages = t->stored_pages;
    tier->reads = t->reads;
    tier->writes = t->writes;
    tier->errors = t->errors;
    return tier;
}

static UffdmmStats *uffdmm_stats(const ExternalLinkInfo *info)
{
    const struct uffdmm_stats *s = &info->stats;
    UffdmmStats *stats = g_new0(UffdmmStats, 1);
    UffdmmTierList **tail = &stats->tiers;
    /* both clocks are the host's CLOCK_MONOTONIC */
    int64_t age = get_clock() - s->heartbeat_ns;

    stats->worker_pid = s->worker_pid;
    stats->state = uffdmm_manager_state(s->state);
    stats->heartbeat_age = MAX(age, 0) / SCALE_MS;
    stats->ram = s->ram_bytes;
    stats->limit = s->limit_bytes;
    stats->readahead = s->readahead_pages;
    stats->demote_after = s->demote_after_ms;
    stats->resident = s->resident_bytes;
    stats->resident_max = s->resident_max_bytes;
    stats->stored = s->stored_bytes;
    stats->zero = s->zero_bytes;
    stats->arena_bytes = s->arena_bytes;
    stats->faults = s->faults;
    stats->faults_store = s->faults_store;
    stats->faults_waited = s->faults_waited;
    stats->fault_time = s->fault_ns;
    stats->readahead_pages = s->readahead_in;
    stats->readahead_wasted = s->readahead_wasted;
    stats->evicted = s->evicted;
    stats->demoted = s->demoted;
    stats->discarded = s->discarded;
    stats->store_reads = s->store_reads;
    stats->store_writes = s->store_writes;
    stats->store_errors = s->store_errors;
    stats->checksum_errors = s->checksum_errors;
    stats->lost_pages = s->lost_pages;
    for (uint32_t i = 0; i < info->nr_tiers; i++) {
        QAPI_LIST_APPEND(tail, uffdmm_tier(&info->tiers[i]));
    }
    return stats;
}

static UffdmmBackend *uffdmm_backend(const ExternalLinkInfo *info)
{
    UffdmmBackend *backend = g_new0(UffdmmBackend, 1);

    backend->id = g_strdup(info->id);
    backend->size = info->size;
    backend->shards = info->nr_shards;
    backend->link = info->live ? UFFDMM_LINK_STATE_LIVE :
                    info->was_live ? UFFDMM_LINK_STATE_LOST :
                    UFFDMM_LINK_STATE_CONNECTING;
    backend->reconnects = info->reconnects;
    backend->policy_error = g_strdup(info->policy_error);
    return backend;
}

/* The VM of a backend, appended to the list if it is the first of it. */
static UffdmmVm *uffdmm_vm(UffdmmVmList **list, const ExternalLinkInfo *info)
{
    UffdmmVmList **tail = list;
    UffdmmVm *vm;

    for (; *tail; tail = &(*tail)->next) {
        vm = (*tail)->value;
        if (!strcmp(vm->vm_name, info->vm_name) &&
            !strcmp(vm->socket, info->socket)) {
            return vm;
        }
    }
    vm = g_new0(UffdmmVm, 1);
    vm->vm_name = g_strdup(info->vm_name);
    vm->socket = g_strdup(info->socket);
    QAPI_LIST_APPEND(tail, vm);
    return vm;
}

UffdmmVmList *qmp_uffdmm_query(Error **errp)
{
    UffdmmVmList *list = NULL;
    ExternalLinkInfoList infos;
    ExternalLinkInfo *info;

    external_links_info(&infos);
    QSIMPLEQ_FOREACH(info, &infos, next) {
        UffdmmVm *vm = uffdmm_vm(&list, info);
        UffdmmBackendList **tail = &vm->backends;

        while (*tail) {
            tail = &(*tail)->next;
        }
        QAPI_LIST_APPEND(tail, uffdmm_backend(info));
        /* all backends of a VM have the same; prefer one that is current */
        if (info->has_stats && (info->live || !vm->stats)) {
            qapi_free_UffdmmStats(vm->stats);
            vm->stats = uffdmm_stats(info);
        }
    }
    external_links_info_free(&infos);
    return list;
}

void qmp_uffdmm_set_policy(const char *vm_name, bool has_limit,
                           uint64_t limit, bool has_readahead,
                           uint32_t readahead, bool has_demote_after,
                           uint64_t demote_after, bool has_tiers,
                           UffdmmTierBudgetList *tiers, Error **errp)
{
    g_autofree ExternalTierBudget *budgets = NULL;
    struct uffdmm_policy policy = { 0 };
    size_t nr_budgets = 0;

    if (!has_limit && !has_readahead && !has_demote_after && !tiers) {
        error_setg(errp, "give at least one of 'limit', 'readahead', "
                   "'demote-after' and 'tiers'");
        return;
    }
    if (has_limit) {
        if (limit && limit < qemu_real_host_page_size()) {
            error_setg(errp, "limit %" PRIu64 " is less than one page, %zu "
                       "bytes", limit, (size_t)qemu_real_host_page_size());
            return;
        }
        policy.fields |= UFFDMM_POLICY_LIMIT;
        policy.limit_bytes = limit;
    }
    if (has_readahead) {
        if (readahead < 1 || readahead > READAHEAD_MAX) {
            error_setg(errp, "readahead %" PRIu32 " is not in the range 1 to "
                       "%d pages", readahead, READAHEAD_MAX);
            return;
        }
        policy.fields |= UFFDMM_POLICY_READAHEAD;
        policy.readahead_pages = readahead;
    }
    if (has_demote_after) {
        policy.fields |= UFFDMM_POLICY_DEMOTE;
        policy.demote_after_ms = demote_after;
    }
    budgets = g_new(ExternalTierBudget, QAPI_LIST_LENGTH(tiers));
    for (UffdmmTierBudgetList *t = tiers; t; t = t->next) {
        budgets[nr_budgets++] = (ExternalTierBudget) {
            .name = t->value->name,
            .size = t->value->size,
        };
    }
    external_links_set_policy(vm_name, &policy, budgets, nr_budgets, errp);
}
