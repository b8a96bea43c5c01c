/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Demotion: stored pages go to a later tier.
 *
 * Theory of operation.  Two things make a page go down: its tier is nearly full
 * (the pages stored longest ago make room for fresh ones, which are more likely
 * wanted again), or it has lain unused for longer than policy says.  The page
 * stays STORED all the time and can be faulted in from where it is while its copy is
 * being written:
 *
 *   1. read    its bytes from the old slot into a buffer.  A tier in memory could
 *              free and reuse the object meanwhile, so the entry is BUSY for that moment
 *   2. check   them against the record: what does not match is left where it is
 *   3. write   them to a slot of a later tier
 *   4. swap    the entry, if it is still the same word, to the new tier and slot.
 *              The generation stays, and so does the checksum.  Then the old slot is
 *              freed; or the new one, when somebody used or discarded the page
 *
 * No lock is held during I/O, so that a slow store holds up nobody but this
 * thread.  A region can go away meanwhile: it is known by its serial number.
 */
#include "demote.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "clock.h"
#include "copies.h"
#include "hierarchy.h"
#include "log.h"
#include "pool.h"
#include "region.h"
#include "test_hooks.h"
#include "thread.h"
#include "vm.h"

#define DEMOTE_PAGES 128u

/* A tier in memory is emptied from here on, down to there: shares of its room. */
#define FULL_PERCENT 92
#define EMPTIED_PERCENT 88

/* How often to look, and how long to poll for a transfer before sleeping. */
#define LOOK_MS 100
#define SPIN_NS (20 * NSEC_PER_USEC)

/* Steps that the age of a stored page takes to the time at which it goes down. */
#define AGE_STEPS 8

/* Objects moved at a time by compaction. */
#define COMPACT_OBJECTS 256

/* A page on its way down. */
struct move {
    struct region *region; /* valid under regions_lock, while the serial matches */
    uint64_t serial;
    uint32_t region_id;
    uint64_t pfn;
    uint64_t entry;
    uint64_t record;
    bool ready; /* read and checked */
    struct tier *to;
    uint64_t slot;
};

struct demoter {
    struct vm *vm;
    struct tier_queue queue;
    char *buffer; /* DEMOTE_PAGES pages */
    unsigned nr;
    struct move moves[DEMOTE_PAGES];
    struct move *chosen[DEMOTE_PAGES];
    struct pool_object objects[DEMOTE_PAGES];
    struct tier_put puts[DEMOTE_PAGES];
    struct tier_io ios[DEMOTE_PAGES];
    struct iovec iovs[DEMOTE_PAGES];
    uint64_t next_step_ns; /* when stored pages next age by a step */
    uint64_t hand;         /* of copies_reclaim() */
};

static void *page_of(struct demoter *d, unsigned i)
{
    return d->buffer + (size_t)i * PAGE_SIZE_4K;
}

/* True when a later tier may take pages of @t. */
static bool has_later(const struct vm *vm, const struct tier *t)
{
    for (unsigned i = t->index + 1; i < UFFDMM_TIERS_MAX; i++) {
        if (vm->tiers[i] && stats_get(&vm->tiers[i]->stats->state) != UFFDMM_TIER_AWAY) {
            return true;
        }
    }
    return false;
}

/* Adds a page to the batch if it is STORED in @t.  Called under regions_lock. */
static void add(struct demoter *d, struct tier *t, struct region *r, uint64_t pfn)
{
    uint64_t e = entry_load(&r->entries[pfn]);
    struct move *m = &d->moves[d->nr];

    if (region_is_huge(r) || entry_state(e) != UFFDMM_PAGE_STORED || entry_busy(e) ||
        entry_tier(e) != t->index || !t->ops->valid(t, entry_slot(e))) {
        return;
    }
    *m = (struct move){
        .region = r, .serial = r->serial, .region_id = r->id, .pfn = pfn, .entry = e};
    d->nr++;
}

/* ---- the steps ----------------------------------------------------------- */

