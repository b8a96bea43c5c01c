/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Access history.
 *
 * Theory of operation.  QEMU's service thread drops the page-table entries of a
 * window of guest memory (MADV_DONTNEED on a shared mapping: no data goes, and
 * write protection survives as a marker in the table).  Whatever is touched
 * afterwards, by the guest or by the host, gets an entry again at the cost of
 * a minor fault.  A while later PAGEMAP_SCAN lists the pages that have
 * one: those were in use.  Each page has an age: 0 when it was in use at the last scan, one
 * more for each scan in which it was not.
 *
 * The faults cost the guest time, so history is only taken while the VM is
 * being evicted from, and only as long as it says something: the evictor begins to
 * use ages when pages in use at one scan were at least twice as likely in use
 * at the next one as the others, and ceases when few of them are.  Random access over
 * all of memory shows no such difference; then the next look comes after a pause
 * that doubles.  A short eviction is still followed by the looks that such a
 * conclusion takes: a control plane that takes memory step by step stops at the first
 * one that is felt, and would never get to know what it could have taken instead.
 *
 * The scans also judge the guess of fault.c that a block should come in as a
 * whole: as long as pages that came that way are used clearly more than the average
 * page in memory, which they push out, there may be more; else just a few to
 * find out.
 */
#include "track.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "clock.h"
#include "conn.h"
#include "log.h"
#include "thread.h"
#include "vm.h"

/* Zapped at a time, so that QEMU's memory map is never busy for long. */
#define ZAP_WINDOW (64ULL << 20)
#define ZAP_TIMEOUT_NS (2 * NSEC_PER_SEC)

/*
 * From zap to scan.  Each page in use costs the guest about a microsecond after
 * a zap, so the interval grows with their number to keep that at the share of time
 * that policy allows.
 */
#define INTERVAL_MIN_MS 400
#define INTERVAL_MAX_MS 4000
#define TOUCH_COST_NS 1000

/* First pause after a look that told nothing, and the longest. */
#define PROBE_INTERVAL_MIN_MS 500
#define PROBE_INTERVAL_MAX_MS 3000

/* Trimming goes on at most this often, and only when the store is quiet. */
#define TRIM_INTERVAL_MS 500

/* Ages are no longer used when less than this share of used pages is used again. */
#define USED_AGAIN_MIN 0.2

/* Blocks a look that may come in as a whole: to find out, and when that pays. */
#define AHEAD_TRIAL 32
#define AHEAD_MANY 100000
#define AHEAD_SAMPLE_MIN 512
#define AHEAD_GAIN 1.5

/* Scans in a row before ages tell pages apart: the first one only makes them. */
#define LOOKS_MIN 2

/* Looks in a row that must tell nothing before ages are no longer used. */
#define DOUBTS_MAX 2

/*
 * Scans whose counts are too small tell nothing: this many pages of a VM of 1 GiB or more,
 * and as much less as a VM is smaller (docs/victims.md has what that is worth).
 */
#define SAMPLE_MIN 1024
#define SAMPLE_LEAST 64
#define PAGES_OF_GIB (1ULL << 18)

/* In samples a huge page says as much as this many of the others: it covers a block's worth. */
#define HUGE_WEIGHT BLOCK_PAGES

/* What one scan found: pages in memory, by what was known of them, and those used now. */
struct sample {
    uint64_t was_used, was_used_again;
    uint64_t was_idle, was_idle_used;
    uint64_t arrived, arrived_used; /* demanded */
    uint64_t ahead, ahead_used;     /* came with their block */
    uint64_t touched;
};

void track_zapped(struct region *r, uint64_t generation)
{
    atomic_store(&r->zap_done, generation);
}

/* Sleeps; false when the thread must end. */
static bool pause_ms(struct vm *vm, int ms)
{
    struct pollfd pfd = {.fd = vm->background_fd, .events = POLLIN};

    return poll(&pfd, 1, ms) == 0 && !atomic_load(&vm->stop);
}

