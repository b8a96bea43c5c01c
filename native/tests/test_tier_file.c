/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The file tier: where slots lie in its volumes, what is reserved and what is made
 * unreadable; then the contract of all tiers, over one path and over several.
 */
#include "unit.h"

#include "file_bench.h"
#include "tier_contract.h"

#include <errno.h>
#include <linux/magic.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "file_volume.h"
#include "log.h"

/* ---- where volumes lie ------------------------------------------------------ */

static void slots_are_striped_over_the_paths(void **state)
{
    struct file_bench *b = *state;
    uint64_t slots[PATHS * 3 * CHUNK];
    char file[2048];

    file_bench_make_dirs(b, PATHS);
    file_bench_open(b, 16 * MIB);
    file_bench_put(b, slots, PATHS * 3 * CHUNK);
    for (unsigned i = 0; i < PATHS * 3 * CHUNK; i += 61) {
        uint64_t slot = slots[i], chunk = slot / CHUNK;
        unsigned path = (unsigned)(chunk % PATHS);
        /* behind the label, which is slot 0 in the first path only */
        uint64_t at = (chunk / PATHS * CHUNK + slot % CHUNK + (path ? 1 : 0)) * 4096;

        file_bench_write_slot(b, slot);
        assert_true(file_bench_find_volume(b, path, file));
        assert_int_equal(file_bench_number_at(file, at), slot);
    }
    assert_int_equal(b->tier.ops->extent(&b->tier, 250, 64), 6);
    assert_int_equal(b->tier.ops->extent(&b->tier, 256, 1000), 256);
    file_bench_close(b, false);
}

static void one_path_has_extents_over_chunks(void **state)
{
    struct file_bench *b = *state;

    file_bench_make_dirs(b, 1);
    file_bench_open(b, 16 * MIB);
    assert_int_equal(b->tier.ops->extent(&b->tier, 250, 64), 64);
    file_bench_close(b, false);
}

/* After a while the free slots begin again below the ones that were taken last. */
static void slots_ascend_over_the_end_of_the_volume(void **state)
{
    struct file_bench *b = *state;
    uint64_t slots[4096];
    unsigned all;

    file_bench_make_dirs(b, 1);
    b->config.capacity = 8 * MIB;
    file_bench_open(b, 8 * MIB);
    all = (unsigned)(b->stats->capacity_bytes / PAGE_SIZE_4K);
    file_bench_put(b, slots, all - 40);
    for (unsigned i = 10; i < 50; i++) {
        assert_true(b->tier.ops->free(&b->tier, slots[i]));
    }
    file_bench_put(b, slots, 80); /* 40 at the end and then 40 at the beginning */
    for (unsigned i = 1; i < 80; i++) {
        assert_true(slots[i] > slots[i - 1]);
    }
    file_bench_close(b, false);
}

static void room_is_reserved_at_once_and_bounded_by_the_capacity(void **state)
{
    struct file_bench *b = *state;

    file_bench_make_dirs(b, PATHS);
    b->config.capacity = 12 * MIB;
    file_bench_open(b, 4 * MIB);
    assert_in_range(b->stats->capacity_bytes, 4 * MIB, 6 * MIB);
    assert_int_equal(b->tier.ops->reserve(&b->tier, 64 * MIB, b->err, sizeof(b->err)), 0);
    assert_int_equal(b->stats->capacity_bytes, 12 * MIB);
    uint64_t total = 0;
    for (unsigned i = 0; i < PATHS; i++) {
        struct stat st = file_bench_stat(b, i);

        assert_in_range(st.st_size, 4 * MIB, 4 * MIB + 2 * PAGE_SIZE_4K);
        assert_true((uint64_t)st.st_blocks * 512 >= (uint64_t)st.st_size);
        total += (uint64_t)st.st_size;
    }
    /* the pages, and a label for each path */
    assert_int_equal(total, 12 * MIB + PATHS * PAGE_SIZE_4K);
    file_bench_close(b, false);
}

