/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Compressed pages in memory: an arena of slabs, each cut into objects of one
 * size class.  Theory of operation at the head of pool.c.
 *
 * A slot names the object's place in the arena, so that nothing but the arena
 * itself (a memfd) and the page-state tables is needed to find a page again.
 * Safe to call from every thread; one pool_scratch belongs to one thread.  No
 * call but pool_create() and pool_scratch_new() allocates with malloc().
 */
#ifndef UFFDMM_POOL_H
#define UFFDMM_POOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tier_config.h"

struct pool;
struct pool_scratch;

/* Whose page an object holds; kept in the object, for compaction and recovery. */
struct pool_owner {
    uint32_t region_id; /* < UFFDMM_REGIONS_MAX */
    uint64_t pfn;       /* < 2^34 */
};

/*
 * A pool over a fresh sealed memfd of at most @arena_bytes, none of which is in
 * memory yet (the worker's mlockall() must not populate it).  0 or a negative errno.
 */
int pool_create(struct pool **out, uint64_t arena_bytes, enum tier_codec codec,
                int level);
void pool_destroy(struct pool *p);

/*
 * A pool over the arena of a worker that has died; @fd is copied.  It has no objects
 * until pool_adopt(), and frees no memory and must get no new objects until
 * pool_adopted_all().  0 or a negative errno: -EINVAL when @fd is no arena.
 */
int pool_open(struct pool **out, int fd, enum tier_codec codec, int level);

/*
 * The object in @slot is @owner's, says a page-state table.  False, and nothing done, when
 * no such object is there or it has been adopted already.  pool_unadopt() undoes it and
 * leaves the object in the arena.
 */
bool pool_adopt(struct pool *p, uint64_t slot, struct pool_owner owner);
void pool_unadopt(struct pool *p, uint64_t slot);

/* All tables have been read: what was not adopted is given back. */
void pool_adopted_all(struct pool *p);

/* The arena's memfd, which stays the pool's. */
int pool_fd(const struct pool *p);

int pool_scratch_new(struct pool *p, struct pool_scratch **out);
void pool_scratch_free(struct pool_scratch *s);

/*
 * Whether pages that do not compress are stored as they are (nobody else would take
 * them), or refused, which is how a pool begins.
 */
void pool_keep_raw(struct pool *p, bool keep);

/*
 * Compresses and stores a page.  @max_bytes: do not let the pool's memory grow
 * beyond this.  0 and *@slot (never 0, below 2^40), -E2BIG when it does not compress to
 * what is worth storing, -ENOSPC when there is no room.
 */
int pool_put(struct pool *p, struct pool_scratch *s, const void *page,
             struct pool_owner owner, uint64_t max_bytes, uint64_t *slot);

/*
 * Decompresses the page in @slot.  0, -ENOENT when no object is there, -EUCLEAN
 * when it is not @owner's or does not decompress to a page.
 */
int pool_get(struct pool *p, struct pool_scratch *s, uint64_t slot,
             struct pool_owner owner, void *page);

/* Frees the object; false, and nothing done, when there is none. */
bool pool_free(struct pool *p, uint64_t slot);

/* True when @slot can name an object (inside the arena, aligned): no promise that it does. */
bool pool_valid(const struct pool *p, uint64_t slot);

struct pool_usage {
    uint64_t arena_bytes;  /* memory taken by slabs */
    uint64_t object_bytes; /* of that, in objects, rounded to their class */
    uint64_t data_bytes;   /* compressed bytes of all objects */
    uint64_t objects;
};
void pool_usage(const struct pool *p, struct pool_usage *u);

/*
 * Finds the objects stored longest ago: fills in up to @max of them, oldest
 * first by slab, that were stored before @before_ns (CLOCK_MONOTONIC); returns
 * how many.  They may be freed or moved before the caller looks at them.  A call goes on
 * where the last one stopped and begins anew at the oldest when that leads to
 * nothing, so 0 means that there is none.
 */
struct pool_object {
    uint64_t slot;
    struct pool_owner owner;
    uint64_t stored_ns;
};
unsigned pool_oldest(struct pool *p, uint64_t before_ns, struct pool_object *out,
                     unsigned max);

/*
 * Moves objects out of sparse slabs into fuller ones of the same class, so that whole
 * slabs can be given back: at most @max objects, while more than @waste_percent of the
 * slabs' memory is not in objects.  @claim asks the owner of the table for the page
 * (false: leave it); @moved tells the outcome and releases it: @to is the new slot,
 * or @from when the move failed.  The pool frees @from afterwards, and calls both
 * without a lock of its own.  Returns the number of objects moved.  Gives idle empty slabs
 * back as well, so it is to be called now and then whatever is wasted.
 */
struct pool_mover {
    bool (*claim)(void *opaque, struct pool_owner owner, uint64_t from);
    void (*moved)(void *opaque, struct pool_owner owner, uint64_t from, uint64_t to);
    void *opaque;
};
unsigned pool_compact(struct pool *p, const struct pool_mover *m, unsigned max,
                      unsigned waste_percent);

#endif
