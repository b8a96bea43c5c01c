/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A new worker takes over where nobody but a server, or a shared directory, has the pages;
 * and what the dead worker had sent there may still come.
 *
 * UFFDMM_KILLS is the number of kills for each set of tiers, UFFDMM_SEED where they begin.
 */
#include "unit.h"

#include "hier.h"
#include "kill_loop.h"
#include "late_link.h"
#include "nbd_rig.h"
#include "superblock.h"
#include "uffd_fixture.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { RAM_MIB = 48, EVERYDAY_KILLS = 6, EXPORT_MIB = 80, NBD = 1, TIER_MAX = 256 };

/* Slots in doubt come back soon, or a loop of kills would have none left. */
#define SOON "400"

#define LIMIT "16M"

static struct hier_options options_of(const char *first, const char *second,
                                      const char *third)
{
    return (struct hier_options){
        .variable = "UFFDMM_MANAGER_HOOKS",
        .tiers = {first, second, third},
        .arguments = {"--limit", LIMIT, NULL},
        .ram = RAM_MIB * HIER_MIB,
        .seed = 9,
        .content = LOAD_VARIED,
        .resilient = true,
    };
}

static void start_a_server(struct nbd_rig *s, bool kept, char *tier, size_t len)
{
    rig_need("nbdkit");
    rig_init(s, EXPORT_MIB * HIER_MIB);
    s->kept = kept;
    rig_serve_file(s);
    snprintf(tier, len, "net=nbd,uri=nbd+unix:///?socket=%s", s->socket);
}

static void start_server(struct nbd_rig *s, char *tier, size_t len)
{
    start_a_server(s, false, tier, len);
}

static void start_with_doubt(struct hier *r, const struct hier_options *o,
                             const char *doubt_ms)
{
    setenv("UFFDMM_TEST_DOUBT_MS", doubt_ms, 1);
    hier_start(r, o);
    unsetenv("UFFDMM_TEST_DOUBT_MS");
}

static unsigned kills_now(void)
{
    const char *text = getenv("UFFDMM_KILLS");

    return text ? (unsigned)strtoul(text, NULL, 10) : EVERYDAY_KILLS;
}

/* ---- kills at any moment ----------------------------------------------------- */

static void run(const char *first, const char *second, const char *third,
                enum load_pattern pattern)
{
    struct hier_options o = options_of(first, second, third);
    struct hier r;

    start_with_doubt(&r, &o, SOON);
    kill_loop(&r, (unsigned)pattern, kills_now());
    hier_stop(&r);
}

static void killed_workers_lose_nothing_in_an_export(void **state)
{
    struct nbd_rig s;
    char tier[TIER_MAX];
    (void)state;

    start_a_server(&s, true, tier, sizeof(tier));
    run(tier, NULL, NULL, LOAD_RANDOM);
    rig_deinit(&s);
}

static void killed_workers_lose_nothing_in_pool_and_export(void **state)
{
    struct nbd_rig s;
    char tier[TIER_MAX];
    (void)state;

    start_a_server(&s, true, tier, sizeof(tier));
    run("ram=pool,capacity=12M", tier, NULL, LOAD_RANDOM);
    rig_deinit(&s);
}

static void killed_workers_lose_nothing_in_pool_export_and_file(void **state)
{
    struct nbd_rig s;
    char tier[TIER_MAX];
    (void)state;

    start_a_server(&s, true, tier, sizeof(tier));
    strcat(tier, ",capacity=16M");
    run("ram=pool,capacity=6M", tier, "disk=file,path={store}", LOAD_DISCARD);
    rig_deinit(&s);
}

static void killed_workers_lose_nothing_in_a_shared_directory(void **state)
{
    (void)state;
    run("disk=file,path={store},shared=on", NULL, NULL, LOAD_RANDOM);
}

static void killed_workers_lose_nothing_in_pool_and_shared_directory(void **state)
{
    (void)state;
    run("ram=pool,capacity=12M", "disk=file,path={store},shared=on", NULL, LOAD_DISCARD);
}

/* ---- what comes late ----------------------------------------------------------- */

struct late {
    struct nbd_rig server;
    struct late_link link;
    struct hier r;
    struct hier_options o;
    char tier[TIER_MAX];
};

