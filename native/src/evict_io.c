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
#include "log.h"
#include "queue.h"
#include "vm.h"

/* A block with at least this many pages in the batch is written whole or not at all. */
#define DENSE_PAGES 48

/* Clean copies whose slots are given up at once when the volume has no free ones. */
#define RECLAIM_PAGES 2048

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
    bt->buffer =
        mmap(NULL, (size_t)BATCH_BLOCKS * BLOCK_PAGES * PAGE_SIZE_4K,
             PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (bt->buffer == MAP_FAILED) {
        ret = -errno;
        free(bt);
        return ret;
    }
    ret = io_init(&bt->io);
    if (ret) {
        munmap(bt->buffer, (size_t)BATCH_BLOCKS * BLOCK_PAGES * PAGE_SIZE_4K);
        free(bt);
        return ret;
    }
    *out = bt;
    return 0;
}

void batch_free(struct batch *bt)
{
    io_deinit(&bt->io);
    munmap(bt->buffer, (size_t)BATCH_BLOCKS * BLOCK_PAGES * PAGE_SIZE_4K);
    free(bt);
}

/* Frees the new slot of an item that will not be published. */
static void release_slot(struct batch *bt, struct item *it)
{
    entry_t *p = &it->region->entries[it->pfn];
    uint64_t e = entry_load(p);

    if (!it->has_slot) {
        return;
    }
    it->has_slot = false;
    /* a discard keeps slot and WRITING in the entry: it must not name a free slot */
    while (entry_state(e) == UFFDMM_PAGE_DISCARDED && (e & UFFDMM_ENTRY_WRITING) &&
           entry_slot(e) == it->slot) {
        uint64_t to = entry_make(UFFDMM_PAGE_DISCARDED, (unsigned)e & UFFDMM_ENTRY_BUSY,
                                 0, entry_gen(e), 0);

        if (entry_cas(p, e, to)) {
            break;
        }
        e = entry_load(p);
    }
    if (!slots_free(&bt->vm->store.slots, it->slot)) {
        log_error("region %s: slot %llu was free while it was written", it->region->name,
                  (unsigned long long)it->slot);
    }
}

void batch_give_back(struct batch *bt, struct item *it)
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
        uffd_wp(page_shard(r, it->pfn)->uffd, page_addr(r, it->pfn), PAGE_SIZE_4K, false);
        entry_clear_busy(p);
    }
    release_slot(bt, it);
    it->kind = ITEM_DROPPED;
}

/* True when the page is one 8-byte word over and over. */
static bool same_filled(const char *page, uint64_t *word)
{
    const uint64_t *p = (const uint64_t *)(const void *)page;

    *word = p[0];
    /* most pages differ at once or near the end: ask there first */
    if (p[PAGE_SIZE_4K / 8 - 1] != *word || p[PAGE_SIZE_4K / 16] != *word) {
        return false;
    }
    return memcmp(page, page + 8, PAGE_SIZE_4K - 8) == 0;
}

static void classify(struct batch *bt, struct item *it)
{
    struct region *r = it->region;

    if (it->kind != ITEM_CLAIMED) {
        return;
    }
    if (entry_load(&r->entries[it->pfn]) != it->entry) {
        it->kind = ITEM_DROPPED;
        stats_add(&bt->vm->stats->evicted_cancelled, 1);
    } else if (same_filled(it->data, &it->word)) {
        it->kind = ITEM_SAME;
    } else if (entry_slot(it->entry) &&
               r->records[it->pfn] ==
                   store_checksum(it->data, r->id, it->pfn, entry_gen(it->entry))) {
        it->kind = ITEM_UNCHANGED;
    } else {
        it->kind = ITEM_DIRTY;
    }
}

/* End of the items that belong to the same block as item @i. */
static unsigned block_end(const struct batch *bt, unsigned i)
{
    unsigned end = i + 1;

    while (end < bt->nr && bt->items[end].region == bt->items[i].region &&
           bt->items[end].pfn / BLOCK_PAGES == bt->items[i].pfn / BLOCK_PAGES) {
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
        if (dirty && stored >= DENSE_PAGES) {
            for (k = i; k < end; k++) {
                if (bt->items[k].kind == ITEM_UNCHANGED) {
                    bt->items[k].kind = ITEM_DIRTY;
                }
            }
        }
    }
}

