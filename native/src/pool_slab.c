/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Slabs of the pool: size classes, and taking and giving back places.
 *
 * Above 2 KiB the classes are those sizes of which a whole number fills a
 * slab: 21 .. 32 objects.  Below, classes that a fixed step separates are wide enough apart not to
 * scatter pages over too many slabs, and what is left at the end of a slab is
 * small against it.  Either way about 3 % is lost inside objects.
 *
 * A page goes to the fullest slab of its class that has room, so that the
 * sparse ones get a chance to run empty.
 *
 * System calls happen outside the lock: a slab between two states (MAKING) is
 * in no list and belongs to the thread that took it.
 */
#include "pool_priv.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define SLAB_ROOM (POOL_SLAB_BYTES - POOL_SLAB_DATA)

static void class_add(struct pool *p, uint32_t size)
{
    struct pool_class *c = &p->classes[p->nr_classes++];

    c->size = size;
    c->capacity = SLAB_ROOM / size;
    for (unsigned g = 0; g < POOL_GROUPS; g++) {
        pool_list_init(&c->group[g]);
    }
}

static void classes_init(struct pool *p)
{
    const uint32_t header = sizeof(struct pool_object_header);
    uint32_t size = POOL_CLASS_STEP, n, exact;
    unsigned class_id = 0;

    /* by steps, as long as one more object in a slab makes a smaller difference */
    for (n = SLAB_ROOM / size; SLAB_ROOM / n - SLAB_ROOM / (n + 1) < POOL_CLASS_STEP;
         n = SLAB_ROOM / size) {
        class_add(p, size);
        size += POOL_CLASS_STEP;
    }
    for (;; n--) {
        exact = SLAB_ROOM / n / POOL_ALIGN * POOL_ALIGN;
        if (exact > p->classes[p->nr_classes - 1].size) {
            class_add(p, exact);
        }
        if (exact >= POOL_DATA_MAX + header) {
            break;
        }
    }
    class_add(p, (POOL_RAW_BYTES + header + POOL_ALIGN - 1) / POOL_ALIGN * POOL_ALIGN);
    for (uint32_t i = 0; i <= POOL_RAW_BYTES / POOL_ALIGN; i++) {
        while (p->classes[class_id].size < i * POOL_ALIGN + header) {
            class_id++;
        }
        p->class_of[i] = (uint8_t)class_id;
    }
}

int pool_slabs_init(struct pool *p)
{
    void *slabs;
    int ret;

    p->slabs_bytes = (size_t)p->nr_slabs * sizeof(*p->slabs);
    /* one for each slab of the arena, most of which never get used */
    ret = pool_map_on_fault(-1, p->slabs_bytes, &slabs);
    if (ret) {
        return ret;
    }
    p->slabs = slabs;
    pool_list_init(&p->free);
    pool_list_init(&p->spare);
    classes_init(p);
    return 0;
}

void pool_slabs_deinit(struct pool *p)
{
    munmap(p->slabs, p->slabs_bytes);
}

void pool_slab_regroup(struct pool *p, struct pool_slab *s)
{
    unsigned class_id = atomic_load_explicit(&s->class_id, memory_order_relaxed);
    struct pool_class *c = &p->classes[class_id];
    unsigned group = s->used * POOL_GROUPS / c->capacity;

    if (s->state != POOL_SLAB_OPEN || (group == s->group && !pool_list_empty(&s->fit))) {
        return;
    }
    pool_list_remove(&s->fit);
    s->group = (uint8_t)group;
    if (group < POOL_GROUPS) {
        pool_list_insert(c->group[group].next, &s->fit);
    }
}

/* Keeps an empty slab in memory.  Under the lock. */
static void slab_spare(struct pool *p, struct pool_slab *s)
{
    struct pool_slab_header *h = (void *)pool_slab_memory(p, s);

    h->magic = 0;
    s->state = POOL_SLAB_SPARE;
    pool_list_insert(p->spare.next, &s->fit);
    p->nr_spare++;
}

/* Gives the memory of @s, which is in no list, back.  Drops the lock meanwhile. */
static void slab_punch(struct pool *p, struct pool_slab *s)
{
    int ret;

    s->state = POOL_SLAB_MAKING;
    pthread_mutex_unlock(&p->lock);
    ret = pool_punch(p->fd, (uint64_t)(s - p->slabs) << POOL_SLAB_SHIFT, POOL_SLAB_BYTES);
    pthread_mutex_lock(&p->lock);
    if (ret) {
        slab_spare(p, s); /* still there, so it counts; tried again later */
        return;
    }
    s->state = POOL_SLAB_FREE;
    pool_list_insert(p->free.next, &s->fit);
    pool_count(&p->slabs_taken, -1ULL);
}