/* The second path has no room, when the first has grown already. */
static void failed_reservation_leaves_things_as_they_were(void **state)
{
    struct file_bench *b = *state;
    struct rlimit before, small;
    off_t sizes[PATHS];
    int ret;

    file_bench_make_dirs(b, PATHS);
    file_bench_open(b, 90 * MIB);
    off_t first = file_bench_stat(b, 0).st_size;
    assert_true(file_bench_stat(b, 1).st_size > first);
    file_bench_close(b, false);

    file_bench_open(b, 6 * MIB);
    uint64_t capacity = b->stats->capacity_bytes;
    for (unsigned i = 0; i < PATHS; i++) {
        sizes[i] = file_bench_stat(b, i).st_size;
    }
    assert_return_code(getrlimit(RLIMIT_FSIZE, &before), errno);
    signal(SIGXFSZ, SIG_IGN);
    small = before;
    small.rlim_cur = (rlim_t)first;
    assert_return_code(setrlimit(RLIMIT_FSIZE, &small), errno);
    ret = b->tier.ops->reserve(&b->tier, 90 * MIB, b->err, sizeof(b->err));
    assert_return_code(setrlimit(RLIMIT_FSIZE, &before), errno);
    file_bench_expect_refused(b, ret, b->config.paths[1]);
    assert_non_null(strstr(b->err, "capacity="));
    for (unsigned i = 0; i < PATHS; i++) {
        assert_int_equal(file_bench_stat(b, i).st_size, sizes[i]);
    }
    assert_int_equal(b->stats->capacity_bytes, capacity);
    assert_int_equal(b->tier.ops->reserve(&b->tier, 90 * MIB, b->err, sizeof(b->err)), 0);
    file_bench_close(b, false);
}

/* ---- what stays in a volume --------------------------------------------------- */

static void trimmed_slots_are_unreadable_and_stay_reserved(void **state)
{
    struct file_bench *b = *state;
    uint64_t slots[1500];
    char file[2048];
    uint64_t trimmed = 0, n;

    file_bench_make_dirs(b, 1);
    file_bench_open(b, 8 * MIB);
    blkcnt_t blocks = file_bench_stat(b, 0).st_blocks;
    file_bench_put(b, slots, 1500);
    for (unsigned i = 0; i < 1500; i++) {
        file_bench_write_slot(b, slots[i]);
    }
    for (unsigned i = 100; i < 1400; i++) {
        assert_true(b->tier.ops->free(&b->tier, slots[i]));
    }
    while ((n = b->tier.ops->tidy(&b->tier))) {
        trimmed += n;
    }
    assert_int_equal(trimmed, 1300 * PAGE_SIZE_4K);
    assert_int_equal(b->stats->trim_bytes, trimmed);
    assert_true(file_bench_find_volume(b, 0, file));
    for (unsigned i = 0; i < 1500; i++) {
        bool freed = i >= 100 && i < 1400;

        assert_int_equal(file_bench_number_at(file, slots[i] * PAGE_SIZE_4K),
                         freed ? 0 : slots[i]);
    }
    assert_true(file_bench_stat(b, 0).st_blocks >= blocks);
    file_bench_close(b, false);
}

