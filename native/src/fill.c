/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Bringing pages in.
 *
 * Theory of operation.  A window of neighbouring pages is claimed (STORED, EMPTY
 * or DISCARDED -> FILLING with BUSY, so that nobody else works on them), those
 * that are in slots are read into a buffer, checked, and put into guest memory
 * by as few ioctls as possible.  The thread does not wait for the reads: it serves
 * other faults meanwhile.  A window reads from one store that has to be waited
 * for, that of the demanded page; pages that come from memory (holes, words, the
 * pool) go along with any.  What cannot be read is given back as it was, and
 * nothing of it has become visible: guest memory sees checked bytes or waits.
 */
#include "fill.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "huge.h"
#include "log.h"
#include "queue.h"
#include "test_hooks.h"
#include "vm.h"
#include "window.h"

/* From this window on, holes are filled with zero pages ahead of the guest. */
#define ZERO_AHEAD_WINDOW 4

/* A demanded page that cannot be read or does not match is read again at once this often. */
#define READ_RETRIES 2

/* True when the slot of @e can be read along in this window. */
static bool may_read(struct window *w, struct tier *t, bool demanded)
{
    if (t->put_stores) {
        return true;
    }
    if (demanded) {
        w->tier = t->index;
    }
    return w->tier == t->index;
}

static void lose(struct region *r, uint64_t pfn, uint64_t e)
{
    if (entry_cas(&r->entries[pfn], e, entry_with(e, UFFDMM_PAGE_LOST, 0))) {
        stats_add(&r->vm->stats->lost_pages, 1);
        log_error(
            "region %s: the table names tier %u slot %llu for page %llu, which do not "
            "exist: the page stays blocked",
            r->name, entry_tier(e), (unsigned long long)entry_slot(e),
            (unsigned long long)pfn);
    }
}

/* Claims page @i of the window; false when it is not to be had. */
static bool claim_page(struct window *w, uint32_t i)
{
    struct shard *sh = w->shard;
    struct region *r = sh->region;
    struct vm *vm = r->vm;
    uint64_t pfn = w->pfn + i;
    struct claim *c = &w->claims[i];
    uint64_t e = entry_load(&r->entries[pfn]);
    struct tier *t;

    c->kind = CLAIM_NONE;
    c->ready = false;
    if (entry_busy(e)) {
        return false;
    }
    switch (entry_state(e)) {
    case UFFDMM_PAGE_EMPTY:
        if (i != w->demand && w->nr < ZERO_AHEAD_WINDOW) {
            return false;
        }
        c->kind = CLAIM_ZERO;
        c->before = e;
        c->after = entry_make(UFFDMM_PAGE_RESIDENT, (unsigned)e & UFFDMM_ENTRY_MAYHOLE, 0,
                              entry_gen(e), 0);
        break;
    case UFFDMM_PAGE_DISCARDED:
        if (i != w->demand) {
            return false;
        }
        c->kind = CLAIM_ZERO;
        /* QEMU's punch may come after our zero page */
        c->before =
            entry_make(UFFDMM_PAGE_EMPTY, UFFDMM_ENTRY_MAYHOLE, 0, entry_gen(e), 0);
        c->after =
            entry_make(UFFDMM_PAGE_RESIDENT, UFFDMM_ENTRY_MAYHOLE, 0, entry_gen(e), 0);
        break;
    case UFFDMM_PAGE_LOST:
        /* without a slot there is nothing to read it from */
        if (i != w->demand || !w->fault.repair || !entry_slot(e)) {
            return false;
        }
        __attribute__((fallthrough));
    case UFFDMM_PAGE_STORED:
        c->before = e;
        t = vm_tier(vm, e);
        if (entry_tier(e) == UFFDMM_TIER_ZERO) {
            c->kind = region_record(r, pfn) ? CLAIM_WORD : CLAIM_ZERO;
            c->after = entry_make(UFFDMM_PAGE_RESIDENT, 0, 0, entry_gen(e), 0);
        } else if (!t || !tier_valid(t, entry_slot(e), region_units(r))) {
            if (entry_state(e) == UFFDMM_PAGE_STORED) {
                lose(r, pfn, e);
            }
            return false;
        } else if (!may_read(w, t, i == w->demand)) {
            return false;
        } else {
            c->kind = CLAIM_SLOT;
            /* a copy inside the limit would take the room of another page */
            c->after = t->config->inside_limit
                           ? entry_make(UFFDMM_PAGE_RESIDENT, 0, 0, entry_gen(e), 0)
                           : entry_with(e, UFFDMM_PAGE_CLEAN, 0);
        }
        break;
    default:
        return false;
    }
    if (entry_state(e) == UFFDMM_PAGE_STORED || c->kind == CLAIM_SLOT) {
        c->filling = entry_with(e, UFFDMM_PAGE_FILLING, UFFDMM_ENTRY_BUSY);
    } else {
        c->filling =
            entry_make(UFFDMM_PAGE_FILLING,
                       UFFDMM_ENTRY_BUSY | ((unsigned)c->after & UFFDMM_ENTRY_MAYHOLE),
                       ENTRY_TIER_HOLE, entry_gen(e), 0);
    }
    if (!entry_cas(&r->entries[pfn], e, c->filling)) {
        c->kind = CLAIM_NONE;
        return false;
    }
    if (entry_state(e) == UFFDMM_PAGE_DISCARDED) {
        region_free_slots(r, pfn, e);
    } else if (entry_state(e) == UFFDMM_PAGE_STORED) {
        region_count_stored(r, e, -1);
    }
    return true;
}

