/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Migration of memory-backend-external, with a fake manager on each side
 *
 * What a page holds can be told from its number, however it came to the
 * destination, unless a test has written to it.
 */

#include "qemu/osdep.h"
#include "libqtest.h"
#include "qemu/atomic.h"
#include "qemu/bitmap.h"
#include "qobject/qdict.h"
#include "uffdmm-fake-manager.h"

#define MIB      (1024 * 1024)
#define RAM_SIZE (16 * MIB)
#define NR_PAGES (RAM_SIZE / FAKE_PAGE_SIZE)
#define PFN(n)   ((uint64_t)(n) * FAKE_PAGE_SIZE)
#define SESSION  UINT64_C(0x1122334455667788)
#define POOL     1 /* a tier that the destination cannot read */

/* A page that is in memory, with content of its own, in all tests */
#define RESIDENT_PFN 1001
#define RESIDENT     0xab

typedef struct Side {
    FakeManager *m;
    FakeRegion *r;
    QTestState *qts;
} Side;

typedef struct Pair {
    Side src, dst;
    char *uri;
} Pair;

static uint64_t entry_of(unsigned state, unsigned tier, uint64_t slot)
{
    return state | tier << UFFDMM_ENTRY_TIER_SHIFT |
           (slot ? UINT64_C(5) << UFFDMM_ENTRY_GEN_SHIFT : 0) |
           slot << UFFDMM_ENTRY_SLOT_SHIFT;
}

/* All kinds of pages that need not be touched */
static uint64_t mixed(uint64_t pfn)
{
    switch (pfn % 8) {
    case 0:
    case 1:
    case 2:
        return entry_of(UFFDMM_PAGE_STORED, FAKE_SHARED_TIER, pfn + 1);
    case 3:
    case 4:
        return entry_of(UFFDMM_PAGE_STORED, POOL, pfn + 1);
    case 5:
        return entry_of(UFFDMM_PAGE_EMPTY, 0, 0);
    default:
        return entry_of(UFFDMM_PAGE_STORED, 0, 0);
    }
}

static uint64_t all_in_pool(uint64_t pfn)
{
    return entry_of(UFFDMM_PAGE_STORED, POOL, pfn + 1);
}

/* The word of a page in the zero tier */
static uint64_t word_of(uint64_t pfn)
{
    return pfn % 8 == 6 ? 0 : 0x0101010101010101 * fake_manager_byte(pfn + 1);
}

static uint8_t byte_of(uint64_t (*layout)(uint64_t), uint64_t pfn)
{
    if (pfn == RESIDENT_PFN) {
        return RESIDENT;
    }
    if (layout == mixed && (pfn % 8 == 5 || pfn % 8 == 6)) {
        return 0;
    }
    return fake_manager_byte(pfn + 1);
}

static bool goes_by_location(uint64_t pfn)
{
    return pfn != RESIDENT_PFN && pfn % 8 != 3 && pfn % 8 != 4;
}

static void side_start(Side *s, uint64_t (*layout)(uint64_t),
                       const char *extra)
{
    s->m = fake_manager_new();
    s->m->initial_entry = layout;
    s->r = &s->m->regions[0];
    s->qts = qtest_initf("-machine pc,memory-backend=mem0 -m 16M -nodefaults "
                         "-vga none -net none -bios %s "
                         "-object memory-backend-external,id=mem0,size=16M,"
                         "socket=%s %s", s->m->bios, s->m->path, extra);
}

static void side_stop(Side *s)
{
    qtest_quit(s->qts);
    fake_manager_free(s->m);
}

/* As if the manager had brought in a page and the guest had written to it */
static void make_resident(Side *s, uint64_t pfn, uint8_t value)
{
    qtest_memset(s->qts, PFN(pfn), value, FAKE_PAGE_SIZE);
    qatomic_set(&s->r->entries[pfn], UFFDMM_PAGE_RESIDENT);
}