static void striped_run_is_trimmed_in_every_path(void **state)
{
    struct file_bench *b = *state;
    uint64_t slots[PATHS * 4 * CHUNK];
    char file[2048];

    file_bench_make_dirs(b, PATHS);
    file_bench_open(b, 24 * MIB);
    file_bench_put(b, slots, PATHS * 4 * CHUNK);
    for (unsigned i = 0; i < PATHS * 4 * CHUNK; i++) {
        file_bench_write_slot(b, slots[i]);
    }
    /* from the middle of a chunk to the middle of another */
    for (unsigned i = 100; i < PATHS * 4 * CHUNK - 100; i++) {
        assert_true(b->tier.ops->free(&b->tier, slots[i]));
    }
    while (b->tier.ops->tidy(&b->tier)) {
    }
    for (unsigned i = 0; i < PATHS * 4 * CHUNK; i++) {
        bool freed = i >= 100 && i < PATHS * 4 * CHUNK - 100;
        uint64_t chunk = slots[i] / CHUNK;
        unsigned path = (unsigned)(chunk % PATHS);

        assert_true(file_bench_find_volume(b, path, file));
        assert_int_equal(file_bench_number_at(file, (chunk / PATHS * CHUNK +
                                                     slots[i] % CHUNK + (path ? 1 : 0)) *
                                                        PAGE_SIZE_4K),
                         freed ? 0 : slots[i]);
    }
    file_bench_close(b, false);
}

/* Fills a volume, makes a part of it unreadable, and looks at both. */
static void zero_and_look(struct file_volume *v)
{
    enum { RANGE_AT = 64 << 10, RANGE = 256 << 10, ALL = 1 << 20 };

    memset(page_buffer, 0xab, sizeof(page_buffer));
    for (off_t at = PAGE_SIZE_4K; at < ALL; at += PAGE_SIZE_4K) {
        assert_int_equal(pwrite(v->fd, page_buffer, PAGE_SIZE_4K, at), PAGE_SIZE_4K);
    }
    assert_int_equal(file_volume_zero(v, RANGE_AT, RANGE), 0);
    for (off_t at = PAGE_SIZE_4K; at < ALL; at += PAGE_SIZE_4K) {
        uint8_t want = at >= RANGE_AT && at < RANGE_AT + RANGE ? 0 : 0xab;

        assert_int_equal(pread(v->fd, page_buffer, PAGE_SIZE_4K, at), PAGE_SIZE_4K);
        assert_int_equal((uint8_t)page_buffer[0], want);
        assert_memory_equal(page_buffer, page_buffer + 1, PAGE_SIZE_4K - 1);
    }
}

static void every_way_of_zeroing_makes_a_file_unreadable(void **state)
{
    const enum file_volume_zero ways[] = {FILE_VOLUME_ZERO_RANGE, FILE_VOLUME_PUNCH,
                                          FILE_VOLUME_WRITE};
    struct file_bench *b = *state;
    struct tier_vm vm = file_bench_vm(getpid(), 1);
    struct file_volume v;

    file_bench_make_dirs(b, 1);
    for (unsigned i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
        assert_int_equal(file_volume_open(&v, &b->config, 0, &vm, b->err, sizeof(b->err)),
                         0);
        assert_int_equal(file_volume_grow(&v, 2 * MIB, b->err, sizeof(b->err)), 0);
        v.zero = ways[i];
        zero_and_look(&v);
        assert_int_equal(v.zero, ways[i]); /* this filesystem can do all of them */
        assert_true(file_bench_stat(b, 0).st_blocks >= 2 * MIB / 512);
        file_volume_close(&v, false);
    }
}

/* A tmpfs knows no ZERO_RANGE, and before Linux 6.6 no O_DIRECT. */
static void filesystem_without_zero_range_is_punched(void **state)
{
    struct file_bench *b = *state;
    struct tier_vm vm = file_bench_vm(getpid(), 1);
    struct file_volume v;
    struct statfs fs;

    if (statfs("/dev/shm", &fs) < 0 || fs.f_type != TMPFS_MAGIC) {
        print_message("skip: /dev/shm is no tmpfs\n");
        skip();
    }
    snprintf(b->config.paths[0], sizeof(b->config.paths[0]), "/dev/shm");
    b->config.nr_paths = 1;
    if (file_volume_open(&v, &b->config, 0, &vm, b->err, sizeof(b->err))) {
        file_bench_expect_refused(b, -EINVAL, "O_DIRECT");
        return;
    }
    assert_int_equal(file_volume_grow(&v, 2 * MIB, b->err, sizeof(b->err)), 0);
    zero_and_look(&v);
    assert_int_equal(v.zero, FILE_VOLUME_PUNCH);
    file_volume_close(&v, false);
}