/* Claims the demanded page and what can be had around it; false without the former. */
static bool claim_window(struct window *w)
{
    if (!claim_page(w, w->demand)) {
        return false;
    }
    for (uint32_t i = 0; i < w->nr; i++) {
        if (i != w->demand) {
            claim_page(w, i);
        }
    }
    return true;
}

/* ---- reading ------------------------------------------------------------- */

/*
 * Starts the read of @nr_slots neighbouring slots from @slot on into @buffer: pages
 * from @i on, or a part of a huge one.
 */
static void start_read(struct window *w, unsigned k, uint32_t i, uint64_t slot,
                       char *buffer, uint64_t nr_slots)
{
    struct shard *sh = w->shard;
    struct region *r = sh->region;
    struct tier_io *io = &w->ios[k];

    w->iovs[k] =
        (struct iovec){.iov_base = buffer, .iov_len = (size_t)nr_slots * PAGE_SIZE_4K};
    io->tier = vm_tier(r->vm, w->claims[i].filling);
    io->write = false;
    io->slot = slot;
    io->region_id = r->id;
    io->pfn = w->pfn + i;
    io->iov = &w->iovs[k];
    io->nr_iov = 1;
    io->length = w->iovs[k].iov_len;
    io->owner = w;
    w->pending++;
    tier_submit(&sh->queue, io);
}

/* Starts the read of pages [@i, @i + @n), which are in neighbouring slots. */
static void read_run(struct window *w, unsigned k, uint32_t i, uint32_t n)
{
    start_read(w, k, i, entry_slot(w->claims[i].filling), window_buffer(w, i), n);
}

/* Starts the reads of a huge page: as many as its tier needs for a run of slots. */
static void read_huge(struct window *w)
{
    struct vm *vm = w->shard->region->vm;
    uint64_t e = w->claims[0].filling, n;
    struct tier *t = vm_tier(vm, e);
    unsigned k = 0;

    w->error = 0;
    for (uint64_t done = 0; done < HUGE_PAGE_UNITS; done += n) {
        n = t->ops->extent(t, entry_slot(e) + done, HUGE_PAGE_UNITS - done);
        start_read(w, k++, 0, entry_slot(e) + done, w->buffer + done * PAGE_SIZE_4K, n);
    }
}

/* Starts to read all claimed pages that are in slots. */
static void read_slots(struct window *w)
{
    struct vm *vm = w->shard->region->vm;
    unsigned k = 0;
    uint32_t i = 0;

    if (region_is_huge(w->shard->region)) {
        if (w->claims[0].kind == CLAIM_SLOT) {
            read_huge(w);
        }
        i = w->nr;
    }
    while (i < w->nr) {
        uint64_t e = w->claims[i].filling, extent;
        uint32_t n = 1;
        struct tier *t;

        if (w->claims[i].kind != CLAIM_SLOT) {
            i++;
            continue;
        }
        t = vm_tier(vm, e);
        extent = t->ops->extent(t, entry_slot(e), w->nr - i);
        while (n < extent && w->claims[i + n].kind == CLAIM_SLOT &&
               entry_tier(w->claims[i + n].filling) == t->index &&
               entry_slot(w->claims[i + n].filling) == entry_slot(e) + n) {
            n++;
        }
        read_run(w, k++, i, n);
        i += n;
    }
    w->shard->last_read_ns = clock_ns();
    tier_flush(&w->shard->queue);
}

/* True when the bytes of page @i in the buffer are those that were stored. */
static bool verify(const struct window *w, uint32_t i)
{
    const struct region *r = w->shard->region;
    uint64_t pfn = w->pfn + i;

    return page_checksum(r, window_buffer(w, i), pfn, entry_gen(w->claims[i].filling)) ==
           region_record(r, pfn);
}