/* Gives up slots of clean copies: the pages are in memory anyway. */
static unsigned reclaim_slots(struct batch *bt)
{
    struct vm *vm = bt->vm;
    unsigned freed = 0;

    for (unsigned k = 0; k < UFFDMM_REGIONS_MAX && freed < RECLAIM_PAGES; k++) {
        struct region *r = vm->regions[k];

        for (uint64_t n = 0; r && n < r->nr_pages && freed < RECLAIM_PAGES; n++) {
            uint64_t pfn = bt->reclaim_hand++ % r->nr_pages;
            uint64_t e = entry_load(&r->entries[pfn]);

            if (entry_state(e) != UFFDMM_PAGE_CLEAN || entry_busy(e)) {
                continue;
            }
            if (entry_cas(&r->entries[pfn], e,
                          entry_make(UFFDMM_PAGE_RESIDENT,
                                     (unsigned)e & UFFDMM_ENTRY_MAYHOLE, 0, entry_gen(e),
                                     0))) {
                vm_free_slot(vm, e);
                freed++;
            }
        }
    }
    return freed;
}

/* Names the new slot in the entry before a byte is written; false when the page is gone. */
static bool announce(struct batch *bt, struct item *it)
{
    uint64_t old = it->entry;
    uint64_t to =
        entry_make(UFFDMM_PAGE_EVICTING,
                   UFFDMM_ENTRY_WRITING | ((unsigned)old & UFFDMM_ENTRY_MAYHOLE),
                   UFFDMM_TIER_FILE, entry_gen(old) + 1, it->slot);

    if (!entry_cas(&it->region->entries[it->pfn], old, to)) {
        return false;
    }
    vm_free_slot(bt->vm, old); /* its copy is out of date */
    it->entry = to;
    it->checksum = store_checksum(it->data, it->region->id, it->pfn, entry_gen(to));
    return true;
}

/*
 * Takes slots for dirty items from @i on and builds one request.  Returns the
 * item behind the last one covered, or @i when there are no slots.
 */
static unsigned build_request(struct batch *bt, unsigned i, struct io_request *req,
                              unsigned *nr_iov)
{
    struct iovec *iov = &bt->iovs[*nr_iov];
    unsigned dirty = 0, k;
    uint64_t slot, got, used = 0;
    int n = 0;

    for (k = i; k < bt->nr; k++) {
        dirty += bt->items[k].kind == ITEM_DIRTY;
    }
    got = slots_alloc(&bt->vm->store.slots, dirty, &slot);
    if (!got && reclaim_slots(bt)) {
        got = slots_alloc(&bt->vm->store.slots, dirty, &slot);
    }
    if (!got) {
        return i;
    }
    for (k = i; k < bt->nr && used < got; k++) {
        struct item *it = &bt->items[k];

        if (it->kind != ITEM_DIRTY) {
            continue;
        }
        it->slot = slot + used++;
        it->has_slot = true;
        if (!announce(bt, it)) {
            /* written all the same, to keep the request in one piece, and freed after it */
            it->kind = ITEM_DROPPED;
            stats_add(&bt->vm->stats->evicted_cancelled, 1);
        }
        if (n && (char *)iov[n - 1].iov_base + iov[n - 1].iov_len == it->data) {
            iov[n - 1].iov_len += PAGE_SIZE_4K;
        } else {
            iov[n++] = (struct iovec){.iov_base = (char *)(uintptr_t)it->data,
                                      .iov_len = PAGE_SIZE_4K};
        }
    }
    *req = store_request(&bt->vm->store, true, iov, n, slot, used * PAGE_SIZE_4K);
    *nr_iov += (unsigned)n;
    return k;
}

/* No slots: the pages stay, and so does the limit. */
static void store_full(struct batch *bt, unsigned i)
{
    static uint64_t logged;

    for (; i < bt->nr; i++) {
        if (bt->items[i].kind == ITEM_DIRTY) {
            batch_give_back(bt, &bt->items[i]);
        }
    }
    bt->store_trouble = true;
    stats_set(&bt->vm->stats->state, UFFDMM_WORKER_STORE_FULL);
    if (log_ratelimit(&logged, 10 * NSEC_PER_SEC)) {
        log_error(
            "volume %s/%s is full (%llu MiB): eviction has stopped and the guest waits at its "
            "limit; raise the limit or give the store more room",
            bt->vm->store.dir, bt->vm->store.file,
            (unsigned long long)(bt->vm->store.bytes >> 20));
    }
}

static void write_failed(struct batch *bt, const struct io_request *req)
{
    static uint64_t logged;

    bt->store_trouble = true;
    stats_set(&bt->vm->stats->state, UFFDMM_WORKER_STORE_ERROR);
    if (log_ratelimit(&logged, NSEC_PER_SEC)) {
        log_error(
            "cannot write %llu bytes at %llu to tier file volume %s/%s: %s; the pages stay in "
            "memory and the write is tried again",
            (unsigned long long)req->length, (unsigned long long)req->offset,
            bt->vm->store.dir, bt->vm->store.file, strerror(-req->result));
    }
}

