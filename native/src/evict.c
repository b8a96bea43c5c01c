/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The evictor.
 *
 * Theory of operation.  Blocks come out of the queue oldest first; those whose
 * pages were mostly in use at the last scan go back to its young end, a bounded
 * number of times a round.  The pages of up to BATCH_BLOCKS blocks make a batch,
 * and a batch goes through the same steps as a whole:
 *
 *   1. claim     RESIDENT or CLEAN -> EVICTING, page by page
 *   2. protect   UFFDIO_WRITEPROTECT over the block: from here on a write faults,
 *                and whoever serves that fault takes the page back (fault.c).  What a
 *                device has pinned goes back too (pins.h)
 *   3. read      pread() of the memfd, which leaves holes alone
 *   4. classify  a repeated word: needs no slot.  Checksum as when it was read in: its slot
 *                still holds it.  Else dirty: gets a new slot, EVICTING|WRITING
 *   5. write     neighbouring slots for the whole batch, one request
 *   6. publish   EVICTING -> STORED with BUSY, unless the page was taken back
 *   7. punch     the hole; then BUSY is cleared and faults on the page are served
 *
 * The order is the invariant: the bytes are in the store before the table says
 * so, and the table says so before memory forgets them.  A fault that finds BUSY waits
 * for the punch; without that it would see the page still there, lift its
 * protection and have the punch destroy the next write.
 *
 * Sparse blocks cost as much as full ones in ioctls, so holes between the pages
 * of a block are bridged: protected along (no harm) and punched along, locked
 * by BUSY for that moment.  A dense block of which any page is dirty is written as a
 * whole, so that its pages stay neighbours in the volume and come back with
 * one read.
 *
 * A huge page is a block, and a batch, by itself.
 */
#include "evict.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "clock.h"
#include "evict_io.h"
#include "fault.h"
#include "log.h"
#include "mig_room.h"
#include "pins.h"
#include "queue.h"
#include "region.h"
#include "test_hooks.h"
#include "thread.h"
#include "vm.h"

/* A block with fewer evictable pages than this is passed over while its others are in use. */
#define BLOCK_WORTHWHILE 8

/* Tries of a write-protect that the kernel answers with EAGAIN. */
#define PROTECT_TRIES 1000

/* A batch whose writes take longer is laid aside, and looked at so often. */
#define STALL_NS (1 * NSEC_PER_SEC)
#define PARKED_LOOK_MS 20

/* Pause after a round that freed nothing. */
#define IDLE_RETRY_MS 2
#define STORE_RETRY_MS 100

/* Batches in a row that find nothing before an EVICT has got all there is. */
#define BARREN_ROUNDS 16

/* What a round of the evictor spares; it spares less the longer it finds nothing. */
enum spare { SPARE_NONE, SPARE_USED, SPARE_NEW };

static bool young(const struct vm *vm, const struct region *r, uint64_t pfn,
                  enum spare spare)
{
    if (spare == SPARE_NONE ||
        !atomic_load_explicit(&vm->ages_useful, memory_order_relaxed)) {
        return false;
    }
    return region_age(r, pfn) == 0 ||
           (spare == SPARE_NEW && region_age(r, pfn) >= AGE_NEW);
}

/*
 * Adds the pages of block @b that may go to the batch.  Returns how many;
 * *@stay tells whether resident pages are left in it.
 */
