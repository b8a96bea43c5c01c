/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Things that die, fill up or rot under the real manager.  Whatever happens, a
 * guest never reads wrong bytes: it goes on, or it waits.
 */
#include "unit.h"

#include "guest_load.h"
#include "manager_process.h"
#include "standin.h"
#include "uffd_fixture.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MIB = 1 << 20, RAM = 32 * MIB, END_MS = 60000, STALL_MS = 10000 };
enum { NOBODY = 65534 };

static const char *const limited[] = {"--limit", "8M", NULL};

/* Fills, then touches and verifies for ever. */
static void endless_body(struct vmm *v, const void *arg)
{
    struct standin s;
    struct guest_load l;
    (void)arg;

    vmm_check(v, &s, standin_open(&s, v->socket, "vm", RAM, 1));
    load_init(&l, v, &s, 5, 2, LOAD_MIXED);
    load_fill(&l);
    vmm_set_phase(v, 1);
    for (;;) {
        load_run(&l, LOAD_RANDOM, 1000);
    }
}

static struct uffdmm_stats stats_of(const struct manager *m)
{
    struct uffdmm_stats stats;

    assert_int_equal(control_stats(m->socket, "vm", &stats), 0);
    return stats;
}

/* The guest makes no step any more, is still there, and has seen no wrong byte. */
static void expect_stall(const struct vmm *v)
{
    enum { QUIET_MS = 500 };
    int64_t deadline = monotonic_ms() + STALL_MS;
    int64_t quiet_since = monotonic_ms();
    uint64_t steps = atomic_load(&v->report->steps);

    while (monotonic_ms() - quiet_since < QUIET_MS) {
        if (atomic_load(&v->report->steps) != steps) {
            steps = atomic_load(&v->report->steps);
            quiet_since = monotonic_ms();
        }
        assert_true(monotonic_ms() < deadline);
        sleep_ms(5);
    }
    assert_int_equal(atomic_load(&v->report->wrong), 0);
    if (v->report->error[0]) {
        fail_msg("%s", v->report->error);
    }
    assert_int_equal(waitpid(v->pid, NULL, WNOHANG), 0);
}

/* ---- processes that die --------------------------------------------------- */

static void death_of_the_vmm_ends_worker_and_volume(void **state)
{
    struct manager m;
    struct vmm v;
    (void)state;

    manager_start(&m, "UFFDMM_MANAGER", limited);
    for (int round = 0; round < 2; round++) { /* the name is free again */
        vmm_start(&v, m.socket, endless_body, NULL);
        vmm_await_phase(&v, 1, END_MS);
        struct uffdmm_stats stats = stats_of(&m);
        assert_true(stats.evicted > 0);
        assert_int_equal(manager_volumes(&m), 1);
        vmm_kill(&v);
        assert_true(process_gone((pid_t)stats.worker_pid, 5000));
        assert_true(manager_volumes_become(&m, 0, 5000));
        assert_true(manager_vms_become(&m, 0, 5000));
    }
    manager_stop(&m);
}

static void death_of_the_worker_stalls_the_guest_alone(void **state)
{
    struct manager m;
    struct vmm v;
    struct vmm next;
    (void)state;

    manager_start(&m, "UFFDMM_MANAGER", limited);
    vmm_start(&v, m.socket, endless_body, NULL);
    vmm_await_phase(&v, 1, END_MS);
    pid_t worker = (pid_t)stats_of(&m).worker_pid;
    assert_int_equal(kill(worker, SIGKILL), 0);
    assert_true(process_gone(worker, 5000));
    expect_stall(&v);
    sleep_ms(500);
    expect_stall(&v);
    /* The acceptor lives and serves others, under the same name once the guest is gone. */
    vmm_kill(&v);
    vmm_start(&next, m.socket, endless_body, NULL);
    vmm_await_phase(&next, 1, END_MS);
    vmm_kill(&next);
    manager_stop(&m);
}

static void death_of_manager_and_worker_stalls_the_guest(void **state)
{
    struct manager m;
    struct vmm v;
    (void)state;

    manager_start(&m, "UFFDMM_MANAGER", limited);
    vmm_start(&v, m.socket, endless_body, NULL);
    vmm_await_phase(&v, 1, END_MS);
    pid_t worker = (pid_t)stats_of(&m).worker_pid;
    manager_kill(&m);
    sleep_ms(300);
    assert_int_equal(atomic_load(&v.report->wrong), 0);
    kill(worker, SIGKILL); /* gone with the acceptor, or not */
    expect_stall(&v);
    vmm_kill(&v);
    manager_remove(&m);
}

