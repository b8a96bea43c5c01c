/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Bringing pages in.
 *
 * Theory of operation.  A window of pages is claimed one by one: a
 * compare-and-swap turns a page that is out into FILLING with BUSY set, and from then on
 * it is this thread's alone; pages that are in, or that somebody works on, are
 * left out of the window.  The claimed pages are read with one request for each
 * run of neighbouring slots, checked, and copied into place with one ioctl for
 * each run of neighbouring pages.  Then each becomes CLEAN (its slot still
 * holds the same bytes) or RESIDENT (install.c).
 *
 * Whatever cannot be completed goes back to what it was, and nothing of it has
 * become visible: guest memory sees checked bytes or waits.
 */
#include "fill.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "log.h"
#include "vm.h"
#include "window.h"

/* How long to poll for a read before sleeping. */
#define READ_SPIN_NS (300 * NSEC_PER_USEC)

/* From this window on, holes are filled with zero pages ahead of the guest. */
#define ZERO_AHEAD_WINDOW 4

/* A page whose checksum does not match is read again at once this often. */
#define READ_RETRIES 2

/* Claims page @i of the window; false when it is not to be had. */
static bool claim_page(struct window *w, uint32_t i)
{
    struct shard *sh = w->shard;
    struct region *r = sh->region;
    struct vm *vm = r->vm;
    uint64_t pfn = w->pfn + i;
    struct claim *c = &w->claims[i];
    uint64_t e = entry_load(&r->entries[pfn]);

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
    case UFFDMM_PAGE_STORED:
        c->before = e;
        if (entry_tier(e) == UFFDMM_TIER_ZERO) {
            c->kind = r->records[pfn] ? CLAIM_WORD : CLAIM_ZERO;
            c->after = entry_make(UFFDMM_PAGE_RESIDENT, 0, 0, entry_gen(e), 0);
        } else if (entry_tier(e) == UFFDMM_TIER_FILE &&
                   slots_valid(&vm->store.slots, entry_slot(e))) {
            c->kind = CLAIM_FILE;
            c->after = entry_with(e, UFFDMM_PAGE_CLEAN, 0);
        } else {
            if (entry_cas(&r->entries[pfn], e, entry_with(e, UFFDMM_PAGE_LOST, 0))) {
                stats_add(&vm->stats->lost_pages, 1);
                log_error(
                    "region %s: the table names tier %u slot %llu for page %llu, which do "
                    "not exist: the page stays blocked",
                    r->name, entry_tier(e), (unsigned long long)entry_slot(e),
                    (unsigned long long)pfn);
            }
            return false;
        }
        break;
    default:
        return false;
    }
    c->filling = entry_with(c->kind == CLAIM_FILE ? e : c->after & ~(uint64_t)0xff,
                            UFFDMM_PAGE_FILLING, UFFDMM_ENTRY_BUSY);
    if (!entry_cas(&r->entries[pfn], e, c->filling)) {
        c->kind = CLAIM_NONE;
        return false;
    }
    if (entry_state(e) == UFFDMM_PAGE_DISCARDED) {
        vm_free_slot(vm, e);
    } else if (entry_state(e) == UFFDMM_PAGE_STORED) {
        vm_count_stored(vm, e, -1);
    }
    return true;
}

/* True when the bytes of page @i in the buffer are those that were stored. */
static bool verify(const struct window *w, uint32_t i)
{
    const struct region *r = w->shard->region;
    uint64_t pfn = w->pfn + i;

    return store_checksum(window_buffer(w, i), r->id, pfn,
                          entry_gen(w->claims[i].filling)) == r->records[pfn];
}

/* Reads one page again, alone: a damaged transfer heals, a damaged slot does not. */
static bool read_again(const struct window *w, uint32_t i)
{
    struct shard *sh = w->shard;
    struct vm *vm = sh->region->vm;
    uint64_t slot = entry_slot(w->claims[i].filling);
    struct iovec iov = {.iov_base = window_buffer(w, i), .iov_len = PAGE_SIZE_4K};
    struct io_request req;

    for (int n = 0; n < READ_RETRIES; n++) {
        req = store_request(&vm->store, false, &iov, 1, slot, PAGE_SIZE_4K);
        if (store_run(&vm->store, &sh->io, &req, 1, READ_SPIN_NS) == 0 && verify(w, i)) {
            return true;
        }
    }
    return false;
}

