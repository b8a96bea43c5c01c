/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A store that is missing, full or rotten, under the real manager.  What cannot be
 * had is waited for: a guest that needs it stands still, with the reason in the
 * statistics, and goes on by itself when the store is right again.
 */
#include "unit.h"

#include "guest_load.h"
#include "manager_process.h"
#include "standin.h"
#include "uffd_fixture.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    MIB = 1 << 20,
    RAM = 32 * MIB,
    LIMIT = 8 * MIB,
    OVERSHOOT = 2 * MIB,
    END_MS = 60000
};

static const char *const limited[] = {"--limit", "8M", NULL};

static struct uffdmm_stats stats_of(const struct manager *m)
{
    struct uffdmm_stats stats;

    assert_int_equal(control_stats(m->socket, "vm", &stats), 0);
    return stats;
}

static void open_and_report(struct vmm *v, const void *arg)
{
    struct standin s;
    (void)arg;

    int ret = standin_open(&s, v->socket, "vm", RAM, 1);
    atomic_store(&v->report->user[0], (uint64_t)-ret);
    snprintf(v->report->error, sizeof(v->report->error), "%s", s.error);
    vmm_set_phase(v, 1);
}

/*
 * A VM that this manager cannot serve is refused at its start, in a sentence with
 * this word in it, and nothing of it stays.
 */
static void expect_refused_start(struct manager *m, const char *word)
{
    struct vmm v;

    vmm_start(&v, m->socket, open_and_report, NULL);
    vmm_await_phase(&v, 1, END_MS);
    print_message("refused: %s\n", v.report->error);
    assert_int_not_equal(atomic_load(&v.report->user[0]), 0);
    assert_int_not_equal(atomic_load(&v.report->user[0]), EPIPE);
    assert_non_null(strstr(v.report->error, word));
    vmm_join(&v, END_MS);
    assert_true(manager_volumes_become(m, 0, 5000));
    assert_true(manager_vms_become(m, 0, 5000));
}

/* ---- a store that cannot hold the VM ---------------------------------------- */

static void store_that_goes_missing_refuses_the_vm(void **state)
{
    struct manager m;
    (void)state;

    manager_start(&m, "UFFDMM_MANAGER", limited);
    assert_return_code(rmdir(m.store), errno);
    expect_refused_start(&m, m.store);
    manager_stop(&m);
}

static void store_smaller_than_what_the_limit_leaves_out_refuses_the_vm(void **state)
{
    struct manager m;
    char option[200];
    (void)state;

    manager_prepare(&m);
    snprintf(option, sizeof(option), "file:%s,size=4M", m.store);
    manager_start_again(&m, "UFFDMM_MANAGER", option, limited);
    expect_refused_start(&m, "capacity");
    manager_stop(&m);
}

/*
 * A file size limit below the volume's size, and one below the memory's: the kernel
 * sends SIGXFSZ besides the error, and that must not end the worker without a word.
 */
static void file_size_limit_refuses_the_vm(void **state)
{
    struct rlimit before;
    (void)state;

    assert_return_code(getrlimit(RLIMIT_FSIZE, &before), errno);
    for (int i = 0; i < 2; i++) {
        struct manager m;
        struct rlimit small = before;
        small.rlim_cur = i == 0 ? RAM + MIB : MIB;
        assert_return_code(setrlimit(RLIMIT_FSIZE, &small), errno);
        manager_start(&m, "UFFDMM_MANAGER", limited);
        assert_return_code(setrlimit(RLIMIT_FSIZE, &before), errno);
        expect_refused_start(&m, i == 0 ? m.store : "32 MiB");
        manager_stop(&m);
    }
}

/* Fills; on command verifies everything, in one thread, so that the first bad page stops it. */
static void fill_then_verify_body(struct vmm *v, const void *arg)
{
    struct standin s;
    struct guest_load l;
    (void)arg;

    vmm_check(v, &s, standin_open(&s, v->socket, "vm", RAM, 1));
    load_init(&l, v, &s, 6, 1, LOAD_MIXED);
    load_fill(&l);
    vmm_set_phase(v, 1);
    vmm_await_command(v, 1);
    load_verify(&l);
    vmm_set_phase(v, 2);
    vmm_await_command(v, 2);
}