static unsigned claim_block(struct batch *bt, struct block *b, enum spare spare,
                            bool *stay)
{
    struct region *r = b->region;
    uint64_t first = (uint64_t)b->index * r->block_pages, pfn;
    uint64_t end =
        first + r->block_pages < r->nr_pages ? first + r->block_pages : r->nr_pages;
    unsigned old_pages = 0, young_pages = 0, n = 0;

    *stay = false;
    for (pfn = first; pfn < end; pfn++) {
        unsigned state = entry_state(entry_load(&r->entries[pfn]));

        if (state == UFFDMM_PAGE_RESIDENT || state == UFFDMM_PAGE_CLEAN) {
            if (young(bt->vm, r, pfn, spare)) {
                young_pages++;
            } else {
                old_pages++;
            }
        }
    }
    if (young_pages > old_pages && old_pages < BLOCK_WORTHWHILE) {
        *stay = true;
        return 0;
    }
    for (pfn = first; pfn < end; pfn++) {
        uint64_t e = entry_load(&r->entries[pfn]);
        unsigned state = entry_state(e);
        struct item *it = &bt->items[bt->nr];

        if (state != UFFDMM_PAGE_RESIDENT && state != UFFDMM_PAGE_CLEAN) {
            *stay |= state == UFFDMM_PAGE_FILLING;
            continue;
        }
        if (entry_busy(e) || young(bt->vm, r, pfn, spare)) {
            *stay = true;
            continue;
        }
        if (page_pinned(r, pfn)) {
            /* it would be protected in vain; what counts is the look after that */
            stats_add(&bt->vm->stats->pinned, region_units(r));
            *stay = true;
            continue;
        }
        it->entry =
            entry_with(e, UFFDMM_PAGE_EVICTING, (unsigned)e & UFFDMM_ENTRY_MAYHOLE);
        if (state == UFFDMM_PAGE_RESIDENT) {
            it->entry =
                entry_make(UFFDMM_PAGE_EVICTING, (unsigned)e & UFFDMM_ENTRY_MAYHOLE, 0,
                           entry_gen(e), 0);
        }
        if (!entry_cas(&r->entries[pfn], e, it->entry)) {
            *stay = true;
            continue;
        }
        it->region = r;
        it->pfn = pfn;
        it->kind = ITEM_CLAIMED;
        it->slot = 0;
        it->has_slot = it->written = false;
        bt->nr++;
        n++;
    }
    return n;
}

/* A page that holds nothing in memory: protecting and reading over it does no harm. */
static bool is_hole(struct region *r, uint64_t pfn)
{
    unsigned state = entry_state(entry_load(&r->entries[pfn]));

    return state == UFFDMM_PAGE_STORED || state == UFFDMM_PAGE_EMPTY;
}

/* End (in items) of the run that begins at item @i: same shard, nothing but holes between. */
static unsigned span_end(const struct batch *bt, unsigned i)
{
    struct region *r = bt->items[i].region;
    const struct shard *sh = page_shard(r, bt->items[i].pfn);

    for (i++; i < bt->nr; i++) {
        const struct item *it = &bt->items[i];
        uint64_t pfn = bt->items[i - 1].pfn + 1;

        if (it->region != r || region_block(r, it->pfn) != region_block(r, pfn - 1) ||
            page_shard(r, it->pfn) != sh) {
            break;
        }
        while (pfn < it->pfn && is_hole(r, pfn)) {
            pfn++;
        }
        if (pfn < it->pfn) {
            break;
        }
    }
    return i;
}

/* Write-protects items [@i, @end) and what lies between; 0 or a negative errno. */
static int protect_span(struct batch *bt, unsigned i, unsigned end)
{
    struct region *r = bt->items[i].region;
    uint64_t first = bt->items[i].pfn;
    size_t len = (size_t)(bt->items[end - 1].pfn + 1 - first) << r->page_shift;
    enum uffd_outcome out = UFFD_DONE;

    test_hook_delay("UFFDMM_TEST_PROTECT_DELAY_US");
#ifdef UFFDMM_TEST_HOOKS
    if (getenv("UFFDMM_TEST_NO_WP")) {
        return 0;
    }
#endif
    for (unsigned n = 0; n < PROTECT_TRIES; n++) {
        out = uffd_wp(page_shard(r, first)->uffd, page_addr(r, first), len, true);
        if (out != UFFD_AGAIN) {
            break;
        }
        usleep(20);
    }
    return out == UFFD_DONE    ? 0
           : out == UFFD_GONE  ? -ESRCH
           : out == UFFD_AGAIN ? -EAGAIN
                               : -errno;
}

