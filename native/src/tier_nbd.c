/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The `nbd` tier: a volume that is one NBD export.
 *
 * Theory of operation.  The export is an array of pages.  The first one is the
 * superblock, which says whose the volume is; the others are slots.  The client
 * thread (nbd_client.c) moves the bytes and sees to it that a lost link is only a
 * wait.
 *
 * What a link took with it may still be carried out by a server that was given
 * up, after the same write was sent again and answered.  While the slot belongs to
 * the same page that does no harm.  So slots that were written or trimmed on a
 * lost link are in doubt for DOUBT_NS: given back in that time, they are held and
 * not handed out again.
 *
 * A trim destroys data, so it is done only after a look at the superblock: a
 * volume that has got another owner is left alone, and its links are cut.
 */
#include "tier.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "clock.h"
#include "config.h"
#include "log.h"
#include "nbd_client.h"
#include "slots.h"
#include "stats.h"
#include "superblock.h"
#include "tier_io.h"

#define SMALLEST_BYTES (2ULL * 1024 * 1024)

/* Smallest and largest run that one trim gives back, in slots. */
#define TRIM_MIN 64
#define TRIM_MAX 16384

/* At the end of the VM: one trim covers as much. */
#define TRIM_LAST_BYTES (1ULL << 30)

/* Slots beyond the pages of the VM, so that whole blocks can be rewritten. */
#define SLACK_SHIFT 3

/* How long a server that was given up may still have a write to carry out. */
#define DOUBT_NS (120 * NSEC_PER_SEC)
#define DOUBTS_MAX 256

#define OPEN_NS (10 * NSEC_PER_SEC)
#define CLOSE_NS (2 * NSEC_PER_SEC)
#define TIDY_NS (100 * NSEC_PER_MSEC)

/* Between writing a superblock and reading it back: another taker's write shows by then. */
#define SETTLE_NS (50 * NSEC_PER_MSEC)

/* Slots [start, end). */
struct doubt {
    uint64_t start, end, until;
};

enum tidy_state { TIDY_IDLE, TIDY_LOOKING, TIDY_TRIMMING };

struct nbd_tier {
    struct nbd_client *client;
    struct slots slots;
    struct superblock self;
    char name[128];
    uint64_t bytes; /* of the export, that are in use as slots */

    pthread_mutex_t lock; /* around what follows up to the blank line */
    uint64_t *held;       /* bitmap: given back while in doubt */
    struct doubt doubts[DOUBTS_MAX];
    unsigned nr_doubts; /* read without the lock, too */

    /* one run at a time is being trimmed, by whoever calls tidy() */
    enum tidy_state tidy;
    struct nbd_op op;
    uint64_t trim_start, trim_nr;
    uint8_t block[SUPERBLOCK_BYTES]; /* for op */
};

/* ---- slots in doubt ------------------------------------------------------ */

static bool in_doubt(const struct nbd_tier *n, uint64_t slot)
{
    for (unsigned i = 0; i < n->nr_doubts; i++) {
        if (slot >= n->doubts[i].start && slot < n->doubts[i].end) {
            return true;
        }
    }
    return false;
}

static bool held(const struct nbd_tier *n, uint64_t slot)
{
    return (n->held[slot / 64] >> (slot % 64)) & 1;
}

static bool taken(struct nbd_tier *n, uint64_t slot)
{
    bool is;

    pthread_mutex_lock(&n->slots.lock);
    is = slot > 0 && slot < n->slots.nr &&
         ((n->slots.taken[slot / 64] >> (slot % 64)) & 1);
    pthread_mutex_unlock(&n->slots.lock);
    return is;
}

/* From the client's thread, before it sends the same bytes again. */
static void note_doubt(void *opaque, uint64_t offset, uint64_t length)
{
    struct nbd_tier *n = opaque;
    struct doubt d = {.start = offset / PAGE_SIZE_4K,
                      .end = (offset + length) / PAGE_SIZE_4K,
                      .until = clock_ns() + DOUBT_NS};
    unsigned nr;

    pthread_mutex_lock(&n->lock);
    nr = n->nr_doubts;
    if (nr == DOUBTS_MAX) {
        /* too many to keep apart: everything is in doubt */
        nr = 0;
        d.start = 0;
        d.end = UINT64_MAX;
    }
    n->doubts[nr] = d;
    __atomic_store_n(&n->nr_doubts, nr + 1, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&n->lock);
}

