/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The session on the source.
 *
 * Theory of operation.  The control plane arms it, QEMU begins it with the first region,
 * and from that moment on slots are frozen (mig_freeze.c).  S is QEMU's to write; this
 * side reads single words of it and never follows one without a check.  S is made once a
 * region and used again by later sessions, so that no thread here can look at a mapping
 * that is gone.
 *
 * The end: FAILED frees what was put aside.  SENT keeps everything, and MIG_RELEASE then
 * hands the volume over.  Should the release fail in a way that leaves open whether the
 * label was written, there is no way back but to repeat it: two owners are worse than a
 * guest that waits for a person.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "clock.h"
#include "conn.h"
#include "control.h"
#include "evict.h"
#include "log.h"
#include "mig.h"
#include "region.h"
#include "vm.h"

/* Writes and trims that are under way end in this time, or the volume is kept. */
#define QUIESCE_NS (20 * NSEC_PER_SEC)

static const char *stage_name(uint32_t stage)
{
    switch (stage) {
    case UFFDMM_MIG_ARMED:
        return "armed";
    case UFFDMM_MIG_RUNNING:
        return "running";
    case UFFDMM_MIG_ALL_SENT:
        return "sent";
    case UFFDMM_MIG_RELEASED:
        return "released";
    case UFFDMM_MIG_PREPARED:
    case UFFDMM_MIG_INSTALLED:
    case UFFDMM_MIG_TAKEN:
        return "on its destination";
    default:
        return "none";
    }
}

bool mig_keeps_tier(const struct mig *m, unsigned tier)
{
    return tier && tier == atomic_load(&m->tier) &&
           atomic_load(&m->stage) == UFFDMM_MIG_ALL_SENT;
}

int mig_arm(struct vm *vm, struct conn *c)
{
    const struct uffdmm_mig_arm *req = (const void *)c->payload;
    struct mig *m = vm->mig;
    uint32_t stage = atomic_load(&m->stage);
    struct superblock label = {0};
    char err[UFFDMM_TEXT_MAX];
    struct tier *t;
    int ret;

    if (stage != UFFDMM_MIG_IDLE && stage != UFFDMM_MIG_ARMED &&
        stage != UFFDMM_MIG_TAKEN) {
        return mig_refuse(c, -EBUSY, "VM '%s' has a migration already (%s): end it first",
                          vm->name, stage_name(stage));
    }
    if (!req->session) {
        atomic_store(&m->stage, UFFDMM_MIG_IDLE);
        return conn_reply(c, NULL, 0, NULL, 0);
    }
    if (vm->unsettled) {
        return mig_refuse(c, -EAGAIN,
                          "memory of VM '%s' is being taken over from a worker that has "
                          "died: try again when all of it is back",
                          vm->name);
    }
    if (req->tier) {
        t = req->tier < UFFDMM_TIERS_MAX ? vm->tiers[req->tier] : NULL;
        if (!t || !t->ops->label) {
            return mig_refuse(c, -EINVAL,
                              "tier %u of VM '%s' is not one that another host can read",
                              req->tier, vm->name);
        }
        if (tier_hold(t) != TIER_HELD) {
            return mig_refuse(c, -EBUSY, "the volume in tier %s is another host's",
                              t->config->name);
        }
        ret = t->ops->label(t, &label, err, sizeof(err));
        if (ret) {
            return mig_refuse(c, ret, "%s", err);
        }
    }
    m->session = req->session;
    m->epoch = label.epoch;
    atomic_store(&m->tier, req->tier);
    atomic_store(&m->stage, UFFDMM_MIG_ARMED);
    return conn_reply(c, NULL, 0, NULL, 0);
}

/* A sealed memfd that is mapped here as well.  0 or a negative errno. */
static int shared_memory(const char *name, uint64_t size, int *fd, void **map)
{
    int ret;

    *fd = region_memfd(name, 0, size);
    if (*fd < 0) {
        return *fd;
    }
    *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
    if (*map == MAP_FAILED) {
        ret = -errno;
        close(*fd);
        *fd = 0;
        return ret;
    }
    return 0;
}

