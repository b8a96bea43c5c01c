/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Guest memory that belongs to an external manager: its descriptors, its
 * userfaultfds and its page-state table
 *
 * The manager is another process and may be wrong or malicious: all that it
 * passes is checked by what the kernel says about the descriptor.  Files that
 * are mapped here must be sealed against shrinking, or QEMU could be ended by
 * SIGBUS from outside.
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/atomic.h"
#include "qemu/error-report.h"
#include "qemu/memfd.h"
#include "qemu/userfaultfd.h"
#include "hostmem-external-region.h"
#include "trace.h"
#include <sys/mman.h>

void external_region_init(ExternalRegion *region, uint64_t size,
                          uint64_t page_size, uint32_t nr_shards)
{
    memset(region, 0, sizeof(*region));
    region->size = size;
    region->page_size = page_size;
    /* a shard without a page cannot be registered */
    region->nr_shards = MIN(nr_shards, size / page_size);
    region->memfd = -1;
    region->table_fd = -1;
    region->pagemap_fd = -1;
    for (int i = 0; i < UFFDMM_SHARDS_MAX; i++) {
        region->uffd[i] = -1;
    }
}

/* Check that @fd is a sealed regular file of at least @size bytes. */
static bool external_fd_check(int fd, uint64_t size, const char *what,
                              Error **errp)
{
    struct stat st;
    int seals;

    if (fstat(fd, &st) < 0) {
        error_setg_errno(errp, errno, "cannot examine the %s of the memory "
                         "manager", what);
        return false;
    }
    if (!S_ISREG(st.st_mode) || st.st_size < 0 || st.st_size < size) {
        error_setg(errp, "the %s of the memory manager has %" PRId64
                   " bytes, %" PRIu64 " are needed", what,
                   (int64_t)st.st_size, size);
        return false;
    }
    seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || !(seals & F_SEAL_SHRINK)) {
        error_setg(errp, "the %s of the memory manager is not a memfd that is "
                   "sealed against shrinking", what);
        return false;
    }
    return true;
}

static bool external_table_check(const ExternalRegion *region,
                                 const struct uffdmm_table_header *table,
                                 uint64_t table_size, Error **errp)
{
    uint64_t nr_pages = region->size / region->page_size;

    if (table->magic != UFFDMM_TABLE_MAGIC ||
        table->version != UFFDMM_TABLE_VERSION) {
        error_setg(errp, "the page-state table of the memory manager has "
                   "magic 0x%" PRIx32 " and version %" PRIu32 " instead of "
                   "0x%x and %u", table->magic, table->version,
                   UFFDMM_TABLE_MAGIC, UFFDMM_TABLE_VERSION);
        return false;
    }
    if (table->page_size != region->page_size ||
        table->nr_pages != nr_pages) {
        error_setg(errp, "the page-state table of the memory manager is for %"
                   PRIu64 " pages of %" PRIu64 " bytes instead of %" PRIu64
                   " of %" PRIu64, table->nr_pages, table->page_size,
                   nr_pages, region->page_size);
        return false;
    }
    if (!QEMU_IS_ALIGNED(table->entries_offset, sizeof(uint64_t)) ||
        table->entries_offset < sizeof(*table) ||
        table->entries_offset > table_size ||
        table_size - table->entries_offset < nr_pages * sizeof(uint64_t)) {
        error_setg(errp, "the entries of the page-state table, at offset %"
                   PRIu64 ", are not inside its %" PRIu64 " bytes",
                   table->entries_offset, table_size);
        return false;
    }
    return true;
}

bool external_region_adopt(ExternalRegion *region,
                           const struct uffdmm_region_create_reply *reply,
                           int *fds, Error **errp)
{
    struct uffdmm_table_header *table;
    struct stat st;

    if (reply->nr_shards < 1 || reply->nr_shards > region->nr_shards) {
        error_setg(errp, "the memory manager wants %" PRIu32 " shards where "
                   "%" PRIu32 " were offered", reply->nr_shards,
                   region->nr_shards);
        return false;
    }
    if (!external_fd_check(fds[0], region->size, "guest memory", errp) ||
        !external_fd_check(fds[1], MAX(reply->table_size, sizeof(*table)),
                           "page-state table", errp)) {
        return false;
    }
    if (fstat(fds[0], &st) < 0 || st.st_size != region->size ||
        !(fcntl(fds[0], F_GET_SEALS) & F_SEAL_GROW)) {
        error_setg(errp, "the guest memory of the memory manager is not "
                   "sealed at exactly %" PRIu64 " bytes", region->size);
        return false;
    }

    table = mmap(NULL, reply->table_size, PROT_READ | PROT_WRITE, MAP_SHARED,
                 fds[1], 0);
    if (table == MAP_FAILED) {
        error_setg_errno(errp, errno, "cannot map the page-state table of the "
                         "memory manager");
        return false;
    }
    if (!external_table_check(region, table, reply->table_size, errp)) {
        munmap(table, reply->table_size);
        return false;
    }
    /* a child of fork() must not change the state of its parent's pages */
    madvise(table, reply->table_size, MADV_DONTFORK);

    region->id = reply->region_id;
    region->nr_shards = reply->nr_shards;
    region->table = table;
    region->table_size = reply->table_size;
    region->entries = (uint64_t *)((uint8_t *)table + table->entries_offset);
    region->memfd = fds[0];
    region->table_fd = fds[1];
    fds[0] = fds[1] = -1;
    return true;
}

