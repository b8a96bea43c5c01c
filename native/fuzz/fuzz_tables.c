/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The page-state table that comes with RECONNECT, which QEMU can write to before and
 * while a new worker reads it.  An input:
 *
 *   8 bytes   which of the 64 pages are in memory
 *   1 byte    bit 0: poison is configured; the rest: the size of the region
 *   10 bytes each: when (bits 0 and 1), how the number is meant (bit 2), where, and a
 *             number of 8 bytes for that place:
 *               0  in the table, from the beginning
 *               1  in the header, from the beginning
 *               2  in the table, once it has been looked at
 *               3  in the table, once it has been put right
 *
 * Slots of another region are taken from the beginning, and stay so.  The take-over goes
 * as far as the userfaultfds, which cannot be had here: so it is refused in the end, with
 * all slots given back.  Before that the table must be one that can be served.
 */
#include "fuzz.h"

#include <fcntl.h>
#include <sys/mman.h>

#include "mig.h"
#include "options.h"
#include "queue.h"
#include "region.h"
#include "slot_tier.h"
#include "test_hooks.h"

static void reached(const char *point);
static int prepared(struct region *r);

/* where QEMU comes between, and what costs time and has nothing to do with tables */
#define test_hook_crash(point) reached(point)
#define region_prepare(region) prepared(region)
#include "../src/recovery.c"

enum {
    PAGES = 64,
    SLOTS = 200,
    SPAN = 256,  /* numbers of slots that are tried: most of them exist */
    OTHERS = 16, /* slots from 1 on are another region's */
    TIER = 2,
    STEP = 10 /* bytes of a change */
};

enum moment { FIRST, HEADER, PLANNED, APPLIED };

static struct options options;
static struct uffdmm_stats *stats;
static struct vm vm;
static struct slots slots;

/* of the input that is tried */
static struct {
    const uint8_t *changes;
    size_t nr_changes;
    uint64_t nr_pages, present;
    char *table;
    bool checked;
} now;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    int stats_fd;

    (void)argc;
    (void)argv;
    log_set_level(0);
    FUZZ_EXPECT(stats_create(&stats, &stats_fd) == 0);
    vm.options = &options;
    vm.stats = stats;
    vm.qemu_pid = getpid();
    snprintf(vm.name, sizeof(vm.name), "fuzz");
    pthread_rwlock_init(&vm.regions_lock, NULL);
    queue_init(&vm);
    policy_init(&vm);
    vm.tier[TIER] = (struct tier){.ops = &slot_tier_ops, .priv = &slots, .index = TIER};
    vm.tiers[TIER] = &vm.tier[TIER];
    vm.nr_tiers = TIER + 1;
    return 0;
}

static int prepared(struct region *r)
{
    (void)r;
    return 0;
}

static _Atomic uint64_t *entries(void)
{
    return (void *)(now.table + PAGE_SIZE_4K);
}

/* The number of a change, either as it is, or as an entry that could be. */
static uint64_t number_of(const uint8_t *change)
{
    uint64_t v;

    memcpy(&v, change + 2, sizeof(v));
    if (change[0] & 4) {
        v = entry_make((unsigned)v & 15, (unsigned)v & 0xf0, (v >> 8) % 4 ? TIER : 0,
                       (unsigned)(v >> 16), (v >> 32) % SPAN);
    }
    return v;
}

static void change(enum moment when)
{
    for (size_t i = 0; i < now.nr_changes; i++) {
        const uint8_t *c = now.changes + i * STEP;
        uint64_t v = number_of(c);

        if ((c[0] & 3) != (unsigned)when) {
            continue;
        }
        if (when == HEADER) {
            memcpy(now.table + c[1] * sizeof(v), &v, sizeof(v));
        } else {
            atomic_store(&entries()[c[1] % now.nr_pages], v);
        }
    }
}

/* What a worker can serve: see the head of recovery.c. */
static void check(void)
{
    uint64_t named = 0, seen[SLOTS / 64 + 1] = {0};

    for (uint64_t pfn = 0; pfn < now.nr_pages; pfn++) {
        uint64_t e = atomic_load(&entries()[pfn]), slot = entry_slot(e);
        bool present = now.present >> pfn & 1;
        unsigned state = entry_state(e);

        FUZZ_EXPECT(state == UFFDMM_PAGE_EMPTY || state == UFFDMM_PAGE_RESIDENT ||
                    state == UFFDMM_PAGE_STORED || state == UFFDMM_PAGE_LOST);
        FUZZ_EXPECT(!entry_busy(e));
        FUZZ_EXPECT(state != UFFDMM_PAGE_RESIDENT || present); /* a hole reads as zeros */
        FUZZ_EXPECT(!present || state == UFFDMM_PAGE_RESIDENT ||
                    state == UFFDMM_PAGE_LOST);
        if (!names_slot(e)) {
            continue;
        }
        FUZZ_EXPECT(entry_tier(e) == TIER && slot > OTHERS && slot < SLOTS);
        FUZZ_EXPECT(slot_taken(&vm.tier[TIER], slot));
        FUZZ_EXPECT(!(seen[slot / 64] >> (slot % 64) & 1)); /* one page's alone */
        seen[slot / 64] |= 1ULL << (slot % 64);
        named++;
    }
    FUZZ_EXPECT(slots.used == OTHERS + named);
    now.checked = true;
}

