/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One virtual machine: what the worker's threads share.
 *
 *   main thread (worker.c)    sockets, messages, gauges, placement of threads
 *   fault threads (fault.c)   one a shard: serve userfaultfd messages
 *   evictor (evict.c)         keeps the VM a little below its limit
 *   demoter (demote.c)        moves stored pages to later tiers
 *   background (track.c)      access history, trimming
 *
 * Locks, in order of nesting: regions_lock, queue_lock, the slots' lock.  Fault
 * threads take only the last two, which nobody holds during I/O.
 */
#ifndef UFFDMM_VM_H
#define UFFDMM_VM_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "config.h"
#include "options.h"
#include "pagestate.h"
#include "presence.h"
#include "readahead.h"
#include "stats.h"
#include "fill.h"
#include "heat.h"
#include "lost.h"
#include "mig.h"
#include "tier.h"
#include "tier_io.h"
#include "uffd.h"

struct vm;
struct region;
struct window;

/*
 * Ages of pages: scans since the last one that found the page in use, or how it
 * came in since.  Being brought in maps a page like a use does, so a page says
 * something only from the zap after its arrival on.
 */
enum {
    AGE_MAX = 250,
    AGE_AHEAD = 252,       /* brought in with its block, zapped since */
    AGE_AHEAD_FRESH = 253, /* brought in with its block, unasked */
    AGE_NEW = 254,         /* demanded, zapped since */
    AGE_NEW_FRESH = 255    /* demanded since the last zap */
};

/* One userfaultfd and the thread that serves it. */
struct shard {
    struct region *region;
    int uffd;
    int wake_fd;    /* eventfd: ends a sleep of the thread */
    uint64_t first; /* pages [first, end) of the region */
    uint64_t end;
    pthread_t thread;
    bool running;
    _Atomic bool stop;
    _Atomic bool gone;    /* the process behind the userfaultfd has ended */
    _Atomic bool waiting; /* has deferred faults: signal wake_fd on progress */
    _Atomic pid_t tid;    /* of the fault thread */

    /* prefetch.c: lists that come from the main thread, and go back to it */
    struct prefetch_list *_Atomic prefetch_new, *_Atomic prefetch_old;
    struct prefetch_list *prefetch; /* being worked off */
    unsigned prefetch_fills;        /* of it, under way */

    /* for placement, read by the main thread */
    _Atomic uint32_t fault_tid;      /* thread in QEMU that faulted last */
    _Atomic uint64_t fault_switches; /* how often that changed */
    _Atomic uint64_t nr_faults;
    _Atomic bool same_cpu; /* the thread runs where its faults come from */
    uint64_t placed_faults, placed_switches; /* at the last look (place.c) */
    int cpu;                                 /* that it is bound to, -1: none */

    struct tier_queue queue;
    void *window_map;
    struct window *windows;
    unsigned nr_windows;
    uint32_t windows_used;        /* bit i: window i is in use, */
    uint8_t window_tier[WINDOWS]; /* and waits for this tier */
    void *zeros;                  /* a huge page of zeros, in a shard of such */
    uint64_t last_read_ns;        /* clock_ns() when a read was last started */
    struct readahead readahead;
    struct heat heat;
    struct lost lost;
    unsigned failing; /* faults whose content cannot be had now */
    struct deferred deferred[DEFERRED_MAX];
    unsigned nr_deferred;
    uint64_t spin_ns;
};

/* Neighbouring pages (region_block()): the unit in which the evictor looks. */
struct block {
    struct block *next, *prev; /* in the eviction queue */
    struct region *region;
    uint32_t index;
    _Atomic bool queued;
};

struct region {
    struct vm *vm;
    uint32_t id;
    uint64_t seed;   /* of the checksums: of its name, which is the same on every host */
    uint64_t serial; /* of all regions that this VM ever had */
    char name[UFFDMM_NAME_MAX];
    unsigned page_shift;  /* of its pages, PAGE_SHIFT_4K or PAGE_SHIFT_2M */
    unsigned block_pages; /* BLOCK_PAGES, or 1 of 2 MiB */
    uint64_t nr_pages;
    uint64_t size; /* bytes */
    uint64_t base; /* address in QEMU, once attached */
    int memfd;
    int table_fd;
    int lock_fd; /* the table again, locked: nobody else serves this region */
    int pagemap_fd;
    void *table;
    uint64_t table_size;
    struct uffdmm_table_header *header;
    entry_t *entries;
    uint64_t *records;
    uint8_t *ages;
    const _Atomic uint32_t *pins; /* written by QEMU, any value: see pins.h */
    _Atomic uint64_t *raw; /* bitmap: the page did not compress when it was last tried */
    struct block *blocks;
    uint32_t nr_blocks;
    struct presence presence;
    struct shard shards[UFFDMM_SHARDS_MAX];
    unsigned nr_shards;
    bool attached;
    _Atomic int parked;        /* batches of the evictor that wait with pages of it */
    int link_fd;               /* QEMU's connection for this region, -1 when lost */
    _Atomic uint64_t zap_done; /* generation of the last ZAP that QEMU answered */
    struct region_mig mig;
};

