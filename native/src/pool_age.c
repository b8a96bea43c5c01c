/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which objects are the oldest, without looking at all of them.
 *
 * Theory of operation: a slab has a bound, a time before which nothing in it
 * was stored.  Slabs lie in buckets by their bound, a ring of periods of 4.3 s;
 * what is older than the ring shares its oldest bucket.  A search walks the
 * buckets from the old end and reads the headers of a slab only when its bound
 * says that it may have something to offer.  If it has nothing (the old objects
 * are gone, new ones took their places) the bound is raised to what was found
 * and the slab changes its bucket, so the same slab is not read in vain again.
 *
 * The next search goes on where the last one stopped, and begins anew at the
 * oldest when it came to objects that are not old enough.  So objects that the
 * caller can do nothing with now do not keep it from seeing the others.  The lock
 * is dropped between slabs; whoever takes a slab out of its bucket moves the place
 * to go on from.
 */
#include "pool_priv.h"

#include <errno.h>
#include <stdlib.h>

#include "clock.h"

static uint64_t period_of(uint64_t ns)
{
    return ns >> POOL_AGE_SHIFT;
}

static struct pool_list *bucket_of(struct pool *p, uint64_t period)
{
    return &p->buckets[period % POOL_AGE_BUCKETS];
}

static struct pool_slab *slab_of(struct pool_list *age)
{
    return (void *)((uint8_t *)age - offsetof(struct pool_slab, age));
}

int pool_age_init(struct pool *p)
{
    p->buckets = malloc(POOL_AGE_BUCKETS * sizeof(*p->buckets));
    if (!p->buckets) {
        return -ENOMEM;
    }
    for (unsigned i = 0; i < POOL_AGE_BUCKETS; i++) {
        pool_list_init(&p->buckets[i]);
    }
    p->age_base = period_of(clock_ns());
    p->age_first = p->age_base;
    p->age_last = p->age_base;
    return 0;
}

void pool_age_deinit(struct pool *p)
{
    free(p->buckets);
}

/* Moves the ring on until @period has a bucket: the oldest ones become one. */
static void age_advance(struct pool *p, uint64_t period)
{
    while (period >= p->age_base + POOL_AGE_BUCKETS) {
        struct pool_list *from = bucket_of(p, p->age_base);
        struct pool_list *to = bucket_of(p, p->age_base + 1);

        if (!pool_list_empty(from)) {
            /* to the front of the next bucket, in the same order */
            from->prev->next = to->next;
            to->next->prev = from->prev;
            to->next = from->next;
            from->next->prev = to;
            pool_list_init(from);
        }
        p->age_base++;
    }
    if (p->age_first < p->age_base) {
        p->age_first = p->age_base;
    }
    if (p->age_last < p->age_base) {
        p->age_last = p->age_base;
    }
}

/* The first slab of @period or a later one, NULL when there is none. */
static struct pool_slab *age_from(struct pool *p, uint64_t period)
{
    for (; period <= p->age_last; period++) {
        struct pool_list *bucket = bucket_of(p, period);

        if (!pool_list_empty(bucket)) {
            return slab_of(bucket->next);
        }
    }
    return NULL;
}

static struct pool_slab *age_oldest(struct pool *p)
{
    while (p->age_first < p->age_last && pool_list_empty(bucket_of(p, p->age_first))) {
        p->age_first++;
    }
    return age_from(p, p->age_first);
}

static struct pool_slab *age_next(struct pool *p, struct pool_slab *s)
{
    struct pool_list *next = s->age.next;
    uint64_t index, base = p->age_base % POOL_AGE_BUCKETS;

    if (next < p->buckets || next >= p->buckets + POOL_AGE_BUCKETS) {
        return slab_of(next);
    }
    /* the head of its bucket: which period is that? */
    index = (uint64_t)(next - p->buckets);
    return age_from(p, p->age_base +
                           (index + POOL_AGE_BUCKETS - base) % POOL_AGE_BUCKETS + 1);
}

void pool_age_forget(struct pool *p, struct pool_slab *s)
{
    if (p->cursor == s) {
        p->cursor = age_next(p, s);
        p->cursor_object = 0;
    }
    pool_list_remove(&s->age);
}

