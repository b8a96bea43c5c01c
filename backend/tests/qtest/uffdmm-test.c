/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * memory-backend-external against a fake manager: memory that is served,
 * zapped, discarded, taken over and given back
 *
 * What the monitor shows of it is in uffdmm-monitor-test.c, what must be
 * refused in uffdmm-refuse-test.c.
 */

#include "qemu/osdep.h"
#include "libqtest.h"
#include "qemu/atomic.h"
#include "qemu/bswap.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"
#include "uffdmm-machine.h"
#include <sys/mman.h>

/* Faults are served, writes reach the manager's memory. */
static void test_serve(void)
{
    FakeManager *m = fake_manager_new();
    QTestState *qts = uffdmm_start(m, "");
    FakeRegion *r = &m->regions[0];
    uint8_t content[8];

    g_assert_cmpstr(m->hello.vm_name, ==, "guest1");
    g_assert_true(g_str_has_prefix(m->hello.agent, "QEMU "));
    g_assert_cmpuint(m->hello.uuid[0], ==, 1);
    g_assert_cmpuint(m->hello.uuid[15], ==, 16);
    g_assert_cmpstr(r->name, ==, "mem0");
    g_assert_cmpuint(r->size, ==, RAM_SIZE);
    /* nothing touches memory by itself */
    g_assert_cmpuint(r->faults[0], ==, 0);

    g_assert_cmpuint(qtest_readb(qts, PFN(5) + 17), ==, fake_manager_byte(5));
    g_assert_cmpuint(qtest_readb(qts, PFN(5) + 18), ==, fake_manager_byte(5));
    g_assert_cmpuint(qtest_readb(qts, RAM_SIZE - 1), ==,
                     fake_manager_byte(RAM_SIZE / FAKE_PAGE_SIZE - 1));
    g_assert_cmpuint(r->faults[0], ==, 2);

    qtest_writel(qts, PFN(700), 0x01234567);
    g_assert_cmpint(pread(r->memfd, content, 8, PFN(700)), ==, 8);
    g_assert_cmphex(ldl_le_p(content), ==, 0x01234567);
    g_assert_cmpuint(content[4], ==, fake_manager_byte(700));

    qtest_quit(qts);
    fake_manager_free(m);
}

/* Each slice has its userfaultfd, the odd sizes included. */
static void test_shards(void)
{
    FakeManager *m = fake_manager_new();
    QTestState *qts = uffdmm_start(m, ",shards=3");
    FakeRegion *r = &m->regions[0];
    const uint64_t nr_pages = RAM_SIZE / FAKE_PAGE_SIZE;

    g_assert_cmpuint(r->nr_shards, ==, 3);
    for (int i = 0; i < 3; i++) {
        uint64_t first = i * nr_pages / 3, last = (i + 1) * nr_pages / 3 - 1;

        g_assert_cmpuint(qtest_readb(qts, PFN(first)), ==,
                         fake_manager_byte(first));
        g_assert_cmpuint(qtest_readb(qts, PFN(last)), ==,
                         fake_manager_byte(last));
        g_assert_cmpuint(r->faults[i], ==, 2);
    }

    qtest_quit(qts);
    fake_manager_free(m);
}

/* Is the page in QEMU's page tables, by the descriptor it passed? */
static bool page_present(FakeRegion *r, uint64_t pfn)
{
    uint64_t entry;

    g_assert_cmpint(pread(r->pagemap, &entry, 8,
                          (r->base / FAKE_PAGE_SIZE + pfn) * 8), ==, 8);
    return entry >> 63;
}