/* Zaps the whole region, window by window; false when QEMU does not answer. */
static bool zap(struct vm *vm, struct region *r)
{
    for (uint64_t off = 0; off < r->size; off += ZAP_WINDOW) {
        uint64_t len = r->size - off < ZAP_WINDOW ? r->size - off : ZAP_WINDOW;
        uint64_t generation = atomic_load(&r->zap_done) + 1;
        struct uffdmm_range range = {
            .region_id = r->id, .generation = generation, .offset = off, .length = len};
        uint64_t deadline = clock_ns() + ZAP_TIMEOUT_NS;

        if (r->link_fd < 0 || conn_send(r->link_fd, UFFDMM_MSG_ZAP, generation, 0, &range,
                                        sizeof(range), NULL, 0)) {
            return false;
        }
        stats_add(&vm->stats->zaps, 1);
        while (atomic_load(&r->zap_done) != generation) {
            /* the main thread must not wait for us: it is the one who reads QEMU's reply */
            if (atomic_load(&vm->stop) || atomic_load(&vm->regions_wanted) ||
                clock_ns() > deadline) {
                return false;
            }
            usleep(200);
        }
    }
    return true;
}

static bool in_memory(uint64_t e)
{
    unsigned state = entry_state(e);

    return state == UFFDMM_PAGE_RESIDENT || state == UFFDMM_PAGE_CLEAN;
}

/* A zap comes: from now on a mapping means a use. */
static void begin_look(struct region *r)
{
    for (uint64_t pfn = 0; pfn < r->nr_pages; pfn++) {
        uint8_t age = region_age(r, pfn);

        if (age == AGE_NEW_FRESH) {
            region_set_age(r, pfn, AGE_NEW);
        } else if (age == AGE_AHEAD_FRESH) {
            region_set_age(r, pfn, AGE_AHEAD);
        }
    }
}

/* One page in memory, and whether it was touched since the zap. */
static void judge(struct region *r, uint64_t pfn, bool used, struct sample *s)
{
    uint64_t weight = region_is_huge(r) ? HUGE_WEIGHT : 1;
    uint64_t used_weight = used ? weight : 0;
    uint8_t old = region_age(r, pfn);

    switch (old) {
    case AGE_NEW_FRESH:
    case AGE_AHEAD_FRESH:
        return; /* mapped by its arrival: nothing is known */
    case AGE_NEW:
        s->arrived += weight;
        s->arrived_used += used_weight;
        break;
    case AGE_AHEAD:
        s->ahead += weight;
        s->ahead_used += used_weight;
        break;
    case 0:
        s->was_used += weight;
        s->was_used_again += used_weight;
        break;
    default:
        s->was_idle += weight;
        s->was_idle_used += used_weight;
    }
    if (used) {
        region_set_age(r, pfn, 0);
    } else {
        region_set_age(r, pfn,
                       old < AGE_MAX   ? (uint8_t)(old + 1)
                       : old > AGE_MAX ? 1
                                       : old);
    }
}

static void judge_range(struct region *r, uint64_t from, uint64_t to, bool used,
                        struct sample *s)
{
    for (uint64_t pfn = from; pfn < to; pfn++) {
        if (in_memory(entry_load(&r->entries[pfn]))) {
            judge(r, pfn, used, s);
        }
    }
}

/* Looks at every page of the region; 0 or a negative errno. */
static int scan(struct vm *vm, struct region *r, struct sample *s)
{
    struct page_region vec[256];
    uint64_t next = 0, touched = 0;
    uint64_t wasted_before = s->ahead - s->ahead_used;
    struct pm_scan_arg arg = {
        .size = sizeof(arg),
        .start = r->base,
        .end = r->base + r->size,
        .vec = (uint64_t)(uintptr_t)vec,
        .vec_len = sizeof(vec) / sizeof(vec[0]),
        .category_mask = PAGE_IS_PRESENT,
        .return_mask = PAGE_IS_PRESENT,
    };

    while (arg.start < arg.end) {
        int n = ioctl(r->pagemap_fd, PAGEMAP_SCAN, &arg);

        if (n < 0) {
            return -errno;
        }
        for (int i = 0; i < n; i++) {
            uint64_t from = (vec[i].start - r->base) >> r->page_shift;
            uint64_t to = (vec[i].end - r->base) >> r->page_shift;

            judge_range(r, next, from, false, s);
            judge_range(r, from, to, true, s);
            touched += to - from;
            next = to;
        }
        if (arg.walk_end <= arg.start) {
            break;
        }
        arg.start = arg.walk_end;
    }
    judge_range(r, next, r->nr_pages, false, s);
    stats_add(&vm->stats->scanned_pages, r->nr_pages * region_units(r));
    stats_add(&vm->stats->touched_pages, touched * region_units(r));
    stats_add(&vm->stats->readahead_wasted, s->ahead - s->ahead_used - wasted_before);
    s->touched += touched;
    return 0;
}

