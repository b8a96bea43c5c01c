/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "tier.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"
#include "config.h"
#include "log.h"
#include "probes.h"
#include "stats.h"

/* A tier is shown as failing for so long after its last error. */
#define FAILING_NS (1 * NSEC_PER_SEC)

/* A store that has something to do and ends nothing for so long is slow, and avoided. */
#define STALLED_NS (1 * NSEC_PER_SEC)
#define AVOID_STALLED_NS (500 * NSEC_PER_MSEC)

static const struct tier_ops *ops_of(uint32_t type)
{
    switch (type) {
    case UFFDMM_TIER_POOL:
        return &tier_pool_ops;
    case UFFDMM_TIER_FILE:
        return &tier_file_ops;
    case UFFDMM_TIER_NBD:
        return &tier_nbd_ops;
    default:
        return NULL;
    }
}

/* All of a tier but its volume. */
static int tier_init(struct tier *t, unsigned index, const struct tier_config *config,
                     const struct tier_vm *vm, struct uffdmm_tier_stats *stats, char *err,
                     size_t err_len)
{
    memset(t, 0, sizeof(*t));
    t->ops = ops_of(config->type);
    t->config = config;
    t->stats = stats;
    t->vm = *vm;
    t->index = index;
    t->arena_fd = -1;
    t->unsettled = vm->kept;
    pthread_mutex_init(&t->tidy_lock, NULL);
    t->max_bytes = config->capacity ? config->capacity : UINT64_MAX;
    snprintf(stats->name, sizeof(stats->name), "%s", config->name);
    stats->type = config->type;
    stats->shared = config->shared;
    if (!t->ops) {
        snprintf(err, err_len, "tier %s has type %u, which this manager does not know",
                 config->name, config->type);
        return -EINVAL;
    }
    return 0;
}

int tier_open(struct tier *t, unsigned index, const struct tier_config *config,
              const struct tier_vm *vm, struct uffdmm_tier_stats *stats, char *err,
              size_t err_len)
{
    int ret = tier_init(t, index, config, vm, stats, err, err_len);

    return ret ? ret : t->ops->open(t, vm, err, err_len);
}

int tier_attach(struct tier *t, unsigned index, const struct tier_config *config,
                const struct tier_vm *vm, const struct tier_source *from,
                struct uffdmm_tier_stats *stats, char *err, size_t err_len)
{
    int ret = tier_init(t, index, config, vm, stats, err, err_len);

    if (!ret && !t->ops->attach) {
        snprintf(
            err, err_len,
            "tier %s keeps pages where no other host can read them: name one that is "
            "shared",
            config->name);
        ret = -EINVAL;
    }
    if (!ret) {
        t->hold = TIER_READING;
        ret = t->ops->attach(t, vm, from, err, err_len);
    }
    return ret;
}

void tier_close(struct tier *t, bool keep)
{
    t->ops->close(t, keep);
    pthread_mutex_destroy(&t->tidy_lock);
}

void tier_tidy(struct tier *t)
{
    if (!t->ops->tidy) {
        return;
    }
    pthread_mutex_lock(&t->tidy_lock);
    if (tier_hold(t) == TIER_HELD) {
        t->ops->tidy(t);
    }
    pthread_mutex_unlock(&t->tidy_lock);
}

void tier_tick(struct tier *t)
{
    if (!t->ops->tick) {
        return;
    }
    pthread_mutex_lock(&t->tidy_lock);
    if (tier_hold(t) == TIER_HELD) {
        t->ops->tick(t);
    }
    pthread_mutex_unlock(&t->tidy_lock);
}

/*
 * Whoever takes a slot or writes counts itself first and looks at `hold` then; here it
 * is the other way round.  So either he sees that the volume is closed, or we see him.
 */
