/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "region.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <linux/magic.h>
#include <linux/memfd.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "fault.h"
#include "evict_io.h"
#include "log.h"
#include "queue.h"
#include "test_hooks.h"

/* 64 TiB: more than any machine, and page numbers times 8 stay far from overflow. */
#define REGION_MAX_BYTES (1ULL << 46)

/* Tries of an unprotect that the kernel answers with EAGAIN. */
#define UNPROTECT_TRIES 1000

static uint64_t page_align(uint64_t v)
{
    return (v + PAGE_SIZE_4K - 1) & ~(uint64_t)(PAGE_SIZE_4K - 1);
}

int region_memfd(const char *name, unsigned flags, uint64_t size)
{
    int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | flags);
    int ret;

    if (fd < 0) {
        return -errno;
    }
    if (ftruncate(fd, (off_t)size) < 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
        ret = -errno;
        close(fd);
        return ret;
    }
    return fd;
}

/* Where things lie in a table of so many pages; sets r->table_size. */
static struct uffdmm_table_header table_layout(struct region *r)
{
    uint64_t entries = PAGE_SIZE_4K;
    uint64_t records = entries + page_align(r->nr_pages * sizeof(uint64_t));
    uint64_t ages = records + page_align(r->nr_pages * sizeof(uint64_t));
    uint64_t pins = ages + page_align(r->nr_pages);

    r->table_size = pins + page_align(r->nr_pages * sizeof(uint32_t));
    return (struct uffdmm_table_header){
        .magic = UFFDMM_TABLE_MAGIC,
        .version = UFFDMM_TABLE_VERSION,
        .page_size = region_page_bytes(r),
        .nr_pages = r->nr_pages,
        .entries_offset = entries,
        .records_offset = records,
        .ages_offset = ages,
        .pins_offset = pins,
        .region_state = UFFDMM_REGION_LIVE,
        .region_id = r->id,
    };
}

/*
 * Locks the table, by an open file of our own: the lock ends with this process and with
 * nothing else, so who has it knows that no other worker serves the region.
 */
static int table_lock(struct region *r)
{
    char path[64];

    snprintf(path, sizeof(path), "/proc/self/fd/%d", r->table_fd);
    r->lock_fd = open(path, O_RDWR | O_CLOEXEC);
    return r->lock_fd < 0 || flock(r->lock_fd, LOCK_EX | LOCK_NB) < 0 ? -errno : 0;
}

static int table_map(struct region *r, const struct uffdmm_table_header *layout)
{
    void *map =
        mmap(NULL, r->table_size, PROT_READ | PROT_WRITE, MAP_SHARED, r->table_fd, 0);

    if (map == MAP_FAILED) {
        return -errno;
    }
    r->table = map;
    r->header = map;
    r->entries = (entry_t *)(void *)((char *)map + layout->entries_offset);
    r->records = (uint64_t *)(void *)((char *)map + layout->records_offset);
    r->ages = (uint8_t *)map + layout->ages_offset;
    r->pins = (const _Atomic uint32_t *)(const void *)((char *)map + layout->pins_offset);
    return 0;
}

/* Creates and maps the page-state table, all pages EMPTY. */
static int table_create(struct region *r, bool incoming)
{
    struct uffdmm_table_header layout = table_layout(r);
    int ret;

    layout.region_state = incoming ? UFFDMM_REGION_INCOMING : UFFDMM_REGION_LIVE;

    r->table_fd = region_memfd("uffdmm-table", 0, r->table_size);
    ret = r->table_fd < 0 ? r->table_fd : table_lock(r);
    ret = ret ? ret : table_map(r, &layout);
    if (ret) {
        return ret;
    }
    *r->header = layout;
    for (uint64_t pfn = 0; pfn < r->nr_pages; pfn++) {
        atomic_init(&r->entries[pfn], entry_make(UFFDMM_PAGE_EMPTY, 0, 0, 0, 0));
    }
    return 0;
}

static int blocks_create(struct region *r)
{
    r->nr_blocks = (uint32_t)((r->nr_pages + r->block_pages - 1) / r->block_pages);
    r->blocks = calloc(r->nr_blocks, sizeof(*r->blocks));
    r->raw = calloc((r->nr_pages + 63) / 64, sizeof(*r->raw));
    if (!r->blocks || !r->raw) {
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < r->nr_blocks; i++) {
        r->blocks[i].region = r;
        r->blocks[i].index = i;
    }
    return 0;
}

