/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the pool's own files share; nobody else includes this.  Theory of
 * operation at the head of pool.c.
 */
#ifndef UFFDMM_POOL_PRIV_H
#define UFFDMM_POOL_PRIV_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "config.h"
#include "pool.h"

#define POOL_SLAB_SHIFT 16
#define POOL_SLAB_BYTES (1u << POOL_SLAB_SHIFT)
#define POOL_SLAB_MASK (POOL_SLAB_BYTES - 1)
#define POOL_ALIGN_SHIFT 4 /* a slot counts pieces of 16 bytes */
#define POOL_ALIGN (1u << POOL_ALIGN_SHIFT)

/* A slot has 40 bits. */
#define POOL_ARENA_MAX (1ULL << (40 + POOL_ALIGN_SHIFT))

#define POOL_PFN_BITS 34
#define POOL_PFN_MAX (1ULL << POOL_PFN_BITS)

/* A page that needs more is not worth its place: three quarters. */
#define POOL_DATA_MAX 3072u

/* Bytes of a page that is kept as it is: its length tells it from a compressed one. */
#define POOL_RAW_BYTES PAGE_SIZE_4K

/* Distance of small classes; above 2 KiB the classes that fill a slab are wider apart. */
#define POOL_CLASS_STEP 64u
#define POOL_CLASSES_MAX 64u
#define POOL_CLASS_NONE 0xffu

/* Lists of a class: by quarters of the slab that are taken; full slabs are in none. */
#define POOL_GROUPS 4u

/* Empty slabs that stay in memory for the next one who needs a slab: 2 MiB. */
#define POOL_SPARES_MAX 32u

/* Slabs by the age of their oldest object: 4.3 s a bucket, 4.9 hours in all. */
#define POOL_AGE_SHIFT 32
#define POOL_AGE_BUCKETS 4096u

struct pool_list {
    struct pool_list *prev, *next;
};

static inline void pool_list_init(struct pool_list *l)
{
    l->prev = l;
    l->next = l;
}

static inline bool pool_list_empty(const struct pool_list *l)
{
    return l->next == l;
}

/* Puts @node before @at: at the end when @at is the head. */
static inline void pool_list_insert(struct pool_list *at, struct pool_list *node)
{
    node->prev = at->prev;
    node->next = at;
    at->prev->next = node;
    at->prev = node;
}

/* Takes @node out; it may be taken out again, which does nothing. */
static inline void pool_list_remove(struct pool_list *node)
{
    node->prev->next = node->next;
    node->next->prev = node->prev;
    pool_list_init(node);
}

/* ------------------------------------------------------------------------ */
/* In the arena: found there by a later worker, and input to it.            */

#define POOL_MAGIC 0x424c5355u /* "USLB" */
#define POOL_LAYOUT 1u

/* The first bytes of a slab that is in use. */
struct pool_slab_header {
    uint32_t magic;
    uint16_t layout; /* POOL_LAYOUT */
    uint8_t codec;   /* enum tier_codec */
    uint8_t pad;
    uint32_t object_size; /* bytes, its header included */
    uint32_t objects;     /* how many fit */
    uint64_t reserved[6];
};

/*
 * Before the bytes of an object.  @key is written last, and is 0 while there
 * is none: owner, length and a check value over them and the place.
 */
struct pool_object_header {
    _Atomic uint64_t key;
    _Atomic uint64_t stored_ns;
};

_Static_assert(sizeof(struct pool_slab_header) == 64, "objects begin at byte 64");
_Static_assert(sizeof(struct pool_object_header) == POOL_ALIGN, "data is aligned");

#define POOL_SLAB_DATA ((uint32_t)sizeof(struct pool_slab_header))
#define POOL_OBJECTS_MAX ((POOL_SLAB_BYTES - POOL_SLAB_DATA) / POOL_CLASS_STEP)
#define POOL_LIVE_WORDS ((POOL_OBJECTS_MAX + 63) / 64)

/* ------------------------------------------------------------------------ */
/* In private memory: what the worker relies on.                            */

enum pool_slab_state {
    POOL_SLAB_FREE = 0, /* not in memory */
    POOL_SLAB_MAKING,   /* between lists, in the hands of one thread */
    POOL_SLAB_SPARE,    /* in memory, empty */
    POOL_SLAB_OPEN,     /* has objects, or is about to get its first */
    POOL_SLAB_DRAINING  /* being emptied: gets no new objects */
};