int tier_quiesce(struct tier *t, uint64_t timeout_ns)
{
    uint64_t until = clock_ns() + timeout_ns;
    uint32_t before = tier_hold(t);

    pthread_mutex_lock(&t->tidy_lock); /* no trim is under way, and none begins */
    __atomic_store_n(&t->hold, TIER_RELEASED, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&t->tidy_lock);
    while (__atomic_load_n(&t->puts, __ATOMIC_SEQ_CST) ||
           __atomic_load_n(&t->writes, __ATOMIC_SEQ_CST)) {
        if (clock_ns() > until) {
            __atomic_store_n(&t->hold, before, __ATOMIC_SEQ_CST);
            return -ETIMEDOUT;
        }
        usleep(200);
    }
    return 0;
}

/*
 * put() of a tier that stores at once, page by page under the error wrapper: there is
 * no transfer that could fail.
 */
static void put_or_fail(struct tier *t, struct tier_scratch *s, struct tier_put *puts,
                        unsigned nr)
{
    static _Thread_local uint64_t rng;
    const struct tier_faults *f = &t->config->faults;
    uint64_t now = clock_ns();

    rng = rng ? rng : now | 1;
    for (unsigned i = 0; i < nr; i++) {
        if (inject_armed(&t->error_trigger, f->error_trigger, now) &&
            inject_fails(f, true, &rng)) {
            puts[i].result = -f->error_errno;
            stats_add(&t->stats->errors, 1);
        } else {
            t->ops->put(t, s, &puts[i], 1);
        }
    }
}

/* True while nothing new may be put into the tier. */
static bool shut(const struct tier *t)
{
    return tier_hold(t) != TIER_HELD ||
           __atomic_load_n(&t->unsettled, __ATOMIC_ACQUIRE) ||
           stats_get(&t->stats->state) == UFFDMM_TIER_AWAY ||
           (!t->last && clock_ns() < __atomic_load_n(&t->avoid_until, __ATOMIC_RELAXED));
}

void tier_put(struct tier *t, struct tier_scratch *s, struct tier_put *puts, unsigned nr)
{
    uint64_t max = __atomic_load_n(&t->max_bytes, __ATOMIC_RELAXED);
    unsigned allowed = nr, refused = 0;
    uint64_t used;

    __atomic_fetch_add(&t->puts, 1, __ATOMIC_SEQ_CST);
    if (shut(t)) {
        allowed = 0;
    } else if (max != UINT64_MAX && !t->put_stores) {
        /* a tier that compresses knows only then what a page takes, and asks itself */
        used = t->ops->used(t);
        if (used + (uint64_t)nr * PAGE_SIZE_4K > max) {
            allowed = used < max ? (unsigned)((max - used) / PAGE_SIZE_4K) : 0;
        }
    }
    if (allowed && t->put_stores && t->config->faults.error_rate > 0) {
        put_or_fail(t, s, puts, allowed);
    } else if (allowed) {
        t->ops->put(t, s, puts, allowed);
    }
    __atomic_fetch_sub(&t->puts, 1, __ATOMIC_SEQ_CST);
    for (unsigned i = 0; i < nr; i++) {
        if (i >= allowed) {
            puts[i].result = -ENOSPC;
        }
        refused += puts[i].result != 0;
    }
    if (refused) {
        stats_add(&t->stats->refused, refused);
    }
}

int tier_take_run(struct tier *t, unsigned nr, uint64_t *slot)
{
    uint64_t max = __atomic_load_n(&t->max_bytes, __ATOMIC_RELAXED);
    int ret = -E2BIG;

    if (t->ops->take_run) {
        __atomic_fetch_add(&t->puts, 1, __ATOMIC_SEQ_CST);
        ret = shut(t) || (max != UINT64_MAX &&
                          t->ops->used(t) + (uint64_t)nr * PAGE_SIZE_4K > max)
                  ? -ENOSPC
                  : t->ops->take_run(t, nr, slot);
        __atomic_fetch_sub(&t->puts, 1, __ATOMIC_SEQ_CST);
    }
    if (ret) {
        stats_add(&t->stats->refused, nr);
    }
    return ret;
}

bool tier_free(struct tier *t, uint64_t slot, unsigned nr)
{
    bool ok = true;

    for (unsigned i = 0; i < nr; i++) {
        ok &= t->ops->free(t, slot + i);
    }
    return ok;
}