/* Two managers on one store directory, each with a VM of the same name. */
static void two_managers_share_a_store_directory(void **state)
{
    struct manager first;
    struct manager second;
    struct vmm a;
    struct vmm b;
    char option[200];
    (void)state;

    manager_start(&first, "UFFDMM_MANAGER", limited);
    manager_prepare(&second);
    snprintf(option, sizeof(option), "file:%s", first.store);
    vmm_start(&a, first.socket, fill_then_verify_body, NULL);
    vmm_await_phase(&a, 1, END_MS);
    manager_start_again(&second, "UFFDMM_MANAGER", option, limited);
    vmm_start(&b, second.socket, fill_then_verify_body, NULL);
    vmm_await_phase(&b, 1, END_MS);
    assert_int_equal(manager_volumes(&first), 2);
    vmm_command(&a, 2);
    vmm_command(&b, 2);
    vmm_join(&a, END_MS);
    vmm_join(&b, END_MS);
    assert_true(manager_volumes_become(&first, 0, 5000));
    manager_stop(&second);
    manager_stop(&first);
}

static void manager_without_its_store_directory_does_not_start(void **state)
{
    struct manager m;
    char option[200];
    (void)state;

    manager_prepare(&m);
    snprintf(option, sizeof(option), "file:%s/nowhere", m.dir);
    assert_true(manager_exit_status(&m, "UFFDMM_MANAGER", option, limited) > 0);
    assert_true(manager_logged(&m, "nowhere", 1000));
    manager_remove(&m);
}

/* ---- a store that rots ------------------------------------------------------ */

static char *volume_path(const struct manager *m, char path[512])
{
    DIR *dir = opendir(m->store);
    const struct dirent *entry;

    assert_non_null(dir);
    path[0] = '\0';
    while ((entry = readdir(dir))) {
        if (entry->d_name[0] != '.') {
            snprintf(path, 512, "%s/%s", m->store, entry->d_name);
        }
    }
    closedir(dir);
    assert_true(path[0] != '\0');
    return path;
}

/* Applies a change to every pair of pages of the volume that holds anything. */
static void change_volume(const struct manager *m, void (*change)(uint8_t pair[2 * PAGE]))
{
    char path[512];
    uint8_t pair[2 * PAGE];
    struct stat st;
    int fd = open(volume_path(m, path), O_RDWR | O_CLOEXEC);

    assert_true(fd >= 0);
    assert_return_code(fstat(fd, &st), errno);
    for (off_t at = 0; at + (off_t)sizeof(pair) <= st.st_size; at += sizeof(pair)) {
        assert_int_equal(pread(fd, pair, sizeof(pair), at), sizeof(pair));
        change(pair);
        assert_int_equal(pwrite(fd, pair, sizeof(pair), at), sizeof(pair));
    }
    assert_return_code(fsync(fd), errno);
    close(fd);
}

static void flip_a_bit(uint8_t pair[2 * PAGE])
{
    pair[1000] ^= 1;
    pair[PAGE + 4095] ^= 0x80;
}

/* What a write or read that went to the neighbour's place looks like. */
static void swap_pages(uint8_t pair[2 * PAGE])
{
    uint8_t first[PAGE];

    memcpy(first, pair, PAGE);
    memcpy(pair, pair + PAGE, PAGE);
    memcpy(pair + PAGE, first, PAGE);
}

/* The evictor has come to rest, so that the volume does not change under our hands. */
static void await_quiet_store(const struct manager *m)
{
    struct uffdmm_stats before = stats_of(m);

    for (int quiet = 0; quiet < 5;) {
        sleep_ms(100);
        struct uffdmm_stats now = stats_of(m);
        quiet = now.store_writes == before.store_writes &&
                        now.store_trim_bytes == before.store_trim_bytes
                    ? quiet + 1
                    : 0;
        before = now;
    }
}

static void await_state(const struct manager *m, uint64_t state)
{
    int64_t deadline = monotonic_ms() + 10000;

    while (stats_of(m).state != state) {
        if (monotonic_ms() > deadline) {
            manager_print_log(m);
            fail_msg("the worker's state is %llu, not %llu",
                     (unsigned long long)stats_of(m).state, (unsigned long long)state);
        }
        sleep_ms(20);
    }
}