/* Step 1 for a tier in memory: under regions_lock, page by page. */
static void read_memory(struct demoter *d, struct tier *t)
{
    for (unsigned i = 0; i < d->nr; i++) {
        struct move *m = &d->moves[i];
        entry_t *p = &m->region->entries[m->pfn];
        struct iovec iov = {.iov_base = page_of(d, i), .iov_len = PAGE_SIZE_4K};
        struct tier_io io = {.tier = t,
                             .slot = entry_slot(m->entry),
                             .region_id = m->region_id,
                             .pfn = m->pfn,
                             .iov = &iov,
                             .nr_iov = 1,
                             .length = PAGE_SIZE_4K};

        if (!entry_cas(p, m->entry, m->entry | UFFDMM_ENTRY_BUSY)) {
            continue;
        }
        m->ready = tier_run(&d->queue, &io, 1, SPIN_NS) == 0;
        entry_clear_busy(p);
        region_reap_discard(m->region, m->pfn);
    }
}

/* Step 1 for other tiers: all reads at once, without a lock. */
static void read_slots(struct demoter *d, struct tier *t)
{
    for (unsigned i = 0; i < d->nr; i++) {
        d->iovs[i] = (struct iovec){.iov_base = page_of(d, i), .iov_len = PAGE_SIZE_4K};
        d->ios[i] = (struct tier_io){.tier = t,
                                     .slot = entry_slot(d->moves[i].entry),
                                     .region_id = d->moves[i].region_id,
                                     .pfn = d->moves[i].pfn,
                                     .iov = &d->iovs[i],
                                     .nr_iov = 1,
                                     .length = PAGE_SIZE_4K};
    }
    tier_run(&d->queue, d->ios, (int)d->nr, SPIN_NS);
    for (unsigned i = 0; i < d->nr; i++) {
        d->moves[i].ready = d->ios[i].result == 0;
    }
}

/* The region of @m, or NULL when it has gone.  Under regions_lock. */
static struct region *alive(struct vm *vm, const struct move *m)
{
    struct region *r = vm->regions[m->region_id];

    return r == m->region && r && r->serial == m->serial ? r : NULL;
}

/* Step 2, under regions_lock.  Bytes read from a slot that was reused do not match either. */
static void check(struct demoter *d)
{
    for (unsigned i = 0; i < d->nr; i++) {
        struct move *m = &d->moves[i];
        struct region *r = alive(d->vm, m);

        m->record = r ? region_record(r, m->pfn) : 0;
        m->ready =
            m->ready && r &&
            page_checksum(r, page_of(d, i), m->pfn, entry_gen(m->entry)) == m->record;
    }
}

/* A write that failed: its slots are free again, its pages stay where they are. */
static void write_failed(struct tier *t, const struct tier_io *io)
{
    struct tier_put *puts = io->owner;

    tier_avoid(t, NSEC_PER_SEC);
    tier_error(
        t,
        "cannot write %llu bytes from slot %llu on: %s; the pages stay in the tier "
        "above",
        (unsigned long long)io->length, (unsigned long long)io->slot,
        strerror(-io->result));
    for (uint64_t i = 0; i < io->length / PAGE_SIZE_4K; i++) {
        t->ops->free(t, puts[i].slot);
        puts[i].result = io->result;
    }
}

/* Writes the @nr puts to @t, all at once; what fails gets a result. */
static void write_slots(struct demoter *d, struct tier *t, unsigned nr)
{
    unsigned nr_ios = 0, nr_iovs = 0;

    for (unsigned i = 0, k; i < nr; i = k) {
        struct tier_io *io = &d->ios[nr_ios];

        k = i + 1;
        if (!d->puts[i].result) {
            k = tier_build_write(io, t, d->puts, nr, i, &d->iovs[nr_iovs]);
            io->owner = &d->puts[i];
            nr_iovs += (unsigned)io->nr_iov;
            nr_ios++;
        }
    }
    tier_run(&d->queue, d->ios, (int)nr_ios, SPIN_NS);
    for (unsigned i = 0; i < nr_ios; i++) {
        if (d->ios[i].result) {
            write_failed(t, &d->ios[i]);
        }
    }
}