static int make_bounce(struct region *r)
{
    uint64_t size =
        region_is_huge(r) ? MIG_READ_BYTES : (uint64_t)UFFDMM_MIG_READ_MAX * PAGE_SIZE_4K;
    void *map;
    int ret;

    if (r->mig.bounce) {
        return 0;
    }
    ret = shared_memory("uffdmm-bounce", size, &r->mig.bounce_fd, &map);
    if (!ret) {
        r->mig.bounce = map;
        r->mig.bounce_size = size;
    }
    return ret;
}

/* S of the region, empty. */
static int make_set(struct region *r, uint64_t session)
{
    uint64_t size = PAGE_SIZE_4K + r->nr_pages * sizeof(struct uffdmm_set_page);
    void *map;
    int ret = 0;

    size = (size + PAGE_SIZE_4K - 1) & ~(uint64_t)(PAGE_SIZE_4K - 1);
    if (!r->mig.set) {
        ret = shared_memory("uffdmm-set", size, &r->mig.set_fd, &map);
        if (ret) {
            return ret;
        }
        r->mig.set = map;
        r->mig.set_size = size;
    } else if (fallocate(r->mig.set_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
                         (off_t)size) < 0) {
        return -errno;
    }
    *r->mig.set = (struct uffdmm_set_header){.magic = UFFDMM_SET_MAGIC,
                                             .version = UFFDMM_SET_VERSION,
                                             .session = session,
                                             .nr_pages = r->nr_pages,
                                             .pages_offset = PAGE_SIZE_4K};
    atomic_store(&r->mig.pages, (void *)((char *)r->mig.set + PAGE_SIZE_4K));
    return 0;
}

int mig_start(struct vm *vm, struct conn *c)
{
    const struct uffdmm_mig_start *req = (const void *)c->payload;
    struct mig *m = vm->mig;
    struct region *r = c->region;
    uint32_t stage = atomic_load(&m->stage);
    struct uffdmm_mig_start_reply reply = {0};
    bool located = !(req->flags & UFFDMM_MIG_BY_CONTENT) &&
                   (stage == UFFDMM_MIG_ARMED || stage == UFFDMM_MIG_RUNNING);
    int fds[2], nr_fds = 0, ret;

    if (!r || !r->attached || req->region_id != r->id) {
        return mig_refuse(c, -ENOENT, "region %u is not one of this connection",
                          req->region_id);
    }
    if (stage == UFFDMM_MIG_ALL_SENT || stage == UFFDMM_MIG_RELEASED ||
        stage == UFFDMM_MIG_PREPARED || stage == UFFDMM_MIG_INSTALLED) {
        return mig_refuse(c, -EBUSY, "VM '%s' has a migration already (%s): end it first",
                          vm->name, stage_name(stage));
    }
    if (req->flags & ~(uint32_t)UFFDMM_MIG_BY_CONTENT) {
        return mig_refuse(c, -EINVAL, "flags %#x of a migration are unknown", req->flags);
    }
    ret = make_bounce(r);
    if (!ret && located) {
        ret = make_set(r, m->session);
    }
    if (!ret && located && stage == UFFDMM_MIG_ARMED) {
        ret = mig_freeze_begin(m);
    }
    if (ret) {
        return mig_refuse(c, ret, "cannot make the set of pages of region '%s': %s",
                          r->name, strerror(-ret));
    }
    atomic_store(&m->tid, req->tid);
    if (located) {
        atomic_store(&m->stage, UFFDMM_MIG_RUNNING);
        reply.session = m->session;
        reply.set_size = r->mig.set_size;
        reply.tier = atomic_load(&m->tier);
        fds[nr_fds++] = r->mig.set_fd;
    }
    reply.bounce_size = r->mig.bounce_size;
    fds[nr_fds++] = r->mig.bounce_fd;
    return conn_reply(c, &reply, sizeof(reply), fds, (unsigned)nr_fds);
}

