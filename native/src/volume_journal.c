/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "volume_journal.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config.h"
#include "pool_priv.h"

#define JOURNAL_MAGIC 0x4c4e524a4d444655ULL /* "UFDMJRNL" */

/* One page, then the bitmaps, each in pages of its own. */
struct journal_header {
    uint64_t magic;
    uint64_t nr_slots; /* that have bits */
    uint64_t in_use;   /* of them, slots of the volume */
};

static size_t bitmap_bytes(uint64_t nr_slots)
{
    uint64_t bytes = (nr_slots + 63) / 64 * sizeof(uint64_t);

    return (size_t)((bytes + PAGE_SIZE_4K - 1) & ~(uint64_t)(PAGE_SIZE_4K - 1));
}

static size_t bytes_for(uint64_t nr_slots)
{
    return PAGE_SIZE_4K + 2 * bitmap_bytes(nr_slots);
}

static int map(struct volume_journal *j)
{
    void *addr;
    int ret = pool_map_on_fault(j->fd, j->bytes, &addr);

    if (ret) {
        return ret;
    }
    j->header = addr;
    return 0;
}

/* j->nr_slots is known. */
static void find_bitmaps(struct volume_journal *j)
{
    j->taken = (uint64_t *)((char *)j->header + PAGE_SIZE_4K);
    j->doubted = (uint64_t *)((char *)j->taken + bitmap_bytes(j->nr_slots));
}

void journal_none(struct volume_journal *j)
{
    memset(j, 0, sizeof(*j));
    j->fd = -1;
}

void journal_close(struct volume_journal *j)
{
    if (j->header) {
        munmap(j->header, j->bytes);
    }
    if (j->fd >= 0) {
        close(j->fd);
    }
    journal_none(j);
}

int journal_create(struct volume_journal *j, uint64_t nr_slots)
{
    int ret;

    journal_none(j);
    j->nr_slots = nr_slots;
    j->bytes = bytes_for(nr_slots);
    j->fd = pool_memfd(j->bytes);
    ret = j->fd < 0 ? j->fd : map(j);
    if (ret) {
        journal_close(j);
        return ret;
    }
    find_bitmaps(j);
    j->header->nr_slots = nr_slots;
    j->header->magic = JOURNAL_MAGIC;
    return 0;
}

int journal_open(struct volume_journal *j, int fd)
{
    const int seals = F_SEAL_SHRINK | F_SEAL_GROW;
    struct stat st;
    int ret, has;

    journal_none(j);
    j->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (j->fd < 0) {
        return -errno;
    }
    /* one that can shrink could be SIGBUS in the worker */
    has = fcntl(j->fd, F_GET_SEALS);
    if (has < 0 || (has & seals) != seals || fstat(j->fd, &st) < 0 ||
        st.st_size <= (off_t)PAGE_SIZE_4K) {
        journal_close(j);
        return -EUCLEAN;
    }
    j->bytes = (size_t)st.st_size;
    ret = map(j);
    if (!ret) {
        j->nr_slots = __atomic_load_n(&j->header->nr_slots, __ATOMIC_RELAXED);
        if (j->header->magic != JOURNAL_MAGIC || j->nr_slots > UINT64_MAX / 2 ||
            bytes_for(j->nr_slots) != j->bytes) {
            ret = -EUCLEAN;
        }
    }
    if (ret) {
        journal_close(j);
        return ret;
    }
    find_bitmaps(j);
    return 0;
}

uint64_t journal_slots(const struct volume_journal *j)
{
    uint64_t nr = j->header ? __atomic_load_n(&j->header->in_use, __ATOMIC_RELAXED) : 0;

    return nr < j->nr_slots ? nr : j->nr_slots;
}

void journal_set_slots(struct volume_journal *j, uint64_t nr_slots)
{
    if (j->header) {
        __atomic_store_n(&j->header->in_use, nr_slots, __ATOMIC_RELAXED);
    }
}

void journal_doubt(struct volume_journal *j, uint64_t start, uint64_t end)
{
    for (uint64_t slot = start; slot < end && slot < j->nr_slots; slot++) {
        __atomic_fetch_or(&j->doubted[slot / 64], 1ULL << (slot % 64), __ATOMIC_RELAXED);
    }
}

void journal_trust(struct volume_journal *j, uint64_t slot)
{
    if (slot < j->nr_slots) {
        __atomic_fetch_and(&j->doubted[slot / 64], ~(1ULL << (slot % 64)),
                           __ATOMIC_RELAXED);
    }
}