/* Reads items [@i, @end) of the memfd into the buffer from @at on; 0 or a negative errno. */
static int read_span(struct batch *bt, unsigned i, unsigned end, char *at)
{
    struct region *r = bt->items[i].region;
    uint64_t first = bt->items[i].pfn;
    size_t len = (size_t)(bt->items[end - 1].pfn + 1 - first) << r->page_shift;
    ssize_t n = pread(r->memfd, at, len, (off_t)(first << r->page_shift));

    if (n != (ssize_t)len) {
        return n < 0 ? -errno : -EIO;
    }
    for (; i < end; i++) {
        bt->items[i].data = at + ((bt->items[i].pfn - first) << r->page_shift);
    }
    return 0;
}

/* Gives back those of the protected items [@i, @end) that a device has pinned. */
static void leave_pinned(struct batch *bt, unsigned i, unsigned end)
{
    pins_barrier();
    for (; i < end; i++) {
        struct item *it = &bt->items[i];

        if (!test_hook("UFFDMM_TEST_PINS_EARLY") && page_pinned(it->region, it->pfn)) {
            batch_give_back(it);
            stats_add(&bt->vm->stats->pinned, region_units(it->region));
        }
    }
}

/* Steps 2 and 3 for the whole batch.  What fails is given back. */
static void protect_and_read(struct batch *bt)
{
    static uint64_t logged;
    char *at = bt->buffer;
    unsigned i, end;
    int ret;

    for (i = 0; i < bt->nr; i = end) {
        end = span_end(bt, i);
        ret = protect_span(bt, i, end);
        if (!ret) {
            leave_pinned(bt, i, end);
            ret = read_span(bt, i, end, at);
        }
        if (ret) {
            if (ret != -ESRCH && log_ratelimit(&logged, NSEC_PER_SEC)) {
                log_warn("region %s: pages from %llu on cannot be evicted now: %s",
                         bt->items[i].region->name, (unsigned long long)bt->items[i].pfn,
                         strerror(-ret));
            }
            for (unsigned k = i; k < end; k++) {
                batch_give_back(&bt->items[k]);
            }
            continue;
        }
        at += (size_t)(bt->items[end - 1].pfn + 1 - bt->items[i].pfn)
              << bt->items[i].region->page_shift;
    }
}

/* Locks the holes between two stored items so that they can be punched along. */
static bool lock_holes(struct region *r, uint64_t pfn, uint64_t end)
{
    uint64_t first = pfn;

    for (; pfn < end; pfn++) {
        uint64_t e = entry_load(&r->entries[pfn]);
        unsigned state = entry_state(e);

        if (entry_busy(e) ||
            (state != UFFDMM_PAGE_STORED && state != UFFDMM_PAGE_EMPTY) ||
            !entry_cas(&r->entries[pfn], e, e | UFFDMM_ENTRY_BUSY)) {
            while (pfn > first) {
                region_release_page(r, --pfn);
            }
            return false;
        }
    }
    return true;
}

/* Step 7: punches all published pages and unlocks them.  Returns how many. */
static unsigned punch(struct batch *bt)
{
    unsigned i = 0, total = 0;

    while (i < bt->nr) {
        struct item *it = &bt->items[i];
        struct region *r = it->region;
        uint64_t first = it->pfn, last = it->pfn;
        unsigned pages = 1;
        int ret;

        i++;
        if (it->kind != ITEM_PUBLISHED) {
            continue;
        }
        while (i < bt->nr && bt->items[i].kind == ITEM_PUBLISHED &&
               bt->items[i].region == r &&
               region_block(r, bt->items[i].pfn) == region_block(r, first) &&
               lock_holes(r, last + 1, bt->items[i].pfn)) {
            last = bt->items[i++].pfn;
            pages++;
        }
        ret = fallocate(r->memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                        (off_t)(first << r->page_shift),
                        (off_t)((last + 1 - first) << r->page_shift));
        if (ret < 0) {
            /* memory keeps the pages, and memory wins over the table when they fault */
            log_error("region %s: cannot punch pages %llu to %llu: %s", r->name,
                      (unsigned long long)first, (unsigned long long)last,
                      strerror(errno));
            pages = 0;
        }
        for (uint64_t pfn = first; pfn <= last; pfn++) {
            region_release_page(r, pfn);
        }
        atomic_fetch_sub_explicit(&bt->vm->resident, (int64_t)pages * region_units(r),
                                  memory_order_relaxed);
        total += pages;
    }
    for (i = 0; i < bt->nr; i++) {
        if (bt->items[i].kind == ITEM_PUBLISHED) {
            bt->items[i].kind = ITEM_GONE;
        }
    }
    return total;
}