void region_free(struct region *r)
{
    for (unsigned i = 0; i < r->nr_shards; i++) {
        fault_release(&r->shards[i]);
    }
    presence_deinit(&r->presence);
    if (r->table) {
        munmap(r->table, r->table_size);
    }
    if (r->lock_fd >= 0) {
        close(r->lock_fd);
    }
    if (r->table_fd >= 0) {
        close(r->table_fd);
    }
    if (r->memfd >= 0) {
        close(r->memfd);
    }
    if (r->pagemap_fd >= 0) {
        close(r->pagemap_fd);
    }
    if (r->mig.set) {
        munmap(r->mig.set, r->mig.set_size);
        close(r->mig.set_fd);
    }
    if (r->mig.bounce) {
        munmap(r->mig.bounce, r->mig.bounce_size);
        close(r->mig.bounce_fd);
    }
    free(r->raw);
    free(r->blocks);
    free(r);
}

/* True when some tier of the VM takes huge pages, now or when a migration has begun. */
static bool any_takes_runs(const struct vm *vm)
{
    for (unsigned i = 1; i < vm->nr_tiers; i++) {
        if (vm->tier[i].ops->take_run) {
            return true;
        }
    }
    return false;
}

static int check_request(const struct vm *vm, const struct uffdmm_region_create *req,
                         char *err, size_t err_len)
{
    if (req->page_size != PAGE_SIZE_4K && req->page_size != PAGE_SIZE_2M) {
        snprintf(err, err_len, "page size %llu is not supported: use 4096 or 2097152",
                 (unsigned long long)req->page_size);
        return -EINVAL;
    }
    if (!req->size || req->size % req->page_size || req->size > REGION_MAX_BYTES) {
        snprintf(err, err_len,
                 "size %llu of region '%s' is not a multiple of %llu from %llu to %llu",
                 (unsigned long long)req->size, req->name,
                 (unsigned long long)req->page_size, (unsigned long long)req->page_size,
                 (unsigned long long)REGION_MAX_BYTES);
        return -EINVAL;
    }
    if (req->page_size == PAGE_SIZE_2M && vm->nr_tiers && !any_takes_runs(vm)) {
        snprintf(
            err, err_len,
            "region '%s' has pages of 2 MiB, which a pool does not take: add a tier of "
            "type file or nbd, or leave out hugetlb=on",
            req->name);
        return -EINVAL;
    }
    if (req->nr_shards < 1 || req->nr_shards > UFFDMM_SHARDS_MAX ||
        req->size / req->page_size < req->nr_shards) {
        snprintf(err, err_len, "%u shards for region '%s': use 1 to %d", req->nr_shards,
                 req->name, UFFDMM_SHARDS_MAX);
        return -EINVAL;
    }
    if (req->flags & ~(uint32_t)UFFDMM_CREATE_INCOMING) {
        snprintf(err, err_len, "flags %#x of region '%s' are unknown to this manager",
                 req->flags, req->name);
        return -EINVAL;
    }
    for (unsigned i = 0; i < UFFDMM_REGIONS_MAX; i++) {
        if (vm->regions[i] && !strcmp(vm->regions[i]->name, req->name)) {
            snprintf(err, err_len,
                     "VM '%s' has a region '%s' already: give the backend another id",
                     vm->name, req->name);
            return -EEXIST;
        }
    }
    return 0;
}

static int free_index(const struct vm *vm)
{
    for (int i = 0; i < UFFDMM_REGIONS_MAX; i++) {
        if (!vm->regions[i]) {
            return i;
        }
    }
    return -1;
}

static void lock_regions(struct vm *vm)
{
    atomic_store(&vm->regions_wanted, true);
    pthread_rwlock_wrlock(&vm->regions_lock);
    atomic_store(&vm->regions_wanted, false);
}

