/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The `nbd` tier: a volume that is one NBD export.
 *
 * Theory of operation.  The export is an array of pages.  The first one is the
 * superblock, which says whose the volume is; the others are slots.  The client
 * thread (nbd_client.c) moves the bytes and sees to it that a lost link is only a
 * wait.
 *
 * Slots to which a server may still carry out an old write are kept out of use:
 * nbd_doubt.c.  How a new worker takes over the volume of a dead one: nbd_takeover.c.
 *
 * A trim destroys data, so it is done only after a look at the superblock: a
 * volume that has got another owner is left alone, and its links are cut.
 */
#include "tier_nbd_impl.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "clock.h"
#include "config.h"
#include "log.h"
#include "stats.h"
#include "tier_io.h"

#define SMALLEST_BYTES (2ULL * 1024 * 1024)

/* Smallest and largest run that one trim gives back, in slots. */
#define TRIM_MIN 64
#define TRIM_MAX 16384

/* And at most such a part of the volume. */
#define TRIM_PART 16

/* What lies behind is not used: a journal has a bit for each slot. */
#define JOURNAL_VOLUME_MAX (64ULL << 40)

/* At the end of the VM: one trim covers as much. */
#define TRIM_LAST_BYTES (1ULL << 30)

/* Slots beyond the pages of the VM, so that whole blocks can be rewritten. */
#define SLACK_SHIFT 3

#define CLOSE_NS (2 * NSEC_PER_SEC)
#define TIDY_NS (100 * NSEC_PER_MSEC)

/* Between writing a superblock and reading it back: another taker's write shows by then. */
#define SETTLE_NS (50 * NSEC_PER_MSEC)

/* ---- the superblock ------------------------------------------------------ */

int nbd_read_block(struct nbd_tier *n, uint64_t timeout_ns, char *err, size_t err_len)
{
    int ret;

    n->op =
        (struct nbd_op){.kind = NBD_READ, .buf = n->block, .length = sizeof(n->block)};
    ret = nbd_client_run(n->client, &n->op, timeout_ns);
    if (ret) {
        snprintf(err, err_len, "cannot read the superblock of %s: %s", n->name,
                 strerror(-ret));
    }
    return ret;
}

int nbd_write_block(struct nbd_tier *n, uint64_t timeout_ns, char *err, size_t err_len)
{
    struct nbd_export e;
    int ret;

    nbd_client_export(n->client, &e);
    superblock_make(n->block, &n->self);
    n->op = (struct nbd_op){
        .kind = NBD_WRITE, .fua = e.can_fua, .buf = n->block, .length = sizeof(n->block)};
    ret = nbd_client_run(n->client, &n->op, timeout_ns);
    if (!ret && !e.can_fua && e.can_flush) {
        n->op = (struct nbd_op){.kind = NBD_FLUSH};
        ret = nbd_client_run(n->client, &n->op, timeout_ns);
    }
    if (ret) {
        snprintf(err, err_len, "cannot write the superblock of %s: %s", n->name,
                 strerror(-ret));
    }
    return ret;
}

int nbd_set_block(struct nbd_tier *n, char *err, size_t err_len)
{
    struct timespec settle = {.tv_nsec = SETTLE_NS};
    int ret = nbd_write_block(n, NBD_OPEN_NS, err, err_len);

    if (!ret) {
        nanosleep(&settle, NULL);
        ret = nbd_read_block(n, NBD_OPEN_NS, err, err_len);
    }
    if (!ret) {
        ret = superblock_still_held(n->block, &n->self, n->name, err, err_len);
    }
    return ret;
}

/* Makes the volume ours. */
static int take_volume(struct nbd_tier *n, const struct tier_vm *vm, char *err,
                       size_t err_len)
{
    struct superblock former = {0};
    int ret = nbd_read_block(n, NBD_OPEN_NS, err, err_len);

    if (!ret) {
        ret = superblock_check(n->block, &n->self, n->name, err, err_len);
    }
    if (!ret && vm->incoming && superblock_parse(n->block, &former) == SUPERBLOCK_VALID &&
        former.state == SUPERBLOCK_RELEASED) {
        /* maybe to us: only who drives the migration knows */
        snprintf(err, err_len, "%s was released by host %s", n->name, former.owner.host);
        ret = -EBUSY;
    }
    return ret ? ret : nbd_set_block(n, err, err_len);
}