/* Ending the service does not end the guests: workers hold all that these need. */
static void sigterm_leaves_a_running_guest_alone(void **state)
{
    struct manager m;
    struct vmm v;
    (void)state;

    manager_start(&m, "UFFDMM_MANAGER", limited);
    vmm_start(&v, m.socket, endless_body, NULL);
    vmm_await_phase(&v, 1, END_MS);
    pid_t worker = (pid_t)stats_of(&m).worker_pid;
    manager_terminate(&m);
    uint64_t before = atomic_load(&v.report->steps);
    sleep_ms(500);
    assert_true(atomic_load(&v.report->steps) > before);
    assert_int_equal(atomic_load(&v.report->wrong), 0);
    kill(worker, SIGTERM); /* not the worker either, while a guest needs it */
    sleep_ms(200);
    before = atomic_load(&v.report->steps);
    sleep_ms(500);
    assert_true(atomic_load(&v.report->steps) > before);
    assert_int_equal(atomic_load(&v.report->wrong), 0);
    vmm_kill(&v);
    assert_true(process_gone(worker, 5000));
    assert_int_equal(manager_volumes(&m), 0);
    manager_remove(&m);
}

/* A socket and a volume that nobody uses any more stop no new manager. */
static void remains_of_the_dead_are_cleared_away(void **state)
{
    struct manager m;
    struct vmm v;
    char option[200];
    (void)state;

    manager_start(&m, "UFFDMM_MANAGER", limited);
    vmm_start(&v, m.socket, endless_body, NULL);
    vmm_await_phase(&v, 1, END_MS);
    pid_t worker = (pid_t)stats_of(&m).worker_pid;
    manager_kill(&m);
    kill(worker, SIGKILL);
    assert_true(process_gone(worker, 5000));
    vmm_kill(&v);
    assert_int_equal(manager_volumes(&m), 1);
    snprintf(option, sizeof(option), "file:%s", m.store);
    manager_start_again(&m, "UFFDMM_MANAGER", option, limited);
    assert_int_equal(manager_volumes(&m), 0);
    vmm_start(&v, m.socket, endless_body, NULL);
    vmm_await_phase(&v, 1, END_MS);
    vmm_kill(&v);
    manager_stop(&m);
}

/* What a stalled guest needs must not be cleared away under it. */
static void volume_of_a_stalled_guest_stays(void **state)
{
    struct manager m;
    struct vmm v;
    char option[200];
    (void)state;

    manager_start(&m, "UFFDMM_MANAGER", limited);
    vmm_start(&v, m.socket, endless_body, NULL);
    vmm_await_phase(&v, 1, END_MS);
    pid_t worker = (pid_t)stats_of(&m).worker_pid;
    manager_kill(&m);
    kill(worker, SIGKILL);
    assert_true(process_gone(worker, 5000));
    snprintf(option, sizeof(option), "file:%s", m.store);
    manager_start_again(&m, "UFFDMM_MANAGER", option, limited);
    assert_int_equal(manager_volumes(&m), 1);
    expect_stall(&v);
    vmm_kill(&v);
    manager_stop(&m);
}

static void second_manager_on_one_socket_does_not_start(void **state)
{
    struct manager m;
    (void)state;

    manager_start(&m, "UFFDMM_MANAGER", limited);
    struct manager second = m; /* same folder, same socket, another process */
    char option[200];
    snprintf(option, sizeof(option), "file:%s", m.store);
    int status = manager_exit_status(&second, "UFFDMM_MANAGER", option, limited);
    assert_true(status > 0);
    assert_true(manager_logged(&m, m.socket, 1000));
    assert_true(manager_vms_become(&m, 0, 1000)); /* the first one still answers */
    manager_stop(&m);
}

/* ---- who may come in ------------------------------------------------------ */

static void open_and_report(struct vmm *v, const void *arg)
{
    struct standin s;
    int ret = standin_open(&s, v->socket, arg, RAM, 1);

    atomic_store(&v->report->user[0], (uint64_t)-ret);
    snprintf(v->report->error, sizeof(v->report->error), "%s", s.error);
    vmm_set_phase(v, 1);
    vmm_await_command(v, 1);
}

