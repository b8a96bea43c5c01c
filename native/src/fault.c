/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The fault thread.
 *
 * Theory of operation.  A thread of QEMU touches a page that is not there (or
 * writes to one on its way out) and sleeps; its message is read here, the state
 * of the page says what to do, and every way ends in an ioctl that wakes it.
 * What cannot be served at once (the page is being punched, the VM is at its
 * limit, the store fails) is put into a fixed array and tried again; the vCPU
 * sleeps on, no other fault waits behind it.  Nor behind a read from a store:
 * that is started, and finished when it has ended (fill.c).
 *
 * Waiting for the next message: when the thread runs on the CPU where its
 * faults come from it sleeps at once, for whoever faults needs that CPU.  On
 * another CPU it polls for a while, since a wake-up across CPUs costs more than
 * the rest of a fault; the while grows as long as it pays and shrinks when it
 * does not.
 *
 * Nothing in here allocates, takes a lock that is held during I/O, or waits
 * for QEMU.
 */
#include "fault.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "clock.h"
#include "evict.h"
#include "fill.h"
#include "hierarchy.h"
#include "huge.h"
#include "log.h"
#include "lost.h"
#include "prefetch.h"
#include "probes.h"
#include "region.h"
#include "thread.h"
#include "vm.h"
#include "window.h"

#define MESSAGES 16
/* Pages of a block in recent use before the rest of it is brought in. */
#define IN_USE_PAGES 8

#define SPIN_MIN_NS (5 * NSEC_PER_USEC)

/* How long to poll for a read before sleeping, and how often for messages meanwhile. */
#define READ_SPIN_NS (300 * NSEC_PER_USEC)
#define READ_SPIN_ROUNDS 32

/* Largest read-ahead from a tier in memory: decompressing more makes the guest wait. */
#define MEMORY_WINDOW_MAX 32

/* When to try a deferred fault again; twice as long each time up to the second. */
#define RETRY_SOON_NS (20 * NSEC_PER_USEC)
#define RETRY_SOON_MAX_NS (2 * NSEC_PER_MSEC)
#define RETRY_ROOM_NS (1 * NSEC_PER_MSEC)
#define RETRY_STORE_NS (200 * NSEC_PER_MSEC)

/* The page is on its way out and somebody wants it: keep it. */
static enum serve_outcome take_back(struct shard *sh, uint64_t pfn, uint64_t e)
{
    struct region *r = sh->region;
    entry_t *p = &r->entries[pfn];
    unsigned mayhole = (unsigned)e & UFFDMM_ENTRY_MAYHOLE;
    uint64_t to;
    enum uffd_outcome out;

    /* a slot that is being written stays the evictor's, who frees it */
    if (e & UFFDMM_ENTRY_WRITING || !entry_slot(e)) {
        to = entry_make(UFFDMM_PAGE_RESIDENT, UFFDMM_ENTRY_BUSY | mayhole, 0,
                        entry_gen(e), 0);
    } else {
        to = entry_with(e, UFFDMM_PAGE_CLEAN, UFFDMM_ENTRY_BUSY | mayhole);
    }
    if (!entry_cas(p, e, to)) {
        return AGAIN_SOON;
    }
    stats_add(&r->vm->stats->faults_wp, 1);
    out = uffd_wp(sh->uffd, page_addr(r, pfn), region_page_bytes(r), false);
    region_release_page(r, pfn);
    return out == UFFD_DONE ? SERVED : out == UFFD_GONE ? GONE : AGAIN_SOON;
}

/*
 * A write to a page that is in and stays in but is still protected, because the
 * evictor protected its neighbourhood.  BUSY keeps the evictor from starting on
 * the page between our look at the table and the ioctl.
 */
static enum serve_outcome lift(struct shard *sh, uint64_t pfn, uint64_t e)
{
    struct region *r = sh->region;
    entry_t *p = &r->entries[pfn];
    enum uffd_outcome out;

    if (!entry_cas(p, e, e | UFFDMM_ENTRY_BUSY)) {
        return AGAIN_SOON;
    }
    out = uffd_wp(sh->uffd, page_addr(r, pfn), region_page_bytes(r), false);
    region_release_page(r, pfn);
    return out == UFFD_DONE ? SERVED : out == UFFD_GONE ? GONE : AGAIN_SOON;
}

