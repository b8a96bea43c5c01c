/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The tiers of one VM: stores of different latency behind one interface.
 *
 * A tier hands out slots, one a page, and moves bytes between slots and
 * buffers.  What a slot number means is the tier's own affair, but slot 0 is
 * never a page's and a slot fits into 40 bits.  Transfers are asynchronous: a
 * thread submits them to its own queue (tier_io.h) and polls for their end, so
 * that a store which does not answer holds up nobody but the pages in it.
 */
#ifndef UFFDMM_TIER_H
#define UFFDMM_TIER_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "superblock.h"
#include "tier_config.h"
#include "tier_inject.h"
#include "uffdmm/protocol.h"

struct tier;
struct tier_io;
struct tier_queue;
struct pool_mover;
struct pool_object;

/* Whose tier it is. */
struct tier_vm {
    const char *name;
    uint8_t uuid[16];
    pid_t qemu_pid;
    uint64_t ram_bytes; /* known so far */
    bool kept;          /* the volume is there: a dead worker left it, with its pages */
    int arena_fd;  /* kept: the arena or journal of the tier, a descriptor to be copied */
    bool incoming; /* it is being migrated here: leave alone what another host holds */
    bool late;     /* QEMU has got its descriptors already, and gets no more */
};

/* The volume of a VM on another host, from which pages will be taken over. */
struct tier_source {
    const char *name; /* of the VM there */
    uint8_t uuid[16];
    uint64_t epoch;
};

/* Who may write to the volume of a tier. */
enum tier_hold {
    TIER_HELD,    /* we */
    TIER_READING, /* another host: its pages can be read here */
    TIER_RELEASED /* nobody, or another host already: ours no longer */
};

/* One page to be stored. */
struct tier_put {
    const void *data; /* one page */
    uint32_t region_id;
    uint64_t pfn;
    uint64_t slot; /* out */
    int result;    /* out: 0, -ENOSPC: no room, -E2BIG: does not compress, -EIO */
};

/* Per-thread memory of a tier that needs some to compress; opaque. */
struct tier_scratch;

struct tier_ops {
    /*
     * Opens or creates the volume of @vm.  t->config and t->stats are set, the
     * rest is zero.  0, or a negative errno with one sentence for the user in @err.
     */
    int (*open)(struct tier *t, const struct tier_vm *vm, char *err, size_t err_len);

    /* Frees the volume, or leaves it for a later open() when @keep. */
    void (*close)(struct tier *t, bool keep);

    /*
     * Makes room for @bytes of pages, as far as the configuration allows: sets
     * t->stats->capacity_bytes.  May be called again with more.  0, or a
     * negative errno with @err when not even what is allowed is there.
     */
    int (*reserve)(struct tier *t, uint64_t bytes, char *err, size_t err_len);

    /* Memory of a thread that will call put() or submit reads; NULL when none is needed. */
    int (*scratch_new)(struct tier *t, struct tier_scratch **out);
    void (*scratch_free)(struct tier_scratch *s);

    /*
     * Takes a slot for each of @nr pages, neighbours where it can, and sets slot
     * and result of each.  Slots of pages that follow each other in @puts ascend.
     * No I/O, no waiting.  With t->put_stores the bytes are stored as well; else a
     * write has to be submitted for each slot.
     */
    void (*put)(struct tier *t, struct tier_scratch *s, struct tier_put *puts,
                unsigned nr);

    /*
     * Takes a run of @nr neighbouring slots for a huge page, which the caller writes
     * by as many transfers as extent() asks for; *@slot is its first.  0 or -ENOSPC.
     * NULL: the tier takes no huge pages.
     */
    int (*take_run)(struct tier *t, unsigned nr, uint64_t *slot);

    /*
     * A worker takes over, and all tiers have been opened: makes the volume ours.  To open
     * it has changed nothing.  0 or a negative errno with @err.  NULL: nothing to be done.
     */
    int (*adopt)(struct tier *t, char *err, size_t err_len);