/* Trims all slots; what does not fit into the time stays as it is. */
static void trim_all(struct nbd_tier *n)
{
    uint64_t until = clock_ns() + CLOSE_NS, now;

    for (uint64_t at = PAGE_SIZE_4K; at < n->bytes; at += TRIM_LAST_BYTES) {
        uint64_t left = n->bytes - at;

        now = clock_ns();
        if (now >= until) {
            return;
        }
        n->op =
            (struct nbd_op){.kind = NBD_TRIM,
                            .offset = at,
                            .length = left < TRIM_LAST_BYTES ? left : TRIM_LAST_BYTES};
        if (nbd_client_run(n->client, &n->op, until - now)) {
            return;
        }
    }
}

/* Says in the superblock that nobody writes any more. */
static void leave_volume(struct tier *t, bool keep)
{
    struct nbd_tier *n = t->priv;
    struct nbd_export e;
    char err[UFFDMM_TEXT_MAX] =
        "its server is away; a VM of the same name on this host takes it over, for "
        "another one zero its first 4 KiB";
    int ret = -ENOTCONN;

    if (n->tidy != TIDY_IDLE) {
        nbd_client_finish(n->client, &n->op, CLOSE_NS);
        n->tidy = TIDY_IDLE;
    }
    if (stats_get(&t->stats->state) != UFFDMM_TIER_AWAY) {
        ret = nbd_read_block(n, CLOSE_NS, err, sizeof(err));
        if (!ret) {
            ret = superblock_still_held(n->block, &n->self, n->name, err, sizeof(err));
        }
        nbd_client_export(n->client, &e);
        if (!ret && !keep && e.can_trim) {
            trim_all(n);
        }
        if (!ret) {
            n->self.state = keep ? SUPERBLOCK_RELEASED : SUPERBLOCK_FREE;
            ret = nbd_write_block(n, CLOSE_NS, err, sizeof(err));
        }
    }
    if (ret) {
        log_warn("tier %s: %s is not given back: %s", t->config->name, n->name, err);
    }
}

/* ---- the interface ------------------------------------------------------- */

static void destroy(struct nbd_tier *n)
{
    if (n->client) {
        nbd_client_stop(n->client);
    }
    slots_deinit(&n->slots);
    journal_close(&n->journal);
    pthread_mutex_destroy(&n->lock);
    free(n->held);
    free(n->suspects);
    free(n);
}

/* A tier with a link to the export of the VM called @vm_name, which is nobody's yet. */
static int nbd_new(struct tier *t, const struct tier_vm *vm, const char *vm_name,
                   struct nbd_tier **out, char *err, size_t err_len)
{
    struct nbd_tier *n = calloc(1, sizeof(*n));
    char uri[NBD_URI_MAX];
    struct nbd_client_config config = {
        .tier = t,
        .uri = uri,
        .connections = t->config->connections,
        .min_bytes = SMALLEST_BYTES,
        .in_doubt = nbd_note_doubt,
        .opaque = n,
    };
    int ret;

    if (!n) {
        snprintf(err, err_len, "no memory for tier %s", t->config->name);
        return -ENOMEM;
    }
    pthread_mutex_init(&n->lock, NULL);
    journal_none(&n->journal);
    slots_init(&n->slots, 0);
    ret = nbd_uri_expand(t->config->uri, vm_name, uri, sizeof(uri));
    if (ret) {
        snprintf(err, err_len, "the uri of tier %s is longer than %u bytes",
                 t->config->name, NBD_URI_MAX);
    } else {
        /* the name of a VM is not longer than its part in the uri */
        snprintf(n->name, sizeof(n->name), "nbd export %.110s", uri);
        n->name[strcspn(n->name, "&")] = '\0';
        ret = nbd_client_start(&n->client, &config, err, err_len);
    }
    if (!ret) {
        ret = superblock_self(&n->self.owner);
        if (ret) {
            snprintf(err, err_len,
                     "cannot tell this process from others: %s; is /proc "
                     "mounted?",
                     strerror(-ret));
        }
    }
    if (ret) {
        destroy(n);
        return ret;
    }
    memcpy(n->self.vm_uuid, vm->uuid, sizeof(n->self.vm_uuid));
    snprintf(n->self.vm_name, sizeof(n->self.vm_name), "%s", vm->name);
    superblock_set_vm_process(&n->self, vm->qemu_pid);
    *out = n;
    return 0;
}

