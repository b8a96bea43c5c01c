/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Migration by location, the worker's part; docs/migration.md has the whole.
 *
 *   mig_source.c   the session on the source: armed, begun, exported, ended
 *   mig_freeze.c   slots that the set S names are put aside, not freed
 *   mig_read.c     pages that are stored go to QEMU past guest memory
 *   mig_dest.c     the destination: volume attached, locations gathered, volume taken
 *   mig_deposit.c  records by way of the volume
 *   mig_install.c  locations into the page-state table
 *   mig_thread.c   the thread for what may take as long as a store takes
 */
#ifndef UFFDMM_MIG_H
#define UFFDMM_MIG_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tier_io.h"
#include "uffdmm/protocol.h"

struct conn;
struct region;
struct vm;

/* What a region has of it. */
struct region_mig {
    /* source: S and the bounce buffer, from the first MIG_START to the region's end */
    int set_fd, bounce_fd; /* 0: none yet */
    uint64_t set_size, bounce_size;
    struct uffdmm_set_header *set;
    struct uffdmm_set_page *_Atomic pages;
    char *bounce;

    /* destination: what has been imported; the migration thread's */
    uint64_t *entries, *records;
    uint8_t *ages;
    uint64_t count, digest;
    bool installed;

    _Atomic int jobs;  /* of the migration thread, with this region */
    _Atomic bool gone; /* the region goes: jobs are to end */
};

/* A request that the main thread does not answer itself. */
struct mig_job {
    struct mig_job *next;
    uint32_t type;
    uint64_t request_id;
    int sock; /* of the peer, a duplicate */
    int fd;   /* that came along, -1: none */
    struct region *region;
    uint64_t deadline; /* clock_ns() */
    union {
        struct uffdmm_mig_read read;
        struct uffdmm_mig_release release;
        struct uffdmm_mig_prepare prepare;
        struct uffdmm_mig_import import;
        struct uffdmm_mig_install install;
        struct uffdmm_mig_take take;
        struct uffdmm_mig_deposit deposit;
        struct uffdmm_mig_collect collect;
    } request;
};

/* Slots that hold records of the session. */
struct mig_deposit {
    uint64_t slot;
    unsigned nr;
};

#define MIG_DEPOSITS_MAX 256u

struct mig {
    struct vm *vm;
    _Atomic uint32_t stage; /* enum uffdmm_mig_stage */
    uint64_t session;
    _Atomic uint32_t tier; /* source: armed; destination: where the locations are */
    _Atomic uint32_t tid;  /* of QEMU's thread that migrates, 0: none */
    uint64_t epoch;        /* of the volume */

    /* source */
    _Atomic bool releasing;  /* MIG_RELEASE is being carried out */
    _Atomic bool uncertain;  /* it failed, and the volume may be released all the same */
    _Atomic bool freezing;   /* slots that S names are kept */
    _Atomic bool freeze_all; /* and all others, too */
    pthread_mutex_t freeze_lock;
    uint64_t *frozen; /* bitmap: put aside */
    uint64_t frozen_slots;
    struct mig_deposit deposits[MIG_DEPOSITS_MAX];
    unsigned nr_deposits;
    _Atomic uint64_t nr_frozen;

    /* destination; the thread's */
    struct uffdmm_mig_prepare prepared;
    _Atomic uint64_t located;

    /* the thread */
    pthread_t thread;
    bool running;
    _Atomic bool stop;
    int event_fd;
    pthread_mutex_t lock; /* around the list */
    struct mig_job *first, **last;
    struct tier_queue queue;
    char *buffer;                                /* MIG_READ_BYTES */
    struct mig_job *waiting[UFFDMM_REGIONS_MAX]; /* MIG_INSTALL that lack locations */
};

/* Bytes that one MIG_READ can ask for: a huge page, or 64 others. */
#define MIG_READ_BYTES (2u << 20)

int mig_new(struct vm *vm, struct mig **out);
void mig_free(struct mig *m);

/* No session that would be lost with this worker. */
static inline bool mig_idle(const struct mig *m)
{
    uint32_t stage = atomic_load(&m->stage);

    return stage == UFFDMM_MIG_IDLE || stage == UFFDMM_MIG_TAKEN;
}

/* The tiers have been closed: no session any more. */
void mig_reset(struct mig *m);