/* A region as @req asks for it, with nothing behind it yet; NULL without memory. */
static struct region *region_new(struct vm *vm, const struct uffdmm_region_create *req,
                                 uint32_t id)
{
    struct region *r = calloc(1, sizeof(*r));

    if (!r) {
        return NULL;
    }
    r->vm = vm;
    r->id = id;
    r->serial = ++vm->regions_made;
    r->memfd = r->table_fd = r->lock_fd = r->pagemap_fd = r->link_fd = -1;
    snprintf(r->name, sizeof(r->name), "%s", req->name);
    r->seed = XXH3_64bits(r->name, strlen(r->name));
    r->size = req->size;
    r->page_shift = req->page_size == PAGE_SIZE_2M ? PAGE_SHIFT_2M : PAGE_SHIFT_4K;
    r->block_pages = region_is_huge(r) ? 1 : BLOCK_PAGES;
    r->nr_pages = req->size >> r->page_shift;
    r->nr_shards = req->nr_shards;
    for (unsigned i = 0; i < r->nr_shards; i++) {
        r->shards[i].region = r;
        r->shards[i].uffd = -1;
        r->shards[i].cpu = -1;
        r->shards[i].first = i * r->nr_pages / r->nr_shards;
        r->shards[i].end = (i + 1) * r->nr_pages / r->nr_shards;
    }
    presence_clear(&r->presence);
    return r;
}

int region_prepare(struct region *r)
{
    int ret = region_is_huge(r) ? presence_init(&r->presence, r->memfd, r->size) : 0;

    ret = ret ? ret : blocks_create(r);
    for (unsigned i = 0; !ret && i < r->nr_shards; i++) {
        ret = fault_prepare(&r->shards[i]);
    }
    return ret;
}

/* Makes the region known to all threads. */
static void region_enter(struct region *r)
{
    struct vm *vm = r->vm;

    lock_regions(vm);
    vm->regions[r->id] = r;
    pthread_rwlock_unlock(&vm->regions_lock);
    atomic_fetch_add(&vm->nr_blocks, r->nr_blocks);
    atomic_fetch_add(&vm->nr_huge, region_is_huge(r));
    stats_add(&vm->stats->nr_regions, 1);
    stats_add(&vm->stats->ram_bytes, r->size);
    stats_add(&vm->stats->table_bytes, r->table_size);
}

int region_create(struct vm *vm, const struct uffdmm_region_create *req,
                  struct region **out, char *err, size_t err_len)
{
    struct region *r;
    int index, ret;

    ret = check_request(vm, req, err, err_len);
    if (ret) {
        return ret;
    }
    if (mig_running(vm->mig)) {
        snprintf(err, err_len, "VM '%s' is being migrated: add region '%s' afterwards",
                 vm->name, req->name);
        return -EBUSY;
    }
    index = free_index(vm);
    if (index < 0) {
        snprintf(err, err_len, "VM '%s' has %d regions already, the most there can be",
                 vm->name, UFFDMM_REGIONS_MAX);
        return -ENOSPC;
    }
    r = region_new(vm, req, (uint32_t)index);
    if (!r) {
        snprintf(err, err_len, "no memory for region '%s'", req->name);
        return -ENOMEM;
    }
    r->memfd = region_memfd("uffdmm-ram",
                            region_is_huge(r) ? MFD_HUGETLB | MFD_HUGE_2MB : 0, r->size);
    ret = r->memfd < 0 ? r->memfd
                       : table_create(r, (req->flags & UFFDMM_CREATE_INCOMING) != 0);
    ret = ret ? ret : region_prepare(r);
    if (ret) {
        snprintf(err, err_len,
                 "cannot set up region '%s' of %llu MiB in pages of %zu KiB: %s", r->name,
                 (unsigned long long)(r->size >> 20), region_page_bytes(r) >> 10,
                 strerror(-ret));
        region_free(r);
        return ret;
    }
    region_enter(r);
    *out = r;
    return 0;
}

/* True when @fd is a memfd of this size that stays so, with pages of @page_bytes. */
static bool is_sealed_memfd(int fd, uint64_t size, size_t page_bytes)
{
    const int fixed = F_SEAL_SHRINK | F_SEAL_GROW;
    int seals = fcntl(fd, F_GET_SEALS);
    struct statfs fs;
    struct stat st;

    return fstat(fd, &st) == 0 && (uint64_t)st.st_size == size && fstatfs(fd, &fs) == 0 &&
           (fs.f_type == HUGETLBFS_MAGIC) == (page_bytes == PAGE_SIZE_2M) && seals > 0 &&
           (seals & fixed) == fixed;
}