/* True when guest memory has the page. */
static bool present(const struct region *r, uint64_t pfn)
{
    off_t off = (off_t)(pfn << r->page_shift);

    if (region_is_huge(r)) {
        return presence_of(&r->presence, (uint64_t)off, region_page_bytes(r));
    }
    return lseek(r->memfd, off, SEEK_DATA) == off;
}

/* A page of zeros where a hole is right. */
static enum uffd_outcome install_zero(struct shard *sh, uint64_t pfn)
{
    struct region *r = sh->region;
    enum uffd_outcome out;
    size_t done;

    if (!region_is_huge(r)) {
        return uffd_zero(sh->uffd, page_addr(r, pfn), PAGE_SIZE_4K, &done);
    }
    if (!huge_claim_room(r->vm)) {
        evict_kick(r->vm);
        return UFFD_NO_PAGE;
    }
    out = huge_copy(sh, pfn, sh->zeros, &done);
    huge_release_room(r->vm);
    return out;
}

/*
 * "Missing", but the table says that the page is in.  Mostly the message is
 * old news: wake, and whoever waited finds the page.  A hole is right only
 * after a discard; else the content is gone by somebody else's hand and the one
 * thing not to do is to hand out zeros.
 */
static enum serve_outcome not_missing(struct shard *sh, uint64_t pfn, uint64_t e)
{
    struct region *r = sh->region;
    entry_t *p = &r->entries[pfn];
    enum uffd_outcome out;

    stats_add(&r->vm->stats->faults_spurious, 1);
    if (present(r, pfn)) {
        out = uffd_wake(sh->uffd, page_addr(r, pfn), region_page_bytes(r));
        return out == UFFD_GONE ? GONE : SERVED;
    }
    if (!entry_cas(p, e, e | UFFDMM_ENTRY_BUSY)) {
        return AGAIN_SOON;
    }
    if (!(e & UFFDMM_ENTRY_MAYHOLE)) {
        /* not with its slot: what is in there may be older than what was in memory */
        uint64_t lost = entry_make(UFFDMM_PAGE_LOST, 0, 0, entry_gen(e), 0);

        if (!entry_cas(p, e | UFFDMM_ENTRY_BUSY, lost)) {
            region_release_page(r, pfn); /* a discard after all */
            return AGAIN_SOON;
        }
        region_free_slots(r, pfn, e);
        stats_add(&r->vm->stats->lost_pages, 1);
        log_error(
            "region %s: page %llu was punched out of guest memory behind the manager's back: "
            "the guest waits for it; end the VM",
            r->name, (unsigned long long)pfn);
        return BLOCKED;
    }
    out = install_zero(sh, pfn);
    if (out == UFFD_DONE) {
        atomic_fetch_add_explicit(&r->vm->resident, region_units(r),
                                  memory_order_relaxed);
        stats_add(&r->vm->stats->faults_zero, 1);
    } else if (out == UFFD_PRESENT) {
        uffd_wake(sh->uffd, page_addr(r, pfn), region_page_bytes(r));
    }
    region_release_page(r, pfn);
    return out == UFFD_DONE || out == UFFD_PRESENT ? SERVED
           : out == UFFD_GONE                      ? GONE
           : out == UFFD_NO_PAGE                   ? AGAIN_ROOM
                                                   : AGAIN_SOON;
}

/*
 * True when the block of @pfn may be on its way into use: most of its pages that
 * are in came in or were used lately.  Then the rest may be wanted too, though the
 * guest asks for it in no order.  That is a guess; the access scans find out
 * whether such pages are used more than others and allow many or few (track.c).
 */
static bool block_in_use(const struct shard *sh, uint64_t pfn)
{
    struct region *r = sh->region;
    uint64_t first = pfn / BLOCK_PAGES * BLOCK_PAGES;
    uint64_t end = first + BLOCK_PAGES < sh->end ? first + BLOCK_PAGES : sh->end;
    unsigned in = 0, used = 0;

    if (atomic_load_explicit(&r->vm->ahead_blocks, memory_order_relaxed) <= 0) {
        return false;
    }
    for (uint64_t i = first; i < end; i++) {
        unsigned state = entry_state(entry_load(&r->entries[i]));

        if (state == UFFDMM_PAGE_RESIDENT || state == UFFDMM_PAGE_CLEAN) {
            in++;
            used += region_age(r, i) == 0 || region_age(r, i) >= AGE_NEW;
        }
    }
    return used >= IN_USE_PAGES && used * 2 >= in;
}