/*
 * The worker dies with writes on their way, its successor stores pages all over the export,
 * and then the writes arrive.
 */
static void write_late(struct late *l, bool held_back)
{
    char path[128];
    pid_t worker;

    start_server(&l->server, l->tier, sizeof(l->tier));
    snprintf(path, sizeof(path), "%s/late", l->server.dir);
    late_link_start(&l->link, path, l->server.socket);
    snprintf(l->tier, sizeof(l->tier), "net=nbd,uri=nbd+unix:///?socket=%s", path);
    l->o = options_of(l->tier, NULL, NULL);
    l->o.content = LOAD_INCOMPRESSIBLE;
    if (!held_back) {
        setenv("UFFDMM_TEST_NO_QUARANTINE", "1", 1);
    }
    hier_start(&l->r, &l->o);
    unsetenv("UFFDMM_TEST_NO_QUARANTINE");
    hier_do(&l->r, HIER_FILL, 0, 0);
    worker = kill_worker_of(&l->r, 0);
    hier_begin(&l->r, HIER_RUN, LOAD_RANDOM, 3000);
    sleep_ms(100);
    late_link_hold(&l->link);
    hier_set_limit(&l->r, 12 * HIER_MIB); /* much is to be written at once */
    late_link_await(&l->link, 32 * RIG_PAGE);
    kill(worker, SIGKILL);
    kill_worker_of(&l->r, worker);
    hier_await(&l->r, HIER_END_MS);
    hier_do(&l->r, HIER_FILL, 0, 0); /* goes through all slots that there are */
    late_link_deliver(&l->link);
}

static void end_late(struct late *l)
{
    late_link_stop(&l->link);
    rig_deinit(&l->server);
}

static void writes_that_come_late_harm_nothing(void **state)
{
    struct late l;
    (void)state;

    write_late(&l, true);
    assert_true(manager_logged(&l.r.manager, "may have been writing to", 0));
    hier_do(&l.r, HIER_VERIFY, 0, 0);
    hier_expect_sound(&l.r);
    hier_stop(&l.r);
    end_late(&l);
}

/*
 * Nor does the guest see wrong bytes without that: but it waits for pages that are gone.  Where
 * the late writes go to may be free just then, so there are several attempts.
 */
static void writes_that_come_late_destroy_pages_unless_slots_are_held_back(void **state)
{
    enum { ATTEMPTS = 6 };
    uint64_t errors = 0;
    (void)state;

    for (unsigned i = 0; !errors && i < ATTEMPTS; i++) {
        struct late l;

        write_late(&l, false);
        hier_begin(&l.r, HIER_VERIFY, 0, 0);
        while (!errors && !hier_done(&l.r)) {
            sleep_ms(10);
            errors = hier_stats(&l.r).vm.checksum_errors;
        }
        if (errors) {
            hier_expect_stuck(&l.r, 1000);
        }
        assert_false(hier_saw_wrong(&l.r));
        hier_abandon(&l.r);
        end_late(&l);
    }
    assert_true(errors > 0);
}

/* ---- servers that are away, volumes that are others' --------------------------- */

static struct superblock superblock_of(const struct nbd_rig *s)
{
    char block[SUPERBLOCK_BYTES];
    struct superblock sb;
    int fd = open(s->file, O_RDONLY | O_CLOEXEC);

    assert_true(fd >= 0);
    assert_int_equal(pread(fd, block, sizeof(block), 0), (ssize_t)sizeof(block));
    close(fd);
    assert_int_equal(superblock_parse(block, &sb), SUPERBLOCK_VALID);
    return sb;
}

static void set_superblock(const struct nbd_rig *s, const struct superblock *sb)
{
    char block[SUPERBLOCK_BYTES];
    int fd = open(s->file, O_WRONLY | O_CLOEXEC);

    assert_true(fd >= 0);
    superblock_make(block, sb);
    assert_int_equal(pwrite(fd, block, sizeof(block), 0), (ssize_t)sizeof(block));
    close(fd);
}

