/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One virtual machine: what the worker's threads share.
 *
 *   main thread (worker.c)    sockets, messages, gauges, placement of threads
 *   fault threads (fault.c)   one a shard: serve userfaultfd messages
 *   evictor (evict.c)         keeps the VM a little below its limit
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

#include "config.h"
#include "options.h"
#include "pagestate.h"
#include "readahead.h"
#include "stats.h"
#include "store.h"
#include "uffd.h"

struct vm;
struct region;

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

/* A fault that cannot be served yet. */
struct deferred {
    uint64_t pfn;        /* page of the region */
    uint64_t since;      /* clock_ns() when its message was read */
    uint64_t not_before; /* clock_ns() of the next try */
    uint32_t tid;
    bool wp;
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

    /* for placement, read by the main thread */
    _Atomic uint32_t fault_tid;      /* thread in QEMU that faulted last */
    _Atomic uint64_t fault_switches; /* how often that changed */
    _Atomic uint64_t nr_faults;
    _Atomic bool same_cpu; /* the thread runs where its faults come from */
    uint64_t placed_faults, placed_switches; /* at the last look (place.c) */
    int cpu;                                 /* that it is bound to, -1: none */

    struct io io;
    void *buffer; /* WINDOW_MAX pages */
    struct readahead readahead;
    struct deferred deferred[DEFERRED_MAX];
    unsigned nr_deferred;
    uint64_t spin_ns;
};

/* BLOCK_PAGES neighbouring pages: the unit in which the evictor looks. */
struct block {
    struct block *next, *prev; /* in the eviction queue */
    struct region *region;
    uint32_t index;
    _Atomic bool queued;
};

struct region {
    struct vm *vm;
    uint32_t id;
    char name[UFFDMM_NAME_MAX];
    uint64_t nr_pages;
    uint64_t size; /* bytes */
    uint64_t base; /* address in QEMU, once attached */
    int memfd;
    int table_fd;
    int pagemap_fd;
    void *table;
    uint64_t table_size;
    struct uffdmm_table_header *header;
    entry_t *entries;
    uint64_t *records;
    uint8_t *ages;
    struct block *blocks;
    uint32_t nr_blocks;
    struct shard shards[UFFDMM_SHARDS_MAX];
    unsigned nr_shards;
    bool attached;
    int link_fd;               /* QEMU's connection for this region, -1 when lost */
    _Atomic uint64_t zap_done; /* generation of the last ZAP that QEMU answered */
};

struct vm {
    char name[UFFDMM_NAME_MAX];
    pid_t qemu_pid;
    int qemu_pidfd;
    const struct options *options;
    struct uffdmm_stats *stats;
    int stats_fd; /* read-only */
    struct store store;

    pthread_rwlock_t regions_lock; /* written only by the main thread */
    _Atomic bool regions_wanted;   /* the main thread waits for it */
    struct region *regions[UFFDMM_REGIONS_MAX];

    _Atomic int64_t resident;       /* guest pages in memory, as counted */
    _Atomic int64_t slot_pages;     /* STORED in slots */
    _Atomic int64_t zero_pages;     /* STORED as a repeated word */
    _Atomic uint64_t limit;         /* pages */
    _Atomic uint32_t readahead_max; /* pages */
    bool limit_chosen;              /* by SET_POLICY: no longer the default */
    _Atomic bool stop;

    /* eviction queue, oldest first (queue.c) */
    pthread_mutex_t queue_lock;
    struct block queue;

    /* evictor */
    pthread_t evictor;
    bool evictor_running;
    _Atomic pid_t evictor_tid;
    int evict_fd; /* eventfd: somebody wants room */
    _Atomic bool evictor_idle;

    /* background thread */
    pthread_t background;
    bool background_running;
    int background_fd;        /* eventfd: ends its sleep */
    _Atomic bool ages_useful; /* the access history tells pages apart */
    _Atomic int ahead_blocks; /* blocks that may still be brought in as a whole */
};

static inline uint64_t page_addr(const struct region *r, uint64_t pfn)
{
    return r->base + (pfn << PAGE_SHIFT_4K);
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
    return (int64_t)atomic_load_explicit(&vm->limit, memory_order_relaxed) -
           atomic_load_explicit(&vm->resident, memory_order_relaxed);
}

/*
 * The evictor keeps this many pages free below the limit (it starts below
 * `low`, stops above `high`), so that a fault seldom waits for it.
 */
static inline int64_t vm_margin_low(const struct vm *vm)
{
    int64_t sixteenth =
        (int64_t)(atomic_load_explicit(&vm->limit, memory_order_relaxed) / 16);

    return sixteenth < 512 ? sixteenth : 512;
}

static inline int64_t vm_margin_high(const struct vm *vm)
{
    return 2 * vm_margin_low(vm);
}

/* Counts a page that became STORED (@delta 1) or is no longer (-1). */
static inline void vm_count_stored(struct vm *vm, uint64_t e, int delta)
{
    atomic_fetch_add_explicit(entry_tier(e) == UFFDMM_TIER_ZERO ? &vm->zero_pages
                                                                : &vm->slot_pages,
                              delta, memory_order_relaxed);
}

/* Frees the slot that @e names, when it names one that is the caller's to free. */
void vm_free_slot(struct vm *vm, uint64_t e);

#endif
