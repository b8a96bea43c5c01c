/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Poison.
 *
 * Theory of operation.  Unless the configuration says otherwise a guest waits for a page
 * that cannot be had for as long as that takes.  With --on-lost=poison it waits for
 * --on-lost-after; then the page gets UFFDIO_POISON, who waits for it is sent SIGBUS (a
 * guest of KVM: a machine check), and its entry becomes LOST.  Tier, slot, generation and
 * checksum stay, so that nothing is given up for good: every now and then one poisoned
 * page of the shard is read again, and when its bytes are right UFFDIO_COPY puts them in
 * place of the poison.
 *
 * The bitmap says where the kernel may hold poison; it is set before the ioctl and cleared
 * after a page has been put in place.  While INSTALL is set a discard waits, so that
 * it comes after the poison.  A page that was discarded gets a page of zeros from
 * here, for a punch alone leaves the mark in the page table.
 *
 * The kernel does not poison a page whose table entry it keeps a mark of write protection
 * in, as it does for evicted ones: protection is lifted first.  Nothing can be written
 * then that was not written before, for there is no page.
 */
#include "lost.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "log.h"
#include "region.h"
#include "vm.h"
#include "window.h"

/* How long after a page could not be repaired the next one is tried. */
#define REPAIR_NS (500 * NSEC_PER_MSEC)

int lost_init(struct lost *l, uint64_t nr_pages)
{
    l->map = calloc((nr_pages + 63) / 64, sizeof(*l->map));
    return l->map ? 0 : -ENOMEM;
}

void lost_deinit(struct lost *l)
{
    free(l->map);
    l->map = NULL;
}

static bool is_set(const struct lost *l, uint64_t i)
{
    return l->map[i / 64] >> (i % 64) & 1;
}

static void set(struct shard *sh, uint64_t pfn)
{
    struct lost *l = &sh->lost;
    uint64_t i = pfn - sh->first;

    if (!is_set(l, i)) {
        if (!l->nr++) {
            l->next_ns = clock_ns() + REPAIR_NS;
        }
        l->map[i / 64] |= UINT64_C(1) << (i % 64);
    }
}

void lost_adopt(struct shard *sh, uint64_t pfn)
{
    if (sh->lost.map) {
        set(sh, pfn);
    }
}

void lost_cleared(struct shard *sh, uint64_t pfn)
{
    struct lost *l = &sh->lost;
    uint64_t i = pfn - sh->first;

    if (l->nr && is_set(l, i)) {
        l->map[i / 64] &= ~(UINT64_C(1) << (i % 64));
        l->nr--;
    }
}

/* Counts @n more faults that wait for content. */
static void count(struct shard *sh, unsigned n)
{
    struct vm *vm = sh->region->vm;
    unsigned before = atomic_fetch_add(&vm->unreadable, n);

    sh->failing += n;
    if (!before || !(before + n)) {
        vm_show_state(vm);
    }
}

void lost_note(struct shard *sh, struct deferred *f)
{
    if (!f->failing_since) {
        f->failing_since = clock_ns();
        count(sh, 1);
    }
}

void lost_forget(struct shard *sh, struct deferred *f)
{
    if (f->failing_since) {
        f->failing_since = 0;
        count(sh, -1u);
    }
}

void lost_forget_all(struct shard *sh)
{
    if (sh->failing) {
        count(sh, -sh->failing);
    }
}

bool lost_due(const struct shard *sh, const struct deferred *f)
{
    return sh->lost.map && f->failing_since &&
           clock_ns() - f->failing_since >= sh->region->vm->lost_after_ns;
}

static enum uffd_outcome poison(struct shard *sh, uint64_t pfn)
{
    const struct region *r = sh->region;
    uint64_t addr = page_addr(r, pfn);
    enum uffd_outcome out = uffd_wp(sh->uffd, addr, region_page_bytes(r), false);

    if (out == UFFD_DONE) {
        out = uffd_poison(sh->uffd, addr, region_page_bytes(r));
    }
    return out;
}

enum serve_outcome lost_give_up(struct window *w)
{
    struct shard *sh = w->shard;
    struct region *r = sh->region;
    struct claim *c = &w->claims[w->demand];
    uint64_t pfn = w->pfn + w->demand;
    static uint64_t told;
    struct tier *t = vm_tier(r->vm, c->filling);
    entry_t *p = &r->entries[pfn];
    uint64_t lost = entry_with(c->before, UFFDMM_PAGE_LOST, 0);
    enum uffd_outcome out;

