/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation.  The main thread makes the lists, one for each shard, and
 * leaves each in sh->prefetch_new; the fault thread takes it from there when it has no
 * fault to serve, and begins fills for the pages as if somebody had touched them: the
 * same claims, checks and ioctls, so nothing can come in that a fault would not bring.
 * A fault that comes meanwhile is served first.
 *
 * There is no hurry: a few fills are under way at a time, and none that would make the
 * evictor start.  When the room is used up the rest of the list is forgotten.
 *
 * Lists are allocated and freed by the main thread alone: one that is worked off or
 * replaced goes to sh->prefetch_old.
 */
#include "prefetch.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fault.h"
#include "fill.h"
#include "vm.h"
#include "window.h"

/* Fills under way at a time, and pages of each. */
#define PREFETCH_FILLS 2
#define PREFETCH_RUN 32

/* Page numbers read from a list at a time. */
#define READ_CHUNK 4096

/* Frees what the fault thread is done with. */
static void free_old(struct shard *sh)
{
    struct prefetch_list *l = atomic_exchange(&sh->prefetch_old, NULL);

    while (l) {
        struct prefetch_list *next = l->next;

        free(l);
        l = next;
    }
}

static void retire(struct shard *sh, struct prefetch_list *l)
{
    l->next = atomic_load(&sh->prefetch_old);
    while (!atomic_compare_exchange_weak(&sh->prefetch_old, &l->next, l)) {
    }
}

/* Leaves @l, or NULL for "stop", to the fault thread of the shard. */
static void hand_over(struct shard *sh, struct prefetch_list *l)
{
    struct prefetch_list *unseen;

    free_old(sh);
    unseen = atomic_exchange(&sh->prefetch_new, l);
    free(unseen);
    fault_kick(sh);
}

static struct prefetch_list *list_new(uint64_t nr)
{
    return calloc(1, sizeof(struct prefetch_list) + nr * sizeof(uint64_t));
}

static bool wanted(const struct region *r, uint64_t pfn)
{
    return entry_state(entry_load(&r->entries[pfn])) == UFFDMM_PAGE_STORED;
}

/* Counts the stored pages of the VM by age, in pages of 4 KiB. */
static void count_ages(struct vm *vm, uint64_t count[256])
{
    memset(count, 0, 256 * sizeof(count[0]));
    for (unsigned k = 0; k < UFFDMM_REGIONS_MAX; k++) {
        const struct region *r = vm->regions[k];

        for (uint64_t pfn = 0; r && r->attached && pfn < r->nr_pages; pfn++) {
            if (wanted(r, pfn)) {
                count[region_age(r, pfn)] += region_units(r);
            }
        }
    }
}

/* The pages of a shard that are not older than @oldest, youngest first. */
static struct prefetch_list *list_by_age(const struct shard *sh, unsigned oldest)
{
    const struct region *r = sh->region;
    uint64_t at[257] = {0};
    struct prefetch_list *l;

    for (uint64_t pfn = sh->first; pfn < sh->end; pfn++) {
        unsigned age = region_age(r, pfn);

        if (wanted(r, pfn) && age <= oldest) {
            at[age + 1]++;
        }
    }
    for (unsigned i = 0; i < 256; i++) {
        at[i + 1] += at[i];
    }
    l = list_new(at[256]);
    if (!l) {
        return NULL;
    }
    l->nr = at[256];
    for (uint64_t pfn = sh->first; pfn < sh->end; pfn++) {
        unsigned age = region_age(r, pfn);

        /*
         * The table moves on meanwhile, so a place may stay 0 or be taken twice: each
         * page is looked at again before it is brought in.
         */
        if (wanted(r, pfn) && age <= oldest && at[age] < l->nr) {
            l->pages[at[age]++] = pfn;
        }
    }
    return l;
}

int prefetch_youngest(struct vm *vm, uint64_t bytes)
{
    uint64_t count[256], sum = 0;
    unsigned oldest = 0;

    count_ages(vm, count);
    for (unsigned i = 0; i < 256 && sum < bytes >> PAGE_SHIFT_4K; i++) {
        sum += count[i];
        oldest = i;
    }
    atomic_store(&vm->prefetch_left, (int64_t)(bytes >> PAGE_SHIFT_4K));
    for (unsigned k = 0; k < UFFDMM_REGIONS_MAX; k++) {
        struct region *r = vm->regions[k];

        for (unsigned i = 0; r && r->attached && i < r->nr_shards; i++) {
            struct prefetch_list *l = NULL;

            if (bytes) {
                l = list_by_age(&r->shards[i], oldest);
                if (!l) {
                    return -ENOMEM;
                }
            }
            hand_over(&r->shards[i], l);
        }
    }
    return 0;
}

/* Sorts the page numbers of @fd by shard; 0 or a negative errno with @err. */
static int read_pages(struct region *r, int fd, uint32_t nr,
                      struct prefetch_list *const *lists, char *err, size_t err_len)
{
    uint64_t chunk[READ_CHUNK];