static void test_zap(void)
{
    FakeManager *m = fake_manager_new();
    QTestState *qts = uffdmm_start(m, "");
    FakeRegion *r = &m->regions[0];

    qtest_writeb(qts, PFN(3), 0xaa);
    qtest_writeb(qts, PFN(4), 0xbb);
    g_assert_true(page_present(r, 3) && page_present(r, 4));

    g_assert_cmpint(fake_manager_zap(m, 0, 100, PFN(3), PFN(1)), ==, 0);
    g_assert_false(page_present(r, 3));
    g_assert_true(page_present(r, 4));
    /* the data is still there, and nobody is asked for it */
    g_assert_cmpuint(qtest_readb(qts, PFN(3)), ==, 0xaa);
    g_assert_true(page_present(r, 3));
    g_assert_cmpuint(r->faults[0], ==, 2);

    g_assert_cmpint(fake_manager_zap(m, 0, 101, PFN(3), PFN(1)), <, 0);
    g_assert_cmpint(fake_manager_zap(m, 0, 100, PFN(3) + 1, PFN(1)), <, 0);
    g_assert_cmpint(fake_manager_zap(m, 0, 100, PFN(3), 0), <, 0);
    g_assert_cmpint(fake_manager_zap(m, 0, 100, RAM_SIZE, PFN(1)), <, 0);
    g_assert_cmpint(fake_manager_zap(m, 0, 100, PFN(1), RAM_SIZE), <, 0);
    g_assert_cmpint(fake_manager_zap(m, 0, 100, PFN(1), -PFN(1)), <, 0);
    g_assert_true(page_present(r, 3) && page_present(r, 4));
    /* a bad ZAP costs nothing but itself */
    g_assert_cmpint(fake_manager_zap(m, 0, 100, 0, RAM_SIZE), ==, 0);
    g_assert_false(page_present(r, 3) || page_present(r, 4));

    /* more replies than the socket takes at once */
    g_mutex_lock(&m->lock);
    m->zap_replies = 0;
    g_mutex_unlock(&m->lock);
    fake_manager_zap_burst(m, 0, 1000);
    fake_manager_wait(m, m->zap_replies == 1000);
    g_assert_cmpuint(m->connects, ==, 1);

    qtest_quit(qts);
    fake_manager_free(m);
}

#define ENTRY(state, gen, slot, flags) \
    (UFFDMM_PAGE_##state | (uint64_t)(gen) << UFFDMM_ENTRY_GEN_SHIFT | \
     (uint64_t)(slot) << UFFDMM_ENTRY_SLOT_SHIFT | \
     1 << UFFDMM_ENTRY_TIER_SHIFT | (flags))
#define BUSY    UFFDMM_ENTRY_BUSY
#define MAYHOLE UFFDMM_ENTRY_MAYHOLE
#define WRITING UFFDMM_ENTRY_WRITING
#define INSTALL UFFDMM_ENTRY_INSTALL

static const struct {
    uint64_t before, after;
} discard_cases[] = {
    { ENTRY(UNTRACKED, 1, 0, 0), ENTRY(UNTRACKED, 1, 0, 0) },
    { ENTRY(EMPTY, 1, 0, 0), ENTRY(EMPTY, 1, 0, MAYHOLE) },
    { ENTRY(DISCARDED, 1, 7, BUSY), ENTRY(DISCARDED, 1, 7, BUSY) },
    { ENTRY(RESIDENT, 1, 0, 0), ENTRY(DISCARDED, 2, 0, 0) },
    { ENTRY(RESIDENT, 0xfff, 0, MAYHOLE), ENTRY(DISCARDED, 0, 0, 0) },
    { ENTRY(CLEAN, 5, 0x123456789, 0), ENTRY(DISCARDED, 6, 0x123456789, 0) },
    { ENTRY(STORED, 5, 0xffffffffff, 0),
      ENTRY(DISCARDED, 6, 0xffffffffff, 0) },
    { ENTRY(EVICTING, 8, 9, BUSY), ENTRY(DISCARDED, 9, 9, BUSY) },
    { ENTRY(EVICTING, 8, 9, 0), ENTRY(DISCARDED, 9, 9, 0) },
    { ENTRY(FILLING, 8, 9, 0), ENTRY(DISCARDED, 9, 9, BUSY) },
    { ENTRY(FILLING, 8, 9, BUSY | MAYHOLE), ENTRY(DISCARDED, 9, 9, BUSY) },
    { ENTRY(EVICTING, 8, 9, WRITING), ENTRY(DISCARDED, 9, 9, WRITING) },
    { ENTRY(LOST, 0, 0, 0), ENTRY(DISCARDED, 1, 0, 0) },
};

static uint64_t discard_case_entry(uint64_t pfn)
{
    return discard_cases[pfn % ARRAY_SIZE(discard_cases)].before;
}

/*
 * A machine with 128 MiB from the manager in 'vmem0'.  virtio-mem discards all
 * of its memory when it is realized.
 */