void pool_slab_discard(struct pool *p, struct pool_slab *s)
{
    slab_punch(p, s);
}

void pool_slab_release(struct pool *p, struct pool_slab *s, bool keep_spare)
{
    unsigned class_id = atomic_load_explicit(&s->class_id, memory_order_relaxed);

    pool_list_remove(&s->fit);
    pool_age_forget(p, s);
    p->classes[class_id].slabs--;
    /* a damaged header may have told another length at the end than at the start */
    pool_count(&p->data_bytes, -(uint64_t)s->data_bytes);
    s->data_bytes = 0;
    atomic_store_explicit(&s->class_id, POOL_CLASS_NONE, memory_order_release);
    if (keep_spare && p->nr_spare < POOL_SPARES_MAX) {
        slab_spare(p, s);
    } else {
        slab_punch(p, s);
    }
}

void pool_spares_release(struct pool *p)
{
    unsigned nr;

    pthread_mutex_lock(&p->lock);
    for (nr = p->idle_spare; nr > 0 && p->nr_spare > 0; nr--) {
        struct pool_slab *s = (void *)p->spare.prev;

        pool_list_remove(&s->fit);
        p->nr_spare--;
        slab_punch(p, s);
    }
    p->idle_spare = p->nr_spare;
    pthread_mutex_unlock(&p->lock);
}

_Static_assert(offsetof(struct pool_slab, fit) == 0, "a slab is where its list node is");

/*
 * Takes a slab that has no class; *@in_memory says whether its pages are there.
 * NULL when that would be more than @max_bytes.  Under the lock.
 */
static struct pool_slab *slab_take(struct pool *p, uint64_t max_bytes, bool *in_memory)
{
    uint64_t taken = atomic_load_explicit(&p->slabs_taken, memory_order_relaxed);
    struct pool_slab *s;

    *in_memory = p->nr_spare > 0;
    if (*in_memory) {
        s = (void *)p->spare.next;
        pool_list_remove(&s->fit);
        p->nr_spare--;
        if (p->nr_spare < p->idle_spare) {
            p->idle_spare = p->nr_spare;
        }
        s->state = POOL_SLAB_MAKING;
        return s;
    }
    if (taken >= p->nr_slabs || taken >= max_bytes >> POOL_SLAB_SHIFT) {
        return NULL;
    }
    if (!pool_list_empty(&p->free)) {
        s = (void *)p->free.next;
        pool_list_remove(&s->fit);
    } else {
        if (p->fresh >= p->nr_slabs) {
            return NULL; /* the rest is on its way back */
        }
        s = &p->slabs[p->fresh++];
        pool_list_init(&s->fit);
        pool_list_init(&s->age);
    }
    s->state = POOL_SLAB_MAKING;
    pool_count(&p->slabs_taken, 1);
    return s;
}

/*
 * Cuts @s, which belongs to the caller, into objects.  0 or a negative errno.
 * Without the lock.
 */
static int slab_format(struct pool *p, struct pool_slab *s, unsigned class_id,
                       bool in_memory)
{
    const struct pool_class *c = &p->classes[class_id];
    struct pool_slab_header *h = (void *)pool_slab_memory(p, s);
    int ret;

    if (!in_memory) {
        /* no memory is an error here; when the pages are touched it is a signal */
        ret = pool_populate(h, POOL_SLAB_BYTES);
        if (ret) {
            return ret;
        }
    }
    /* in use from here on, with nothing in it: the magic comes last */
    for (uint32_t i = 0; i < c->capacity; i++) {
        atomic_store_explicit(&pool_object_at(p, s, class_id, i)->key, 0,
                              memory_order_relaxed);
    }
    h->layout = POOL_LAYOUT;
    h->codec = (uint8_t)p->codec;
    h->object_size = c->size;
    h->objects = c->capacity;
    __atomic_store_n(&h->magic, POOL_MAGIC, __ATOMIC_RELEASE);
    return 0;
}

void pool_place_take_at(struct pool *p, struct pool_slab *s, unsigned class_id,
                        unsigned index, uint32_t length, uint64_t stored_ns)
{
    struct pool_class *c = &p->classes[class_id];

    atomic_fetch_or_explicit(&s->live[index / 64], 1ULL << (index % 64),
                             memory_order_release);
    s->used++;
    s->data_bytes += length;
    c->used++;
    pool_count(&p->objects, 1);
    pool_count(&p->object_bytes, c->size);
    pool_count(&p->data_bytes, length);
    pool_age_note(p, s, stored_ns);
    pool_slab_regroup(p, s);
}