static void every_way_of_zeroing_makes_a_device_unreadable(void **state)
{
    struct file_bench *b = *state;
    struct tier_vm vm = file_bench_vm(getpid(), 1);
    int fd = file_bench_make_device(b, 8);
    struct file_volume v;

    assert_int_equal(file_volume_open(&v, &b->config, 0, &vm, b->err, sizeof(b->err)), 0);
    assert_int_equal(v.zero, FILE_VOLUME_PUNCH);
    zero_and_look(&v);
    v.zero = FILE_VOLUME_ZEROOUT;
    zero_and_look(&v);
    assert_int_equal(v.zero, FILE_VOLUME_ZEROOUT);
    file_volume_close(&v, false);
    close(fd);
}

static void smallest_device_sets_the_size(void **state)
{
    struct file_bench *b = *state;
    int fds[3] = {file_bench_make_device(b, 12), file_bench_make_device(b, 8),
                  file_bench_make_device(b, 20)};

    file_bench_open(b, 64 * MIB);
    /* the second has room for 7 chunks beside its label */
    assert_int_equal(b->stats->capacity_bytes, 3 * 7 * MIB - PAGE_SIZE_4K);
    assert_false(b->tier.ops->valid(&b->tier, 3 * 7 * CHUNK));
    uint64_t slots[3 * 7 * CHUNK - 1];
    file_bench_put(b, slots, 3 * 7 * CHUNK - 1);
    file_bench_write_slot(b, slots[3 * 7 * CHUNK - 2]);
    assert_int_equal(slots[3 * 7 * CHUNK - 2], 3 * 7 * CHUNK - 1);
    file_bench_close(b, false);
    for (int i = 0; i < 3; i++) {
        close(fds[i]);
    }
}

/* ---- the contract --------------------------------------------------------------- */

static int contract_over_directories(const char *name, unsigned nr, bool shared)
{
    void *state = NULL;
    struct file_bench *b;
    int failed;

    file_bench_set_up(&state);
    b = state;
    file_bench_make_dirs(b, nr);
    b->config.shared = shared;
    failed = tier_contract(name, &b->config);
    file_bench_tear_down(&state);
    return failed;
}