static void age_link(struct pool *p, struct pool_slab *s, uint64_t bound_ns)
{
    uint64_t period = period_of(bound_ns);

    if (!pool_list_empty(&s->age)) {
        pool_age_forget(p, s);
    }
    age_advance(p, period);
    if (period < p->age_base) {
        period = p->age_base;
    }
    if (period < p->age_first) {
        p->age_first = period;
    }
    if (period > p->age_last) {
        p->age_last = period;
    }
    s->bound_ns = bound_ns;
    pool_list_insert(bucket_of(p, period), &s->age);
}

void pool_age_note(struct pool *p, struct pool_slab *s, uint64_t stored_ns)
{
    if (pool_list_empty(&s->age)) {
        age_link(p, s, stored_ns);
    } else if (stored_ns < s->bound_ns) {
        if (period_of(stored_ns) == period_of(s->bound_ns)) {
            s->bound_ns = stored_ns;
        } else {
            age_link(p, s, stored_ns);
        }
    }
}

/*
 * Reads the headers of @s from object @from on and fills in those stored before
 * @before_ns.  Returns how many; *@stopped is the object for which there was no
 * room, or the slab's capacity.  Under the lock.
 */
static unsigned slab_scan(struct pool *p, struct pool_slab *s, unsigned from,
                          uint64_t before_ns, struct pool_object *out, unsigned max,
                          unsigned *stopped)
{
    struct pool_place place = {.slab = s};
    uint64_t now = clock_ns(), oldest = UINT64_MAX;
    bool all = from == 0;
    unsigned capacity, n = 0;

    place.class_id = atomic_load_explicit(&s->class_id, memory_order_relaxed);
    capacity = p->classes[place.class_id].capacity;
    *stopped = capacity;
    for (unsigned i = from; i < capacity; i++) {
        struct pool_owner owner;
        uint32_t length;
        uint64_t stored;

        if (!pool_live(s, i)) {
            continue;
        }
        place.index = i;
        place.header = pool_object_at(p, s, place.class_id, i);
        if (!pool_object_read(p, &place, &owner, &length)) {
            all = false; /* about to be written, or damaged */
            continue;
        }
        stored = atomic_load_explicit(&place.header->stored_ns, memory_order_relaxed);
        if (stored > now) {
            stored = now; /* nothing comes from the future */
        }
        if (stored < oldest) {
            oldest = stored;
        }
        if (stored >= before_ns) {
            continue;
        }
        if (n == max) {
            *stopped = i;
            return n;
        }
        out[n].slot = pool_slot_of(p, place.header);
        out[n].owner = owner;
        out[n].stored_ns = stored;
        n++;
    }
    if (all && n == 0 && oldest > s->bound_ns) {
        age_link(p, s, oldest);
    }
    return n;
}

unsigned pool_oldest(struct pool *p, uint64_t before_ns, struct pool_object *out,
                     unsigned max)
{
    struct pool_slab *s;
    bool from_start;
    unsigned n = 0, stopped;

    pthread_mutex_lock(&p->lock);
    from_start = !p->cursor;
    if (from_start) {
        p->cursor = age_oldest(p);
        p->cursor_object = 0;
    }
    while (n < max) {
        s = p->cursor;
        /* in the oldest bucket of the ring there is no order */
        if (!s || (period_of(s->bound_ns) > period_of(before_ns) &&
                   period_of(s->bound_ns) > p->age_base)) {
            p->cursor = NULL;
            if (n || from_start) {
                break;
            }
            from_start = true;
            p->cursor = age_oldest(p);
            p->cursor_object = 0;
            if (!p->cursor) {
                break;
            }
            continue;
        }
        if (s->bound_ns < before_ns) {
            unsigned from = p->cursor_object;

            /* ahead of the scan, which may put the slab elsewhere */
            p->cursor = age_next(p, s);
            p->cursor_object = 0;
            n += slab_scan(p, s, from, before_ns, out + n, max - n, &stopped);
            if (n == max) {
                p->cursor = s;
                p->cursor_object = stopped;
                break;
            }
        } else {
            p->cursor = age_next(p, s);
            p->cursor_object = 0;
        }
        pthread_mutex_unlock(&p->lock);
        pthread_mutex_lock(&p->lock);
    }
    pthread_mutex_unlock(&p->lock);
    return n;
}
