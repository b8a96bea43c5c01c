/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Objects of the pool: the header before the compressed bytes, and how to get
 * from a slot to an object.
 *
 * The arena is shared with QEMU, so a header is input: whatever it says is
 * compared with what private memory knows about the slab before a byte is
 * touched.  The check value finds a header that was damaged, or that belongs to
 * another place; it does not protect the content, which has a checksum in the
 * page-state table.
 */
#include "pool_priv.h"

#include <string.h>

#define PFN_BITS POOL_PFN_BITS
#define REGION_BITS 5
#define LENGTH_BITS 13
#define CHECK_SHIFT (PFN_BITS + REGION_BITS + LENGTH_BITS)

_Static_assert((1u << REGION_BITS) >= UFFDMM_REGIONS_MAX, "a region fits");
_Static_assert((1u << LENGTH_BITS) > POOL_RAW_BYTES, "a length fits");

/* 12 bits over the rest of the key and the slot. */
static uint64_t check_value(uint64_t body, uint64_t slot)
{
    uint64_t x = body ^ (slot * 0x9e3779b97f4a7c15ULL);

    x ^= x >> 32;
    x *= 0xd6e8feb86659fd93ULL;
    x ^= x >> 32;
    x *= 0xd6e8feb86659fd93ULL;
    return x >> CHECK_SHIFT;
}

uint64_t pool_key(struct pool_owner owner, uint32_t length, uint64_t slot)
{
    uint64_t body = owner.pfn | ((uint64_t)owner.region_id << PFN_BITS) |
                    ((uint64_t)length << (PFN_BITS + REGION_BITS));

    return body | (check_value(body, slot) << CHECK_SHIFT);
}

bool pool_key_parse(uint64_t key, uint64_t slot, struct pool_owner *owner,
                    uint32_t *length)
{
    uint64_t body = key & ((1ULL << CHECK_SHIFT) - 1);

    owner->pfn = body & ((1ULL << PFN_BITS) - 1);
    owner->region_id = (uint32_t)(body >> PFN_BITS) & ((1u << REGION_BITS) - 1);
    *length = (uint32_t)(body >> (PFN_BITS + REGION_BITS));
    /* no object has no bytes: a key of 0 is none whatever its check value would be */
    return *length > 0 && key >> CHECK_SHIFT == check_value(body, slot);
}

bool pool_valid(const struct pool *p, uint64_t slot)
{
    uint64_t offset = slot << POOL_ALIGN_SHIFT;

    return slot < p->arena_bytes >> POOL_ALIGN_SHIFT &&
           (offset & POOL_SLAB_MASK) >= POOL_SLAB_DATA;
}

bool pool_place_of(const struct pool *p, uint64_t slot, struct pool_place *place)
{
    uint64_t offset = slot << POOL_ALIGN_SHIFT;
    struct pool_slab *s;
    uint32_t inside, size;
    unsigned class_id;

    if (!pool_valid(p, slot)) {
        return false;
    }
    s = &p->slabs[offset >> POOL_SLAB_SHIFT];
    class_id = atomic_load_explicit(&s->class_id, memory_order_acquire);
    /* zero in a slab that was never used, whose bitmap is empty */
    if (class_id >= p->nr_classes) {
        return false;
    }
    inside = (uint32_t)(offset & POOL_SLAB_MASK) - POOL_SLAB_DATA;
    size = p->classes[class_id].size;
    if (inside % size || inside / size >= p->classes[class_id].capacity ||
        !pool_live(s, inside / size)) {
        return false;
    }
    place->slab = s;
    place->class_id = class_id;
    place->index = inside / size;
    place->header = (void *)(p->arena + offset);
    return true;
}

bool pool_object_read(const struct pool *p, const struct pool_place *place,
                      struct pool_owner *owner, uint32_t *length)
{
    uint64_t key = atomic_load_explicit(&place->header->key, memory_order_acquire);

    return pool_key_parse(key, pool_slot_of(p, place->header), owner, length) &&
           (*length <= POOL_DATA_MAX || *length == POOL_RAW_BYTES) &&
           *length <= pool_class_data(p, place->class_id);
}

void pool_object_write(const struct pool *p, const struct pool_place *place,
                       struct pool_owner owner, const void *data, uint32_t length,
                       uint64_t stored_ns)
{
    struct pool_object_header *h = place->header;

    memcpy(h + 1, data, length);
    atomic_store_explicit(&h->stored_ns, stored_ns, memory_order_relaxed);
    atomic_store_explicit(&h->key, pool_key(owner, length, pool_slot_of(p, h)),
                          memory_order_release);
}