/* Gives the memory of S back; a failure only keeps it. */
static void empty_sets(const struct vm *vm)
{
    for (unsigned k = 0; k < UFFDMM_REGIONS_MAX; k++) {
        const struct region *r = vm->regions[k];

        if (r && r->mig.set &&
            fallocate(r->mig.set_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
                      (off_t)r->mig.set_size) < 0) {
            log_warn("cannot empty the set of region '%s': %s", r->name, strerror(errno));
        }
    }
}

int mig_end(struct vm *vm, struct conn *c)
{
    const struct uffdmm_mig_end *req = (const void *)c->payload;
    struct mig *m = vm->mig;
    uint32_t stage = atomic_load(&m->stage);
    bool here = stage >= UFFDMM_MIG_ARMED && stage <= UFFDMM_MIG_RELEASED;

    if (req->outcome != UFFDMM_MIG_FAILED && req->outcome != UFFDMM_MIG_SENT) {
        return mig_refuse(c, -EINVAL, "outcome %u of a migration is unknown",
                          req->outcome);
    }
    if (req->session && (!here || req->session != m->session)) {
        return mig_refuse(c, -ENOENT, "VM '%s' has no migration session %#llx", vm->name,
                          (unsigned long long)req->session);
    }
    if (stage == UFFDMM_MIG_RELEASED || atomic_load(&m->releasing) ||
        atomic_load(&m->uncertain)) {
        if (stage == UFFDMM_MIG_RELEASED && req->outcome == UFFDMM_MIG_SENT) {
            return conn_reply(c, NULL, 0, NULL, 0);
        }
        return mig_refuse(
            c, -EBUSY, "the volume of VM '%s' %s: the guest must not go on here",
            vm->name,
            stage == UFFDMM_MIG_RELEASED ? "is its destination's"
                                         : "may be its destination's: repeat "
                                           "the release to find out");
    }
    atomic_store(&m->tid, 0);
    if (stage == UFFDMM_MIG_RUNNING || stage == UFFDMM_MIG_ALL_SENT) {
        if (req->outcome == UFFDMM_MIG_SENT) {
            atomic_store(&m->stage, UFFDMM_MIG_ALL_SENT);
        } else {
            mig_freeze_end(m);
            empty_sets(vm);
            atomic_store(&m->stage, UFFDMM_MIG_IDLE);
        }
    } else if (stage == UFFDMM_MIG_ARMED && req->session) {
        atomic_store(&m->stage, UFFDMM_MIG_IDLE);
    }
    return conn_reply(c, NULL, 0, NULL, 0);
}

static uint64_t count_set(const struct vm *vm)
{
    uint64_t n = 0;

    for (unsigned k = 0; k < UFFDMM_REGIONS_MAX; k++) {
        struct region *r = vm->regions[k];
        const struct uffdmm_set_page *pages = r ? atomic_load(&r->mig.pages) : NULL;

        for (uint64_t pfn = 0; pages && pfn < r->nr_pages; pfn++) {
            n += __atomic_load_n(&pages[pfn].entry, __ATOMIC_RELAXED) != 0;
        }
    }
    return n;
}

int mig_status(struct vm *vm, struct conn *c)
{
    struct mig *m = vm->mig;
    struct uffdmm_mig_status_reply reply = {
        .stage = atomic_load(&m->stage),
        .session = m->session,
        .tier = atomic_load(&m->tier),
        .bypass_pages = stats_get(&vm->stats->bypass_pages),
        .swap_ins = stats_get(&vm->stats->migration_swap_ins),
        .frozen_slots = atomic_load(&m->nr_frozen)};
    const struct tier *t = reply.tier ? vm->tiers[reply.tier] : NULL;
    struct superblock label = {0};
    char err[UFFDMM_TEXT_MAX];

    if (reply.stage == UFFDMM_MIG_IDLE) {
        reply.session = 0;
    }
    if (t && t->ops->label && !t->ops->label(t, &label, err, sizeof(err))) {
        reply.epoch = m->epoch;
        memcpy(reply.volume_uuid, label.vm_uuid, sizeof(reply.volume_uuid));
    }
    if (reply.stage >= UFFDMM_MIG_PREPARED) {
        reply.located = atomic_load(&m->located);
    } else if (reply.stage >= UFFDMM_MIG_RUNNING) {
        reply.located = count_set(vm);
    }
    return conn_reply(c, &reply, sizeof(reply), NULL, 0);
}