/* Wakes fault threads that wait for room.  Called under regions_lock. */
static void kick_waiters(struct vm *vm)
{
    for (unsigned k = 0; k < UFFDMM_REGIONS_MAX; k++) {
        struct region *r = vm->regions[k];

        for (unsigned i = 0; r && r->attached && i < r->nr_shards; i++) {
            if (atomic_load_explicit(&r->shards[i].waiting, memory_order_seq_cst)) {
                fault_kick(&r->shards[i]);
            }
        }
    }
}

static unsigned blocks_of(struct vm *vm)
{
    return atomic_load_explicit(&vm->nr_blocks, memory_order_relaxed);
}

/* The first time round the queue spares new pages too, the second only used ones. */
static enum spare spare_now(struct vm *vm, unsigned chances)
{
    return chances > blocks_of(vm) ? SPARE_NEW : chances ? SPARE_USED : SPARE_NONE;
}

/* Counts the batch among those that its regions must wait for. */
static void set_parked(struct batch *bt, bool parked)
{
    if (bt->parked == parked) {
        return;
    }
    bt->parked = parked;
    for (unsigned i = 0; i < bt->nr; i++) {
        if (!i || bt->items[i].region != bt->items[i - 1].region) {
            atomic_fetch_add(&bt->items[i].region->parked, parked ? 1 : -1);
        }
    }
}

/*
 * Steps 5 to 7, as far as the tiers go along: lays the batch aside when one does
 * not do its writes within @stall_ns.  Returns the pages that left memory.
 */
static unsigned carry_on(struct vm *vm, struct batch *bt, uint64_t stall_ns)
{
    bool through = batch_write(bt, stall_ns);
    unsigned punched;

    if (!through) {
        batch_lay_aside(bt);
    }
    test_hook_crash("evict-written");
    batch_publish(bt);
    test_hook_crash("evict-published");
    punched = punch(bt);
    test_hook_crash("evict-punched");
    batch_requeue(bt);
    kick_waiters(vm);
    set_parked(bt, !through);
    return punched;
}

/* One batch.  Returns the pages that left memory. */
static unsigned evict_batch(struct vm *vm, struct batch *bt, int64_t want,
                            unsigned *chances)
{
    unsigned blocks = 0, punched = 0;
    struct block *again[BATCH_BLOCKS];
    unsigned nr_again = 0;

    pthread_rwlock_rdlock(&vm->regions_lock);
    bt->nr = 0;
    while (blocks < BATCH_BLOCKS && bt->nr + BLOCK_PAGES <= BATCH_PAGES &&
           (int64_t)bt->nr < want) {
        struct block *b = queue_pop(vm);
        bool stay;

        if (!b) {
            break;
        }
        if (region_is_huge(b->region) && bt->nr) {
            queue_put_back(vm, b);
            break;
        }
        if (claim_block(bt, b, spare_now(vm, *chances), &stay)) {
            blocks++;
            if (stay) {
                again[nr_again++] = b;
            }
            if (region_is_huge(b->region)) {
                break;
            }
        } else if (stay) {
            queue_push(vm, b);
            if (!*chances) {
                break; /* nothing in it may go now */
            }
            --*chances;
        }
    }
    while (nr_again) {
        queue_push(vm, again[--nr_again]);
    }
    if (bt->nr) {
        test_hook_crash("evict-claimed");
        protect_and_read(bt);
        test_hook_crash("evict-protected");
        batch_classify(bt);
        batch_write_begin(bt);
        punched = carry_on(vm, bt, STALL_NS);
    }
    vm_sync_resident(vm);
    pthread_rwlock_unlock(&vm->regions_lock);
    return punched;
}