    for (uint32_t done = 0; done < nr;) {
        uint32_t n = nr - done < READ_CHUNK ? nr - done : READ_CHUNK;
        ssize_t got =
            pread(fd, chunk, n * sizeof(chunk[0]), (off_t)(done * sizeof(chunk[0])));

        if (got != (ssize_t)(n * sizeof(chunk[0]))) {
            snprintf(err, err_len, "list of %u pages: the file has less than %zu bytes",
                     nr, nr * sizeof(chunk[0]));
            return -EINVAL;
        }
        for (uint32_t i = 0; i < n; i++) {
            struct prefetch_list *l;

            if (chunk[i] >= r->nr_pages) {
                snprintf(err, err_len, "page %llu: region '%s' has %llu pages",
                         (unsigned long long)chunk[i], r->name,
                         (unsigned long long)r->nr_pages);
                return -ERANGE;
            }
            l = lists[page_shard(r, chunk[i]) - r->shards];
            if (!l) {
                return -ENOMEM;
            }
            l->pages[l->nr++] = chunk[i];
        }
        done += n;
    }
    return 0;
}

int prefetch_pages(struct region *r, int fd, uint32_t nr, uint64_t bytes, char *err,
                   size_t err_len)
{
    struct prefetch_list *lists[UFFDMM_SHARDS_MAX] = {NULL};
    int ret = 0;

    for (unsigned i = 0; i < r->nr_shards; i++) {
        lists[i] = list_new(nr);
        if (!lists[i]) {
            snprintf(err, err_len, "no memory for a list of %u pages", nr);
            ret = -ENOMEM;
        }
    }
    if (!ret) {
        ret = read_pages(r, fd, nr, lists, err, err_len);
    }
    if (!ret) {
        atomic_store(&r->vm->prefetch_left, (int64_t)(bytes >> PAGE_SHIFT_4K));
    }
    for (unsigned i = 0; i < r->nr_shards; i++) {
        if (ret) {
            free(lists[i]);
        } else {
            hand_over(&r->shards[i], lists[i]);
        }
    }
    return ret; /* NOLINT(clang-analyzer-unix.Malloc): the shards have the lists */
}

/* Room that prefetching may use without making the evictor start. */
static int64_t spare_room(const struct vm *vm)
{
    return vm_room(vm) - vm_margin_high(vm) -
           atomic_load_explicit(&vm->mig_room, memory_order_relaxed);
}

/* True when the shard can bring in this page. */
static bool mine(const struct shard *sh, uint64_t pfn)
{
    return pfn >= sh->first && pfn < sh->end && wanted(sh->region, pfn);
}

/* Pages that follow each other in the list and in memory from @at on. */
static uint32_t run_length(const struct shard *sh, const struct prefetch_list *l,
                           int64_t most)
{
    uint64_t pfn = l->pages[l->at];
    uint32_t n = 1;

    while (n < PREFETCH_RUN && n < most && l->at + n < l->nr &&
           l->pages[l->at + n] == pfn + n && mine(sh, pfn + n)) {
        n++;
    }
    return region_is_huge(sh->region) ? 1 : n;
}

static void drop_list(struct shard *sh)
{
    retire(sh, sh->prefetch);
    sh->prefetch = NULL;
}

bool prefetch_step(struct shard *sh)
{
    struct region *r = sh->region;
    struct vm *vm = r->vm;
    struct deferred f = {.ahead = true};
    struct prefetch_list *fresh, *l;
    enum serve_outcome out;
    int64_t most;
    uint32_t n;

    if (atomic_load_explicit(&sh->prefetch_new, memory_order_relaxed)) {
        fresh = atomic_exchange(&sh->prefetch_new, NULL);
        if (sh->prefetch) {
            drop_list(sh);
        }
        sh->prefetch = fresh;
    }
    l = sh->prefetch;
    if (!l || sh->prefetch_fills >= PREFETCH_FILLS) {
        return false;
    }
    most = atomic_load_explicit(&vm->prefetch_left, memory_order_relaxed);
    if (spare_room(vm) < most) {
        most = spare_room(vm);
    }
    while (l->at < l->nr && !mine(sh, l->pages[l->at])) {
        l->at++;
    }
    if (l->at == l->nr || most < (int64_t)region_units(r)) {
        drop_list(sh);
        return false;
    }
    n = run_length(sh, l, most);
    f.pfn = l->pages[l->at];
    l->at += n;
    out = fill_begin(sh, &f, f.pfn, n, false);
    if (out == PENDING) {
        sh->prefetch_fills++;
    }
    if (out == PENDING || out == SERVED) {
        atomic_fetch_sub_explicit(&vm->prefetch_left, (int64_t)n * region_units(r),
                                  memory_order_relaxed);
    }
    /* a page that is not to be had now is left to whoever touches it */
    return true;
}

void prefetch_ended(struct shard *sh)
{
    sh->prefetch_fills--;
}

void prefetch_release(struct shard *sh)
{
    free(atomic_exchange(&sh->prefetch_new, NULL));
    if (sh->prefetch) {
        drop_list(sh);
    }
    free_old(sh);
}