void nbd_ready(struct tier *t, struct nbd_tier *n)
{
    struct nbd_export e;

    nbd_client_hold(n->client, &n->self);
    nbd_client_export(n->client, &e);
    t->priv = n;
    t->stats->shared = 1;
    t->hard_to_keep = n->journal.fd < 0;
    log_info("tier %s: %s has %llu MiB, epoch %llu%s%s", t->config->name, n->name,
             (unsigned long long)(e.bytes >> 20), (unsigned long long)n->self.epoch,
             e.multi_conn ? "" : ", one connection only", e.can_trim ? "" : ", no trim");
}

/* What a later worker needs to know besides the tables, of as many slots as there may be. */
static int start_journal(struct tier *t, struct nbd_tier *n, char *err, size_t err_len)
{
    struct nbd_export e;
    uint64_t bytes;
    int ret;

    nbd_client_export(n->client, &e);
    bytes = e.bytes < JOURNAL_VOLUME_MAX ? e.bytes : JOURNAL_VOLUME_MAX;
    if (t->config->capacity && t->config->capacity < bytes) {
        bytes = t->config->capacity + PAGE_SIZE_4K;
    }
    ret = journal_create(&n->journal, bytes / PAGE_SIZE_4K);
    if (ret) {
        snprintf(
            err, err_len,
            "cannot make the journal of %s, of %llu MiB: %s; raise the memlock limit of the "
            "manager, or bound the tier with capacity=",
            n->name, (unsigned long long)(bytes / PAGE_SIZE_4K / 4 >> 20),
            strerror(-ret));
        return ret;
    }
    n->slots.shown = n->journal.taken;
    t->arena_fd = n->journal.fd;
    return 0;
}

static int nbd_open(struct tier *t, const struct tier_vm *vm, char *err, size_t err_len)
{
    struct nbd_tier *n = NULL;
    int ret = nbd_new(t, vm, vm->name, &n, err, err_len);

    if (ret) {
        return ret;
    }
    if (vm->kept) {
        ret = nbd_keep(t, n, vm, err, err_len);
    } else {
        /* one that is opened late cannot be handed to QEMU any more */
        ret = vm->late ? 0 : start_journal(t, n, err, err_len);
        ret = ret ? ret : take_volume(n, vm, err, err_len);
    }
    if (ret) {
        t->arena_fd = -1;
        destroy(n);
        return ret;
    }
    t->priv = n;
    if (!vm->kept) {
        nbd_ready(t, n);
    }
    return 0;
}

static void nbd_close_tier(struct tier *t, bool keep)
{
    struct nbd_tier *n = t->priv;

    nbd_client_cancel(n->client);
    /* not all who have pages there are known: whoever tries next finds it as it was */
    if (tier_hold(t) == TIER_HELD && !t->unsettled) {
        leave_volume(t, keep);
    }
    destroy(n);
    t->priv = NULL;
    t->arena_fd = -1;
}

int nbd_grow(struct tier *t, uint64_t bytes, char *err, size_t err_len)
{
    struct nbd_tier *n = t->priv;
    uint64_t *map = NULL;
    size_t words = (size_t)((bytes / PAGE_SIZE_4K + 63) / 64);
    int ret = 0;

    if (bytes <= n->bytes) {
        return 0;
    }
    map = calloc(words, sizeof(*map));
    pthread_mutex_lock(&n->lock);
    if (map) {
        ret = slots_grow(&n->slots, bytes / PAGE_SIZE_4K);
    }
    if (!map || ret) {
        pthread_mutex_unlock(&n->lock);
        free(map);
        snprintf(err, err_len, "no memory for the slot map of a volume of %llu MiB",
                 (unsigned long long)(bytes >> 20));
        return -ENOMEM;
    }
    if (n->held) {
        memcpy(map, n->held,
               (size_t)((n->bytes / PAGE_SIZE_4K + 63) / 64) * sizeof(*map));
        free(n->held);
    }
    n->held = map;
    n->bytes = bytes;
    journal_set_slots(&n->journal, bytes / PAGE_SIZE_4K);
    pthread_mutex_unlock(&n->lock);
    nbd_client_need(n->client, bytes);
    stats_set(&t->stats->capacity_bytes, bytes - PAGE_SIZE_4K);
    return 0;
}