/* Part of a huge page has been read; with the last one it is checked. */
static void take_huge(struct window *w, const struct tier_io *io)
{
    struct claim *c = &w->claims[0];

    if (io->result) {
        w->error = io->result;
    }
    if (w->pending > 1) {
        return;
    }
    c->ready = !w->error && verify(w, 0);
    if (!c->ready && !w->error) {
        stats_add(&w->shard->region->vm->stats->checksum_errors, 1);
        stats_add(&io->tier->stats->checksum_errors, 1);
    }
}

/* A read has ended: keeps what is right of it. */
static void take_read(struct window *w, const struct tier_io *io)
{
    struct vm *vm = w->shard->region->vm;
    uint32_t first = (uint32_t)(io->pfn - w->pfn);

    if (region_is_huge(w->shard->region)) {
        take_huge(w, io);
        return;
    }
    for (uint32_t i = first; i < first + io->length / PAGE_SIZE_4K; i++) {
        w->claims[i].ready = io->result == 0 && verify(w, i);
        if (w->claims[i].ready) {
            continue;
        }
        if (io->result == 0) {
            stats_add(&vm->stats->checksum_errors, 1);
            stats_add(&io->tier->stats->checksum_errors, 1);
        }
        if (i == w->demand) {
            w->error = io->result;
        } else {
            window_unclaim(w, i);
        }
    }
}

/*
 * The demanded page has not come: asks for it again, alone.  A damaged transfer
 * heals that way, a damaged slot does not.  False when that was done often enough.
 */
static bool read_again(struct window *w)
{
    const struct claim *c = &w->claims[w->demand];

    if (c->kind != CLAIM_SLOT || c->ready || w->retries == READ_RETRIES) {
        return false;
    }
    w->retries++;
    if (region_is_huge(w->shard->region)) {
        read_huge(w);
    } else {
        read_run(w, 0, w->demand, 1);
    }
    tier_flush(&w->shard->queue);
    return true;
}

/* The demanded page cannot be read: its fault waits, or the page is poisoned. */
static enum serve_outcome give_up(struct window *w)
{
    struct region *r = w->shard->region;
    uint64_t e = w->claims[w->demand].filling, pfn = w->pfn + w->demand;
    struct tier *t = vm_tier(r->vm, e);

    if (w->fault.repair || w->fault.ahead) {
        window_unclaim(w, w->demand); /* nobody waits: a fault would tell */
        return AGAIN_STORE;
    }
    lost_note(w->shard, &w->fault);
    if (lost_due(w->shard, &w->fault)) {
        return lost_give_up(w);
    }
    tier_error(
        t,
        "page %llu of region %s cannot be read from slot %llu: %s; the guest waits for it "
        "and goes on when the store is repaired",
        (unsigned long long)pfn, r->name, (unsigned long long)entry_slot(e),
        w->error ? strerror(-w->error) : "its checksum does not match");
    window_unclaim(w, w->demand);
    return AGAIN_STORE;
}

/* ---- the end ------------------------------------------------------------- */

static void fill_word(void *page, size_t bytes, uint64_t word)
{
    uint64_t *p = page;

    for (size_t i = 0; i < bytes / sizeof(word); i++) {
        p[i] = word;
    }
}

/* End of the run of claimed pages from @i on that one ioctl can put in place. */
static uint32_t install_end(struct window *w, uint32_t i)
{
    bool zero = w->claims[i].kind == CLAIM_ZERO;

    for (; i < w->nr && w->claims[i].kind != CLAIM_NONE; i++) {
        if ((w->claims[i].kind == CLAIM_ZERO) != zero) {
            break;
        }
        if (w->claims[i].kind == CLAIM_WORD) {
            fill_word(window_buffer(w, i), region_page_bytes(w->shard->region),
                      region_record(w->shard->region, w->pfn + i));
        }
    }
    return i;
}

/* All reads have ended: puts the pages in place. */
static enum serve_outcome finish(struct window *w)
{
    struct uffdmm_stats *stats = w->shard->region->vm->stats;
    const struct claim *demanded_claim = &w->claims[w->demand];
    bool from_slot = demanded_claim->kind == CLAIM_SLOT;
    enum serve_outcome result = SERVED;
    bool unread = false;
    uint32_t i, end;

    if (from_slot && !demanded_claim->ready) {
        unread = true;
        result = give_up(w);
    }
    for (i = 0; i < w->nr; i = end) {
        enum serve_outcome out;
        bool demanded;

        end = i + 1;
        if (w->claims[i].kind == CLAIM_NONE) {
            continue;
        }
        end = install_end(w, i);
        demanded = i <= w->demand && w->demand < end;
        stats_add(w->fault.ahead ? &stats->prefetched : &stats->readahead_in,
                  end - i - (demanded && !w->fault.ahead));
        out = window_install(w, i, end, w->claims[i].kind == CLAIM_ZERO);
        if (demanded || out == GONE) {
            result = out;
        }
    }
    if (w->guess) {
        /* else the whole of it would leave when its first page would have left */
        queue_touch(w->shard->region->vm,
                    &w->shard->region->blocks[(w->pfn + w->demand) / BLOCK_PAGES]);
    }
    if (result == SERVED && !unread && !w->fault.repair && !w->fault.ahead) {
        stats_add(from_slot ? &stats->faults_store : &stats->faults_zero, 1);
    }
    if (!unread) {
        lost_forget(w->shard, &w->fault);
    }
    return result;
}

