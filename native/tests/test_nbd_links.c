/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The nbd tier when its server dies, stalls, or comes back as something else. */
#include "unit.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "clock.h"
#include "nbd_rig.h"
#include "stats.h"
#include "superblock.h"

#define MIB (1024ULL * 1024)

static void start(struct nbd_rig *r, uint64_t bytes, const char *vm)
{
    rig_need("nbdkit");
    rig_init(r, bytes);
    rig_serve_file(r);
    rig_open(r, vm, bytes);
}

/* Kills and starts the server again and again, seen from a loop that calls this. */
struct killer {
    uint64_t at; /* clock_ns() of the next kill */
    unsigned kills;
};

static void kill_now_and_then(struct nbd_rig *r, struct killer *k)
{
    uint64_t delay = (2 + k->kills * 7 % 20) * NSEC_PER_MSEC;

    if (stats_get(&r->stats.state) != UFFDMM_TIER_OK || !k->at) {
        k->at = clock_ns() + delay;
    } else if (clock_ns() >= k->at) {
        rig_kill(r);
        rig_sleep_ms(20);
        rig_serve_file(r);
        k->kills++;
        k->at = 0;
    }
}

/* Transfers all pages in runs, with kills meanwhile. */
static void run_with_kills(struct nbd_rig *r, struct killer *k, bool write,
                           const uint64_t *slots, char *pages, unsigned nr, unsigned run)
{
    struct tier_io ios[64];
    struct iovec iovs[64];

    assert_true(nr / run <= 64);
    for (unsigned i = 0; i < nr / run; i++) {
        rig_submit(r, &ios[i], &iovs[i], write, slots[i * run],
                   pages + i * run * RIG_PAGE, run);
    }
    for (unsigned i = 0; i < nr / run; i++) {
        for (unsigned ms = 0; !rig_wait(r, &ios[i], 1); ms++) {
            assert_true(ms < 30000);
            kill_now_and_then(r, k);
        }
        kill_now_and_then(r, k);
        assert_int_equal(ios[i].result, 0);
    }
}

static void server_killed_while_writing_loses_nothing(void **state)
{
    enum { NR = 1024, RUN = 16, KILLS = 25 };
    static char pages[NR * 4096] __attribute__((aligned(4096)));
    struct nbd_rig r;
    struct killer k = {0};
    uint64_t slots[NR], round = 0;
    (void)state;

    start(&r, 16 * MIB, "vm");
    rig_take(&r, slots, NR);
    for (; k.kills < KILLS; round++) {
        for (unsigned i = 0; i < NR; i++) {
            rig_fill(pages + i * RIG_PAGE, round * NR + i);
        }
        run_with_kills(&r, &k, true, slots, pages, NR, RUN);
        memset(pages, 0, sizeof(pages));
        run_with_kills(&r, &k, false, slots, pages, NR, RUN);
        for (unsigned i = 0; i < NR; i++) {
            assert_true(rig_filled(pages + i * RIG_PAGE, round * NR + i));
        }
    }
    assert_int_equal(stats_get(&r.stats.errors), 0);
    assert_true(stats_get(&r.stats.reconnects) >= KILLS / 2);
    assert_non_null(strstr(r.stats.last_error, "is away"));
    assert_true(rig_wait_state(&r, UFFDMM_TIER_OK, 5000));
    /* what is still held was being written when its link was lost: there was such */
    for (unsigned i = 0; i < NR; i++) {
        assert_true(tier_nbd_ops.free(&r.tier, slots[i]));
    }
    assert_true(tier_nbd_ops.used(&r.tier) > 0);
    rig_deinit(&r);
}

static void page_waits_for_a_server_that_is_gone(void **state)
{
    char page[RIG_PAGE];
    struct nbd_rig r;
    struct iovec iov;
    struct tier_io io;
    (void)state;

    start(&r, 16 * MIB, "vm");
    rig_fill(page, 1);
    assert_int_equal(rig_io(&r, true, 9, page, 1), 0);
    rig_kill(&r);
    assert_true(rig_wait_state(&r, UFFDMM_TIER_AWAY, 2000));
    memset(page, 0, sizeof(page));
    rig_submit(&r, &io, &iov, false, 9, page, 1);
    assert_false(rig_wait(&r, &io, 1000));
    assert_int_equal(stats_get(&r.stats.reconnects), 0);
    rig_serve_file(&r);
    assert_true(rig_wait(&r, &io, 5000));
    assert_int_equal(io.result, 0);
    assert_true(rig_filled(page, 1));
    assert_int_equal(stats_get(&r.stats.state), UFFDMM_TIER_OK);
    assert_int_equal(stats_get(&r.stats.reconnects), 1);
    rig_deinit(&r);
}