/* First byte of shard @i; with @i == nr_shards the size of the region. */
static uint64_t external_shard_offset(const ExternalRegion *region, uint32_t i)
{
    uint64_t nr_pages = region->size / region->page_size;

    return i * nr_pages / region->nr_shards * region->page_size;
}

bool external_region_register(ExternalRegion *region, void *base, Error **errp)
{
    const uint64_t features = UFFD_FEATURE_PAGEFAULT_FLAG_WP |
                              UFFD_FEATURE_MISSING_SHMEM |
                              UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
                              UFFD_FEATURE_THREAD_ID;
    const uint64_t mode = UFFDIO_REGISTER_MODE_MISSING |
                          UFFDIO_REGISTER_MODE_WP;

    region->pagemap_fd = qemu_open("/proc/self/pagemap", O_RDONLY, errp);
    if (region->pagemap_fd < 0) {
        return false;
    }

    region->base = base;
    region->registered = true;
    for (uint32_t i = 0; i < region->nr_shards; i++) {
        uint64_t start = external_shard_offset(region, i);
        uint64_t length = external_shard_offset(region, i + 1) - start;

        errno = 0;
        region->uffd[i] = uffd_create_fd(features, true);
        if (region->uffd[i] < 0) {
            if (errno == EPERM || errno == EACCES) {
                error_setg_errno(errp, errno, "cannot create a userfaultfd");
                error_append_hint(errp, "Allow this user to open "
                                  "/dev/userfaultfd, or set the sysctl "
                                  "vm.unprivileged_userfaultfd to 1.\n");
            } else {
                error_setg_errno(errp, errno, "cannot create a userfaultfd "
                                 "with write protection for shared memory");
                error_append_hint(errp, "Linux 5.19 or newer is needed.\n");
            }
            goto fail;
        }
        if (uffd_register_memory(region->uffd[i], region->base + start,
                                 length, mode, NULL) < 0) {
            error_setg_errno(errp, errno, "cannot register guest memory at "
                             "offset 0x%" PRIx64 ", length 0x%" PRIx64
                             " with userfaultfd", start, length);
            goto fail;
        }
    }
    return true;

fail:
    external_region_unregister(region);
    return false;
}

void external_region_unregister(ExternalRegion *region)
{
    if (!region->registered) {
        return;
    }
    for (uint32_t i = 0; i < region->nr_shards; i++) {
        uint64_t start = external_shard_offset(region, i);

        if (region->uffd[i] >= 0) {
            uffd_unregister_memory(region->uffd[i], region->base + start,
                                   external_shard_offset(region, i + 1) -
                                   start);
            close(region->uffd[i]);
            region->uffd[i] = -1;
        }
    }
    region->registered = false;
}

bool external_region_zap(ExternalRegion *region,
                         const struct uffdmm_range *range, Error **errp)
{
    if (!region->registered || range->region_id != region->id) {
        error_setg(errp, "no region %" PRIu32 " is registered on this "
                   "connection", range->region_id);
        return false;
    }
    if (!range->length ||
        !QEMU_IS_ALIGNED(range->offset | range->length, region->page_size) ||
        range->offset > region->size ||
        range->length > region->size - range->offset) {
        error_setg(errp, "range 0x%" PRIx64 "+0x%" PRIx64 " is not made of "
                   "pages of the region's 0x%" PRIx64 " bytes",
                   range->offset, range->length, region->size);
        return false;
    }
    /* On a shared mapping this leaves the data and the uffd-wp marks alone. */
    if (madvise(region->base + range->offset, range->length,
                MADV_DONTNEED) < 0) {
        error_setg_errno(errp, errno, "cannot drop the page-table entries of "
                         "range 0x%" PRIx64 "+0x%" PRIx64, range->offset,
                         range->length);
        return false;
    }
    trace_external_region_zap(region->id, range->offset, range->length);
    return true;
}