/* Looks after the batches that wait for a tier.  Returns the pages that left memory. */
static unsigned resume_parked(struct vm *vm, struct batch *const *batches)
{
    unsigned punched = 0;

    for (unsigned i = 0; i < EVICT_BATCHES; i++) {
        if (batches[i]->parked) {
            pthread_rwlock_rdlock(&vm->regions_lock);
            punched += carry_on(vm, batches[i], 0);
            pthread_rwlock_unlock(&vm->regions_lock);
        }
    }
    return punched;
}

/* A batch that waits for nothing, NULL when all do. */
static struct batch *idle_batch(struct batch *const *batches)
{
    for (unsigned i = 0; i < EVICT_BATCHES; i++) {
        if (!batches[i]->parked) {
            return batches[i];
        }
    }
    return NULL;
}

static bool any_parked(struct batch *const *batches)
{
    for (unsigned i = 0; i < EVICT_BATCHES; i++) {
        if (batches[i]->parked) {
            return true;
        }
    }
    return false;
}

/* Sleeps until there may be work, or for @timeout_ms. */
static void wait_for_work(struct vm *vm, int timeout_ms)
{
    struct pollfd pfd = {.fd = vm->evict_fd, .events = POLLIN};
    uint64_t count;

    if (poll(&pfd, 1, timeout_ms) > 0 && read(vm->evict_fd, &count, sizeof(count)) < 0) {
        return; /* somebody else's wake-up; look around all the same */
    }
}

/* At the end of the thread: what waits for a tier must come to an end first. */
static void finish_parked(struct vm *vm, struct batch *const *batches)
{
    while (any_parked(batches)) {
        resume_parked(vm, batches);
        usleep(1000);
    }
}

struct evictor {
    struct vm *vm;
    struct batch *batches[EVICT_BATCHES];
};

static void evictor_free(struct evictor *ev)
{
    for (unsigned i = 0; i < EVICT_BATCHES; i++) {
        if (ev->batches[i]) {
            batch_free(ev->batches[i]);
        }
    }
    free(ev);
}

/* Evicts until there is room again. */
static void make_room(struct evictor *ev)
{
    struct vm *vm = ev->vm;
    unsigned chances = 2 * blocks_of(vm);
    int64_t room;

    while (!atomic_load(&vm->stop) && (room = vm_room(vm)) < vm_margin_high(vm)) {
        unsigned freed = resume_parked(vm, ev->batches);
        struct batch *bt = idle_batch(ev->batches);
        uint64_t pinned = stats_get(&vm->stats->pinned);

        if (bt) {
            freed += evict_batch(vm, bt, vm_margin_high(vm) - room, &chances);
        }
        if (!freed) {
            pthread_rwlock_rdlock(&vm->regions_lock);
            if (stats_get(&vm->stats->pinned) != pinned) {
                pins_give_room(vm);
            }
            if (bt && bt->store_trouble) {
                mig_give_room(vm);
            }
            kick_waiters(vm);
            pthread_rwlock_unlock(&vm->regions_lock);
            wait_for_work(vm, !bt                 ? PARKED_LOOK_MS
                              : bt->store_trouble ? STORE_RETRY_MS
                                                  : IDLE_RETRY_MS);
        }
    }
}

/* True while EVICT has asked for more than has gone so far. */
static bool asked(const struct vm *vm)
{
    int64_t to = atomic_load_explicit(&vm->evict_to, memory_order_relaxed);

    return to >= 0 && atomic_load_explicit(&vm->resident, memory_order_relaxed) > to;
}

/*
 * Evicts what an operator or the control plane asked for, unless faults need room
 * first.  Ends when that is done, or when nothing more can go: it is a wish, not a limit.
 */
