/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Migration of guest memory that belongs to an external manager
 *
 * Theory of operation
 *
 * The thread that migrates must not touch a page that is swapped out: the
 * manager would bring it in, and put another one out for it.  So for each page
 * whose dirty bits it has just cleared it looks at the page-state table:
 *
 *   stored where the destination can read it   its location goes over
 *   stored elsewhere                           the manager reads it for us
 *   a hole                                     it is zero
 *   on its way in or out                       waited for, but not for long
 *   anything else                              pinned, and read in place
 *
 * An entry that says "stored" or "hole" was set while the guest could not
 * write to the page.  A write that comes after the look sets the dirty bits
 * again, and the page is looked at again.
 *
 * The set S has one element a page, in memory shared with the manager.  The
 * element is written, then the entry is read a second time.  The manager does
 * it the other way round: it changes the entry, then looks at the element, and
 * frees the slot only if nothing names it.  With a full barrier on either side
 * one of the two sees the other.
 *
 * Count and digest of S are kept while it changes, so that they are there at
 * once when the guest has stopped.
 *
 * All of it belongs to the thread that migrates.  The table and the memory of
 * the manager are input: an index is never taken from them.
 */

#include "qemu/osdep.h"
#include "exec/ramblock.h"
#include "qapi/error.h"
#include "qemu/atomic.h"
#include "qemu/lockable.h"
#include "qemu/units.h"
#include "system/hostmem-external-migration.h"
#include "hostmem-external-service.h"
#include "trace.h"
#include <sys/mman.h>

/* How long a manager may take to begin or end a session, or to read pages */
#define SESSION_TIMEOUT_MS 10000
#define READ_TIMEOUT_MS    20000
/* A longer time-out of the manager's own comes first. */
#define INSTALL_MARGIN_MS  2000
/* How often a thread that waits looks whether the migration was cancelled */
#define CANCEL_POLL_MS     100
/* Pause before a page is looked at again that could not be read */
#define RETRY_US           1000
/*
 * How long a page may be on its way in or out before it is read all the same,
 * how often to look, and for how long nothing is waited for after that
 */
#define WAY_MS             200
#define WAY_LOOK_US        200
#define WAY_PAUSE_MS       5000

#define ENTRY_FLAGS (UFFDMM_ENTRY_BUSY | UFFDMM_ENTRY_MAYHOLE | \
                     UFFDMM_ENTRY_WRITING | UFFDMM_ENTRY_INSTALL)

struct ExternalMigration {
    uint64_t session; /* 0: all goes by content */
    uint32_t tier;    /* whose pages go by location, besides the zero tier */

    struct uffdmm_set_header *set; /* mapped; NULL without a session */
    uint64_t set_size;
    struct uffdmm_set_page *elements; /* inside of set */
    uint64_t count;
    uint64_t digest;
    uint64_t changes;

    uint8_t *bounce; /* mapped, written by the manager */
    uint64_t bounce_size;

    /* what is in bounce */
    uint64_t first;
    uint64_t valid; /* bit i: page first + i, read from entries[i] */
    uint64_t entries[UFFDMM_MIG_READ_MAX];

    uint64_t *pattern; /* a page, for the words of the zero tier */

    int64_t wait_again; /* no page is waited for on its way before this time */
};

/* ------------------------------------------------------------------------ */
/* The session                                                               */

/* Wait for a call and take its result; the call is released. */
static bool external_call_finish_within(ExternalCall *call, int timeout_ms,
                                        void *reply, uint32_t length,
                                        int *fds, uint32_t max_fds,
                                        uint32_t *nr_fds, const char *what,
                                        ExternalLink *link, Error **errp)
{
    bool ok = false;

    if (!external_call_wait(call, timeout_ms)) {
        error_setg(errp, "memory-backend-external '%s': the memory manager "
                   "did not %s in time", link->id, what);
    } else {
        ok = external_call_result(call, reply, length, fds, max_fds, nr_fds,
                                  errp);
    }
    external_call_unref(call);
    return ok;
}

/* Map a memfd of the manager that cannot shrink under our feet. */
static void *external_migration_map(int fd, uint64_t size, const char *what,
                                    Error **errp)
{
    struct stat st;
    int seals = fcntl(fd, F_GET_SEALS);
    void *p;

    if (seals < 0 || !(seals & F_SEAL_SHRINK) || fstat(fd, &st) < 0 ||
        st.st_size < 0 || st.st_size < size) {
        error_setg(errp, "the %s of the memory manager is not a memfd of %"
                   PRIu64 " bytes that is sealed against shrinking", what,
                   size);
        return NULL;
    }
    p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) {
        error_setg_errno(errp, errno, "cannot map the %s of the memory "
                         "manager", what);
        return NULL;
    }
    madvise(p, size, MADV_DONTFORK);
    return p;
}