static void stalled_server_is_waited_for_and_not_left(void **state)
{
    char page[RIG_PAGE];
    struct nbd_rig r;
    struct iovec iov;
    struct tier_io io;
    (void)state;

    start(&r, 16 * MIB, "vm");
    rig_fill(page, 2);
    rig_stop(&r);
    rig_submit(&r, &io, &iov, true, 9, page, 1);
    assert_false(rig_wait(&r, &io, 2000));
    kill(r.server, SIGCONT);
    assert_true(rig_wait(&r, &io, 5000));
    assert_int_equal(io.result, 0);
    memset(page, 0, sizeof(page));
    assert_int_equal(rig_io(&r, false, 9, page, 1), 0);
    assert_true(rig_filled(page, 2));
    assert_int_equal(stats_get(&r.stats.reconnects), 0);
    assert_int_equal(stats_get(&r.stats.state), UFFDMM_TIER_OK);
    rig_deinit(&r);
}

/* A server that has been given up may still carry out what it was sent. */
static void slot_of_a_lost_write_is_not_handed_out_again(void **state)
{
    enum { ALL = 2 * 1024 * 1024 / 4096 - 1 };
    struct tier_put puts[ALL] = {0};
    static char pages[8 * 4096];
    struct nbd_rig r;
    struct iovec iov;
    struct tier_io io;
    uint64_t slots[16];
    (void)state;

    start(&r, 2 * MIB, "vm");
    rig_take(&r, slots, 16);
    rig_stop(&r);
    rig_submit(&r, &io, &iov, true, slots[4], pages, 8);
    assert_false(rig_wait(&r, &io, 100));
    rig_kill(&r);
    rig_serve_file(&r);
    assert_true(rig_wait(&r, &io, 5000));
    assert_int_equal(io.result, 0);
    for (unsigned i = 0; i < 16; i++) {
        assert_true(tier_nbd_ops.free(&r.tier, slots[i]));
        assert_false(tier_nbd_ops.free(&r.tier, slots[i]));
    }
    assert_int_equal(tier_nbd_ops.used(&r.tier), 8 * RIG_PAGE);
    tier_nbd_ops.tidy(&r.tier);
    tier_nbd_ops.tick(&r.tier);
    tier_nbd_ops.put(&r.tier, NULL, puts, ALL);
    for (unsigned i = 0; i < ALL; i++) {
        assert_int_equal(puts[i].result, i < ALL - 8 ? 0 : -ENOSPC);
        assert_true(puts[i].slot < slots[4] || puts[i].slot > slots[11]);
    }
    rig_deinit(&r);
}

/* ---- what comes back is something else ----------------------------------- */

/* A server whose export is not what it was is not used until it is so again. */
static void check_not_used(struct nbd_rig *r, const char *const *args, const char *why)
{
    char page[RIG_PAGE];
    struct iovec iov;
    struct tier_io io;

    rig_fill(page, 3);
    assert_int_equal(rig_io(r, true, 9, page, 1), 0);
    rig_kill(r);
    rig_serve(r, args);
    memset(page, 0, sizeof(page));
    rig_submit(r, &io, &iov, false, 9, page, 1);
    assert_false(rig_wait(r, &io, 1000));
    assert_int_equal(stats_get(&r->stats.state), UFFDMM_TIER_AWAY);
    assert_int_equal(stats_get(&r->stats.reconnects), 0);
    if (!strstr(r->stats.last_error, why)) {
        fail_msg("\"%s\" does not say \"%s\"", r->stats.last_error, why);
    }
    rig_kill(r);
    rig_serve_file(r);
    assert_true(rig_wait(r, &io, 10000));
    assert_int_equal(io.result, 0);
    assert_true(rig_filled(page, 3));
    assert_int_equal(stats_get(&r->stats.reconnects), 1);
}

static void export_that_shrank_is_not_used(void **state)
{
    struct nbd_rig r;
    const char *const args[] = {"--filter=truncate", "file", r.file, "truncate=8M", NULL};
    (void)state;

    start(&r, 16 * MIB, "vm");
    check_not_used(&r, args, "has 8388608 bytes and 16777216 are needed");
    rig_deinit(&r);
}

