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
    uffdmm_print_size(mon, "resident", s->resident);
    uffdmm_print_size(mon, "resident-max", s->resident_max);
    uffdmm_print_size(mon, "stored", s->stored);
    uffdmm_print_size(mon, "zero", s->zero);
    monitor_printf(mon, "    faults: %" PRIu64 " (%" PRIu64 " from stores, %"
                   PRIu64 " waited for room, mean %" PRIu64 " us)\n",
                   s->faults, s->faults_store, s->faults_waited,
                   s->faults ? s->fault_time / s->faults / 1000 : 0);
    monitor_printf(mon, "    pages: %" PRIu64 " read ahead, %" PRIu64
                   " evicted, %" PRIu64 " discarded, %" PRIu64 " lost\n",
                   s->readahead_pages, s->evicted, s->discarded,
                   s->lost_pages);
    monitor_printf(mon, "    stores: %" PRIu64 " reads, %" PRIu64 " writes, %"
                   PRIu64 " errors, %" PRIu64 " checksum errors\n",
                   s->store_reads, s->store_writes, s->store_errors,
                   s->checksum_errors);
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

void hmp_uffdmm_set_policy(Monitor *mon, const QDict *qdict)
{
    const char *setting = qdict_get_str(qdict, "setting");
    const char *value = qdict_get_str(qdict, "value");
    const char *vm_name = qdict_get_try_str(qdict, "vm-name");
    uint64_t limit = 0;
    unsigned readahead = 0;
    Error *err = NULL;

    if (!strcmp(setting, "limit")) {
        if (qemu_strtosz_MiB(value, NULL, &limit) < 0) {
            error_setg(&err, "'%s' is not a size", value);
        } else {
            qmp_uffdmm_set_policy(vm_name, true, limit, false, 0, &err);
        }
    } else if (!strcmp(setting, "readahead")) {
        if (qemu_strtoui(value, NULL, 10, &readahead) < 0) {
            error_setg(&err, "'%s' is not a number of pages", value);
        } else {
            qmp_uffdmm_set_policy(vm_name, false, 0, true, readahead, &err);
        }
    } else {
        error_setg(&err, "setting '%s' is neither 'limit' nor 'readahead'",
                   setting);
    }
    hmp_handle_error(mon, err);
}
