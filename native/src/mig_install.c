/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Locations into the table.
 *
 * Theory of operation.  Whatever the page is by now (loaded by an earlier round, on its
 * way out, stored by this side, never touched): it becomes what the source said, and its
 * memory is punched.  Page by page the entry is first claimed as RESIDENT with BUSY, which
 * makes everybody keep off: a fault waits, the evictor finds its page taken back and
 * drops its copy.  What the old entry named is freed, a run of claimed pages is punched
 * in one go, and then each entry becomes STORED or EMPTY.  Nothing can fill the page
 * between punch and entry, for only this process fills, and it waits for BUSY.  A page
 * that was EMPTY when it was claimed is a hole for the same reason, and needs no punch:
 * most pages of S never came by content, and the guest stands still meanwhile.
 *
 * Before any entry is touched all slots are claimed in the volume.  One that is taken is
 * named twice: then nothing is installed at all.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "log.h"
#include "mig.h"
#include "region.h"
#include "vm.h"

/* Pages punched at a time. */
#define RUN_MAX 64u

/* How long somebody else may work on a page: microseconds, unless something is wrong. */
#define BUSY_NS (10 * NSEC_PER_SEC)

/* The entry of this host for a location. */
static uint64_t entry_here(const struct mig *m, uint64_t e)
{
    unsigned tier = entry_tier(e) ? atomic_load(&m->tier) : UFFDMM_TIER_ZERO;

    return entry_make(entry_state(e), 0, tier, entry_gen(e), entry_slot(e));
}

/* Claims the slots of a page, all or none. */
static bool claim_slots(struct tier *t, uint64_t slot, unsigned nr)
{
    for (unsigned i = 0; i < nr; i++) {
        if (!t->ops->claim(t, slot + i)) {
            tier_free(t, slot, i);
            return false;
        }
    }
    return true;
}

/* All slots that the staging table names.  0 or a negative errno with @err, and none. */
static int claim_all(const struct mig *m, struct region *r, char *err, size_t err_len)
{
    for (uint64_t pfn = 0; pfn < r->nr_pages; pfn++) {
        uint64_t e = entry_here(m, r->mig.entries[pfn]);
        struct tier *t = vm_tier(r->vm, e);

        if (!entry_slot(e) || claim_slots(t, entry_slot(e), region_units(r))) {
            continue;
        }
        snprintf(err, err_len,
                 "slot %llu of page %llu of region '%s' is another page's as well: the "
                 "locations are damaged",
                 (unsigned long long)entry_slot(e), (unsigned long long)pfn, r->name);
        while (pfn) {
            e = entry_here(m, r->mig.entries[--pfn]);
            if (entry_slot(e)) {
                tier_free(vm_tier(r->vm, e), entry_slot(e), region_units(r));
            }
        }
        return -EINVAL;
    }
    return 0;
}

/*
 * Makes everybody keep off page @pfn; *@claimed is its entry then.  *@hole: nothing can
 * be in memory.
 */
static int claim_page(struct region *r, uint64_t pfn, uint64_t *claimed, bool *hole)
{
    entry_t *p = &r->entries[pfn];
    uint64_t until = 0, e;

    for (;;) {
        e = entry_load(p);
        *claimed =
            entry_make(UFFDMM_PAGE_RESIDENT, UFFDMM_ENTRY_BUSY, 0, entry_gen(e), 0);
        if (!entry_busy(e) && entry_cas(p, e, *claimed)) {
            break;
        }
        if (entry_busy(e)) {
            until = until ? until : clock_ns() + BUSY_NS;
            if (clock_ns() > until || atomic_load(&r->mig.gone)) {
                return -ETIMEDOUT;
            }
            usleep(50);
        }
    }
    *hole = entry_state(e) == UFFDMM_PAGE_EMPTY && !(e & UFFDMM_ENTRY_MAYHOLE);
    if (entry_state(e) == UFFDMM_PAGE_STORED) {
        region_count_stored(r, e, -1);
    }
    region_free_slots(r, pfn, e);
    return 0;
}

/* Pages [@first, @first + @nr) out of memory; 0 or a negative errno. */
static int punch(struct region *r, uint64_t first, uint64_t nr)
{
    return fallocate(r->memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                     (off_t)(first << r->page_shift), (off_t)(nr << r->page_shift)) < 0
               ? -errno
               : 0;
}

static void settle_page(const struct mig *m, struct region *r, uint64_t pfn,
                        uint64_t claimed)
{
    uint64_t to = entry_here(m, r->mig.entries[pfn]);

    __atomic_store_n(&r->records[pfn], r->mig.records[pfn], __ATOMIC_RELEASE);
    region_set_age(r, pfn, r->mig.ages[pfn]);
    if (entry_cas(&r->entries[pfn], claimed, to)) {
        if (entry_state(to) == UFFDMM_PAGE_STORED) {
            region_count_stored(r, to, 1);
        }
        return;
    }
    /* discarded meanwhile: it reads as zero */
    region_free_slots(r, pfn, to);
    region_release_page(r, pfn);
}

/* Installs pages [@first, @first + @nr), all of which are in S. */
static int install_run(const struct mig *m, struct region *r, uint64_t first, unsigned nr)
{
    uint64_t claimed[RUN_MAX];
    unsigned n = 0, from = nr, to = 0; /* of the run, what may be in memory */
    bool hole;
    int ret = 0;

    while (!ret && n < nr) {
        ret = claim_page(r, first + n, &claimed[n], &hole);
        if (!ret && !hole) {
            from = from < n ? from : n;
            to = n + 1;
        }
        n += ret == 0;
    }
    if (!ret && from < to) {
        ret = punch(r, first + from, to - from);
    }
    for (unsigned i = 0; i < n; i++) {
        if (ret) {
            region_release_page(r, first + i); /* memory has what it had */
        } else {
            settle_page(m, r, first + i, claimed[i]);
        }
    }
    return ret;
}

int mig_install_region(struct mig *m, struct region *r, char *err, size_t err_len)
{
    uint64_t began = clock_ns();
    int ret = r->mig.entries ? claim_all(m, r, err, err_len) : 0;

    if (ret) {
        return ret;
    }
    r->header->session = m->session;
    __atomic_store_n(&r->header->region_state, UFFDMM_REGION_INSTALLING,
                     __ATOMIC_RELEASE);
    for (uint64_t pfn = 0; r->mig.entries && !ret && pfn < r->nr_pages;) {
        unsigned n = 0;

        while (pfn + n < r->nr_pages && n < RUN_MAX && r->mig.entries[pfn + n]) {
            n++;
        }
        if (n) {
            ret = install_run(m, r, pfn, n);
        }
        pfn += n ? n : 1;
    }
    if (ret) {
        snprintf(err, err_len, "region '%s': locations cannot be put in place: %s",
                 r->name, strerror(-ret));
        return ret;
    }
    __atomic_store_n(&r->header->region_state, UFFDMM_REGION_LIVE, __ATOMIC_RELEASE);
    r->header->session = 0;
    log_info("region %s: %llu pages have come by location, put in place in %llu ms",
             r->name, (unsigned long long)r->mig.count,
             (unsigned long long)((clock_ns() - began) / NSEC_PER_MSEC));
    return 0;
}