/* One a slab.  Under the pool's lock but for what is atomic. */
struct pool_slab {
    struct pool_list fit; /* in a group of its class, the spares or the free ones */
    struct pool_list age; /* in an age bucket while it has a class */
    uint64_t bound_ns;    /* no object in it was stored before */
    uint32_t data_bytes;  /* compressed bytes */
    uint16_t used;        /* objects */
    uint8_t state;        /* enum pool_slab_state */
    uint8_t group;
    _Atomic uint8_t class_id;
    _Atomic uint64_t live[POOL_LIVE_WORDS]; /* bitmap of objects */
};

struct pool_class {
    uint32_t size; /* of an object with its header */
    uint32_t capacity;
    uint64_t slabs; /* open or draining */
    uint64_t used;  /* objects in them */
    struct pool_list group[POOL_GROUPS];
};

struct pool {
    pthread_mutex_t lock;
    int fd;
    enum tier_codec codec;
    int level;
    uint8_t *arena;
    uint64_t arena_bytes; /* its size, most of it not in memory */
    uint64_t nr_slabs;
    struct pool_slab *slabs;
    size_t slabs_bytes;

    unsigned nr_classes;
    struct pool_class classes[POOL_CLASSES_MAX];
    /* smallest class for a length in pieces of 16 bytes, rounded up */
    uint8_t class_of[POOL_RAW_BYTES / POOL_ALIGN + 1];
    bool adopting;         /* of a dead worker's arena, not all objects are known */
    _Atomic bool keep_raw; /* pages that do not compress are stored as they are */

    uint64_t fresh; /* slabs from here on were never used */
    struct pool_list free;
    struct pool_list spare;
    unsigned nr_spare;
    unsigned idle_spare; /* the fewest since pool_spares_release() */

    /* changed under the lock, read without */
    _Atomic uint64_t slabs_taken;
    _Atomic uint64_t object_bytes;
    _Atomic uint64_t data_bytes;
    _Atomic uint64_t objects;

    struct pool_list *buckets; /* POOL_AGE_BUCKETS, a ring */
    uint64_t age_base;         /* oldest period that has a bucket of its own */
    uint64_t age_first;        /* no period before this one has slabs, */
    uint64_t age_last;         /* none after this one */
    struct pool_slab *cursor;  /* where pool_oldest() goes on, NULL: at the oldest */
    unsigned cursor_object;
};

/* Where an object is. */
struct pool_place {
    struct pool_slab *slab;
    unsigned class_id;
    unsigned index; /* in its slab */
    struct pool_object_header *header;
};

static inline uint8_t *pool_slab_memory(const struct pool *p, const struct pool_slab *s)
{
    return p->arena + ((uint64_t)(s - p->slabs) << POOL_SLAB_SHIFT);
}

static inline struct pool_object_header *pool_object_at(const struct pool *p,
                                                        const struct pool_slab *s,
                                                        unsigned class_id, unsigned index)
{
    return (void *)(pool_slab_memory(p, s) + POOL_SLAB_DATA +
                    (size_t)index * p->classes[class_id].size);
}

static inline uint64_t pool_slot_of(const struct pool *p,
                                    const struct pool_object_header *h)
{
    return (uint64_t)((const uint8_t *)h - p->arena) >> POOL_ALIGN_SHIFT;
}

/* The most bytes that an object of the class holds. */
static inline uint32_t pool_class_data(const struct pool *p, unsigned class_id)
{
    return p->classes[class_id].size - (uint32_t)sizeof(struct pool_object_header);
}

static inline bool pool_live(const struct pool_slab *s, unsigned index)
{
    return (atomic_load_explicit(&s->live[index / 64], memory_order_acquire) >>
            (index % 64)) &
           1;
}

/* A counter that one thread at a time changes and everybody reads. */
static inline void pool_count(_Atomic uint64_t *counter, uint64_t delta)
{
    atomic_store_explicit(counter,
                          atomic_load_explicit(counter, memory_order_relaxed) + delta,
                          memory_order_relaxed);
}

/* ---- pool_object.c: headers of objects ---- */

/* The key of @owner's object of @length bytes in @slot; never 0. */
uint64_t pool_key(struct pool_owner owner, uint32_t length, uint64_t slot);

/* Takes the key apart; false when it is not one of an object in @slot. */
bool pool_key_parse(uint64_t key, uint64_t slot, struct pool_owner *owner,
                    uint32_t *length);

