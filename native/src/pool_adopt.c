/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Taking over the arena of a worker that has died.
 *
 * Theory of operation.  Private memory knows nothing of the arena, and the arena is input.
 * The page-state tables say which objects there are: each is looked at where it must be,
 * in a slab whose header is one of ours, with a key that names the owner and the place.
 * So no two pages can adopt the same object.  A slab gets its class with its first object.
 *
 * As long as not all tables have been read, a place that nobody has named may hold a page
 * of a region that is still to come.  So nothing is stored (the tier sees to that),
 * compacted or punched; a slab that runs empty stays.
 */
#include "pool_priv.h"

#include <unistd.h>

#include "clock.h"
#include "log.h"

void pool_slabs_adopt(struct pool *p)
{
    off_t pos = 0, end;

    p->adopting = true;
    p->fresh = 0;
    while ((pos = lseek(p->fd, pos, SEEK_DATA)) >= 0) {
        end = lseek(p->fd, pos, SEEK_HOLE);
        if (end <= pos) {
            break;
        }
        pos = end;
        p->fresh = ((uint64_t)end + POOL_SLAB_BYTES - 1) >> POOL_SLAB_SHIFT;
    }
    p->fresh = p->fresh < p->nr_slabs ? p->fresh : p->nr_slabs;
    for (uint64_t i = 0; i < p->fresh; i++) {
        struct pool_slab *s = &p->slabs[i];

        pool_list_init(&s->fit);
        pool_list_init(&s->age);
        atomic_store_explicit(&s->class_id, POOL_CLASS_NONE, memory_order_relaxed);
    }
}

/* Class of a slab that is in use, by its header in the arena; POOL_CLASS_NONE: of none. */
static unsigned class_of_slab(const struct pool *p, const struct pool_slab *s)
{
    const struct pool_slab_header *h = (const void *)pool_slab_memory(p, s);
    uint32_t size = __atomic_load_n(&h->object_size, __ATOMIC_RELAXED);

    if (__atomic_load_n(&h->magic, __ATOMIC_ACQUIRE) != POOL_MAGIC ||
        h->layout != POOL_LAYOUT || h->codec != (uint8_t)p->codec) {
        return POOL_CLASS_NONE;
    }
    for (unsigned i = 0; i < p->nr_classes; i++) {
        if (p->classes[i].size == size && p->classes[i].capacity == h->objects) {
            return i;
        }
    }
    return POOL_CLASS_NONE;
}

/* Under the lock. */
static bool adopt(struct pool *p, uint64_t slot, struct pool_owner owner)
{
    uint64_t offset = slot << POOL_ALIGN_SHIFT, stored_ns, now = clock_ns();
    struct pool_slab *s = &p->slabs[offset >> POOL_SLAB_SHIFT];
    struct pool_place place = {.slab = s};
    unsigned class_id = atomic_load_explicit(&s->class_id, memory_order_relaxed);
    bool first = class_id == POOL_CLASS_NONE;
    struct pool_owner found;
    uint32_t inside, length;

    class_id = first ? class_of_slab(p, s) : class_id;
    if (class_id >= p->nr_classes) {
        return false;
    }
    inside = (uint32_t)(offset & POOL_SLAB_MASK) - POOL_SLAB_DATA;
    place.class_id = class_id;
    place.index = inside / p->classes[class_id].size;
    place.header = (void *)(p->arena + offset);
    if (inside % p->classes[class_id].size ||
        place.index >= p->classes[class_id].capacity || pool_live(s, place.index) ||
        !pool_object_read(p, &place, &found, &length) ||
        found.region_id != owner.region_id || found.pfn != owner.pfn) {
        return false;
    }
    if (first) {
        s->state = POOL_SLAB_OPEN;
        atomic_store_explicit(&s->class_id, (uint8_t)class_id, memory_order_release);
        p->classes[class_id].slabs++;
        pool_count(&p->slabs_taken, 1);
    }
    stored_ns = atomic_load_explicit(&place.header->stored_ns, memory_order_relaxed);
    pool_place_take_at(p, s, class_id, place.index, length,
                       stored_ns < now ? stored_ns : now);
    return true;
}

bool pool_adopt(struct pool *p, uint64_t slot, struct pool_owner owner)
{
    bool ok;

    if (!pool_valid(p, slot) ||
        slot >> (POOL_SLAB_SHIFT - POOL_ALIGN_SHIFT) >= p->fresh) {
        return false;
    }
    pthread_mutex_lock(&p->lock);
    ok = adopt(p, slot, owner);
    pthread_mutex_unlock(&p->lock);
    return ok;
}

void pool_unadopt(struct pool *p, uint64_t slot)
{
    pool_place_forget(p, slot);
}

void pool_adopted_all(struct pool *p)
{
    uint64_t empty = 0;

    pthread_mutex_lock(&p->lock);
    p->adopting = false;
    for (uint64_t i = 0; i < p->fresh; i++) {
        struct pool_slab *s = &p->slabs[i];

        if (s->state == POOL_SLAB_OPEN && !s->used) {
            pool_slab_release(p, s, false);
        } else if (s->state == POOL_SLAB_FREE && pool_list_empty(&s->fit)) {
            /* counted as taken until it has been punched, like any other */
            pool_count(&p->slabs_taken, 1);
            s->state = POOL_SLAB_MAKING;
            pool_slab_discard(p, s);
            empty++;
        }
    }
    pthread_mutex_unlock(&p->lock);
    if (empty) {
        log_info("pool: %llu slabs that no page names were given back",
                 (unsigned long long)empty);
    }
}
