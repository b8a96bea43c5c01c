/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the evictor does with the bytes of a batch; evict.c has the whole picture.
 *
 * Who owns a slot: until WRITING is set in the entry a new slot belongs to this
 * file alone.  With WRITING, the entry names it but only this file frees it,
 * because a write may be under way; a page that is taken back or discarded
 * meanwhile just loses it.  Published, it belongs to the entry.
 */
#include "evict_io.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "clock.h"
#include "copies.h"
#include "hierarchy.h"
#include "log.h"
#include "mig_room.h"
#include "probes.h"
#include "queue.h"
#include "region.h"
#include "test_hooks.h"
#include "vm.h"

/* A block with at least this many pages in the batch is written whole or not at all. */
#define DENSE_PAGES 48

/* A tier in memory takes unchanged pages from later tiers up to this share of its room. */
#define LIFT_PERCENT 85

/* Writes that take longer make the tier slow: the next one takes over for a while. */
#define SLOW_WRITE_NS (250 * NSEC_PER_MSEC)
#define AVOID_SLOW_NS (2 * NSEC_PER_SEC)
#define AVOID_FAILED_NS (200 * NSEC_PER_MSEC)

/* How long to poll for a write before sleeping. */
#define WRITE_SPIN_NS (20 * NSEC_PER_USEC)