/* Hands out again what has been held for long enough. */
static void settle_doubts(struct nbd_tier *n, bool away)
{
    uint64_t now = clock_ns();

    if (!__atomic_load_n(&n->nr_doubts, __ATOMIC_ACQUIRE)) {
        return;
    }
    pthread_mutex_lock(&n->lock);
    for (unsigned i = 0; i < n->nr_doubts;) {
        struct doubt d = n->doubts[i];

        if (away) {
            /* the time counts from its return on: it may be frozen with all it had */
            n->doubts[i].until = now + DOUBT_NS;
        }
        if (away || d.until > now) {
            i++;
            continue;
        }
        n->doubts[i] = n->doubts[n->nr_doubts - 1];
        __atomic_store_n(&n->nr_doubts, n->nr_doubts - 1, __ATOMIC_RELEASE);
        for (uint64_t slot = d.start; slot < d.end && slot < n->slots.nr; slot++) {
            if (held(n, slot) && !in_doubt(n, slot)) {
                n->held[slot / 64] &= ~(1ULL << (slot % 64));
                slots_free(&n->slots, slot);
            }
        }
    }
    pthread_mutex_unlock(&n->lock);
}

static bool nbd_free(struct tier *t, uint64_t slot)
{
    struct nbd_tier *n = t->priv;
    bool ok;

    if (!__atomic_load_n(&n->nr_doubts, __ATOMIC_ACQUIRE)) {
        return slots_free(&n->slots, slot);
    }
    pthread_mutex_lock(&n->lock);
    if (!taken(n, slot) || held(n, slot)) {
        ok = false;
    } else if (in_doubt(n, slot)) {
        n->held[slot / 64] |= 1ULL << (slot % 64);
        ok = true;
    } else {
        ok = slots_free(&n->slots, slot);
    }
    pthread_mutex_unlock(&n->lock);
    return ok;
}

/* A run that was taken for a trim goes back, but for what is in doubt. */
static void end_trim(struct nbd_tier *n, bool clean)
{
    n->tidy = TIDY_IDLE;
    if (!__atomic_load_n(&n->nr_doubts, __ATOMIC_ACQUIRE)) {
        slots_trimmed(&n->slots, n->trim_start, n->trim_nr, clean);
        return;
    }
    pthread_mutex_lock(&n->lock);
    for (uint64_t i = n->trim_start; i < n->trim_start + n->trim_nr; i++) {
        if (in_doubt(n, i)) {
            n->held[i / 64] |= 1ULL << (i % 64);
        } else {
            slots_trimmed(&n->slots, i, 1, clean);
        }
    }
    pthread_mutex_unlock(&n->lock);
}

/* ---- the superblock ------------------------------------------------------ */

static int read_block(struct nbd_tier *n, uint64_t timeout_ns, char *err, size_t err_len)
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

/* Writes n->self, durably as far as the server knows what that is. */
static int write_block(struct nbd_tier *n, uint64_t timeout_ns, char *err, size_t err_len)
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

