/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A tier as its users drive it: slots and writes in one go when pages leave, one
 * request for each run of neighbouring slots when they come back, through the queue
 * of this thread.
 */
#include "subject.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "config.h"
#include "tier.h"
#include "tier_io.h"
#include "tier_options.h"

/* A fault thread that is warm polls for its reads, the evictor (evict_io.c) hardly at all. */
#define READ_SPIN_NS (1 * NSEC_PER_MSEC)
#define WRITE_SPIN_NS (20 * NSEC_PER_USEC)

/* Pages put and freed before anything is measured: a store has more room than the set by less. */
#define WARM_PAGES (SET_PAGES / 4)

struct tier_subject {
    struct tier_config config;
    struct uffdmm_tier_stats stats;
    struct tier tier;
    struct tier_queue queue;
    bool opened, queued;
    uint64_t slots[SET_PAGES];
    struct tier_put puts[RUN_MAX];
    struct tier_io ios[RUN_MAX];
    struct iovec iovs[RUN_MAX];
};

/* Transfers of the @nr pages at @data, whose slots are @slots; a request for each run. */
static unsigned prepare(struct tier_subject *ts, bool write, uint64_t pfn,
                        const uint64_t *slots, uint8_t *data, unsigned nr)
{
    unsigned n = 0, length;

    for (unsigned i = 0; i < nr; i += length, n++) {
        uint64_t most = ts->tier.ops->extent(&ts->tier, slots[i], nr - i);

        for (length = 1; length < most && slots[i + length] == slots[i] + length;) {
            length++;
        }
        ts->iovs[n] = (struct iovec){.iov_base = data + (size_t)i * PAGE_SIZE_4K,
                                     .iov_len = (size_t)length * PAGE_SIZE_4K};
        ts->ios[n] = (struct tier_io){.tier = &ts->tier,
                                      .write = write,
                                      .slot = slots[i],
                                      .pfn = pfn + i,
                                      .iov = &ts->iovs[n],
                                      .nr_iov = 1,
                                      .length = ts->iovs[n].iov_len};
    }
    return n;
}

/* The first error among @nr transfers that have ended. */
static int first_error(const struct tier_subject *ts, unsigned nr)
{
    for (unsigned i = 0; i < nr; i++) {
        if (ts->ios[i].result) {
            return ts->ios[i].result;
        }
    }
    return 0;
}

/* Stores @nr pages and keeps their slots in @slots; nothing is kept after an error. */
static int store(struct tier_subject *ts, uint64_t pfn, const uint8_t *from, unsigned nr,
                 uint64_t *slots)
{
    unsigned taken = 0, n;
    int ret = 0;

    for (unsigned i = 0; i < nr; i++) {
        ts->puts[i] =
            (struct tier_put){.data = from + (size_t)i * PAGE_SIZE_4K, .pfn = pfn + i};
    }
    tier_put(&ts->tier, tier_queue_scratch(&ts->queue, &ts->tier), ts->puts, nr);
    for (unsigned i = 0; i < nr; i++) {
        ret = ret ? ret : ts->puts[i].result;
        if (!ts->puts[i].result) {
            slots[taken++] = ts->puts[i].slot;
        }
    }
    if (!ret && !ts->tier.put_stores) {
        /* a write does not change what it writes */
        n = prepare(ts, true, pfn, slots, (uint8_t *)(uintptr_t)from, nr);
        tier_run(&ts->queue, ts->ios, (int)n, WRITE_SPIN_NS);
        ret = first_error(ts, n);
    }
    while (ret && taken) {
        ts->tier.ops->free(&ts->tier, slots[--taken]);
    }
    return ret;
}

static int64_t tier_subject_put(struct subject *s, uint64_t pfn, const uint8_t *from,
                                unsigned nr)
{
    struct tier_subject *ts = s->priv;
    uint64_t slots[RUN_MAX];
    uint64_t before = clock_ns(), ns;
    int ret = store(ts, pfn, from, nr, slots);

    ns = clock_ns() - before;
    if (ret) {
        return ret;
    }
    for (unsigned i = 0; i < nr; i++) {
        ts->tier.ops->free(&ts->tier, slots[i]);
    }
    return (int64_t)ns;
}