/*
 * A free window for a fault on a page of @tier (0: in memory).  Stores that are waited for
 * share all but a few, so that one which does not answer leaves some to the others.
 */
static struct window *take_window(struct shard *sh, unsigned tier)
{
    uint32_t free = ~sh->windows_used & ((1u << sh->nr_windows) - 1);
    unsigned waiting = sh->nr_windows > 2 * WINDOWS_MEMORY
                           ? sh->nr_windows - WINDOWS_MEMORY
                           : sh->nr_windows - 1;
    unsigned share = waiting / sh->region->vm->nr_waited;
    unsigned i, in_tier = 0;

    if (!free) {
        return NULL;
    }
    if (tier) {
        for (i = 0; i < sh->nr_windows; i++) {
            in_tier += (sh->windows_used >> i & 1) && sh->window_tier[i] == tier;
        }
        unsigned in_use = sh->nr_windows - (unsigned)__builtin_popcount(free);

        if (in_use >= waiting || in_tier >= (share ? share : 1)) {
            return NULL;
        }
    }
    i = (unsigned)__builtin_ctz(free);
    sh->window_tier[i] = (uint8_t)tier;
    return &sh->windows[i];
}

static void set_used(struct window *w, bool used)
{
    struct shard *sh = w->shard;
    uint32_t bit = 1u << (w - sh->windows);

    sh->windows_used = used ? sh->windows_used | bit : sh->windows_used & ~bit;
}

/* Tier that a fault on @e waits for, 0 for memory. */
static unsigned waits_for(const struct vm *vm, uint64_t e)
{
    const struct tier *t;

    if ((entry_state(e) != UFFDMM_PAGE_STORED && entry_state(e) != UFFDMM_PAGE_LOST) ||
        !entry_tier(e)) {
        return 0;
    }
    t = vm_tier(vm, e);
    return t && !t->put_stores ? t->index : 0;
}

/* The window is free for another fault. */
static void release_window(struct window *w)
{
    struct region *r = w->shard->region;

    set_used(w, false);
    if (region_is_huge(r)) {
        huge_release_room(r->vm);
    }
}

enum serve_outcome fill_begin(struct shard *sh, const struct deferred *f, uint64_t first,
                              uint32_t nr, bool guess)
{
    struct region *r = sh->region;
    uint64_t e = entry_load(&r->entries[f->pfn]);
    struct window *w = take_window(sh, waits_for(r->vm, e));
    enum serve_outcome out;

    if (!w) {
        return AGAIN_SOON;
    }
    if (region_is_huge(r) && !huge_claim_room(r->vm)) {
        return AGAIN_ROOM;
    }
    w->fault = *f;
    w->pfn = first;
    w->nr = nr;
    w->demand = (uint32_t)(f->pfn - first);
    w->guess = guess;
    w->tier = 0;
    w->pending = w->retries = 0;
    w->error = 0;
    if (!claim_window(w)) {
        release_window(w);
        e = entry_load(&r->entries[f->pfn]);
        return entry_state(e) == UFFDMM_PAGE_LOST ? BLOCKED : AGAIN_SOON;
    }
    set_used(w, true);
    test_hook_crash("fill-claimed");
    read_slots(w);
    if (w->pending) {
        return PENDING;
    }
    out = finish(w);
    release_window(w);
    return out;
}

bool fill_poll(struct shard *sh, struct deferred *f, enum serve_outcome *out)
{
    struct tier_io *io;

    if (!sh->queue.in_flight) {
        return false;
    }
    while ((io = tier_poll(&sh->queue))) {
        struct window *w = io->owner;

        take_read(w, io);
        if (--w->pending || read_again(w)) {
            continue;
        }
        *out = finish(w);
        *f = w->fault;
        release_window(w);
        return true;
    }
    return false;
}

void fill_abandon(struct shard *sh)
{
    while (sh->queue.in_flight) {
        struct tier_io *io = tier_poll(&sh->queue);
        struct window *w;

        if (!io) {
            usleep(1000);
            continue;
        }
        w = io->owner;
        if (--w->pending) {
            continue;
        }
        for (uint32_t i = 0; i < w->nr; i++) {
            if (w->claims[i].kind != CLAIM_NONE) {
                window_unclaim(w, i);
            }
        }
        release_window(w);
    }
}
