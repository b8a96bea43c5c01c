/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * MIG_READ: the content of stored pages for QEMU, past guest memory.
 *
 * Theory of operation.  As for a fault the bytes are those of the page only if the
 * checksum says so, and only if the entry is the same after the read: its slot may have
 * got another page meanwhile.  A tier in memory could even reuse the object during the
 * read, so there the entry is BUSY for that moment.  The bytes are checked where QEMU
 * cannot reach them and copied then.  A page that is not to be had, for whatever
 * reason, is left out: QEMU then brings it in like any page.
 */
#include <string.h>
#include <sys/mman.h>

#include "clock.h"
#include "mig.h"
#include "region.h"
#include "vm.h"

#define SPIN_NS (20 * NSEC_PER_USEC)

struct read {
    struct tier_io ios[UFFDMM_MIG_READ_MAX];
    struct iovec iovs[UFFDMM_MIG_READ_MAX];
    uint64_t entries[UFFDMM_MIG_READ_MAX];
    uint64_t records[UFFDMM_MIG_READ_MAX];
    bool ok[UFFDMM_MIG_READ_MAX];
};

static struct tier_io *slot_io(struct read *rd, unsigned k, struct tier *t,
                               const struct region *r, uint64_t pfn, uint64_t slot,
                               char *buffer, size_t bytes)
{
    rd->iovs[k] = (struct iovec){.iov_base = buffer, .iov_len = bytes};
    rd->ios[k] = (struct tier_io){.tier = t,
                                  .slot = slot,
                                  .region_id = r->id,
                                  .pfn = pfn,
                                  .iov = &rd->iovs[k],
                                  .nr_iov = 1,
                                  .length = bytes};
    return &rd->ios[k];
}

/* From a tier in memory, at once. */
static bool read_memory(struct mig *m, struct read *rd, struct tier *t, struct region *r,
                        uint64_t pfn, uint64_t e, char *buffer)
{
    entry_t *p = &r->entries[pfn];
    struct tier_io *io = slot_io(rd, 0, t, r, pfn, entry_slot(e), buffer, PAGE_SIZE_4K);
    bool ok;

    if (!entry_cas(p, e, e | UFFDMM_ENTRY_BUSY)) {
        return false;
    }
    ok = tier_run(&m->queue, io, 1, SPIN_NS) == 0;
    region_release_page(r, pfn);
    return ok;
}

/* A huge page: as many reads as its tier needs for a run of slots. */
static bool read_huge(struct mig *m, struct read *rd, struct tier *t, struct region *r,
                      uint64_t pfn, uint64_t e)
{
    uint64_t n;

    for (uint64_t done = 0; done < HUGE_PAGE_UNITS; done += n) {
        struct tier_io *io;

        n = t->ops->extent(t, entry_slot(e) + done, HUGE_PAGE_UNITS - done);
        if (!n) {
            return false;
        }
        io = slot_io(rd, 0, t, r, pfn, entry_slot(e) + done,
                     m->buffer + done * PAGE_SIZE_4K, n * PAGE_SIZE_4K);
        if (tier_run(&m->queue, io, 1, SPIN_NS)) {
            return false;
        }
    }
    return true;
}

/* Fills the buffer page by page; rd->ok tells which. */
static void fetch(struct mig *m, struct read *rd, struct region *r, uint64_t first,
                  unsigned nr)
{
    size_t bytes = region_page_bytes(r);
    unsigned nr_ios = 0, of_io[UFFDMM_MIG_READ_MAX];

    for (unsigned i = 0; i < nr; i++) {
        uint64_t e = entry_load(&r->entries[first + i]);
        char *at = m->buffer + i * bytes;
        struct tier *t = vm_tier(r->vm, e);

        rd->ok[i] = false;
        rd->entries[i] = e;
        rd->records[i] = __atomic_load_n(&r->records[first + i], __ATOMIC_ACQUIRE);
        if (entry_state(e) != UFFDMM_PAGE_STORED || entry_busy(e)) {
            continue;
        }
        if (entry_tier(e) == UFFDMM_TIER_ZERO) {
            for (size_t k = 0; k < bytes; k += sizeof(uint64_t)) {
                memcpy(at + k, &rd->records[i], sizeof(uint64_t));
            }
            rd->ok[i] = true;
        } else if (!t || !tier_valid(t, entry_slot(e), region_units(r))) {
            continue;
        } else if (region_is_huge(r)) {
            rd->ok[i] = read_huge(m, rd, t, r, first + i, e);
        } else if (t->put_stores) {
            rd->ok[i] = read_memory(m, rd, t, r, first + i, e, at);
        }
    }
    for (unsigned i = 0; i < nr && !region_is_huge(r); i++) {
        uint64_t e = rd->entries[i];
        struct tier *t = vm_tier(r->vm, e);

        if (entry_state(e) == UFFDMM_PAGE_STORED && !entry_busy(e) && t &&
            !t->put_stores && tier_valid(t, entry_slot(e), 1)) {
            of_io[nr_ios] = i;
            slot_io(rd, nr_ios++, t, r, first + i, entry_slot(e), m->buffer + i * bytes,
                    bytes);
        }
    }
    if (nr_ios) {
        tier_run(&m->queue, rd->ios, (int)nr_ios, SPIN_NS);
    }
    for (unsigned k = 0; k < nr_ios; k++) {
        rd->ok[of_io[k]] = rd->ios[k].result == 0;
    }
}

/* True when the bytes read for a page are those that the page has now. */
static bool sound(const struct read *rd, struct region *r, uint64_t pfn, unsigned i,
                  const char *bytes)
{
    uint64_t e = rd->entries[i], now = entry_load(&r->entries[pfn]);

    /* a fault may just be looking: the page is STORED for it, too */
    if ((now & ~(uint64_t)UFFDMM_ENTRY_BUSY) != e ||
        __atomic_load_n(&r->records[pfn], __ATOMIC_ACQUIRE) != rd->records[i]) {
        return false;
    }
    if (entry_tier(e) == UFFDMM_TIER_ZERO ||
        page_checksum(r, bytes, pfn, entry_gen(e)) == rd->records[i]) {
        return true;
    }
    stats_add(&r->vm->stats->checksum_errors, 1);
    stats_add(&vm_tier(r->vm, e)->stats->checksum_errors, 1);
    return false;
}

void mig_do_read(struct mig *m, struct mig_job *job)
{
    static struct read rd; /* one thread a process; too large for its stack */
    struct region *r = job->region;
    struct uffdmm_mig_read *req = &job->request.read;
    struct uffdmm_mig_read_reply reply = {0};
    size_t bytes = region_page_bytes(r);

    fetch(m, &rd, r, req->first, req->nr);
    for (unsigned i = 0; i < req->nr; i++) {
        const char *at = m->buffer + i * bytes;

        reply.entries[i] = rd.entries[i] & ~0xf0ULL;
        if (rd.ok[i] && sound(&rd, r, req->first + i, i, at)) {
            memcpy(r->mig.bounce + i * bytes, at, bytes);
            reply.valid |= 1ULL << i;
            stats_add(&m->vm->stats->bypass_pages, region_units(r));
        }
    }
    mig_reply(job, &reply, sizeof(reply));
}