static void switch_capability(QTestState *qts, const char *name, bool on)
{
    qtest_qmp_assert_success(qts, "{'execute': 'migrate-set-capabilities',"
                             " 'arguments': {'capabilities': [{"
                             "  'capability': %s, 'state': %i}]}}", name, on);
}

static void set_capability(QTestState *qts, const char *name)
{
    switch_capability(qts, name, true);
}

static void pair_start(Pair *p, uint64_t (*layout)(uint64_t), bool locations,
                       const char *capability)
{
    Side *sides[] = { &p->src, &p->dst };

    side_start(&p->src, layout, "");
    side_start(&p->dst, NULL, "-incoming defer");
    p->uri = g_strdup_printf("unix:%s/migrate", p->dst.m->dir);
    for (uint64_t pfn = 0; layout == mixed && pfn < NR_PAGES; pfn++) {
        if (pfn % 8 >= 6) {
            p->src.r->records[pfn] = word_of(pfn);
        }
    }
    make_resident(&p->src, RESIDENT_PFN, RESIDENT);
    g_assert_cmphex(p->src.r->flags, ==, 0);
    g_assert_cmphex(p->dst.r->flags, ==, UFFDMM_CREATE_INCOMING);
    p->dst.m->source = p->src.m;
    p->src.m->session = p->dst.m->session = SESSION;
    for (int i = 0; i < 2; i++) {
        if (locations) {
            set_capability(sides[i]->qts, "return-path");
            set_capability(sides[i]->qts, "swap-locations");
        }
        if (capability) {
            set_capability(sides[i]->qts, capability);
        }
    }
    qtest_qmp_assert_success(p->dst.qts, "{'execute': 'migrate-incoming',"
                             " 'arguments': {'uri': %s}}", p->uri);
}

static void pair_migrate(Pair *p)
{
    qtest_qmp_assert_success(p->src.qts, "{'execute': 'migrate',"
                             " 'arguments': {'uri': %s}}", p->uri);
}

static void pair_stop(Pair *p)
{
    g_autofree char *path = g_strdup(p->uri + strlen("unix:"));

    side_stop(&p->src);
    unlink(path);
    side_stop(&p->dst);
    g_free(p->uri);
}

/* Play the control plane: all that is in S is known at the destination. */
static void acknowledge(Side *s)
{
    g_mutex_lock(&s->m->lock);
    if (s->r->set) {
        qatomic_set(&s->r->set->acked, qatomic_read(&s->r->set->changes));
    }
    g_mutex_unlock(&s->m->lock);
}

static QDict *query(QTestState *qts)
{
    return qtest_qmp_assert_success_ref(qts, "{'execute': 'query-migrate'}");
}

static bool status_is(QTestState *qts, const char *status)
{
    QDict *info = query(qts);
    bool is = !g_strcmp0(qdict_get_try_str(info, "status"), status);

    qobject_unref(info);
    return is;
}

static void wait_status(Pair *p, const char *status)
{
    for (int i = 0; i < 4000; i++) {
        if (status_is(p->src.qts, status)) {
            return;
        }
        acknowledge(&p->src);
        g_usleep(5 * 1000);
    }
    g_test_message("the migration did not become '%s'", status);
    g_assert_not_reached();
}

static void assert_error(Side *s, const char *text)
{
    QDict *info = query(s->qts);
    const char *desc = qdict_get_try_str(info, "error-desc");

    g_assert_nonnull(desc);
    g_test_message("error: %s", desc);
    g_assert_nonnull(strstr(desc, text));
    qobject_unref(info);
}

static int64_t stat_of(Side *s, const char *name)
{
    QDict *info = query(s->qts);
    int64_t value = qdict_get_int(qdict_get_qdict(info, "swap-locations"),
                                  name);

    qobject_unref(info);
    return value;
}