int mig_export(struct vm *vm, struct conn *c)
{
    const struct uffdmm_regions *req = (const void *)c->payload;
    struct uffdmm_regions_reply reply;
    const struct region *r = control_describe(vm, req->index, &reply);
    int fds[2] = {-1, -1}, ret;

    if (!r) {
        return conn_reply_error(c, -ENOENT, "there is no further region");
    }
    if (!mig_running(vm->mig) || !r->mig.set || r->mig.set->session != vm->mig->session) {
        /* asked again and again until it has: nothing for the log */
        return conn_reply_error(c, -EAGAIN,
                                "the region has no set of pages: QEMU has not begun");
    }
    fds[0] = control_open_readonly(r->mig.set_fd);
    fds[1] = control_open_readonly(r->table_fd);
    if (fds[0] < 0 || fds[1] < 0) {
        ret = mig_refuse(c, fds[0] < 0 ? fds[0] : fds[1],
                         "cannot open the set of region '%s' for reading", r->name);
    } else {
        ret = conn_reply(c, &reply, sizeof(reply), fds, 2);
    }
    for (int i = 0; i < 2; i++) {
        if (fds[i] >= 0) {
            close(fds[i]);
        }
    }
    return ret;
}

int mig_ack(struct vm *vm, struct conn *c)
{
    const struct uffdmm_mig_ack *req = (const void *)c->payload;
    struct region *r =
        req->region_id < UFFDMM_REGIONS_MAX ? vm->regions[req->region_id] : NULL;

    if (!mig_running(vm->mig) || req->session != vm->mig->session || !r || !r->mig.set) {
        return mig_refuse(c, -ENOENT, "region %u has no set of session %#llx",
                          req->region_id, (unsigned long long)req->session);
    }
    if (req->changes > __atomic_load_n(&r->mig.set->changes, __ATOMIC_ACQUIRE)) {
        return mig_refuse(
            c, -ERANGE, "region '%s': %llu changes are known, %llu were made", r->name,
            (unsigned long long)req->changes, (unsigned long long)r->mig.set->changes);
    }
    __atomic_store_n(&r->mig.set->acked, req->changes, __ATOMIC_RELEASE);
    return conn_reply(c, NULL, 0, NULL, 0);
}

int mig_read(struct vm *vm, struct conn *c)
{
    const struct uffdmm_mig_read *req = (const void *)c->payload;
    struct region *r = c->region;

    if (!r || !r->attached || req->region_id != r->id || !r->mig.bounce) {
        return mig_refuse(c, -ENOENT, "region %u is not one that is being migrated here",
                          req->region_id);
    }
    if (req->nr < 1 || req->nr > UFFDMM_MIG_READ_MAX || req->first >= r->nr_pages ||
        req->nr > r->nr_pages - req->first ||
        req->nr * region_page_bytes(r) > r->mig.bounce_size) {
        return mig_refuse(
            c, -EINVAL,
            "%u pages from %llu on of region '%s': it has %llu, and %llu a time", req->nr,
            (unsigned long long)req->first, r->name, (unsigned long long)r->nr_pages,
            (unsigned long long)(r->mig.bounce_size / region_page_bytes(r)));
    }
    return mig_submit(vm, c, r);
}

