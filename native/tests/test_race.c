/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The eviction race through the library call that `uffdmm check-host --self-test`
 * makes.  The run without write protection is the control: if it loses nothing,
 * the run with it has proven nothing.
 */
#include "unit.h"

#include "uffd_fixture.h"
#include "uffdmm/selftest.h"

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SECONDS = 3 };

static struct uffdmm_race_result run(int protect)
{
    struct uffdmm_race_result result = {0};
    char err[256] = "";
    int ret = uffdmm_selftest_race(SECONDS, protect, &result, err, sizeof(err));

    if (ret < 0) {
        fail_msg("%s", err);
    }
    print_message("protect=%d evictions=%llu lost=%llu\n", protect,
                  (unsigned long long)result.evictions, (unsigned long long)result.lost);
    return result;
}

static void with_write_protection_no_update_is_lost(void **state)
{
    (void)state;
    struct uffdmm_race_result result = run(1);

    assert_true(result.evictions > 100);
    assert_int_equal(result.lost, 0);
}

static void without_write_protection_updates_are_lost(void **state)
{
    (void)state;
    struct uffdmm_race_result result = run(0);

    assert_true(result.evictions > 100);
    assert_true(result.lost > 0);
}

static void seconds_out_of_range_are_refused(void **state)
{
    struct uffdmm_race_result result = {.evictions = 7, .lost = 7};
    char err[256] = "";
    (void)state;

    assert_int_equal(uffdmm_selftest_race(0, 1, &result, err, sizeof(err)), -EINVAL);
    assert_non_null(strstr(err, "0 seconds"));
    assert_int_equal(uffdmm_selftest_race(61, 1, &result, err, sizeof(err)), -EINVAL);
    assert_int_equal(result.evictions, 7);
    assert_int_equal(result.lost, 7);
}

static void without_permission_the_sentence_names_the_remedy(void **state)
{
    (void)state;
    if (geteuid() != 0) {
        print_message("skip: only root can become a user without permission\n");
        skip();
    }
    pid_t pid = fork_bound();
    if (pid == 0) {
        struct uffdmm_race_result result = {.evictions = 7, .lost = 7};
        char err[256] = "";
        if (setresuid(65534, 65534, 65534) < 0) {
            _exit(2);
        }
        int ret = uffdmm_selftest_race(1, 1, &result, err, sizeof(err));
        if (ret == 0) {
            _exit(77); /* a host where everybody may */
        }
        _exit(ret == -EPERM && strstr(err, "/dev/userfaultfd") && result.evictions == 7
                  ? 0
                  : 1);
    }
    int status = join_child(pid);
    if (status == 77) {
        print_message("skip: this host lets every user open a userfaultfd\n");
        skip();
    }
    assert_int_equal(status, 0);
}

static int count_descriptors(void)
{
    DIR *dir = opendir("/proc/self/fd");
    int n = 0;

    assert_non_null(dir);
    while (readdir(dir)) {
        n++;
    }
    closedir(dir);
    return n;
}

static _Atomic int other_thread_stop;

static void *other_thread(void *opaque)
{
    (void)opaque;
    while (!atomic_load(&other_thread_stop)) {
        sleep_ms(1);
    }
    return NULL;
}

/* As in Python: other threads run, SIGCHLD is ignored, nothing may stay behind. */
static void leaves_nothing_behind_in_a_threaded_caller(void **state)
{
    struct uffdmm_race_result result;
    char err[256] = "";
    pthread_t thread;
    (void)state;

    int before = count_descriptors();
    assert_int_equal(pthread_create(&thread, NULL, other_thread, NULL), 0);
    void (*old)(int) = signal(SIGCHLD, SIG_IGN);
    int ret = uffdmm_selftest_race(1, 1, &result, err, sizeof(err));
    signal(SIGCHLD, old);
    atomic_store(&other_thread_stop, 1);
    pthread_join(thread, NULL);
    if (ret < 0) {
        fail_msg("%s", err);
    }
    assert_int_equal(result.lost, 0);
    assert_int_equal(count_descriptors(), before);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
    assert_int_equal(errno, ECHILD);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(with_write_protection_no_update_is_lost),
        cmocka_unit_test(without_write_protection_updates_are_lost),
        cmocka_unit_test(seconds_out_of_range_are_refused),
        cmocka_unit_test(without_permission_the_sentence_names_the_remedy),
        cmocka_unit_test(leaves_nothing_behind_in_a_threaded_caller),
    };

    return cmocka_run_group_tests_name("race", tests, end_process_when_hung, NULL);
}