int region_adopt(struct vm *vm, const struct uffdmm_region_create *req, uint32_t id,
                 int memfd, int table_fd, struct region **out, char *err, size_t err_len)
{
    struct uffdmm_table_header layout, found;
    struct region *r = NULL;
    int ret = check_request(vm, req, err, err_len);

    if (!ret && (id >= UFFDMM_REGIONS_MAX || vm->regions[id])) {
        snprintf(err, err_len, "region number %u of '%s' is in use or too high", id,
                 req->name);
        ret = -EEXIST;
    }
    if (!ret) {
        r = region_new(vm, req, id);
        ret = r ? 0 : -ENOMEM;
        snprintf(err, err_len, "no memory for region '%s'", req->name);
    }
    if (ret) {
        close(memfd);
        close(table_fd);
        return ret;
    }
    r->memfd = memfd;
    r->table_fd = table_fd;
    layout = table_layout(r);
    if (!is_sealed_memfd(memfd, r->size, region_page_bytes(r)) ||
        !is_sealed_memfd(table_fd, r->table_size, PAGE_SIZE_4K)) {
        snprintf(
            err, err_len,
            "the descriptors of region '%s' are not its memory of %llu bytes and its "
            "table of %llu, sealed",
            r->name, (unsigned long long)r->size, (unsigned long long)r->table_size);
        ret = -EBADF;
    } else {
        ret = table_lock(r);
        snprintf(err, err_len, "cannot lock the table of region '%s': %s", r->name,
                 ret == -EWOULDBLOCK ? "its former worker has not ended yet; try again"
                                     : strerror(-ret));
    }
    if (!ret) {
        ret = table_map(r, &layout);
        snprintf(err, err_len, "cannot map the table of region '%s': %s", r->name,
                 strerror(-ret));
    }
    if (!ret) {
        /* a copy: what is compared must not change meanwhile */
        memcpy(&found, r->header, sizeof(found));
        layout.session = found.session;
        layout.discards = found.discards;
        if (found.region_state == UFFDMM_REGION_INCOMING) {
            layout.region_state = UFFDMM_REGION_INCOMING; /* pages are as in a live one */
        }
        if (found.region_state == UFFDMM_REGION_INSTALLING) {
            /* a page that is in memory still may be one that the volume has now */
            snprintf(err, err_len,
                     "the worker of region '%s' ended while pages were put in place that "
                     "a migration had brought: it cannot be taken over; end the VM and "
                     "migrate it again",
                     r->name);
            ret = -EUCLEAN;
        } else if (memcmp(&found, &layout,
                          offsetof(struct uffdmm_table_header, nr_tiers)) != 0) {
            snprintf(err, err_len,
                     "the header of the table of region '%s' does not fit: version %u, "
                     "%llu pages of %llu bytes, region %u, state %u",
                     r->name, found.version, (unsigned long long)found.nr_pages,
                     (unsigned long long)found.page_size, found.region_id,
                     found.region_state);
            ret = -EUCLEAN;
        }
    }
    if (ret) {
        region_free(r);
        return ret;
    }
    *out = r;
    return 0;
}

/* True when descriptor @fd is what its link in /proc says it must be. */
static bool fd_is(int fd, const char *what)
{
    char path[64], target[PATH_MAX];
    ssize_t n;

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    n = readlink(path, target, sizeof(target) - 1);
    if (n < 0) {
        return false;
    }
    target[n] = '\0';
    return strcmp(target, what) == 0;
}

