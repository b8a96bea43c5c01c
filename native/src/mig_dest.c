/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The destination: the volume of the source is opened for reading, locations gather in
 * a staging table, are installed when QEMU says what they must add up to, and the volume
 * is taken when the source has released it.
 *
 * All of it but the form of requests is the migration thread's, one request at a time.
 * The volume is a tier of its own beside those of this VM: at the index of the shared
 * tier when its volume was the source's all along (so that it could not be opened), else
 * behind the others.  Slots in it are claimed as they are installed, so no slot is named
 * twice; and nothing new is put there before MIG_TAKE.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "conn.h"
#include "evict.h"
#include "log.h"
#include "mig.h"
#include "vm.h"

/* Locations read from a file at a time. */
#define CHUNK 1024u

#define LOCATIONS_MAX (16u << 20)

/* ---- the form of requests: the main thread's ----------------------------------- */

static bool file_name_ok(const char *name)
{
    return name[0] && name[0] != '.' && !strchr(name, '/');
}

int mig_prepare(struct vm *vm, struct conn *c)
{
    const struct uffdmm_mig_prepare *req = (const void *)c->payload;

    if (!conn_string_ok(req->volume_name, sizeof(req->volume_name)) || !req->session ||
        (req->tier && !file_name_ok(req->volume_name))) {
        return mig_refuse(c, -EINVAL, "a session needs a number, and a volume a name");
    }
    if (req->tier > vm->options->nr_tiers) {
        return mig_refuse(c, -EINVAL, "tier %u: VM '%s' has tiers 1 to %u", req->tier,
                          vm->name, vm->options->nr_tiers);
    }
    if (!vm->nr_tiers || vm->unsettled) {
        return mig_refuse(c, -EAGAIN, "VM '%s' %s", vm->name,
                          vm->unsettled
                              ? "is being taken over from a worker that has died"
                              : "has no memory yet");
    }
    return mig_submit(vm, c, NULL);
}

int mig_import(struct vm *vm, struct conn *c)
{
    const struct uffdmm_mig_import *req = (const void *)c->payload;
    struct region *r = NULL;

    if (!conn_string_ok(req->region, sizeof(req->region)) || c->nr_fds != 1 || !req->nr ||
        req->nr > LOCATIONS_MAX) {
        return mig_refuse(c, -EINVAL,
                          "%llu locations in %u files: send 1 to %u of a region in one",
                          (unsigned long long)req->nr, c->nr_fds, LOCATIONS_MAX);
    }
    /* reading any other file could make the thread wait for somebody */
    if (!mig_sealed(c->fds[0], F_SEAL_SHRINK | F_SEAL_WRITE)) {
        return mig_refuse(c, -EINVAL,
                          "locations must come in a memfd that is sealed against writing "
                          "and shrinking");
    }
    for (unsigned i = 0; i < UFFDMM_REGIONS_MAX; i++) {
        if (vm->regions[i] && vm->regions[i]->attached &&
            !strcmp(vm->regions[i]->name, req->region)) {
            r = vm->regions[i];
        }
    }
    if (!r) {
        return mig_refuse(c, -ENOENT, "VM '%s' has no region '%s' here", vm->name,
                          req->region);
    }
    return mig_submit(vm, c, r);
}

int mig_install(struct vm *vm, struct conn *c)
{
    const struct uffdmm_mig_install *req = (const void *)c->payload;

    if (!c->region || !c->region->attached || req->region_id != c->region->id) {
        return mig_refuse(c, -ENOENT, "region %u is not one of this connection",
                          req->region_id);
    }
    return mig_submit(vm, c, c->region);
}

int mig_take(struct vm *vm, struct conn *c)
{
    return mig_submit(vm, c, NULL);
}

/* ---- the volume ------------------------------------------------------------------ */

static struct tier_vm tier_vm_of(const struct vm *vm)
{
    struct tier_vm tv = {.name = vm->name,
                         .qemu_pid = vm->qemu_pid,
                         .ram_bytes = stats_get(&vm->stats->ram_bytes),
                         .incoming = true,
                         .late = true};

    memcpy(tv.uuid, vm->uuid, sizeof(tv.uuid));
    return tv;
}