/*
 * Nothing can be reserved on an export: its size is what there is, and when that is
 * less than the VM may need the statistics say so and the tier gets full earlier.
 */
int nbd_reserve(struct tier *t, uint64_t bytes, char *err, size_t err_len)
{
    struct nbd_tier *n = t->priv;
    uint64_t want = bytes + (bytes >> SLACK_SHIFT) + 64 * (uint64_t)PAGE_SIZE_4K;
    struct nbd_export e;

    nbd_client_export(n->client, &e);
    if (t->config->capacity && want > t->config->capacity) {
        want = t->config->capacity;
    }
    want += PAGE_SIZE_4K; /* the superblock */
    if (want > e.bytes) {
        want = e.bytes;
    }
    if (n->journal.taken && want > n->journal.nr_slots * PAGE_SIZE_4K) {
        want = n->journal.nr_slots * PAGE_SIZE_4K;
    }
    return nbd_grow(t, want & ~(uint64_t)(PAGE_SIZE_4K - 1), err, err_len);
}

/* Slots of a batch in ascending order; runs mostly are already. */
static void sort_slots(struct tier_put *puts, unsigned nr)
{
    for (unsigned gap = nr / 2; gap; gap /= 2) {
        for (unsigned i = gap; i < nr; i++) {
            uint64_t slot = puts[i].slot;
            unsigned j = i;

            for (; j >= gap && puts[j - gap].slot > slot; j -= gap) {
                puts[j].slot = puts[j - gap].slot;
            }
            puts[j].slot = slot;
        }
    }
}

static void nbd_put(struct tier *t, struct tier_scratch *s, struct tier_put *puts,
                    unsigned nr)
{
    struct nbd_tier *n = t->priv;
    uint64_t start = 0, last = 0, len;
    bool ascending = true;
    unsigned done = 0;

    (void)s;
    while (done < nr && (len = slots_alloc(&n->slots, nr - done, &start))) {
        ascending = ascending && start >= last;
        last = start + len;
        for (uint64_t i = 0; i < len; i++, done++) {
            puts[done].slot = start + i;
            puts[done].result = 0;
        }
    }
    if (!ascending) {
        sort_slots(puts, done);
    }
    for (unsigned i = done; i < nr; i++) {
        puts[i].slot = 0;
        puts[i].result = -ENOSPC;
    }
}

static int nbd_take_run(struct tier *t, unsigned nr, uint64_t *slot)
{
    struct nbd_tier *n = t->priv;

    return slots_alloc_run(&n->slots, nr, slot) ? 0 : -ENOSPC;
}

static bool nbd_valid(const struct tier *t, uint64_t slot)
{
    const struct nbd_tier *n = t->priv;

    return slots_valid(&n->slots, slot);
}

static uint64_t nbd_extent(const struct tier *t, uint64_t slot, uint64_t nr)
{
    const struct nbd_tier *n = t->priv;
    uint64_t end = __atomic_load_n(&n->slots.nr, __ATOMIC_ACQUIRE);

    return slot >= end ? 0 : nr < end - slot ? nr : end - slot;
}

static void nbd_submit(struct tier *t, struct tier_queue *q, struct tier_io *io)
{
    struct nbd_tier *n = t->priv;
    uint64_t pages = io->length / PAGE_SIZE_4K;

    (void)q;
    if (!nbd_valid(t, io->slot) || nbd_extent(t, io->slot, pages) != pages) {
        tier_io_done(io, -EINVAL);
        return;
    }
    nbd_client_submit(n->client, io);
}