static bool external_migration_map_set(ExternalMigration *m,
                                       const ExternalRegion *region, int fd,
                                       Error **errp)
{
    const uint64_t nr_pages = region->size / region->page_size;
    const uint64_t offset = 4 * KiB;

    if (m->set_size < offset ||
        (m->set_size - offset) / sizeof(*m->elements) < nr_pages) {
        error_setg(errp, "the set of the memory manager has %" PRIu64
                   " bytes, too few for %" PRIu64 " pages", m->set_size,
                   nr_pages);
        return false;
    }
    m->set = external_migration_map(fd, m->set_size, "set", errp);
    if (!m->set) {
        return false;
    }
    m->elements = (void *)((uint8_t *)m->set + offset);
    *m->set = (struct uffdmm_set_header) {
        .magic = UFFDMM_SET_MAGIC,
        .version = UFFDMM_SET_VERSION,
        .session = m->session,
        .nr_pages = nr_pages,
        .pages_offset = offset,
    };
    return true;
}

static void external_migration_free(ExternalMigration *m)
{
    if (m->set) {
        munmap(m->set, m->set_size);
    }
    if (m->bounce) {
        munmap(m->bounce, m->bounce_size);
    }
    g_free(m->pattern);
    g_free(m);
}

bool hostmem_external_migration_start(RAMBlock *rb, bool by_location,
                                      uint64_t *session, Error **errp)
{
    ExternalLink *link = rb->external;
    const ExternalRegion *region = &link->region;
    struct uffdmm_mig_start start = {
        .region_id = region->id,
        .tid = qemu_get_thread_id(),
        .flags = by_location ? 0 : UFFDMM_MIG_BY_CONTENT,
    };
    struct uffdmm_mig_start_reply reply;
    ExternalMigration *m;
    uint32_t nr_fds = 0;
    int fds[2] = { -1, -1 };
    bool ok;

    hostmem_external_migration_end(rb, true);
    if (!external_call_finish_within(
            external_call_new(link, UFFDMM_MSG_MIG_START, &start,
                              sizeof(start)),
            SESSION_TIMEOUT_MS, &reply, sizeof(reply), fds, 2, &nr_fds,
            "begin a migration", link, errp)) {
        return false;
    }

    m = g_new0(ExternalMigration, 1);
    m->bounce_size = reply.bounce_size;
    m->pattern = g_malloc(region->page_size);
    if (nr_fds != (reply.session ? 2 : 1)) {
        error_setg(errp, "the memory manager began a migration with %" PRIu32
                   " descriptors", nr_fds);
        ok = false;
    } else if (m->bounce_size < region->page_size) {
        error_setg(errp, "the bounce buffer of the memory manager has %"
                   PRIu64 " bytes, less than a page", m->bounce_size);
        ok = false;
    } else {
        m->bounce = external_migration_map(fds[nr_fds - 1], m->bounce_size,
                                           "bounce buffer", errp);
        ok = m->bounce != NULL;
    }
    if (ok && by_location && reply.session) {
        m->session = reply.session;
        m->set_size = reply.set_size;
        m->tier = reply.tier & UFFDMM_ENTRY_TIER_MASK;
        ok = external_migration_map_set(m, region, fds[0], errp);
    }
    for (uint32_t i = 0; i < nr_fds; i++) {
        close(fds[i]);
    }
    if (!ok) {
        external_migration_free(m);
        return false;
    }
    link->migration = m;
    *session = m->session;
    trace_external_migration_start(link->id, m->session, m->tier,
                                   m->bounce_size);
    return true;
}

static ExternalCall *external_migration_end_call(ExternalLink *link,
                                                 uint32_t outcome)
{
    struct uffdmm_mig_end end = {
        .session = link->migration->session,
        .outcome = outcome,
    };

    trace_external_migration_end(link->id, end.session, outcome);
    return external_call_new(link, UFFDMM_MSG_MIG_END, &end, sizeof(end));
}

bool hostmem_external_migration_sent(RAMBlock *rb, Error **errp)
{
    ExternalLink *link = rb->external;

    return external_call_finish_within(
        external_migration_end_call(link, UFFDMM_MIG_SENT),
        SESSION_TIMEOUT_MS, NULL, 0, NULL, 0, NULL, "end the migration", link,
        errp);
}