/* From now on all threads see the tier. */
static void publish(struct vm *vm, unsigned i)
{
    unsigned waited = 0;

    vm->tier[i].last = i == vm->options->nr_tiers;
    if (vm->nr_tiers <= i) {
        vm->nr_tiers = i + 1;
        stats_set(&vm->stats->nr_tiers, vm->nr_tiers);
    }
    atomic_store(&vm->tiers[i], &vm->tier[i]);
    for (unsigned k = 1; k < UFFDMM_TIERS_MAX; k++) {
        waited += vm->tiers[k] && !vm->tiers[k]->put_stores;
    }
    vm->nr_waited = waited ? waited : 1;
    atomic_store(&vm->note_due, true);
}

void mig_open_late(struct mig *m)
{
    struct vm *vm = m->vm;
    struct tier_vm tv = tier_vm_of(vm);
    char err[UFFDMM_TEXT_MAX];

    if (!vm->incoming || atomic_load(&m->stage) != UFFDMM_MIG_IDLE) {
        return;
    }
    for (unsigned i = 1; i <= vm->options->nr_tiers; i++) {
        if (vm->tiers[i] || tier_open(&vm->tier[i], i, &vm->tier_configs[i], &tv,
                                      stats_tier(vm->stats, i), err, sizeof(err))) {
            continue;
        }
        if (vm->tier[i].ops->reserve(&vm->tier[i], tv.ram_bytes, err, sizeof(err))) {
            log_warn("%s", err);
            tier_close(&vm->tier[i], false);
            continue;
        }
        tier_set_state(&vm->tier[i], UFFDMM_TIER_OK);
        publish(vm, i);
        log_info("tier %s: the volume has been given up on its old host, and is ours",
                 vm->tier_configs[i].name);
    }
}

/* Opens the source's volume.  0 or a negative errno with @err. */
static int attach(struct mig *m, const struct uffdmm_mig_prepare *req, char *err,
                  size_t err_len)
{
    struct vm *vm = m->vm;
    struct tier_vm tv = tier_vm_of(vm);
    struct tier_source from = {.name = req->volume_name, .epoch = req->epoch};
    unsigned i = req->tier;
    int ret;

    memcpy(from.uuid, req->volume_uuid, sizeof(from.uuid));
    if (vm->tiers[i]) {
        for (i = vm->options->nr_tiers + 1; i < UFFDMM_TIERS_MAX && vm->tiers[i]; i++) {
        }
        if (i == UFFDMM_TIERS_MAX) {
            snprintf(err, err_len, "VM '%s' has %d tiers already, the most there can be",
                     vm->name, UFFDMM_TIERS_MAX - 1);
            return -ENOSPC;
        }
        vm->tier_configs[i] = vm->tier_configs[req->tier];
        vm->tier_bytes[i] = vm->tier_bytes[req->tier];
    }
    ret = tier_attach(&vm->tier[i], i, &vm->tier_configs[i], &tv, &from,
                      stats_tier(vm->stats, i), err, err_len);
    if (ret) {
        return ret;
    }
    tier_set_state(&vm->tier[i], UFFDMM_TIER_OK);
    publish(vm, i);
    atomic_store(&m->tier, i);
    return 0;
}

/* Forgets what was imported. */
static void forget(struct vm *vm)
{
    for (unsigned k = 0; k < UFFDMM_REGIONS_MAX; k++) {
        struct region *r = vm->regions[k];

        if (r && r->mig.entries) {
            memset(r->mig.entries, 0, r->nr_pages * sizeof(*r->mig.entries));
        }
        if (r) {
            r->mig.count = r->mig.digest = 0;
        }
    }
}

