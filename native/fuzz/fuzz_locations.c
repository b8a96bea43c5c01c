/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Locations that a migration brings to the destination: MIG_IMPORT, and MIG_INSTALL of
 * what was imported.  Who may send them has read the volume of the source, but what
 * they say goes into the table that guest memory is read by.  An input:
 *
 *   8 bytes   which of the 64 pages are in memory
 *   1 byte    bit 0: the source had a shared tier; bit 1: a count that is wrong; bits 2
 *             and 3: files; bits 4 and 5: of the first file, that so many elements are
 *             announced that are not there
 *   1 byte    bits of the first eight pages that are stored on this side
 *   20 bytes each: page, age, pad, how it is meant (bit 0), entry, record
 *
 * A file is taken as a whole or refused.  What is installed is what the last element of
 * a page said, with its slot claimed once and the page a hole; or nothing is.
 */
#include "fuzz.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "log.h"
#include "options.h"
#include "policy.h"
#include "queue.h"
#include "region.h"
#include "slot_tier.h"

/* its functions are static, and what they answer is wanted here */
#include "../src/mig_dest.c"

enum {
    PAGES = 64,
    SLOTS = 200,
    SPAN = 256, /* numbers of slots that are tried */
    SOURCE = 1, /* the tier where the locations are, there */
    HERE = 2,   /* the same volume on this side */
    STEP = 20,  /* bytes of an element */
    SESSION = 7
};

static struct options options;
static struct vm vm;
static struct slots slots, local;

static struct uffdmm_mig_location expected[PAGES];

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    int stats_fd;

    (void)argc;
    (void)argv;
    log_set_level(0);
    FUZZ_EXPECT(stats_create(&vm.stats, &stats_fd) == 0);
    options.nr_tiers = SOURCE;
    vm.options = &options;
    snprintf(vm.name, sizeof(vm.name), "fuzz");
    pthread_rwlock_init(&vm.regions_lock, NULL);
    queue_init(&vm);
    policy_init(&vm);
    vm.tier[SOURCE] =
        (struct tier){.ops = &slot_tier_ops, .priv = &local, .index = SOURCE};
    vm.tier[HERE] = (struct tier){.ops = &slot_tier_ops, .priv = &slots, .index = HERE};
    vm.tiers[SOURCE] = &vm.tier[SOURCE];
    vm.tiers[HERE] = &vm.tier[HERE];
    vm.nr_tiers = HERE + 1;
    FUZZ_EXPECT(mig_new(&vm, &vm.mig) == 0);
    vm.mig->buffer = malloc(MIG_READ_BYTES);
    FUZZ_EXPECT(vm.mig->buffer);
    return 0;
}

static struct uffdmm_mig_location element(const uint8_t *data)
{
    struct uffdmm_mig_location l = {.pfn = data[0], .age = data[1]};

    memcpy(&l.entry, data + 4, sizeof(l.entry));
    memcpy(&l.record, data + 12, sizeof(l.record));
    if (data[3] & 1) {
        uint64_t v = l.entry;

        /* one that could be */
        l.pfn %= PAGES;
        l.entry = v & 1   ? entry_make(UFFDMM_PAGE_STORED, 0, v & 2 ? SOURCE : 0,
                                       (unsigned)(v >> 16), v & 2 ? (v >> 32) % SPAN : 0)
                  : v & 4 ? 0
                          : entry_make(UFFDMM_PAGE_EMPTY, 0, 0, 0, 0);
        l.record = l.entry && v & 1 ? l.record : 0;
    } else {
        l.pad[data[2] % sizeof(l.pad)] = data[2] >> 4 ? 0 : data[2];
    }
    return l;
}

/* A job as the main thread leaves it: it closes its descriptors, and frees itself. */
static struct mig_job *job_new(uint32_t type, struct region *r, int sock, int fd)
{
    struct mig_job *job = calloc(1, sizeof(*job));

    FUZZ_EXPECT(job);
    job->type = type;
    job->region = r;
    job->sock = fcntl(sock, F_DUPFD_CLOEXEC, 0);
    job->fd = fd;
    atomic_fetch_add(&r->mig.jobs, 1);
    FUZZ_EXPECT(job->sock >= 0);
    return job;
}

/* The answer to a job: 0, or the error. */
static int answer(int sock)
{
    struct {
        struct uffdmm_msg_header header;
        char payload[UFFDMM_PAYLOAD_MAX];
    } m;

    FUZZ_EXPECT(recv(sock, &m, sizeof(m), MSG_DONTWAIT) >= (ssize_t)sizeof(m.header));
    return m.header.status;
}

static int import(struct region *r, int socks[2], const uint8_t *data, size_t nr,
                  uint64_t announced)
{
    struct uffdmm_mig_location *all = calloc(nr + 1, sizeof(*all));
    int fd = region_memfd("fuzz-locations", 0, nr * sizeof(*all)), ret;
    struct mig_job *job = job_new(UFFDMM_MSG_MIG_IMPORT, r, socks[1], fd);

    FUZZ_EXPECT(all && fd >= 0);
    for (size_t i = 0; i < nr; i++) {
        all[i] = element(data + i * STEP);
    }
    FUZZ_EXPECT(pwrite(fd, all, nr * sizeof(*all), 0) == (ssize_t)(nr * sizeof(*all)));
    job->request.import.session = SESSION;
    job->request.import.nr = announced;
    mig_do_import(vm.mig, job);
    ret = answer(socks[0]);
    for (size_t i = 0; !ret && i < nr; i++) {
        FUZZ_EXPECT(all[i].pfn < PAGES);
        expected[all[i].pfn] = all[i];
    }
    free(all);
    return ret;
}

