/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * HMP commands for externally managed guest memory
 */

#include "qemu/osdep.h"
#include "monitor/hmp.h"
#include "monitor/monitor.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-uffdmm.h"
#include "qapi/util.h"
#include "qemu/cutils.h"
#include "qobject/qdict.h"

static void uffdmm_print_size(Monitor *mon, const char *name, uint64_t size)
{
    g_autofree char *str = size_to_str(size);

    monitor_printf(mon, "    %s: %s\n", name, str);
}

static void uffdmm_print_bound(Monitor *mon, const char *name, uint64_t size)
{
    if (size) {
        uffdmm_print_size(mon, name, size);
    } else {
        monitor_printf(mon, "    %s: none\n", name);
    }
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
    if (t->has_budget && t->budget) {
        g_autofree char *budget = size_to_str(t->budget);

        monitor_printf(mon, "      budget: %s\n", budget);
    }
    if (t->last_error) {
        monitor_printf(mon, "      last error: %s\n", t->last_error);
    }
}

static void uffdmm_print_stats(Monitor *mon, const UffdmmStats *s)
{
    monitor_printf(mon, "    manager: %s, process %" PRIu32 ", last sign of "
                   "life %" PRIu64 " ms ago\n",
                   UffdmmManagerState_str(s->state), s->worker_pid,
                   s->heartbeat_age);
    uffdmm_print_size(mon, "ram", s->ram);
    uffdmm_print_bound(mon, "limit", s->limit);
    monitor_printf(mon, "    readahead: %" PRIu64 " pages\n", s->readahead);
    if (s->demote_after) {
        monitor_printf(mon, "    demote-after: %" PRIu64 " ms\n",
                       s->demote_after);
    } else {
        monitor_printf(mon, "    demote-after: never\n");
    }
    uffdmm_print_size(mon, "min", s->min);
    uffdmm_print_bound(mon, "max", s->max);
    monitor_printf(mon, "    shares: %" PRIu32 "\n", s->shares);
    monitor_printf(mon, "    priority: %" PRIu32 "\n", s->priority);
    monitor_printf(mon, "    opt-out: %s\n", s->opt_out ? "on" : "off");
    monitor_printf(mon, "    track-permille: %" PRIu32 " (tracking: %s)\n",
                   s->track_permille, s->tracking ? "on" : "off");
    uffdmm_print_size(mon, "resident", s->resident);
    uffdmm_print_size(mon, "resident-max", s->resident_max);
    uffdmm_print_size(mon, "stored", s->stored);
    uffdmm_print_size(mon, "zero", s->zero);
    uffdmm_print_size(mon, "arena", s->arena_bytes);
    uffdmm_print_size(mon, "table", s->table_bytes);
    uffdmm_print_size(mon, "worker-rss", s->worker_rss);
    monitor_printf(mon, "    faults: %" PRIu64 " (%" PRIu64 " of zeros, %"
                   PRIu64 " from stores, %" PRIu64 " deferred, %" PRIu64
                   " waited for room, mean %" PRIu64 " us)\n",
                   s->faults, s->faults_zero, s->faults_store,
                   s->faults_deferred, s->faults_waited,
                   s->faults ? s->fault_time / s->faults / 1000 : 0);
    monitor_printf(mon, "    pages: %" PRIu64 " read ahead, %" PRIu64
                   " of them in vain, %" PRIu64 " prefetched, %" PRIu64
                   " demoted, %" PRIu64 " passed on, %" PRIu64
                   " discarded, %" PRIu64 " lost\n",
                   s->readahead_pages, s->readahead_wasted, s->prefetched,
                   s->demoted, s->passed_on, s->discarded, s->lost_pages);
    monitor_printf(mon, "    eviction: %" PRIu64 " pages (%" PRIu64
                   " unchanged, %" PRIu64 " of one word), %" PRIu64
                   " cancelled, %" PRIu64 " pinned\n",
                   s->evicted, s->evicted_clean, s->evicted_zero,
                   s->evicted_cancelled, s->pinned);
    monitor_printf(mon, "    stores: %" PRIu64 " reads of %" PRIu64
                   " bytes, %" PRIu64 " writes of %" PRIu64 " bytes, %" PRIu64
                   " errors, %" PRIu64 " checksum errors\n",
                   s->store_reads, s->store_read_bytes, s->store_writes,
                   s->store_write_bytes, s->store_errors, s->checksum_errors);
    monitor_printf(mon, "    migration: %" PRIu64 " pages past guest memory, %"
                   PRIu64 " swapped in\n", s->bypass_pages,
                   s->migration_swap_ins);
    monitor_printf(mon, "    recoveries: %" PRIu64 ", the last one took %"
                   PRIu64 " us\n", s->recoveries, s->recovery_time / 1000);
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

/* "NAME=SIZE".  Returns NULL if it is not. */
static UffdmmTierBudgetList *uffdmm_parse_budget(const char *value,
                                                 Error **errp)
{
    const char *equals = strchr(value, '=');
    UffdmmTierBudgetList *list = NULL;
    UffdmmTierBudget *budget;
    uint64_t size;

    if (!equals) {
        error_setg(errp, "'%s' is not of the form TIER=SIZE", value);
        return NULL;
    }
    if (qemu_strtosz_MiB(equals + 1, NULL, &size) < 0) {
        error_setg(errp, "'%s' is not a size", equals + 1);
        return NULL;
    }
    budget = g_new0(UffdmmTierBudget, 1);
    budget->name = g_strndup(value, equals - value);
    budget->size = size;
    QAPI_LIST_PREPEND(list, budget);
    return list;
}

typedef struct UffdmmSetting {
    const char *name;
    size_t has; /* offset in UffdmmPolicy */
    size_t value;
    enum { SETTING_SIZE, SETTING_U32, SETTING_U64, SETTING_BOOL } type;
} UffdmmSetting;

#define SETTING(name, field, type) \
    { name, offsetof(UffdmmPolicy, has_##field), \
      offsetof(UffdmmPolicy, field), type }

static const UffdmmSetting uffdmm_settings[] = {
    SETTING("limit", limit, SETTING_SIZE),
    SETTING("readahead", readahead, SETTING_U32),
    SETTING("demote-after", demote_after, SETTING_U64),
    SETTING("min", min, SETTING_SIZE),
    SETTING("max", max, SETTING_SIZE),
    SETTING("shares", shares, SETTING_U32),
    SETTING("priority", priority, SETTING_U32),
    SETTING("opt-out", opt_out, SETTING_BOOL),
    SETTING("track-permille", track_permille, SETTING_U32),
};

static bool uffdmm_parse_setting(const UffdmmSetting *setting,
                                 const char *text, UffdmmPolicy *policy,
                                 Error **errp)
{
    void *value = (char *)policy + setting->value;
    unsigned number;

    *(bool *)((char *)policy + setting->has) = true;
    switch (setting->type) {
    case SETTING_SIZE:
        if (qemu_strtosz_MiB(text, NULL, value) < 0) {
            error_setg(errp, "'%s' is not a size", text);
            return false;
        }
        return true;
    case SETTING_U32:
        if (qemu_strtoui(text, NULL, 10, &number) < 0) {
            error_setg(errp, "'%s' is not a number", text);
            return false;
        }
        *(uint32_t *)value = number;
        return true;
    case SETTING_U64:
        if (qemu_strtou64(text, NULL, 10, value) < 0) {
            error_setg(errp, "'%s' is not a number of milliseconds", text);
            return false;
        }
        return true;
    case SETTING_BOOL:
        return qapi_bool_parse(setting->name, text, value, errp);
    }
    g_assert_not_reached();
}

void hmp_uffdmm_set_policy(Monitor *mon, const QDict *qdict)
{
    const char *setting = qdict_get_str(qdict, "setting");
    const char *value = qdict_get_str(qdict, "value");
    const char *vm_name = qdict_get_try_str(qdict, "vm-name");
    UffdmmPolicy *policy = g_new0(UffdmmPolicy, 1);
    bool found = false, ok = false;
    Error *err = NULL;

    policy->vm_name = g_strdup(vm_name);
    if (!strcmp(setting, "tier")) {
        found = true;
        policy->tiers = uffdmm_parse_budget(value, &err);
        policy->has_tiers = ok = policy->tiers;
    }
    for (size_t i = 0; i < ARRAY_SIZE(uffdmm_settings); i++) {
        if (!strcmp(setting, uffdmm_settings[i].name)) {
            found = true;
            ok = uffdmm_parse_setting(&uffdmm_settings[i], value, policy,
                                      &err);
        }
    }
    if (!found) {
        g_autoptr(GString) names = g_string_new(NULL);

        for (size_t i = 0; i < ARRAY_SIZE(uffdmm_settings); i++) {
            g_string_append_printf(names, "'%s', ", uffdmm_settings[i].name);
        }
        error_setg(&err, "setting '%s' is none of %sand 'tier'", setting,
                   names->str);
    } else if (ok) {
        qmp_uffdmm_set_policy(policy, &err);
    }
    qapi_free_UffdmmPolicy(policy);
    hmp_handle_error(mon, err);
}