/* The same change applied twice must be none. */
static void rot_and_repair(void (*change)(uint8_t pair[2 * PAGE]))
{
    struct manager m;
    struct vmm v;

    manager_start(&m, "UFFDMM_MANAGER", limited);
    vmm_start(&v, m.socket, fill_then_verify_body, NULL);
    vmm_await_phase(&v, 1, END_MS);
    await_quiet_store(&m);
    change_volume(&m, change);
    vmm_command(&v, 1);
    await_state(&m, UFFDMM_WORKER_STORE_ERROR);
    uint64_t steps = atomic_load(&v.report->steps);
    sleep_ms(700);
    /* It stands, it has been handed nothing, and the reason is told. */
    assert_true(atomic_load(&v.report->steps) < steps + 64);
    assert_int_equal(atomic_load(&v.report->phase), 1);
    assert_int_equal(atomic_load(&v.report->wrong), 0);
    struct uffdmm_stats stats = stats_of(&m);
    assert_true(stats.checksum_errors > 0);
    assert_int_equal(waitpid(v.pid, NULL, WNOHANG), 0);
    assert_true(manager_logged(&m, "checksum", 1000));

    change_volume(&m, change);
    vmm_await_phase(&v, 2, END_MS); /* every page verified, by itself */
    await_state(&m, UFFDMM_WORKER_RUNNING);
    vmm_command(&v, 2);
    vmm_join(&v, END_MS);
    manager_stop(&m);
}

static void flipped_bits_are_never_handed_out(void **state)
{
    (void)state;
    rot_and_repair(flip_a_bit);
}

static void misplaced_pages_are_never_handed_out(void **state)
{
    (void)state;
    rot_and_repair(swap_pages);
}