/*
 * The manager may be at work on the page at the same time.  It finds out by
 * the generation; what it had begun with the old content it drops, and a
 * fill that is on its way (FILLING) gets BUSY so that nobody takes the page
 * for empty before the filler has punched it again.  An EMPTY page may be
 * about to be filled with zeros: MAYHOLE tells the filler of the hole.
 *
 * Returns: whether the page became DISCARDED
 */
static bool external_entry_discard(uint64_t *entry)
{
    uint64_t old = qatomic_read(entry);

    for (;;) {
        unsigned state = old & UFFDMM_ENTRY_STATE_MASK;
        uint64_t gen = old >> UFFDMM_ENTRY_GEN_SHIFT & UFFDMM_ENTRY_GEN_MASK;
        uint64_t new, seen;

        if (state == UFFDMM_PAGE_UNTRACKED ||
            state == UFFDMM_PAGE_DISCARDED) {
            return false;
        } else if (state == UFFDMM_PAGE_EMPTY) {
            new = old | UFFDMM_ENTRY_MAYHOLE;
        } else {
            gen = (gen + 1) & UFFDMM_ENTRY_GEN_MASK;
            new = old & ~((uint64_t)UFFDMM_ENTRY_STATE_MASK |
                          UFFDMM_ENTRY_MAYHOLE |
                          (uint64_t)UFFDMM_ENTRY_GEN_MASK
                          << UFFDMM_ENTRY_GEN_SHIFT);
            new |= UFFDMM_PAGE_DISCARDED | gen << UFFDMM_ENTRY_GEN_SHIFT;
            if (state == UFFDMM_PAGE_FILLING) {
                new |= UFFDMM_ENTRY_BUSY;
            }
        }
        seen = qatomic_cmpxchg(entry, old, new);
        if (seen == old) {
            return state != UFFDMM_PAGE_EMPTY;
        }
        old = seen;
    }
}

uint64_t external_region_discard(ExternalRegion *region, uint64_t offset,
                                 uint64_t length)
{
    uint64_t first = offset / region->page_size;
    uint64_t end = (offset + length) / region->page_size;
    uint64_t changed = 0;

    assert(QEMU_IS_ALIGNED(offset | length, region->page_size));
    assert(offset <= region->size && length <= region->size - offset);

    for (uint64_t pfn = first; pfn < end; pfn++) {
        changed += external_entry_discard(&region->entries[pfn]);
    }
    if (changed) {
        qatomic_add(&region->table->discards, changed);
    }
    return changed;
}

static void external_close(int *fd)
{
    if (*fd >= 0) {
        close(*fd);
        *fd = -1;
    }
}

void external_region_destroy(ExternalRegion *region)
{
    external_region_unregister(region);
    if (region->table) {
        munmap(region->table, region->table_size);
        region->table = NULL;
        region->entries = NULL;
    }
    external_close(&region->pagemap_fd);
    external_close(&region->table_fd);
    external_close(&region->memfd);
}

const struct uffdmm_stats *external_stats_map(int fd, uint64_t size,
                                              Error **errp)
{
    struct uffdmm_stats *stats;

    if (size < sizeof(*stats)) {
        error_setg(errp, "the statistics of the memory manager have %" PRIu64
                   " bytes, %zu are needed", size, sizeof(*stats));
        return NULL;
    }
    if (!external_fd_check(fd, sizeof(*stats), "statistics", errp)) {
        return NULL;
    }
    stats = mmap(NULL, sizeof(*stats), PROT_READ, MAP_SHARED, fd, 0);
    if (stats == MAP_FAILED) {
        error_setg_errno(errp, errno,
                         "cannot map the statistics of the memory manager");
        return NULL;
    }
    if (stats->magic != UFFDMM_STATS_MAGIC ||
        stats->version != UFFDMM_STATS_VERSION) {
        error_setg(errp, "the statistics of the memory manager have magic "
                   "0x%" PRIx32 " and version %" PRIu32 " instead of 0x%x "
                   "and %u", stats->magic, stats->version,
                   UFFDMM_STATS_MAGIC, UFFDMM_STATS_VERSION);
        munmap(stats, sizeof(*stats));
        return NULL;
    }
    return stats;
}

void external_stats_unmap(const struct uffdmm_stats *stats)
{
    if (stats) {
        munmap((void *)stats, sizeof(*stats));
    }
}