int batch_new(struct vm *vm, struct batch **out)
{
    struct batch *bt = calloc(1, sizeof(*bt));
    int ret;

    if (!bt) {
        return -ENOMEM;
    }
    bt->vm = vm;
    bt->buffer = mmap(NULL, BATCH_BYTES, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (bt->buffer == MAP_FAILED) {
        ret = -errno;
        free(bt);
        return ret;
    }
    ret = hierarchy_queue(vm, &bt->queue);
    if (ret) {
        munmap(bt->buffer, BATCH_BYTES);
        free(bt);
        return ret;
    }
    *out = bt;
    return 0;
}

void batch_free(struct batch *bt)
{
    tier_queue_deinit(&bt->queue);
    munmap(bt->buffer, BATCH_BYTES);
    free(bt);
}

/* Frees the new slot of an item that will not be published there. */
static void release_slot(struct item *it)
{
    entry_t *p = &it->region->entries[it->pfn];
    uint64_t e = entry_load(p);

    if (!it->slot) {
        return;
    }
    /* a discard keeps slot and WRITING in the entry: it must not name a free slot */
    while (entry_state(e) == UFFDMM_PAGE_DISCARDED && (e & UFFDMM_ENTRY_WRITING) &&
           (entry_slot(e) == it->slot || entry_slot(e) == entry_slot(it->entry))) {
        uint64_t to = entry_make(UFFDMM_PAGE_DISCARDED, (unsigned)e & UFFDMM_ENTRY_BUSY,
                                 0, entry_gen(e), 0);

        if (entry_cas(p, e, to)) {
            region_reap_discard(it->region, it->pfn);
            break;
        }
        e = entry_load(p);
    }
    if (it->has_slot && !tier_free(it->tier, it->slot, region_units(it->region))) {
        log_error("region %s: slot %llu of tier %s was free while it was written",
                  it->region->name, (unsigned long long)it->slot, it->tier->config->name);
    }
    it->has_slot = it->written = false;
}

void batch_give_back(struct item *it)
{
    struct region *r = it->region;
    entry_t *p = &r->entries[it->pfn];
    unsigned flags = UFFDMM_ENTRY_BUSY | ((unsigned)it->entry & UFFDMM_ENTRY_MAYHOLE);
    uint64_t to;

    if (it->entry & UFFDMM_ENTRY_WRITING || !entry_slot(it->entry)) {
        to = entry_make(UFFDMM_PAGE_RESIDENT, flags, 0, entry_gen(it->entry), 0);
    } else {
        to = entry_with(it->entry, UFFDMM_PAGE_CLEAN, flags);
    }
    if (entry_cas(p, it->entry, to)) {
        /* retried by the guest's next write when the kernel says EAGAIN */
        uffd_wp(page_shard(r, it->pfn)->uffd, page_addr(r, it->pfn), region_page_bytes(r),
                false);
        region_release_page(r, it->pfn);
    }
    release_slot(it);
    it->kind = ITEM_DROPPED;
}

/* True when the page is one 8-byte word over and over. */
static bool same_filled(const char *page, size_t bytes, uint64_t *word)
{
    const uint64_t *p = (const uint64_t *)(const void *)page;

    *word = p[0];
    /* most pages differ at once or near the end: ask there first */
    if (p[bytes / 8 - 1] != *word || p[bytes / 16] != *word) {
        return false;
    }
    return memcmp(page, page + 8, bytes - 8) == 0;
}

static void classify(struct batch *bt, struct item *it)
{
    struct region *r = it->region;

    if (it->kind != ITEM_CLAIMED) {
        return;
    }
    if (entry_load(&r->entries[it->pfn]) != it->entry) {
        it->kind = ITEM_DROPPED;
        stats_add(&bt->vm->stats->evicted_cancelled, region_units(r));
    } else if (same_filled(it->data, region_page_bytes(r), &it->word)) {
        it->kind = ITEM_SAME;
    } else if (entry_slot(it->entry) &&
               region_record(r, it->pfn) ==
                   page_checksum(r, it->data, it->pfn, entry_gen(it->entry))) {
        it->kind = ITEM_UNCHANGED;
    } else {
        it->kind = ITEM_DIRTY;
        region_mark_raw(r, it->pfn, false);
    }
}

/* End of the items that belong to the same block as item @i. */
static unsigned block_end(const struct batch *bt, unsigned i)
{
    unsigned end = i + 1;

    while (end < bt->nr && bt->items[end].region == bt->items[i].region &&
           region_block(bt->items[i].region, bt->items[end].pfn) ==
               region_block(bt->items[i].region, bt->items[i].pfn)) {
        end++;
    }
    return end;
}

void batch_classify(struct batch *bt)
{
    unsigned i, k, end;

    for (i = 0; i < bt->nr; i = end) {
        unsigned dirty = 0, stored = 0;

        end = block_end(bt, i);
        for (k = i; k < end; k++) {
            classify(bt, &bt->items[k]);
            dirty += bt->items[k].kind == ITEM_DIRTY;
            stored +=
                bt->items[k].kind == ITEM_DIRTY || bt->items[k].kind == ITEM_UNCHANGED;
        }
        if (dirty && stored >= DENSE_PAGES &&
            !(bt->vm->tiers[1] && bt->vm->tiers[1]->put_stores)) {
            for (k = i; k < end; k++) {
                if (bt->items[k].kind == ITEM_UNCHANGED) {
                    bt->items[k].kind = ITEM_DIRTY;
                }
            }
        }
    }
}

/* Names the new slot in the entry before a byte is written; false when the page is gone. */
static bool announce(struct item *it)
{
    uint64_t old = it->entry;
    uint64_t to =
        entry_make(UFFDMM_PAGE_EVICTING,
                   UFFDMM_ENTRY_WRITING | ((unsigned)old & UFFDMM_ENTRY_MAYHOLE),
                   it->tier->index, entry_gen(old) + 1, it->slot);

    if (!entry_cas(&it->region->entries[it->pfn], old, to)) {
        return false;
    }
    region_free_slots(it->region, it->pfn, old); /* its copy is out of date */
    it->entry = to;
    it->checksum = page_checksum(it->region, it->data, it->pfn, entry_gen(to));
    return true;
}

/* Dirty items that no tier has taken yet, into chosen and puts.  Returns how many. */
static unsigned choose(struct batch *bt)
{
    unsigned n = 0;

    for (unsigned i = 0; i < bt->nr; i++) {
        struct item *it = &bt->items[i];

        if (it->kind == ITEM_DIRTY && !it->written) {
            bt->chosen[n] = it;
            bt->puts[n++] = (struct tier_put){
                .data = it->data, .region_id = it->region->id, .pfn = it->pfn};
        }
    }
    return n;
}

/* The writes of a huge page, put @i: as many as its tier needs for a run of slots. */
static void build_huge(struct batch *bt, struct tier *t, unsigned i)
{
    const struct tier_put *put = &bt->puts[i];
    uint64_t n;

    for (uint64_t done = 0; done < HUGE_PAGE_UNITS; done += n) {
        struct iovec *iov = &bt->iovs[bt->nr_ios];

        n = t->ops->extent(t, put->slot + done, HUGE_PAGE_UNITS - done);
        *iov =
            (struct iovec){.iov_base = (char *)(uintptr_t)put->data + done * PAGE_SIZE_4K,
                           .iov_len = n * PAGE_SIZE_4K};
        bt->ios[bt->nr_ios++] = (struct tier_io){.tier = t,
                                                 .write = true,
                                                 .slot = put->slot + done,
                                                 .region_id = put->region_id,
                                                 .pfn = put->pfn,
                                                 .iov = iov,
                                                 .nr_iov = 1,
                                                 .length = n * PAGE_SIZE_4K,
                                                 .owner = &bt->chosen[i]};
    }
}

static void write_failed(struct batch *bt, const struct tier_io *io)
{
    struct tier *t = io->tier;

    bt->write_errors = true;
    tier_avoid(t, AVOID_FAILED_NS);
    tier_error(
        t,
        "cannot write %llu bytes from slot %llu on: %s; the pages stay in memory or go to "
        "the next tier, and the tier is tried again",
        (unsigned long long)io->length, (unsigned long long)io->slot,
        strerror(-io->result));
}

/* Starts to write what the puts have got slots for. */
static void begin_writes(struct batch *bt, struct tier *t)
{
    unsigned i = 0, nr_iov = 0;

    bt->nr_ios = 0;
    while (i < bt->nr_puts) {
        struct tier_io *io;
        unsigned next;

        if (bt->puts[i].result) {
            i++;
            continue;
        }
        if (region_is_huge(bt->chosen[i]->region)) {
            build_huge(bt, t, i++);
            continue;
        }
        io = &bt->ios[bt->nr_ios++];
        next = tier_build_write(io, t, bt->puts, bt->nr_puts, i, &bt->iovs[nr_iov]);
        io->owner = &bt->chosen[i];
        nr_iov += (unsigned)io->nr_iov;
        i = next;
    }
    for (i = 0; i < bt->nr_ios; i++) {
        tier_submit(&bt->queue, &bt->ios[i]);
    }
}

/*
 * Waits for the writes of the batch, though not for ever.  False when they are not
 * through: the batch is laid aside, and pages go to other tiers meanwhile.
 */
static bool wait_writes(struct batch *bt, struct tier *t, uint64_t stall_ns)
{
    uint64_t spin_until = clock_ns() + WRITE_SPIN_NS, until = clock_ns() + stall_ns;

    while (bt->queue.in_flight) {
        uint64_t now;

        if (tier_poll(&bt->queue)) {
            continue;
        }
        now = clock_ns();
        if (now >= until) {
            tier_avoid(t, AVOID_SLOW_NS);
            return false;
        }
        if (now < spin_until) {
            cpu_relax();
        } else {
            tier_wait(&bt->queue, until - now);
        }
    }
    if (clock_ns() - bt->began_ns > SLOW_WRITE_NS) {
        tier_avoid(t, AVOID_SLOW_NS);
    }
    return true;
}

/* All writes have ended.  Items of those that failed keep no slot. */
static void end_writes(struct batch *bt)
{
    for (unsigned i = 0; i < bt->nr_ios; i++) {
        struct tier_io *io = &bt->ios[i];
        struct item **items = io->owner;

        if (io->result) {
            write_failed(bt, io);
        }
        uint64_t n = region_is_huge(items[0]->region) ? 1 : io->length / PAGE_SIZE_4K;

        for (uint64_t k = 0; k < n; k++) {
            if (io->result) {
                release_slot(items[k]);
            } else {
                /* a huge page has lost its slots when another part of it failed */
                items[k]->written = items[k]->has_slot;
            }
        }
    }
    for (unsigned i = 0; i < bt->nr_puts; i++) {
        if (bt->chosen[i]->kind == ITEM_DROPPED) {
            release_slot(bt->chosen[i]);
        }
    }
}

/* Offers the chosen pages to one tier, and names the slots that it gives in the table. */
static void put_in(struct batch *bt, struct tier *t)
{
    bt->no_room = false;
    if (region_is_huge(bt->chosen[0]->region)) {
        bt->puts[0].result = tier_take_run(t, HUGE_PAGE_UNITS, &bt->puts[0].slot);
    } else {
        tier_put(t, tier_queue_scratch(&bt->queue, t), bt->puts, bt->nr_puts);
    }
    for (unsigned i = 0; i < bt->nr_puts; i++) {
        struct item *it = bt->chosen[i];

        bt->no_room |= bt->puts[i].result == -ENOSPC;
        bt->write_errors |= bt->puts[i].result && bt->puts[i].result != -ENOSPC &&
                            bt->puts[i].result != -E2BIG;
        if (bt->puts[i].result) {
            if (bt->puts[i].result == -E2BIG) {
                region_mark_raw(it->region, it->pfn, true);
            }
            continue;
        }
        it->tier = t;
        it->slot = bt->puts[i].slot;
        it->has_slot = true;
        it->written = t->put_stores;
        if (!announce(it)) {
            /* written all the same, to keep the write in one piece, and freed after it */
            it->kind = ITEM_DROPPED;
            stats_add(&bt->vm->stats->evicted_cancelled, region_units(it->region));
        }
    }
}

/* True when a tier fails or is away: then it is not for want of room that none takes more. */
static bool in_trouble(const struct batch *bt)
{
    for (unsigned i = 1; i < UFFDMM_TIERS_MAX; i++) {
        const struct tier *t = bt->vm->tiers[i];

        if (t && (__atomic_load_n(&t->unsettled, __ATOMIC_ACQUIRE) ||
                  stats_get(&t->stats->state) == UFFDMM_TIER_AWAY ||
                  clock_ns() < __atomic_load_n(&t->avoid_until, __ATOMIC_RELAXED))) {
            return true;
        }
    }
    return bt->write_errors;
}

/* No tier takes them: the pages stay, and so does the limit. */
static void store_full(struct batch *bt)
{
    static uint64_t logged;
    bool trouble = in_trouble(bt);

    for (unsigned i = 0; i < bt->nr; i++) {
        if (bt->items[i].kind == ITEM_DIRTY && !bt->items[i].written) {
            batch_give_back(&bt->items[i]);
        }
    }
    bt->store_trouble = true;
    if (!trouble && mig_loading(bt->vm)) {
        return;
    }
    atomic_store(&bt->vm->store_state,
                 trouble ? UFFDMM_WORKER_STORE_ERROR : UFFDMM_WORKER_STORE_FULL);
    vm_show_state(bt->vm);
    if (!trouble && log_ratelimit(&logged, 10 * NSEC_PER_SEC)) {
        log_error(
            "no tier takes more pages: eviction has stopped and the guest waits at its limit; "
            "raise the limit or give a tier more room ('uffdmm tiers %s' shows them)",
            bt->vm->name);
    }
}

/* The first tier in memory that has room to spare, or NULL. */
static struct tier *roomy_memory(struct vm *vm)
{
    for (unsigned i = 1; i < UFFDMM_TIERS_MAX; i++) {
        struct tier *t = vm->tiers[i];

        if (t && t->put_stores) {
            return t->ops->used(t) < tier_room(t) / 100 * LIFT_PERCENT ? t : NULL;
        }
    }
    return NULL;
}

/*
 * Pages that are unchanged in a tier that has to be waited for, and were wanted in
 * memory all the same: a faster tier takes them while it has room to spare.  That
 * costs no write.  Those that do not compress stay where they are.
 */
static void lift_unchanged(struct batch *bt)
{
    struct tier *t = roomy_memory(bt->vm);
    unsigned n = 0;

    for (unsigned i = 0; t && i < bt->nr; i++) {
        struct item *it = &bt->items[i];

        if (it->kind == ITEM_UNCHANGED && entry_tier(it->entry) > t->index &&
            !region_is_huge(it->region) && !region_is_raw(it->region, it->pfn)) {
            bt->chosen[n] = it;
            bt->puts[n++] = (struct tier_put){
                .data = it->data, .region_id = it->region->id, .pfn = it->pfn};
        }
    }
    if (!n) {
        return;
    }
    bt->nr_puts = n;
    put_in(bt, t);
    for (unsigned i = 0; i < n; i++) {
        if (bt->chosen[i]->kind == ITEM_DROPPED) {
            release_slot(bt->chosen[i]);
        } else if (!bt->puts[i].result) {
            bt->chosen[i]->kind = ITEM_DIRTY;
        }
    }
}

void batch_write_begin(struct batch *bt)
{
    lift_unchanged(bt);
    bt->store_trouble = bt->write_errors = bt->reclaimed = bt->writing = false;
    bt->next_tier = 1;
}

bool batch_write(struct batch *bt, uint64_t stall_ns)
{
    struct vm *vm = bt->vm;

    while (bt->next_tier < UFFDMM_TIERS_MAX) {
        struct tier *t = vm->tiers[bt->next_tier];

        if (!bt->writing) {
            bt->nr_puts = choose(bt);
            if (!bt->nr_puts) {
                break;
            }
            if (!t) {
                bt->next_tier++;
                continue;
            }
            bt->began_ns = clock_ns();
            put_in(bt, t);
            test_hook_crash("evict-announced");
            bt->nr_ios = 0;
            if (!t->put_stores) {
                begin_writes(bt, t);
            }
            bt->writing = true;
        }
        if (!wait_writes(bt, t, stall_ns)) {
            return false;
        }
        bt->writing = false;
        end_writes(bt);
        if (bt->no_room && !bt->reclaimed && copies_reclaim(vm, t, &bt->reclaim_hand)) {
            bt->reclaimed = true;
            continue;
        }
        bt->reclaimed = false;
        bt->next_tier++;
    }
    if (choose(bt)) {
        store_full(bt);
    } else if (atomic_exchange(&vm->store_state, UFFDMM_WORKER_RUNNING) !=
               UFFDMM_WORKER_RUNNING) {
        vm_show_state(vm); /* pages that cannot be read still show */
    }
    return true;
}

void batch_lay_aside(struct batch *bt)
{
    for (unsigned i = 0; i < bt->nr; i++) {
        struct item *it = &bt->items[i];

        if (it->kind == ITEM_DIRTY && !it->has_slot) {
            batch_give_back(it);
        }
    }
}

void batch_publish(struct batch *bt)
{
    struct uffdmm_stats *stats = bt->vm->stats;
    /* added once: fault threads write to the same cache lines all the time */
    uint64_t evicted = 0, passed_on = 0, zero = 0, clean = 0;

    for (unsigned i = 0; i < bt->nr; i++) {
        struct item *it = &bt->items[i];
        struct region *r = it->region;
        entry_t *p = &r->entries[it->pfn];
        unsigned units = region_units(r);
        uint64_t to;

        switch (it->kind) {
        case ITEM_SAME:
            to = entry_make(UFFDMM_PAGE_STORED, UFFDMM_ENTRY_BUSY, UFFDMM_TIER_ZERO,
                            entry_gen(it->entry) + 1, 0);
            break;
        case ITEM_DIRTY:
            if (!it->written) {
                continue; /* its write is under way, and the batch laid aside */
            }
            to = entry_with(it->entry, UFFDMM_PAGE_STORED, UFFDMM_ENTRY_BUSY);
            break;
        case ITEM_UNCHANGED:
            to = entry_with(it->entry, UFFDMM_PAGE_STORED, UFFDMM_ENTRY_BUSY);
            break;
        default:
            continue;
        }
        /*
         * The record goes first: who sees STORED finds it there.  Not when the page is
         * somebody else's by now, maybe stored from another batch.  If it is taken
         * back after the look nobody reads its record; of one that went back to CLEAN
         * a changed record only means that it counts as dirty next time.
         */
        if (entry_load(p) != it->entry) {
            stats_add(&stats->evicted_cancelled, units);
            release_slot(it);
            it->kind = ITEM_DROPPED;
            continue;
        }
        if (it->kind == ITEM_SAME) {
            __atomic_store_n(&r->records[it->pfn], it->word, __ATOMIC_RELEASE);
        } else if (it->kind == ITEM_DIRTY) {
            __atomic_store_n(&r->records[it->pfn], it->checksum, __ATOMIC_RELEASE);
        }
        if (!entry_cas(p, it->entry, to)) {
            stats_add(&stats->evicted_cancelled, units);
            release_slot(it);
            it->kind = ITEM_DROPPED;
            continue;
        }
        evicted += units;
        /* from here on: how long it has been stored (demote.c) */
        region_set_age(r, it->pfn, 0);
        passed_on += it->kind == ITEM_DIRTY && it->tier->index > 1 ? units : 0;
        region_count_stored(r, to, 1);
        if (it->kind == ITEM_SAME) {
            region_free_slots(r, it->pfn, it->entry);
        }
        zero += it->kind == ITEM_SAME ? units : 0;
        clean += it->kind == ITEM_UNCHANGED ? units : 0;
        it->has_slot = it->written = false; /* the entry's now */
        it->kind = ITEM_PUBLISHED;
    }
    stats_add(&stats->evicted, evicted);
    stats_add(&stats->passed_on, passed_on);
    stats_add(&stats->evicted_zero, zero);
    stats_add(&stats->evicted_clean, clean);
    PROBE_EVICT_BATCH(bt->vm->name, evicted, zero, clean, passed_on);
}

void batch_requeue(struct batch *bt)
{
    for (unsigned i = 0; i < bt->nr; i++) {
        if (bt->items[i].kind == ITEM_DROPPED) {
            struct region *r = bt->items[i].region;

            queue_push(bt->vm, &r->blocks[region_block(r, bt->items[i].pfn)]);
        }
    }
}

void vm_sync_resident(struct vm *vm)
{
    uint64_t bytes = 0, arena = 0, inside = 0;
    struct stat st;

    for (unsigned k = 0; k < UFFDMM_REGIONS_MAX; k++) {
        struct region *r = vm->regions[k];

        if (r && fstat(r->memfd, &st) == 0) {
            bytes += (uint64_t)st.st_blocks * 512;
        }
    }
    for (unsigned i = 1; i < UFFDMM_TIERS_MAX; i++) {
        struct tier *t = vm->tiers[i];

        if (t && t->put_stores) {
            arena += t->ops->used(t);
            inside += t->config->inside_limit ? t->ops->used(t) : 0;
        }
    }
    atomic_store_explicit(&vm->arena_pages, (int64_t)(inside >> PAGE_SHIFT_4K),
                          memory_order_relaxed);
    stats_set(&vm->stats->arena_bytes, arena);
    atomic_store_explicit(&vm->resident, (int64_t)(bytes >> PAGE_SHIFT_4K),
                          memory_order_relaxed);
    stats_set(&vm->stats->resident_bytes, bytes);
    if (bytes > stats_get(&vm->stats->resident_max_bytes)) {
        stats_set(&vm->stats->resident_max_bytes, bytes);
    }
}
