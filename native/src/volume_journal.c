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

/* One page, then the bitmap. */
struct journal_header {
    uint64_t magic;
    uint64_t nr_slots; /* that have bits */
    uint64_t in_use;   /* of them, slots of the volume */
    uint64_t doubtful;
};

static size_t bytes_for(uint64_t nr_slots)
{
    uint64_t bitmap = (nr_slots + 63) / 64 * sizeof(uint64_t);

    return (size_t)((bitmap + 2 * PAGE_SIZE_4K - 1) & ~(uint64_t)(PAGE_SIZE_4K - 1));
}

static int map(struct volume_journal *j)
{
    void *addr;
    int ret = pool_map_on_fault(j->fd, j->bytes, &addr);

    if (ret) {
        return ret;
    }
    j->header = addr;
    j->taken = (uint64_t *)((char *)addr + PAGE_SIZE_4K);
    return 0;
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
    }
    return ret;
}

uint64_t journal_slots(const struct volume_journal *j)
{
    uint64_t nr =
        j->header ? __atomic_load_n(&j->header->in_use, __ATOMIC_RELAXED) : 0;

    return nr < j->nr_slots ? nr : j->nr_slots;
}

void journal_set_slots(struct volume_journal *j, uint64_t nr_slots)
{
    if (j->header) {
        __atomic_store_n(&j->header->in_use, nr_slots, __ATOMIC_RELAXED);
    }
}

bool journal_doubtful(const struct volume_journal *j)
{
    return !j->header || __atomic_load_n(&j->header->doubtful, __ATOMIC_RELAXED);
}

void journal_set_doubtful(struct volume_journal *j, bool doubtful)
{
    if (j->header) {
        __atomic_store_n(&j->header->doubtful, doubtful, __ATOMIC_SEQ_CST);
    }
}