struct vm {
    char name[UFFDMM_NAME_MAX];
    pid_t qemu_pid;
    int qemu_pidfd;
    const struct options *options;
    struct tier_config tier_configs[UFFDMM_TIERS_MAX]; /* with what is this VM's own */
    uint8_t uuid[16];
    struct uffdmm_stats *stats;
    int stats_fd; /* read-only */
    struct tier tier[UFFDMM_TIERS_MAX];
    struct tier *_Atomic
        tiers[UFFDMM_TIERS_MAX]; /* open ones by index, NULL: none; [0] is never one */
    _Atomic unsigned nr_tiers;   /* the zero tier among them */
    _Atomic unsigned nr_waited;  /* of them, not in memory; at least 1 */
    bool incoming;               /* QEMU waits for a migration, when the VM began here */
    struct mig *mig;

    pthread_rwlock_t regions_lock; /* written only by the main thread */
    _Atomic bool regions_wanted;   /* the main thread waits for it */
    struct region *regions[UFFDMM_REGIONS_MAX];
    uint64_t regions_made;
    bool unsettled; /* taken over, and regions that existed have not come back yet */
    _Atomic bool note_due; /* what a new worker needs to know has changed */
    uint32_t expected;     /* unsettled: bit i: there is a region of number i */

    _Atomic int64_t resident;                 /* guest pages in memory, as counted */
    _Atomic int64_t stored[UFFDMM_TIERS_MAX]; /* pages STORED, by tier */
    _Atomic int64_t arena_pages; /* of tiers in memory that count against the limit */
    _Atomic uint64_t demote_after_ns;
    uint64_t tier_bytes[UFFDMM_TIERS_MAX]; /* policy: most to be stored, 0: no bound */
    uint64_t
        lost_after_ns; /* a page that cannot be had for so long is poisoned, 0: never */
    unsigned limit_percent;         /* of RAM, until a limit is chosen; 0: none */
    _Atomic uint64_t limit;         /* pages */
    _Atomic uint64_t host_limit;    /* pages: what the host has huge pages for, huge.c */
    _Atomic int64_t pins_room;      /* pages in memory that do not count: pins.h */
    _Atomic int64_t mig_room;       /* pages that may pass the limit: mig_room.h */
    _Atomic int64_t claimed;        /* of the room: by huge pages on their way in */
    _Atomic uint32_t nr_blocks;     /* of all regions */
    _Atomic uint32_t nr_huge;       /* regions of huge pages */
    _Atomic uint32_t readahead_max; /* pages */
    _Atomic unsigned unreadable;    /* faults whose content cannot be had now */
    _Atomic unsigned store_state;   /* of the evictor: an enum uffdmm_worker_state */
    bool limit_chosen;              /* by SET_POLICY: no longer the default */
    _Atomic bool stop;
    _Atomic int64_t prefetch_left; /* pages that PREFETCH may still bring in */
    _Atomic int64_t evict_to;      /* resident pages that EVICT asked for, -1: nothing */

    /* eviction queue, oldest first (queue.c) */
    pthread_mutex_t queue_lock;
    struct block queue;

    /* evictor */
    pthread_t evictor;
    bool evictor_running;
    _Atomic pid_t evictor_tid;
    int evict_fd; /* eventfd: somebody wants room */
    _Atomic bool evictor_idle;

    /* demoter */
    pthread_t demoter;
    bool demoter_running;
    int demote_fd; /* eventfd: ends its sleep */

    /* background thread */
    pthread_t background;
    bool background_running;
    int background_fd;         /* eventfd: ends its sleep */
    _Atomic bool ages_useful;  /* the access history tells pages apart */
    _Atomic int ahead_blocks;  /* blocks that may still be brought in as a whole */
    _Atomic bool ahead_wasted; /* blocks that came as a whole were not used */
};

static inline uint64_t page_addr(const struct region *r, uint64_t pfn)
{
    return r->base + (pfn << r->page_shift);
}

static inline size_t region_page_bytes(const struct region *r)
{
    return (size_t)1 << r->page_shift;
}

/* What a page of the region counts for, in pages of 4 KiB. */
static inline unsigned region_units(const struct region *r)
{
    return 1u << (r->page_shift - PAGE_SHIFT_4K);
}

static inline bool region_is_huge(const struct region *r)
{
    return r->page_shift != PAGE_SHIFT_4K;
}

/* Block that a page belongs to. */
static inline uint64_t region_block(const struct region *r, uint64_t pfn)
{
    return pfn / r->block_pages;
}

/* A hint that saves trying to compress a page again. */
static inline bool region_is_raw(const struct region *r, uint64_t pfn)
{
    return atomic_load_explicit(&r->raw[pfn / 64], memory_order_relaxed) >> (pfn % 64) &
           1;
}