void mig_do_prepare(struct mig *m, struct mig_job *job)
{
    const struct uffdmm_mig_prepare *req = &job->request.prepare;
    struct uffdmm_mig_prepare same = *req;
    uint32_t stage = atomic_load(&m->stage);
    char err[UFFDMM_TEXT_MAX];
    int ret = 0;

    same.session = m->prepared.session;
    if (stage != UFFDMM_MIG_IDLE &&
        !(stage == UFFDMM_MIG_PREPARED && !memcmp(&same, &m->prepared, sizeof(same)))) {
        mig_reply_error(job, -EBUSY,
                        "VM '%s' waits for another migration, or has had one: start its "
                        "QEMU anew to receive one",
                        m->vm->name);
        return;
    }
    atomic_store(&m->stage, UFFDMM_MIG_PREPARED); /* mig_open_late() keeps off */
    if (stage == UFFDMM_MIG_IDLE && req->tier) {
        ret = attach(m, req, err, sizeof(err));
    }
    if (ret) {
        atomic_store(&m->stage, UFFDMM_MIG_IDLE);
        mig_reply_error(job, ret, "%s", err);
        return;
    }
    pthread_rwlock_rdlock(&m->vm->regions_lock);
    forget(m->vm);
    pthread_rwlock_unlock(&m->vm->regions_lock);
    atomic_store(&m->located, 0);
    m->prepared = *req;
    m->session = req->session;
    m->epoch = req->epoch;
    mig_reply(job, NULL, 0);
}

/* ---- locations ------------------------------------------------------------------- */

static bool location_ok(const struct mig *m, const struct region *r,
                        const struct uffdmm_mig_location *l)
{
    static const uint8_t zeros[sizeof(l->pad)];
    const struct tier *t = m->vm->tiers[atomic_load(&m->tier)];
    uint64_t e = l->entry;

    if (l->pfn >= r->nr_pages || memcmp(l->pad, zeros, sizeof(zeros)) != 0) {
        return false;
    }
    if (!e) {
        return true; /* withdrawn */
    }
    if (e & 0xf0) {
        return false;
    }
    if (entry_state(e) == UFFDMM_PAGE_EMPTY) {
        return !entry_tier(e) && !entry_slot(e) && !l->record;
    }
    if (entry_state(e) != UFFDMM_PAGE_STORED) {
        return false;
    }
    if (entry_tier(e) == UFFDMM_TIER_ZERO) {
        return !entry_slot(e);
    }
    return m->prepared.tier && entry_tier(e) == m->prepared.tier && t &&
           tier_valid(t, entry_slot(e), region_units(r));
}

static void put_location(struct mig *m, struct region *r,
                         const struct uffdmm_mig_location *l)
{
    struct region_mig *s = &r->mig;
    uint64_t *e = &s->entries[l->pfn];

    if (*e) {
        s->digest -= mig_digest(l->pfn, *e, s->records[l->pfn]);
        s->count--;
        atomic_fetch_sub(&m->located, 1);
    }
    *e = l->entry;
    s->records[l->pfn] = l->record;
    s->ages[l->pfn] = l->age;
    if (*e) {
        s->digest += mig_digest(l->pfn, *e, l->record);
        s->count++;
        atomic_fetch_add(&m->located, 1);
    }
}

/* Looks at all locations of the file, or takes them.  0 or a negative errno with @err. */
static int each_location(struct mig *m, const struct mig_job *job, bool take, char *err,
                         size_t err_len)
{
    struct uffdmm_mig_location *chunk = (void *)m->buffer;
    struct region *r = job->region;

    for (uint64_t done = 0; done < job->request.import.nr;) {
        uint64_t left = job->request.import.nr - done;
        size_t n = left < CHUNK ? (size_t)left : CHUNK;
        ssize_t got = pread(job->fd, chunk, n * sizeof(*chunk),
                            (off_t)done * (off_t)sizeof(*chunk));

        if (got != (ssize_t)(n * sizeof(*chunk))) {
            snprintf(err, err_len, "the file has less than %llu locations",
                     (unsigned long long)job->request.import.nr);
            return -EINVAL;
        }
        for (size_t i = 0; i < n; i++) {
            if (!location_ok(m, r, &chunk[i])) {
                snprintf(err, err_len,
                         "location %llu: page %llu of region '%s' as %#llx is none that "
                         "can be: tier %u is the source's",
                         (unsigned long long)done + i, (unsigned long long)chunk[i].pfn,
                         r->name, (unsigned long long)chunk[i].entry, m->prepared.tier);
                return -EINVAL;
            }
            if (take) {
                put_location(m, r, &chunk[i]);
            }
        }
        done += n;
    }
    return 0;
}