static void export_that_became_read_only_is_not_used(void **state)
{
    struct nbd_rig r;
    const char *const args[] = {"-r", "file", r.file, NULL};
    (void)state;

    start(&r, 16 * MIB, "vm");
    check_not_used(&r, args, "is read-only");
    rig_deinit(&r);
}

static void blank_export_is_not_used(void **state)
{
    struct nbd_rig r;
    const char *const args[] = {"memory", "16M", NULL};
    (void)state;

    start(&r, 16 * MIB, "vm");
    check_not_used(&r, args, "is blank");
    rig_deinit(&r);
}

/* Somebody else has taken the volume: nothing of it is trimmed, and nothing written. */
static void volume_taken_by_another_is_left_alone(void **state)
{
    enum { NR = 128 };
    static char pages[NR * 4096], now[NR * 4096], again[NR * 4096];
    char block[SUPERBLOCK_BYTES], ours[SUPERBLOCK_BYTES];
    struct superblock sb;
    uint64_t slots[NR];
    struct nbd_rig r;
    struct iovec iov;
    struct tier_io io;
    int fd;
    (void)state;

    start(&r, 16 * MIB, "vm");
    rig_take(&r, slots, NR);
    memset(pages, 0x33, sizeof(pages));
    assert_int_equal(rig_io(&r, true, slots[0], pages, NR), 0);
    fd = open(r.file, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, ours, sizeof(ours), 0), sizeof(ours));
    assert_int_equal(superblock_parse(ours, &sb), SUPERBLOCK_VALID);
    sb.epoch++;
    snprintf(sb.owner.host, sizeof(sb.owner.host), "elsewhere");
    superblock_make(block, &sb);
    assert_int_equal(pwrite(fd, block, sizeof(block), 0), sizeof(block));

    for (unsigned i = 0; i < NR; i++) {
        assert_true(tier_nbd_ops.free(&r.tier, slots[i]));
    }
    assert_int_equal(tier_nbd_ops.tidy(&r.tier), 0);
    assert_true(rig_wait_state(&r, UFFDMM_TIER_AWAY, 2000));
    memset(again, 0x44, sizeof(again));
    rig_submit(&r, &io, &iov, true, slots[0], again, NR);
    assert_false(rig_wait(&r, &io, 500));
    assert_non_null(strstr(r.stats.last_error, "on host elsewhere"));
    assert_int_equal(pread(fd, now, sizeof(now), (off_t)(slots[0] * RIG_PAGE)),
                     sizeof(now));
    assert_memory_equal(now, pages, sizeof(now));

    /* given back: what was asked for is done */
    assert_int_equal(pwrite(fd, ours, sizeof(ours), 0), sizeof(ours));
    assert_true(rig_wait(&r, &io, 10000));
    assert_int_equal(io.result, 0);
    assert_int_equal(pread(fd, now, sizeof(now), (off_t)(slots[0] * RIG_PAGE)),
                     sizeof(now));
    assert_memory_equal(now, again, sizeof(now));
    close(fd);
    rig_deinit(&r);
}

/* ---- cancelled ----------------------------------------------------------- */

static void cancel_ends_what_waits_for_a_stalled_server(void **state)
{
    static char pages[64 * 4096];
    uint64_t began, slots[64];
    struct tier_io ios[64];
    struct iovec iovs[64];
    struct nbd_rig r;
    (void)state;

    start(&r, 16 * MIB, "vm");
    rig_take(&r, slots, 64);
    rig_stop(&r);
    for (unsigned i = 0; i < 64; i++) {
        rig_submit(&r, &ios[i], &iovs[i], i % 2, slots[i], pages + i * RIG_PAGE, 1);
    }
    assert_false(rig_wait(&r, &ios[0], 100));
    began = clock_ns();
    tier_nbd_ops.cancel(&r.tier);
    for (unsigned i = 0; i < 64; i++) {
        assert_true(rig_wait(&r, &ios[i], 1000));
        assert_int_equal(ios[i].result, -ECANCELED);
    }
    assert_true(clock_ns() - began < NSEC_PER_SEC);
    assert_int_equal(rig_io(&r, false, slots[0], pages, 1), -ECANCELED);
    rig_deinit(&r);
}