static QTestState *start_vmem(FakeManager *m, bool huge)
{
    QTestState *qts = qtest_initf("-machine pc -m 128M,maxmem=1G " BARE,
                                  m->bios);

    qtest_qmp_assert_success(qts, "{'execute': 'object-add', 'arguments':"
                             " {'qom-type': 'memory-backend-external',"
                             "  'id': 'vmem0', 'size': 134217728,"
                             "  'hugetlb': %i,"
                             "  'socket': %s, 'vm-name': 'x'}}", huge,
                             m->path);
    return qts;
}

static void test_discard(void)
{
    FakeManager *m = fake_manager_new();
    const uint64_t size = 128 * MIB, nr_pages = size / FAKE_PAGE_SIZE;
    uint64_t changed = 0;
    struct uffdmm_range *range;
    QTestState *qts;
    FakeRegion *r = &m->regions[0];

    if (!qtest_has_device("virtio-mem-pci")) {
        g_test_skip("no virtio-mem");
        goto out;
    }
    m->initial_entry = discard_case_entry;
    qts = start_vmem(m, false);
    /* something to punch */
    g_assert_cmpint(pwrite(r->memfd, "x", 1, PFN(3)), ==, 1);
    qtest_qmp_device_add(qts, "virtio-mem-pci", "vm0",
                         "{'memdev': 'vmem0'}");

    for (uint64_t pfn = 0; pfn < nr_pages; pfn++) {
        int i = pfn % ARRAY_SIZE(discard_cases);

        g_assert_cmphex(qatomic_read(&r->entries[pfn]), ==,
                        discard_cases[i].after);
        changed += (discard_cases[i].after & UFFDMM_ENTRY_STATE_MASK) !=
                   (discard_cases[i].before & UFFDMM_ENTRY_STATE_MASK);
    }
    g_assert_cmpuint(r->table->discards, ==, changed);
    g_assert_cmpint(lseek(r->memfd, 0, SEEK_DATA), ==, -1);

    fake_manager_wait(m, m->discards->len);
    range = &g_array_index(m->discards, struct uffdmm_range, 0);
    g_assert_cmpuint(range->region_id, ==, r->id);
    g_assert_cmpuint(range->offset, ==, 0);
    g_assert_cmpuint(range->length, ==, size);

    qtest_quit(qts);
out:
    fake_manager_free(m);
}

static uint64_t one_installing(uint64_t pfn)
{
    return pfn == 3 ? ENTRY(FILLING, 8, 9, BUSY | INSTALL) :
                      ENTRY(RESIDENT, 1, 0, 0);
}

/* A page that is being copied into place is punched after the copy. */
static void test_discard_waits(void)
{
    FakeManager *m = fake_manager_new();
    FakeRegion *r = &m->regions[0];
    QTestState *qts;
    uint8_t byte;
    QDict *rsp;

    if (!qtest_has_device("virtio-mem-pci")) {
        g_test_skip("no virtio-mem");
        goto out;
    }
    m->initial_entry = one_installing;
    qts = start_vmem(m, false);
    g_assert_cmpint(pwrite(r->memfd, "x", 1, PFN(2)), ==, 1);
    qtest_qmp_send(qts, "{'execute': 'device_add', 'arguments':"
                   " {'driver': 'virtio-mem-pci', 'id': 'vm0',"
                   "  'memdev': 'vmem0'}}");
    while (qatomic_read(&r->entries[2]) != ENTRY(DISCARDED, 2, 0, 0)) {
        g_usleep(100);
    }
    /* longer than spinning takes */
    g_usleep(200 * 1000);
    g_assert_cmphex(qatomic_read(&r->entries[3]), ==,
                    ENTRY(FILLING, 8, 9, BUSY | INSTALL));
    g_assert_cmphex(qatomic_read(&r->entries[4]), ==,
                    ENTRY(RESIDENT, 1, 0, 0));
    g_assert_cmpint(pread(r->memfd, &byte, 1, PFN(2)), ==, 1);
    g_assert_cmpuint(byte, ==, 'x');

    /* the copy is done */
    g_assert_cmpint(pwrite(r->memfd, "y", 1, PFN(3)), ==, 1);
    qatomic_set(&r->entries[3], ENTRY(RESIDENT, 8, 0, 0));
    rsp = qtest_qmp_receive(qts);
    g_assert_true(qdict_haskey(rsp, "return"));
    qobject_unref(rsp);
    g_assert_cmphex(r->entries[3], ==, ENTRY(DISCARDED, 9, 0, 0));
    g_assert_cmphex(r->entries[4], ==, ENTRY(DISCARDED, 2, 0, 0));
    g_assert_cmpint(lseek(r->memfd, 0, SEEK_DATA), ==, -1);

    qtest_quit(qts);
out:
    fake_manager_free(m);
}

