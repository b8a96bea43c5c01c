/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * memory-backend-external in the monitor: queries and policy
 *
 * Events are in uffdmm-event-test.c.
 */

#include "qemu/osdep.h"
#include "libqtest.h"
#include "qapi/error.h"
#include "qemu/cutils.h"
#include "qobject/qdict.h"
#include "qobject/qjson.h"
#include "qobject/qlist.h"
#include "uffdmm-machine.h"
#include <poll.h>

/* Members of UffdmmStats, and where their values come from */
static const struct {
    const char *name;
    size_t offset;
} stats_members[] = {
#define MEMBER(name, field) { name, offsetof(struct uffdmm_stats, field) }
    MEMBER("ram", ram_bytes),
    MEMBER("limit", limit_bytes),
    MEMBER("readahead", readahead_pages),
    MEMBER("demote-after", demote_after_ms),
    MEMBER("min", min_bytes),
    MEMBER("max", max_bytes),
    MEMBER("shares", shares),
    MEMBER("priority", priority),
    MEMBER("track-permille", track_permille),
    MEMBER("resident", resident_bytes),
    MEMBER("resident-max", resident_max_bytes),
    MEMBER("stored", stored_bytes),
    MEMBER("zero", zero_bytes),
    MEMBER("arena-bytes", arena_bytes),
    MEMBER("table-bytes", table_bytes),
    MEMBER("worker-rss", worker_rss_bytes),
    MEMBER("faults", faults),
    MEMBER("faults-zero", faults_zero),
    MEMBER("faults-store", faults_store),
    MEMBER("faults-deferred", faults_deferred),
    MEMBER("faults-waited", faults_waited),
    MEMBER("fault-time", fault_ns),
    MEMBER("readahead-pages", readahead_in),
    MEMBER("readahead-wasted", readahead_wasted),
    MEMBER("prefetched", prefetched),
    MEMBER("evicted", evicted),
    MEMBER("evicted-clean", evicted_clean),
    MEMBER("evicted-zero", evicted_zero),
    MEMBER("evicted-cancelled", evicted_cancelled),
    MEMBER("pinned", pinned),
    MEMBER("demoted", demoted),
    MEMBER("passed-on", passed_on),
    MEMBER("discarded", discarded),
    MEMBER("store-reads", store_reads),
    MEMBER("store-read-bytes", store_read_bytes),
    MEMBER("store-writes", store_writes),
    MEMBER("store-write-bytes", store_write_bytes),
    MEMBER("store-errors", store_errors),
    MEMBER("checksum-errors", checksum_errors),
    MEMBER("lost-pages", lost_pages),
    MEMBER("bypass-pages", bypass_pages),
    MEMBER("migration-swap-ins", migration_swap_ins),
    MEMBER("recoveries", recoveries),
    MEMBER("recovery-time", recovery_ns),
#undef MEMBER
};

static void test_query(void)
{
    FakeManager *m = fake_manager_new();
    QTestState *qts = uffdmm_start(m, ",vm-name=other");
    QDict *vm, *backend, *stats;
    QList *list;

    g_assert_cmpstr(m->hello.vm_name, ==, "other");
    for (int i = 0; i < ARRAY_SIZE(stats_members); i++) {
        *(uint64_t *)((uint8_t *)m->stats + stats_members[i].offset) =
            1000 + i;
    }
    m->stats->opt_out = 1;
    m->stats->state = UFFDMM_WORKER_STORE_FULL;

    list = uffdmm_query(qts);
    vm = uffdmm_vm(list);
    backend = uffdmm_first_backend(vm);
    g_assert_cmpstr(qdict_get_str(vm, "vm-name"), ==, "other");
    g_assert_cmpstr(qdict_get_str(vm, "socket"), ==, m->path);
    g_assert_cmpstr(qdict_get_str(backend, "id"), ==, "mem0");
    g_assert_cmpint(qdict_get_int(backend, "size"), ==, RAM_SIZE);
    g_assert_cmpstr(qdict_get_str(backend, "link"), ==, "live");
    g_assert_cmpint(qdict_get_int(backend, "reconnects"), ==, 0);
    stats = qdict_get_qdict(vm, "stats");
    for (int i = 0; i < ARRAY_SIZE(stats_members); i++) {
        g_test_message("%s", stats_members[i].name);
        g_assert_cmpint(qdict_get_int(stats, stats_members[i].name), ==,
                        1000 + i);
    }
    g_assert_cmpint(qdict_get_int(stats, "worker-pid"), ==, getpid());
    g_assert_cmpstr(qdict_get_str(stats, "state"), ==, "store-full");
    g_assert_true(qdict_get_bool(stats, "opt-out"));
    g_assert_false(qdict_get_bool(stats, "tracking"));
    /* and nothing else but the list of tiers and the age of the heartbeat */
    g_assert_cmpuint(qdict_size(stats), ==, ARRAY_SIZE(stats_members) + 6);
    qobject_unref(list);

    m->stats->age_tracking = 1;
    m->stats->state = 77;
    list = uffdmm_query(qts);
    stats = qdict_get_qdict(uffdmm_vm(list), "stats");
    g_assert_cmpstr(qdict_get_str(stats, "state"), ==, "unknown");
    g_assert_true(qdict_get_bool(stats, "tracking"));
    qobject_unref(list);

    qtest_quit(qts);
    fake_manager_free(m);
}