/* Step 3: offers the pages to the tiers behind @from, one after the other. */
static void write_later(struct demoter *d, const struct tier *from)
{
    for (unsigned n = from->index + 1; n < UFFDMM_TIERS_MAX; n++) {
        struct tier *t = d->vm->tiers[n];
        unsigned nr = 0;

        if (!t) {
            continue;
        }
        for (unsigned i = 0; i < d->nr; i++) {
            struct move *m = &d->moves[i];

            if (m->ready && !m->to) {
                d->chosen[nr] = m;
                d->puts[nr++] = (struct tier_put){
                    .data = page_of(d, i), .region_id = m->region_id, .pfn = m->pfn};
            }
        }
        if (!nr) {
            return;
        }
        tier_put(t, tier_queue_scratch(&d->queue, t), d->puts, nr);
        if (!t->put_stores) {
            write_slots(d, t, nr);
        }
        for (unsigned i = 0; i < nr; i++) {
            if (!d->puts[i].result) {
                d->chosen[i]->to = t;
                d->chosen[i]->slot = d->puts[i].slot;
            }
        }
    }
}

/* The entry of a page that nobody used or discarded meanwhile becomes @to; else false. */
static bool swap_entry(struct region *r, const struct move *m, uint64_t to)
{
    if (test_hook("UFFDMM_TEST_DEMOTE_BLIND")) {
        atomic_store(&r->entries[m->pfn], to);
        return true;
    }
    /* generations come round again: the record must be the same too */
    return region_record(r, m->pfn) == m->record &&
           entry_cas(&r->entries[m->pfn], m->entry, to);
}

/* Step 4, under regions_lock.  Returns how many pages have moved. */
static unsigned swap_entries(struct demoter *d)
{
    struct vm *vm = d->vm;
    unsigned moved = 0;

    for (unsigned i = 0; i < d->nr; i++) {
        struct move *m = &d->moves[i];
        struct region *r = alive(vm, m);
        uint64_t to;

        if (!m->to) {
            continue;
        }
        to =
            entry_make(UFFDMM_PAGE_STORED, 0, m->to->index, entry_gen(m->entry), m->slot);
        if (r && swap_entry(r, m, to)) {
            region_count_stored(r, m->entry, -1);
            region_count_stored(r, to, 1);
            region_free_slots(r, m->pfn, m->entry);
            region_set_age(r, m->pfn, 0);
            moved++;
        } else {
            m->to->ops->free(m->to, m->slot);
            stats_add(&vm->stats->demote_cancelled, 1);
        }
    }
    stats_add(&vm->stats->demoted, moved);
    return moved;
}

/* Moves the pages of the batch, which were added under regions_lock that is still held. */
static unsigned move_batch(struct demoter *d, struct tier *t)
{
    struct vm *vm = d->vm;
    unsigned moved;

    if (t->put_stores) {
        read_memory(d, t);
        check(d);
    }
    pthread_rwlock_unlock(&vm->regions_lock);
    if (!t->put_stores) {
        read_slots(d, t);
        pthread_rwlock_rdlock(&vm->regions_lock);
        check(d);
        pthread_rwlock_unlock(&vm->regions_lock);
    }
    write_later(d, t);
    test_hook_crash("demote-written");
    pthread_rwlock_rdlock(&vm->regions_lock);
    moved = swap_entries(d);
    test_hook_crash("demote-swapped");
    pthread_rwlock_unlock(&vm->regions_lock);
    return moved;
}

/* ---- which pages --------------------------------------------------------- */