static int64_t tier_subject_read(struct subject *s, uint64_t pfn, uint8_t *to,
                                 unsigned nr)
{
    struct tier_subject *ts = s->priv;
    uint64_t before = clock_ns(), ns;
    unsigned n = prepare(ts, false, pfn, &ts->slots[pfn], to, nr);
    int ret;

    tier_run(&ts->queue, ts->ios, (int)n, READ_SPIN_NS);
    ns = clock_ns() - before;
    ret = first_error(ts, n);
    return ret ? ret : (int64_t)ns;
}

static void tier_subject_end(struct subject *s)
{
    struct tier_subject *ts = s->priv;

    if (ts->queued) {
        tier_queue_deinit(&ts->queue);
    }
    if (ts->opened) {
        ts->tier.ops->close(&ts->tier, false);
    }
    free(ts);
}

static int open_tier(struct tier_subject *ts, const char *option, char *err,
                     size_t err_len)
{
    const uint64_t bytes = (uint64_t)SET_PAGES * PAGE_SIZE_4K;
    struct tier_vm vm = {
        .name = "bench", .uuid = {'b'}, .qemu_pid = getpid(), .ram_bytes = 2 * bytes};
    struct tier *tiers[] = {&ts->tier};
    int ret;

    if (!tier_options_parse(&ts->config, option)) {
        return -EINVAL;
    }
    ret = tier_open(&ts->tier, 1, &ts->config, &vm, &ts->stats, err, err_len);
    if (ret) {
        return ret;
    }
    ts->opened = true;
    ts->tier.last = true;
    ret = ts->tier.ops->reserve(&ts->tier, bytes, err, err_len);
    if (ret) {
        return ret;
    }
    ret = tier_queue_init(&ts->queue, tiers, 1);
    if (ret) {
        snprintf(err, err_len, "cannot make a queue: %s", strerror(-ret));
        return ret;
    }
    ts->queued = true;
    return 0;
}

/*
 * Stores the working set.  Then what is left of the volume is written once: the first
 * write to a block of a file costs more than those after it.
 */
static int fill(struct subject *s, const uint8_t *pages)
{
    struct tier_subject *ts = s->priv;
    int64_t ret = 0;

    for (unsigned pfn = 0; ret >= 0 && pfn < SET_PAGES; pfn += RUN_MAX) {
        ret =
            store(ts, pfn, pages + (size_t)pfn * PAGE_SIZE_4K, RUN_MAX, &ts->slots[pfn]);
    }
    for (unsigned pfn = 0; ret >= 0 && pfn < WARM_PAGES; pfn += RUN_MAX) {
        ret = tier_subject_put(s, pfn, pages + (size_t)pfn * PAGE_SIZE_4K, RUN_MAX);
    }
    return ret < 0 ? (int)ret : 0;
}

int subject_tier(struct subject *s, const uint8_t *pages, const char *option)
{
    struct tier_subject *ts = calloc(1, sizeof(*ts));
    char err[512] = "see above";
    int ret;

    *s = (struct subject){.put = tier_subject_put,
                          .read = tier_subject_read,
                          .end = tier_subject_end,
                          .priv = ts};
    if (!ts) {
        fprintf(stderr, "bench-tiers: no memory for tier %s\n", option);
        return -ENOMEM;
    }
    ret = open_tier(ts, option, err, sizeof(err));
    snprintf(s->name, sizeof(s->name), "%.31s", ts->config.name);
    if (!ret) {
        ret = fill(s, pages);
        if (ret) {
            snprintf(err, sizeof(err), "cannot store the working set: %s",
                     strerror(-ret));
        }
    }
    if (ret) {
        fprintf(stderr, "bench-tiers: tier %s: %s\n", option, err);
        tier_subject_end(s);
    }
    return ret;
}