/* Over a block device and a directory; a test, so that it can be skipped. */
static void contract_holds_over_a_device_and_a_directory(void **state)
{
    struct file_bench *b = *state;
    int fd = file_bench_make_device(b, 48);

    file_bench_name_path(b, "d");
    assert_return_code(mkdir(b->config.paths[1], 0700), errno);
    pid_t pid = fork(); /* groups do not nest */
    assert_return_code(pid, errno);
    if (!pid) {
        /* its lines must not stand among those of this group */
        dup2(STDERR_FILENO, STDOUT_FILENO);
        _exit(tier_contract("file tier, device and directory", &b->config) != 0);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    close(fd);
}

/* ---- a ring that takes nothing ------------------------------------------------- */

enum { BATCH = 24 };

/* Reads or writes a page of each slot, all at once, and counts the results. */
static unsigned results(struct file_bench *b, struct tier_queue *q, char *pages,
                        const uint64_t *slots, bool write, int expected)
{
    struct tier_io ios[BATCH];
    struct iovec iovs[BATCH];
    unsigned n = 0;

    for (unsigned i = 0; i < BATCH; i++) {
        iovs[i] = (struct iovec){.iov_base = pages + (size_t)i * PAGE_SIZE_4K,
                                 .iov_len = PAGE_SIZE_4K};
        ios[i] = (struct tier_io){.tier = &b->tier,
                                  .write = write,
                                  .slot = slots[i],
                                  .pfn = i,
                                  .iov = &iovs[i],
                                  .nr_iov = 1,
                                  .length = PAGE_SIZE_4K};
    }
    tier_run(q, ios, BATCH, 0);
    for (unsigned i = 0; i < BATCH; i++) {
        n += ios[i].done && ios[i].result == expected;
    }
    assert_int_equal(q->in_flight, 0);
    assert_int_equal(q->in_ring, 0);
    return n;
}

/*
 * As when the kernel has no memory for requests.  They must not be carried out later
 * either, when the ring works again: a page of another batch would be overwritten.
 */
static void requests_that_the_kernel_does_not_take_fail_and_stay_out(void **state)
{
    struct file_bench *b = *state;
    struct tier *tiers[] = {NULL, &b->tier};
    uint64_t slots[BATCH];
    struct tier_queue q;
    char *pages = aligned_alloc(PAGE_SIZE_4K, (size_t)BATCH * PAGE_SIZE_4K);

    file_bench_make_dirs(b, 1);
    file_bench_open(b, 4 * MIB);
    file_bench_put(b, slots, BATCH);
    assert_non_null(pages);
    assert_int_equal(tier_queue_init(&q, tiers, 2), 0);
    memset(pages, 'a', (size_t)BATCH * PAGE_SIZE_4K);
    assert_int_equal(results(b, &q, pages, slots, true, 0), BATCH);

    int fd = q.ring.enter_ring_fd;
    for (int i = 0; i < 5; i++) { /* more than fit into the ring */
        q.ring.enter_ring_fd = -1;
        memset(pages, 'b', (size_t)BATCH * PAGE_SIZE_4K);
        assert_int_equal(results(b, &q, pages, slots, true, -EBADF), BATCH);
        q.ring.enter_ring_fd = fd;
        assert_int_equal(results(b, &q, pages, slots, false, 0), BATCH);
        for (unsigned k = 0; k < BATCH * PAGE_SIZE_4K; k++) {
            assert_int_equal(pages[k], 'a');
        }
    }
    memset(pages, 'c', (size_t)BATCH * PAGE_SIZE_4K);
    assert_int_equal(results(b, &q, pages, slots, true, 0), BATCH);
    assert_int_equal(results(b, &q, pages, slots, false, 0), BATCH);
    assert_int_equal(pages[BATCH * PAGE_SIZE_4K - 1], 'c');
    tier_queue_deinit(&q);
    free(pages);
    file_bench_close(b, false);
}

int main(void)
{
#define FILE_TEST(test) \
    cmocka_unit_test_setup_teardown(test, file_bench_set_up, file_bench_tear_down)
    const struct CMUnitTest tests[] = {
        FILE_TEST(slots_are_striped_over_the_paths),
        FILE_TEST(one_path_has_extents_over_chunks),
        FILE_TEST(slots_ascend_over_the_end_of_the_volume),
        FILE_TEST(room_is_reserved_at_once_and_bounded_by_the_capacity),
        FILE_TEST(failed_reservation_leaves_things_as_they_were),
        FILE_TEST(trimmed_slots_are_unreadable_and_stay_reserved),
        FILE_TEST(striped_run_is_trimmed_in_every_path),
        FILE_TEST(every_way_of_zeroing_makes_a_file_unreadable),
        FILE_TEST(filesystem_without_zero_range_is_punched),
        FILE_TEST(every_way_of_zeroing_makes_a_device_unreadable),
        FILE_TEST(smallest_device_sets_the_size),
        FILE_TEST(contract_holds_over_a_device_and_a_directory),
        FILE_TEST(requests_that_the_kernel_does_not_take_fail_and_stay_out),
    };
    int failed;

    log_set_level(LOG_LEVEL_ERROR);
    failed = cmocka_run_group_tests_name("tier_file", tests, NULL, NULL);
    failed += contract_over_directories("file tier, one path", 1, false);
    failed += contract_over_directories("file tier, three paths", 3, false);
    failed += contract_over_directories("file tier, shared path", 1, true);
    return failed != 0;
}