/* Ages the pages stored in @t by a step, and moves those that are old enough. */
static void sweep(struct demoter *d, struct tier *t)
{
    struct vm *vm = d->vm;

    for (unsigned k = 0; k < UFFDMM_REGIONS_MAX; k++) {
        uint64_t pfn = 0;
        bool more = true;

        while (more && !atomic_load(&vm->stop)) {
            struct region *r;

            d->nr = 0;
            pthread_rwlock_rdlock(&vm->regions_lock);
            r = vm->regions[k];
            r = r && !region_is_huge(r) ? r : NULL; /* they stay where they are */
            for (; r && pfn < r->nr_pages && d->nr < DEMOTE_PAGES; pfn++) {
                uint64_t e = entry_load(&r->entries[pfn]);
                uint8_t age;

                if (entry_state(e) != UFFDMM_PAGE_STORED || entry_tier(e) != t->index) {
                    continue;
                }
                age = region_age(r, pfn);
                if (age >= AGE_STEPS) {
                    add(d, t, r, pfn);
                } else {
                    region_set_age(r, pfn, (uint8_t)(age + 1));
                }
            }
            more = r && pfn < r->nr_pages;
            move_batch(d, t);
        }
    }
}

/* ---- compaction ---------------------------------------------------------- */

/* The entry of an object's page, if it names the object and nobody works on it. */
static bool claim_object(void *opaque, struct pool_owner owner, uint64_t from)
{
    struct demoter *d = opaque;
    struct region *r =
        owner.region_id < UFFDMM_REGIONS_MAX ? d->vm->regions[owner.region_id] : NULL;
    uint64_t e;
    bool claimed;

    if (!r || region_is_huge(r) || owner.pfn >= r->nr_pages) {
        return false;
    }
    e = entry_load(&r->entries[owner.pfn]);
    if ((entry_state(e) != UFFDMM_PAGE_STORED && entry_state(e) != UFFDMM_PAGE_CLEAN) ||
        entry_busy(e) || entry_slot(e) != from || !vm_tier(d->vm, e) ||
        !vm_tier(d->vm, e)->put_stores) {
        return false;
    }
    claimed = test_hook("UFFDMM_TEST_COMPACT_UNCLAIMED") ||
              entry_cas(&r->entries[owner.pfn], e, e | UFFDMM_ENTRY_BUSY);
    test_hook_delay("UFFDMM_TEST_COMPACT_DELAY_US");
    return claimed;
}

/* The object has moved: whatever the entry became meanwhile, it names the new place. */
static void object_moved(void *opaque, struct pool_owner owner, uint64_t from,
                         uint64_t to)
{
    struct demoter *d = opaque;
    struct region *r = d->vm->regions[owner.region_id];
    entry_t *p = &r->entries[owner.pfn];
    uint64_t e, ne;

    (void)from;
    do {
        e = entry_load(p);
        ne = entry_make(entry_state(e), (unsigned)e & 0xf0 & ~(unsigned)UFFDMM_ENTRY_BUSY,
                        entry_tier(e), entry_gen(e), to);
    } while (!entry_cas(p, e, ne));
    region_reap_discard(r, owner.pfn);
}

static void compact(struct demoter *d, struct tier *t)
{
    struct pool_mover mover = {.claim = claim_object, .moved = object_moved, .opaque = d};

    pthread_rwlock_rdlock(&d->vm->regions_lock);
    t->ops->compact(t, &mover, COMPACT_OBJECTS);
    pthread_rwlock_unlock(&d->vm->regions_lock);
}

/* ---- making room --------------------------------------------------------- */

/* True when the tier uses more than this share of its room, which policy may change any time. */
static bool fuller_than(const struct tier *t, unsigned percent)
{
    uint64_t room = tier_room(t);

    return room != UINT64_MAX && t->ops->used(t) > room / 100 * percent;
}