    /*
     * A worker takes over: an entry names @slot for this page.  False, and nothing done,
     * when that cannot be, or it is taken already.  untake() undoes it, settle() says that
     * all entries have been seen: what they do not name is free.
     */
    bool (*take)(struct tier *t, uint64_t slot, uint32_t region_id, uint64_t pfn);
    void (*untake)(struct tier *t, uint64_t slot);
    void (*settle)(struct tier *t);

    /* Which volume it is: the same bytes for a worker that takes it over, no others. */
    void (*identity)(const struct tier *t, uint8_t id[16]);

    /* Gives a slot back.  False, and nothing done, when it was not taken. */
    bool (*free)(struct tier *t, uint64_t slot);

    /* True when a page-state entry may name @slot. */
    bool (*valid)(const struct tier *t, uint64_t slot);

    /*
     * How many slots from @slot on, at most @nr, one request may cover.  1 when
     * slots are no neighbours of each other.
     */
    uint64_t (*extent)(const struct tier *t, uint64_t slot, uint64_t nr);

    /*
     * Starts the transfer.  Ends in tier_io_done(), from this call or later and
     * from any thread.  Short transfers are carried on to their end by the tier.
     */
    void (*submit)(struct tier *t, struct tier_queue *q, struct tier_io *io);

    /*
     * A bit of work in the background: trims freed slots.  Returns the bytes
     * given back, 0 when there is nothing to do.  Counts them in t->stats.  May be NULL.
     */
    uint64_t (*tidy)(struct tier *t);

    /*
     * Twice a second, however busy the VM is, while tidy() is for when it is not: what has
     * been held back for a time is given back.  May be NULL.
     */
    void (*tick)(struct tier *t);

    /* Ends all transfers soon, with -ECANCELED if need be: the VM is gone.  May be NULL. */
    void (*cancel)(struct tier *t);

    /* Slots taken, in bytes of store (a pool: memory). */
    uint64_t (*used)(const struct tier *t);

    /* Slots taken, in pages.  NULL: used() in pages. */
    uint64_t (*pages)(const struct tier *t);

    /*
     * For tiers whose volumes several hosts reach; all of them are NULL for others.
     * Each may take as long as the store takes.
     *
     * label(): what was last written to, or read from, the label.  -EOPNOTSUPP with
     * @err when this volume cannot go to another host.
     */
    int (*label)(const struct tier *t, struct superblock *label, char *err,
                 size_t err_len);

    /* As open(), of a volume that another host holds: nothing of it is written. */
    int (*attach)(struct tier *t, const struct tier_vm *vm,
                  const struct tier_source *from, char *err, size_t err_len);

    /* Takes this very slot, which a page is in.  False when it is taken or is none. */
    bool (*claim)(struct tier *t, uint64_t slot);

    /*
     * Writes RELEASED with the epoch after ours durably; no write is under way.  May be
     * called again after a failure.  *@epoch: the new one.
     */
    int (*release_volume)(struct tier *t, const char *destination, uint64_t *epoch,
                          char *err, size_t err_len);

    /* Of an attached volume: makes it ours, if it was released in @epoch. */
    int (*take_volume)(struct tier *t, uint64_t epoch, char *err, size_t err_len);

    /* pool_oldest() and pool_compact() of a tier that has them, else NULL. */
    unsigned (*oldest)(struct tier *t, uint64_t before_ns, struct pool_object *out,
                       unsigned max);
    unsigned (*compact)(struct tier *t, const struct pool_mover *m, unsigned max);
};