/* A socket on which attempts to connect hang: its queue is full, SYNs are dropped. */
static int black_hole(uint16_t port, int fillers[8])
{
    struct sockaddr_in addr = {.sin_family = AF_INET,
                               .sin_port = htons(port),
                               .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;

    assert_true(fd >= 0);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
    assert_int_equal(listen(fd, 0), 0);
    for (int i = 0; i < 8; i++) {
        fillers[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        assert_true(fillers[i] >= 0);
        if (connect(fillers[i], (struct sockaddr *)&addr, sizeof(addr)) < 0) {
            assert_int_equal(errno, EINPROGRESS);
        }
    }
    rig_sleep_ms(50);
    return fd;
}

static void cancel_ends_what_waits_for_a_hanging_connect(void **state)
{
    char page[RIG_PAGE] = {0};
    int hole, fillers[8];
    struct nbd_rig r;
    struct iovec iov;
    struct tier_io io;
    uint64_t began;
    (void)state;

    rig_need("nbdkit");
    rig_init(&r, 16 * MIB);
    rig_serve_tcp(&r);
    rig_open(&r, "vm", 8 * MIB);
    assert_int_equal(rig_io(&r, true, 1, page, 1), 0);
    rig_kill(&r);
    hole = black_hole(r.port, fillers);
    assert_true(rig_wait_state(&r, UFFDMM_TIER_AWAY, 2000));
    rig_submit(&r, &io, &iov, false, 1, page, 1);
    assert_false(rig_wait(&r, &io, 1500)); /* by now it hangs in connect */
    began = clock_ns();
    tier_nbd_ops.cancel(&r.tier);
    assert_true(rig_wait(&r, &io, 1000));
    assert_int_equal(io.result, -ECANCELED);
    rig_close(&r, false);
    assert_true(clock_ns() - began < NSEC_PER_SEC);
    for (int i = 0; i < 8; i++) {
        close(fillers[i]);
    }
    close(hole);
    rig_deinit(&r);
}

static void close_without_a_server_is_quick(void **state)
{
    struct nbd_rig r;
    uint64_t began;
    (void)state;

    start(&r, 16 * MIB, "vm");
    rig_kill(&r);
    assert_true(rig_wait_state(&r, UFFDMM_TIER_AWAY, 2000));
    began = clock_ns();
    rig_close(&r, false);
    assert_true(clock_ns() - began < NSEC_PER_SEC);
    rig_deinit(&r);
}

/* A trim that its server does not answer is given up, and its memory left in peace. */
static void close_during_a_trim_that_hangs_is_bounded(void **state)
{
    enum { NR = 128 };
    uint64_t began, slots[NR];
    struct nbd_rig r;
    (void)state;

    start(&r, 16 * MIB, "vm");
    rig_take(&r, slots, NR);
    for (unsigned i = 0; i < NR; i++) {
        assert_true(tier_nbd_ops.free(&r.tier, slots[i]));
    }
    rig_stop(&r);
    began = clock_ns();
    assert_int_equal(tier_nbd_ops.tidy(&r.tier), 0);
    assert_int_equal(tier_nbd_ops.tidy(&r.tier), 0);
    assert_true(clock_ns() - began < NSEC_PER_SEC);
    assert_int_equal(tier_nbd_ops.used(&r.tier), NR * RIG_PAGE); /* not handed out */
    rig_close(&r, false);
    assert_true(clock_ns() - began < 5 * NSEC_PER_SEC);
    rig_deinit(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(server_killed_while_writing_loses_nothing),
        cmocka_unit_test(page_waits_for_a_server_that_is_gone),
        cmocka_unit_test(stalled_server_is_waited_for_and_not_left),
        cmocka_unit_test(slot_of_a_lost_write_is_not_handed_out_again),
        cmocka_unit_test(export_that_shrank_is_not_used),
        cmocka_unit_test(export_that_became_read_only_is_not_used),
        cmocka_unit_test(blank_export_is_not_used),
        cmocka_unit_test(volume_taken_by_another_is_left_alone),
        cmocka_unit_test(cancel_ends_what_waits_for_a_stalled_server),
        cmocka_unit_test(cancel_ends_what_waits_for_a_hanging_connect),
        cmocka_unit_test(close_without_a_server_is_quick),
        cmocka_unit_test(close_during_a_trim_that_hangs_is_bounded),
    };

    return cmocka_run_group_tests_name("nbd_links", tests, NULL, NULL);
}