static void second_vm_of_the_same_name_is_refused(void **state)
{
    struct manager m;
    struct vmm first;
    struct vmm second;
    (void)state;

    manager_start(&m, "UFFDMM_MANAGER", limited);
    vmm_start(&first, m.socket, endless_body, NULL);
    vmm_await_phase(&first, 1, END_MS);
    pid_t worker = (pid_t)stats_of(&m).worker_pid;

    vmm_start(&second, m.socket, open_and_report, "vm");
    vmm_await_phase(&second, 1, END_MS);
    assert_true(atomic_load(&second.report->user[0]) != 0);
    assert_non_null(strstr(second.report->error, "vm"));
    vmm_kill(&second);

    assert_int_equal(stats_of(&m).worker_pid, worker);
    uint64_t before = atomic_load(&first.report->steps);
    sleep_ms(300);
    assert_true(atomic_load(&first.report->steps) > before);
    assert_int_equal(atomic_load(&first.report->wrong), 0);
    vmm_kill(&first);
    manager_stop(&m);
}

static void say_hello_as_nobody(struct vmm *v, const void *arg)
{
    struct peer_msg reply;
    const enum uffdmm_role *role = arg;

    if (setresgid(NOBODY, NOBODY, NOBODY) < 0 || setresuid(NOBODY, NOBODY, NOBODY) < 0) {
        vmm_fail(v, "cannot become nobody: %s", strerror(errno));
    }
    int sock = peer_connect(v->socket);
    if (sock < 0) {
        vmm_fail(v, "cannot connect: %s", strerror(-sock));
    }
    int ret = peer_hello(sock, *role, *role == UFFDMM_ROLE_QEMU ? "nobodys" : "", &reply);
    atomic_store(&v->report->user[0], (uint64_t)-ret);
    vmm_set_phase(v, 1);
}

/* errno of a HELLO by another user, 0 when it was welcome. */
static int hello_of_nobody(const struct manager *m, enum uffdmm_role role)
{
    struct vmm v;

    /* The socket's mode would stop it already: open that door to look at the next. */
    assert_return_code(chmod(m->dir, 0755), errno);
    assert_return_code(chmod(m->socket, 0666), errno);
    vmm_start(&v, m->socket, say_hello_as_nobody, &role);
    vmm_await_phase(&v, 1, END_MS);
    int ret = (int)atomic_load(&v.report->user[0]);
    vmm_join(&v, END_MS);
    return ret;
}

static void skip_unless_root(void)
{
    if (geteuid() != 0) {
        print_message("skip: needs root to become another user or to mount\n");
        skip();
    }
}

static void another_user_is_refused(void **state)
{
    struct manager m;
    struct stat st;
    (void)state;

    skip_unless_root();
    manager_start(&m, "UFFDMM_MANAGER", limited);
    assert_return_code(stat(m.socket, &st), errno);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_not_equal(hello_of_nobody(&m, UFFDMM_ROLE_QEMU), 0);
    assert_int_not_equal(hello_of_nobody(&m, UFFDMM_ROLE_CONTROL), 0);
    assert_true(manager_logged(&m, "65534", 1000));
    manager_stop(&m);
}

static void allowed_user_is_welcome(void **state)
{
    static const char *const arguments[] = {"--allow-uid", "65534", NULL};
    struct manager m;
    (void)state;

    skip_unless_root();
    manager_start(&m, "UFFDMM_MANAGER", arguments);
    assert_int_equal(hello_of_nobody(&m, UFFDMM_ROLE_QEMU), 0);
    manager_stop(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(death_of_the_vmm_ends_worker_and_volume),
        cmocka_unit_test(death_of_the_worker_stalls_the_guest_alone),
        cmocka_unit_test(death_of_manager_and_worker_stalls_the_guest),
        cmocka_unit_test(sigterm_leaves_a_running_guest_alone),
        cmocka_unit_test(remains_of_the_dead_are_cleared_away),
        cmocka_unit_test(volume_of_a_stalled_guest_stays),
        cmocka_unit_test(second_manager_on_one_socket_does_not_start),
        cmocka_unit_test(second_vm_of_the_same_name_is_refused),
        cmocka_unit_test(another_user_is_refused),
        cmocka_unit_test(allowed_user_is_welcome),
    };

    return cmocka_run_group_tests_name("failures", tests, end_process_when_hung, NULL);
}