static void truncated_volume_is_never_read_as_zeros(void **state)
{
    struct manager m;
    struct vmm v;
    char path[512];
    struct stat st;
    (void)state;

    manager_start(&m, "UFFDMM_MANAGER", limited);
    vmm_start(&v, m.socket, fill_then_verify_body, NULL);
    vmm_await_phase(&v, 1, END_MS);
    await_quiet_store(&m);
    int fd = open(volume_path(&m, path), O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_return_code(fstat(fd, &st), errno);
    uint8_t *backup = malloc((size_t)st.st_size);
    assert_non_null(backup);
    assert_int_equal(pread(fd, backup, (size_t)st.st_size, 0), st.st_size);
    assert_return_code(ftruncate(fd, 0), errno);
    vmm_command(&v, 1);
    await_state(&m, UFFDMM_WORKER_STORE_ERROR);
    sleep_ms(700);
    assert_int_equal(atomic_load(&v.report->phase), 1);
    assert_int_equal(atomic_load(&v.report->wrong), 0);
    assert_true(stats_of(&m).store_errors > 0);

    assert_int_equal(pwrite(fd, backup, (size_t)st.st_size, 0), st.st_size);
    assert_return_code(fsync(fd), errno);
    free(backup);
    close(fd);
    vmm_await_phase(&v, 2, END_MS);
    vmm_command(&v, 2);
    vmm_join(&v, END_MS);
    manager_stop(&m);
}

/* ---- a disk that fills up --------------------------------------------------- */

/* A filesystem of this size over the store directory, in a mount namespace of our own. */
static void mount_small_store(struct manager *m, const char *size)
{
    if (geteuid() != 0 || unshare(CLONE_NEWNS) < 0 ||
        mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0) {
        print_message("skip: cannot make a mount namespace: %s\n", strerror(errno));
        manager_remove(m);
        skip();
    }
    char option[32];
    snprintf(option, sizeof(option), "size=%s", size);
    assert_return_code(mount("tmpfs", m->store, "tmpfs", 0, option), errno);
    char probe[200];
    snprintf(probe, sizeof(probe), "%s/probe", m->store);
    int fd = open(probe, O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0600);
    if (fd < 0) {
        print_message("skip: tmpfs of this kernel has no O_DIRECT\n");
        umount(m->store);
        manager_remove(m);
        skip();
    }
    close(fd);
    unlink(probe);
}

static void start_on_mount(struct manager *m)
{
    char option[200];

    snprintf(option, sizeof(option), "file:%s", m->store);
    manager_start_again(m, "UFFDMM_MANAGER", option, limited);
}

static void stop_and_unmount(struct manager *m)
{
    /* The volume must be closed before the filesystem can go. */
    manager_terminate(m);
    int64_t deadline = monotonic_ms() + 5000;
    while (umount(m->store) < 0) {
        assert_true(monotonic_ms() < deadline);
        sleep_ms(10);
    }
    manager_remove(m);
}

static void full_disk_refuses_the_vm(void **state)
{
    struct manager m;
    (void)state;

    manager_prepare(&m);
    mount_small_store(&m, "8M");
    start_on_mount(&m);
    expect_refused_start(&m, m.store);
    stop_and_unmount(&m);
}

/* Fills; gives all back, so that all slots are free; on command fills and verifies again. */
static void refill_body(struct vmm *v, const void *arg)
{
    struct standin s;
    struct guest_load l;
    (void)arg;

    vmm_check(v, &s, standin_open(&s, v->socket, "vm", RAM, 1));
    load_init(&l, v, &s, 6, 1, LOAD_MIXED);
    load_fill(&l);
    load_discard(&l, 0, RAM / PAGE);
    load_sampler_start(&l);
    vmm_set_phase(v, 1);
    vmm_await_command(v, 1);
    load_fill(&l);
    load_verify(&l);
    atomic_store(&v->report->user[0], load_sampler_stop(&l));
    vmm_set_phase(v, 2);
    vmm_await_command(v, 2);
}

static void fill_file(const char *path)
{
    static uint8_t block[64 * 1024];
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

    assert_true(fd >= 0);
    while (write(fd, block, sizeof(block)) > 0) {
    }
    assert_int_equal(errno, ENOSPC);
    close(fd);
}

/*
 * The volume was reserved when the VM started, so this takes a disk that promises
 * more than it has: all slots are free at that moment, and their blocks are taken
 * away from under the manager.
 */
static void thin_disk_that_fills_makes_the_guest_wait(void **state)
{
    struct manager m;
    struct vmm v;
    char path[512];
    char filler[200];
    struct stat st;
    (void)state;

    manager_prepare(&m);
    mount_small_store(&m, "64M");
    start_on_mount(&m);
    vmm_start(&v, m.socket, refill_body, NULL);
    vmm_await_phase(&v, 1, END_MS);
    await_quiet_store(&m);
    assert_int_equal(stats_of(&m).slots_used, 0);
    assert_return_code(stat(volume_path(&m, path), &st), errno);
    assert_return_code(truncate(path, 0), errno);
    assert_return_code(truncate(path, st.st_size), errno);
    snprintf(filler, sizeof(filler), "%s/filler", m.store);
    fill_file(filler);

    vmm_command(&v, 1);
    await_state(&m, UFFDMM_WORKER_STORE_ERROR);
    sleep_ms(500);
    assert_int_equal(atomic_load(&v.report->phase), 1);
    assert_int_equal(atomic_load(&v.report->wrong), 0);
    assert_true(stats_of(&m).resident_bytes <= LIMIT + OVERSHOOT);

    assert_return_code(unlink(filler), errno);
    vmm_await_phase(&v, 2, END_MS);
    assert_int_equal(atomic_load(&v.report->wrong), 0);
    assert_true(atomic_load(&v.report->user[0]) <= LIMIT + OVERSHOOT);
    await_state(&m, UFFDMM_WORKER_RUNNING);
    vmm_command(&v, 2);
    vmm_join(&v, END_MS);
    stop_and_unmount(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(store_that_goes_missing_refuses_the_vm),
        cmocka_unit_test(store_smaller_than_what_the_limit_leaves_out_refuses_the_vm),
        cmocka_unit_test(file_size_limit_refuses_the_vm),
        cmocka_unit_test(two_managers_share_a_store_directory),
        cmocka_unit_test(manager_without_its_store_directory_does_not_start),
        cmocka_unit_test(flipped_bits_are_never_handed_out),
        cmocka_unit_test(misplaced_pages_are_never_handed_out),
        cmocka_unit_test(truncated_volume_is_never_read_as_zeros),
        cmocka_unit_test(full_disk_refuses_the_vm),
        cmocka_unit_test(thin_disk_that_fills_makes_the_guest_wait),
    };

    return cmocka_run_group_tests_name("store", tests, end_process_when_hung, NULL);
}
