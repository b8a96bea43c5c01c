/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Putting claimed pages into guest memory.
 *
 * Theory of operation.  A claimed entry is FILLING with BUSY, and only QEMU may
 * still change it, by a discard.  If QEMU's punch comes after our copy, all is well:
 * the hole wins.  If it came before, the copy brings back what the guest gave
 * away, and the compare-and-swap that follows it fails.
 *
 * A page that nobody waits for must then be punched again, and that is safe
 * only as long as nobody can have written to it.  So pages are copied in
 * write-protected and without waking anybody whenever there are others
 * beside the demanded one; after the table has been settled, one ioctl lifts the
 * protection of all of them and wakes.  BUSY stays until then, or the evictor
 * could begin on a page whose protection we are about to lift.
 *
 * The demanded page alone is copied in plainly: the guest is touching the very page
 * that it discards, and may read either content.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "clock.h"
#include "log.h"
#include "queue.h"
#include "vm.h"
#include "window.h"

/* Tries in a row of an ioctl that the kernel answers with EAGAIN. */
#define INSTALL_TRIES 50

void *window_buffer(const struct window *w, uint32_t i)
{
    return (char *)w->shard->buffer + (size_t)i * PAGE_SIZE_4K;
}

void window_unclaim(struct window *w, uint32_t i)
{
    struct claim *c = &w->claims[i];
    entry_t *p = &w->shard->region->entries[w->pfn + i];

    if (!entry_cas(p, c->filling, c->before)) {
        entry_clear_busy(p);
    } else if (entry_state(c->before) == UFFDMM_PAGE_STORED) {
        vm_count_stored(w->shard->region->vm, c->before, 1);
    }
    c->kind = CLAIM_NONE;
}

/* The page came back although the guest has given it away: away with it. */
static void punch_again(struct region *r, uint64_t pfn, uint64_t e)
{
    if (fallocate(r->memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                  (off_t)(pfn << PAGE_SHIFT_4K), PAGE_SIZE_4K) < 0) {
        log_error("region %s: cannot punch discarded page %llu: %s", r->name,
                  (unsigned long long)pfn, strerror(errno));
        return;
    }
    atomic_fetch_sub_explicit(&r->vm->resident, 1, memory_order_relaxed);
    atomic_store_explicit(&r->entries[pfn],
                          entry_make(UFFDMM_PAGE_EMPTY,
                                     UFFDMM_ENTRY_BUSY | UFFDMM_ENTRY_MAYHOLE, 0,
                                     entry_gen(e), 0),
                          memory_order_release);
}

/*
 * Page @i is in memory: says so in the table.  @guarded: it was copied in
 * write-protected just now, and BUSY stays.
 */
static void settle(struct window *w, uint32_t i, bool guarded)
{
    struct region *r = w->shard->region;
    struct claim *c = &w->claims[i];
    uint64_t pfn = w->pfn + i;
    entry_t *p = &r->entries[pfn];
    uint64_t busy = guarded ? UFFDMM_ENTRY_BUSY : 0;

    c->kind = CLAIM_NONE;
    r->ages[pfn] = w->guess && i != w->demand ? AGE_AHEAD_FRESH : AGE_NEW_FRESH;
    if (!entry_cas(p, c->filling, c->after | busy)) {
        uint64_t e = entry_load(p);

        vm_free_slot(r->vm, e);
        atomic_store_explicit(p,
                              entry_make(UFFDMM_PAGE_RESIDENT,
                                         (unsigned)busy | UFFDMM_ENTRY_MAYHOLE, 0,
                                         entry_gen(e), 0),
                              memory_order_release);
        if (guarded) {
            punch_again(r, pfn, e);
        }
    }
    queue_push(r->vm, &r->blocks[pfn / BLOCK_PAGES]);
}

/* Lifts the protection of pages [@i, @end), wakes, and ends the work on them. */
static void unguard(struct window *w, uint32_t i, uint32_t end, const bool *guarded)
{
    struct shard *sh = w->shard;
    uint64_t addr = page_addr(sh->region, w->pfn + i);
    size_t len = (size_t)(end - i) * PAGE_SIZE_4K;

    if (uffd_wp(sh->uffd, addr, len, false) != UFFD_DONE) {
        /* a write to a page that stays protected faults, and is served then */
        uffd_wake(sh->uffd, addr, len);
    }
    for (; i < end; i++) {
        if (guarded[i]) {
            entry_clear_busy(&sh->region->entries[w->pfn + i]);
        }
    }
}

static enum uffd_outcome install(struct window *w, uint32_t i, uint32_t end, bool zero,
                                 bool guard, size_t *done)
{
    struct shard *sh = w->shard;
    uint64_t addr = page_addr(sh->region, w->pfn + i);
    size_t len = (size_t)(end - i) * PAGE_SIZE_4K;

    *done = 0;
    if (zero) {
        return uffd_zero(sh->uffd, addr, len, done);
    }
    return uffd_copy(sh->uffd, addr, window_buffer(w, i), len, guard, done);
}

enum serve_outcome window_install(struct window *w, uint32_t i, uint32_t end, bool zero)
{
    static uint64_t logged;
    struct shard *sh = w->shard;
    struct region *r = sh->region;
    enum serve_outcome result = SERVED;
    bool guarded[WINDOW_MAX] = {false};
    bool guard = !zero && end - i > 1;
    uint32_t first = i;
    unsigned tries = 0;

    while (i < end) {
        size_t done;
        enum uffd_outcome out = install(w, i, end, zero, guard, &done);

        for (size_t n = done / PAGE_SIZE_4K; n; n--, i++) {
            guarded[i] = guard;
            atomic_fetch_add_explicit(&r->vm->resident, 1, memory_order_relaxed);
            settle(w, i, guard);
        }
        if (out == UFFD_DONE) {
            break;
        }
        if (out == UFFD_PRESENT && !done) {
            /* memory has the page: memory wins, and who waits looks again */
            settle(w, i, false);
            uffd_wake(sh->uffd, page_addr(r, w->pfn + i), PAGE_SIZE_4K);
            i++;
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
    if (guard && i > first) {
        unguard(w, first, i, guarded);
    }
    for (; i < end; i++) {
        if (w->claims[i].kind != CLAIM_NONE) {
            window_unclaim(w, i);
        }
    }
    return result;
}
