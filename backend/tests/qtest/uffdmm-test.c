/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * memory-backend-external against a fake manager: what must work
 *
 * What must be refused is in uffdmm-refuse-test.c.
 */

#include "qemu/osdep.h"
#include "libqtest.h"
#include "qapi/error.h"
#include "qemu/atomic.h"
#include "qemu/bswap.h"
#include "qobject/qdict.h"
#include "qobject/qjson.h"
#include "qobject/qlist.h"
#include "uffdmm-fake-manager.h"
#include <poll.h>

#define MIB      (1024 * 1024)
#define RAM_SIZE (16 * MIB)
#define PFN(n)   ((uint64_t)(n) * FAKE_PAGE_SIZE)

#define MEM0 "-object memory-backend-external,id=mem0,size=16M"

/* Nothing in these machines touches memory by itself; m->bios is empty. */
#define PC      "-machine pc,memory-backend=mem0 -m 16M " BARE
#define BARE    "-nodefaults -vga none -net none -bios %s "

static QTestState *start(FakeManager *m, const char *props)
{
    return qtest_initf(PC "-name guest1 "
                       "-uuid 01020304-0506-0708-090a-0b0c0d0e0f10 "
                       MEM0 ",socket=%s%s", m->bios, m->path, props);
}

static QList *query(QTestState *qts)
{
    QDict *rsp = qtest_qmp(qts, "{'execute': 'uffdmm-query'}");
    QList *list;

    g_assert_true(qdict_haskey(rsp, "return"));
    list = qobject_ref(qdict_get_qlist(rsp, "return"));
    qobject_unref(rsp);
    return list;
}

static QDict *vm_of(QList *list)
{
    g_assert_cmpuint(qlist_size(list), ==, 1);
    return qobject_to(QDict, qlist_peek(list));
}

static QDict *first_backend(QDict *vm)
{
    return qobject_to(QDict, qlist_peek(qdict_get_qlist(vm, "backends")));
}

/* Wait until the first backend's link is in that state. */
static void wait_link(QTestState *qts, const char *state)
{
    for (int i = 0; i < 2000; i++) {
        g_autoptr(QList) list = query(qts);
        QDict *backend = first_backend(vm_of(list));

        if (!strcmp(qdict_get_str(backend, "link"), state)) {
            return;
        }
        g_usleep(10 * 1000);
    }
    g_assert_not_reached();
}

