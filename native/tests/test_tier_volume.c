/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The file tier: whose a volume is, who may take it, and what becomes of it. */
#include "unit.h"

#include "file_bench.h"
#include "tier_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include "log.h"

/* ---- whose a volume is -------------------------------------------------------- */

static void closed_volume_is_removed_and_kept_one_is_not_taken_again(void **state)
{
    struct file_bench *b = *state;
    char file[2048];

    file_bench_make_dirs(b, 1);
    file_bench_open(b, 4 * MIB);
    assert_true(file_bench_find_volume(b, 0, file));
    assert_int_equal(file_bench_stat(b, 0).st_mode & 0777, 0600);
    file_bench_close(b, false);
    assert_false(file_bench_find_volume(b, 0, file));

    file_bench_open(b, 4 * MIB);
    file_bench_close(b, true);
    assert_true(file_bench_find_volume(b, 0, file));
    /* its pages may be needed, and which they are nobody has said */
    file_bench_expect_refused(b, file_bench_try_open(b), "exists already");
    assert_true(file_bench_find_volume(b, 0, file));
}

static void failing_path_leaves_nothing_in_the_others(void **state)
{
    struct file_bench *b = *state;
    char file[2048];

    file_bench_make_dirs(b, 2);
    file_bench_name_path(b, "missing");
    file_bench_expect_refused(b, file_bench_try_open(b), "missing");
    assert_false(file_bench_find_volume(b, 0, file));
    assert_false(file_bench_find_volume(b, 1, file));
}

static void path_of_the_wrong_type_is_refused(void **state)
{
    struct file_bench *b = *state;

    snprintf(b->config.paths[0], sizeof(b->config.paths[0]), "/dev/null");
    b->config.nr_paths = 1;
    file_bench_expect_refused(b, file_bench_try_open(b), "neither");
    file_bench_expect_refused(b, tier_file_sweep(&b->config, b->err, sizeof(b->err)),
                              "neither");
    b->config.nr_paths = 0;
    file_bench_name_path(b, "missing");
    file_bench_expect_refused(b, tier_file_sweep(&b->config, b->err, sizeof(b->err)),
                              "path=");
}

static void volumes_of_ended_processes_are_swept(void **state)
{
    struct file_bench *b = *state;
    pid_t dead = start_process();
    unsigned long long start = superblock_process_start((uint64_t)dead);
    unsigned long long own = superblock_process_start((uint64_t)getpid());
    char names[7][300];
    const bool swept[7] = {true, true, true};

    end_process(dead);
    snprintf(names[0], sizeof(names[0]), "vm.%d-%llu.volume", dead, start);
    snprintf(names[1], sizeof(names[1]), "a.b.%d-0.volume", dead);
    snprintf(names[2], sizeof(names[2]), "vm.%d-%llu.volume", getpid(), own + 1);
    snprintf(names[3], sizeof(names[3]), "vm.%d-%llu.volume", getpid(), own);
    snprintf(names[4], sizeof(names[4]), "vm.volume");
    snprintf(names[5], sizeof(names[5]), "vm.%d.volume", dead);
    snprintf(names[6], sizeof(names[6]), "vm.%d-%llu.volumes", dead, start);
    file_bench_make_dirs(b, 1);
    for (int round = 0; round < 2; round++) {
        /* what is shared may be needed by another host: nothing is removed there */
        b->config.shared = round == 0;
        for (int i = 0; i < 7; i++) {
            char path[4096];

            snprintf(path, sizeof(path), "%s/%s", b->config.paths[0], names[i]);
            int fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
            assert_return_code(fd, errno);
            close(fd);
        }
        assert_int_equal(tier_file_sweep(&b->config, b->err, sizeof(b->err)), 0);
        for (int i = 0; i < 7; i++) {
            char path[4096];

            snprintf(path, sizeof(path), "%s/%s", b->config.paths[0], names[i]);
            bool there = access(path, F_OK) == 0;
            assert_int_equal(there, b->config.shared || !swept[i]);
        }
    }
}

/* ---- shared directories ------------------------------------------------------- */

static void shared_volume_says_whose_it_is(void **state)
{
    struct file_bench *b = *state;
    struct tier other;
    struct superblock sb;
    char file[2048], wanted[2048];

    file_bench_make_dirs(b, PATHS);
    b->config.shared = true;
    file_bench_open(b, 8 * MIB);
    assert_int_equal(b->stats->shared, 1);
    for (unsigned i = 0; i < PATHS; i++) {
        assert_true(file_bench_find_volume(b, i, file));
        snprintf(wanted, sizeof(wanted), "%s/vm.volume", b->config.paths[i]);
        assert_string_equal(file, wanted);
        label_of(file, &sb);
        assert_int_equal(sb.state, SUPERBLOCK_OWNED);
        assert_int_equal(sb.epoch, 1);
        assert_int_equal(sb.owner.pid, getpid());
        assert_string_equal(sb.vm_name, "vm");
        assert_int_equal(sb.vm_uuid[0], 1);
    }
    /* a VM of the same name with another identity, and the same one again */
    file_bench_expect_refused(b, file_bench_try_open_as(b, &other, getpid(), 2),
                              "owned by");
    file_bench_expect_refused(b, file_bench_try_open_as(b, &other, getpid(), 1),
                              "owned by");
    assert_true(file_bench_find_volume(b, 0, file));
    file_bench_close(b, false);
    assert_false(file_bench_find_volume(b, 0, file));
}