static uint64_t sample_min(const struct vm *vm)
{
    uint64_t pages = stats_get(&vm->stats->ram_bytes) / PAGE_SIZE_4K;
    uint64_t min = pages * SAMPLE_MIN / PAGES_OF_GIB;

    return min < SAMPLE_LEAST ? SAMPLE_LEAST : min > SAMPLE_MIN ? SAMPLE_MIN : min;
}

/* True when pages that were in use are at least twice as likely in use again. */
static bool tells_apart(const struct sample *s, uint64_t min)
{
    double again, anew;

    if (s->was_used < min || s->was_idle < min) {
        return false;
    }
    again = (double)s->was_used_again / (double)s->was_used;
    anew = (double)s->was_idle_used / (double)s->was_idle;
    return again > 2 * anew;
}

/* True when pages that were in use are still often in use: what began to pay goes on. */
static bool still_tells(const struct sample *s, uint64_t min)
{
    return s->was_used >= min &&
           (double)s->was_used_again >= USED_AGAIN_MIN * (double)s->was_used;
}

/* How many blocks may come in as a whole until the next look. */
static int ahead_allowance(const struct sample *s)
{
    double all = (double)(s->was_used + s->was_idle + s->arrived + s->ahead);
    double used =
        (double)(s->was_used_again + s->was_idle_used + s->arrived_used + s->ahead_used);

    if (s->ahead < AHEAD_SAMPLE_MIN) {
        return AHEAD_TRIAL;
    }
    return (double)s->ahead_used / (double)s->ahead > AHEAD_GAIN * used / all
               ? AHEAD_MANY
               : AHEAD_TRIAL;
}

typedef bool region_fn(struct vm *vm, struct region *r, struct sample *s);

static bool zap_one(struct vm *vm, struct region *r, struct sample *s)
{
    (void)s;
    begin_look(r);
    return zap(vm, r);
}

static bool scan_one(struct vm *vm, struct region *r, struct sample *s)
{
    static uint64_t logged;
    int ret = scan(vm, r, s);

    if (ret && ret != -ESRCH && log_ratelimit(&logged, 60 * NSEC_PER_SEC)) {
        log_warn(
            "region %s: no access history: PAGEMAP_SCAN failed: %s; eviction goes by order of "
            "arrival",
            r->name, strerror(-ret));
    }
    return ret == 0;
}

/* Calls @fn for each attached region; false when one call fails. */
static bool for_each_region(struct vm *vm, region_fn *fn, struct sample *s)
{
    bool ok = true;

    pthread_rwlock_rdlock(&vm->regions_lock);
    for (unsigned i = 0; ok && i < UFFDMM_REGIONS_MAX; i++) {
        struct region *r = vm->regions[i];

        if (r && r->attached) {
            ok = fn(vm, r, s);
        }
    }
    pthread_rwlock_unlock(&vm->regions_lock);
    return ok;
}

/* One zap, a pause, one scan.  False when the thread must end or nothing was learnt. */
static bool observe(struct vm *vm, int interval_ms, struct sample *s, bool *end)
{
    *end = false;
    if (!for_each_region(vm, zap_one, NULL)) {
        return false;
    }
    if (!pause_ms(vm, interval_ms)) {
        *end = true;
        return false;
    }
    return for_each_region(vm, scan_one, s);
}

/* Zap-to-scan interval for the next look, from what the last one cost. */
static int next_interval(const struct vm *vm, const struct sample *s)
{
    uint64_t budget = stats_get(&vm->stats->track_permille);
    uint64_t ms =
        s->touched * TOUCH_COST_NS * 1000 / (budget ? budget : 1) / NSEC_PER_MSEC;

    return ms < INTERVAL_MIN_MS   ? INTERVAL_MIN_MS
           : ms > INTERVAL_MAX_MS ? INTERVAL_MAX_MS
                                  : (int)ms;
}

/* State of the thread between two looks. */
struct tracker {
    uint64_t evicted;    /* counter at the last look */
    uint64_t next_probe; /* clock_ns() before which there is no look */
    unsigned quiet;      /* rounds without eviction */
    unsigned scans;      /* in a row */
    unsigned doubts;     /* looks in a row that told nothing */
    int interval_ms;
    uint64_t probe_ms; /* pause after the next look that tells nothing */
};

/* True when a look at the access history is due. */
static bool due(struct vm *vm, struct tracker *t)
{
    uint64_t evicted = stats_get(&vm->stats->evicted);

    if (evicted == t->evicted && t->scans && t->scans < LOOKS_MIN) {
        return true;
    }
    if (evicted == t->evicted) {
        t->quiet++;
        t->scans = 0;
        stats_set(&vm->stats->age_tracking, 0);
        return false;
    }
    t->evicted = evicted;
    t->quiet = 0;
    return stats_get(&vm->stats->track_permille) && clock_ns() >= t->next_probe;
}