void hostmem_external_migration_end(RAMBlock *rb, bool failed)
{
    ExternalLink *link = rb->external;
    ExternalMigration *m = link->migration;

    if (!m) {
        return;
    }
    if (failed || !m->session) {
        /*
         * Without locations nothing need be kept, whatever became of it.  A
         * manager that is gone has forgotten the session anyway.
         */
        external_call_unref(external_migration_end_call(link,
                                                        UFFDMM_MIG_FAILED));
    }
    link->migration = NULL;
    external_migration_free(m);
}

const char *hostmem_external_region_name(RAMBlock *rb)
{
    return rb->external->id;
}

void hostmem_external_migration_locations(RAMBlock *rb,
                                          ExternalLocations *locations)
{
    const ExternalMigration *m = rb->external->migration;

    *locations = (ExternalLocations) { .name = rb->external->id };
    if (m && m->set) {
        locations->count = m->count;
        locations->digest = m->digest;
        locations->changes = m->changes;
        locations->acked = MIN(qatomic_read(&m->set->acked), m->changes);
    }
}

/* ------------------------------------------------------------------------ */
/* The set S                                                                 */

static uint64_t digest_mix(uint64_t x)
{
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9ULL;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebULL;
    return x ^ x >> 31;
}

static unsigned entry_state(uint64_t entry)
{
    return entry & UFFDMM_ENTRY_STATE_MASK;
}

static unsigned entry_tier(uint64_t entry)
{
    return entry >> UFFDMM_ENTRY_TIER_SHIFT & UFFDMM_ENTRY_TIER_MASK;
}

static uint64_t digest_of(uint64_t pfn, uint64_t entry, uint64_t record)
{
    uint64_t v = entry >> UFFDMM_ENTRY_GEN_SHIFT;

    if (entry_state(entry) == UFFDMM_PAGE_EMPTY) {
        v = UINT64_MAX;
    } else if (!entry_tier(entry)) {
        v = 0;
    }
    return digest_mix(digest_mix(digest_mix(pfn + 1) ^ v) ^ record);
}

/* Replace an element, from one that is in S, or to one, or both. */
static void external_set_write(ExternalMigration *m, uint64_t pfn,
                               uint64_t entry, uint64_t record)
{
    struct uffdmm_set_page *e = &m->elements[pfn];

    if (e->entry) {
        m->count--;
        m->digest -= digest_of(pfn, e->entry, e->record);
        qatomic_set(&e->entry, 0);
        /* the entry goes before its record, for the manager and the others */
        smp_wmb();
    }
    if (entry) {
        m->count++;
        m->digest += digest_of(pfn, entry, record);
        qatomic_set(&e->record, record);
        /* and comes after it, so that nobody finds a mixture of two elements */
        smp_wmb();
        qatomic_set(&e->entry, entry);
    }
    /* who has read this number finds the element as it is now, or newer */
    qatomic_store_release(&m->set->changes, ++m->changes);
}

/* Take a page out of S.  Returns true if it was in. */
static bool external_set_remove(ExternalMigration *m, uint64_t pfn)
{
    if (!m->set || !m->elements[pfn].entry) {
        return false;
    }
    external_set_write(m, pfn, 0, 0);
    return true;
}

/*
 * Put a page into S as it was when @entry and @record were read.  Returns
 * false if it is something else already.
 */
static bool external_set_add(ExternalMigration *m,
                             const ExternalRegion *region, uint64_t pfn,
                             uint64_t entry, uint64_t record)
{
    const struct uffdmm_set_page *e = &m->elements[pfn];
    const uint64_t named = entry & ~(uint64_t)ENTRY_FLAGS;

    if (e->entry != named || e->record != record) {
        external_set_write(m, pfn, named, record);
    }
    /* see the head: element first, then the entry; the manager reversed */
    smp_mb();
    return qatomic_read(&region->entries[pfn]) == entry;
}

/* ------------------------------------------------------------------------ */
/* Pages that the manager reads                                              */

static bool same_content(uint64_t a, uint64_t b)
{
    return !((a ^ b) & ~(uint64_t)ENTRY_FLAGS);
}

/* The page in the bounce buffer, if it was read from what @entry says */
static const uint8_t *external_bounce_find(const ExternalMigration *m,
                                           const ExternalRegion *region,
                                           uint64_t pfn, uint64_t entry)
{
    uint64_t i = pfn - m->first;

    if (pfn < m->first || i >= UFFDMM_MIG_READ_MAX || !(m->valid >> i & 1) ||
        !same_content(m->entries[i], entry)) {
        return NULL;
    }
    return m->bounce + i * region->page_size;
}