struct tier {
    const struct tier_ops *ops;
    const struct tier_config *config;
    struct uffdmm_tier_stats *stats;
    void *priv;          /* the implementation's */
    struct tier_vm vm;   /* set by tier_open() */
    unsigned index;      /* in page-state entries */
    bool last;           /* no tier comes after it */
    bool unsettled;      /* not all who have pages here are known: nothing new; atomic */
    bool put_stores;     /* put() stores the bytes too, reads are done at once */
    int arena_fd;        /* memfd that QEMU keeps for a later worker, or -1 */
    bool hard_to_keep;   /* a new worker could not take it over, or not use it at once */
    uint64_t max_bytes;  /* what this VM may store here, by policy; atomic */
    uint64_t io_pending; /* transfers under way; atomic */
    uint64_t writes;     /* of them, writes; atomic */
    uint64_t puts;       /* threads in tier_put() and tier_take_run(); atomic */
    uint32_t hold;       /* enum tier_hold; atomic */
    pthread_mutex_t tidy_lock;
    uint64_t logged;       /* clock_ns() of the last line about an error */
    uint64_t failed_until; /* clock_ns() until which it counts as failing; atomic */
    uint64_t avoid_until;  /* clock_ns() before which nothing new is put here; atomic */
    uint64_t ended_seen;   /* transfers that had ended when the gauges last saw one end */
    uint64_t ended_ns;     /* when that was */
    struct inject_trigger error_trigger, delay_trigger; /* of the wrappers */
};

extern const struct tier_ops tier_pool_ops;
extern const struct tier_ops tier_file_ops;
extern const struct tier_ops tier_nbd_ops;

/*
 * Opens the tier @index of a VM.  @config and @stats outlive it.  0, or a negative
 * errno with one sentence for the user in @err.
 */
int tier_open(struct tier *t, unsigned index, const struct tier_config *config,
              const struct tier_vm *vm, struct uffdmm_tier_stats *stats, char *err,
              size_t err_len);

/* The same for a volume that another host holds: the tier is TIER_READING. */
int tier_attach(struct tier *t, unsigned index, const struct tier_config *config,
                const struct tier_vm *vm, const struct tier_source *from,
                struct uffdmm_tier_stats *stats, char *err, size_t err_len);

/* Frees the volume, or leaves it when @keep or when it is not ours. */
void tier_close(struct tier *t, bool keep);

static inline enum tier_hold tier_hold(const struct tier *t)
{
    return (enum tier_hold)__atomic_load_n(&t->hold, __ATOMIC_SEQ_CST);
}

/* One step of tidy(), when there is such a thing and the volume is ours. */
void tier_tidy(struct tier *t);

/* The same of tick(). */
void tier_tick(struct tier *t);

/*
 * From the return on nothing is written to the volume, by nobody here, and no slot is
 * taken in it.  0, or -ETIMEDOUT after @timeout_ns, and all is as it was.
 */
int tier_quiesce(struct tier *t, uint64_t timeout_ns);

/*
 * put() within what policy allows: pages beyond that get -ENOSPC, and all of them while
 * the tier is away, or is slow or failing and not the last one.
 */
void tier_put(struct tier *t, struct tier_scratch *s, struct tier_put *puts, unsigned nr);

/* take_run() within what policy allows; -E2BIG when the tier takes no huge pages. */
int tier_take_run(struct tier *t, unsigned nr, uint64_t *slot);

/* Gives @nr slots from @slot on back.  False when some were not taken. */
bool tier_free(struct tier *t, uint64_t slot, unsigned nr);

/* True when an entry may name @slot for a page of @nr slots. */
bool tier_valid(const struct tier *t, uint64_t slot, unsigned nr);

/* Slots taken, in pages. */
uint64_t tier_pages(const struct tier *t);

/* Bytes that this VM may store here, by room and by policy; UINT64_MAX without bound. */
uint64_t tier_room(const struct tier *t);

/* Nothing new is put into the tier for @ns: it failed, or is slow. */
void tier_avoid(struct tier *t, uint64_t ns);

/* Brings the gauges of the tier up to date.  From one thread, every now and then. */
void tier_gauges(struct tier *t);

/*
 * Notes an error for operators: keeps the sentence in the statistics and the log, and
 * shows the tier as failing for a while.
 */
void tier_error(struct tier *t, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* Sets the state gauge (enum uffdmm_tier_state). */
void tier_set_state(struct tier *t, unsigned state);

#endif