/* What is in the memory of the destination, without touching it */
static void assert_page(Side *s, uint64_t pfn, uint8_t value)
{
    g_autofree uint8_t *page = g_malloc(FAKE_PAGE_SIZE);

    g_assert_cmpint(pread(s->r->memfd, page, FAKE_PAGE_SIZE, PFN(pfn)), ==,
                    FAKE_PAGE_SIZE);
    for (int i = 0; i < FAKE_PAGE_SIZE; i++) {
        if (page[i] != value) {
            g_test_message("page %" PRIu64 " byte %d is 0x%x instead of 0x%x",
                           pfn, i, page[i], value);
            g_assert_not_reached();
        }
    }
}

static bool is_hole(Side *s, uint64_t pfn)
{
    off_t data = lseek(s->r->memfd, PFN(pfn), SEEK_DATA);

    return data < 0 || data >= PFN(pfn + 1);
}

/* Stored pages go by location, and nobody touches them. */
static void test_locations(const void *capability)
{
    uint64_t faults, count, digest, located = 0;
    Pair p;

    pair_start(&p, mixed, true, capability);
    faults = p.src.r->faults[0];
    pair_migrate(&p);
    wait_status(&p, "completed");

    g_assert_cmpuint(p.src.r->faults[0], ==, faults);
    g_assert_cmpuint(p.src.r->starts, ==, 1);
    g_assert_cmphex(p.src.r->start_flags, ==, 0);
    g_assert_cmpuint(p.src.r->sent, ==, 1);
    g_assert_cmpuint(p.src.r->failed, ==, 0);
    for (uint64_t pfn = 0; pfn < NR_PAGES; pfn++) {
        const struct uffdmm_set_page *e = &p.src.r->elements[pfn];

        g_assert_cmpuint(p.src.r->pins[pfn], ==, 0);
        if (!goes_by_location(pfn)) {
            g_assert_cmphex(e->entry, ==, 0);
            assert_page(&p.dst, pfn, byte_of(mixed, pfn));
            continue;
        }
        located++;
        g_assert_cmphex(e->entry, ==, p.src.r->entries[pfn]);
        g_assert_cmphex(e->record, ==, pfn % 8 == 7 ? word_of(pfn) : 0);
        g_assert_cmphex(p.dst.r->entries[pfn], ==, e->entry);
        g_assert_true(is_hole(&p.dst, pfn));
    }

    fake_set_digest(p.src.r, &count, &digest);
    g_assert_cmpuint(count, ==, located);
    g_assert_cmpuint(p.dst.r->installs, ==, 1);
    g_assert_cmphex(p.dst.r->install.session, ==, SESSION);
    g_assert_cmpuint(p.dst.r->install.region_id, ==, p.dst.r->id);
    g_assert_cmpuint(p.dst.r->install.count, ==, count);
    g_assert_cmphex(p.dst.r->install.digest, ==, digest);

    g_assert_cmpint(stat_of(&p.src, "located"), ==, located);
    g_assert_cmpint(stat_of(&p.src, "by-location"), ==, located);
    g_assert_cmpint(stat_of(&p.src, "by-content"), ==, 1);
    g_assert_cmpint(stat_of(&p.src, "bypass"), ==, NR_PAGES - located - 1);
    g_assert_cmpint(stat_of(&p.src, "bypass-bytes"), ==,
                    (NR_PAGES - located - 1) * FAKE_PAGE_SIZE);
    pair_stop(&p);
}

/* Without the capability all content goes, and still nothing is touched. */
static void test_bypass(const void *capability)
{
    uint64_t faults;
    Pair p;

    pair_start(&p, mixed, false, capability);
    faults = p.src.r->faults[0];
    pair_migrate(&p);
    wait_status(&p, "completed");

    g_assert_cmpuint(p.src.r->faults[0], ==, faults);
    g_assert_cmpuint(p.dst.r->installs, ==, 0);
    /* no slot needs to be kept */
    fake_manager_wait(p.src.m, p.src.r->failed == 1);
    g_assert_cmphex(p.src.r->start_flags, ==, UFFDMM_MIG_BY_CONTENT);
    for (uint64_t pfn = 0; pfn < NR_PAGES; pfn++) {
        g_assert_cmpuint(p.src.r->pins[pfn], ==, 0);
        assert_page(&p.dst, pfn, byte_of(mixed, pfn));
    }
    pair_stop(&p);
}