static int make_staging(struct region *r)
{
    struct region_mig *s = &r->mig;

    if (!s->entries) {
        s->entries = calloc(r->nr_pages, sizeof(*s->entries));
        s->records = calloc(r->nr_pages, sizeof(*s->records));
        s->ages = calloc(r->nr_pages, sizeof(*s->ages));
    }
    return s->entries && s->records && s->ages ? 0 : -ENOMEM;
}

void mig_do_import(struct mig *m, struct mig_job *job)
{
    char err[UFFDMM_TEXT_MAX] = "no memory for locations";
    int ret;

    if (atomic_load(&m->stage) != UFFDMM_MIG_PREPARED ||
        job->request.import.session != m->session || job->region->mig.installed) {
        mig_reply_error(job, -EPERM, "no locations are awaited in session %#llx",
                        (unsigned long long)job->request.import.session);
        return;
    }
    ret = make_staging(job->region);
    ret = ret ? ret : each_location(m, job, false, err, sizeof(err));
    ret = ret ? ret : each_location(m, job, true, err, sizeof(err));
    if (ret) {
        mig_reply_error(job, ret, "%s", err);
    } else {
        mig_reply(job, NULL, 0);
    }
}

/* ---- the end ----------------------------------------------------------------------- */

/* True when each region that there is has been installed. */
static bool all_installed(struct vm *vm)
{
    bool all = true;

    pthread_rwlock_rdlock(&vm->regions_lock);
    for (unsigned k = 0; k < UFFDMM_REGIONS_MAX; k++) {
        const struct region *r = vm->regions[k];

        all &= !r || !r->attached || r->mig.installed;
    }
    pthread_rwlock_unlock(&vm->regions_lock);
    return all;
}

bool mig_try_install(struct mig *m, struct mig_job *job)
{
    const struct uffdmm_mig_install *req = &job->request.install;
    struct region *r = job->region;
    char err[UFFDMM_TEXT_MAX];
    int ret;

    if (atomic_load(&m->stage) != UFFDMM_MIG_PREPARED || req->session != m->session ||
        r->mig.installed) {
        mig_reply_error(job, -EPERM, "region '%s' awaits no session %#llx", r->name,
                        (unsigned long long)req->session);
        return true;
    }
    if (r->mig.count != req->count || r->mig.digest != req->digest) {
        return false;
    }
    ret = mig_install_region(m, r, err, sizeof(err));
    if (ret) {
        mig_reply_error(job, ret, "%s", err);
        return true;
    }
    mig_free_staging(r);
    r->mig.installed = true;
    if (all_installed(m->vm)) {
        atomic_store(&m->stage, UFFDMM_MIG_INSTALLED);
    }
    mig_reply(job, NULL, 0);
    return true;
}

void mig_do_take(struct mig *m, struct mig_job *job)
{
    const struct uffdmm_mig_take *req = &job->request.take;
    unsigned i = m->prepared.tier ? atomic_load(&m->tier) : 0;
    struct tier *t = m->vm->tiers[i];
    char err[UFFDMM_TEXT_MAX];
    int ret = 0;

    if (atomic_load(&m->stage) == UFFDMM_MIG_RELEASED) {
        mig_do_take_back(m, job);
        return;
    }
    if (atomic_load(&m->stage) != UFFDMM_MIG_INSTALLED || req->session != m->session) {
        mig_reply_error(job, -EPERM,
                        "nothing of session %#llx is installed: the guest must not run "
                        "here",
                        (unsigned long long)req->session);
        return;
    }
    if (t) {
        ret = t->ops->take_volume(t, req->epoch, err, sizeof(err));
    }
    if (ret) {
        mig_reply_error(job, ret, "%s", err);
        return;
    }
    if (t) {
        m->epoch = req->epoch;
        __atomic_store_n(&t->hold, TIER_HELD, __ATOMIC_SEQ_CST);
        atomic_store(&m->vm->note_due, true);
        log_info("tier %s: the volume of VM %s is ours in epoch %llu", t->config->name,
                 m->prepared.volume_name, (unsigned long long)req->epoch);
    }
    atomic_store(&m->stage, UFFDMM_MIG_TAKEN);
    evict_kick(m->vm);
    mig_reply(job, NULL, 0);
}