void batch_write(struct batch *bt)
{
    struct io_request reqs[IO_DEPTH];
    unsigned firsts[IO_DEPTH + 1];
    unsigned i = 0, nr_iov = 0, next, k;
    int nr = 0;

    bt->store_trouble = false;
    while (i < bt->nr && nr < IO_DEPTH) {
        if (bt->items[i].kind != ITEM_DIRTY) {
            i++;
            continue;
        }
        next = build_request(bt, i, &reqs[nr], &nr_iov);
        if (next == i) {
            break;
        }
        firsts[nr++] = i;
        i = next;
    }
    firsts[nr] = i;
    if (nr == IO_DEPTH) {
        /* free slots are scattered: what did not fit into one round waits for the next */
        for (k = i; k < bt->nr; k++) {
            if (bt->items[k].kind == ITEM_DIRTY) {
                batch_give_back(bt, &bt->items[k]);
            }
        }
    } else if (i < bt->nr) {
        store_full(bt, i);
    }
    if (!nr) {
        return;
    }
    store_run(&bt->vm->store, &bt->io, reqs, nr, WRITE_SPIN_NS);
    for (int n = 0; n < nr; n++) {
        if (reqs[n].result) {
            write_failed(bt, &reqs[n]);
        }
        for (k = firsts[n]; k < firsts[n + 1]; k++) {
            struct item *it = &bt->items[k];

            if (it->kind == ITEM_DROPPED) {
                release_slot(bt, it);
            } else if (it->kind == ITEM_DIRTY && reqs[n].result) {
                batch_give_back(bt, it);
            }
        }
    }
    if (!bt->store_trouble && stats_get(&bt->vm->stats->state) != UFFDMM_WORKER_RUNNING) {
        stats_set(&bt->vm->stats->state, UFFDMM_WORKER_RUNNING);
    }
}

void batch_publish(struct batch *bt)
{
    struct uffdmm_stats *stats = bt->vm->stats;

    for (unsigned i = 0; i < bt->nr; i++) {
        struct item *it = &bt->items[i];
        struct region *r = it->region;
        entry_t *p = &r->entries[it->pfn];
        uint64_t to;

        switch (it->kind) {
        case ITEM_SAME:
            to = entry_make(UFFDMM_PAGE_STORED, UFFDMM_ENTRY_BUSY, UFFDMM_TIER_ZERO,
                            entry_gen(it->entry) + 1, 0);
            break;
        case ITEM_UNCHANGED:
        case ITEM_DIRTY:
            to = entry_with(it->entry, UFFDMM_PAGE_STORED, UFFDMM_ENTRY_BUSY);
            break;
        default:
            continue;
        }
        /*
         * The record goes first: who sees STORED finds it there.  If the swap
         * fails nobody reads it, or, for a page that went back to CLEAN, a
         * changed record only means that the page counts as dirty next time.
         */
        if (it->kind == ITEM_SAME) {
            __atomic_store_n(&r->records[it->pfn], it->word, __ATOMIC_RELEASE);
        } else if (it->kind == ITEM_DIRTY) {
            __atomic_store_n(&r->records[it->pfn], it->checksum, __ATOMIC_RELEASE);
        }
        if (!entry_cas(p, it->entry, to)) {
            stats_add(&stats->evicted_cancelled, 1);
            release_slot(bt, it);
            it->kind = ITEM_DROPPED;
            continue;
        }
        stats_add(&stats->evicted, 1);
        vm_count_stored(bt->vm, to, 1);
        if (it->kind == ITEM_SAME) {
            vm_free_slot(bt->vm, it->entry);
            stats_add(&stats->evicted_zero, 1);
        } else if (it->kind == ITEM_UNCHANGED) {
            stats_add(&stats->evicted_clean, 1);
        }
        it->has_slot = false; /* the entry's now */
        it->kind = ITEM_PUBLISHED;
    }
}

void batch_requeue(struct batch *bt)
{
    for (unsigned i = 0; i < bt->nr; i++) {
        if (bt->items[i].kind == ITEM_DROPPED) {
            struct region *r = bt->items[i].region;

            queue_push(bt->vm, &r->blocks[bt->items[i].pfn / BLOCK_PAGES]);
        }
    }
}

void vm_sync_resident(struct vm *vm)
{
    uint64_t bytes = 0;
    struct stat st;

    for (unsigned k = 0; k < UFFDMM_REGIONS_MAX; k++) {
        struct region *r = vm->regions[k];

        if (r && fstat(r->memfd, &st) == 0) {
            bytes += (uint64_t)st.st_blocks * 512;
        }
    }
    atomic_store_explicit(&vm->resident, (int64_t)(bytes >> PAGE_SHIFT_4K),
                          memory_order_relaxed);
    stats_set(&vm->stats->resident_bytes, bytes);
    if (bytes > stats_get(&vm->stats->resident_max_bytes)) {
        stats_set(&vm->stats->resident_max_bytes, bytes);
    }
}