static unsigned count_pinned(Side *s)
{
    unsigned pinned = 0;

    for (uint64_t pfn = 0; pfn < NR_PAGES; pfn++) {
        pinned += qatomic_read(&s->r->pins[pfn]) != 0;
    }
    return pinned;
}

/* While a channel of multifd cannot write, the pages it was given stay. */
static void test_multifd_pins(void)
{
    unsigned pinned = 0;
    Pair p;

    pair_start(&p, mixed, true, "multifd");
    for (uint64_t pfn = 0; pfn < 1024; pfn++) {
        make_resident(&p.src, pfn, RESIDENT);
    }
    /* sockets fill up */
    g_assert_cmpint(kill(qtest_pid(p.dst.qts), SIGSTOP), ==, 0);
    pair_migrate(&p);
    for (int i = 0; i < 2000 && pinned < 100; i++) {
        g_usleep(10 * 1000);
        pinned = count_pinned(&p.src);
    }
    g_assert_cmpint(kill(qtest_pid(p.dst.qts), SIGCONT), ==, 0);
    g_assert_cmpuint(pinned, >=, 100);
    wait_status(&p, "completed");
    g_assert_cmpuint(count_pinned(&p.src), ==, 0);
    /* below 1 MiB there is a ROM */
    for (uint64_t pfn = 256; pfn < 1024; pfn++) {
        assert_page(&p.dst, pfn, RESIDENT);
    }
    pair_stop(&p);
}

/* The same, and they are not all sent */
static void test_multifd_cancel(void)
{
    Pair p;

    pair_start(&p, mixed, true, "multifd");
    for (uint64_t pfn = 0; pfn < 1024; pfn++) {
        make_resident(&p.src, pfn, RESIDENT);
    }
    g_assert_cmpint(kill(qtest_pid(p.dst.qts), SIGSTOP), ==, 0);
    pair_migrate(&p);
    while (count_pinned(&p.src) < 100) {
        g_usleep(10 * 1000);
    }
    qtest_qmp_assert_success(p.src.qts, "{'execute': 'migrate_cancel'}");
    g_assert_cmpint(kill(qtest_pid(p.dst.qts), SIGCONT), ==, 0);
    wait_status(&p, "cancelled");
    while (count_pinned(&p.src)) {
        g_usleep(10 * 1000);
    }

    side_stop(&p.src);
    qtest_set_expected_status(p.dst.qts, EXIT_FAILURE);
    qtest_wait_qemu(p.dst.qts);
    side_stop(&p.dst);
    g_free(p.uri);
}

/* A file has all content, and leaves the session to the migration proper. */
static void test_file(void)
{
    g_autofree char *file = NULL;
    Pair p;

    pair_start(&p, mixed, true, NULL);
    file = g_strdup_printf("file:%s/state", p.src.m->dir);
    /* a file does not answer */
    switch_capability(p.src.qts, "swap-locations", false);
    switch_capability(p.src.qts, "return-path", false);
    qtest_qmp_assert_success(p.src.qts, "{'execute': 'migrate',"
                             " 'arguments': {'uri': %s}}", file);
    wait_status(&p, "completed");
    g_assert_cmphex(p.src.r->start_flags, ==, UFFDMM_MIG_BY_CONTENT);
    g_assert_cmpint(stat_of(&p.src, "by-location"), ==, 0);
    fake_manager_wait(p.src.m, p.src.r->failed == 1);

    qtest_qmp_assert_success(p.src.qts, "{'execute': 'cont'}");
    set_capability(p.src.qts, "return-path");
    set_capability(p.src.qts, "swap-locations");
    pair_migrate(&p);
    wait_status(&p, "completed");
    g_assert_cmphex(p.src.r->start_flags, ==, 0);
    g_assert_cmpint(stat_of(&p.src, "by-location"), >, 0);
    g_assert_cmpuint(p.dst.r->installs, ==, 1);
    unlink(file + strlen("file:"));
    pair_stop(&p);
}

