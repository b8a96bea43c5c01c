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

static UffdmmStats *uffdmm_stats(const struct uffdmm_stats *s)
{
    UffdmmStats *stats = g_new0(UffdmmStats, 1);
    /* both clocks are the host's CLOCK_MONOTONIC */
    int64_t age = get_clock() - s->heartbeat_ns;

    stats->worker_pid = s->worker_pid;
    stats->state = uffdmm_manager_state(s->state);
    stats->heartbeat_age = MAX(age, 0) / SCALE_MS;
    stats->ram = s->ram_bytes;
    stats->limit = s->limit_bytes;
    stats->readahead = s->readahead_pages;
    stats->resident = s->resident_bytes;
    stats->resident_max = s->resident_max_bytes;
    stats->stored = s->stored_bytes;
    stats->zero = s->zero_bytes;
    stats->faults = s->faults;
    stats->faults_store = s->faults_store;
    stats->faults_waited = s->faults_waited;
    stats->fault_time = s->fault_ns;
    stats->readahead_pages = s->readahead_in;
    stats->evicted = s->evicted;
    stats->discarded = s->discarded;
    stats->store_reads = s->store_reads;
    stats->store_writes = s->store_writes;
    stats->store_errors = s->store_errors;
    stats->checksum_errors = s->checksum_errors;
    stats->lost_pages = s->lost_pages;
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
            vm->stats = uffdmm_stats(&info->stats);
        }
    }
    external_links_info_free(&infos);
    return list;
}

void qmp_uffdmm_set_policy(const char *vm_name, bool has_limit,
                           uint64_t limit, bool has_readahead,
                           uint32_t readahead, Error **errp)
{
    struct uffdmm_policy policy = { 0 };

    if (!has_limit && !has_readahead) {
        error_setg(errp, "give at least one of 'limit' and 'readahead'");
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
    external_links_set_policy(vm_name, &policy, errp);
}
