/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The `pool` tier: pool.c behind the interface of tiers.  Everything happens in
 * memory, so put() stores at once and a read ends in the call that starts it.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "clock.h"
#include "config.h"
#include "pool.h"
#include "probes.h"
#include "stats.h"
#include "tier.h"
#include "tier_io.h"

/* Compaction begins when more of the arena than this is in no object. */
#define WASTE_PERCENT 12

/* Least arena: some slabs of each size class. */
#define ARENA_MIN (16UL << 20)

static struct pool *pool_of(const struct tier *t)
{
    return t->priv;
}

static int open_pool(struct tier *t, const struct tier_vm *vm, char *err, size_t err_len)
{
    /* no more than the host has: regions to come are not known yet, and room costs nothing */
    uint64_t bytes = t->config->capacity
                         ? t->config->capacity
                         : (uint64_t)sysconf(_SC_PHYS_PAGES) * PAGE_SIZE_4K;
    struct pool *p;
    int ret;

    bytes = bytes < ARENA_MIN ? ARENA_MIN : bytes;
    ret = vm->kept ? pool_open(&p, vm->arena_fd, t->config->codec, t->config->level)
                   : pool_create(&p, bytes, t->config->codec, t->config->level);
    if (ret && vm->kept) {
        snprintf(
            err, err_len,
            "cannot take over the arena of pool %s: %s (is it among the descriptors?)",
            t->config->name, strerror(-ret));
        return ret;
    }
    if (ret) {
        snprintf(err, err_len, "cannot create the arena of pool %s (%llu MiB): %s",
                 t->config->name, (unsigned long long)(bytes >> 20), strerror(-ret));
        return ret;
    }
    t->priv = p;
    t->put_stores = true;
    t->arena_fd = pool_fd(p);
    return 0;
}

static void close_pool(struct tier *t, bool keep)
{
    /* kept or not is the affair of whoever else holds the arena's descriptor */
    (void)keep;
    pool_destroy(pool_of(t));
    t->priv = NULL;
    t->arena_fd = -1;
}

static int reserve(struct tier *t, uint64_t bytes, char *err, size_t err_len)
{
    (void)err;
    (void)err_len;
    stats_set(&t->stats->capacity_bytes,
              t->config->capacity && t->config->capacity < bytes ? t->config->capacity
                                                                 : bytes);
    return 0;
}

static int scratch_new(struct tier *t, struct tier_scratch **out)
{
    return pool_scratch_new(pool_of(t), (struct pool_scratch **)out);
}

static void scratch_free(struct tier_scratch *s)
{
    pool_scratch_free((struct pool_scratch *)s);
}

static void put(struct tier *t, struct tier_scratch *s, struct tier_put *puts,
                unsigned nr)
{
    uint64_t max = __atomic_load_n(&t->max_bytes, __ATOMIC_RELAXED);
    uint64_t before, stored = 0;

    pool_keep_raw(pool_of(t), t->last);

    for (unsigned i = 0; i < nr; i++) {
        struct tier_put *p = &puts[i];
        struct pool_owner owner = {.region_id = p->region_id, .pfn = p->pfn};

        before = clock_ns();
        p->result =
            pool_put(pool_of(t), (struct pool_scratch *)s, p->data, owner, max, &p->slot);
        if (!p->result) {
            uint64_t ns = clock_ns() - before;

            stats_hist(t->stats->write_hist, ns);
            PROBE_WRITE_END(t->stats->name, PAGE_SIZE_4K, ns, 0);
            stored++;
        }
    }
    stats_add(&t->stats->writes, stored);
    stats_add(&t->stats->write_bytes, stored * PAGE_SIZE_4K);
}

static bool free_slot(struct tier *t, uint64_t slot)
{
    return pool_free(pool_of(t), slot);
}

static bool take(struct tier *t, uint64_t slot, uint32_t region_id, uint64_t pfn)
{
    return pool_adopt(pool_of(t), slot,
                      (struct pool_owner){.region_id = region_id, .pfn = pfn});
}

static void untake(struct tier *t, uint64_t slot)
{
    pool_unadopt(pool_of(t), slot);
}

static void settle(struct tier *t)
{
    pool_adopted_all(pool_of(t));
}

/* A memfd is known by its inode as long as somebody holds it, and QEMU does. */
static void identity(const struct tier *t, uint8_t id[16])
{
    struct stat st = {0};
    uint64_t words[2];

    if (fstat(t->arena_fd, &st) < 0) {
        memset(id, 0, sizeof(words));
        return;
    }
    words[0] = st.st_dev;
    words[1] = st.st_ino;
    memcpy(id, words, sizeof(words));
}

static bool valid(const struct tier *t, uint64_t slot)
{
    return pool_valid(pool_of(t), slot);
}

static uint64_t extent(const struct tier *t, uint64_t slot, uint64_t nr)
{
    (void)t;
    (void)slot;
    (void)nr;
    return 1;
}

static void submit(struct tier *t, struct tier_queue *q, struct tier_io *io)
{
    struct pool_owner owner = {.region_id = io->region_id, .pfn = io->pfn};
    int ret = 0;

    (void)q;
    if (!io->write) {
        ret = pool_get(pool_of(t), (struct pool_scratch *)io->scratch, io->slot, owner,
                       io->iov->iov_base);
    }
    tier_io_done(io, ret);
}

static uint64_t used(const struct tier *t)
{
    struct pool_usage u;

    pool_usage(pool_of(t), &u);
    return u.arena_bytes;
}

static uint64_t pages(const struct tier *t)
{
    struct pool_usage u;

    pool_usage(pool_of(t), &u);
    return u.objects;
}

static unsigned oldest(struct tier *t, uint64_t before_ns, struct pool_object *out,
                       unsigned max)
{
    return pool_oldest(pool_of(t), before_ns, out, max);
}

static unsigned compact(struct tier *t, const struct pool_mover *m, unsigned max)
{
    unsigned moved;

    if (__atomic_load_n(&t->unsettled, __ATOMIC_ACQUIRE)) {
        return 0; /* what nobody has named yet may be another region's */
    }
    moved = pool_compact(pool_of(t), m, max, WASTE_PERCENT);

    stats_add(&t->stats->compactions, moved);
    return moved;
}

const struct tier_ops tier_pool_ops = {
    .open = open_pool,
    .close = close_pool,
    .reserve = reserve,
    .scratch_new = scratch_new,
    .scratch_free = scratch_free,
    .put = put,
    .take = take,
    .untake = untake,
    .settle = settle,
    .identity = identity,
    .free = free_slot,
    .valid = valid,
    .extent = extent,
    .submit = submit,
    .used = used,
    .pages = pages,
    .oldest = oldest,
    .compact = compact,
};