static int check_attach(const struct region *r, const struct uffdmm_region_attach *req,
                        int pagemap_fd, const int *uffds, char *err, size_t err_len)
{
    char pagemap[64];

    if (r->attached) {
        snprintf(err, err_len, "region '%s' is attached already", r->name);
        return -EEXIST;
    }
    if (req->region_id != r->id || req->size != r->size ||
        req->nr_shards != r->nr_shards) {
        snprintf(
            err, err_len,
            "attach names region %u of %llu bytes in %u shards, created was %u of %llu in %u",
            req->region_id, (unsigned long long)req->size, req->nr_shards, r->id,
            (unsigned long long)r->size, r->nr_shards);
        return -EINVAL;
    }
    if (!req->base || req->base % region_page_bytes(r) ||
        req->base > UINT64_MAX - req->size) {
        snprintf(err, err_len,
                 "base address %#llx of region '%s' is not page-aligned or too high",
                 (unsigned long long)req->base, r->name);
        return -EINVAL;
    }
    for (unsigned i = 0; i < UFFDMM_REGIONS_MAX; i++) {
        const struct region *o = r->vm->regions[i];

        if (o && o->attached && req->base < o->base + o->size &&
            o->base < req->base + req->size) {
            snprintf(err, err_len, "region '%s' at %#llx overlaps region '%s'", r->name,
                     (unsigned long long)req->base, o->name);
            return -EINVAL;
        }
    }
    snprintf(pagemap, sizeof(pagemap), "/proc/%d/pagemap", (int)r->vm->qemu_pid);
    if (!fd_is(pagemap_fd, pagemap)) {
        snprintf(err, err_len, "the first descriptor of an attach must be %s", pagemap);
        return -EBADF;
    }
    for (unsigned i = 0; i < r->nr_shards; i++) {
        if (!fd_is(uffds[i], "anon_inode:[userfaultfd]")) {
            snprintf(err, err_len, "descriptor %u of the attach is not a userfaultfd",
                     i + 1);
            return -EBADF;
        }
    }
    return 0;
}

/* A page that was there before we serve: RESIDENT, and the evictor may have it. */
static void adopt_page(struct region *r, uint64_t pfn, unsigned flags)
{
    atomic_store(&r->entries[pfn], entry_make(UFFDMM_PAGE_RESIDENT, flags, 0, 0, 0));
    queue_push(r->vm, &r->blocks[region_block(r, pfn)]);
}

/*
 * hugetlbfs does not know its holes: SEEK_DATA finds data everywhere.  When there is
 * anything at all, each page may be there, and if it is a hole it reads as zero.
 */
static void adopt_huge(struct region *r)
{
    struct stat st;

    if (fstat(r->memfd, &st) == 0 && !st.st_blocks) {
        return;
    }
    for (uint64_t pfn = 0; pfn < r->nr_pages; pfn++) {
        adopt_page(r, pfn, UFFDMM_ENTRY_MAYHOLE);
    }
}

static void adopt_small(struct region *r)
{
    off_t pos = 0;

    while ((pos = lseek(r->memfd, pos, SEEK_DATA)) >= 0) {
        off_t end = lseek(r->memfd, pos, SEEK_HOLE);

        for (uint64_t pfn = (uint64_t)pos / PAGE_SIZE_4K;
             pfn < (uint64_t)end / PAGE_SIZE_4K; pfn++) {
            adopt_page(r, pfn, 0);
        }
        pos = end;
    }
}

/*
 * Invariant 4 of docs/architecture.md: present pages RESIDENT, then unprotect,
 * then wake.  On a first attach memory is empty unless QEMU wrote before it
 * registered, and both calls prove that each userfaultfd covers its slice.
 */
static int adopt_memory(struct region *r, char *err, size_t err_len)
{
    if (region_is_huge(r)) {
        adopt_huge(r);
    } else {
        adopt_small(r);
    }
    for (unsigned i = 0; i < r->nr_shards; i++) {
        struct shard *sh = &r->shards[i];
        size_t len = (size_t)(sh->end - sh->first) << r->page_shift;

        if (uffd_wp(sh->uffd, page_addr(r, sh->first), len, false) != UFFD_DONE ||
            uffd_wake(sh->uffd, page_addr(r, sh->first), len) != UFFD_DONE) {
            int ret = -errno;

            snprintf(
                err, err_len,
                "userfaultfd %u does not cover its slice of region '%s' for missing pages and "
                "write protection: %s",
                i, r->name, strerror(-ret));
            return ret;
        }
    }
    return 0;
}