/* Answer the message in @c, at once or later: 0, or a negative errno to close it. */
int mig_arm(struct vm *vm, struct conn *c);
int mig_start(struct vm *vm, struct conn *c);
int mig_end(struct vm *vm, struct conn *c);
int mig_status(struct vm *vm, struct conn *c);
int mig_export(struct vm *vm, struct conn *c);
int mig_ack(struct vm *vm, struct conn *c);
int mig_read(struct vm *vm, struct conn *c);
int mig_release(struct vm *vm, struct conn *c);
int mig_prepare(struct vm *vm, struct conn *c);
int mig_import(struct vm *vm, struct conn *c);
int mig_install(struct vm *vm, struct conn *c);
int mig_take(struct vm *vm, struct conn *c);
int mig_deposit(struct vm *vm, struct conn *c);
int mig_collect(struct vm *vm, struct conn *c);

/* True while slots are frozen: the tiers must stay as large as they are. */
static inline bool mig_running(const struct mig *m)
{
    return atomic_load(&m->freezing);
}

/* All of it has left this host, but the volume is still ours: it must not be freed. */
bool mig_keeps_tier(const struct mig *m, unsigned tier);

/* Ends the jobs of a region that goes, and frees what it has. */
void mig_region_gone(struct region *r);

/* ---- between the files ----------------------------------------------------- */

/* Sends the error and says it in the log; the connection goes on. */
int mig_refuse(struct conn *c, int status, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* True when @fd is a memfd with these seals, so that nobody can make us wait for it. */
bool mig_sealed(int fd, int seals);

/* Starts the thread when it does not run; 0 or a negative errno. */
int mig_thread_start(struct mig *m);
void mig_thread_stop(struct mig *m);

/* Leaves the request in @c, of which @r is the region or NULL, to the thread. */
int mig_submit(struct vm *vm, struct conn *c, struct region *r);

/* In the thread: answers and forgets the job.  @text: the sentence of an error. */
void mig_reply(struct mig_job *job, const void *payload, size_t length);
void mig_reply_error(struct mig_job *job, int status, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* The jobs, each of which answers. */
void mig_do_read(struct mig *m, struct mig_job *job);
void mig_do_release(struct mig *m, struct mig_job *job);
void mig_do_prepare(struct mig *m, struct mig_job *job);
void mig_do_import(struct mig *m, struct mig_job *job);
void mig_do_take(struct mig *m, struct mig_job *job);
void mig_do_deposit(struct mig *m, struct mig_job *job);
void mig_do_collect(struct mig *m, struct mig_job *job);
/* The same on the source, which has released the volume to somebody who is lost. */
void mig_do_take_back(struct mig *m, struct mig_job *job);
/* False: it lacks locations, and is to be tried again. */
bool mig_try_install(struct mig *m, struct mig_job *job);

/* Volumes that another host held when this VM came: are they to be had by now? */
void mig_open_late(struct mig *m);

void mig_free_staging(struct region *r);

/* Puts what was imported for @r into its table.  0 or a negative errno with @err. */
int mig_install_region(struct mig *m, struct region *r, char *err, size_t err_len);

/* Begins to keep the slots of tier m->tier that S names.  0 or -ENOMEM. */
int mig_freeze_begin(struct mig *m);
/* Frees all that was put aside, and keeps nothing any more. */
void mig_freeze_end(struct mig *m);
/* True when the slots that @e named for page @pfn are kept: they are not to be freed. */
bool mig_freeze(struct region *r, uint64_t pfn, uint64_t e);

static inline uint64_t mig_mix(uint64_t x)
{
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9;
    x ^= x >> 27;
    x *= 0x94d049bb133111eb;
    return x ^ (x >> 31);
}

/* What a page with this location adds to the digest of S. */
static inline uint64_t mig_digest(uint64_t pfn, uint64_t entry, uint64_t record)
{
    uint64_t state = entry & UFFDMM_ENTRY_STATE_MASK;
    uint64_t tier = entry >> UFFDMM_ENTRY_TIER_SHIFT & UFFDMM_ENTRY_TIER_MASK;
    uint64_t v = state == UFFDMM_PAGE_EMPTY ? UINT64_MAX : tier ? entry >> 12 : 0;

    return mig_mix(mig_mix(mig_mix(pfn + 1) ^ v) ^ record);
}

#endif