/* The next step of a trim: look, trim, give back.  False: it has to be waited for. */
static bool tidy_step(struct tier *t, uint64_t *freed)
{
    struct nbd_tier *n = t->priv;
    char err[UFFDMM_TEXT_MAX];

    if (!nbd_client_wait(n->client, &n->op, TIDY_NS)) {
        return false;
    }
    if (n->tidy == TIDY_TRIMMING) {
        if (!n->op.result) {
            *freed = n->trim_nr * PAGE_SIZE_4K;
            stats_add(&t->stats->trim_bytes, *freed);
        }
        /* a server that refuses to trim this is not asked again */
        nbd_end_trim(n, true);
        return true;
    }
    if (n->op.result) {
        nbd_end_trim(n, false);
        return true;
    }
    if (superblock_still_held(n->block, &n->self, n->name, err, sizeof(err))) {
        tier_error(t, "%s", err);
        nbd_end_trim(n, false);
        nbd_client_fence(n->client);
        return true;
    }
    n->op = (struct nbd_op){.kind = NBD_TRIM,
                            .offset = n->trim_start * PAGE_SIZE_4K,
                            .length = n->trim_nr * PAGE_SIZE_4K};
    n->tidy = TIDY_TRIMMING;
    nbd_client_begin(n->client, &n->op);
    return true;
}

static void nbd_tick(struct tier *t)
{
    struct nbd_tier *n = t->priv;

    if (!__atomic_load_n(&t->unsettled, __ATOMIC_ACQUIRE)) {
        nbd_settle_doubts(n, stats_get(&t->stats->state) == UFFDMM_TIER_AWAY);
    }
}

static uint64_t nbd_tidy(struct tier *t)
{
    struct nbd_tier *n = t->priv;
    bool away = stats_get(&t->stats->state) == UFFDMM_TIER_AWAY;
    struct nbd_export e;
    uint64_t freed = 0, most;

    if (__atomic_load_n(&t->unsettled, __ATOMIC_ACQUIRE)) {
        return 0;
    }
    if (n->tidy == TIDY_IDLE) {
        nbd_client_export(n->client, &e);
        if (away || !e.can_trim) {
            return 0;
        }
        /* should this worker die, its successor cannot use for a while what is trimmed */
        most = n->slots.nr / TRIM_PART;
        most = most < TRIM_MIN ? TRIM_MIN : most > TRIM_MAX ? TRIM_MAX : most;
        n->trim_nr = slots_take_untrimmed(&n->slots, TRIM_MIN, most, &n->trim_start);
        if (!n->trim_nr) {
            return 0;
        }
        n->tidy = TIDY_LOOKING;
        n->op = (struct nbd_op){
            .kind = NBD_READ, .buf = n->block, .length = sizeof(n->block)};
        nbd_client_begin(n->client, &n->op);
    }
    while (n->tidy != TIDY_IDLE && tidy_step(t, &freed)) {
    }
    return freed;
}

static void nbd_cancel(struct tier *t)
{
    struct nbd_tier *n = t->priv;

    nbd_client_cancel(n->client);
}

static uint64_t nbd_used(const struct tier *t)
{
    const struct nbd_tier *n = t->priv;

    return __atomic_load_n(&n->slots.used, __ATOMIC_RELAXED) * PAGE_SIZE_4K;
}

/* ---- from host to host --------------------------------------------------- */

static int nbd_label(const struct tier *t, struct superblock *label, char *err,
                     size_t err_len)
{
    const struct nbd_tier *n = t->priv;

    (void)err;
    (void)err_len;
    *label = n->self;
    return 0;
}

static int nbd_attach(struct tier *t, const struct tier_vm *vm,
                      const struct tier_source *from, char *err, size_t err_len)
{
    struct nbd_tier *n = NULL;
    int ret = nbd_new(t, vm, from->name, &n, err, err_len);

    if (ret) {
        return ret;
    }
    ret = nbd_read_block(n, NBD_OPEN_NS, err, err_len);
    if (!ret && superblock_parse(n->block, &n->self) != SUPERBLOCK_VALID) {
        snprintf(err, err_len, "%s holds no volume: do both hosts reach the same export?",
                 n->name);
        ret = -EUCLEAN;
    }
    if (!ret) {
        ret = superblock_match(&n->self, from->name, from->uuid, from->epoch, n->name,
                               err, err_len);
    }
    if (!ret) {
        t->priv = n;
        ret = nbd_reserve(t, vm->ram_bytes, err, err_len);
        t->priv = NULL;
    }
    if (ret) {
        destroy(n);
        return ret;
    }
    nbd_ready(t, n);
    return 0;
}