/* As often as QEMU tries: no epoch is used up by it, and nothing is changed. */
static void recovery_waits_for_the_server(void **state)
{
    struct nbd_rig s;
    char tier[TIER_MAX];
    struct hier_options o =
        options_of("ram=pool,capacity=8M", tier, "disk=file,path={store},shared=on");
    struct hier r;
    pid_t worker;
    (void)state;

    start_server(&s, tier, sizeof(tier));
    o.variable = NULL;
    hier_start(&r, &o);
    hier_do(&r, HIER_FILL, 0, 0);
    assert_int_equal(superblock_of(&s).epoch, 1);
    worker = kill_worker_of(&r, 0);
    rig_kill(&s);
    kill(worker, SIGKILL);
    hier_begin(&r, HIER_VERIFY, 0, 0);
    assert_true(manager_logged(&r.manager, "cannot connect to nbd export", 5000));
    hier_expect_stuck(&r, 2500);
    assert_int_equal(superblock_of(&s).epoch, 1);
    rig_serve_file(&s);
    hier_await(&r, HIER_END_MS);
    hier_expect_sound(&r);
    assert_int_equal(superblock_of(&s).epoch, 2);
    assert_int_equal(superblock_of(&s).state, SUPERBLOCK_OWNED);
    assert_int_equal(hier_stats(&r).vm.recoveries, 1);
    hier_stop(&r);
    assert_int_equal(superblock_of(&s).state, SUPERBLOCK_FREE);
    rig_deinit(&s);
}

/* Another has taken the export meanwhile, or it is another QEMU's: nothing is written to it. */
static void export_of_another_is_not_taken_over(void **state)
{
    struct nbd_rig s;
    char tier[TIER_MAX];
    struct hier_options o = options_of(tier, NULL, NULL);
    struct superblock ours, others[3], seen;
    struct hier r;
    pid_t worker;
    (void)state;

    start_server(&s, tier, sizeof(tier));
    o.variable = NULL;
    hier_start(&r, &o);
    hier_do(&r, HIER_FILL, 0, 0);
    for (unsigned i = 0; i < 3; i++) {
        worker = kill_worker_of(&r, 0);
        ours = superblock_of(&s);
        others[0] = others[1] = others[2] = ours;
        others[0].vm_pid++;
        others[1].state = SUPERBLOCK_RELEASED;
        memset(others[2].owner.boot_id, 1, sizeof(others[2].owner.boot_id));
        rig_kill(&s);
        kill(worker, SIGKILL);
        assert_true(process_gone(worker, 5000));
        set_superblock(&s, &others[i]);
        unlink(r.manager.log);
        rig_serve_file(&s);
        hier_begin(&r, HIER_VERIFY, 0, 0);
        hier_expect_stuck(&r, 1500);
        seen = superblock_of(&s);
        assert_true(superblock_same(&seen, &others[i]));
        set_superblock(&s, &ours);
        hier_await(&r, HIER_END_MS);
        hier_expect_sound(&r);
        assert_int_equal(superblock_of(&s).epoch, ours.epoch + 1);
    }
    hier_stop(&r);
    rig_deinit(&s);
}

/* The acceptor may have died, too. */
static void new_manager_takes_over_export_and_shared_directory(void **state)
{
    struct nbd_rig s;
    char tier[TIER_MAX], file[200];
    struct hier_options o = options_of(tier, "disk=file,path={store},shared=on", NULL);
    const char *arguments[] = {"--tier", tier, "--tier", file, "--limit", LIMIT, NULL};
    struct hier r;
    pid_t worker;
    (void)state;

    start_server(&s, tier, sizeof(tier));
    strcat(tier, ",capacity=16M");
    hier_start(&r, &o);
    snprintf(file, sizeof(file), "disk=file,path=%s,shared=on", r.manager.store);
    hier_do(&r, HIER_FILL, 0, 0);
    /* a server that is slow to begin with is passed over for the next tier */
    for (unsigned i = 0; i < 20 && !hier_stats(&r).tiers[NBD].stored_pages; i++) {
        hier_do(&r, HIER_RUN, LOAD_RANDOM, 300);
    }
    assert_true(hier_stats(&r).tiers[NBD].stored_pages > 0);
    worker = kill_worker_of(&r, 0);
    manager_kill(&r.manager);
    kill(worker, SIGKILL);
    assert_true(process_gone(worker, 5000));
    hier_begin(&r, HIER_VERIFY, 0, 0);
    hier_expect_stuck(&r, 500);
    manager_start_again(&r.manager, "UFFDMM_MANAGER", NULL, arguments);
    hier_await(&r, HIER_END_MS);
    assert_true(hier_stats(&r).tiers[NBD].reads > 0);
    hier_expect_sound(&r);
    hier_stop(&r);
    rig_deinit(&s);
}