/* Finds what @slot names; false when no object can begin there or none is live. */
bool pool_place_of(const struct pool *p, uint64_t slot, struct pool_place *place);

/* Reads owner and length of the object in @place; false when they cannot be right. */
bool pool_object_read(const struct pool *p, const struct pool_place *place,
                      struct pool_owner *owner, uint32_t *length);

/* Writes @length bytes and then the header that makes them an object. */
void pool_object_write(const struct pool *p, const struct pool_place *place,
                       struct pool_owner owner, const void *data, uint32_t length,
                       uint64_t stored_ns);

/* ---- pool_slab.c: slabs and the places in them ---- */

int pool_slabs_init(struct pool *p);
void pool_slabs_deinit(struct pool *p);

/*
 * Takes a place for @length bytes stored at @stored_ns, in a new slab if need be and
 * @max_bytes allows.  0 or -ENOSPC.  Takes the lock.
 */
int pool_place_take(struct pool *p, uint32_t length, uint64_t stored_ns,
                    uint64_t max_bytes, struct pool_place *place);

/* Takes a place in an open slab of the class, never in a new one.  Under the lock. */
bool pool_place_take_open(struct pool *p, unsigned class_id, uint32_t length,
                          uint64_t stored_ns, struct pool_place *place);

/* Gives the place back if it is taken; takes the lock.  False when it is not. */
bool pool_place_give(struct pool *p, uint64_t slot);
/* The same, but the object stays in the arena: while the pool is being taken over. */
bool pool_place_forget(struct pool *p, uint64_t slot);

/* ---- pool_adopt.c ---- */

/* Begins with an arena of which nothing is known yet. */
void pool_slabs_adopt(struct pool *p);

/* ---- pool_slab.c again: what adopting needs ---- */

/* Gives a slab without a class, which is in no list, back: drops the lock meanwhile. */
void pool_slab_discard(struct pool *p, struct pool_slab *s);

/* Marks the free place @index of @s as taken.  Under the lock. */
void pool_place_take_at(struct pool *p, struct pool_slab *s, unsigned class_id,
                        unsigned index, uint32_t length, uint64_t stored_ns);

/* Puts the slab into the list that its number of objects asks for.  Under the lock. */
void pool_slab_regroup(struct pool *p, struct pool_slab *s);

/* Gives an empty slab back; called with the lock, which it drops and takes again. */
void pool_slab_release(struct pool *p, struct pool_slab *s, bool keep_spare);

/* Gives those spare slabs back that nobody needed since the last call.  Takes the lock. */
void pool_spares_release(struct pool *p);

/* ---- pool_age.c: slabs by the age of what they hold ---- */

int pool_age_init(struct pool *p);
void pool_age_deinit(struct pool *p);

/* @s holds an object stored at @stored_ns, perhaps its first.  Under the lock. */
void pool_age_note(struct pool *p, struct pool_slab *s, uint64_t stored_ns);

/* @s holds nothing any more.  Under the lock. */
void pool_age_forget(struct pool *p, struct pool_slab *s);

/* ---- pool_codec.c ---- */

/* Checks codec and level.  0 or -EINVAL. */
int pool_codec_check(enum tier_codec codec, int level);

/* The compressed bytes of @page, at *@data; 0 when there are more than POOL_DATA_MAX. */
uint32_t pool_compress(struct pool_scratch *s, const void *page, const void **data);

/*
 * Copies @length compressed bytes away from @data, which others may write to, and
 * decompresses them.  False when they do not make a page.
 */
bool pool_decompress(struct pool_scratch *s, const void *data, uint32_t length,
                     void *page);

/* ---- pool_memory.c ---- */

/*
 * Maps @bytes of @fd (-1: anonymous memory) that come into memory when they are
 * touched, whatever the process asked for with mlockall(), and then stay there.  0
 * or a negative errno.
 */
int pool_map_on_fault(int fd, size_t bytes, void **out);

/* A sealed memfd of @bytes; its number or a negative errno. */
int pool_memfd(uint64_t bytes);

/* Brings @bytes of a mapping into memory with one call.  0 or a negative errno. */
int pool_populate(void *addr, size_t bytes);

/* Gives memory back; what was there reads as zero.  0 or a negative errno. */
int pool_punch(int fd, uint64_t offset, uint64_t bytes);

#endif