/* Empties a tier in memory that is nearly full, oldest pages first. */
static void make_room(struct demoter *d, struct tier *t)
{
    struct vm *vm = d->vm;

    if (!fuller_than(t, FULL_PERCENT)) {
        return;
    }
    while (!atomic_load(&vm->stop) && fuller_than(t, EMPTIED_PERCENT)) {
        unsigned n;

        d->nr = 0;
        pthread_rwlock_rdlock(&vm->regions_lock);
        if (copies_reclaim(vm, t, &d->hand)) {
            pthread_rwlock_unlock(&vm->regions_lock);
            continue;
        }
        n = t->ops->oldest(t, UINT64_MAX, d->objects, DEMOTE_PAGES);
        for (unsigned i = 0; i < n; i++) {
            struct region *r = d->objects[i].owner.region_id < UFFDMM_REGIONS_MAX
                                   ? vm->regions[d->objects[i].owner.region_id]
                                   : NULL;

            if (r && d->objects[i].owner.pfn < r->nr_pages) {
                add(d, t, r, d->objects[i].owner.pfn);
            }
        }
        if (!move_batch(d, t)) {
            return; /* in use, or nobody takes them: look again later */
        }
        /* what was moved out must show, or the tier is emptied to the last page */
        compact(d, t);
    }
}

/* ---- the thread ---------------------------------------------------------- */

static void look(struct demoter *d)
{
    struct vm *vm = d->vm;
    uint64_t after = atomic_load(&vm->demote_after_ns), now = clock_ns();
    bool step = after && now >= d->next_step_ns;

    if (step) {
        d->next_step_ns = now + after / AGE_STEPS;
    }
    for (unsigned i = 1; i < UFFDMM_TIERS_MAX && !atomic_load(&vm->stop); i++) {
        struct tier *t = vm->tiers[i];

        if (!t) {
            continue;
        }
        if (t->ops->compact) {
            compact(d, t);
        }
        if (has_later(vm, t)) {
            if (t->ops->oldest && t->ops->compact) {
                make_room(d, t);
            }
            if (step) {
                sweep(d, t);
            }
        }
    }
}

static void demoter_free(struct demoter *d)
{
    tier_queue_deinit(&d->queue);
    munmap(d->buffer, (size_t)DEMOTE_PAGES * PAGE_SIZE_4K);
    free(d);
}

static void *demote_thread(void *opaque)
{
    struct demoter *d = opaque;
    struct pollfd pfd = {.fd = d->vm->demote_fd, .events = POLLIN};

    while (!atomic_load(&d->vm->stop)) {
        if (poll(&pfd, 1, LOOK_MS) == 0) {
            look(d);
        }
    }
    demoter_free(d);
    return NULL;
}

int demote_start(struct vm *vm)
{
    struct demoter *d = calloc(1, sizeof(*d));
    int ret;

    if (!d) {
        return -ENOMEM;
    }
    d->vm = vm;
    d->buffer = mmap(NULL, (size_t)DEMOTE_PAGES * PAGE_SIZE_4K, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (d->buffer == MAP_FAILED) {
        ret = -errno;
        free(d);
        return ret;
    }
    ret = hierarchy_queue(vm, &d->queue);
    if (ret) {
        munmap(d->buffer, (size_t)DEMOTE_PAGES * PAGE_SIZE_4K);
        free(d);
        return ret;
    }
    vm->demote_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    ret = vm->demote_fd < 0 ? -errno : 0;
    if (!ret) {
        ret = thread_start(&vm->demoter, "uffdmm-demote", demote_thread, d);
        if (ret) {
            close(vm->demote_fd);
        }
    }
    if (ret) {
        demoter_free(d);
        return ret;
    }
    vm->demoter_running = true;
    return 0;
}

void demote_stop(struct vm *vm)
{
    uint64_t one = 1;

    if (!vm->demoter_running) {
        return;
    }
    atomic_store(&vm->stop, true);
    if (write(vm->demote_fd, &one, sizeof(one)) < 0) {
        log_warn("cannot wake the demoter: %s", strerror(errno));
    }
    pthread_join(vm->demoter, NULL);
    close(vm->demote_fd);
    vm->demoter_running = false;
}
