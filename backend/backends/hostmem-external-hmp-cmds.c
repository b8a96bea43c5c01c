/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * HMP commands for externally managed guest memory
 */

#include "qemu/osdep.h"
#include "monitor/hmp.h"
#include "monitor/monitor.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-uffdmm.h"
#include "qemu/cutils.h"
#include "qobject/qdict.h"

static void uffdmm_print_size(Monitor *mon, const char *name, uint64_t size)
{
    g_autofree char *str = size_to_str(size);

    monitor_printf(mon, "    %s: %s\n", name, str);
}

static void uffdmm_print_tier(Monitor *mon, const UffdmmTier *t)
{
    g_autofree char *used = size_to_str(t->used);
    g_autofree char *capacity = t->capacity ? size_to_str(t->capacity) : NULL;

    monitor_printf(mon, "    tier '%s': %s%s, %s, %s used of %s, %" PRIu64
                   " pages, %" PRIu64 " reads, %" PRIu64 " writes, %" PRIu64
                   " errors\n", t->name, UffdmmTierType_str(t->type),
                   t->shared ? " (shared)" : "",
                   UffdmmTierState_str(t->state), used,
                   capacity ?: "no limit", t->stored_pages, t->reads,
                   t->writes, t->errors);
}

static void uffdmm_print_stats(Monitor *mon, const UffdmmStats *s)
{
    monitor_printf(mon, "    manager: %s, process %" PRIu32 ", last sign of "
                   "life %" PRIu64 " ms ago\n",
                   UffdmmManagerState_str(s->state), s->worker_pid,
                   s->heartbeat_age);
    uffdmm_print_size(mon, "ram", s->ram);
    if (s->limit) {
        uffdmm_print_size(mon, "limit", s->limit);
    } else {
        monitor_printf(mon, "    limit: none\n");
    }
    monitor_printf(mon, "    readahead: %" PRIu64 " pages\n", s->readahead);
    if (s->demote_after) {
        monitor_printf(mon, "    demote-after: %" PRIu64 " ms\n",
                       s->demote_after);
    } else {
        monitor_printf(mon, "    demote-after: never\n");
    }
    uffdmm_print_size(mon, "resident", s->resident);
    uffdmm_print_size(mon, "resident-max", s->resident_max);
    uffdmm_print_size(mon, "stored", s->stored);
    uffdmm_print_size(mon, "zero", s->zero);
    uffdmm_print_size(mon, "arena", s->arena_bytes);
    monitor_printf(mon, "    faults: %" PRIu64 " (%" PRIu64 " from stores, %"
                   PRIu64 " waited for room, mean %" PRIu64 " us)\n",
                   s->faults, s->faults_store, s->faults_waited,
                   s->faults ? s->fault_time / s->faults / 1000 : 0);
    monitor_printf(mon, "    pages: %" PRIu64 " read ahead, %" PRIu64
                   " of them in vain, %" PRIu64 " evicted, %" PRIu64
                   " demoted, %" PRIu64 " discarded, %" PRIu64 " lost\n",
                   s->readahead_pages, s->readahead_wasted, s->evicted,
                   s->demoted, s->discarded, s->lost_pages);
    monitor_printf(mon, "    stores: %" PRIu64 " reads, %" PRIu64 " writes, %"
                   PRIu64 " errors, %" PRIu64 " checksum errors\n",
                   s->store_reads, s->store_writes, s->store_errors,
                   s->checksum_errors);
    for (UffdmmTierList *t = s->tiers; t; t = t->next) {
        uffdmm_print_tier(mon, t->value);
    }
}

void hmp_info_uffdmm(Monitor *mon, const QDict *qdict)
{
    Error *err = NULL;
    UffdmmVmList *vms = qmp_uffdmm_query(&err);

    if (hmp_handle_error(mon, err)) {
        return;
    }
    if (!vms) {
        monitor_printf(mon, "No memory-backend-external\n");
    }
    for (UffdmmVmList *v = vms; v; v = v->next) {
        monitor_printf(mon, "vm '%s' at %s\n", v->value->vm_name,
                       v->value->socket);
        for (UffdmmBackendList *b = v->value->backends; b; b = b->next) {
            g_autofree char *size = size_to_str(b->value->size);

            monitor_printf(mon, "  backend '%s': %s, shards %" PRIu32
                           ", link %s, reconnects %" PRIu64 "\n",
                           b->value->id, size, b->value->shards,
                           UffdmmLinkState_str(b->value->link),
                           b->value->reconnects);
            if (b->value->policy_error) {
                monitor_printf(mon, "    policy refused: %s\n",
                               b->value->policy_error);
            }
        }
        if (v->value->stats) {
            uffdmm_print_stats(mon, v->value->stats);
        }
    }
    qapi_free_UffdmmVmList(vms);
}

/* "NAME=SIZE".  Returns false if it is not. */
static bool uffdmm_parse_budget(const char *value, UffdmmTierBudget *budget,
                                Error **errp)
{
    const char *equals = strchr(value, '=');

    if (!equals) {
        error_setg(errp, "'%s' is not of the form TIER=SIZE", value);
        return false;
    }
    if (qemu_strtosz_MiB(equals + 1, NULL, &budget->size) < 0) {
        error_setg(errp, "'%s' is not a size", equals + 1);
        return false;
    }
    budget->name = g_strndup(value, equals - value);
    return true;
}

void hmp_uffdmm_set_policy(Monitor *mon, const QDict *qdict)
{
    const char *setting = qdict_get_str(qdict, "setting");
    const char *value = qdict_get_str(qdict, "value");
    const char *vm_name = qdict_get_try_str(qdict, "vm-name");
    UffdmmTierBudget budget = { 0 };
    UffdmmTierBudgetList tiers = { .value = &budget };
    bool has_limit = !strcmp(setting, "limit");
    bool has_readahead = !strcmp(setting, "readahead");
    bool has_demote_after = !strcmp(setting, "demote-after");
    bool has_tiers = !strcmp(setting, "tier");
    uint64_t limit = 0, demote_after = 0;
    unsigned readahead = 0;
    Error *err = NULL;

    if (has_limit && qemu_strtosz_MiB(value, NULL, &limit) < 0) {
        error_setg(&err, "'%s' is not a size", value);
    } else if (has_readahead && qemu_strtoui(value, NULL, 10, &readahead) < 0) {
        error_setg(&err, "'%s' is not a number of pages", value);
    } else if (has_demote_after &&
               qemu_strtou64(value, NULL, 10, &demote_after) < 0) {
        error_setg(&err, "'%s' is not a number of milliseconds", value);
    } else if (!has_tiers || uffdmm_parse_budget(value, &budget, &err)) {
        if (has_limit || has_readahead || has_demote_after || has_tiers) {
            qmp_uffdmm_set_policy(vm_name, has_limit, limit, has_readahead,
                                  readahead, has_demote_after, demote_after,
                                  has_tiers, has_tiers ? &tiers : NULL, &err);
        } else {
            error_setg(&err, "setting '%s' is none of 'limit', 'readahead', "
                       "'demote-after' and 'tier'", setting);
        }
    }
    g_free(budget.name);
    hmp_handle_error(mon, err);
}