static void evict_asked(struct evictor *ev)
{
    struct vm *vm = ev->vm;
    unsigned chances = 2 * blocks_of(vm), barren = 0;

    while (!atomic_load(&vm->stop) && asked(vm) && vm_room(vm) >= vm_margin_low(vm)) {
        int64_t want = atomic_load(&vm->resident) - atomic_load(&vm->evict_to);
        unsigned freed = resume_parked(vm, ev->batches);
        struct batch *bt = idle_batch(ev->batches);

        mig_take_room(vm);
        if (bt) {
            freed += evict_batch(vm, bt, want, &chances);
        }
        if (freed) {
            barren = 0;
        } else if (!bt || bt->store_trouble || ++barren > BARREN_ROUNDS) {
            break;
        }
    }
    if (vm_room(vm) >= vm_margin_low(vm)) {
        atomic_store(&vm->evict_to, -1);
    }
}

void evict_by(struct vm *vm, uint64_t bytes)
{
    int64_t resident = atomic_load(&vm->resident);
    uint64_t pages = bytes >> PAGE_SHIFT_4K;

    atomic_store(&vm->evict_to, !pages                       ? -1
                                : pages < (uint64_t)resident ? resident - (int64_t)pages
                                                             : 0);
    evict_kick(vm);
}

static void *evict_thread(void *opaque)
{
    struct evictor *ev = opaque;
    struct vm *vm = ev->vm;

    atomic_store(&vm->evictor_tid, (pid_t)syscall(SYS_gettid));
    while (!atomic_load(&vm->stop)) {
        if (vm_room(vm) < vm_margin_low(vm)) {
            make_room(ev);
            continue;
        }
        if (asked(vm)) {
            evict_asked(ev);
            continue;
        }
        resume_parked(vm, ev->batches);
        pthread_rwlock_rdlock(&vm->regions_lock);
        pins_take_room(vm);
        pthread_rwlock_unlock(&vm->regions_lock);
        atomic_store(&vm->evictor_idle, true);
        if (vm_room(vm) >= vm_margin_low(vm) && !asked(vm) && !atomic_load(&vm->stop)) {
            bool look = any_parked(ev->batches) || atomic_load(&vm->pins_room) ||
                        mig_room_given(vm);

            wait_for_work(vm, look ? PARKED_LOOK_MS : -1);
        }
        mig_take_room(vm);
        atomic_store(&vm->evictor_idle, false);
    }
    finish_parked(vm, ev->batches);
    evictor_free(ev);
    return NULL;
}

int evict_start(struct vm *vm)
{
    struct evictor *ev = calloc(1, sizeof(*ev));
    int ret = ev ? 0 : -ENOMEM;

    if (ret) {
        return ret;
    }
    ev->vm = vm;
    vm->evict_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    ret = vm->evict_fd < 0 ? -errno : 0;
    for (unsigned i = 0; !ret && i < EVICT_BATCHES; i++) {
        ret = batch_new(vm, &ev->batches[i]);
    }
    if (!ret) {
        ret = thread_start(&vm->evictor, "uffdmm-evict", evict_thread, ev);
    }
    if (ret) {
        if (vm->evict_fd >= 0) {
            close(vm->evict_fd);
        }
        evictor_free(ev);
        return ret;
    }
    vm->evictor_running = true;
    return 0;
}

void evict_stop(struct vm *vm)
{
    uint64_t one = 1;

    if (!vm->evictor_running) {
        return;
    }
    atomic_store(&vm->stop, true);
    if (write(vm->evict_fd, &one, sizeof(one)) < 0) {
        log_warn("cannot wake the evictor: %s", strerror(errno));
    }
    pthread_join(vm->evictor, NULL);
    close(vm->evict_fd);
    vm->evictor_running = false;
}

void evict_kick(struct vm *vm)
{
    uint64_t one = 1;

    if (atomic_load_explicit(&vm->evictor_idle, memory_order_relaxed) &&
        atomic_exchange(&vm->evictor_idle, false) &&
        write(vm->evict_fd, &one, sizeof(one)) < 0) {
        return; /* full: a wake-up is pending anyway */
    }
}