/* Lifts the protection of all memory; 0 or a negative errno with @err. */
static int unprotect_all(struct region *r, char *err, size_t err_len)
{
    for (unsigned i = 0; i < r->nr_shards; i++) {
        struct shard *sh = &r->shards[i];
        size_t len = (size_t)(sh->end - sh->first) << r->page_shift;
        enum uffd_outcome out;
        unsigned tries = 0;

        while ((out = uffd_wp(sh->uffd, page_addr(r, sh->first), len, false)) ==
                   UFFD_AGAIN &&
               ++tries < UNPROTECT_TRIES) {
            usleep(100);
        }
        if (out != UFFD_DONE) {
            int ret = -errno;

            snprintf(err, err_len,
                     "userfaultfd %u does not cover its slice of region '%s': %s", i,
                     r->name, strerror(-ret));
            return ret;
        }
    }
    return 0;
}

static void detach(struct region *r)
{
    struct vm *vm = r->vm;

    for (unsigned i = 0; i < r->nr_shards; i++) {
        fault_stop(&r->shards[i]);
    }
    lock_regions(vm);
    r->attached = false;
    queue_remove_region(vm, r);
    pthread_rwlock_unlock(&vm->regions_lock);
}

int region_attach(struct region *r, const struct uffdmm_region_attach *req,
                  int pagemap_fd, const int *uffds, char *err, size_t err_len)
{
    int ret = check_attach(r, req, pagemap_fd, uffds, err, err_len);

    if (ret) {
        close(pagemap_fd);
        for (unsigned i = 0; i < req->nr_shards && i < UFFDMM_SHARDS_MAX; i++) {
            close(uffds[i]);
        }
        return ret;
    }
    r->base = req->base;
    r->pagemap_fd = pagemap_fd;
    for (unsigned i = 0; i < r->nr_shards; i++) {
        r->shards[i].uffd = uffds[i];
        /* a blocking userfaultfd answers poll() with an error */
        if (fcntl(uffds[i], F_SETFL, O_NONBLOCK) < 0) {
            ret = -errno;
            snprintf(err, err_len, "cannot make userfaultfd %u non-blocking: %s", i,
                     strerror(-ret));
        }
    }
    if (!ret) {
        ret = adopt_memory(r, err, err_len);
    }
    for (unsigned i = 0; !ret && i < r->nr_shards; i++) {
        ret = fault_start(&r->shards[i]);
        if (ret) {
            snprintf(err, err_len, "cannot start a fault thread: %s", strerror(-ret));
        }
    }
    if (ret) {
        detach(r);
        return ret;
    }
    lock_regions(r->vm);
    r->attached = true;
    pthread_rwlock_unlock(&r->vm->regions_lock);
    return 0;
}

int region_resume(struct region *r, const struct uffdmm_region_attach *req,
                  int pagemap_fd, const int *uffds, char *err, size_t err_len)
{
    int ret = check_attach(r, req, pagemap_fd, uffds, err, err_len);

    r->pagemap_fd = pagemap_fd;
    for (unsigned i = 0; i < r->nr_shards; i++) {
        r->shards[i].uffd = uffds[i];
    }
    if (ret) {
        return ret;
    }
    r->base = req->base;
    for (unsigned i = 0; i < r->nr_shards; i++) {
        if (fcntl(uffds[i], F_SETFL, O_NONBLOCK) < 0) {
            return -errno;
        }
    }
    /* wakes as well */
    ret = test_hook("UFFDMM_TEST_RECOVER_NO_WAKE") ? 0 : unprotect_all(r, err, err_len);
    if (ret) {
        return ret;
    }
    /* from here on the evictor may protect again */
    region_enter(r);
    for (uint64_t pfn = 0; pfn < r->nr_pages; pfn++) {
        uint64_t e = entry_load(&r->entries[pfn]);

        if (entry_state(e) == UFFDMM_PAGE_STORED) {
            region_count_stored(r, e, 1);
        } else if (entry_state(e) == UFFDMM_PAGE_RESIDENT) {
            queue_push(r->vm, &r->blocks[region_block(r, pfn)]);
        }
    }
    for (unsigned i = 0; !ret && i < r->nr_shards; i++) {
        ret = fault_start(&r->shards[i]);
    }
    if (ret) {
        log_error("cannot start a fault thread of region %s: %s", r->name,
                  strerror(-ret));
        abort(); /* QEMU tries again with another worker; here nothing must be freed */
    }
    lock_regions(r->vm);
    r->attached = true;
    pthread_rwlock_unlock(&r->vm->regions_lock);
    /* messages that the dead worker had read are not sent again: all waiters fault anew */
    for (unsigned i = 0; i < r->nr_shards && !test_hook("UFFDMM_TEST_RECOVER_NO_WAKE");
         i++) {
        struct shard *sh = &r->shards[i];

        uffd_wake(sh->uffd, page_addr(r, sh->first),
                  (size_t)(sh->end - sh->first) << r->page_shift);
    }
    return 0;
}