/* Takes the first free place of @s, which has one.  Under the lock. */
static void place_take_in(struct pool *p, struct pool_slab *s, unsigned class_id,
                          uint32_t length, uint64_t stored_ns, struct pool_place *place)
{
    unsigned word = 0, index;
    uint64_t bits;

    while ((bits = atomic_load_explicit(&s->live[word], memory_order_relaxed)) ==
           UINT64_MAX) {
        word++;
    }
    index = word * 64 + (unsigned)__builtin_ctzll(~bits);
    pool_place_take_at(p, s, class_id, index, length, stored_ns);
    place->slab = s;
    place->class_id = class_id;
    place->index = index;
    place->header = pool_object_at(p, s, class_id, index);
}

bool pool_place_take_open(struct pool *p, unsigned class_id, uint32_t length,
                          uint64_t stored_ns, struct pool_place *place)
{
    struct pool_class *c = &p->classes[class_id];

    for (unsigned g = POOL_GROUPS; g-- > 0;) {
        if (!pool_list_empty(&c->group[g])) {
            place_take_in(p, (void *)c->group[g].next, class_id, length, stored_ns,
                          place);
            return true;
        }
    }
    return false;
}

/*
 * No new slab to be had: a place in a larger class, where at most a quarter of
 * it is lost, is better than the next tier.  Under the lock.
 */
static bool place_take_larger(struct pool *p, unsigned class_id, uint32_t length,
                              uint64_t stored_ns, struct pool_place *place)
{
    for (unsigned i = class_id + 1; i < p->nr_classes; i++) {
        if (p->classes[i].size / 4 * 3 > p->classes[class_id].size) {
            break;
        }
        if (pool_place_take_open(p, i, length, stored_ns, place)) {
            return true;
        }
    }
    return false;
}

int pool_place_take(struct pool *p, uint32_t length, uint64_t stored_ns,
                    uint64_t max_bytes, struct pool_place *place)
{
    unsigned class_id = p->class_of[(length + POOL_ALIGN - 1) / POOL_ALIGN];
    struct pool_slab *s;
    bool in_memory = false, ok;
    int ret;

    pthread_mutex_lock(&p->lock);
    if (pool_place_take_open(p, class_id, length, stored_ns, place)) {
        pthread_mutex_unlock(&p->lock);
        return 0;
    }
    s = slab_take(p, max_bytes, &in_memory);
    if (!s) {
        ok = place_take_larger(p, class_id, length, stored_ns, place);
        pthread_mutex_unlock(&p->lock);
        return ok ? 0 : -ENOSPC;
    }
    pthread_mutex_unlock(&p->lock);

    ret = slab_format(p, s, class_id, in_memory);

    pthread_mutex_lock(&p->lock);
    if (ret) {
        slab_punch(p, s);
        pthread_mutex_unlock(&p->lock);
        return -ENOSPC;
    }
    s->state = POOL_SLAB_OPEN;
    atomic_store_explicit(&s->class_id, (uint8_t)class_id, memory_order_release);
    p->classes[class_id].slabs++;
    place_take_in(p, s, class_id, length, stored_ns, place);
    pthread_mutex_unlock(&p->lock);
    return 0;
}

/* Gives a place back; with @leave the object stays in the arena as it is. */
static bool place_give(struct pool *p, uint64_t slot, bool leave)
{
    struct pool_place place;
    struct pool_owner owner;
    struct pool_slab *s;
    uint32_t length;

    pthread_mutex_lock(&p->lock);
    if (!pool_place_of(p, slot, &place)) {
        pthread_mutex_unlock(&p->lock);
        return false;
    }
    s = place.slab;
    if (!pool_object_read(p, &place, &owner, &length)) {
        length = 0; /* damaged: made up for when the slab goes */
    }
    length = length < s->data_bytes ? length : s->data_bytes;
    if (!leave) {
        atomic_store_explicit(&place.header->key, 0, memory_order_relaxed);
    }
    atomic_fetch_and_explicit(&s->live[place.index / 64], ~(1ULL << (place.index % 64)),
                              memory_order_release);
    s->used--;
    s->data_bytes -= length;
    p->classes[place.class_id].used--;
    pool_count(&p->objects, -1ULL);
    pool_count(&p->object_bytes, -(uint64_t)p->classes[place.class_id].size);
    pool_count(&p->data_bytes, -(uint64_t)length);
    if (s->state == POOL_SLAB_OPEN) {
        if (s->used == 0 && !p->adopting) {
            pool_slab_release(p, s, true);
        } else {
            pool_slab_regroup(p, s);
        }
    }
    pthread_mutex_unlock(&p->lock);
    return true;
}

bool pool_place_give(struct pool *p, uint64_t slot)
{
    return place_give(p, slot, false);
}

bool pool_place_forget(struct pool *p, uint64_t slot)
{
    return place_give(p, slot, true);
}
