/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "hierarchy.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "clock.h"
#include "demote.h"
#include "evict.h"
#include "log.h"
#include "track.h"
#include "vm.h"

void region_free_slots(struct region *r, uint64_t pfn, uint64_t e)
{
    static uint64_t logged;
    struct tier *t = vm_tier(r->vm, e);

    if (!entry_slot(e) || !t || (e & UFFDMM_ENTRY_WRITING)) {
        return;
    }
    if (mig_freeze(r, pfn, e)) {
        return;
    }
    if (!tier_free(t, entry_slot(e), region_units(r)) &&
        log_ratelimit(&logged, NSEC_PER_SEC)) {
        log_error(
            "slot %llu of tier %s is named by the table but free: the table is damaged",
            (unsigned long long)entry_slot(e), t->config->name);
    }
}

static unsigned worker_state(struct vm *vm)
{
    unsigned state = atomic_load(&vm->store_state);

    return atomic_load(&vm->unreadable) ? UFFDMM_WORKER_STORE_ERROR
           : state                      ? state
                                        : UFFDMM_WORKER_RUNNING;
}

void vm_show_state(struct vm *vm)
{
    unsigned state;

    do {
        state = worker_state(vm);
        stats_set(&vm->stats->state, state);
        atomic_thread_fence(memory_order_seq_cst);
    } while (worker_state(vm) != state); /* else an older look would stay */
}

static void close_tiers(struct vm *vm)
{
    for (unsigned i = 1; i < UFFDMM_TIERS_MAX; i++) {
        if (vm->tiers[i]) {
            tier_close(vm->tiers[i], vm->unsettled || mig_keeps_tier(vm->mig, i));
            vm->tiers[i] = NULL;
        }
    }
    vm->nr_tiers = 0;
}

int hierarchy_queue(const struct vm *vm, struct tier_queue *q)
{
    struct tier *tiers[UFFDMM_TIERS_MAX];

    for (unsigned i = 0; i < UFFDMM_TIERS_MAX; i++) {
        tiers[i] = vm->tiers[i];
    }
    return tier_queue_init(q, tiers, UFFDMM_TIERS_MAX);
}

void hierarchy_cancel(struct vm *vm)
{
    for (unsigned i = 1; i < UFFDMM_TIERS_MAX; i++) {
        if (vm->tiers[i] && vm->tiers[i]->ops->cancel) {
            vm->tiers[i]->ops->cancel(vm->tiers[i]);
        }
    }
}

void hierarchy_stop(struct vm *vm)
{
    mig_thread_stop(vm->mig);
    evict_stop(vm);
    demote_stop(vm);
    track_stop(vm);
}

void hierarchy_close(struct vm *vm)
{
    hierarchy_stop(vm);
    close_tiers(vm);
    mig_reset(vm->mig);
    atomic_store(&vm->stop, false);
}

/* The arena among @kept that is the volume of tier @index, -1 when it is not there. */
static int kept_arena(const struct hierarchy_kept *kept, unsigned index)
{
    for (unsigned i = 0; i < kept->nr_arenas; i++) {
        struct stat st;
        uint64_t words[2];

        if (fstat(kept->arenas[i], &st) < 0) {
            continue;
        }
        words[0] = st.st_dev;
        words[1] = st.st_ino;
        if (!memcmp(words, kept->volume_ids[index], sizeof(words))) {
            return kept->arenas[i];
        }
    }
    return -1;
}

/* A tier that is opened for a VM that was served before: the same as then? */
static int check_kept(const struct vm *vm, const struct hierarchy_kept *kept, unsigned i,
                      char *err, size_t err_len)
{
    const struct tier *t = &vm->tier[i];
    uint8_t id[16] = {0};

    t->ops->identity(t, id);
    if (memcmp(id, kept->volume_ids[i], sizeof(id)) != 0) {
        snprintf(err, err_len,
                 "the volume of VM '%s' in tier %s is another one than its pages are in; "
                 "give the former one back",
                 vm->name, t->config->name);
        return -ESTALE;
    }
    return 0;
}

/*
 * True when a volume that cannot be opened is the very one that is to come here: the
 * tier stays closed until MIG_PREPARE, or until its old host has given it up.
 */
static bool comes_later(const struct vm *vm, unsigned i, int ret)
{
    const struct tier_config *c = &vm->tier_configs[i];

    return ret == -EBUSY && vm->incoming && (c->shared || c->type == UFFDMM_TIER_NBD);
}

static int open_tiers(struct vm *vm, uint64_t ram_bytes,
                      const struct hierarchy_kept *kept, char *err, size_t err_len)
{
    struct tier_vm tier_vm = {.name = vm->name,
                              .qemu_pid = vm->qemu_pid,
                              .ram_bytes = ram_bytes,
                              .kept = kept != NULL,
                              .arena_fd = -1,
                              .incoming = vm->incoming};
    unsigned waited = 0;
    int ret = 0;

    memcpy(tier_vm.uuid, vm->uuid, sizeof(tier_vm.uuid));
    for (unsigned i = 1; i <= vm->options->nr_tiers && !ret; i++) {
        tier_vm.arena_fd = kept ? kept_arena(kept, i) : -1;
        ret = tier_open(&vm->tier[i], i, &vm->tier_configs[i], &tier_vm,
                        stats_tier(vm->stats, i), err, err_len);
        if (!ret) {
            vm->tiers[i] = &vm->tier[i];
            waited += !vm->tier[i].put_stores;
            ret = kept ? check_kept(vm, kept, i, err, err_len) : 0;
        } else if (!kept && comes_later(vm, i, ret)) {
            log_info("tier %s waits for a migration: %s", vm->tier_configs[i].name, err);
            tier_set_state(&vm->tier[i], UFFDMM_TIER_AWAY);
            ret = 0;
        }
    }
    /* none is changed before all are known to be there: QEMU tries again and again */
    for (unsigned i = 1; kept && i <= vm->options->nr_tiers && !ret; i++) {
        if (vm->tier[i].ops->adopt) {
            ret = vm->tier[i].ops->adopt(&vm->tier[i], err, err_len);
        }
    }
    vm->tier[vm->options->nr_tiers].last = true;
    vm->nr_tiers = vm->options->nr_tiers + 1;
    vm->nr_waited = waited ? waited : 1;
    stats_set(&vm->stats->nr_tiers, vm->nr_tiers);
    return ret;
}