static uint64_t all_installing(uint64_t pfn)
{
    return ENTRY(FILLING, 8, 9, BUSY | INSTALL);
}

/* A manager that died in the midst of it does not hold up QEMU for long. */
static void test_discard_gives_up(void)
{
    FakeManager *m = fake_manager_new();
    FakeRegion *r = &m->regions[0];
    QTestState *qts;
    gint64 start;

    if (!qtest_has_device("virtio-mem-pci")) {
        g_test_skip("no virtio-mem");
        goto out;
    }
    m->initial_entry = all_installing;
    qts = start_vmem(m, false);
    start = g_get_monotonic_time();
    qtest_qmp_device_add(qts, "virtio-mem-pci", "vm0", "{'memdev': 'vmem0'}");
    start = g_get_monotonic_time() - start;
    g_assert_cmpint(start, >=, G_TIME_SPAN_SECOND * 9 / 10);
    g_assert_cmpint(start, <, G_TIME_SPAN_SECOND * 10);
    for (uint64_t pfn = 0; pfn < r->size / FAKE_PAGE_SIZE; pfn++) {
        g_assert_cmphex(r->entries[pfn], ==, ENTRY(DISCARDED, 9, 9, BUSY));
    }

    qtest_quit(qts);
out:
    fake_manager_free(m);
}

/* Are there so many huge pages of 2 MiB?  Skips the test if not. */
static bool have_huge_pages(unsigned needed)
{
    g_autofree char *text = NULL;

    if (g_file_get_contents("/sys/kernel/mm/hugepages/hugepages-2048kB/"
                            "free_hugepages", &text, NULL, NULL) &&
        g_ascii_strtoull(text, NULL, 10) >= needed) {
        return true;
    }
    g_test_skip("not enough huge pages, see sysctl vm.nr_hugepages");
    return false;
}

#define HUGE(n) ((uint64_t)(n) * FAKE_HUGE_SIZE)

/* Faults, zaps and reconnects in pages of 2 MiB */
static void test_huge(void)
{
    FakeManager *m = fake_manager_new();
    FakeRegion *r = &m->regions[0];
    QTestState *qts;

    /* of the 8 that the guest has: none are reserved */
    if (!have_huge_pages(3)) {
        goto out;
    }
    qts = uffdmm_start(m, ",hugetlb=on,hugetlbsize=2M,shards=3");
    g_assert_cmpuint(r->page_size, ==, FAKE_HUGE_SIZE);
    g_assert_cmpuint(r->table->nr_pages, ==, RAM_SIZE / FAKE_HUGE_SIZE);
    g_assert_cmpuint(r->base % FAKE_HUGE_SIZE, ==, 0);

    /* shards begin at pages 0, 2 and 5 */
    g_assert_cmpuint(qtest_readb(qts, HUGE(3) + 5), ==, fake_manager_byte(3));
    g_assert_cmpuint(qtest_readb(qts, HUGE(4) - 1), ==, fake_manager_byte(3));
    g_assert_cmpuint(r->faults[1], ==, 1);
    g_assert_cmpuint(qtest_readb(qts, HUGE(5)), ==, fake_manager_byte(5));
    g_assert_cmpuint(r->faults[2], ==, 1);

    qtest_writeb(qts, HUGE(3) + 5, 0xaa);
    g_assert_true(page_present(r, HUGE(3) / FAKE_PAGE_SIZE));
    g_assert_cmpint(fake_manager_zap(m, 0, 100, HUGE(3), FAKE_PAGE_SIZE), <,
                    0);
    g_assert_cmpint(fake_manager_zap(m, 0, 100, PFN(1), HUGE(1)), <, 0);
    g_assert_true(page_present(r, HUGE(3) / FAKE_PAGE_SIZE));
    g_assert_cmpint(fake_manager_zap(m, 0, 100, HUGE(3), HUGE(1)), ==, 0);
    g_assert_false(page_present(r, HUGE(3) / FAKE_PAGE_SIZE));
    g_assert_true(page_present(r, HUGE(5) / FAKE_PAGE_SIZE));
    /* the data is still there, and nobody is asked for it */
    g_assert_cmpuint(qtest_readb(qts, HUGE(3) + 5), ==, 0xaa);
    g_assert_cmpuint(qtest_readb(qts, HUGE(3) + 6), ==, fake_manager_byte(3));
    g_assert_cmpuint(r->faults[1], ==, 1);

    fake_manager_drop(m);
    fake_manager_wait(m, m->reconnects == 1);
    g_assert_cmpuint(r->page_size, ==, FAKE_HUGE_SIZE);
    g_assert_cmpuint(qtest_readb(qts, HUGE(7)), ==, fake_manager_byte(7));
    g_assert_cmpuint(qtest_readb(qts, HUGE(3) + 5), ==, 0xaa);

    qtest_quit(qts);
out:
    fake_manager_free(m);
}