/* Makes the volume ours. */
static int take_volume(struct nbd_tier *n, const struct tier_vm *vm, char *err,
                       size_t err_len)
{
    struct timespec settle = {.tv_nsec = SETTLE_NS};
    struct superblock former = {0};
    int ret = read_block(n, OPEN_NS, err, err_len);

    if (!ret) {
        ret = superblock_check(n->block, &n->self, n->name, err, err_len);
    }
    if (!ret && vm->incoming && superblock_parse(n->block, &former) == SUPERBLOCK_VALID &&
        former.state == SUPERBLOCK_RELEASED) {
        /* maybe to us: only who drives the migration knows */
        snprintf(err, err_len, "%s was released by host %s", n->name, former.owner.host);
        ret = -EBUSY;
    }
    if (!ret) {
        ret = write_block(n, OPEN_NS, err, err_len);
    }
    if (!ret) {
        nanosleep(&settle, NULL);
        ret = read_block(n, OPEN_NS, err, err_len);
    }
    if (!ret) {
        ret = superblock_still_held(n->block, &n->self, n->name, err, err_len);
    }
    return ret;
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
        ret = read_block(n, CLOSE_NS, err, sizeof(err));
        if (!ret) {
            ret = superblock_still_held(n->block, &n->self, n->name, err, sizeof(err));
        }
        nbd_client_export(n->client, &e);
        if (!ret && !keep && e.can_trim) {
            trim_all(n);
        }
        if (!ret) {
            n->self.state = keep ? SUPERBLOCK_RELEASED : SUPERBLOCK_FREE;
            ret = write_block(n, CLOSE_NS, err, sizeof(err));
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
    pthread_mutex_destroy(&n->lock);
    free(n->held);
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
        .in_doubt = note_doubt,
        .opaque = n,
    };
    int ret;

    if (!n) {
        snprintf(err, err_len, "no memory for tier %s", t->config->name);
        return -ENOMEM;
    }
    pthread_mutex_init(&n->lock, NULL);
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
    *out = n;
    return 0;
}

/* Its superblock is n->self: from now on every link has to find that. */
static void nbd_ready(struct tier *t, struct nbd_tier *n)
{
    struct nbd_export e;

    nbd_client_hold(n->client, &n->self);
    nbd_client_export(n->client, &e);
    t->priv = n;
    t->stats->shared = 1;
    log_info("tier %s: %s has %llu MiB, epoch %llu%s%s", t->config->name, n->name,
             (unsigned long long)(e.bytes >> 20), (unsigned long long)n->self.epoch,
             e.multi_conn ? "" : ", one connection only", e.can_trim ? "" : ", no trim");
}

static int nbd_open(struct tier *t, const struct tier_vm *vm, char *err, size_t err_len)
{
    struct nbd_tier *n = NULL;
    int ret = nbd_new(t, vm, vm->name, &n, err, err_len);

    if (ret) {
        return ret;
    }
    ret = take_volume(n, vm, err, err_len);
    if (ret) {
        destroy(n);
        return ret;
    }
    nbd_ready(t, n);
    return 0;
}

static void nbd_close_tier(struct tier *t, bool keep)
{
    struct nbd_tier *n = t->priv;

    nbd_client_cancel(n->client);
    if (tier_hold(t) == TIER_HELD) {
        leave_volume(t, keep);
    }
    destroy(n);
    t->priv = NULL;
}

/*
 * Nothing can be reserved on an export: its size is what there is, and when that is
 * less than the VM may need the statistics say so and the tier gets full earlier.
 */