/* Would this page be read by the manager, if it was asked for now? */
static bool external_page_is_read(const ExternalMigration *m, uint64_t entry)
{
    return entry_state(entry) == UFFDMM_PAGE_STORED && entry_tier(entry) &&
           (!m->set || entry_tier(entry) != m->tier);
}

/* Fill the bounce buffer with a page and those that will be next. */
static bool external_bounce_fill(ExternalLink *link, uint64_t pfn,
                                 unsigned wanted, int64_t deadline,
                                 bool (*cancelled)(void), Error **errp)
{
    const ExternalRegion *region = &link->region;
    ExternalMigration *m = link->migration;
    uint64_t most = MIN(m->bounce_size / region->page_size,
                        region->size / region->page_size - pfn);
    struct uffdmm_mig_read request = {
        .region_id = region->id,
        .nr = 1,
        .first = pfn,
    };
    struct uffdmm_mig_read_reply reply;
    ExternalCall *call;
    bool ok;

    most = MIN(MIN(most, wanted), UFFDMM_MIG_READ_MAX);
    while (request.nr < most &&
           external_page_is_read(m, qatomic_read(&region->entries[pfn +
                                                            request.nr]))) {
        request.nr++;
    }
    m->valid = 0;
    call = external_call_new(link, UFFDMM_MSG_MIG_READ, &request,
                             sizeof(request));
    while (!external_call_wait(call, CANCEL_POLL_MS)) {
        if (cancelled() || g_get_monotonic_time() >= deadline) {
            /*
             * The manager may still write to the bounce buffer: nothing can
             * be read any more in this session.
             */
            error_setg(errp, "memory-backend-external '%s': page %" PRIu64
                       " is in a store that does not answer", link->id, pfn);
            external_call_unref(call);
            return false;
        }
    }
    ok = external_call_result(call, &reply, sizeof(reply), NULL, 0, NULL,
                              errp);
    external_call_unref(call);
    if (!ok) {
        return false;
    }
    m->first = pfn;
    m->valid = reply.valid & MAKE_64BIT_MASK(0, request.nr);
    memcpy(m->entries, reply.entries, sizeof(m->entries));
    trace_external_migration_read(link->id, pfn, request.nr, m->valid);
    return true;
}

/* ------------------------------------------------------------------------ */
/* The decision                                                              */

/* A word repeated over a page */
static void external_page_fill(ExternalMigration *m,
                               const ExternalRegion *region, uint64_t word,
                               ExternalPage *page)
{
    if (!word) {
        page->kind = EXTERNAL_PAGE_ZERO;
        return;
    }
    for (uint64_t i = 0; i < region->page_size / sizeof(word); i++) {
        m->pattern[i] = word;
    }
    page->kind = EXTERNAL_PAGE_COPY;
    page->copy = (const uint8_t *)m->pattern;
}

/* A hole that will not be filled with anything but zeros */
static bool entry_is_hole(uint64_t entry)
{
    return entry_state(entry) == UFFDMM_PAGE_EMPTY && !(entry & ENTRY_FLAGS);
}

/*
 * Is the page on its way in or out?  One that was on its way out when it was
 * pinned may be past the point where a pin keeps it, and goes over by its
 * location if it is given the time.  One on its way in is waited for here, or
 * else in a fault.
 */
static bool entry_on_its_way(uint64_t entry)
{
    return entry_state(entry) == UFFDMM_PAGE_EVICTING ||
           entry_state(entry) == UFFDMM_PAGE_FILLING;
}

/* Wait a little for such a page.  Returns false if that has taken too long. */
static bool external_page_wait(ExternalMigration *m, int64_t begun)
{
    int64_t now = g_get_monotonic_time();

    if (now < m->wait_again) {
        return false;
    }
    if (now >= begun + WAY_MS * INT64_C(1000)) {
        /* a store that has come to a halt: let the others not wait, too */
        m->wait_again = now + WAY_PAUSE_MS * INT64_C(1000);
        return false;
    }
    g_usleep(WAY_LOOK_US);
    return true;
}