/* True when the guest has turned to the block of @pfn, as the faults in it tell. */
static bool block_hot(struct shard *sh, uint64_t pfn)
{
    struct region *r = sh->region;
    uint64_t first = pfn / BLOCK_PAGES * BLOCK_PAGES, missing = 0, all = 0;
    uint64_t end = first + BLOCK_PAGES < sh->end ? first + BLOCK_PAGES : sh->end;
    uint64_t block = pfn / BLOCK_PAGES - sh->first / BLOCK_PAGES;

    if (!heat_count(&sh->heat, block) ||
        atomic_load_explicit(&r->vm->ahead_wasted, memory_order_relaxed)) {
        return false;
    }
    for (uint64_t i = first; i < end; i++) {
        uint64_t e = entry_load(&r->entries[i]);
        const struct tier *t = vm_tier(r->vm, e);

        missing += entry_state(e) == UFFDMM_PAGE_STORED && t && !t->put_stores;
    }
    for (unsigned i = 1; i < UFFDMM_TIERS_MAX; i++) {
        const struct tier *t = r->vm->tiers[i];

        if (t && !t->put_stores) {
            all +=
                (uint64_t)atomic_load_explicit(&r->vm->stored[i], memory_order_relaxed);
        }
    }
    /* the faults of this shard fall on its own part of the pages */
    all =
        all * (sh->end - sh->first) * PAGE_SIZE_4K / stats_get(&r->vm->stats->ram_bytes);
    return heat_hot(&sh->heat, block, missing, all);
}

/*
 * True when the rest of the block of @pfn should come in too: the guest has turned to
 * it, or it may have, and the access scans are to find out.
 */
static bool want_block(struct shard *sh, uint64_t pfn)
{
    if (block_hot(sh, pfn)) {
        return true;
    }
    if (!block_in_use(sh, pfn)) {
        return false;
    }
    atomic_fetch_sub_explicit(&sh->region->vm->ahead_blocks, 1, memory_order_relaxed);
    return true;
}

/* True when the page comes from memory: a hole, a word, or a tier that stores there. */
static bool in_memory_tier(const struct vm *vm, uint64_t e)
{
    const struct tier *t = vm_tier(vm, e);

    return entry_state(e) != UFFDMM_PAGE_STORED || !t || t->put_stores;
}

static enum serve_outcome bring_in(struct shard *sh, struct deferred *f, uint64_t e,
                                   bool again)
{
    struct vm *vm = sh->region->vm;
    int64_t room = vm_room(vm);
    uint32_t max = atomic_load_explicit(&vm->readahead_max, memory_order_relaxed);
    uint64_t first = f->pfn;
    uint32_t nr = 1;
    enum serve_outcome out;
    bool memory = in_memory_tier(vm, e), hit, guess = false;

    if (room < vm_margin_low(vm)) {
        evict_kick(vm);
    }
    if (room < (int64_t)region_units(sh->region)) {
        return AGAIN_ROOM;
    }
    if (region_is_huge(sh->region)) {
        return fill_begin(sh, f, f->pfn, 1, false); /* a read-ahead by itself */
    }
    if (max > room) {
        max = (uint32_t)room;
    }
    if (memory && entry_state(e) == UFFDMM_PAGE_STORED && max > MEMORY_WINDOW_MAX) {
        max = MEMORY_WINDOW_MAX;
    }
    if (!again && max > 1) {
        uint64_t wasted = sh->readahead.wasted;

        nr = readahead_window(&sh->readahead, f->pfn, max, &hit);
        if (sh->readahead.wasted != wasted) {
            stats_add(&vm->stats->readahead_wasted, sh->readahead.wasted - wasted);
        }
        if (hit) {
            stats_add(&vm->stats->readahead_hits, 1);
        } else if (!memory && max >= BLOCK_PAGES && want_block(sh, f->pfn)) {
            guess = true;
            nr = BLOCK_PAGES;
            first = f->pfn / BLOCK_PAGES * BLOCK_PAGES;
        }
    }
    if (first < sh->first) {
        nr -= (uint32_t)(sh->first - first);
        first = sh->first;
    }
    if (nr > sh->end - first) {
        nr = (uint32_t)(sh->end - first);
    }
    out = fill_begin(sh, f, first, nr, guess);
    if ((out == SERVED || out == PENDING) && !again) {
        readahead_done(&sh->readahead, f->pfn, first + nr);
    }
    return out;
}