static void test_huge_discard(void)
{
    FakeManager *m = fake_manager_new();
    FakeRegion *r = &m->regions[0];
    struct uffdmm_range *range;
    QTestState *qts;
    struct stat st;
    uint8_t *page;

    if (!qtest_has_device("virtio-mem-pci")) {
        g_test_skip("no virtio-mem");
        goto out;
    }
    if (!have_huge_pages(1)) {
        goto out;
    }
    m->initial_entry = discard_case_entry;
    qts = start_vmem(m, true);
    /* something to punch */
    page = mmap(NULL, FAKE_HUGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED,
                r->memfd, HUGE(3));
    g_assert_true(page != MAP_FAILED);
    *page = 1;
    munmap(page, FAKE_HUGE_SIZE);
    g_assert_cmpint(fstat(r->memfd, &st), ==, 0);
    g_assert_cmpint(st.st_blocks, ==, FAKE_HUGE_SIZE / 512);
    qtest_qmp_device_add(qts, "virtio-mem-pci", "vm0",
                         "{'memdev': 'vmem0'}");

    for (uint64_t pfn = 0; pfn < 128 * MIB / FAKE_HUGE_SIZE; pfn++) {
        g_assert_cmphex(qatomic_read(&r->entries[pfn]), ==,
                        discard_cases[pfn % ARRAY_SIZE(discard_cases)].after);
    }
    g_assert_cmpint(fstat(r->memfd, &st), ==, 0);
    g_assert_cmpint(st.st_blocks, ==, 0);
    fake_manager_wait(m, m->discards->len);
    range = &g_array_index(m->discards, struct uffdmm_range, 0);
    g_assert_cmpuint(range->offset, ==, 0);
    g_assert_cmpuint(range->length, ==, 128 * MIB);

    qtest_quit(qts);
out:
    fake_manager_free(m);
}

/* The link is lost: nothing is, and who waited goes on afterwards. */
static void test_reconnect(void)
{
    FakeManager *m = fake_manager_new();
    QTestState *qts;
    GThread *toucher;
    QDict *rsp, *backend;
    QList *list;

    m->nr_arenas = 4;
    qts = uffdmm_start(m, ",shards=2,reconnect-ms=20");
    g_assert_cmpuint(qtest_readb(qts, PFN(2)), ==, fake_manager_byte(2));
    m->refuse_reconnects = UINT_MAX;
    fake_manager_drop(m);
    uffdmm_wait_link(qts, "lost");

    /* memory that is present goes on */
    g_assert_cmpuint(qtest_readb(qts, PFN(2)), ==, fake_manager_byte(2));
    rsp = qtest_qmp(qts, "{'execute': 'uffdmm-set-policy',"
                    " 'arguments': {'limit': 8388608}}");
    g_assert_nonnull(strstr(qdict_get_str(qdict_get_qdict(rsp, "error"),
                                          "desc"), "no connection"));
    qobject_unref(rsp);

    toucher = g_thread_new("toucher", uffdmm_touch, qts);
    fake_manager_wait(m, m->reconnects_refused >= 3);
    g_mutex_lock(&m->lock);
    g_assert_cmpuint(m->reconnects, ==, 0);
    m->refuse_reconnects = 0;
    g_mutex_unlock(&m->lock);
    g_thread_join(toucher);

    uffdmm_wait_link(qts, "live");
    g_assert_cmpuint(m->arenas_back, ==, m->nr_arenas);
    list = uffdmm_query(qts);
    backend = uffdmm_first_backend(uffdmm_vm(list));
    g_assert_cmpint(qdict_get_int(backend, "reconnects"), ==, 1);
    qobject_unref(list);
    g_assert_cmpuint(qtest_readb(qts, RAM_SIZE - 1), ==,
                     fake_manager_byte(RAM_SIZE / FAKE_PAGE_SIZE - 1));

    /* and again */
    fake_manager_drop(m);
    fake_manager_wait(m, m->reconnects == 2);
    g_assert_cmpuint(m->arenas_back, ==, m->nr_arenas);

    qtest_quit(qts);
    fake_manager_free(m);
}