/* The manager is asked for many pages at once. */
static void test_read_ahead(void)
{
    Pair p;

    pair_start(&p, all_in_pool, true, NULL);
    pair_migrate(&p);
    wait_status(&p, "completed");

    /* the resident page cuts one of the reads in two */
    g_assert_cmpuint(p.src.r->reads, ==, NR_PAGES / UFFDMM_MIG_READ_MAX + 1);
    g_assert_cmpuint(p.src.r->read_pages, ==, NR_PAGES - 1);
    for (uint64_t pfn = 0; pfn < NR_PAGES; pfn++) {
        assert_page(&p.dst, pfn, byte_of(all_in_pool, pfn));
    }
    pair_stop(&p);
}

/* The guest is not stopped while locations are not known there. */
static void test_backlog(void)
{
    const uint64_t written = 16; /* in S at first */
    uint64_t count, digest;
    Pair p;

    pair_start(&p, mixed, true, NULL);
    /* no time at all for what is pending when the guest is stopped */
    qtest_qmp_assert_success(p.src.qts, "{'execute': 'migrate-set-parameters',"
                             " 'arguments': {'downtime-limit': 1,"
                             "  'avail-switchover-bandwidth': 1000}}");
    pair_migrate(&p);
    for (int i = 0; i < 2000 && !status_is(p.src.qts, "active"); i++) {
        g_usleep(5 * 1000);
    }
    for (int i = 0; i < 2000 && !stat_of(&p.src, "unacknowledged"); i++) {
        g_usleep(5 * 1000);
    }
    g_usleep(300 * 1000);
    g_assert_true(status_is(p.src.qts, "active"));
    g_assert_cmpint(stat_of(&p.src, "unacknowledged"), >, NR_PAGES / 2);
    g_assert_cmphex(p.src.r->elements[written].entry, !=, 0);

    /* meanwhile the guest writes to a page whose location has been taken */
    make_resident(&p.src, written, 0x77);
    wait_status(&p, "completed");
    g_assert_cmphex(p.src.r->elements[written].entry, ==, 0);
    assert_page(&p.dst, written, 0x77);
    fake_set_digest(p.src.r, &count, &digest);
    g_assert_cmpuint(p.dst.r->install.count, ==, count);
    g_assert_cmphex(p.dst.r->install.digest, ==, digest);
    g_assert_cmpint(stat_of(&p.src, "located"), ==, count);
    pair_stop(&p);
}

static uint64_t all_shared(uint64_t pfn)
{
    return entry_of(UFFDMM_PAGE_STORED, FAKE_SHARED_TIER, pfn + 1);
}

#define RACE_SLOTS (64 * MIB)

/* A worker that moves pages to other slots and frees the old ones */
typedef struct Mover {
    FakeRegion *r;
    bool stop;
    uint64_t next_slot;
    uint64_t kept;  /* slots that were in S already */
    uint64_t freed; /* and that were not */
    unsigned long *is_freed;
} Mover;

static void move_page(Mover *mover, uint64_t pfn)
{
    struct uffdmm_set_page *e = &mover->r->elements[pfn];
    uint64_t old = mover->r->entries[pfn];
    uint64_t slot = old >> UFFDMM_ENTRY_SLOT_SHIFT;

    if (pfn == RESIDENT_PFN || mover->next_slot == RACE_SLOTS) {
        return;
    }
    qatomic_set(&mover->r->entries[pfn],
                entry_of(UFFDMM_PAGE_STORED, FAKE_SHARED_TIER,
                         mover->next_slot++));
    /* the other half of the pair: entry first, then the element */
    smp_mb();
    if (qatomic_read(&e->entry) == old) {
        mover->kept++;
    } else {
        set_bit(slot, mover->is_freed);
        mover->freed++;
    }
}