static enum serve_outcome serve(struct shard *sh, struct deferred *f, bool again)
{
    struct region *r = sh->region;
    uint64_t e = entry_load(&r->entries[f->pfn]);

    if (entry_busy(e)) {
        return AGAIN_SOON;
    }
    switch (entry_state(e)) {
    case UFFDMM_PAGE_EMPTY:
    case UFFDMM_PAGE_DISCARDED:
    case UFFDMM_PAGE_STORED:
        return bring_in(sh, f, e, again);
    case UFFDMM_PAGE_EVICTING:
        return take_back(sh, f->pfn, e);
    case UFFDMM_PAGE_RESIDENT:
    case UFFDMM_PAGE_CLEAN:
        return f->wp ? lift(sh, f->pfn, e) : not_missing(sh, f->pfn, e);
    case UFFDMM_PAGE_LOST:
        return f->repair ? bring_in(sh, f, e, again) : lost_fault(sh, f->pfn, e);
    default:
        return BLOCKED;
    }
}

/* Keeps a fault for later; one entry a page is enough, since serving it wakes all. */
static void defer(struct shard *sh, struct deferred *f, enum serve_outcome why)
{
    struct deferred *d = NULL;
    uint64_t delay = why == AGAIN_ROOM ? RETRY_ROOM_NS : RETRY_STORE_NS;

    for (unsigned i = 0; i < sh->nr_deferred; i++) {
        if (sh->deferred[i].pfn == f->pfn) {
            d = &sh->deferred[i];
            d->wp |= f->wp;
            if (!d->failing_since) {
                d->failing_since = f->failing_since;
            } else {
                lost_forget(sh, f); /* two faults on one page have become one */
            }
        }
    }
    if (!d) {
        /* the reader stops before the array is full */
        d = &sh->deferred[sh->nr_deferred++];
        *d = *f;
        stats_add(&sh->region->vm->stats->faults_deferred, 1);
        if (why == AGAIN_ROOM) {
            stats_add(&sh->region->vm->stats->faults_waited, 1);
        }
    }
    if (why == AGAIN_SOON) {
        delay = RETRY_SOON_NS << (d->tries < 16 ? d->tries++ : 16);
        delay = delay < RETRY_SOON_MAX_NS ? delay : RETRY_SOON_MAX_NS;
    }
    d->not_before = clock_ns() + delay;
}

static void finish(struct shard *sh, const struct deferred *f)
{
    struct uffdmm_stats *stats = sh->region->vm->stats;
    uint64_t ns = clock_ns() - f->since;

    stats_add(&stats->faults, 1);
    stats_fault_time(stats, ns);
    PROBE_FAULT_END(sh->region->vm->name, sh->region->id, f->pfn, ns);
}

/* What becomes of a fault that was served, or not. */
static void conclude(struct shard *sh, struct deferred *f, enum serve_outcome out)
{
    if (f->repair && out != GONE) {
        if (out != PENDING) {
            lost_tried(sh, out == SERVED);
        }
        return;
    }
    if (out == BLOCKED && sh->lost.map) {
        out = AGAIN_SOON; /* it has just become LOST: poison it */
    }
    if (out == SERVED || out == BLOCKED) {
        lost_forget(sh, f);
    }
    if (out == SERVED) {
        finish(sh, f);
    } else if (out == GONE) {
        atomic_store(&sh->gone, true);
    } else if (out != BLOCKED && out != PENDING) {
        defer(sh, f, out);
    }
}