bool hostmem_external_migration_page(RAMBlock *rb, ram_addr_t offset,
                                     unsigned wanted,
                                     bool (*cancelled)(void),
                                     ExternalPage *page, Error **errp)
{
    ExternalLink *link = rb->external;
    ExternalRegion *region = &link->region;
    ExternalMigration *m = link->migration;
    const uint64_t pfn = offset / region->page_size;
    const int64_t begun = g_get_monotonic_time();
    const int64_t deadline = begun + READ_TIMEOUT_MS * INT64_C(1000);
    uint64_t entry, record;

    assert(pfn < region->size / region->page_size);
    *page = (ExternalPage) { .kind = EXTERNAL_PAGE_PINNED };

    for (;; page->was_located |= external_set_remove(m, pfn)) {
        bool hole, stored, in_zero_tier;

        entry = qatomic_read(&region->entries[pfn]);
        /* the record of this entry, or a later one */
        smp_rmb();
        record = qatomic_read(&region->records[pfn]);
        /* an entry that is the same afterwards had this record */
        smp_rmb();
        if (qatomic_read(&region->entries[pfn]) != entry) {
            continue;
        }
        hole = entry_is_hole(entry);
        stored = entry_state(entry) == UFFDMM_PAGE_STORED;
        in_zero_tier = stored && !entry_tier(entry);

        if (m->set &&
            (hole || (stored && !(entry & ENTRY_FLAGS) &&
                      (in_zero_tier || entry_tier(entry) == m->tier)))) {
            if (external_set_add(m, region, pfn, entry, hole ? 0 : record)) {
                page->kind = EXTERNAL_PAGE_LOCATED;
                return true;
            }
            continue;
        }

        page->was_located |= external_set_remove(m, pfn);
        if (hole || in_zero_tier) {
            external_page_fill(m, region, hole ? 0 : record, page);
            return true;
        }
        if (stored) {
            page->kind = EXTERNAL_PAGE_COPY;
            page->copy = external_bounce_find(m, region, pfn, entry);
            if (page->copy) {
                return true;
            }
            if (!external_bounce_fill(link, pfn, wanted, deadline, cancelled,
                                      errp)) {
                return false;
            }
            entry = qatomic_read(&region->entries[pfn]);
            page->copy = external_bounce_find(m, region, pfn, entry);
            if (page->copy) {
                return true;
            }
            if (cancelled() || g_get_monotonic_time() >= deadline) {
                error_setg(errp, "memory-backend-external '%s': page %" PRIu64
                           " cannot be read from its store: see the memory "
                           "manager's log", link->id, pfn);
                return false;
            }
            g_usleep(RETRY_US);
            continue;
        }
        if (entry_state(entry) == UFFDMM_PAGE_LOST) {
            error_setg(errp, "memory-backend-external '%s': the content of "
                       "page %" PRIu64 " is lost, the guest cannot be "
                       "migrated", link->id, pfn);
            return false;
        }

        page->kind = EXTERNAL_PAGE_PINNED;
        external_region_pin(region, pfn * region->page_size, region->page_size);
        entry = qatomic_read(&region->entries[pfn]);
        if (entry_state(entry) != UFFDMM_PAGE_STORED &&
            (!entry_on_its_way(entry) || !external_page_wait(m, begun))) {
            return true;
        }
        external_region_unpin(region, pfn * region->page_size,
                              region->page_size);
    }
}

void hostmem_external_migration_unpin(RAMBlock *rb, ram_addr_t offset)
{
    ExternalRegion *region = &rb->external->region;

    external_region_unpin(region, offset, region->page_size);
}

/* ------------------------------------------------------------------------ */
/* The destination                                                           */

struct ExternalInstall {
    ExternalLink *link;
    ExternalCall *call;
    int64_t deadline;
};

ExternalInstall *
hostmem_external_install_begin(RAMBlock *rb, uint64_t session,
                               const ExternalLocations *locations,
                               uint32_t timeout_ms)
{
    struct uffdmm_mig_install request = {
        .session = session,
        .region_id = rb->external->region.id,
        .timeout_ms = timeout_ms,
        .count = locations->count,
        .digest = locations->digest,
    };
    ExternalInstall *install = g_new(ExternalInstall, 1);

    trace_external_migration_install(rb->external->id, session,
                                     locations->count, locations->digest);
    *install = (ExternalInstall) {
        .link = rb->external,
        .call = external_call_new(rb->external, UFFDMM_MSG_MIG_INSTALL,
                                  &request, sizeof(request)),
        .deadline = g_get_monotonic_time() +
                    (timeout_ms + INSTALL_MARGIN_MS) * INT64_C(1000),
    };
    return install;
}

bool hostmem_external_install_done(ExternalInstall *install)
{
    return external_call_wait(install->call, 0) ||
           g_get_monotonic_time() >= install->deadline;
}

bool hostmem_external_install_end(ExternalInstall *install, Error **errp)
{
    bool ok = external_call_finish_within(install->call, 0, NULL, 0, NULL, 0,
                                          NULL, "install the locations of "
                                          "pages", install->link,
                                          errp);

    g_free(install);
    return ok;
}