static void reached(const char *point)
{
    if (!strcmp(point, "recover-planned")) {
        change(PLANNED);
    } else if (!strcmp(point, "recover-applied")) {
        check();
        change(APPLIED);
    }
}

/* A region as a worker would have made it, but for what the input says. */
static void make_region(struct uffdmm_reconnect *req, int fds[4])
{
    struct uffdmm_table_header *h;
    struct region *r;
    char err[UFFDMM_TEXT_MAX];

    vm.mig = NULL;
    FUZZ_EXPECT(mig_new(&vm, &vm.mig) == 0);
    FUZZ_EXPECT(region_create(&vm, &req->create, &r, err, sizeof(err)) == 0);
    fds[0] = fcntl(r->memfd, F_DUPFD_CLOEXEC, 0);
    fds[1] = fcntl(r->table_fd, F_DUPFD_CLOEXEC, 0);
    fds[2] = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    fds[3] = fcntl(fds[2], F_DUPFD_CLOEXEC, 0);
    FUZZ_EXPECT(fds[0] >= 0 && fds[1] >= 0 && fds[2] >= 0 && fds[3] >= 0);
    for (uint64_t pfn = 0; pfn < now.nr_pages; pfn++) {
        if (now.present >> pfn & 1) {
            FUZZ_EXPECT(pwrite(fds[0], "x", 1, (off_t)(pfn << PAGE_SHIFT_4K)) == 1);
        }
    }
    now.table = mmap(NULL, r->table_size, PROT_READ | PROT_WRITE, MAP_SHARED, fds[1], 0);
    FUZZ_EXPECT(now.table != MAP_FAILED);
    h = (void *)now.table;
    h->nr_tiers = vm.nr_tiers;
    region_destroy(r);
    change(FIRST);
    change(HEADER);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct uffdmm_reconnect req = {
        .create = {.page_size = PAGE_SIZE_4K, .nr_shards = 1, .name = "ram"}};
    char err[UFFDMM_TEXT_MAX] = "";
    bool tiers_open = true;
    struct region *r = NULL;
    size_t table_size;
    int fds[4], ret, lowest;

    if (size < 9 || size > 4096) {
        return 0;
    }
    memset(&now, 0, sizeof(now));
    memcpy(&now.present, data, 8);
    now.nr_pages = 1 + data[8] / 2 % PAGES;
    now.changes = data + 9;
    now.nr_changes = (size - 9) / STEP;
    vm.lost_after_ns = data[8] & 1;
    req.create.size = now.nr_pages << PAGE_SHIFT_4K;
    req.attach = (struct uffdmm_region_attach){
        .base = 1ULL << 30, .size = req.create.size, .nr_shards = 1};
    lowest = dup(0);
    FUZZ_EXPECT(lowest >= 0);
    close(lowest);
    FUZZ_EXPECT(slots_init(&slots, SLOTS) == 0);
    for (uint64_t slot = 1; slot <= OTHERS; slot++) {
        FUZZ_EXPECT(slots_take(&slots, slot));
    }
    make_region(&req, fds);
    table_size = 4 * PAGE_SIZE_4K + PAGE_SIZE_4K; /* the header, and four arrays */

    vm.unsettled = true;
    ret = recovery_take_over(&vm, &req, fds, 4, &tiers_open, &r, err, sizeof(err));

    FUZZ_EXPECT(ret < 0 && !r && err[0]);
    FUZZ_EXPECT(now.checked == (ret == -EBADF)); /* refused for the userfaultfd alone */
    FUZZ_EXPECT(slots.used == OTHERS);
    for (uint64_t slot = 1; slot <= OTHERS; slot++) {
        FUZZ_EXPECT(slot_taken(&vm.tier[TIER], slot));
    }
    munmap(now.table, table_size);
    slots_deinit(&slots);
    mig_free(vm.mig);
    ret = dup(0);
    FUZZ_EXPECT(ret == lowest); /* nothing was left open */
    close(ret);
    return 0;
}
