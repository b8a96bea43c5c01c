/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Compaction: empties sparse slabs into fuller ones of their class.
 *
 * An object that moves belongs to a page, whose page-state entry says where it
 * is.  So the pool asks first: once the owner of the table has claimed the page
 * for it, nobody else frees or reads the object, and what the pool believed to
 * know about it before is looked up again.  The order is copy, tell the table,
 * free the old place: whenever the worker dies, the entry names an object that
 * is whole.
 *
 * A slab that is being emptied is in no list of its class, so it gets no new
 * objects, and whoever frees the last one leaves it to the compaction to give
 * the slab back: its memory stays readable meanwhile.
 */
#include "pool_priv.h"

#include <string.h>

#include "clock.h"

/* Slabs of the sparsest group to choose from: the group is narrow enough. */
#define CANDIDATES 16

/* Spare slabs are no waste: they go by themselves.  Under the lock. */
static bool wasteful(const struct pool *p, unsigned waste_percent)
{
    uint64_t taken = atomic_load_explicit(&p->slabs_taken, memory_order_relaxed);
    uint64_t arena = (taken - p->nr_spare) << POOL_SLAB_SHIFT;
    uint64_t objects = atomic_load_explicit(&p->object_bytes, memory_order_relaxed);

    return arena > objects && (arena - objects) * 100 > arena * waste_percent;
}

/* The class with most slabs to be gained, not in @skip; NULL when there is none. */
static struct pool_class *class_pick(struct pool *p, uint64_t skip)
{
    struct pool_class *best = NULL;
    uint64_t gain, best_gain = 0;

    for (unsigned i = 0; i < p->nr_classes; i++) {
        struct pool_class *c = &p->classes[i];

        gain = (c->slabs * c->capacity - c->used) / c->capacity;
        if (gain > best_gain && !(skip & (1ULL << i))) {
            best = c;
            best_gain = gain;
        }
    }
    return best;
}

/* Takes the sparsest slab of a class out of its list; NULL when no class gains. */
static struct pool_slab *drain_begin(struct pool *p, uint64_t *skip)
{
    struct pool_class *c;

    while ((c = class_pick(p, *skip)) != NULL) {
        struct pool_slab *best = NULL;

        for (unsigned g = 0; g < POOL_GROUPS && !best; g++) {
            struct pool_list *l = c->group[g].prev;

            for (unsigned i = 0; i < CANDIDATES && l != &c->group[g]; i++, l = l->prev) {
                struct pool_slab *s = (void *)l;

                if (!best || s->used < best->used) {
                    best = s;
                }
            }
        }
        if (best) {
            pool_list_remove(&best->fit);
            best->state = POOL_SLAB_DRAINING;
            return best;
        }
        /* all its sparse slabs are being drained by others */
        *skip |= 1ULL << (c - p->classes);
    }
    return NULL;
}

/* Puts a slab back, or gives it back when it is empty.  Under the lock. */
static void drain_end(struct pool *p, struct pool_slab *s)
{
    s->state = POOL_SLAB_OPEN;
    if (s->used == 0) {
        pool_slab_release(p, s, false);
    } else {
        pool_slab_regroup(p, s);
    }
}

/*
 * Copies the object in @from, which has been claimed, to a place in a slab that
 * has room.  Returns the new slot, or 0 with nothing done when there is no room
 * (*@full) or the object is not what it was.
 */
static uint64_t object_copy(struct pool *p, uint64_t slot, struct pool_owner owner,
                            bool *full)
{
    struct pool_place from, to;
    struct pool_owner found;
    uint64_t stored, now = clock_ns();
    uint32_t length;
    bool room;

    if (!pool_place_of(p, slot, &from) || !pool_object_read(p, &from, &found, &length) ||
        found.region_id != owner.region_id || found.pfn != owner.pfn) {
        return 0;
    }
    stored = atomic_load_explicit(&from.header->stored_ns, memory_order_relaxed);
    pthread_mutex_lock(&p->lock);
    room =
        pool_place_take_open(p, from.class_id, length, stored < now ? stored : now, &to);
    pthread_mutex_unlock(&p->lock);
    if (!room) {
        *full = true;
        return 0;
    }
    pool_object_write(p, &to, owner, from.header + 1, length, stored);
    return pool_slot_of(p, to.header);
}

/*
 * Moves at most @max objects out of @s, which is DRAINING.  Returns how many;
 * *@stuck says that there are some that could not be moved.
 */
static unsigned drain(struct pool *p, const struct pool_mover *m, struct pool_slab *s,
                      unsigned max, bool *stuck)
{
    struct pool_place place = {.slab = s};
    unsigned capacity, moved = 0;

    place.class_id = atomic_load_explicit(&s->class_id, memory_order_relaxed);
    capacity = p->classes[place.class_id].capacity;
    for (unsigned i = 0; i < capacity && moved < max; i++) {
        struct pool_owner owner;
        uint64_t from, to;
        uint32_t length;
        bool full = false;

        if (!pool_live(s, i)) {
            continue;
        }
        place.index = i;
        place.header = pool_object_at(p, s, place.class_id, i);
        from = pool_slot_of(p, place.header);
        if (!pool_object_read(p, &place, &owner, &length) ||
            !m->claim(m->opaque, owner, from)) {
            *stuck = true;
            continue;
        }
        to = object_copy(p, from, owner, &full);
        m->moved(m->opaque, owner, from, to ? to : from);
        if (to) {
            pool_place_give(p, from);
            moved++;
        } else {
            *stuck = true;
        }
        if (full) {
            break;
        }
    }
    return moved;
}

unsigned pool_compact(struct pool *p, const struct pool_mover *m, unsigned max,
                      unsigned waste_percent)
{
    uint64_t skip = 0; /* classes with a slab that could not be emptied */
    unsigned moved = 0;

    pool_spares_release(p);
    pthread_mutex_lock(&p->lock);
    while (moved < max && wasteful(p, waste_percent)) {
        struct pool_slab *s = drain_begin(p, &skip);
        bool stuck = false;
        unsigned class_id;

        if (!s) {
            break;
        }
        class_id = atomic_load_explicit(&s->class_id, memory_order_relaxed);
        pthread_mutex_unlock(&p->lock);
        moved += drain(p, m, s, max - moved, &stuck);
        pthread_mutex_lock(&p->lock);
        drain_end(p, s);
        if (stuck) {
            skip |= 1ULL << class_id;
        }
    }
    pthread_mutex_unlock(&p->lock);
    return moved;
}