static void test_object_del(void)
{
    FakeManager *m = fake_manager_new();
    QTestState *qts = qtest_init("-machine none");
    QList *list;

    for (unsigned i = 1; i <= 3; i++) {
        m->hold_detach = i == 3;
        qtest_qmp_assert_success(qts, "{'execute': 'object-add', 'arguments':"
                                 " {'qom-type': 'memory-backend-external',"
                                 "  'id': 'hot', 'size': 8192, 'shards': 8,"
                                 "  'socket': %s}}", m->path);
        g_assert_cmpuint(m->regions[0].nr_shards, ==, 2);
        qtest_qmp_assert_success(qts, "{'execute': 'object-del',"
                                 " 'arguments': {'id': 'hot'}}");
        fake_manager_wait(m, m->detaches == i && m->regions[0].sock < 0);
        list = uffdmm_query(qts);
        g_assert_true(qlist_empty(list));
        qobject_unref(list);
    }

    qtest_quit(qts);
    fake_manager_free(m);
}

static void test_numa_and_dimm(void)
{
    FakeManager *m = fake_manager_new();
    QTestState *qts;
    QList *list;

    qts = qtest_initf("-machine q35 " BARE "-smp 2 -name two "
                      "-m 64M,slots=2,maxmem=1G "
                      "-object memory-backend-external,id=m0,size=32M,"
                      "socket=%s -numa node,memdev=m0,cpus=0 "
                      "-object memory-backend-external,id=m1,size=32M,"
                      "socket=%s -numa node,memdev=m1,cpus=1", m->bios,
                      m->path, m->path);
    qtest_qmp_assert_success(qts, "{'execute': 'object-add', 'arguments':"
                             " {'qom-type': 'memory-backend-external',"
                             "  'id': 'm2', 'size': 134217728,"
                             "  'socket': %s}}", m->path);
    qtest_qmp_device_add(qts, "pc-dimm", "dimm0", "{'memdev': 'm2'}");

    g_assert_cmpuint(qtest_readb(qts, 20 * MIB), ==,
                     fake_manager_byte(20 * MIB / FAKE_PAGE_SIZE));
    g_assert_cmpuint(qtest_readb(qts, 40 * MIB), ==,
                     fake_manager_byte(8 * MIB / FAKE_PAGE_SIZE));
    /* hot-plugged memory begins at 4 GiB */
    g_assert_cmpuint(qtest_readb(qts, (4ULL << 30) + PFN(77)), ==,
                     fake_manager_byte(77));

    list = uffdmm_query(qts);
    g_assert_cmpuint(qlist_size(qdict_get_qlist(uffdmm_vm(list), "backends")),
                     ==, 3);
    qobject_unref(list);

    qtest_quit(qts);
    fake_manager_free(m);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    qtest_add_func("/uffdmm/serve", test_serve);
    qtest_add_func("/uffdmm/shards", test_shards);
    qtest_add_func("/uffdmm/zap", test_zap);
    qtest_add_func("/uffdmm/discard", test_discard);
    qtest_add_func("/uffdmm/discard-waits", test_discard_waits);
    qtest_add_func("/uffdmm/discard-gives-up", test_discard_gives_up);
    qtest_add_func("/uffdmm/huge", test_huge);
    qtest_add_func("/uffdmm/huge-discard", test_huge_discard);
    qtest_add_func("/uffdmm/reconnect", test_reconnect);
    qtest_add_func("/uffdmm/object-del", test_object_del);
    qtest_add_func("/uffdmm/numa-and-dimm", test_numa_and_dimm);

    return g_test_run();
}