/* Finishes the fills whose reads have ended; true when there were any. */
static bool reap(struct shard *sh)
{
    struct deferred f;
    enum serve_outcome out;
    bool any = false;

    while (fill_poll(sh, &f, &out)) {
        if (f.ahead) {
            prefetch_ended(sh);
        } else {
            conclude(sh, &f, out);
        }
        any = true;
    }
    if (any) {
        /* who waited for a page of these, or for a window, can go on */
        for (unsigned i = 0; i < sh->nr_deferred; i++) {
            if (sh->deferred[i].tries) {
                sh->deferred[i].not_before = 0;
            }
        }
    }
    return any;
}

static void handle(struct shard *sh, const struct uffd_msg *msg, uint64_t now)
{
    struct region *r = sh->region;
    struct deferred f = {.since = now};
    enum serve_outcome out;

    if (msg->event != UFFD_EVENT_PAGEFAULT) {
        return;
    }
    f.pfn = (msg->arg.pagefault.address - r->base) >> r->page_shift;
    f.wp = (msg->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP) != 0;
    f.tid = msg->arg.pagefault.feat.ptid;
    if (msg->arg.pagefault.address < r->base || f.pfn < sh->first || f.pfn >= sh->end) {
        return; /* registered by QEMU over something else: not ours to serve */
    }
    PROBE_FAULT_BEGIN(r->vm->name, r->id, f.pfn);
    if (f.tid != atomic_load_explicit(&sh->fault_tid, memory_order_relaxed)) {
        atomic_store_explicit(&sh->fault_tid, f.tid, memory_order_relaxed);
        atomic_fetch_add_explicit(&sh->fault_switches, 1, memory_order_relaxed);
    }
    atomic_fetch_add_explicit(&sh->nr_faults, 1, memory_order_relaxed);
    if (f.tid && f.tid == atomic_load_explicit(&r->vm->mig->tid, memory_order_relaxed)) {
        stats_add(&r->vm->stats->migration_swap_ins, 1);
    }
    out = serve(sh, &f, false);
    conclude(sh, &f, out);
}

/* Tries the deferred faults whose time has come. */
static void retry(struct shard *sh)
{
    uint64_t now = clock_ns();
    unsigned i = 0;

    while (i < sh->nr_deferred) {
        struct deferred f = sh->deferred[i];
        enum serve_outcome out;

        if (f.not_before > now) {
            i++;
            continue;
        }
        out = serve(sh, &f, true);
        if (out == AGAIN_SOON || out == AGAIN_ROOM || out == AGAIN_STORE) {
            defer(sh, &f, out);
            i++;
            continue;
        }
        sh->deferred[i] = sh->deferred[--sh->nr_deferred];
        conclude(sh, &f, out);
    }
    atomic_store_explicit(&sh->waiting, sh->nr_deferred != 0, memory_order_seq_cst);
}

/* Tries whether poisoned pages can be read again. */
static void repair(struct shard *sh)
{
    struct deferred f;

    while (lost_next(sh, &f)) {
        conclude(sh, &f, serve(sh, &f, true));
    }
}

/* Nanoseconds until a deferred fault is due; UINT64_MAX when there is none. */
static uint64_t next_retry(const struct shard *sh)
{
    uint64_t first = lost_next_ns(&sh->lost), now;

    if (!sh->nr_deferred && first == UINT64_MAX) {
        return UINT64_MAX;
    }
    for (unsigned i = 0; i < sh->nr_deferred; i++) {
        if (sh->deferred[i].not_before < first) {
            first = sh->deferred[i].not_before;
        }
    }
    now = clock_ns();
    return first > now ? first - now : 0;
}

