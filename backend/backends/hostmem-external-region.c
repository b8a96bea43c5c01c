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
#include "qemu/mmap-alloc.h"
#include "qemu/processor.h"
#include "qemu/userfaultfd.h"
#include "hostmem-external-region.h"
#include "trace.h"
#include <sys/mman.h>

/* Statistics come in pages of this size, on any host. */
#define STATS_PAGE_SIZE 4096
/*
 * How long a discard waits for a page that is being put in place.  That
 * takes a few microseconds, or a hundred for a huge page, so spin at first.
 */
#define INSTALL_SPINS    1000
#define INSTALL_SLEEP_US 50
#define INSTALL_WAIT_US  1000000

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
    for (int i = 0; i < UFFDMM_FDS_MAX; i++) {
        region->arena[i] = -1;
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

/* Check that an array of the table, one element a page, is inside of it. */
static bool external_array_check(uint64_t offset, uint64_t element,
                                 uint64_t nr_pages, uint64_t table_size,
                                 const char *what, Error **errp)
{
    if (!QEMU_IS_ALIGNED(offset, element) ||
        offset < sizeof(struct uffdmm_table_header) || offset > table_size ||
        table_size - offset < nr_pages * element) {
        error_setg(errp, "the %s of the page-state table, at offset %" PRIu64
                   ", are not inside its %" PRIu64 " bytes", what, offset,
                   table_size);
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
    return external_array_check(table->entries_offset, sizeof(uint64_t),
                                nr_pages, table_size, "entries", errp) &&
           external_array_check(table->records_offset, sizeof(uint64_t),
                                nr_pages, table_size, "records", errp) &&
           external_array_check(table->pins_offset, sizeof(uint32_t),
                                nr_pages, table_size, "pins", errp);
}

bool external_region_adopt(ExternalRegion *region,
                           const struct uffdmm_region_create_reply *reply,
                           int *fds, uint32_t nr_fds, Error **errp)
{
    uint32_t nr_arenas = nr_fds - 3;
    struct uffdmm_table_header *table;
    struct stat st;

    if (reply->nr_shards < 1 || reply->nr_shards > region->nr_shards) {
        error_setg(errp, "the memory manager wants %" PRIu32 " shards where "
                   "%" PRIu32 " were offered", reply->nr_shards,
                   region->nr_shards);
        return false;
    }
    if (3 + reply->nr_shards + nr_arenas > UFFDMM_FDS_MAX) {
        error_setg(errp, "the memory manager has %" PRIu32 " arenas, with %"
                   PRIu32 " shards there can be %" PRIu32 " at most",
                   nr_arenas, reply->nr_shards,
                   UFFDMM_FDS_MAX - 3 - reply->nr_shards);
        error_append_hint(errp, "Set the property 'shards' to a smaller "
                          "number.\n");
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
    if (qemu_fd_getpagesize(fds[0]) != region->page_size) {
        error_setg(errp, "the guest memory of the memory manager has pages of "
                   "%zu bytes instead of %" PRIu64,
                   qemu_fd_getpagesize(fds[0]), region->page_size);
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
    region->records = (void *)((uint8_t *)table + table->records_offset);
    region->pins = (uint32_t *)((uint8_t *)table + table->pins_offset);
    region->memfd = fds[0];
    region->table_fd = fds[1];
    fds[0] = fds[1] = -1;
    /* nothing to check: QEMU does nothing with them but keep them open */
    for (uint32_t i = 0; i < nr_arenas; i++) {
        region->arena[i] = fds[3 + i];
        fds[3 + i] = -1;
    }
    region->nr_arenas = nr_arenas;
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
    const bool huge = region->page_size != qemu_real_host_page_size();
    const uint64_t features = UFFD_FEATURE_PAGEFAULT_FLAG_WP |
                              (huge ? UFFD_FEATURE_MISSING_HUGETLBFS :
                                      UFFD_FEATURE_MISSING_SHMEM) |
                              UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
                              UFFD_FEATURE_THREAD_ID;
    const uint64_t mode = UFFDIO_REGISTER_MODE_MISSING |
                          UFFDIO_REGISTER_MODE_WP;

    assert(QEMU_PTR_IS_ALIGNED(base, region->page_size));
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

uint32_t external_region_handover(const ExternalRegion *region,
                                  int fds[UFFDMM_FDS_MAX])
{
    uint32_t nr = 0;

    fds[nr++] = region->memfd;
    fds[nr++] = region->table_fd;
    fds[nr++] = region->pagemap_fd;
    for (uint32_t i = 0; i < region->nr_shards; i++) {
        fds[nr++] = region->uffd[i];
    }
    for (uint32_t i = 0; i < region->nr_arenas; i++) {
        fds[nr++] = region->arena[i];
    }
    return nr;
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
    /*
     * On a shared mapping this leaves the data and the uffd-wp marks alone,
     * on hugetlbfs too, where it is possible since Linux 5.18.
     */
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
 * The page is being copied into guest memory.  The punch must come after it,
 * or the guest would find its old page where it has given it back.
 *
 * @old: the entry as it was read
 * @deadline: by g_get_monotonic_time(); 0 before the first wait, -1 when time
 *            is over
 *
 * Returns: the entry as it is now.  The manager may have stopped or died
 * with the page half done, so this does not wait for ever.
 */
static uint64_t external_entry_wait(ExternalRegion *region, uint64_t pfn,
                                    uint64_t old, int64_t *deadline)
{
    const uint64_t mask = UFFDMM_ENTRY_STATE_MASK | UFFDMM_ENTRY_INSTALL;
    const uint64_t installing = UFFDMM_PAGE_FILLING | UFFDMM_ENTRY_INSTALL;

    if (!*deadline) {
        *deadline = g_get_monotonic_time() + INSTALL_WAIT_US;
    }
    for (unsigned i = 0; (old & mask) == installing && *deadline > 0; i++) {
        if (i < INSTALL_SPINS) {
            cpu_relax();
        } else if (g_get_monotonic_time() < *deadline) {
            g_usleep(INSTALL_SLEEP_US);
        } else {
            trace_external_region_install_timeout(region->id, pfn);
            *deadline = -1;
        }
        old = qatomic_read(&region->entries[pfn]);
    }
    return old;
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
static bool external_entry_discard(ExternalRegion *region, uint64_t pfn,
                                   int64_t *deadline)
{
    uint64_t *entry = &region->entries[pfn];
    uint64_t old = qatomic_read(entry);

    for (;;) {
        unsigned state;
        uint64_t gen, new, seen;

        if (old & UFFDMM_ENTRY_INSTALL) {
            old = external_entry_wait(region, pfn, old, deadline);
        }
        state = old & UFFDMM_ENTRY_STATE_MASK;
        gen = old >> UFFDMM_ENTRY_GEN_SHIFT & UFFDMM_ENTRY_GEN_MASK;
        if (state == UFFDMM_PAGE_UNTRACKED ||
            state == UFFDMM_PAGE_DISCARDED) {
            return false;
        } else if (state == UFFDMM_PAGE_EMPTY) {
            new = old | UFFDMM_ENTRY_MAYHOLE;
        } else {
            gen = (gen + 1) & UFFDMM_ENTRY_GEN_MASK;
            new = old & ~((uint64_t)UFFDMM_ENTRY_STATE_MASK |
                          UFFDMM_ENTRY_MAYHOLE | UFFDMM_ENTRY_INSTALL |
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
    int64_t deadline = 0;

    assert(QEMU_IS_ALIGNED(offset | length, region->page_size));
    assert(offset <= region->size && length <= region->size - offset);

    for (uint64_t pfn = first; pfn < end; pfn++) {
        changed += external_entry_discard(region, pfn, &deadline);
    }
    if (changed) {
        qatomic_add(&region->table->discards, changed);
    }
    return changed;
}

void external_region_pin(ExternalRegion *region, uint64_t offset,
                         uint64_t length)
{
    assert(offset <= region->size && length <= region->size - offset);
    if (!length) {
        return;
    }
    for (uint64_t pfn = offset / region->page_size;
         pfn <= (offset + length - 1) / region->page_size; pfn++) {
        qatomic_inc(&region->pins[pfn]);
    }
    /* counted first, accessed then; pairs with the barrier of the manager */
    smp_mb();
}

void external_region_unpin(ExternalRegion *region, uint64_t offset,
                           uint64_t length)
{
    /* error paths may unmap what they asked for and did not get */
    length = MIN(length, region->size - MIN(offset, region->size));
    if (!length) {
        return;
    }
    for (uint64_t pfn = offset / region->page_size;
         pfn <= (offset + length - 1) / region->page_size; pfn++) {
        uint32_t *pins = &region->pins[pfn];
        uint32_t old = qatomic_read(pins), seen;

        /* the manager can write here too: never let the count wrap around */
        for (; old; old = seen) {
            seen = qatomic_cmpxchg(pins, old, old - 1);
            if (seen == old) {
                break;
            }
        }
        if (!old) {
            trace_external_region_unpin_none(region->id, pfn);
        }
    }
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
        region->pins = NULL;
    }
    external_close(&region->pagemap_fd);
    external_close(&region->table_fd);
    external_close(&region->memfd);
    for (uint32_t i = 0; i < region->nr_arenas; i++) {
        external_close(&region->arena[i]);
    }
    region->nr_arenas = 0;
}

bool external_stats_map(ExternalStats *stats, int fd, uint64_t size,
                        Error **errp)
{
    const uint64_t size_max = (1 + UFFDMM_TIERS_MAX) * STATS_PAGE_SIZE;
    struct uffdmm_stats *vm;

    QEMU_BUILD_BUG_ON(sizeof(struct uffdmm_stats) > STATS_PAGE_SIZE);
    QEMU_BUILD_BUG_ON(sizeof(struct uffdmm_tier_stats) > STATS_PAGE_SIZE);
    if (size < sizeof(*vm)) {
        error_setg(errp, "the statistics of the memory manager have %" PRIu64
                   " bytes, %zu are needed", size, sizeof(*vm));
        return false;
    }
    size = MIN(size, size_max);
    if (!external_fd_check(fd, size, "statistics", errp)) {
        return false;
    }
    vm = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
    if (vm == MAP_FAILED) {
        error_setg_errno(errp, errno,
                         "cannot map the statistics of the memory manager");
        return false;
    }
    if (vm->magic != UFFDMM_STATS_MAGIC ||
        vm->version != UFFDMM_STATS_VERSION) {
        error_setg(errp, "the statistics of the memory manager have magic "
                   "0x%" PRIx32 " and version %" PRIu32 " instead of 0x%x "
                   "and %u", vm->magic, vm->version,
                   UFFDMM_STATS_MAGIC, UFFDMM_STATS_VERSION);
        munmap(vm, size);
        return false;
    }
    *stats = (ExternalStats) { .vm = vm, .size = size };
    return true;
}

void external_stats_unmap(ExternalStats *stats)
{
    if (stats->vm) {
        munmap((void *)stats->vm, stats->size);
        stats->vm = NULL;
    }
}

uint32_t external_stats_nr_tiers(const ExternalStats *stats)
{
    uint64_t mapped = stats->size / STATS_PAGE_SIZE;

    if (!stats->vm || mapped < 2) {
        return 0;
    }
    return MIN(qatomic_read(&stats->vm->nr_tiers), mapped - 1);
}

const struct uffdmm_tier_stats *external_stats_tier(const ExternalStats *stats,
                                                    uint32_t i)
{
    return (const void *)((const uint8_t *)stats->vm +
                          (1 + i) * STATS_PAGE_SIZE);
}