/* No further look for a while. */
static void back_off(struct vm *vm, struct tracker *t)
{
    atomic_store(&vm->ages_useful, false);
    atomic_store(&vm->ahead_blocks, 0);
    atomic_store(&vm->ahead_wasted, false);
    stats_set(&vm->stats->age_tracking, 0);
    t->scans = 0;
    t->interval_ms = INTERVAL_MIN_MS;
    t->next_probe = clock_ns() + t->probe_ms * NSEC_PER_MSEC;
    t->probe_ms =
        2 * t->probe_ms < PROBE_INTERVAL_MAX_MS ? 2 * t->probe_ms : PROBE_INTERVAL_MAX_MS;
}

/* Once a round; in each tier, trims a bit of what has been freed when the VM is @quiet. */
static void look_after_tiers(struct vm *vm, bool quiet)
{
    for (unsigned i = 1; i < UFFDMM_TIERS_MAX; i++) {
        struct tier *t = vm->tiers[i];

        if (t) {
            tier_tick(t);
        }
        if (t && quiet) {
            tier_tidy(t);
        }
    }
}

static void *background_thread(void *opaque)
{
    struct vm *vm = opaque;
    struct tracker t = {.interval_ms = INTERVAL_MIN_MS,
                        .probe_ms = PROBE_INTERVAL_MIN_MS};
    bool end = false;

    while (!end && (t.scans || pause_ms(vm, TRIM_INTERVAL_MS))) {
        struct sample s = {0};
        bool useful, look = due(vm, &t);

        look_after_tiers(vm, !look && t.quiet > 2);
        if (!look) {
            continue;
        }
        stats_set(&vm->stats->age_tracking, 1);
        if (!observe(vm, t.interval_ms, &s, &end)) {
            t.probe_ms = PROBE_INTERVAL_MAX_MS;
            back_off(vm, &t);
            continue;
        }
        atomic_store(&vm->ahead_blocks, ahead_allowance(&s));
        /* more than the trials alone can have brought: those that heat.c asked for */
        atomic_store(&vm->ahead_wasted,
                     s.ahead > AHEAD_TRIAL * (uint64_t)BLOCK_PAGES &&
                         atomic_load(&vm->ahead_blocks) <= AHEAD_TRIAL);
        if (++t.scans < LOOKS_MIN) {
            continue; /* ages mean something from the second scan on */
        }
        t.interval_ms = next_interval(vm, &s);
        useful = tells_apart(&s, sample_min(vm)) ||
                 (atomic_load(&vm->ages_useful) && still_tells(&s, sample_min(vm)));
        log_debug("access scan: used again %llu of %llu, anew %llu of %llu, arrived %llu "
                  "of %llu, ahead %llu of %llu%s",
                  (unsigned long long)s.was_used_again, (unsigned long long)s.was_used,
                  (unsigned long long)s.was_idle_used, (unsigned long long)s.was_idle,
                  (unsigned long long)s.arrived_used, (unsigned long long)s.arrived,
                  (unsigned long long)s.ahead_used, (unsigned long long)s.ahead,
                  useful ? "" : ": ages are not used");
        if (useful) {
            atomic_store(&vm->ages_useful, true);
            t.probe_ms = PROBE_INTERVAL_MIN_MS;
            t.doubts = 0;
        } else if (!atomic_load(&vm->ages_useful) || ++t.doubts >= DOUBTS_MAX) {
            /* one look may fall into a change of what the guest does */
            t.doubts = 0;
            back_off(vm, &t);
        }
    }
    return NULL;
}

int track_start(struct vm *vm)
{
    int ret;

    vm->background_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (vm->background_fd < 0) {
        return -errno;
    }
    ret = thread_start(&vm->background, "uffdmm-backgr", background_thread, vm);
    if (ret) {
        close(vm->background_fd);
        return ret;
    }
    vm->background_running = true;
    return 0;
}

void track_stop(struct vm *vm)
{
    uint64_t one = 1;

    if (!vm->background_running) {
        return;
    }
    atomic_store(&vm->stop, true);
    if (write(vm->background_fd, &one, sizeof(one)) < 0) {
        log_warn("cannot wake the background thread: %s", strerror(errno));
    }
    pthread_join(vm->background, NULL);
    close(vm->background_fd);
    vm->background_running = false;
}