/* A worker that takes the volume for a QEMU process and dies at once. */
static void open_and_die(struct file_bench *b, pid_t qemu)
{
    int status;
    pid_t pid = fork();

    assert_return_code(pid, errno);
    if (!pid) {
        _exit(file_bench_try_open_as(b, &b->tier, qemu, 1) != 0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

static void shared_volume_outlives_its_owner_for_the_same_vm_only(void **state)
{
    struct file_bench *b = *state;
    struct superblock sb;
    char file[2048];
    uint64_t slot;
    pid_t qemu = start_process();

    file_bench_make_dirs(b, 1);
    b->config.shared = true;
    /* released: kept as it is */
    file_bench_open(b, 4 * MIB);
    file_bench_put(b, &slot, 1);
    file_bench_write_slot(b, slot);
    file_bench_close(b, true);
    assert_true(file_bench_find_volume(b, 0, file));
    label_of(file, &sb);
    assert_int_equal(sb.state, SUPERBLOCK_RELEASED);
    file_bench_expect_refused(b, file_bench_try_open_as(b, &b->tier, getpid(), 2),
                              "pages of VM vm");
    open_and_die(b, qemu);
    label_of(file, &sb);
    assert_int_equal(sb.epoch, 2);
    assert_int_equal(file_bench_number_at(file, slot * PAGE_SIZE_4K), slot);

    /* its worker has died, then QEMU does: its pages are of no use, and not readable any more */
    file_bench_expect_refused(b, file_bench_try_open_as(b, &b->tier, getpid(), 1),
                              "owned by");
    end_process(qemu);
    file_bench_open(b, 4 * MIB);
    label_of(file, &sb);
    assert_int_equal(sb.epoch, 3);
    assert_int_equal(file_bench_number_at(file, slot * PAGE_SIZE_4K), 0);
    file_bench_close(b, false);
}

/* The label changes hands behind our back: from then on nothing is touched. */
static void lost_shared_volume_is_neither_trimmed_nor_removed(void **state)
{
    struct file_bench *b = *state;
    struct superblock sb;
    uint64_t slots[200];
    char file[2048];
    int fd;

    file_bench_make_dirs(b, 1);
    b->config.shared = true;
    file_bench_open(b, 4 * MIB);
    file_bench_put(b, slots, 200);
    for (unsigned i = 0; i < 200; i++) {
        file_bench_write_slot(b, slots[i]);
        assert_true(b->tier.ops->free(&b->tier, slots[i]));
    }
    assert_true(file_bench_find_volume(b, 0, file));
    label_of(file, &sb);
    sb.epoch++;
    snprintf(sb.owner.host, sizeof(sb.owner.host), "elsewhere");
    superblock_make(page_buffer, &sb);
    fd = open(file, O_WRONLY | O_DIRECT | O_CLOEXEC);
    assert_return_code(fd, errno);
    assert_int_equal(pwrite(fd, page_buffer, PAGE_SIZE_4K, 0), PAGE_SIZE_4K);
    close(fd);
    assert_int_equal(b->tier.ops->tidy(&b->tier), 0);
    assert_non_null(strstr(b->stats->last_error, "elsewhere"));
    for (unsigned i = 0; i < 200; i++) {
        assert_int_equal(file_bench_number_at(file, slots[i] * PAGE_SIZE_4K), slots[i]);
    }
    file_bench_close(b, false);
    assert_true(file_bench_find_volume(b, 0, file));
}

static void volume_that_another_process_is_taking_is_refused(void **state)
{
    struct file_bench *b = *state;
    char path[2048];
    int fd;

    file_bench_make_dirs(b, 1);
    b->config.shared = true;
    snprintf(path, sizeof(path), "%s/vm.volume", b->config.paths[0]);
    fd = open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    assert_return_code(fd, errno);
    assert_return_code(flock(fd, LOCK_EX), errno);
    file_bench_expect_refused(b, file_bench_try_open(b), "another process");
    close(fd);
    file_bench_open(b, 4 * MIB);
    file_bench_close(b, false);
}

static void alien_file_in_a_shared_directory_is_not_touched(void **state)
{
    struct file_bench *b = *state;
    char path[2048], text[32] = "";
    int fd;

    file_bench_make_dirs(b, 1);
    b->config.shared = true;
    snprintf(path, sizeof(path), "%s/vm.volume", b->config.paths[0]);
    fd = open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    assert_return_code(fd, errno);
    assert_int_equal(write(fd, "my thesis", 9), 9);
    file_bench_expect_refused(b, file_bench_try_open(b), "vm.volume");
    assert_int_equal(pread(fd, text, sizeof(text), 0), 9);
    assert_string_equal(text, "my thesis");
    close(fd);
}

/* ---- block devices ------------------------------------------------------------ */

static void device_serves_one_vm_at_a_time(void **state)
{
    struct file_bench *b = *state;
    struct tier other;
    struct superblock sb;
    int fd = file_bench_make_device(b, 16);
    uint64_t slots[100];

    assert_int_equal(tier_file_sweep(&b->config, b->err, sizeof(b->err)), 0);
    file_bench_open(b, 64 * MIB);
    assert_int_equal(b->stats->capacity_bytes, 16 * MIB - PAGE_SIZE_4K);
    file_bench_expect_refused(b, file_bench_try_open_as(b, &other, getpid(), 2),
                              "in use");
    file_bench_put(b, slots, 100);
    for (unsigned i = 0; i < 100; i++) {
        file_bench_write_slot(b, slots[i]);
        assert_int_equal(
            file_bench_number_at(b->config.paths[0], slots[i] * PAGE_SIZE_4K), slots[i]);
    }
    file_bench_close(b, false);
    label_of(b->config.paths[0], &sb);
    assert_int_equal(sb.state, SUPERBLOCK_FREE);
    for (unsigned i = 0; i < 100; i++) {
        assert_int_equal(
            file_bench_number_at(b->config.paths[0], slots[i] * PAGE_SIZE_4K), 0);
    }
    assert_int_equal(file_bench_try_open_as(b, &other, getpid(), 2), 0);
    other.ops->close(&other, false);
    close(fd);
}

static void device_with_data_is_not_touched(void **state)
{
    struct file_bench *b = *state;
    int fd = file_bench_make_device(b, 8);
    char text[16] = "";

    assert_int_equal(pwrite(fd, "file system", 11, 1024), 11);
    assert_return_code(fsync(fd), errno);
    file_bench_expect_refused(b, file_bench_try_open(b), "holds data");
    assert_int_equal(pread(fd, text, 11, 1024), 11);
    assert_string_equal(text, "file system");
    close(fd);
}

static void device_of_a_dead_vm_is_taken_and_wiped(void **state)
{
    struct file_bench *b = *state;
    int fd = file_bench_make_device(b, 8);
    pid_t qemu = start_process();
    uint64_t slots[600];

    assert_int_equal(file_bench_try_open_as(b, &b->tier, qemu, 1), 0);
    assert_int_equal(b->tier.ops->reserve(&b->tier, 8 * MIB, b->err, sizeof(b->err)), 0);
    file_bench_put(b, slots, 600);
    for (unsigned i = 0; i < 600; i++) {
        file_bench_write_slot(b, slots[i]);
    }
    file_bench_close(b, true); /* as a dead worker leaves it */
    file_bench_expect_refused(b, file_bench_try_open_as(b, &b->tier, getpid(), 2),
                              "owned by");
    end_process(qemu);

    /* who takes it and does not come to wiping it leaves that to the next */
    assert_int_equal(file_bench_try_open_as(b, &b->tier, getpid(), 2), 0);
    file_bench_close(b, false);
    assert_int_equal(file_bench_number_at(b->config.paths[0], slots[5] * PAGE_SIZE_4K),
                     slots[5]);
    file_bench_open(b, 8 * MIB);
    assert_int_equal(tier_pages(&b->tier), 0);
    while (b->tier.ops->tidy(&b->tier)) {
    }
    for (unsigned i = 0; i < 600; i++) {
        assert_int_equal(
            file_bench_number_at(b->config.paths[0], slots[i] * PAGE_SIZE_4K), 0);
    }
    file_bench_close(b, false);
    close(fd);
}

static void tiny_device_is_refused(void **state)
{
    struct file_bench *b = *state;
    int fd = file_bench_make_device(b, 1);

    file_bench_expect_refused(b, file_bench_try_open(b), "too little");
    close(fd);
}

int main(void)
{
#define FILE_TEST(test) \
    cmocka_unit_test_setup_teardown(test, file_bench_set_up, file_bench_tear_down)
    const struct CMUnitTest tests[] = {
        FILE_TEST(closed_volume_is_removed_and_kept_one_is_not_taken_again),
        FILE_TEST(failing_path_leaves_nothing_in_the_others),
        FILE_TEST(path_of_the_wrong_type_is_refused),
        FILE_TEST(volumes_of_ended_processes_are_swept),
        FILE_TEST(shared_volume_says_whose_it_is),
        FILE_TEST(shared_volume_outlives_its_owner_for_the_same_vm_only),
        FILE_TEST(lost_shared_volume_is_neither_trimmed_nor_removed),
        FILE_TEST(volume_that_another_process_is_taking_is_refused),
        FILE_TEST(alien_file_in_a_shared_directory_is_not_touched),
        FILE_TEST(device_serves_one_vm_at_a_time),
        FILE_TEST(device_with_data_is_not_touched),
        FILE_TEST(device_of_a_dead_vm_is_taken_and_wiped),
        FILE_TEST(tiny_device_is_refused),
    };

    log_set_level(LOG_LEVEL_ERROR);
    return cmocka_run_group_tests_name("tier_volume", tests, NULL, NULL);
}