static void sleep_until_event(struct shard *sh, uint64_t timeout_ns)
{
    struct pollfd fds[3] = {
        {.fd = sh->nr_deferred >= DEFERRED_MAX - MESSAGES ? -1 : sh->uffd,
         .events = POLLIN},
        {.fd = sh->wake_fd, .events = POLLIN},
        {.fd = sh->queue.event_fd, .events = POLLIN},
    };
    bool reading = sh->queue.in_flight != 0;
    struct timespec ts;
    uint64_t count, ns = reading ? tier_queue_sleep(&sh->queue) : UINT64_MAX;
    int n;

    timeout_ns = ns < timeout_ns ? ns : timeout_ns;
    ts = (struct timespec){.tv_sec = (time_t)(timeout_ns / NSEC_PER_SEC),
                           .tv_nsec = (long)(timeout_ns % NSEC_PER_SEC)};
    n = ppoll(fds, reading ? 3 : 2, timeout_ns == UINT64_MAX ? NULL : &ts, NULL);
    if (reading) {
        tier_queue_awake(&sh->queue);
    }
    if (n > 0 && (fds[1].revents & POLLIN) &&
        read(sh->wake_fd, &count, sizeof(count)) > 0) {
        /* somebody made progress: what waits for it need not wait for its time */
        for (unsigned i = 0; i < sh->nr_deferred; i++) {
            sh->deferred[i].not_before = 0;
        }
    }
    if (fds[0].revents & (POLLERR | POLLHUP)) {
        atomic_store(&sh->gone, true);
    }
}

/* Polls for messages for as long as that has paid lately; see the head of the file. */
static int spin_for_messages(struct shard *sh, struct uffd_msg *msgs)
{
    uint64_t until, limit = sh->spin_ns;
    int n;

    if (!limit || atomic_load_explicit(&sh->same_cpu, memory_order_relaxed)) {
        return 0;
    }
    until = clock_ns() + limit;
    do {
        n = uffd_read(sh->uffd, msgs, MESSAGES);
        if (n) {
            return n;
        }
        cpu_relax();
    } while (clock_ns() < until);
    return 0;
}

/*
 * Polls for reads under way, and for messages beside, until READ_SPIN_NS after the
 * last one was started.  False when nothing came.
 */
static bool spin_for_reads(struct shard *sh, struct uffd_msg *msgs, int *nr)
{
    unsigned rounds = 0;

    *nr = 0;
    while (clock_ns() < sh->last_read_ns + READ_SPIN_NS) {
        if (reap(sh)) {
            return true;
        }
        if (++rounds % READ_SPIN_ROUNDS == 0 && !sh->nr_deferred) {
            *nr = uffd_read(sh->uffd, msgs, MESSAGES);
            if (*nr) {
                return true;
            }
        }
        cpu_relax();
    }
    return false;
}

static void adapt_spin(struct shard *sh, uint64_t slept_ns)
{
    uint64_t max = sh->region->vm->options->spin_max_ns;

    if (slept_ns < max) {
        sh->spin_ns = sh->spin_ns ? 2 * sh->spin_ns : SPIN_MIN_NS;
        if (sh->spin_ns > max) {
            sh->spin_ns = max;
        }
    } else {
        sh->spin_ns = sh->spin_ns / 2 >= SPIN_MIN_NS ? sh->spin_ns / 2 : 0;
    }
}

static void *fault_thread(void *opaque)
{
    struct shard *sh = opaque;
    struct uffd_msg msgs[MESSAGES];
    uint64_t now, due;
    int n, more = 0;

    atomic_store(&sh->tid, (pid_t)syscall(SYS_gettid));
    while (!atomic_load_explicit(&sh->stop, memory_order_relaxed)) {
        n = more;
        more = 0;
        if (!n && sh->nr_deferred < DEFERRED_MAX - MESSAGES) {
            n = uffd_read(sh->uffd, msgs, MESSAGES);
            if (!n && !sh->nr_deferred && !sh->queue.in_flight) {
                n = spin_for_messages(sh, msgs);
            }
        }
        if (n > 0) {
            now = clock_ns();
            for (int i = 0; i < n; i++) {
                handle(sh, &msgs[i], now);
            }
        } else if (n < 0 || atomic_load_explicit(&sh->gone, memory_order_relaxed)) {
            /* QEMU has ended; the main thread hears of it and stops us */
            atomic_store(&sh->gone, true);
            sh->nr_deferred = 0;
            usleep(10000);
            continue;
        }
        if (reap(sh)) {
            n = n ? n : 1;
        }
        if (sh->nr_deferred) {
            retry(sh);
        }
        if (sh->lost.nr) {
            repair(sh);
        }
        if (!n && prefetch_step(sh)) {
            continue;
        }
        if (n || (sh->queue.in_flight && spin_for_reads(sh, msgs, &more))) {
            continue;
        }
        due = next_retry(sh);
        if (!due) {
            continue;
        }
        now = clock_ns();
        sleep_until_event(sh, due);
        if (due == UINT64_MAX) {
            adapt_spin(sh, clock_ns() - now);
        }
    }
    fill_abandon(sh);
    lost_forget_all(sh);
    return NULL;
}