static void *mover_thread(void *opaque)
{
    Mover *mover = opaque;
    uint64_t pfn = 0;

    while (!qatomic_read(&mover->stop)) {
        const struct uffdmm_set_page *elements =
            qatomic_read(&mover->r->elements);

        if (!elements) {
            continue;
        }
        /* just ahead of the thread that migrates */
        while (pfn < NR_PAGES - 1 &&
               (qatomic_read(&elements[pfn].entry) || pfn == RESIDENT_PFN)) {
            pfn++;
        }
        move_page(mover, pfn);
        move_page(mover, MIN(pfn + 1, NR_PAGES - 1));
    }
    return NULL;
}

/* Returns how often the two threads met. */
static uint64_t migrate_moving_pages(void)
{
    Mover mover = { .next_slot = NR_PAGES + 1 };
    uint64_t wrong = 0;
    GThread *thread;
    Pair p;

    pair_start(&p, all_shared, true, NULL);
    mover.r = p.src.r;
    mover.is_freed = bitmap_new(RACE_SLOTS);
    thread = g_thread_new("mover", mover_thread, &mover);
    pair_migrate(&p);
    wait_status(&p, "completed");
    qatomic_set(&mover.stop, true);
    g_thread_join(thread);

    for (uint64_t pfn = 0; pfn < NR_PAGES; pfn++) {
        uint64_t entry = p.src.r->elements[pfn].entry;

        if (pfn == RESIDENT_PFN) {
            g_assert_cmphex(entry, ==, 0);
            continue;
        }
        g_assert_cmphex(entry, !=, 0);
        wrong += test_bit(entry >> UFFDMM_ENTRY_SLOT_SHIFT, mover.is_freed);
    }
    g_test_message("%" PRIu64 " slots kept, %" PRIu64 " freed, %" PRIu64
                   " freed and in S", mover.kept, mover.freed, wrong);
    g_assert_cmpuint(wrong, ==, 0);
    g_free(mover.is_freed);
    pair_stop(&p);
    return mover.kept;
}

/*
 * No slot is in S that was freed, at whatever moment a page moves.  On a busy
 * host one thread may run past the other: try again until they meet.
 */
static void test_moving_pages(void)
{
    uint64_t met = 0;

    for (int i = 0; i < 20 && met < 300; i++) {
        met += migrate_moving_pages();
    }
    if (met < 300) {
        g_test_skip("the host is too busy for the threads to meet");
    }
}

/* The destination has other locations: it refuses, the source goes on. */
static void test_mismatch(void)
{
    Pair p;
    QDict *status;

    pair_start(&p, mixed, true, NULL);
    p.dst.m->session = SESSION + 1;
    pair_migrate(&p);
    wait_status(&p, "failed");
    g_assert_cmpuint(p.dst.r->installs, ==, 1);
    fake_manager_wait(p.src.m, p.src.r->failed == 1);
    status = qtest_qmp_assert_success_ref(p.src.qts,
                                          "{'execute': 'query-status'}");
    g_assert_cmpstr(qdict_get_str(status, "status"), ==, "running");
    qobject_unref(status);
    /* its memory is still served */
    g_assert_cmphex(qtest_readb(p.src.qts, PFN(RESIDENT_PFN)), ==, RESIDENT);
    g_assert_cmphex(qtest_readb(p.src.qts, PFN(2000)), ==,
                    fake_manager_byte(2000));

    side_stop(&p.src);
    qtest_set_expected_status(p.dst.qts, EXIT_FAILURE);
    qtest_wait_qemu(p.dst.qts);
    side_stop(&p.dst);
    g_free(p.uri);
}

