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
#include "hostmem-external-qapi.h"

/* as in the protocol */
#define READAHEAD_MAX 64
#define SHARES_MAX    10000
#define PRIORITY_MAX  100
#define PERMILLE_MAX  1000

UffdmmManagerState external_qapi_manager_state(uint64_t state)
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

UffdmmTierState external_qapi_tier_state(uint64_t state)
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

char *external_qapi_text(const char *text, size_t size)
{
    return g_utf8_make_valid(text, strnlen(text, size));
}

static UffdmmTier *uffdmm_tier(const ExternalLinkInfo *info, uint32_t i)
{
    const struct uffdmm_tier_stats *t = &info->tiers[i];
    UffdmmTier *tier = g_new0(UffdmmTier, 1);

    tier->name = external_qapi_text(t->name, sizeof(t->name));
    tier->type = uffdmm_tier_type(t->type);
    tier->state = external_qapi_tier_state(t->state);
    tier->shared = t->shared;
    tier->capacity = t->capacity_bytes;
    if (i < UFFDMM_TIERS_MAX && info->policy.tier_mask & 1u << i) {
        tier->has_budget = true;
        tier->budget = info->policy.tier_bytes[i];
    }
    tier->used = t->used_bytes;
    tier->stored_pages = t->stored_pages;
    tier->reads = t->reads;
    tier->writes = t->writes;
    tier->errors = t->errors;
    tier->copy_pages = t->copy_pages;
    tier->stored_bytes = t->stored_bytes;
    tier->read_bytes = t->read_bytes;
    tier->write_bytes = t->write_bytes;
    tier->checksum_errors = t->checksum_errors;
    tier->refused = t->refused;
    tier->server_reconnects = t->reconnects;
    if (t->last_error[0]) {
        tier->last_error = external_qapi_text(t->last_error,
                                              sizeof(t->last_error));
        tier->has_last_error_time = true;
        tier->last_error_time = t->last_error_ns;
    }
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
    stats->state = external_qapi_manager_state(s->state);
    stats->heartbeat_age = MAX(age, 0) / SCALE_MS;
    stats->ram = s->ram_bytes;
    stats->limit = s->limit_bytes;
    stats->readahead = s->readahead_pages;
    stats->demote_after = s->demote_after_ms;
    stats->min = s->min_bytes;
    stats->max = s->max_bytes;
    stats->shares = s->shares;
    stats->priority = s->priority;
    stats->opt_out = s->opt_out;
    stats->track_permille = s->track_permille;
    stats->tracking = s->age_tracking;
    stats->resident = s->resident_bytes;
    stats->resident_max = s->resident_max_bytes;
    stats->stored = s->stored_bytes;
    stats->zero = s->zero_bytes;
    stats->arena_bytes = s->arena_bytes;
    stats->table_bytes = s->table_bytes;
    stats->worker_rss = s->worker_rss_bytes;
    stats->faults = s->faults;
    stats->faults_zero = s->faults_zero;
    stats->faults_store = s->faults_store;
    stats->faults_deferred = s->faults_deferred;
    stats->faults_waited = s->faults_waited;
    stats->fault_time = s->fault_ns;
    stats->readahead_pages = s->readahead_in;
    stats->readahead_wasted = s->readahead_wasted;
    stats->prefetched = s->prefetched;
    stats->evicted = s->evicted;
    stats->evicted_clean = s->evicted_clean;
    stats->evicted_zero = s->evicted_zero;
    stats->evicted_cancelled = s->evicted_cancelled;
    stats->pinned = s->pinned;
    stats->demoted = s->demoted;
    stats->passed_on = s->passed_on;
    stats->discarded = s->discarded;
    stats->store_reads = s->store_reads;
    stats->store_read_bytes = s->store_read_bytes;
    stats->store_writes = s->store_writes;
    stats->store_write_bytes = s->store_write_bytes;
    stats->store_errors = s->store_errors;
    stats->checksum_errors = s->checksum_errors;
    stats->lost_pages = s->lost_pages;
    stats->bypass_pages = s->bypass_pages;
    stats->migration_swap_ins = s->migration_swap_ins;
    stats->recoveries = s->recoveries;
    stats->recovery_time = s->recovery_ns;
    for (uint32_t i = 0; i < info->nr_tiers; i++) {
        QAPI_LIST_APPEND(tail, uffdmm_tier(info, i));
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

static bool uffdmm_check_range(const char *name, uint32_t value,
                               uint32_t least, uint32_t most, Error **errp)
{
    if (value < least || value > most) {
        error_setg(errp, "%s %" PRIu32 " is not in the range %" PRIu32
                   " to %" PRIu32, name, value, least, most);
        return false;
    }
    return true;
}

/* What can be known to be refused before the manager is asked */
static bool uffdmm_check_policy(const UffdmmPolicy *p, Error **errp)
{
    if (p->has_limit && p->limit && p->limit < qemu_real_host_page_size()) {
        error_setg(errp, "limit %" PRIu64 " is less than one page, %zu bytes",
                   p->limit, (size_t)qemu_real_host_page_size());
        return false;
    }
    if (p->has_min && p->has_max && p->max && p->min > p->max) {
        error_setg(errp, "min %" PRIu64 " is more than max %" PRIu64, p->min,
                   p->max);
        return false;
    }
    return (!p->has_readahead ||
            uffdmm_check_range("readahead", p->readahead, 1, READAHEAD_MAX,
                               errp)) &&
           (!p->has_shares ||
            uffdmm_check_range("shares", p->shares, 1, SHARES_MAX, errp)) &&
           (!p->has_priority ||
            uffdmm_check_range("priority", p->priority, 0, PRIORITY_MAX,
                               errp)) &&
           (!p->has_track_permille ||
            uffdmm_check_range("track-permille", p->track_permille, 0,
                               PERMILLE_MAX, errp));
}

void qmp_uffdmm_set_policy(UffdmmPolicy *p, Error **errp)
{
    g_autofree ExternalTierBudget *budgets = NULL;
    size_t nr_budgets = 0;
    struct uffdmm_policy policy = {
        .fields = (p->has_limit ? UFFDMM_POLICY_LIMIT : 0) |
                  (p->has_readahead ? UFFDMM_POLICY_READAHEAD : 0) |
                  (p->has_demote_after ? UFFDMM_POLICY_DEMOTE : 0) |
                  (p->has_min ? UFFDMM_POLICY_MIN : 0) |
                  (p->has_max ? UFFDMM_POLICY_MAX : 0) |
                  (p->has_shares ? UFFDMM_POLICY_SHARES : 0) |
                  (p->has_priority ? UFFDMM_POLICY_PRIORITY : 0) |
                  (p->has_opt_out ? UFFDMM_POLICY_OPT_OUT : 0) |
                  (p->has_track_permille ? UFFDMM_POLICY_TRACK : 0),
        .limit_bytes = p->limit,
        .readahead_pages = p->readahead,
        .demote_after_ms = p->demote_after,
        .min_bytes = p->min,
        .max_bytes = p->max,
        .shares = p->shares,
        .priority = p->priority,
        .opt_out = p->opt_out,
        .track_permille = p->track_permille,
    };

    if (!policy.fields && !p->tiers) {
        error_setg(errp, "give at least one of 'limit', 'readahead', "
                   "'demote-after', 'tiers', 'min', 'max', 'shares', "
                   "'priority', 'opt-out' and 'track-permille'");
        return;
    }
    if (!uffdmm_check_policy(p, errp)) {
        return;
    }
    budgets = g_new(ExternalTierBudget, QAPI_LIST_LENGTH(p->tiers));
    for (UffdmmTierBudgetList *t = p->tiers; t; t = t->next) {
        budgets[nr_budgets++] = (ExternalTierBudget) {
            .name = t->value->name,
            .size = t->value->size,
        };
    }
    external_links_set_policy(p->vm_name, &policy, budgets, nr_budgets, errp);
}