void region_set_link(struct region *r, int fd)
{
    lock_regions(r->vm);
    r->link_fd = fd;
    pthread_rwlock_unlock(&r->vm->regions_lock);
}

void region_destroy(struct region *r)
{
    struct vm *vm = r->vm;

    mig_region_gone(r);
    detach(r);
    /* their writes name its entries; a tier that is cancelled ends them */
    while (atomic_load(&r->parked)) {
        usleep(1000);
    }
    lock_regions(vm);
    queue_remove_region(vm, r); /* they may have queued blocks again */
    vm->regions[r->id] = NULL;
    pthread_rwlock_unlock(&vm->regions_lock);
    for (uint64_t pfn = 0; pfn < r->nr_pages; pfn++) {
        uint64_t e = entry_load(&r->entries[pfn]);

        /* no thread works on the region any more: no slot is being written */
        if (entry_state(e) == UFFDMM_PAGE_STORED) {
            region_count_stored(r, e, -1);
        }
        region_free_slots(r, pfn, e & ~(uint64_t)UFFDMM_ENTRY_WRITING);
    }
    atomic_fetch_sub(&vm->nr_blocks, r->nr_blocks);
    atomic_fetch_sub(&vm->nr_huge, region_is_huge(r));
    stats_add(&vm->stats->nr_regions, (uint64_t)-1);
    stats_add(&vm->stats->ram_bytes, (uint64_t)-r->size);
    stats_add(&vm->stats->table_bytes, (uint64_t)-r->table_size);
    region_free(r);
    vm_sync_resident(vm);
}

bool region_range_ok(const struct region *r, uint64_t offset, uint64_t length)
{
    return length && !(offset % region_page_bytes(r)) &&
           !(length % region_page_bytes(r)) && length <= r->size &&
           offset <= r->size - length;
}

bool region_reap_discard(struct region *r, uint64_t pfn)
{
    uint64_t e = entry_load(&r->entries[pfn]);

    /* busy or being written: whoever is at it comes here when it is done */
    if (entry_state(e) != UFFDMM_PAGE_DISCARDED || entry_busy(e) ||
        (e & UFFDMM_ENTRY_WRITING)) {
        return false;
    }
    /* QEMU's punch may be still to come, hence MAYHOLE */
    if (!entry_cas(
            &r->entries[pfn], e,
            entry_make(UFFDMM_PAGE_EMPTY, UFFDMM_ENTRY_MAYHOLE, 0, entry_gen(e), 0))) {
        return false;
    }
    region_free_slots(r, pfn, e);
    stats_add(&r->vm->stats->discarded, region_units(r));
    return true;
}

void region_release_page(struct region *r, uint64_t pfn)
{
    entry_clear_busy(&r->entries[pfn]);
    region_reap_discard(r, pfn);
}

uint64_t region_discarded(struct region *r, uint64_t offset, uint64_t length)
{
    uint64_t pages = 0;

    for (uint64_t pfn = offset >> r->page_shift; pfn < (offset + length) >> r->page_shift;
         pfn++) {
        pages += region_reap_discard(r, pfn);
    }
    return pages;
}

void region_recount(struct vm *vm)
{
    int64_t stored[UFFDMM_TIERS_MAX] = {0};

    for (unsigned k = 0; k < UFFDMM_REGIONS_MAX; k++) {
        struct region *r = vm->regions[k];

        for (uint64_t pfn = 0; r && pfn < r->nr_pages; pfn++) {
            uint64_t e = entry_load(&r->entries[pfn]);

            if (entry_state(e) == UFFDMM_PAGE_STORED &&
                entry_tier(e) < UFFDMM_TIERS_MAX) {
                stored[entry_tier(e)] += region_units(r);
            }
        }
    }
    for (unsigned i = 0; i < UFFDMM_TIERS_MAX; i++) {
        atomic_store(&vm->stored[i], stored[i]);
    }
}
