/* SPDX-License-Identifier: GPL-2.0-or-later */
/* See migration_rig.h. */
#include "unit.h"

#include "migration_rig.h"
#include "mig.h"
#include "uffd_fixture.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { WORDS = 4096 / 8, SOURCE_TIER = 1 };

static const char *const limited[] = {"--limit", "8M", NULL};

/* ---- the store, and both sides ------------------------------------------------ */

static unsigned target_tier(const struct rig *g)
{
    return g->target_bare ? 1 : 2;
}

static void make_folder(struct rig *g)
{
    const char *tmp = getenv("TMPDIR");

    *g = (struct rig){0};
    snprintf(g->shared, sizeof(g->shared), "%.80s/uffdmm-shared-XXXXXX",
             tmp ? tmp : "/var/tmp");
    assert_non_null(mkdtemp(g->shared));
}

void rig_init(struct rig *g)
{
    make_folder(g);
    snprintf(g->tier, sizeof(g->tier), "shared=file,path=%s,shared=on", g->shared);
}

bool rig_init_nbd(struct rig *g)
{
    char socket[200], file[200], option[220];
    int64_t deadline = monotonic_ms() + 10000;

    make_folder(g);
    snprintf(socket, sizeof(socket), "%s/nbd.sock", g->shared);
    snprintf(file, sizeof(file), "%s/export", g->shared);
    snprintf(option, sizeof(option), "file=%s", file);
    int fd = open(file, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_return_code(ftruncate(fd, 2L * RIG_RAM), errno);
    close(fd);
    g->server = fork_bound();
    if (g->server == 0) {
        execlp("nbdkit", "nbdkit", "-f", "-U", socket, "file", option, (char *)NULL);
        _exit(127);
    }
    while (access(socket, F_OK) < 0) {
        if (waitpid(g->server, NULL, WNOHANG) == g->server || monotonic_ms() > deadline) {
            g->server = 0;
            rig_end(g);
            return false;
        }
        sleep_ms(5);
    }
    snprintf(g->tier, sizeof(g->tier), "shared=nbd,uri=nbd+unix:///?socket=%s", socket);
    return true;
}

static void remove_folder(const char *path)
{
    DIR *dir = opendir(path);
    const struct dirent *entry;

    while (dir && (entry = readdir(dir))) {
        unlinkat(dirfd(dir), entry->d_name, 0);
    }
    if (dir) {
        closedir(dir);
    }
    rmdir(path);
}

void rig_end(struct rig *g)
{
    if (g->source_open) {
        rig_stop_source(g);
    }
    if (g->target_open) {
        rig_stop_target(g);
    }
    if (g->server) {
        kill(g->server, SIGKILL);
        waitpid(g->server, NULL, 0);
    }
    remove_folder(g->shared);
}

static const char *vm_name(const struct rig *g, const struct manager *m)
{
    return m == &g->target_manager && g->target_vm ? g->target_vm : "vm";
}

static void open_side(struct standin *s, const struct manager *m, const char *vm,
                      uint32_t flags)
{
    if (standin_open_as(s, m->socket, vm, "ram", flags, RIG_RAM) != 0) {
        manager_print_log(m);
        fail_msg("the stand-in cannot begin: %s", s->error);
    }
}

void rig_start_source(struct rig *g)
{
    const char *tiers[] = {g->tier, "local=file,path={store}", NULL};

    manager_start_tiers(&g->source_manager, g->variable ? g->variable : "UFFDMM_MANAGER",
                        tiers, limited);
    open_side(&g->source, &g->source_manager, "vm", 0);
    g->source_open = true;
}

void rig_start_target(struct rig *g)
{
    const char *tiers[] = {"pool=pool", g->tier, "local=file,path={store}", NULL};
    const char *bare[] = {g->tier, NULL};

    manager_start_tiers(&g->target_manager, g->variable ? g->variable : "UFFDMM_MANAGER",
                        g->target_bare ? bare : tiers, limited);
    open_side(&g->target, &g->target_manager, vm_name(g, &g->target_manager),
              UFFDMM_CREATE_INCOMING);
    g->target_open = true;
    memset(g->sent, 0, sizeof(g->sent));
}

static void unmap_session(struct rig *g)
{
    if (g->set) {
        munmap(g->set, g->session.set_size);
        munmap((void *)(uintptr_t)g->bounce, g->session.bounce_size);
        g->set = NULL;
    }
}

void rig_stop_source(struct rig *g)
{
    g->source_open = false;
    unmap_session(g);
    assert_int_equal(standin_detach(&g->source), 0);
    assert_true(manager_vms_become(&g->source_manager, 0, 5000));
    manager_stop(&g->source_manager);
}

void rig_stop_target(struct rig *g)
{
    g->target_open = false;
    assert_int_equal(standin_detach(&g->target), 0);
    assert_true(manager_vms_become(&g->target_manager, 0, 5000));
    manager_stop(&g->target_manager);
}

/* ---- guest pages ---------------------------------------------------------------- */

static uint64_t word_of(uint64_t pfn, uint32_t version, unsigned i)
{
    if (!version || pfn % 16 == 3) {
        return 0;
    }
    if (pfn % 16 == 5) {
        return mig_mix(version);
    }
    return mig_mix(pfn << 40 ^ (uint64_t)version << 16 ^ i);
}

void rig_write(struct rig *g, struct standin *s, uint64_t pfn, uint32_t version)
{
    volatile uint64_t *page = (volatile uint64_t *)(void *)(s->base + pfn * 4096);

    for (unsigned i = 0; i < WORDS; i++) {
        page[i] = word_of(pfn, version, i);
    }
    g->version[pfn] = version;
}

bool rig_page_is(const struct standin *s, uint64_t pfn, uint32_t version)
{
    const volatile uint64_t *page =
        (const volatile uint64_t *)(void *)(s->base + pfn * 4096);

    for (unsigned i = 0; i < WORDS; i++) {
        if (page[i] != word_of(pfn, version, i)) {
            return false;
        }
    }
    return true;
}

void rig_fill(struct rig *g, uint32_t version)
{
    for (uint64_t pfn = 0; pfn < RIG_PAGES; pfn++) {
        rig_write(g, &g->source, pfn, version);
    }
}

void rig_expect_all(struct rig *g, const struct standin *s)
{
    for (uint64_t pfn = 0; pfn < RIG_PAGES; pfn++) {
        if (!rig_page_is(s, pfn, g->version[pfn])) {
            fail_msg("page %llu is not version %u", (unsigned long long)pfn,
                     g->version[pfn]);
        }
    }
}

/* ---- requests ----------------------------------------------------------------- */

int rig_control(const struct rig *g, const struct manager *m, uint32_t type,
                const void *payload, uint32_t length, int fd, struct peer_msg *reply)
{
    int sock = peer_open(m->socket, UFFDMM_ROLE_CONTROL, vm_name(g, m), reply);
    int ret;

    assert_true(sock >= 0);
    ret = peer_request(sock, type, payload, length, fd >= 0 ? &fd : NULL, fd >= 0, reply);
    close(sock);
    return ret;
}

struct uffdmm_mig_status_reply rig_status(const struct rig *g, const struct manager *m)
{
    struct uffdmm_mig_status_reply status;
    struct peer_msg reply;

    assert_int_equal(rig_control(g, m, UFFDMM_MSG_MIG_STATUS, NULL, 0, -1, &reply), 0);
    assert_int_equal(reply.header.length, sizeof(status));
    memcpy(&status, reply.payload, sizeof(status));
    return status;
}

void rig_begin(struct rig *g)
{
    struct uffdmm_mig_arm arm = {.session = RIG_SESSION, .tier = SOURCE_TIER};
    struct uffdmm_mig_start start = {.region_id = g->source.id, .tid = 1};
    struct peer_msg reply;
    void *map;

    unmap_session(g);
    memset(g->sent, 0, sizeof(g->sent));
    assert_int_equal(rig_control(g, &g->source_manager, UFFDMM_MSG_MIG_ARM, &arm,
                                 sizeof(arm), -1, &reply),
                     0);
    assert_int_equal(
        standin_ask(&g->source, UFFDMM_MSG_MIG_START, &start, sizeof(start), &reply), 0);
    assert_int_equal(reply.nr_fds, 2);
    memcpy(&g->session, reply.payload, sizeof(g->session));
    assert_int_equal(g->session.session, RIG_SESSION);
    map = mmap(NULL, g->session.set_size, PROT_READ | PROT_WRITE, MAP_SHARED,
               reply.fds[0], 0);
    assert_true(map != MAP_FAILED);
    g->set = map;
    assert_int_equal(g->set->magic, UFFDMM_SET_MAGIC);
    assert_int_equal(g->set->nr_pages, RIG_PAGES);
    g->pages = (void *)((char *)map + g->set->pages_offset);
    map = mmap(NULL, g->session.bounce_size, PROT_READ, MAP_SHARED, reply.fds[1], 0);
    assert_true(map != MAP_FAILED);
    g->bounce = map;
    peer_close_fds(&reply);
}

int rig_prepare(struct rig *g)
{
    struct uffdmm_mig_status_reply status = rig_status(g, &g->source_manager);
    struct uffdmm_mig_prepare prepare = {.session = RIG_SESSION,
                                         .tier = target_tier(g),
                                         .epoch = status.epoch,
                                         .volume_name = "vm"};
    struct peer_msg reply;

    memcpy(prepare.volume_uuid, status.volume_uuid, sizeof(prepare.volume_uuid));
    return rig_control(g, &g->target_manager, UFFDMM_MSG_MIG_PREPARE, &prepare,
                       sizeof(prepare), -1, &reply);
}

/* ---- the hook --------------------------------------------------------------------- */

static uint64_t *record_of(const struct standin *s, uint64_t pfn)
{
    return (uint64_t *)(void *)((char *)s->table + s->table->records_offset) + pfn;
}

static void name_page(struct rig *g, uint64_t pfn, uint64_t entry, uint64_t record)
{
    __atomic_store_n(&g->pages[pfn].record, record, __ATOMIC_RELAXED);
    __atomic_store_n(&g->pages[pfn].entry, entry, __ATOMIC_SEQ_CST);
    __atomic_fetch_add(&g->set->changes, 1, __ATOMIC_SEQ_CST);
}

bool rig_skip(struct rig *g, uint64_t pfn)
{
    for (;;) {
        uint64_t e = atomic_load(&g->source.entries[pfn]);
        unsigned state = (unsigned)(e & UFFDMM_ENTRY_STATE_MASK);
        unsigned tier = (unsigned)(e >> UFFDMM_ENTRY_TIER_SHIFT) & UFFDMM_ENTRY_TIER_MASK;
        bool stored = state == UFFDMM_PAGE_STORED && !(e & UFFDMM_ENTRY_BUSY) &&
                      (tier == 0 || tier == SOURCE_TIER);
        bool empty = state == UFFDMM_PAGE_EMPTY && !(e & 0xf0);

        if (!stored && !empty) {
            name_page(g, pfn, 0, 0);
            return false;
        }
        name_page(g, pfn, e & ~0xf0ULL,
                  stored ? __atomic_load_n(record_of(&g->source, pfn), __ATOMIC_ACQUIRE)
                         : 0);
        atomic_thread_fence(memory_order_seq_cst);
        if (atomic_load(&g->source.entries[pfn]) == e) {
            g->skipped++;
            return true;
        }
        name_page(g, pfn, 0, 0);
    }
}

/* The page as it is in a store of the source, or false. */
static bool read_stored(struct rig *g, uint64_t pfn, uint64_t *page)
{
    struct uffdmm_mig_read request = {.region_id = g->source.id, .nr = 1, .first = pfn};
    struct uffdmm_mig_read_reply answer;
    struct peer_msg reply;

    assert_int_equal(
        standin_ask(&g->source, UFFDMM_MSG_MIG_READ, &request, sizeof(request), &reply),
        0);
    memcpy(&answer, reply.payload, sizeof(answer));
    memcpy(page, g->bounce, 4096);
    g->bypassed += answer.valid & 1;
    return answer.valid & 1;
}

void rig_hook(struct rig *g, uint64_t pfn)
{
    uint64_t page[WORDS];

    if (rig_skip(g, pfn)) {
        return;
    }
    if (standin_page_state(&g->source, pfn) != UFFDMM_PAGE_STORED ||
        !read_stored(g, pfn, page)) {
        memcpy(page, g->source.base + pfn * 4096, sizeof(page));
    }
    memcpy(g->target.base + pfn * 4096, page, sizeof(page));
    g->copied++;
}

/* ---- locations ------------------------------------------------------------------- */

int rig_import(struct rig *g, const struct uffdmm_mig_location *l, uint64_t nr)
{
    struct uffdmm_mig_import import = {.session = RIG_SESSION, .nr = nr, .region = "ram"};
    int fd = memfd_create("locations", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    struct peer_msg reply;
    int ret;

    assert_true(fd >= 0);
    assert_int_equal(write(fd, l, nr * sizeof(*l)), nr * sizeof(*l));
    assert_return_code(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK), errno);
    ret = rig_control(g, &g->target_manager, UFFDMM_MSG_MIG_IMPORT, &import,
                      sizeof(import), fd, &reply);
    close(fd);
    return ret;
}

void rig_stream(struct rig *g)
{
    struct uffdmm_mig_location *l = calloc(RIG_PAGES, sizeof(*l));
    struct uffdmm_regions request = {.index = 0};
    struct uffdmm_mig_ack ack = {.session = RIG_SESSION, .region_id = g->source.id};
    struct peer_msg reply;
    const uint8_t *map;
    uint64_t nr = 0;

    assert_non_null(l);
    assert_int_equal(rig_control(g, &g->source_manager, UFFDMM_MSG_MIG_EXPORT, &request,
                                 sizeof(request), -1, &reply),
                     0);
    assert_int_equal(reply.nr_fds, 2);
    assert_true(mmap(NULL, g->session.set_size, PROT_READ | PROT_WRITE, MAP_SHARED,
                     reply.fds[0], 0) == MAP_FAILED);
    map = mmap(NULL, g->session.set_size, PROT_READ, MAP_SHARED, reply.fds[0], 0);
    assert_true(map != MAP_FAILED);
    peer_close_fds(&reply);
    ack.changes = ((const struct uffdmm_set_header *)(const void *)map)->changes;
    for (uint64_t pfn = 0; pfn < RIG_PAGES; pfn++) {
        struct uffdmm_set_page p =
            ((const struct uffdmm_set_page *)(const void *)(map + 4096))[pfn];
        unsigned tier = (unsigned)(p.entry >> UFFDMM_ENTRY_TIER_SHIFT) & 0xf;

        if (memcmp(&p, &g->sent[pfn], sizeof(p)) == 0) {
            continue;
        }
        g->sent[pfn] = p;
        if (tier) {
            p.entry ^= (uint64_t)(tier ^ target_tier(g)) << UFFDMM_ENTRY_TIER_SHIFT;
        }
        l[nr++] = (struct uffdmm_mig_location){
            .pfn = pfn, .entry = p.entry, .record = p.record};
    }
    munmap((void *)(uintptr_t)map, g->session.set_size);
    if (nr) {
        assert_int_equal(rig_import(g, l, nr), 0);
    }
    assert_int_equal(rig_control(g, &g->source_manager, UFFDMM_MSG_MIG_ACK, &ack,
                                 sizeof(ack), -1, &reply),
                     0);
    assert_int_equal(g->set->acked, ack.changes);
    free(l);
}

void rig_sum(const struct rig *g, uint64_t *count, uint64_t *digest)
{
    *count = *digest = 0;
    for (uint64_t pfn = 0; pfn < RIG_PAGES; pfn++) {
        if (g->pages[pfn].entry) {
            ++*count;
            *digest += mig_digest(pfn, g->pages[pfn].entry, g->pages[pfn].record);
        }
    }
}

int rig_install(struct rig *g, uint64_t count, uint64_t digest, uint32_t timeout_ms)
{
    struct uffdmm_mig_install install = {.session = RIG_SESSION,
                                         .region_id = g->target.id,
                                         .timeout_ms = timeout_ms,
                                         .count = count,
                                         .digest = digest};

    return standin_request(&g->target, UFFDMM_MSG_MIG_INSTALL, &install, sizeof(install));
}

int rig_source_end(struct rig *g, uint32_t outcome)
{
    struct uffdmm_mig_end end = {.session = RIG_SESSION, .outcome = outcome};

    return standin_request(&g->source, UFFDMM_MSG_MIG_END, &end, sizeof(end));
}

int rig_release(struct rig *g, uint64_t *epoch)
{
    struct uffdmm_mig_release release = {.session = RIG_SESSION, .destination = "target"};
    struct uffdmm_mig_release_reply answer;
    struct peer_msg reply;
    int ret = rig_control(g, &g->source_manager, UFFDMM_MSG_MIG_RELEASE, &release,
                          sizeof(release), -1, &reply);

    memcpy(&answer, reply.payload, sizeof(answer));
    *epoch = ret ? 0 : answer.epoch;
    return ret;
}

int rig_take(struct rig *g, uint64_t epoch)
{
    struct uffdmm_mig_take take = {.session = RIG_SESSION, .epoch = epoch};
    struct peer_msg reply;

    return rig_control(g, &g->target_manager, UFFDMM_MSG_MIG_TAKE, &take, sizeof(take),
                       -1, &reply);
}

/* ---- looking after slots ------------------------------------------------------------ */

static uint64_t slot_of(uint64_t e)
{
    return e >> UFFDMM_ENTRY_SLOT_SHIFT;
}

static bool names_slot(uint64_t e, unsigned tier)
{
    return slot_of(e) &&
           ((e >> UFFDMM_ENTRY_TIER_SHIFT) & UFFDMM_ENTRY_TIER_MASK) == tier;
}

void rig_expect_slots(const struct rig *g, const struct manager *m,
                      const struct standin *s, unsigned tier)
{
    int64_t deadline = monotonic_ms() + 10000;
    uint64_t named, taken;

    /* a trim takes slots for a moment, and gauges are brought up to date now and then */
    do {
        struct peer_stats stats;

        named = 0;
        sleep_ms(100);
        assert_int_equal(control_tier_stats(m->socket, vm_name(g, m), &stats), 0);
        taken = stats.tiers[tier].used_bytes / 4096;
        for (uint64_t pfn = 0; pfn < RIG_PAGES; pfn++) {
            named += names_slot(atomic_load(&s->entries[pfn]), tier);
        }
    } while (taken != named && monotonic_ms() < deadline);
    assert_int_equal(taken, named);
}

uint64_t rig_reused(const struct rig *g)
{
    enum { SLOTS = 4 * RIG_PAGES };
    uint32_t *owner = calloc(SLOTS, sizeof(*owner)); /* of the slot: its page + 1 */
    uint64_t n = 0;

    assert_non_null(owner);
    for (uint64_t pfn = 0; pfn < RIG_PAGES; pfn++) {
        uint64_t e = atomic_load(&g->source.entries[pfn]);

        if (names_slot(e, SOURCE_TIER)) {
            assert_true(slot_of(e) < SLOTS);
            owner[slot_of(e)] = (uint32_t)pfn + 1;
        }
    }
    for (uint64_t pfn = 0; pfn < RIG_PAGES; pfn++) {
        uint64_t e = g->pages[pfn].entry;

        n += names_slot(e, SOURCE_TIER) && owner[slot_of(e)] &&
             owner[slot_of(e)] != pfn + 1;
    }
    free(owner);
    return n;
}