bool tier_valid(const struct tier *t, uint64_t slot, unsigned nr)
{
    return t->ops->valid(t, slot) &&
           (nr == 1 || (t->ops->take_run && t->ops->valid(t, slot + nr - 1)));
}

uint64_t tier_pages(const struct tier *t)
{
    return t->ops->pages ? t->ops->pages(t) : t->ops->used(t) / PAGE_SIZE_4K;
}

uint64_t tier_room(const struct tier *t)
{
    uint64_t capacity = stats_get(&t->stats->capacity_bytes);
    uint64_t max = __atomic_load_n(&t->max_bytes, __ATOMIC_RELAXED);

    return capacity && capacity < max ? capacity : max;
}

void tier_avoid(struct tier *t, uint64_t ns)
{
    __atomic_store_n(&t->avoid_until, clock_ns() + ns, __ATOMIC_RELAXED);
}

/* True when transfers are under way and none has ended for a while. */
static bool stalled(struct tier *t)
{
    uint64_t now = clock_ns();
    uint64_t ended = stats_get(&t->stats->reads) + stats_get(&t->stats->writes) +
                     stats_get(&t->stats->errors);

    if (ended != t->ended_seen || !__atomic_load_n(&t->io_pending, __ATOMIC_RELAXED)) {
        t->ended_seen = ended;
        t->ended_ns = now;
    }
    return now - t->ended_ns > STALLED_NS;
}

void tier_gauges(struct tier *t)
{
    uint64_t used = t->ops->used(t);
    uint64_t state = stats_get(&t->stats->state);
    uint64_t room = tier_room(t);

    stats_set(&t->stats->used_bytes, used);
    if (stalled(t)) {
        tier_avoid(t, AVOID_STALLED_NS);
    }
    if (state == UFFDMM_TIER_OK || state == UFFDMM_TIER_FULL ||
        state == UFFDMM_TIER_SLOW || state == UFFDMM_TIER_ERROR) {
        bool slow = clock_ns() < __atomic_load_n(&t->avoid_until, __ATOMIC_RELAXED);
        bool failing = clock_ns() < __atomic_load_n(&t->failed_until, __ATOMIC_RELAXED);
        uint64_t now = failing ? UFFDMM_TIER_ERROR
                       : slow  ? UFFDMM_TIER_SLOW
                       : room != UINT64_MAX && used + BATCH_PAGES * 4096UL > room
                           ? UFFDMM_TIER_FULL
                           : UFFDMM_TIER_OK;

        /* another thread may just find the server gone: that stays */
        if (now != state &&
            __atomic_compare_exchange_n(&t->stats->state, &state, now, false,
                                        __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
            PROBE_TIER_STATE(t->stats->name, state, now);
        }
    }
}

void tier_error(struct tier *t, const char *fmt, ...)
{
    struct timespec now;
    char text[UFFDMM_TEXT_MAX] = {0}; /* QEMU can read all of last_error */
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    clock_gettime(CLOCK_REALTIME, &now);
    __atomic_store_n(&t->failed_until, clock_ns() + FAILING_NS, __ATOMIC_RELAXED);
    /* readers may see a sentence half replaced; the array always ends in NUL */
    for (size_t i = 0; i < sizeof(text); i++) {
        __atomic_store_n(&t->stats->last_error[i], text[i], __ATOMIC_RELAXED);
    }
    stats_set(&t->stats->last_error_ns,
              (uint64_t)now.tv_sec * NSEC_PER_SEC + (uint64_t)now.tv_nsec);
    if (log_ratelimit(&t->logged, NSEC_PER_SEC)) {
        log_error("tier %s: %s", t->config->name, text);
    }
}

void tier_set_state(struct tier *t, unsigned state)
{
    uint64_t before = __atomic_exchange_n(&t->stats->state, state, __ATOMIC_RELAXED);

    if (before != state) {
        PROBE_TIER_STATE(t->stats->name, before, state);
    }
}