static bool nbd_claim(struct tier *t, uint64_t slot)
{
    struct nbd_tier *n = t->priv;

    return slots_claim(&n->slots, slot);
}

static int nbd_release(struct tier *t, const char *destination, uint64_t *epoch,
                       char *err, size_t err_len)
{
    struct nbd_tier *n = t->priv;
    struct superblock mine = n->self, given = n->self, now;
    struct nbd_export e;
    int ret;

    if (n->tidy != TIDY_IDLE) {
        ret = nbd_client_finish(n->client, &n->op, CLOSE_NS);
        nbd_end_trim(n, ret == 0 && n->tidy == TIDY_TRIMMING);
    }
    nbd_settle_doubts(n, stats_get(&t->stats->state) == UFFDMM_TIER_AWAY);
    if (nbd_any_doubt(n)) {
        snprintf(
            err, err_len,
            "%s: writes that a lost link or worker took with it may still come; try again "
            "in %u seconds",
            n->name, nbd_doubt_seconds());
        return -EAGAIN;
    }
    superblock_give(&given, destination);
    *epoch = given.epoch;
    ret = nbd_read_block(n, NBD_OPEN_NS, err, err_len);
    if (ret || (superblock_parse(n->block, &now) == SUPERBLOCK_VALID &&
                superblock_same(&now, &given))) {
        return ret;
    }
    ret = superblock_still_held(n->block, &mine, n->name, err, err_len);
    nbd_client_export(n->client, &e);
    if (!ret && e.can_flush) {
        n->op = (struct nbd_op){.kind = NBD_FLUSH};
        ret = nbd_client_run(n->client, &n->op, NBD_OPEN_NS);
        if (ret) {
            snprintf(err, err_len, "cannot flush %s: %s", n->name, strerror(-ret));
        }
    }
    if (!ret) {
        n->self = given;
        ret = nbd_write_block(n, NBD_OPEN_NS, err, err_len);
        n->self = mine;
    }
    return ret;
}

static int nbd_take(struct tier *t, uint64_t epoch, char *err, size_t err_len)
{
    struct nbd_tier *n = t->priv;
    struct superblock before = n->self, now = {0}, self = {0};
    int ret = nbd_read_block(n, NBD_OPEN_NS, err, err_len);

    if (!ret && superblock_parse(n->block, &now) != SUPERBLOCK_VALID) {
        snprintf(err, err_len, "%s has no superblock any more", n->name);
        ret = -EUCLEAN;
    }
    if (!ret && superblock_self(&self.owner)) {
        snprintf(err, err_len, "cannot tell this process from others; is /proc mounted?");
        ret = -ESRCH;
    }
    memcpy(self.vm_uuid, t->vm.uuid, sizeof(self.vm_uuid));
    snprintf(self.vm_name, sizeof(self.vm_name), "%s", t->vm.name);
    superblock_set_vm_process(&self, t->vm.qemu_pid);
    self.epoch = epoch;
    self.state = SUPERBLOCK_OWNED;
    if (!ret && !superblock_same(&now, &self)) { /* else: it was taken a moment ago */
        ret = superblock_receive(&now, &before, epoch, n->name, err, err_len);
    }
    if (ret) {
        return ret;
    }
    n->self = self;
    ret = nbd_set_block(n, err, err_len);
    if (ret) {
        n->self = before;
        return ret;
    }
    nbd_client_hold(n->client, &n->self);
    slots_mark_written(&n->slots);
    return 0;
}

const struct tier_ops tier_nbd_ops = {
    .open = nbd_open,
    .close = nbd_close_tier,
    .reserve = nbd_reserve,
    .put = nbd_put,
    .take_run = nbd_take_run,
    .adopt = nbd_adopt,
    .take = nbd_take_slot,
    .untake = nbd_untake_slot,
    .settle = nbd_settle,
    .identity = nbd_identity,
    .free = nbd_free,
    .valid = nbd_valid,
    .extent = nbd_extent,
    .submit = nbd_submit,
    .tidy = nbd_tidy,
    .tick = nbd_tick,
    .cancel = nbd_cancel,
    .used = nbd_used,
    .label = nbd_label,
    .attach = nbd_attach,
    .claim = nbd_claim,
    .release_volume = nbd_release,
    .take_volume = nbd_take,
};