static int nbd_reserve(struct tier *t, uint64_t bytes, char *err, size_t err_len)
{
    struct nbd_tier *n = t->priv;
    uint64_t want = bytes + (bytes >> SLACK_SHIFT) + 64 * (uint64_t)PAGE_SIZE_4K;
    struct nbd_export e;
    uint64_t *map = NULL;
    size_t words;
    int ret = 0;

    nbd_client_export(n->client, &e);
    if (t->config->capacity && want > t->config->capacity) {
        want = t->config->capacity;
    }
    want += PAGE_SIZE_4K; /* the superblock */
    if (want > e.bytes) {
        want = e.bytes;
    }
    want &= ~(uint64_t)(PAGE_SIZE_4K - 1);
    if (want <= n->bytes) {
        return 0;
    }
    words = (size_t)((want / PAGE_SIZE_4K + 63) / 64);
    map = calloc(words, sizeof(*map));
    pthread_mutex_lock(&n->lock);
    if (map) {
        ret = slots_grow(&n->slots, want / PAGE_SIZE_4K);
    }
    if (!map || ret) {
        pthread_mutex_unlock(&n->lock);
        free(map);
        snprintf(err, err_len, "no memory for the slot map of a volume of %llu MiB",
                 (unsigned long long)(want >> 20));
        return -ENOMEM;
    }
    if (n->held) {
        memcpy(map, n->held,
               (size_t)((n->bytes / PAGE_SIZE_4K + 63) / 64) * sizeof(*map));
        free(n->held);
    }
    n->held = map;
    n->bytes = want;
    pthread_mutex_unlock(&n->lock);
    nbd_client_need(n->client, want);
    stats_set(&t->stats->capacity_bytes, want - PAGE_SIZE_4K);
    return 0;
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
        end_trim(n, true);
        return true;
    }
    if (n->op.result) {
        end_trim(n, false);
        return true;
    }
    if (superblock_still_held(n->block, &n->self, n->name, err, sizeof(err))) {
        tier_error(t, "%s", err);
        end_trim(n, false);
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

static uint64_t nbd_tidy(struct tier *t)
{
    struct nbd_tier *n = t->priv;
    bool away = stats_get(&t->stats->state) == UFFDMM_TIER_AWAY;
    struct nbd_export e;
    uint64_t freed = 0;

    settle_doubts(n, away);
    if (n->tidy == TIDY_IDLE) {
        nbd_client_export(n->client, &e);
        if (away || !e.can_trim) {
            return 0;
        }
        n->trim_nr = slots_take_untrimmed(&n->slots, TRIM_MIN, TRIM_MAX, &n->trim_start);
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
    ret = read_block(n, OPEN_NS, err, err_len);
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
        end_trim(n, ret == 0 && n->tidy == TIDY_TRIMMING);
    }
    settle_doubts(n, stats_get(&t->stats->state) == UFFDMM_TIER_AWAY);
    if (__atomic_load_n(&n->nr_doubts, __ATOMIC_ACQUIRE)) {
        snprintf(
            err, err_len,
            "%s: writes that a lost link took with it may still come; try again in %u "
            "seconds",
            n->name, (unsigned)(DOUBT_NS / NSEC_PER_SEC));
        return -EAGAIN;
    }
    superblock_give(&given, destination);
    *epoch = given.epoch;
    ret = read_block(n, OPEN_NS, err, err_len);
    if (ret || (superblock_parse(n->block, &now) == SUPERBLOCK_VALID &&
                superblock_same(&now, &given))) {
        return ret;
    }
    ret = superblock_still_held(n->block, &mine, n->name, err, err_len);
    nbd_client_export(n->client, &e);
    if (!ret && e.can_flush) {
        n->op = (struct nbd_op){.kind = NBD_FLUSH};
        ret = nbd_client_run(n->client, &n->op, OPEN_NS);
        if (ret) {
            snprintf(err, err_len, "cannot flush %s: %s", n->name, strerror(-ret));
        }
    }
    if (!ret) {
        n->self = given;
        ret = write_block(n, OPEN_NS, err, err_len);
        n->self = mine;
    }
    return ret;
}

static int nbd_take(struct tier *t, uint64_t epoch, char *err, size_t err_len)
{
    struct nbd_tier *n = t->priv;
    struct timespec settle = {.tv_nsec = SETTLE_NS};
    struct superblock before = n->self, now = {0}, self = {0};
    int ret = read_block(n, OPEN_NS, err, err_len);

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
    self.epoch = epoch;
    self.state = SUPERBLOCK_OWNED;
    if (!ret && !superblock_same(&now, &self)) { /* else: it was taken a moment ago */
        ret = superblock_receive(&now, &before, epoch, n->name, err, err_len);
    }
    if (ret) {
        return ret;
    }
    n->self = self;
    ret = write_block(n, OPEN_NS, err, err_len);
    if (!ret) {
        nanosleep(&settle, NULL);
        ret = read_block(n, OPEN_NS, err, err_len);
    }
    if (!ret) {
        ret = superblock_still_held(n->block, &n->self, n->name, err, err_len);
    }
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
    .free = nbd_free,
    .valid = nbd_valid,
    .extent = nbd_extent,
    .submit = nbd_submit,
    .tidy = nbd_tidy,
    .cancel = nbd_cancel,
    .used = nbd_used,
    .label = nbd_label,
    .attach = nbd_attach,
    .claim = nbd_claim,
    .release_volume = nbd_release,
    .take_volume = nbd_take,
};
