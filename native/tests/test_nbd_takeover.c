/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which slots of an export a new worker uses, and what it makes of the journal of the dead
 * one.  The dead worker is a tier that is closed without a word.
 */
#include "unit.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "nbd_rig.h"
#include "stats.h"
#include "volume_journal.h"

#define MIB (1024ULL * 1024)

enum { ALL = 2 * 1024 * 1024 / 4096 - 1, NAMED = 100, UNNAMED = 50 };

/* The worker dies; the journal, which QEMU would have. */
static int die(struct nbd_rig *r)
{
    int fd = fcntl(r->tier.arena_fd, F_DUPFD_CLOEXEC, 0);

    assert_true(fd >= 0);
    r->tier.unsettled =
        true; /* as one that has not taken over yet: nothing is given back */
    rig_close(r, false);
    return fd;
}

static int try_keep(struct nbd_rig *r, int journal)
{
    struct tier_vm vm = {.name = "vm",
                         .uuid = {1, 2, 3},
                         .qemu_pid = getpid(),
                         .ram_bytes = MIB,
                         .kept = true,
                         .arena_fd = journal};
    int ret;

    memset(&r->stats, 0, sizeof(r->stats));
    memset(&r->tier, 0, sizeof(r->tier));
    r->tier.ops = &tier_nbd_ops;
    r->tier.config = &r->config;
    r->tier.stats = &r->stats;
    r->tier.vm = vm;
    r->tier.index = 1;
    r->tier.max_bytes = UINT64_MAX;
    r->tier.arena_fd = -1;
    r->tier.unsettled = true;
    ret = tier_nbd_ops.open(&r->tier, &vm, r->err, sizeof(r->err));
    if (!ret) {
        ret = tier_nbd_ops.adopt(&r->tier, r->err, sizeof(r->err));
    }
    return ret;
}

/* The next worker, for which entries name @nr slots. */
static void keep(struct nbd_rig *r, int journal, const uint64_t *named, unsigned nr)
{
    struct tier *tiers[] = {&r->tier};

    if (try_keep(r, journal) != 0) {
        fail_msg("not taken over: %s", r->err);
    }
    assert_int_equal(tier_queue_init(&r->queue, tiers, 1), 0);
    r->opened = true;
    for (unsigned i = 0; i < nr; i++) {
        assert_true(tier_nbd_ops.take(&r->tier, named[i], 0, i));
        assert_false(tier_nbd_ops.take(&r->tier, named[i], 0, i));
    }
    assert_int_equal(tier_nbd_ops.tidy(&r->tier), 0);
    tier_nbd_ops.tick(&r->tier);
    tier_nbd_ops.settle(&r->tier);
    r->tier.unsettled = false;
}

/* A worker with slots, of which the first @NAMED are named. */
static void start(struct nbd_rig *r, uint64_t *slots)
{
    rig_need("nbdkit");
    rig_init(r, 2 * MIB);
    rig_serve_file(r);
    rig_open(r, "vm", 2 * MIB);
    rig_take(r, slots, NAMED + UNNAMED);
}

/* How many slots can be had; none of them is among @nr in @slots. */
static unsigned take_all(struct nbd_rig *r, const uint64_t *slots, unsigned nr)
{
    static struct tier_put puts[ALL];
    unsigned got = 0;

    tier_nbd_ops.put(&r->tier, NULL, puts, ALL);
    for (unsigned i = 0; i < ALL; i++) {
        got += puts[i].result == 0;
        for (unsigned k = 0; puts[i].result == 0 && k < nr; k++) {
            assert_int_not_equal(puts[i].slot, slots[k]);
        }
    }
    return got;
}

static void slots_that_nobody_names_are_held_back(void **state)
{
    uint64_t slots[NAMED + UNNAMED];
    struct nbd_rig r;
    int journal;
    (void)state;

    start(&r, slots);
    journal = die(&r);
    for (unsigned round = 0; round < 2; round++) {
        keep(&r, journal, slots, NAMED);
        assert_int_equal(tier_nbd_ops.used(&r.tier), (NAMED + UNNAMED) * RIG_PAGE);
        close(journal);
        journal = die(&r); /* and they still are, for the one that comes after it */
    }
    keep(&r, journal, slots, NAMED);
    assert_int_equal(take_all(&r, slots, NAMED + UNNAMED), ALL - NAMED - UNNAMED);
    /* what was named is nobody's doubt */
    assert_true(tier_nbd_ops.free(&r.tier, slots[3]));
    assert_int_equal(take_all(&r, slots, 3), 1);
    /* what is held cannot be given back by an entry that names it */
    assert_false(tier_nbd_ops.free(&r.tier, slots[NAMED]));
    close(journal);
    rig_deinit(&r);
}

static void slots_that_were_given_back_are_free(void **state)
{
    uint64_t slots[NAMED + UNNAMED];
    struct nbd_rig r;
    int journal;
    (void)state;

    start(&r, slots);
    for (unsigned i = NAMED; i < NAMED + UNNAMED; i++) {
        assert_true(tier_nbd_ops.free(&r.tier, slots[i]));
    }
    journal = die(&r);
    keep(&r, journal, slots, NAMED);
    assert_int_equal(take_all(&r, slots, NAMED), ALL - NAMED);
    close(journal);
    rig_deinit(&r);
}