/* True when a tier is left to be opened by the thread that migrates. */
static bool opens_late(const struct vm *vm)
{
    for (unsigned i = 1; i < vm->nr_tiers; i++) {
        if (!vm->tiers[i]) {
            return true;
        }
    }
    return false;
}

static int start_threads(struct vm *vm, char *err, size_t err_len)
{
    int ret = evict_start(vm);

    ret = ret ? ret : demote_start(vm);
    ret = ret ? ret : track_start(vm);
    ret = ret || !opens_late(vm) ? ret : mig_thread_start(vm->mig);
    if (ret) {
        snprintf(err, err_len, "cannot start the threads of a worker: %s",
                 strerror(-ret));
    }
    return ret;
}

int hierarchy_open(struct vm *vm, uint64_t ram_bytes, char *err, size_t err_len)
{
    int ret = open_tiers(vm, ram_bytes, NULL, err, err_len);

    ret = ret ? ret : start_threads(vm, err, err_len);
    if (ret) {
        hierarchy_close(vm);
    }
    return ret;
}

/* Tiers are known by their places in entries: all there were must be there again. */
static int check_tiers(const struct vm *vm, const struct hierarchy_kept *kept, char *err,
                       size_t err_len)
{
    if (kept->nr_tiers != vm->options->nr_tiers + 1ULL) {
        snprintf(err, err_len,
                 "VM '%s' has pages in %llu tiers and this manager has %u: start it with "
                 "the tiers of the former one",
                 vm->name, (unsigned long long)kept->nr_tiers - 1, vm->options->nr_tiers);
        return -EINVAL;
    }
    for (unsigned i = 1; i < kept->nr_tiers; i++) {
        const char *name = vm->tier_configs[i].name;

        if (strncmp(kept->names[i], name, UFFDMM_NAME_MAX) != 0) {
            snprintf(
                err, err_len,
                "VM '%s' has pages in tier %u '%.63s', which is '%s' here: start the "
                "manager with the tiers of the former one, in their order",
                vm->name, i, kept->names[i], name);
            return -EINVAL;
        }
    }
    return 0;
}

int hierarchy_take_over(struct vm *vm, uint64_t ram_bytes,
                        const struct hierarchy_kept *kept, char *err, size_t err_len)
{
    int ret = check_tiers(vm, kept, err, err_len);

    if (ret) {
        return ret;
    }
    vm->unsettled = true;
    ret = open_tiers(vm, ram_bytes, kept, err, err_len);
    ret = ret ? ret : start_threads(vm, err, err_len);
    if (ret) {
        hierarchy_close(vm);
        vm->unsettled = false;
    }
    return ret;
}

void hierarchy_settle(struct vm *vm)
{
    for (unsigned i = 1; i < UFFDMM_TIERS_MAX; i++) {
        struct tier *t = vm->tiers[i];

        if (t) {
            t->ops->settle(t);
            __atomic_store_n(&t->unsettled, false, __ATOMIC_RELEASE);
        }
    }
    vm->unsettled = false;
    evict_kick(vm);
}

void hierarchy_gauges(struct vm *vm)
{
    struct uffdmm_stats *st = vm->stats;
    uint64_t pages = 0, used = 0, capacity = 0, reads = 0, read_bytes = 0, writes = 0,
             write_bytes = 0, trim_bytes = 0, errors = 0;

    for (unsigned i = 1; i < UFFDMM_TIERS_MAX; i++) {
        struct tier *t = vm->tiers[i];
        uint64_t stored, taken;

        if (!t) {
            continue;
        }
        tier_gauges(t);
        stored = (uint64_t)atomic_load(&vm->stored[i]);
        taken = tier_pages(t);
        stats_set(&t->stats->stored_pages, stored);
        stats_set(&t->stats->copy_pages, taken > stored ? taken - stored : 0);
        stats_set(&t->stats->stored_bytes, taken * PAGE_SIZE_4K);
        pages += stored;
        used += taken;
        capacity += stats_get(&t->stats->capacity_bytes);
        reads += stats_get(&t->stats->reads);
        read_bytes += stats_get(&t->stats->read_bytes);
        writes += stats_get(&t->stats->writes);
        write_bytes += stats_get(&t->stats->write_bytes);
        trim_bytes += stats_get(&t->stats->trim_bytes);
        errors += stats_get(&t->stats->errors);
    }
    stats_set(&st->stored_bytes, pages * PAGE_SIZE_4K);
    stats_set(&st->zero_bytes, (uint64_t)atomic_load(&vm->stored[0]) * PAGE_SIZE_4K);
    stats_set(&stats_tier(st, 0)->stored_pages, (uint64_t)atomic_load(&vm->stored[0]));
    stats_set(&st->slots_used, used);
    stats_set(&st->slots_total, capacity / PAGE_SIZE_4K);
    stats_set(&st->store_reads, reads);
    stats_set(&st->store_read_bytes, read_bytes);
    stats_set(&st->store_writes, writes);
    stats_set(&st->store_write_bytes, write_bytes);
    stats_set(&st->store_trim_bytes, trim_bytes);
    stats_set(&st->store_errors, errors);
}