/* Faults are served, writes reach the manager's memory. */
static void test_serve(void)
{
    FakeManager *m = fake_manager_new();
    QTestState *qts = start(m, "");
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
    QTestState *qts = start(m, ",shards=3");
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

static void test_query(void)
{
    FakeManager *m = fake_manager_new();
    QTestState *qts = start(m, ",vm-name=other");
    QDict *vm, *stats;
    QList *list;

    g_assert_cmpstr(m->hello.vm_name, ==, "other");
    m->stats->resident_bytes = 12345 * 4096;
    m->stats->limit_bytes = 8 * MIB;
    m->stats->store_errors = 3;
    m->stats->state = UFFDMM_WORKER_STORE_FULL;

    list = query(qts);
    vm = vm_of(list);
    g_assert_cmpstr(qdict_get_str(vm, "vm-name"), ==, "other");
    g_assert_cmpstr(qdict_get_str(vm, "socket"), ==, m->path);
    g_assert_cmpstr(qdict_get_str(first_backend(vm), "id"), ==, "mem0");
    g_assert_cmpint(qdict_get_int(first_backend(vm), "size"), ==, RAM_SIZE);
    g_assert_cmpstr(qdict_get_str(first_backend(vm), "link"), ==, "live");
    g_assert_cmpint(qdict_get_int(first_backend(vm), "reconnects"), ==, 0);
    stats = qdict_get_qdict(vm, "stats");
    g_assert_cmpint(qdict_get_int(stats, "resident"), ==, 12345 * 4096);
    g_assert_cmpint(qdict_get_int(stats, "limit"), ==, 8 * MIB);
    g_assert_cmpint(qdict_get_int(stats, "store-errors"), ==, 3);
    g_assert_cmpstr(qdict_get_str(stats, "state"), ==, "store-full");
    qobject_unref(list);

    m->stats->state = 77;
    list = query(qts);
    stats = qdict_get_qdict(vm_of(list), "stats");
    g_assert_cmpstr(qdict_get_str(stats, "state"), ==, "unknown");
    qobject_unref(list);

    qtest_quit(qts);
    fake_manager_free(m);
}

static void *touch_thread(void *opaque)
{
    QTestState *qts = opaque;

    g_assert_cmpuint(qtest_readb(qts, PFN(9)), ==, fake_manager_byte(9));
    return NULL;
}

/* The main loop waits in a fault: the service thread and the query do not. */
static void test_main_loop_blocked(void)
{
    FakeManager *m = fake_manager_new();
    g_autofree char *args = NULL;
    QList *caps = qlist_new();
    QTestState *qts;
    struct pollfd fault;
    GThread *toucher;
    QDict *rsp;

    args = g_strdup_printf(PC MEM0 ",socket=%s", m->bios, m->path);
    qlist_append_str(caps, "oob");
    qts = qtest_init_with_env_and_capabilities(NULL, args, caps, true);
    qobject_unref(caps);

    g_assert_cmpuint(qtest_readb(qts, PFN(1)), ==, fake_manager_byte(1));
    m->hold_faults = true;
    g_assert_cmpint(fake_manager_zap(m, 0, 100, PFN(1), PFN(1)), ==, 0);
    toucher = g_thread_new("toucher", touch_thread, qts);

    /* an ordinary command is not answered: the main loop is blocked */
    fault = (struct pollfd) { .fd = m->regions[0].uffd[0], .events = POLLIN };
    g_assert_cmpint(poll(&fault, 1, 20000), ==, 1);
    qtest_qmp_send(qts, "{'execute': 'query-status', 'id': 'late'}");

    qtest_qmp_send(qts, "{'exec-oob': 'uffdmm-query', 'id': 'oob'}");
    rsp = qtest_qmp_receive(qts);
    g_assert_cmpstr(qdict_get_str(rsp, "id"), ==, "oob");
    g_assert_true(qdict_haskey(rsp, "return"));
    qobject_unref(rsp);
    g_assert_cmpint(fake_manager_zap(m, 0, 100, 0, RAM_SIZE), ==, 0);

    fake_manager_release_faults(m);
    rsp = qtest_qmp_receive(qts);
    g_assert_cmpstr(qdict_get_str(rsp, "id"), ==, "late");
    qobject_unref(rsp);
    g_thread_join(toucher);

    qtest_quit(qts);
    fake_manager_free(m);
}

static void test_set_policy(void)
{
    FakeManager *m = fake_manager_new();
    QTestState *qts = start(m, "");
    char *hmp;

    qtest_qmp_assert_success(qts, "{'execute': 'uffdmm-set-policy',"
                             " 'arguments': {'limit': 8388608}}");
    fake_manager_wait(m, m->policies == 1);
    g_assert_cmpuint(m->policy.fields, ==, UFFDMM_POLICY_LIMIT);
    g_assert_cmpuint(m->policy.limit_bytes, ==, 8 * MIB);

    qtest_qmp_assert_success(qts, "{'execute': 'uffdmm-set-policy',"
                             " 'arguments': {'readahead': 16,"
                             "               'vm-name': 'guest1'}}");
    fake_manager_wait(m, m->policies == 2);
    g_assert_cmpuint(m->policy.fields, ==, UFFDMM_POLICY_READAHEAD);
    g_assert_cmpuint(m->policy.readahead_pages, ==, 16);

    hmp = qtest_hmp(qts, "uffdmm_set_policy limit 4M");
    g_assert_cmpstr(hmp, ==, "");
    g_free(hmp);
    fake_manager_wait(m, m->policies == 3);
    g_assert_cmpuint(m->policy.limit_bytes, ==, 4 * MIB);
    hmp = qtest_hmp(qts, "info uffdmm");
    g_assert_nonnull(strstr(hmp, "limit: 4 MiB"));
    g_assert_nonnull(strstr(hmp, "readahead: 16 pages"));
    g_free(hmp);
    hmp = qtest_hmp(qts, "uffdmm_set_policy speed 4");
    g_assert_nonnull(strstr(hmp, "'speed' is neither"));
    g_free(hmp);

    qtest_quit(qts);
    fake_manager_free(m);
}

static void assert_policy_error(QTestState *qts, const char *json,
                                const char *part)
{
    QDict *rsp = qtest_qmp(qts, "{'execute': 'uffdmm-set-policy',"
                           " 'arguments': %p}",
                           qobject_from_json(json, &error_abort));
    const char *desc;

    g_assert_true(qdict_haskey(rsp, "error"));
    desc = qdict_get_str(qdict_get_qdict(rsp, "error"), "desc");
    if (!strstr(desc, part)) {
        g_test_message("'%s' is not in '%s'", part, desc);
        g_assert_not_reached();
    }
    qobject_unref(rsp);
}

static void test_set_policy_errors(void)
{
    FakeManager *m = fake_manager_new();
    QTestState *qts = start(m, "");
    QList *list;

    assert_policy_error(qts, "{}", "at least one of");
    assert_policy_error(qts, "{\"limit\": 4095}", "limit 4095 is less than");
    assert_policy_error(qts, "{\"readahead\": 0}", "readahead 0 is not");
    assert_policy_error(qts, "{\"readahead\": 65}", "readahead 65 is not");
    assert_policy_error(qts, "{\"limit\": 4096, \"vm-name\": \"x\"}",
                        "has vm-name 'x'");
    g_assert_cmpuint(m->policies, ==, 0);

    /* refused by the manager: accepted here, and reported by the query */
    m->refuse_policy = (char *)"limit 4096 is less than what is locked";
    qtest_qmp_assert_success(qts, "{'execute': 'uffdmm-set-policy',"
                             " 'arguments': {'limit': 4096}}");
    fake_manager_wait(m, m->policies == 1);
    for (;;) {
        bool seen;

        list = query(qts);
        seen = qdict_haskey(first_backend(vm_of(list)), "policy-error");
        if (seen) {
            g_assert_cmpstr(qdict_get_str(first_backend(vm_of(list)),
                                          "policy-error"), ==,
                            m->refuse_policy);
        }
        qobject_unref(list);
        if (seen) {
            break;
        }
        g_usleep(1000);
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
    QTestState *qts = start(m, "");
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

/* virtio-mem discards all of its memory when it is realized. */
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
    qts = qtest_initf("-machine pc -m 128M,maxmem=1G " BARE, m->bios);
    m->initial_entry = discard_case_entry;
    qtest_qmp_assert_success(qts, "{'execute': 'object-add', 'arguments':"
                             " {'qom-type': 'memory-backend-external',"
                             "  'id': 'vmem0', 'size': 134217728,"
                             "  'socket': %s, 'vm-name': 'x'}}", m->path);
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

/* The link is lost: nothing is, and who waited goes on afterwards. */
static void test_reconnect(void)
{
    FakeManager *m = fake_manager_new();
    QTestState *qts = start(m, ",shards=2,reconnect-ms=20");
    GThread *toucher;
    QDict *rsp;
    QList *list;

    g_assert_cmpuint(qtest_readb(qts, PFN(2)), ==, fake_manager_byte(2));
    m->refuse_reconnects = UINT_MAX;
    fake_manager_drop(m);
    wait_link(qts, "lost");

    /* memory that is present goes on */
    g_assert_cmpuint(qtest_readb(qts, PFN(2)), ==, fake_manager_byte(2));
    rsp = qtest_qmp(qts, "{'execute': 'uffdmm-set-policy',"
                    " 'arguments': {'limit': 8388608}}");
    g_assert_nonnull(strstr(qdict_get_str(qdict_get_qdict(rsp, "error"),
                                          "desc"), "no connection"));
    qobject_unref(rsp);

    toucher = g_thread_new("toucher", touch_thread, qts);
    fake_manager_wait(m, m->reconnects_refused >= 3);
    g_mutex_lock(&m->lock);
    g_assert_cmpuint(m->reconnects, ==, 0);
    m->refuse_reconnects = 0;
    g_mutex_unlock(&m->lock);
    g_thread_join(toucher);

    wait_link(qts, "live");
    list = query(qts);
    g_assert_cmpint(qdict_get_int(first_backend(vm_of(list)), "reconnects"),
                    ==, 1);
    qobject_unref(list);
    g_assert_cmpuint(qtest_readb(qts, RAM_SIZE - 1), ==,
                     fake_manager_byte(RAM_SIZE / FAKE_PAGE_SIZE - 1));

    /* and again */
    fake_manager_drop(m);
    fake_manager_wait(m, m->reconnects == 2);

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
        list = query(qts);
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

    list = query(qts);
    g_assert_cmpuint(qlist_size(qdict_get_qlist(vm_of(list), "backends")),
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
    qtest_add_func("/uffdmm/query", test_query);
    qtest_add_func("/uffdmm/main-loop-blocked", test_main_loop_blocked);
    qtest_add_func("/uffdmm/set-policy", test_set_policy);
    qtest_add_func("/uffdmm/set-policy-errors", test_set_policy_errors);
    qtest_add_func("/uffdmm/zap", test_zap);
    qtest_add_func("/uffdmm/discard", test_discard);
    qtest_add_func("/uffdmm/reconnect", test_reconnect);
    qtest_add_func("/uffdmm/object-del", test_object_del);
    qtest_add_func("/uffdmm/numa-and-dimm", test_numa_and_dimm);

    return g_test_run();
}