static void without_a_journal_all_free_slots_are_held_back(void **state)
{
    uint64_t slots[NAMED + UNNAMED];
    uint8_t before[16], after[16];
    struct nbd_rig r;
    (void)state;

    start(&r, slots);
    assert_false(r.tier.hard_to_keep);
    close(die(&r));
    assert_int_equal(try_keep(&r, -1), 0);
    tier_nbd_ops.identity(&r.tier, before);
    tier_nbd_ops.close(&r.tier, true);
    keep(&r, -1, slots, NAMED);
    tier_nbd_ops.identity(&r.tier, after);
    assert_memory_equal(before, after, sizeof(before));
    assert_true(r.tier.hard_to_keep);
    assert_int_equal(take_all(&r, NULL, 0), 0);
    assert_true(tier_nbd_ops.free(&r.tier, slots[0]));
    assert_int_equal(take_all(&r, NULL, 0), 0);
    rig_deinit(&r);
}

/* Named, but written once more after a lost link: the first copy may still come. */
static void doubts_outlive_the_worker(void **state)
{
    static char pages[8 * 4096];
    uint64_t slots[NAMED + UNNAMED];
    struct nbd_rig r;
    struct iovec iov;
    struct tier_io io;
    int journal;
    (void)state;

    start(&r, slots);
    rig_stop(&r);
    rig_submit(&r, &io, &iov, true, slots[4], pages, 8);
    assert_false(rig_wait(&r, &io, 100));
    rig_kill(&r);
    rig_serve_file(&r);
    assert_true(rig_wait(&r, &io, 5000));
    journal = die(&r);
    keep(&r, journal, slots, NAMED);
    for (unsigned i = 0; i < 16; i++) {
        assert_true(tier_nbd_ops.free(&r.tier, slots[i]));
    }
    assert_int_equal(tier_nbd_ops.used(&r.tier), (NAMED + UNNAMED - 16 + 8) * RIG_PAGE);
    take_all(&r, slots + 4, 8);
    close(journal);
    rig_deinit(&r);
}

static void export_that_has_become_smaller_is_refused(void **state)
{
    uint64_t slots[NAMED + UNNAMED];
    struct nbd_rig r;
    int journal;
    (void)state;

    rig_need("nbdkit");
    rig_init(&r, 4 * MIB);
    rig_serve_file(&r);
    rig_open(&r, "vm", 4 * MIB);
    rig_take(&r, slots, NAMED + UNNAMED);
    journal = die(&r);
    rig_kill(&r);
    assert_int_equal(truncate(r.file, 2 * MIB), 0);
    rig_serve_file(&r);
    assert_int_equal(try_keep(&r, journal), -ENOSPC);
    assert_non_null(strstr(r.err, "make it larger again"));
    close(journal);
    rig_deinit(&r);
}

/* QEMU could hand over anything. */
static void journal_that_is_none_is_refused(void **state)
{
    static char block[2 * 4096];
    const int seals = F_SEAL_SHRINK | F_SEAL_GROW;
    struct volume_journal j;
    int fd;
    (void)state;

    /* it may shrink */
    fd = memfd_create("journal", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, 3 * 4096), 0);
    assert_int_equal(journal_open(&j, fd), -EUCLEAN);
    assert_int_equal(j.fd, -1);
    /* zeros; and noise */
    assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
    assert_int_equal(journal_open(&j, fd), -EUCLEAN);
    memset(block, 0x5a, sizeof(block));
    assert_int_equal(pwrite(fd, block, sizeof(block), 0), (ssize_t)sizeof(block));
    assert_int_equal(journal_open(&j, fd), -EUCLEAN);
    close(fd);
    /* more bits than there is room for */
    assert_int_equal(journal_create(&j, 1000), 0);
    fd = fcntl(j.fd, F_DUPFD_CLOEXEC, 0);
    journal_set_slots(&j, 900);
    assert_int_equal(journal_slots(&j), 900);
    journal_close(&j);
    assert_int_equal(journal_open(&j, fd), 0);
    assert_int_equal(journal_slots(&j), 900);
    journal_set_slots(&j, UINT64_MAX);
    assert_int_equal(journal_slots(&j), 1000);
    journal_close(&j);
    assert_int_equal(pwrite(fd, &(uint64_t){1 << 20}, 8, 8), 8);
    assert_int_equal(journal_open(&j, fd), -EUCLEAN);
    close(fd);
    assert_int_not_equal(journal_open(&j, -1), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(slots_that_nobody_names_are_held_back),
        cmocka_unit_test(slots_that_were_given_back_are_free),
        cmocka_unit_test(without_a_journal_all_free_slots_are_held_back),
        cmocka_unit_test(doubts_outlive_the_worker),
        cmocka_unit_test(export_that_has_become_smaller_is_refused),
        cmocka_unit_test(journal_that_is_none_is_refused),
    };

    return cmocka_run_group_tests_name("nbd_takeover", tests, NULL, NULL);
}