static inline void region_mark_raw(struct region *r, uint64_t pfn, bool raw)
{
    uint64_t bit = 1ULL << (pfn % 64);

    if (region_is_raw(r, pfn) == raw) {
        return;
    }
    if (raw) {
        atomic_fetch_or_explicit(&r->raw[pfn / 64], bit, memory_order_relaxed);
    } else {
        atomic_fetch_and_explicit(&r->raw[pfn / 64], ~bit, memory_order_relaxed);
    }
}

/*
 * What is stored of a page, by its checksum or its repeated word: set before the entry says
 * STORED.  Who looks at a page that is not its own finds the one of before or after.
 */
static inline uint64_t region_record(const struct region *r, uint64_t pfn)
{
    return __atomic_load_n(&r->records[pfn], __ATOMIC_ACQUIRE);
}

/*
 * Ages are a policy's: fault threads, evictor, demoter and background thread set them in any
 * order, and QEMU could.  Each of them reads one once and takes what it finds.
 */
static inline uint8_t region_age(const struct region *r, uint64_t pfn)
{
    return __atomic_load_n(&r->ages[pfn], __ATOMIC_RELAXED);
}

static inline void region_set_age(struct region *r, uint64_t pfn, uint8_t age)
{
    __atomic_store_n(&r->ages[pfn], age, __ATOMIC_RELAXED);
}

/* Shard that a page belongs to. */
static inline struct shard *page_shard(struct region *r, uint64_t pfn)
{
    for (unsigned i = 0; i + 1 < r->nr_shards; i++) {
        if (pfn < r->shards[i].end) {
            return &r->shards[i];
        }
    }
    return &r->shards[r->nr_shards - 1];
}

/* Pages that may still be brought in before the limit is reached; may be negative. */
static inline int64_t vm_room(const struct vm *vm)
{
    uint64_t limit = atomic_load_explicit(&vm->limit, memory_order_relaxed);
    uint64_t host = atomic_load_explicit(&vm->host_limit, memory_order_relaxed);

    return (int64_t)(limit < host ? limit : host) -
           atomic_load_explicit(&vm->resident, memory_order_relaxed) -
           atomic_load_explicit(&vm->arena_pages, memory_order_relaxed) -
           atomic_load_explicit(&vm->claimed, memory_order_relaxed) +
           atomic_load_explicit(&vm->pins_room, memory_order_relaxed) +
           atomic_load_explicit(&vm->mig_room, memory_order_relaxed);
}

/* Of the margins below: one huge page or two, 0 when the VM has none. */
static inline int64_t vm_margin_huge(const struct vm *vm)
{
    if (!atomic_load_explicit(&vm->nr_huge, memory_order_relaxed)) {
        return 0;
    }
    return atomic_load_explicit(&vm->limit, memory_order_relaxed) >= 32 * HUGE_PAGE_UNITS
               ? 2 * HUGE_PAGE_UNITS
               : HUGE_PAGE_UNITS;
}

/*
 * The evictor keeps this many pages free below the limit (it starts below
 * `low`, stops above `high`), so that a fault seldom waits for it.  A huge page needs
 * room for the whole of it: it starts when there is room for one or two left.
 */
static inline int64_t vm_margin_low(const struct vm *vm)
{
    int64_t sixteenth =
        (int64_t)(atomic_load_explicit(&vm->limit, memory_order_relaxed) / 16);
    int64_t huge = vm_margin_huge(vm);

    return huge ? huge + 1 : sixteenth < 512 ? sixteenth : 512;
}

static inline int64_t vm_margin_high(const struct vm *vm)
{
    int64_t huge = vm_margin_huge(vm);

    return huge ? 2 * huge : 2 * vm_margin_low(vm);
}

/* Tier that @e names; NULL when there is none of that number, or it is the zero tier. */
static inline struct tier *vm_tier(const struct vm *vm, uint64_t e)
{
    return entry_tier(e) < UFFDMM_TIERS_MAX ? vm->tiers[entry_tier(e)] : NULL;
}

/* Counts a page of @r that became STORED (@sign 1) or is no longer (-1). */
static inline void region_count_stored(struct region *r, uint64_t e, int sign)
{
    if (entry_tier(e) < UFFDMM_TIERS_MAX) {
        atomic_fetch_add_explicit(&r->vm->stored[entry_tier(e)],
                                  sign * (int64_t)region_units(r), memory_order_relaxed);
    }
}

/*
 * Checksum of a stored page: a page that lands in another place, or comes from
 * another time, does not match.
 */
static inline uint64_t page_checksum(const struct region *r, const void *page,
                                     uint64_t pfn, unsigned generation)
{
    uint64_t seed = r->seed ^ pfn ^ ((uint64_t)generation << 52);

    return XXH3_64bits_withSeed(page, region_page_bytes(r), seed);
}

/*
 * Frees the slots of page @pfn of @r that @e names, when it names some that are the
 * caller's to free.  The entry of the page names them no longer.  Those that a migration
 * has published are put aside (mig_freeze.c).
 */
void region_free_slots(struct region *r, uint64_t pfn, uint64_t e);

/* Shows in the statistics whether some page cannot be read or written now.  From any thread. */
void vm_show_state(struct vm *vm);

#endif
