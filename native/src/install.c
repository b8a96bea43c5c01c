/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Putting claimed pages into guest memory.
 *
 * Theory of operation.  A claimed entry is FILLING with BUSY, and only QEMU may
 * still change it, by a discard.  So each page gets INSTALL right before the copy:
 * if that fails the page was discarded and is not copied, and from then on a discard
 * waits until the copy is done, so that its punch comes after it and the hole wins.
 *
 * QEMU does not wait for ever.  Should it have gone on before a copy that took very
 * long, the guest finds its own old page, whole.  Such a page is not punched again:
 * the guest can have written to it since the copy, and that write would be lost.
 * MAYHOLE says that a hole may be there as well.
 */
#include <errno.h>
#include <string.h>

#include "clock.h"
#include "huge.h"
#include "log.h"
#include "queue.h"
#include "region.h"
#include "test_hooks.h"
#include "vm.h"
#include "window.h"

/* Tries in a row of an ioctl that the kernel answers with EAGAIN. */
#define INSTALL_TRIES 50

void window_unclaim(struct window *w, uint32_t i)
{
    struct claim *c = &w->claims[i];
    struct region *r = w->shard->region;
    entry_t *p = &r->entries[w->pfn + i];

    if (!entry_cas(p, c->filling, c->before) &&
        !entry_cas(p, c->filling | UFFDMM_ENTRY_INSTALL, c->before)) {
        entry_clear_busy(p);
        /* its message has found it busy, and nobody else may come by */
        region_reap_discard(r, w->pfn + i);
    } else if (entry_state(c->before) == UFFDMM_PAGE_STORED) {
        region_count_stored(r, c->before, 1);
    }
    c->kind = CLAIM_NONE;
}

/* Page @i is in memory: says so in the table. */
static void settle(struct window *w, uint32_t i)
{
    struct region *r = w->shard->region;
    struct claim *c = &w->claims[i];
    uint64_t pfn = w->pfn + i;
    entry_t *p = &r->entries[pfn];

    c->kind = CLAIM_NONE;
    lost_cleared(w->shard, pfn);
    region_set_age(r, pfn, w->guess && i != w->demand ? AGE_AHEAD_FRESH : AGE_NEW_FRESH);
    if (entry_cas(p, c->filling | UFFDMM_ENTRY_INSTALL, c->after)) {
        if (entry_slot(c->filling) && !entry_slot(c->after)) {
            region_free_slots(r, pfn, c->filling);
        }
    } else {
        uint64_t e = entry_load(p);

        region_free_slots(r, pfn, e);
        atomic_store_explicit(
            p, entry_make(UFFDMM_PAGE_RESIDENT, UFFDMM_ENTRY_MAYHOLE, 0, entry_gen(e), 0),
            memory_order_release);
    }
    queue_push(r->vm, &r->blocks[region_block(r, pfn)]);
}

static enum uffd_outcome install(struct window *w, uint32_t i, uint32_t end, bool zero,
                                 size_t *done)
{
    struct shard *sh = w->shard;
    uint64_t addr = page_addr(sh->region, w->pfn + i);
    size_t len = (size_t)(end - i) << sh->region->page_shift;

    *done = 0;
    if (region_is_huge(sh->region)) {
        return huge_copy(sh, w->pfn, zero ? sh->zeros : window_buffer(w, i), done);
    }
    if (zero) {
        return uffd_zero(sh->uffd, addr, len, done);
    }
    return uffd_copy(sh->uffd, addr, window_buffer(w, i), len, done);
}

/*
 * Pages from @i on, up to @end, that have not been discarded, marked for the copy.
 * Returns the end of the run; a page that was discarded is given up.
 */
static uint32_t mark_install(struct window *w, uint32_t i, uint32_t end)
{
    struct region *r = w->shard->region;

    for (; i < end; i++) {
        uint64_t filling = w->claims[i].filling;

        if (!entry_cas(&r->entries[w->pfn + i], filling,
                       filling | UFFDMM_ENTRY_INSTALL)) {
            break;
        }
    }
    return i;
}

/* Puts pages [@i, @end) in place, which are marked; see window_install(). */
static enum serve_outcome install_run(struct window *w, uint32_t i, uint32_t end,
                                      bool zero)
{
    static uint64_t logged;
    struct shard *sh = w->shard;
    struct region *r = sh->region;
    enum serve_outcome result = SERVED;
    unsigned tries = 0;

    while (i < end) {
        size_t done;
        enum uffd_outcome out;

        test_hook_crash("fill-marked");
        out = install(w, i, end, zero, &done);
        test_hook_crash("fill-copied");
        for (size_t n = done >> r->page_shift; n; n--, i++) {
            atomic_fetch_add_explicit(&r->vm->resident, region_units(r),
                                      memory_order_relaxed);
            settle(w, i);
        }
        if (out == UFFD_DONE) {
            break;
        }
        if (out == UFFD_PRESENT && !done) {
            /* memory has the page: memory wins, and who waits looks again */
            settle(w, i);
            uffd_wake(sh->uffd, page_addr(r, w->pfn + i), region_page_bytes(r));
            i++;
        } else if (out == UFFD_NO_PAGE) {
            result = AGAIN_ROOM;
            break;
        } else if (out == UFFD_AGAIN || done) {
            if (!done && ++tries > INSTALL_TRIES) {
                result = AGAIN_SOON;
                break;
            }
        } else {
            result = out == UFFD_GONE ? GONE : AGAIN_STORE;
            if (out == UFFD_ERROR && log_ratelimit(&logged, NSEC_PER_SEC)) {
                log_error("region %s: page %llu cannot be put in place: %s", r->name,
                          (unsigned long long)(w->pfn + i), strerror(errno));
            }
            break;
        }
    }
    for (; i < end; i++) {
        if (w->claims[i].kind != CLAIM_NONE) {
            window_unclaim(w, i);
        }
    }
    return result;
}

enum serve_outcome window_install(struct window *w, uint32_t i, uint32_t end, bool zero)
{
    enum serve_outcome result = SERVED;

    while (i < end) {
        uint32_t marked = mark_install(w, i, end);

        if (marked > i) {
            enum serve_outcome out;

            test_hook_delay("UFFDMM_TEST_INSTALL_DELAY_US");
            out = install_run(w, i, marked, zero);
            result = out == SERVED ? result : out;
        }
        if (marked < end) {
            /* discarded: whoever waits for it faults again and gets zeros */
            if (marked == w->demand && result == SERVED) {
                result = AGAIN_SOON;
            }
            window_unclaim(w, marked);
            marked++;
        }
        i = marked;
    }
    return result;
}
