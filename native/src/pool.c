/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The pool: compressed pages in memory.
 *
 * Theory of operation
 *
 * The arena is one sealed memfd, as large as it may ever get and mapped as a
 * whole, of which only the slabs in use are in memory.  A slab has 64 KiB: a
 * header, then objects of one size class.  An object is a header of 16 bytes
 * and the compressed bytes of one page.  A page's slot is the offset of its object in
 * pieces of 16 bytes; because every slab begins with its header, that is never 0.
 *
 * There are two kinds of memory.  What is in the arena outlives the worker: a later one
 * finds slabs by their magic, objects by their keys, and whose they are by the
 * page-state tables.  QEMU holds the arena too, so it is input: lists, bitmaps
 * and counts are kept in private memory (pool_priv.h), built from nothing but
 * what this process did, and a header in the arena is compared with them before use.
 *
 *   pool.c          create, put, get, free
 *   pool_codec.c    lz4 and zstd
 *   pool_object.c   headers of objects; from a slot to an object
 *   pool_slab.c     size classes, slabs, places in them
 *   pool_age.c      which objects are the oldest
 *   pool_compact.c  moving objects out of sparse slabs
 *   pool_memory.c   mappings that mlockall() does not fill
 *
 * Locking: one mutex, adaptive because what it guards takes tens of
 * nanoseconds.  (De)compression, copying of objects and system calls are
 * outside.  An object belongs to whoever holds its page-state entry, so reading
 * needs no lock: its slab has at least this object and so does not go away.  A place
 * is taken under the lock and filled without it; its key, written last and
 * cleared when it is freed, tells everybody who looks around (pool_age.c,
 * pool_compact.c) whether there is anything to see.
 *
 * A slab that runs empty is punched out of the memfd, but for a few spares: a
 * guest that goes through its memory empties slabs at the rate at which others fill, and
 * taking the pages of a slab from the kernel costs more than compressing what
 * goes into it.  pool_compact() gives back the spares that were not needed
 * since it was last called.
 */
#include "pool_priv.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "clock.h"

/* A pool over @fd, or over a fresh memfd when that is negative. */
static int pool_new(struct pool **out, int fd, uint64_t arena_bytes,
                    enum tier_codec codec, int level)
{
    pthread_mutexattr_t attr;
    void *arena = NULL;
    struct pool *p;
    int ret;

    if (arena_bytes < POOL_SLAB_BYTES || arena_bytes > POOL_ARENA_MAX) {
        return -EINVAL;
    }
    ret = pool_codec_check(codec, level);
    if (ret) {
        return ret;
    }
    p = calloc(1, sizeof(*p));
    if (!p) {
        return -ENOMEM;
    }
    p->codec = codec;
    p->level = level;
    p->nr_slabs = arena_bytes >> POOL_SLAB_SHIFT;
    p->arena_bytes = p->nr_slabs << POOL_SLAB_SHIFT;
    p->fd = fd >= 0 ? fcntl(fd, F_DUPFD_CLOEXEC, 0) : pool_memfd(p->arena_bytes);
    if (p->fd < 0) {
        ret = fd >= 0 ? -errno : p->fd;
        goto fail_free;
    }
    ret = pool_map_on_fault(p->fd, p->arena_bytes, &arena);
    if (ret) {
        goto fail_fd;
    }
    p->arena = arena;
    ret = pool_slabs_init(p);
    if (ret) {
        goto fail_arena;
    }
    ret = pool_age_init(p);
    if (ret) {
        goto fail_slabs;
    }
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_ADAPTIVE_NP);
    pthread_mutex_init(&p->lock, &attr);
    pthread_mutexattr_destroy(&attr);
    *out = p;
    return 0;

fail_slabs:
    pool_slabs_deinit(p);
fail_arena:
    munmap(p->arena, p->arena_bytes);
fail_fd:
    close(p->fd);
fail_free:
    free(p);
    return ret;
}

int pool_create(struct pool **out, uint64_t arena_bytes, enum tier_codec codec, int level)
{
    return pool_new(out, -1, arena_bytes, codec, level);
}

int pool_open(struct pool **out, int fd, enum tier_codec codec, int level)
{
    const int fixed = F_SEAL_SHRINK | F_SEAL_GROW;
    struct stat st;
    int ret;

    if (fstat(fd, &st) < 0 || (fcntl(fd, F_GET_SEALS) & fixed) != fixed ||
        st.st_size <= 0 || st.st_size % POOL_SLAB_BYTES) {
        return -EINVAL;
    }
    ret = pool_new(out, fd, (uint64_t)st.st_size, codec, level);
    if (!ret) {
        pool_slabs_adopt(*out);
    }
    return ret;
}

void pool_destroy(struct pool *p)
{
    if (!p) {
        return;
    }
    pthread_mutex_destroy(&p->lock);
    pool_age_deinit(p);
    pool_slabs_deinit(p);
    munmap(p->arena, p->arena_bytes);
    close(p->fd);
    free(p);
}

int pool_fd(const struct pool *p)
{
    return p->fd;
}

void pool_keep_raw(struct pool *p, bool keep)
{
    atomic_store_explicit(&p->keep_raw, keep, memory_order_relaxed);
}

int pool_put(struct pool *p, struct pool_scratch *s, const void *page,
             struct pool_owner owner, uint64_t max_bytes, uint64_t *slot)
{
    struct pool_place place;
    const void *data;
    uint64_t now;
    uint32_t length;
    int ret;

    if (owner.region_id >= UFFDMM_REGIONS_MAX || owner.pfn >= POOL_PFN_MAX) {
        return -EINVAL;
    }
    length = pool_compress(s, page, &data);
    if (!length) {
        if (!atomic_load_explicit(&p->keep_raw, memory_order_relaxed)) {
            return -E2BIG;
        }
        data = page;
        length = POOL_RAW_BYTES;
    }
    now = clock_ns();
    ret = pool_place_take(p, length, now, max_bytes, &place);
    if (ret) {
        return ret;
    }
    pool_object_write(p, &place, owner, data, length, now);
    *slot = pool_slot_of(p, place.header);
    return 0;
}

int pool_get(struct pool *p, struct pool_scratch *s, uint64_t slot,
             struct pool_owner owner, void *page)
{
    struct pool_place place;
    struct pool_owner found;
    uint32_t length;

    if (!pool_place_of(p, slot, &place)) {
        return -ENOENT;
    }
    if (!pool_object_read(p, &place, &found, &length) ||
        found.region_id != owner.region_id || found.pfn != owner.pfn ||
        !pool_decompress(s, place.header + 1, length, page)) {
        return -EUCLEAN;
    }
    return 0;
}

bool pool_free(struct pool *p, uint64_t slot)
{
    if (!pool_valid(p, slot)) {
        return false;
    }
    /* the header is read and cleared under the lock */
    __builtin_prefetch(p->arena + (slot << POOL_ALIGN_SHIFT), 1);
    return pool_place_give(p, slot);
}

void pool_usage(const struct pool *p, struct pool_usage *u)
{
    u->arena_bytes = atomic_load_explicit(&p->slabs_taken, memory_order_relaxed)
                     << POOL_SLAB_SHIFT;
    u->object_bytes = atomic_load_explicit(&p->object_bytes, memory_order_relaxed);
    u->data_bytes = atomic_load_explicit(&p->data_bytes, memory_order_relaxed);
    u->objects = atomic_load_explicit(&p->objects, memory_order_relaxed);
}
