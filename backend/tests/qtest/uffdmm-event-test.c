/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * memory-backend-external: QMP events
 */

#include "qemu/osdep.h"
#include "libqtest.h"
#include "qemu/cutils.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"
#include "uffdmm-machine.h"
#include <poll.h>

#define LOST     "UFFDMM_MANAGER_LOST"
#define ATTACHED "UFFDMM_MANAGER_ATTACHED"
#define TROUBLE  "UFFDMM_STORE_ERROR"

/*
 * Data of the next such event, or NULL if there is none in so many ms.  Other
 * events before it are dropped.
 */
static QDict *event_within(QTestState *qts, const char *name, int ms)
{
    gint64 until = g_get_monotonic_time() + ms * G_TIME_SPAN_MILLISECOND;

    for (;;) {
        bool late = g_get_monotonic_time() > until;
        QDict *event, *data;

        /* events that have come are kept while its reply is waited for */
        qtest_qmp_assert_success(qts, "{'execute': 'query-status'}");
        event = qtest_qmp_event_ref(qts, name);
        if (event) {
            data = qobject_ref(qdict_get_qdict(event, "data"));
            qobject_unref(event);
            return data;
        }
        if (late) {
            return NULL;
        }
        g_usleep(10 * 1000);
    }
}

static QDict *wait_event(QTestState *qts, const char *name)
{
    QDict *data = event_within(qts, name, 20000);

    g_assert_nonnull(data);
    return data;
}

/*
 * The next return of the manager.  The event of the first time is emitted
 * while the monitor is being connected, so that it may be seen or not.
 */
static QDict *wait_attached_again(QTestState *qts)
{
    QDict *data = wait_event(qts, ATTACHED);

    if (!qdict_get_int(data, "reconnects")) {
        qobject_unref(data);
        data = wait_event(qts, ATTACHED);
    }
    return data;
}

/* One loss and one return, in this order, however many attempts there were */
static void test_event_lost(void)
{
    FakeManager *m = fake_manager_new();
    QTestState *qts = uffdmm_start(m, ",reconnect-ms=20");
    QDict *data;

    m->refuse_reconnects = 3;
    m->stats->worker_pid = 4711;
    fake_manager_drop(m);
    fake_manager_wait(m, m->reconnects_refused == 3);

    data = wait_event(qts, LOST);
    g_assert_cmpstr(qdict_get_str(data, "id"), ==, "mem0");
    g_assert_cmpstr(qdict_get_str(data, "vm-name"), ==, "guest1");
    g_assert_cmpstr(qdict_get_str(data, "reason"), !=, "");
    qobject_unref(data);
    data = wait_attached_again(qts);
    g_assert_cmpstr(qdict_get_str(data, "id"), ==, "mem0");
    g_assert_cmpstr(qdict_get_str(data, "vm-name"), ==, "guest1");
    g_assert_cmpint(qdict_get_int(data, "worker-pid"), ==, 4711);
    g_assert_cmpint(qdict_get_int(data, "reconnects"), ==, 1);
    qobject_unref(data);
    g_assert_null(event_within(qts, LOST, 100));

    qtest_quit(qts);
    fake_manager_free(m);
}

/* Each loss is followed by its return: what comes before is dropped here. */
static void test_event_many_times(void)
{
    FakeManager *m = fake_manager_new();
    QTestState *qts = uffdmm_start(m, ",reconnect-ms=1");
    const int nr = 20;

    for (int i = 1; i <= nr; i++) {
        fake_manager_drop(m);
        fake_manager_wait(m, m->reconnects == i);
        uffdmm_wait_link(qts, "live");
    }
    for (int i = 1; i <= nr; i++) {
        QDict *data = wait_event(qts, LOST);

        qobject_unref(data);
        data = wait_attached_again(qts);
        g_assert_cmpint(qdict_get_int(data, "reconnects"), ==, i);
        qobject_unref(data);
    }

    qtest_quit(qts);
    fake_manager_free(m);
}