    if (!entry_cas(p, c->filling, c->filling | UFFDMM_ENTRY_INSTALL)) {
        window_unclaim(w, w->demand); /* discarded: who waits gets zeros */
        return AGAIN_SOON;
    }
    set(sh, pfn);
    out = poison(sh, pfn);
    if (out != UFFD_DONE) {
        static uint64_t logged;

        if (out == UFFD_ERROR && log_ratelimit(&logged, NSEC_PER_SEC)) {
            log_error(
                "region %s: page %llu cannot be poisoned: %s; the guest waits for it",
                r->name, (unsigned long long)pfn, strerror(errno));
        }
        lost_cleared(sh, pfn);
        window_unclaim(w, w->demand);
        return out == UFFD_GONE ? GONE : AGAIN_STORE;
    }
    stats_add(&r->vm->stats->lost_pages, 1);
    tier_error(t, "page %llu of region %s cannot be read from slot %llu and is poisoned",
               (unsigned long long)pfn, r->name,
               (unsigned long long)entry_slot(c->before));
    /* not among the lines about failing reads, of which there are many by now */
    if (log_ratelimit(&told, NSEC_PER_SEC)) {
        log_error(
            "region %s: page %llu could not be read for %llu ms and is poisoned: the guest "
            "gets an error for it until the store is repaired (lost_pages counts them)",
            r->name, (unsigned long long)pfn,
            (unsigned long long)((clock_ns() - w->fault.failing_since) / NSEC_PER_MSEC));
    }
    if (entry_cas(p, c->filling | UFFDMM_ENTRY_INSTALL, lost)) {
        c->kind = CLAIM_NONE;
    } else {
        window_unclaim(w, w->demand); /* QEMU did not wait to discard it */
    }
    return SERVED;
}

enum serve_outcome lost_fault(struct shard *sh, uint64_t pfn, uint64_t e)
{
    struct region *r = sh->region;
    entry_t *p = &r->entries[pfn];
    uint64_t busy = e | UFFDMM_ENTRY_BUSY | UFFDMM_ENTRY_INSTALL;
    enum uffd_outcome out;

    if (!sh->lost.map) {
        return BLOCKED;
    }
    /* a zap of QEMU's mapping takes the poison away with the rest of the page table */
    if (!entry_cas(p, e, busy)) {
        return AGAIN_SOON;
    }
    set(sh, pfn);
    out = poison(sh, pfn);
    if (!entry_cas(p, busy, e)) {
        region_release_page(r, pfn);
    }
    if (out == UFFD_PRESENT) {
        /* the message was old news */
        out = uffd_wake(sh->uffd, page_addr(r, pfn), region_page_bytes(r));
    }
    return out == UFFD_DONE ? SERVED : out == UFFD_GONE ? GONE : AGAIN_SOON;
}

/* True when page @i of the shard wants something in place of its poison. */
static bool worth_a_try(struct shard *sh, uint64_t i)
{
    uint64_t e = entry_load(&sh->region->entries[sh->first + i]);

    switch (entry_state(e)) {
    case UFFDMM_PAGE_LOST:
        return entry_slot(e) != 0;
    case UFFDMM_PAGE_EMPTY:
    case UFFDMM_PAGE_DISCARDED:
        return true;
    default:
        return false;
    }
}

bool lost_next(struct shard *sh, struct deferred *f)
{
    struct lost *l = &sh->lost;
    uint64_t nr = sh->end - sh->first;

    if (clock_ns() < lost_next_ns(l)) {
        return false;
    }
    for (uint64_t n = 0; n < nr; n++) {
        uint64_t i = (l->hand + 1 + n) % nr;

        if (!l->map[i / 64] && i % 64 == 0 && nr - n > 64 && nr - i > 64) {
            n += 63;
            continue;
        }
        if (is_set(l, i) && worth_a_try(sh, i)) {
            l->hand = i;
            l->trying = true;
            *f = (struct deferred){
                .pfn = sh->first + i, .since = clock_ns(), .repair = true};
            return true;
        }
    }
    l->next_ns = clock_ns() + REPAIR_NS;
    return false;
}

void lost_tried(struct shard *sh, bool served)
{
    sh->lost.trying = false;
    sh->lost.next_ns = clock_ns() + (served ? 0 : REPAIR_NS);
}

uint64_t lost_next_ns(const struct lost *l)
{
    return l->nr && !l->trying ? l->next_ns : UINT64_MAX;
}