/* ---- how much is held back, and for how long ----------------------------------- */

static uint64_t used_bytes(const struct peer_stats *s)
{
    return s->tiers[NBD].used_bytes;
}

/* The guest runs for @run_ms, and its worker dies in the beginning of that. */
static void kill_while_it_runs(struct hier *r, uint64_t run_ms)
{
    pid_t worker;

    hier_do(r, HIER_FILL, 0, 0);
    worker = kill_worker_of(r, 0);
    hier_begin(r, HIER_RUN, LOAD_RANDOM, run_ms);
    sleep_ms(200);
    kill(worker, SIGKILL);
    kill_worker_of(r, worker);
}

static void slots_held_back_are_used_again(void **state)
{
    struct nbd_rig s;
    char tier[TIER_MAX];
    struct hier_options o = options_of(tier, NULL, NULL);
    struct hier r;
    (void)state;

    start_server(&s, tier, sizeof(tier));
    start_with_doubt(&r, &o, "3000");
    kill_while_it_runs(&r, 600);
    assert_true(manager_logged(&r.manager, "may have been writing to", 2000));
    hier_await(&r, HIER_END_MS);
    hier_do(&r, HIER_DISCARD_ALL, 0, 0);
    /* some of them, and by far not all: a guest goes on meanwhile */
    hier_wait_stat(&r, "used", used_bytes, 1, 16 * HIER_MIB, 2000);
    hier_wait_stat(&r, "used", used_bytes, 0, 0, 15000);
    hier_do(&r, HIER_FILL, 0, 0);
    hier_do(&r, HIER_VERIFY, 0, 0);
    hier_expect_sound(&r);
    hier_stop(&r);
    rig_deinit(&s);
}

/* Also while there is so much to do that nothing is ever trimmed. */
static void slots_held_back_come_back_to_a_busy_guest(void **state)
{
    enum { BUSY_MS = 6000 };
    struct nbd_rig s;
    char tier[TIER_MAX];
    struct hier_options o = options_of(tier, NULL, NULL);
    struct hier r;
    (void)state;

    start_server(&s, tier, sizeof(tier));
    start_with_doubt(&r, &o, "1000");
    kill_while_it_runs(&r, BUSY_MS);
    assert_true(manager_logged(&r.manager, "is used again", BUSY_MS));
    assert_false(hier_done(&r));
    hier_await(&r, HIER_END_MS);
    hier_do(&r, HIER_VERIFY, 0, 0);
    hier_expect_sound(&r);
    hier_stop(&r);
    rig_deinit(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(killed_workers_lose_nothing_in_an_export),
        cmocka_unit_test(killed_workers_lose_nothing_in_pool_and_export),
        cmocka_unit_test(killed_workers_lose_nothing_in_pool_export_and_file),
        cmocka_unit_test(killed_workers_lose_nothing_in_a_shared_directory),
        cmocka_unit_test(killed_workers_lose_nothing_in_pool_and_shared_directory),
        cmocka_unit_test(writes_that_come_late_harm_nothing),
        cmocka_unit_test(writes_that_come_late_destroy_pages_unless_slots_are_held_back),
        cmocka_unit_test(recovery_waits_for_the_server),
        cmocka_unit_test(export_of_another_is_not_taken_over),
        cmocka_unit_test(new_manager_takes_over_export_and_shared_directory),
        cmocka_unit_test(slots_held_back_are_used_again),
        cmocka_unit_test(slots_held_back_come_back_to_a_busy_guest),
    };
    const char *seed = getenv("UFFDMM_SEED");

    if (seed) {
        kill_seed(strtoull(seed, NULL, 10));
    }
    return cmocka_run_group_tests_name("recovery_nbd", tests, end_process_when_hung,
                                       NULL);
}