static size_t window_bytes(const struct shard *sh)
{
    return region_is_huge(sh->region) ? PAGE_SIZE_2M : (size_t)WINDOW_MAX * PAGE_SIZE_4K;
}

/* All windows and their buffers in one piece, in memory from the start. */
static size_t windows_size(const struct shard *sh)
{
    return sh->nr_windows * (sizeof(struct window) + window_bytes(sh)) + PAGE_SIZE_4K;
}

/* Zeros to copy from: UFFDIO_ZEROPAGE is not for huge pages.  Takes no memory. */
static int map_zeros(struct shard *sh)
{
    void *map;

    if (!region_is_huge(sh->region)) {
        return 0;
    }
    map = mmap(NULL, PAGE_SIZE_2M, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE,
               -1, 0);
    if (map == MAP_FAILED) {
        return -errno;
    }
    sh->zeros = map;
    return 0;
}

static void unmap_zeros(struct shard *sh)
{
    if (sh->zeros) {
        munmap(sh->zeros, PAGE_SIZE_2M);
        sh->zeros = NULL;
    }
}

int fault_prepare(struct shard *sh)
{
    struct vm *vm = sh->region->vm;
    char *map;
    int ret;

    sh->nr_windows = region_is_huge(sh->region) ? WINDOWS_HUGE : WINDOWS;
    map = mmap(NULL, windows_size(sh), PROT_READ | PROT_WRITE,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (map == MAP_FAILED) {
        return -errno;
    }
    sh->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (sh->wake_fd < 0) {
        ret = -errno;
        munmap(map, windows_size(sh));
        return ret;
    }
    ret = map_zeros(sh);
    if (!ret) {
        ret = heat_init(&sh->heat, (sh->end - sh->first) / BLOCK_PAGES + 2);
    }
    if (!ret) {
        ret = vm->lost_after_ns ? lost_init(&sh->lost, sh->end - sh->first) : 0;
    }
    if (!ret) {
        ret = hierarchy_queue(vm, &sh->queue);
    }
    if (ret) {
        lost_deinit(&sh->lost);
        heat_deinit(&sh->heat);
        unmap_zeros(sh);
        close(sh->wake_fd);
        munmap(map, windows_size(sh));
        return ret;
    }
    sh->window_map = map;
    sh->windows = (struct window *)(void *)(map + sh->nr_windows * window_bytes(sh));
    for (unsigned i = 0; i < sh->nr_windows; i++) {
        sh->windows[i].shard = sh;
        sh->windows[i].buffer = map + i * window_bytes(sh);
    }
    sh->spin_ns = 0;
    readahead_init(&sh->readahead);
    return 0;
}

void fault_release(struct shard *sh)
{
    if (sh->window_map) {
        tier_queue_deinit(&sh->queue);
        lost_deinit(&sh->lost);
        heat_deinit(&sh->heat);
        unmap_zeros(sh);
        close(sh->wake_fd);
        munmap(sh->window_map, windows_size(sh));
        sh->window_map = NULL;
    }
    prefetch_release(sh);
    if (sh->uffd >= 0) {
        close(sh->uffd);
        sh->uffd = -1;
    }
}

int fault_start(struct shard *sh)
{
    int ret = thread_start(&sh->thread, "uffdmm-fault", fault_thread, sh);

    sh->running = ret == 0;
    return ret;
}

void fault_stop(struct shard *sh)
{
    if (sh->running) {
        atomic_store(&sh->stop, true);
        fault_kick(sh);
        pthread_join(sh->thread, NULL);
        sh->running = false;
    }
}

void fault_kick(struct shard *sh)
{
    uint64_t one = 1;

    if (write(sh->wake_fd, &one, sizeof(one)) < 0) {
        return; /* full: a wake-up is pending anyway */
    }
}