/* Reads all claimed pages that are in slots and checks them. */
static void read_slots(struct window *w)
{
    static uint64_t logged;
    struct shard *sh = w->shard;
    struct region *r = sh->region;
    struct vm *vm = r->vm;
    struct io_request reqs[IO_DEPTH];
    struct iovec iovs[IO_DEPTH];
    uint32_t firsts[IO_DEPTH];
    uint32_t i = 0;
    int nr = 0;

    while (i < w->nr) {
        uint64_t slot;
        uint32_t n = 1;

        if (w->claims[i].kind != CLAIM_FILE) {
            i++;
            continue;
        }
        slot = entry_slot(w->claims[i].filling);
        while (i + n < w->nr && w->claims[i + n].kind == CLAIM_FILE &&
               entry_slot(w->claims[i + n].filling) == slot + n) {
            n++;
        }
        iovs[nr] = (struct iovec){.iov_base = window_buffer(w, i),
                                  .iov_len = (size_t)n * PAGE_SIZE_4K};
        reqs[nr] = store_request(&vm->store, false, &iovs[nr], 1, slot, iovs[nr].iov_len);
        firsts[nr++] = i;
        i += n;
    }
    if (!nr) {
        return;
    }
    store_run(&vm->store, &sh->io, reqs, nr, READ_SPIN_NS);
    for (int k = 0; k < nr; k++) {
        uint32_t n = (uint32_t)(reqs[k].length / PAGE_SIZE_4K);

        for (i = firsts[k]; i < firsts[k] + n; i++) {
            uint64_t slot = entry_slot(w->claims[i].filling);

            w->claims[i].ready = reqs[k].result == 0 && verify(w, i);
            if (!w->claims[i].ready && i == w->demand) {
                w->claims[i].ready = read_again(w, i);
            }
            if (w->claims[i].ready) {
                continue;
            }
            if (reqs[k].result == 0) {
                stats_add(&vm->stats->checksum_errors, 1);
            }
            if (!i && log_ratelimit(&logged, NSEC_PER_SEC)) {
                log_error(
                    "region %s: page %llu cannot be read from tier file slot %llu of %s/%s: "
                    "%s; the guest waits for it, and goes on when the store is repaired",
                    r->name, (unsigned long long)w->pfn, (unsigned long long)slot,
                    vm->store.dir, vm->store.file,
                    reqs[k].result ? strerror(-reqs[k].result) : "checksum mismatch");
            }
            window_unclaim(w, i);
        }
    }
}

static void fill_word(void *page, uint64_t word)
{
    uint64_t *p = page;

    for (size_t i = 0; i < PAGE_SIZE_4K / sizeof(word); i++) {
        p[i] = word;
    }
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

/* End of the run of claimed pages from @i on that one ioctl can put in place. */
static uint32_t install_end(struct window *w, uint32_t i)
{
    bool zero = w->claims[i].kind == CLAIM_ZERO;

    for (; i < w->nr && w->claims[i].kind != CLAIM_NONE; i++) {
        if ((w->claims[i].kind == CLAIM_ZERO) != zero) {
            break;
        }
        if (w->claims[i].kind == CLAIM_WORD) {
            fill_word(window_buffer(w, i), w->shard->region->records[w->pfn + i]);
        }
    }
    return i;
}

enum serve_outcome fill_pages(struct shard *sh, uint64_t pfn, uint64_t first, uint32_t nr,
                              bool guess)
{
    struct region *r = sh->region;
    struct uffdmm_stats *stats = r->vm->stats;
    struct window w = {.shard = sh,
                       .pfn = first,
                       .nr = nr,
                       .demand = (uint32_t)(pfn - first),
                       .guess = guess};
    enum serve_outcome result = SERVED;
    bool from_slot;
    uint32_t i, end;

    if (!claim_window(&w)) {
        return entry_state(entry_load(&r->entries[pfn])) == UFFDMM_PAGE_LOST ? BLOCKED
                                                                             : AGAIN_SOON;
    }
    from_slot = w.claims[w.demand].kind == CLAIM_FILE;
    read_slots(&w);
    if (w.claims[w.demand].kind == CLAIM_NONE) {
        result = AGAIN_STORE;
        stats_set(&stats->state, UFFDMM_WORKER_STORE_ERROR);
    }
    for (i = 0; i < w.nr; i = end) {
        enum serve_outcome out;
        bool demanded;

        end = i + 1;
        if (w.claims[i].kind == CLAIM_NONE) {
            continue;
        }
        end = install_end(&w, i);
        demanded = i <= w.demand && w.demand < end;
        stats_add(&stats->readahead_in, end - i - demanded);
        out = window_install(&w, i, end, w.claims[i].kind == CLAIM_ZERO);
        if (demanded || out == GONE) {
            result = out;
        }
    }
    if (result == SERVED) {
        stats_add(from_slot ? &stats->faults_store : &stats->faults_zero, 1);
        if (from_slot && stats_get(&stats->state) == UFFDMM_WORKER_STORE_ERROR) {
            stats_set(&stats->state, UFFDMM_WORKER_RUNNING);
        }
    }
    return result;
}