static bool install(struct region *r, int socks[2], bool lie)
{
    struct mig_job *job = job_new(UFFDMM_MSG_MIG_INSTALL, r, socks[1], -1);
    struct uffdmm_mig_install *req = &job->request.install;

    *req = (struct uffdmm_mig_install){.session = SESSION, .region_id = r->id};
    for (uint64_t pfn = 0; pfn < PAGES; pfn++) {
        if (expected[pfn].entry) {
            req->count++;
            req->digest += mig_digest(pfn, expected[pfn].entry, expected[pfn].record);
        }
    }
    req->count += lie;
    if (!mig_try_install(vm.mig, job)) {
        FUZZ_EXPECT(lie); /* it waits for the rest, until its time is up */
        mig_reply_error(job, -ETIMEDOUT, "locations are missing");
        return answer(socks[0]) == 0;
    }
    FUZZ_EXPECT(!lie);
    return answer(socks[0]) == 0;
}

static void check(struct region *r, uint64_t present, const uint64_t *before,
                  bool installed)
{
    uint64_t named = 0;

    for (uint64_t pfn = 0; pfn < PAGES; pfn++) {
        uint64_t e = entry_load(&r->entries[pfn]), want = expected[pfn].entry;
        off_t at = (off_t)(pfn << PAGE_SHIFT_4K);

        if (!installed || !want) {
            FUZZ_EXPECT(e == before[pfn]);
            FUZZ_EXPECT(lseek(r->memfd, at, SEEK_DATA) == at || !(present >> pfn & 1));
            continue;
        }
        FUZZ_EXPECT(entry_state(e) == entry_state(want) && !entry_busy(e));
        FUZZ_EXPECT(entry_gen(e) == entry_gen(want) && entry_slot(e) == entry_slot(want));
        FUZZ_EXPECT(entry_tier(e) == (entry_tier(want) ? HERE : 0));
        FUZZ_EXPECT(r->records[pfn] == expected[pfn].record);
        FUZZ_EXPECT(lseek(r->memfd, at, SEEK_DATA) != at); /* punched */
        if (entry_tier(e)) {
            FUZZ_EXPECT(slot_taken(&vm.tier[HERE], entry_slot(e)));
            named++;
        }
    }
    FUZZ_EXPECT(slots.used == named);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct uffdmm_region_create create = {.size = PAGES << PAGE_SHIFT_4K,
                                          .page_size = PAGE_SIZE_4K,
                                          .nr_shards = 1,
                                          .name = "ram"};
    uint64_t present, before[PAGES];
    char err[UFFDMM_TEXT_MAX];
    struct region *r;
    size_t nr, files;
    int socks[2];
    bool installed;

    if (size < 10 || size > 8192) {
        return 0;
    }
    memset(expected, 0, sizeof(expected));
    memcpy(&present, data, sizeof(present));
    nr = (size - 10) / STEP;
    files = 1 + (data[8] >> 2 & 3);
    FUZZ_EXPECT(slots_init(&slots, SLOTS) == 0 && slots_init(&local, SLOTS) == 0);
    FUZZ_EXPECT(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, socks) == 0);
    atomic_store(&vm.mig->stage, UFFDMM_MIG_PREPARED);
    atomic_store(&vm.mig->tier, HERE);
    vm.mig->session = SESSION;
    vm.mig->prepared.tier = data[8] & 1 ? SOURCE : 0;
    FUZZ_EXPECT(region_create(&vm, &create, &r, err, sizeof(err)) == 0);
    for (uint64_t pfn = 0; pfn < PAGES; pfn++) {
        if (present >> pfn & 1) {
            off_t at = (off_t)(pfn << PAGE_SHIFT_4K);

            FUZZ_EXPECT(pwrite(r->memfd, "x", 1, at) == 1);
            r->entries[pfn] = entry_make(UFFDMM_PAGE_RESIDENT, 0, 0, 3, 0);
        } else if (pfn < 8 && data[9] >> pfn & 1) {
            FUZZ_EXPECT(slots_take(&local, pfn + 1));
            r->entries[pfn] = entry_make(UFFDMM_PAGE_STORED, 0, SOURCE, 3, pfn + 1);
            region_count_stored(r, r->entries[pfn], 1);
        }
        before[pfn] = entry_load(&r->entries[pfn]);
    }

    for (size_t i = 0; i < files; i++) {
        size_t from = i * nr / files, n = (i + 1) * nr / files - from;

        if (n) {
            import(r, socks, data + 10 + from * STEP, n,
                   n + (i ? 0 : (uint64_t)(data[8] >> 4 & 3)));
        }
    }
    installed = install(r, socks, data[8] & 2);
    check(r, present, before, installed);

    region_destroy(r);
    FUZZ_EXPECT(slots.used == 0 && local.used == 0); /* each slot is given back once */
    for (unsigned i = 0; i < UFFDMM_TIERS_MAX; i++) {
        FUZZ_EXPECT(atomic_load(&vm.stored[i]) == 0);
    }
    close(socks[0]);
    close(socks[1]);
    slots_deinit(&slots);
    slots_deinit(&local);
    return 0;
}