/* A store that does not answer can be given up. */
static void test_cancel(void)
{
    Pair p;

    pair_start(&p, mixed, true, NULL);
    p.src.m->hold_reads = true;
    pair_migrate(&p);
    fake_manager_wait(p.src.m, p.src.r->reads == 1);
    qtest_qmp_assert_success(p.src.qts, "{'execute': 'migrate_cancel'}");
    wait_status(&p, "cancelled");
    fake_manager_wait(p.src.m, p.src.r->failed == 1);
    g_assert_cmpuint(p.src.r->sent, ==, 0);

    side_stop(&p.src);
    qtest_set_expected_status(p.dst.qts, EXIT_FAILURE);
    qtest_wait_qemu(p.dst.qts);
    side_stop(&p.dst);
    g_free(p.uri);
}

/* The manager is gone in the midst of it: so is what it knew of the session. */
static void test_lost_manager(void)
{
    Pair p;

    pair_start(&p, mixed, true, NULL);
    p.src.m->hold_reads = true;
    pair_migrate(&p);
    fake_manager_wait(p.src.m, p.src.r->reads == 1);
    fake_manager_drop(p.src.m);
    wait_status(&p, "failed");
    assert_error(&p.src, "lost before it answered");

    side_stop(&p.src);
    qtest_set_expected_status(p.dst.qts, EXIT_FAILURE);
    qtest_wait_qemu(p.dst.qts);
    side_stop(&p.dst);
    g_free(p.uri);
}

static void assert_refused(QTestState *qts, const char *with, const char *text)
{
    QDict *rsp = qtest_qmp(qts, "{'execute': 'migrate-set-capabilities',"
                           " 'arguments': {'capabilities': ["
                           "  {'capability': %s, 'state': true},"
                           "  {'capability': 'swap-locations',"
                           "   'state': true}]}}", with);

    g_assert_true(qdict_haskey(rsp, "error"));
    g_assert_nonnull(strstr(qdict_get_str(qdict_get_qdict(rsp, "error"),
                                          "desc"), text));
    qobject_unref(rsp);
}

static void test_capabilities(void)
{
    Side s;

    side_start(&s, NULL, "");
    assert_refused(s.qts, "events", "'swap-locations' requires capability "
                                    "'return-path'");
    set_capability(s.qts, "return-path");
    assert_refused(s.qts, "xbzrle", "cannot be used together with 'xbzrle'");
    assert_refused(s.qts, "mapped-ram", "together with 'mapped-ram'");
    set_capability(s.qts, "swap-locations");
    side_stop(&s);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    qtest_add_data_func("/uffdmm/migration/locations", NULL, test_locations);
    qtest_add_data_func("/uffdmm/migration/locations-multifd", "multifd",
                        test_locations);
    qtest_add_data_func("/uffdmm/migration/bypass", NULL, test_bypass);
    qtest_add_data_func("/uffdmm/migration/bypass-multifd", "multifd",
                        test_bypass);
    qtest_add_data_func("/uffdmm/migration/bypass-xbzrle", "xbzrle",
                        test_bypass);
    qtest_add_func("/uffdmm/migration/multifd-pins", test_multifd_pins);
    qtest_add_func("/uffdmm/migration/multifd-cancel", test_multifd_cancel);
    qtest_add_func("/uffdmm/migration/file", test_file);
    qtest_add_func("/uffdmm/migration/read-ahead", test_read_ahead);
    qtest_add_func("/uffdmm/migration/backlog", test_backlog);
    qtest_add_func("/uffdmm/migration/moving-pages", test_moving_pages);
    qtest_add_func("/uffdmm/migration/mismatch", test_mismatch);
    qtest_add_func("/uffdmm/migration/cancel", test_cancel);
    qtest_add_func("/uffdmm/migration/lost-manager", test_lost_manager);
    qtest_add_func("/uffdmm/migration/capabilities", test_capabilities);

    return g_test_run();
}