int mig_release(struct vm *vm, struct conn *c)
{
    const struct uffdmm_mig_release *req = (const void *)c->payload;
    struct mig *m = vm->mig;
    uint32_t stage = atomic_load(&m->stage);

    if (!conn_string_ok(req->destination, sizeof(req->destination))) {
        return mig_refuse(c, -EINVAL, "the name of the destination is not terminated");
    }
    if (stage != UFFDMM_MIG_ALL_SENT || req->session != m->session) {
        return mig_refuse(c, -EPERM,
                          "VM '%s' has not left in session %#llx (%s): its volume stays",
                          vm->name, (unsigned long long)req->session, stage_name(stage));
    }
    if (atomic_load(&m->releasing)) {
        return mig_refuse(c, -EBUSY, "the volume of VM '%s' is being released already",
                          vm->name);
    }
    atomic_store(&m->releasing, true);
    atomic_store(&m->freeze_all, true);
    return mig_submit(vm, c, NULL);
}

void mig_do_release(struct mig *m, struct mig_job *job)
{
    struct tier *t = m->vm->tiers[atomic_load(&m->tier)];
    struct uffdmm_mig_release_reply reply = {0};
    char err[UFFDMM_TEXT_MAX] = "writes to the volume do not end";
    int ret = 0;

    if (t) {
        ret = tier_quiesce(t, QUIESCE_NS);
        if (!ret) {
            ret = t->ops->release_volume(t, job->request.release.destination,
                                         &reply.epoch, err, sizeof(err));
            if (ret == -EAGAIN && !atomic_load(&m->uncertain)) {
                __atomic_store_n(&t->hold, TIER_HELD, __ATOMIC_SEQ_CST);
            } else {
                atomic_store(&m->uncertain, ret != 0);
            }
        }
    }
    if (ret) {
        atomic_store(&m->releasing, false);
        mig_reply_error(job, ret, "%s", err);
        return;
    }
    m->epoch = reply.epoch;
    atomic_store(&m->stage, UFFDMM_MIG_RELEASED);
    atomic_store(&m->releasing, false);
    log_info("the volume is released to %s in epoch %llu: nothing more is written to it",
             job->request.release.destination, (unsigned long long)reply.epoch);
    mig_reply(job, &reply, sizeof(reply));
}

/*
 * The label decides.  While it says "released" nobody has taken the volume, so the guest has
 * run nowhere else; and from then on its destination is refused, for the volume is owned.
 * Without a label nothing decides.
 */
void mig_do_take_back(struct mig *m, struct mig_job *job)
{
    const struct uffdmm_mig_take *req = &job->request.take;
    struct vm *vm = m->vm;
    struct tier *t = vm->tiers[atomic_load(&m->tier)];
    char err[UFFDMM_TEXT_MAX];
    int ret;

    if (!t || req->session != m->session || req->epoch != m->epoch) {
        mig_reply_error(job, -EPERM,
                        t ? "VM '%s' has not released its volume in session %#llx and "
                            "epoch %llu"
                          : "VM '%s' has left in session %#llx without a shared tier "
                            "(epoch %llu): nothing here tells whether it runs there",
                        vm->name, (unsigned long long)req->session,
                        (unsigned long long)req->epoch);
        return;
    }
    ret = t->ops->take_volume(t, req->epoch, err, sizeof(err));
    if (ret) {
        mig_reply_error(job, ret, "%s", err);
        return;
    }
    __atomic_store_n(&t->hold, TIER_HELD, __ATOMIC_SEQ_CST);
    mig_freeze_end(m);
    pthread_rwlock_rdlock(&vm->regions_lock);
    empty_sets(vm);
    pthread_rwlock_unlock(&vm->regions_lock);
    atomic_store(&m->stage, UFFDMM_MIG_IDLE);
    atomic_store(&vm->note_due, true);
    evict_kick(vm);
    log_warn("tier %s: the volume of VM %s has been taken back in epoch %llu: its "
             "destination must not run it any more",
             t->config->name, vm->name, (unsigned long long)req->epoch);
    mig_reply(job, NULL, 0);
}