static QDict *tier_of(QList *list, unsigned i)
{
    QList *tiers = qdict_get_qlist(qdict_get_qdict(uffdmm_vm(list), "stats"),
                                   "tiers");
    const QListEntry *entry = qlist_first(tiers);

    while (i--) {
        entry = qlist_next(entry);
    }
    return qobject_to(QDict, qlist_entry_obj(entry));
}

static void test_tiers(void)
{
    static const struct {
        uint64_t state;
        const char *name;
    } states[] = {
        { UFFDMM_TIER_OK, "ok" }, { UFFDMM_TIER_FULL, "full" },
        { UFFDMM_TIER_SLOW, "slow" }, { UFFDMM_TIER_ERROR, "error" },
        { UFFDMM_TIER_AWAY, "away" }, { 5, "unknown" },
        { UINT64_MAX, "unknown" },
    };
    FakeManager *m = fake_manager_new();
    QTestState *qts = uffdmm_start(m, "");
    QDict *tier;
    QList *list;
    char *hmp;

    m->tiers[1]->capacity_bytes = 64 * MIB;
    m->tiers[1]->used_bytes = 3 * MIB;
    m->tiers[1]->stored_pages = 1001;
    m->tiers[1]->reads = 1002;
    m->tiers[1]->writes = 1003;
    m->tiers[1]->errors = 1004;
    m->tiers[1]->copy_pages = 1005;
    m->tiers[1]->stored_bytes = 1006;
    m->tiers[1]->read_bytes = 1007;
    m->tiers[1]->write_bytes = 1008;
    m->tiers[1]->checksum_errors = 1009;
    m->tiers[1]->refused = 1010;
    m->tiers[1]->reconnects = 1011;
    m->tiers[1]->last_error_ns = 1012;
    pstrcpy(m->tiers[1]->last_error, sizeof(m->tiers[1]->last_error),
            "page 5: checksum does not match");
    m->tiers[2]->shared = 1;
    m->tiers[2]->state = UFFDMM_TIER_AWAY;

    list = uffdmm_query(qts);
    g_assert_cmpuint(qlist_size(qdict_get_qlist(qdict_get_qdict(
                         uffdmm_vm(list), "stats"), "tiers")), ==, FAKE_TIERS);
    tier = tier_of(list, 0);
    g_assert_cmpstr(qdict_get_str(tier, "name"), ==, "zero");
    g_assert_cmpstr(qdict_get_str(tier, "type"), ==, "zero");
    tier = tier_of(list, 1);
    g_assert_cmpstr(qdict_get_str(tier, "name"), ==, "ram");
    g_assert_cmpstr(qdict_get_str(tier, "type"), ==, "pool");
    g_assert_cmpstr(qdict_get_str(tier, "state"), ==, "ok");
    g_assert_false(qdict_get_bool(tier, "shared"));
    g_assert_cmpint(qdict_get_int(tier, "capacity"), ==, 64 * MIB);
    g_assert_cmpint(qdict_get_int(tier, "used"), ==, 3 * MIB);
    g_assert_cmpint(qdict_get_int(tier, "stored-pages"), ==, 1001);
    g_assert_cmpint(qdict_get_int(tier, "reads"), ==, 1002);
    g_assert_cmpint(qdict_get_int(tier, "writes"), ==, 1003);
    g_assert_cmpint(qdict_get_int(tier, "errors"), ==, 1004);
    g_assert_cmpint(qdict_get_int(tier, "copy-pages"), ==, 1005);
    g_assert_cmpint(qdict_get_int(tier, "stored-bytes"), ==, 1006);
    g_assert_cmpint(qdict_get_int(tier, "read-bytes"), ==, 1007);
    g_assert_cmpint(qdict_get_int(tier, "write-bytes"), ==, 1008);
    g_assert_cmpint(qdict_get_int(tier, "checksum-errors"), ==, 1009);
    g_assert_cmpint(qdict_get_int(tier, "refused"), ==, 1010);
    g_assert_cmpint(qdict_get_int(tier, "server-reconnects"), ==, 1011);
    g_assert_cmpint(qdict_get_int(tier, "last-error-time"), ==, 1012);
    g_assert_cmpstr(qdict_get_str(tier, "last-error"), ==,
                    "page 5: checksum does not match");
    tier = tier_of(list, 2);
    g_assert_cmpstr(qdict_get_str(tier, "type"), ==, "file");
    g_assert_true(qdict_get_bool(tier, "shared"));
    g_assert_false(qdict_haskey(tier, "last-error"));
    g_assert_false(qdict_haskey(tier, "last-error-time"));
    qobject_unref(list);

    hmp = qtest_hmp(qts, "info uffdmm");
    g_assert_nonnull(strstr(hmp, "tier 'zero': zero, ok, 0 B used of no "
                            "limit"));
    g_assert_nonnull(strstr(hmp, "tier 'ram': pool, ok, 3 MiB used of 64 MiB,"
                            " 1001 pages, 1002 reads, 1003 writes, "
                            "1004 errors"));
    g_assert_nonnull(strstr(hmp, "last error: page 5: checksum does not "
                            "match"));
    g_assert_nonnull(strstr(hmp, "tier 'disk': file (shared), away, "));
    g_free(hmp);

    for (int i = 0; i < ARRAY_SIZE(states); i++) {
        m->tiers[2]->state = states[i].state;
        list = uffdmm_query(qts);
        g_assert_cmpstr(qdict_get_str(tier_of(list, 2), "state"), ==,
                        states[i].name);
        qobject_unref(list);
    }

    /* a manager that lies: no more than it has mapped, and text at least */
    m->stats->nr_tiers = UINT64_MAX;
    m->tiers[2]->type = 99;
    memset(m->tiers[2]->name, 0xff, sizeof(m->tiers[2]->name));
    memset(m->tiers[2]->last_error, 0xff, sizeof(m->tiers[2]->last_error));
    list = uffdmm_query(qts);
    g_assert_cmpuint(qlist_size(qdict_get_qlist(qdict_get_qdict(
                         uffdmm_vm(list), "stats"), "tiers")), ==, FAKE_TIERS);
    tier = tier_of(list, 2);
    g_assert_cmpstr(qdict_get_str(tier, "type"), ==, "unknown");
    g_assert_true(g_utf8_validate(qdict_get_str(tier, "name"), -1, NULL));
    g_assert_true(g_utf8_validate(qdict_get_str(tier, "last-error"), -1,
                                  NULL));
    qobject_unref(list);

    qtest_quit(qts);
    fake_manager_free(m);
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
    toucher = g_thread_new("toucher", uffdmm_touch, qts);

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

static const struct {
    const char *words;
    uint32_t field;
    const char *shown;
} hmp_settings[] = {
    { "min 1", UFFDMM_POLICY_MIN, " min: 1 MiB" },
    { "max 0", UFFDMM_POLICY_MAX, " max: none" },
    { "shares 7", UFFDMM_POLICY_SHARES, "shares: 7\r\n" },
    { "priority 100", UFFDMM_POLICY_PRIORITY, "priority: 100\r\n" },
    { "opt-out off", UFFDMM_POLICY_OPT_OUT, "opt-out: off" },
    { "track-permille 0", UFFDMM_POLICY_TRACK, "track-permille: 0 " },
};

static void test_set_policy(void)
{
    FakeManager *m = fake_manager_new();
    QTestState *qts = uffdmm_start(m, "");
    QList *list;
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
    g_assert_nonnull(strstr(hmp, "'speed' is none of"));
    g_free(hmp);

    qtest_qmp_assert_success(qts, "{'execute': 'uffdmm-set-policy',"
                             " 'arguments': {'demote-after': 60000,"
                             "   'tiers': [{'name': 'disk', 'size': 8192},"
                             "             {'name': 'ram', 'size': 4096}]}}");
    fake_manager_wait(m, m->policies == 4);
    g_assert_cmpuint(m->policy.fields, ==,
                     UFFDMM_POLICY_DEMOTE | UFFDMM_POLICY_TIERS);
    g_assert_cmpuint(m->policy.demote_after_ms, ==, 60000);
    g_assert_cmphex(m->policy.tier_mask, ==, 6);
    g_assert_cmpuint(m->policy.tier_bytes[1], ==, 4096);
    g_assert_cmpuint(m->policy.tier_bytes[2], ==, 8192);

    list = uffdmm_query(qts);
    g_assert_false(qdict_haskey(tier_of(list, 0), "budget"));
    g_assert_cmpint(qdict_get_int(tier_of(list, 1), "budget"), ==, 4096);
    g_assert_cmpint(qdict_get_int(tier_of(list, 2), "budget"), ==, 8192);
    qobject_unref(list);

    hmp = qtest_hmp(qts, "uffdmm_set_policy tier ram=32M");
    g_assert_cmpstr(hmp, ==, "");
    g_free(hmp);
    fake_manager_wait(m, m->policies == 5);
    g_assert_cmpuint(m->policy.fields, ==, UFFDMM_POLICY_TIERS);
    g_assert_cmphex(m->policy.tier_mask, ==, 2);
    g_assert_cmpuint(m->policy.tier_bytes[1], ==, 32 * MIB);
    hmp = qtest_hmp(qts, "uffdmm_set_policy demote-after 250");
    g_assert_cmpstr(hmp, ==, "");
    g_free(hmp);
    fake_manager_wait(m, m->policies == 6);
    hmp = qtest_hmp(qts, "info uffdmm");
    g_assert_nonnull(strstr(hmp, "demote-after: 250 ms"));
    g_assert_nonnull(strstr(hmp, "budget: 32 MiB"));
    g_free(hmp);
    qtest_qmp_assert_success(qts, "{'execute': 'uffdmm-set-policy',"
                             " 'arguments': {'min': 4194304,"
                             "   'max': 8388608, 'shares': 300,"
                             "   'priority': 0, 'opt-out': true,"
                             "   'track-permille': 40}}");
    fake_manager_wait(m, m->policies == 7);
    g_assert_cmpuint(m->policy.fields, ==,
                     UFFDMM_POLICY_MIN | UFFDMM_POLICY_MAX |
                     UFFDMM_POLICY_SHARES | UFFDMM_POLICY_PRIORITY |
                     UFFDMM_POLICY_OPT_OUT | UFFDMM_POLICY_TRACK);
    g_assert_cmpuint(m->policy.min_bytes, ==, 4 * MIB);
    g_assert_cmpuint(m->policy.max_bytes, ==, 8 * MIB);
    g_assert_cmpuint(m->policy.shares, ==, 300);
    g_assert_cmpuint(m->policy.priority, ==, 0);
    g_assert_cmpuint(m->policy.opt_out, ==, 1);
    g_assert_cmpuint(m->policy.track_permille, ==, 40);
    hmp = qtest_hmp(qts, "info uffdmm");
    g_assert_nonnull(strstr(hmp, " min: 4 MiB"));
    g_assert_nonnull(strstr(hmp, " max: 8 MiB"));
    g_assert_nonnull(strstr(hmp, "shares: 300"));
    g_assert_nonnull(strstr(hmp, "priority: 0"));
    g_assert_nonnull(strstr(hmp, "opt-out: on"));
    g_assert_nonnull(strstr(hmp, "track-permille: 40 (tracking: off)"));
    g_free(hmp);

    for (int i = 0; i < ARRAY_SIZE(hmp_settings); i++) {
        g_autofree char *line = g_strconcat("uffdmm_set_policy ",
                                            hmp_settings[i].words, NULL);

        hmp = qtest_hmp(qts, "%s", line);
        g_assert_cmpstr(hmp, ==, "");
        g_free(hmp);
        fake_manager_wait(m, m->policies == 8 + i);
        g_assert_cmpuint(m->policy.fields, ==, hmp_settings[i].field);
        hmp = qtest_hmp(qts, "info uffdmm");
        g_assert_nonnull(strstr(hmp, hmp_settings[i].shown));
        g_free(hmp);
    }
    hmp = qtest_hmp(qts, "uffdmm_set_policy opt-out perhaps");
    g_assert_nonnull(strstr(hmp, "opt-out"));
    g_free(hmp);
    hmp = qtest_hmp(qts, "uffdmm_set_policy shares many");
    g_assert_nonnull(strstr(hmp, "'many' is not a number"));
    g_free(hmp);
    hmp = qtest_hmp(qts, "uffdmm_set_policy tier ram");
    g_assert_nonnull(strstr(hmp, "'ram' is not of the form TIER=SIZE"));
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
    QTestState *qts = uffdmm_start(m, "");
    QDict *backend;
    QList *list;

    assert_policy_error(qts, "{}", "at least one of");
    assert_policy_error(qts, "{\"limit\": 4095}", "limit 4095 is less than");
    assert_policy_error(qts, "{\"readahead\": 0}", "readahead 0 is not");
    assert_policy_error(qts, "{\"readahead\": 65}", "readahead 65 is not");
    assert_policy_error(qts, "{\"limit\": 4096, \"vm-name\": \"x\"}",
                        "has vm-name 'x'");
    assert_policy_error(qts, "{\"tiers\": []}", "at least one of");
    assert_policy_error(qts, "{\"shares\": 0}",
                        "shares 0 is not in the range 1 to 10000");
    assert_policy_error(qts, "{\"shares\": 10001}", "shares 10001 is not");
    assert_policy_error(qts, "{\"priority\": 101}",
                        "priority 101 is not in the range 0 to 100");
    assert_policy_error(qts, "{\"track-permille\": 1001}",
                        "track-permille 1001 is not in the range 0 to 1000");
    assert_policy_error(qts, "{\"min\": 8192, \"max\": 4096}",
                        "min 8192 is more than max 4096");
    assert_policy_error(qts, "{\"tiers\": [{\"name\": \"tape\","
                        " \"size\": 1}]}", "VM 'guest1' has no tier 'tape', "
                        "but zero, ram, disk");
    assert_policy_error(qts, "{\"limit\": 4096, \"tiers\": ["
                        " {\"name\": \"ram\", \"size\": 1},"
                        " {\"name\": \"ram\", \"size\": 2}]}",
                        "tier 'ram' is named twice");
    g_assert_cmpuint(m->policies, ==, 0);

    /* refused by the manager: accepted here, and reported by the query */
    m->refuse_policy = (char *)"limit 4096 is less than what is locked";
    qtest_qmp_assert_success(qts, "{'execute': 'uffdmm-set-policy',"
                             " 'arguments': {'limit': 4096}}");
    fake_manager_wait(m, m->policies == 1);
    for (;;) {
        bool seen;

        list = uffdmm_query(qts);
        backend = uffdmm_first_backend(uffdmm_vm(list));
        seen = qdict_haskey(backend, "policy-error");
        if (seen) {
            g_assert_cmpstr(qdict_get_str(backend, "policy-error"), ==,
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

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    qtest_add_func("/uffdmm/query", test_query);
    qtest_add_func("/uffdmm/tiers", test_tiers);
    qtest_add_func("/uffdmm/main-loop-blocked", test_main_loop_blocked);
    qtest_add_func("/uffdmm/set-policy", test_set_policy);
    qtest_add_func("/uffdmm/set-policy-errors", test_set_policy_errors);

    return g_test_run();
}