static void test_event_attached(void)
{
    FakeManager *m = fake_manager_new();
    QTestState *qts = qtest_init("-machine none");
    QDict *data;

    for (int i = 0; i < 2; i++) {
        qtest_qmp_assert_success(qts, "{'execute': 'object-add', 'arguments':"
                                 " {'qom-type': 'memory-backend-external',"
                                 "  'id': 'hot', 'size': 8192,"
                                 "  'socket': %s, 'vm-name': 'x'}}", m->path);
        data = wait_event(qts, ATTACHED);
        g_assert_cmpstr(qdict_get_str(data, "id"), ==, "hot");
        g_assert_cmpstr(qdict_get_str(data, "vm-name"), ==, "x");
        g_assert_cmpint(qdict_get_int(data, "reconnects"), ==, 0);
        qobject_unref(data);
        qtest_qmp_assert_success(qts, "{'execute': 'object-del',"
                                 " 'arguments': {'id': 'hot'}}");
    }
    /* what is given back is not lost */
    g_assert_null(event_within(qts, LOST, 100));

    qtest_quit(qts);
    fake_manager_free(m);
}

/* The main loop waits for the manager that is gone: the event comes. */
static void test_event_main_loop_blocked(void)
{
    FakeManager *m = fake_manager_new();
    g_autofree char *args = g_strdup_printf(PC MEM0 ",socket=%s,"
                                            "reconnect-ms=20", m->bios,
                                            m->path);
    QTestState *qts = qtest_init(args);
    struct pollfd fault;
    GThread *toucher;
    bool again;
    QDict *rsp;

    m->hold_faults = true;
    /* from its reply on, the thread of the manager knows that */
    g_assert_cmpint(fake_manager_zap(m, 0, 100, PFN(1), PFN(1)), ==, 0);
    toucher = g_thread_new("toucher", uffdmm_touch, qts);
    fault = (struct pollfd) { .fd = m->regions[0].uffd[0], .events = POLLIN };
    g_assert_cmpint(poll(&fault, 1, 20000), ==, 1);
    qtest_qmp_send(qts, "{'execute': 'query-status', 'id': 'late'}");

    m->refuse_reconnects = UINT_MAX;
    fake_manager_drop(m);
    rsp = qtest_qmp_eventwait_ref(qts, LOST);
    qobject_unref(rsp);
    fake_manager_wait(m, m->reconnects_refused >= 3);
    g_mutex_lock(&m->lock);
    m->refuse_reconnects = 0;
    g_mutex_unlock(&m->lock);
    do {
        rsp = qtest_qmp_eventwait_ref(qts, ATTACHED);
        again = qdict_get_int(qdict_get_qdict(rsp, "data"), "reconnects");
        qobject_unref(rsp);
    } while (!again);

    fake_manager_release_faults(m);
    rsp = qtest_qmp_receive(qts);
    g_assert_cmpstr(qdict_get_str(rsp, "id"), ==, "late");
    qobject_unref(rsp);
    g_thread_join(toucher);

    qtest_quit(qts);
    fake_manager_free(m);
}

static void test_event_stores(void)
{
    FakeManager *m = fake_manager_new();
    QTestState *qts;
    QDict *data, *tier;

    /* what another backend has met */
    m->stats->store_errors = m->stats->lost_pages = 3;
    m->tiers[1]->state = UFFDMM_TIER_ERROR;
    qts = uffdmm_start(m, ",reconnect-ms=20");
    g_assert_null(event_within(qts, TROUBLE, 1500));

    /* a tier fails */
    m->stats->store_errors = 5;
    m->tiers[2]->errors = 2;
    m->tiers[2]->checksum_errors = 1;
    m->tiers[2]->state = UFFDMM_TIER_ERROR;
    pstrcpy(m->tiers[2]->last_error, sizeof(m->tiers[2]->last_error),
            "cannot write: Input/output error");
    data = wait_event(qts, TROUBLE);
    g_assert_cmpstr(qdict_get_str(data, "id"), ==, "mem0");
    g_assert_cmpstr(qdict_get_str(data, "vm-name"), ==, "guest1");
    g_assert_cmpstr(qdict_get_str(data, "state"), ==, "running");
    g_assert_cmpint(qdict_get_int(data, "store-errors"), ==, 5);
    g_assert_cmpint(qdict_get_int(data, "checksum-errors"), ==, 0);
    g_assert_cmpint(qdict_get_int(data, "lost-pages"), ==, 3);
    g_assert_cmpuint(qlist_size(qdict_get_qlist(data, "tiers")), ==, 1);
    tier = qobject_to(QDict, qlist_peek(qdict_get_qlist(data, "tiers")));
    g_assert_cmpstr(qdict_get_str(tier, "name"), ==, "disk");
    g_assert_cmpstr(qdict_get_str(tier, "state"), ==, "error");
    g_assert_cmpint(qdict_get_int(tier, "errors"), ==, 2);
    g_assert_cmpint(qdict_get_int(tier, "checksum-errors"), ==, 1);
    g_assert_cmpstr(qdict_get_str(tier, "reason"), ==,
                    "cannot write: Input/output error");
    qobject_unref(data);

    /* nothing new, and what is no trouble */
    m->tiers[1]->state = UFFDMM_TIER_FULL;
    m->tiers[2]->state = UFFDMM_TIER_SLOW;
    g_assert_null(event_within(qts, TROUBLE, 1500));

    /* its server is gone, which is no failed request */
    m->tiers[2]->state = UFFDMM_TIER_AWAY;
    data = wait_event(qts, TROUBLE);
    tier = qobject_to(QDict, qlist_peek(qdict_get_qlist(data, "tiers")));
    g_assert_cmpstr(qdict_get_str(tier, "state"), ==, "away");
    qobject_unref(data);

    /* all are full; a page is lost */
    m->stats->state = UFFDMM_WORKER_STORE_FULL;
    data = wait_event(qts, TROUBLE);
    g_assert_cmpstr(qdict_get_str(data, "state"), ==, "store-full");
    g_assert_true(qlist_empty(qdict_get_qlist(data, "tiers")));
    qobject_unref(data);
    m->stats->lost_pages = 4;
    data = wait_event(qts, TROUBLE);
    g_assert_cmpint(qdict_get_int(data, "lost-pages"), ==, 4);
    qobject_unref(data);

    /* the same manager again has nothing new, another one does */
    fake_manager_drop(m);
    qobject_unref(wait_attached_again(qts));
    g_assert_null(event_within(qts, TROUBLE, 1500));
    m->stats->worker_pid = 4711;
    fake_manager_drop(m);
    qobject_unref(wait_attached_again(qts));
    data = wait_event(qts, TROUBLE);
    g_assert_cmpint(qdict_get_int(data, "store-errors"), ==, 5);
    qobject_unref(data);

    qtest_quit(qts);
    fake_manager_free(m);
}

/* Errors without end make about one event a second. */
static void test_event_stores_rate(void)
{
    FakeManager *m = fake_manager_new();
    QTestState *qts = uffdmm_start(m, "");
    gint64 start = g_get_monotonic_time(), spent;
    int events = 0;
    QDict *data;

    do {
        m->stats->store_errors++;
        m->tiers[1]->errors++;
        /* wakes the service thread besides */
        g_assert_cmpint(fake_manager_zap(m, 0, 100, 0, PFN(1)), ==, 0);
        data = event_within(qts, TROUBLE, 0);
        if (data) {
            events++;
            qobject_unref(data);
        }
        spent = g_get_monotonic_time() - start;
    } while (spent < 3 * G_TIME_SPAN_SECOND);
    g_assert_cmpint(events, >=, 2);
    g_assert_cmpint(events, <=, spent / G_TIME_SPAN_SECOND + 1);

    qtest_quit(qts);
    fake_manager_free(m);
}

/* Backends with the same manager see the same trouble, and one tells. */
static void test_event_stores_once(void)
{
    FakeManager *m = fake_manager_new();
    QTestState *qts = qtest_initf("-machine q35 " BARE "-name two -m 64M "
                                  "-object memory-backend-external,id=m0,"
                                  "size=32M,socket=%s -numa node,memdev=m0 "
                                  "-object memory-backend-external,id=m1,"
                                  "size=32M,socket=%s -numa node,memdev=m1",
                                  m->bios, m->path, m->path);
    QDict *data;

    m->stats->store_errors = 1;
    data = wait_event(qts, TROUBLE);
    g_assert_cmpstr(qdict_get_str(data, "id"), ==, "m0");
    qobject_unref(data);
    g_assert_null(event_within(qts, TROUBLE, 1500));

    qtest_quit(qts);
    fake_manager_free(m);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    qtest_add_func("/uffdmm/event/lost", test_event_lost);
    qtest_add_func("/uffdmm/event/many-times", test_event_many_times);
    qtest_add_func("/uffdmm/event/attached", test_event_attached);
    qtest_add_func("/uffdmm/event/main-loop-blocked",
                   test_event_main_loop_blocked);
    qtest_add_func("/uffdmm/event/stores", test_event_stores);
    qtest_add_func("/uffdmm/event/stores-rate", test_event_stores_rate);
    qtest_add_func("/uffdmm/event/stores-once", test_event_stores_once);

    return g_test_run();
}
