/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Each stage of the sandbox of workers, seen from outside in /proc and tried from
 * inside by an intruder; the same attempt with --sandbox=off is its control.
 */
#include "unit.h"

#include "guest_load.h"
#include "manager_process.h"
#include "sandbox.h"
#include "standin.h"
#include "uffd_fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/landlock.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MIB = 1 << 20, RAM = 16 * MIB, END_MS = 60000, NOBODY = 65534 };

static struct manager m;

static void guest_body(struct vmm *v, const void *name)
{
    struct standin s;
    struct guest_load l;

    vmm_check(v, &s, standin_open(&s, v->socket, name, RAM, 1));
    load_init(&l, v, &s, 3, 1, LOAD_MIXED);
    load_fill(&l);
    vmm_set_phase(v, 1);
    while (atomic_load(&v->report->command) < 1) {
        load_run(&l, LOAD_RANDOM, 20);
        sleep_ms(5);
    }
    load_verify(&l);
}

static void start_guest(struct vmm *v, const char *name)
{
    vmm_start(v, m.socket, guest_body, name);
    vmm_await_phase(v, 1, END_MS);
}

static void stop_guest(struct vmm *v)
{
    vmm_command(v, 1);
    vmm_join(v, END_MS);
}

static pid_t worker_of(const char *name)
{
    struct uffdmm_stats stats;

    assert_int_equal(control_stats(m.socket, name, &stats), 0);
    return (pid_t)stats.worker_pid;
}

/* A field of /proc/PID/status, as text. */
static void status_field(pid_t pid, const char *field, char *value, size_t size)
{
    char path[64], line[256];
    size_t len = strlen(field);

    snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    value[0] = '\0';
    while (fgets(line, sizeof(line), f)) {
        if (!strncmp(line, field, len) && line[len] == ':') {
            line[strcspn(line, "\n")] = '\0';
            snprintf(value, size, "%s", line + len + 1 + strspn(line + len + 1, "\t "));
        }
    }
    fclose(f);
    assert_true(value[0]);
}

static unsigned long long status_number(pid_t pid, const char *field, int base)
{
    char value[128];

    status_field(pid, field, value, sizeof(value));
    return strtoull(value, NULL, base);
}

static void namespace_of(pid_t pid, const char *which, char *link, size_t size)
{
    char path[64];

    snprintf(path, sizeof(path), "/proc/%d/ns/%s", (int)pid, which);
    ssize_t n = readlink(path, link, size - 1);
    assert_true(n > 0);
    link[n] = '\0';
}

/* ---- from outside --------------------------------------------------------- */

static bool has_capability(int cap)
{
    return (status_number(getpid(), "CapEff", 16) >> cap) & 1;
}

/*
 * None; but where the limit of locked memory cannot be raised, since the manager has
 * no CAP_SYS_RESOURCE, a worker keeps the one that lets it lock without that limit.
 */
static void expect_no_capabilities(pid_t worker)
{
    static const char *const none[] = {"CapInh", "CapBnd", "CapAmb"};
    unsigned long long lock = has_capability(CAP_SYS_RESOURCE) ? 0 : 1ULL << CAP_IPC_LOCK;

    for (size_t i = 0; i < sizeof(none) / sizeof(none[0]); i++) {
        assert_int_equal(status_number(worker, none[i], 16), 0);
    }
    assert_int_equal(status_number(worker, "CapPrm", 16), lock);
    assert_int_equal(status_number(worker, "CapEff", 16), lock);
    assert_int_equal(status_number(worker, "NoNewPrivs", 10), 1);
}

static void worker_has_no_rights_left(void **state)
{
    static const char *const arguments[] = {"--limit", "8M", NULL};
    struct vmm v;
    (void)state;

    if (geteuid() != 0) {
        print_message("skip: who is not root has no rights to lose\n");
        skip();
    }
    manager_start(&m, "UFFDMM_MANAGER", arguments);
    start_guest(&v, "vm");
    pid_t worker = worker_of("vm");
    expect_no_capabilities(worker);
    assert_int_equal(status_number(worker, "Seccomp", 10), SANDBOX_SANITIZED ? 0 : 2);
    assert_true(status_number(m.pid, "CapEff", 16) !=
                0); /* who forks workers keeps them */
    stop_guest(&v);
    manager_stop(&m);
}

static void worker_is_the_last_to_be_killed_for_memory(void **state)
{
    char path[64], text[16] = "";
    struct vmm v;
    (void)state;

    if (!has_capability(CAP_SYS_RESOURCE)) {
        print_message("skip: lowering oom_score_adj takes CAP_SYS_RESOURCE\n");
        skip();
    }
    manager_start(&m, "UFFDMM_MANAGER", NULL);
    start_guest(&v, "vm");
    snprintf(path, sizeof(path), "/proc/%d/oom_score_adj", (int)worker_of("vm"));
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0 && read(fd, text, sizeof(text) - 1) > 0);
    close(fd);
    assert_int_equal(strtol(text, NULL, 10), -1000);
    stop_guest(&v);
    manager_stop(&m);
}

/* A session's place among the others, as the first line of /proc/PID/autogroup ends. */
static void worker_has_weight_on_a_busy_host(void **state)
{
    char path[64], text[64] = "";
    struct vmm v;
    (void)state;

    if (!has_capability(CAP_SYS_NICE) || access("/proc/self/autogroup", W_OK)) {
        print_message("skip: it takes CAP_SYS_NICE, and a kernel that groups sessions\n");
        skip();
    }
    manager_start(&m, "UFFDMM_MANAGER", NULL);
    start_guest(&v, "vm");
    snprintf(path, sizeof(path), "/proc/%d/autogroup", (int)worker_of("vm"));
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0 && read(fd, text, sizeof(text) - 1) > 0);
    close(fd);
    assert_non_null(strstr(text, "nice -10"));
    stop_guest(&v);
    manager_stop(&m);
}

static void expect_namespace(const char *which, bool own)
{
    char of_manager[64], of_worker[64];

    namespace_of(m.pid, which, of_manager, sizeof(of_manager));
    namespace_of(worker_of("vm"), which, of_worker, sizeof(of_worker));
    assert_int_equal(strcmp(of_manager, of_worker) != 0, own);
}

static void worker_has_no_network_unless_a_tier_is_nbd(void **state)
{
    static const char *const none[] = {NULL};
    static const char *const local[] = {"pool=pool", "ssd=file,path={store}", NULL};
    static const char *const off[] = {"--sandbox=off", NULL};
    struct vmm v;
    (void)state;

    if (geteuid() != 0) {
        print_message("skip: a network namespace takes root\n");
        skip();
    }
    manager_start_tiers(&m, "UFFDMM_MANAGER", local, none);
    start_guest(&v, "vm");
    expect_namespace("net", true);
    expect_namespace("ipc", true);
    stop_guest(&v);
    manager_stop(&m);

    manager_start_tiers(&m, "UFFDMM_MANAGER", local, off);
    start_guest(&v, "vm");
    expect_namespace("net", false);
    stop_guest(&v);
    manager_stop(&m);
}

static void workers_run_as_another_user(void **state)
{
    static const char *const arguments[] = {"--limit", "8M", "--run-as", "nobody", NULL};
    char store_option[192], ids[128];
    struct stat st;
    struct vmm v;
    (void)state;

    if (geteuid() != 0) {
        print_message("skip: changing to another user takes root\n");
        skip();
    }
    manager_prepare(&m);
    assert_return_code(chown(m.store, NOBODY, NOBODY), errno);
    assert_return_code(chmod(m.dir, 0755), errno);
    snprintf(store_option, sizeof(store_option), "file:%s", m.store);
    manager_start_again(&m, "UFFDMM_MANAGER", store_option, arguments);
    start_guest(&v, "vm");
    pid_t worker = worker_of("vm");
    status_field(worker, "Uid", ids, sizeof(ids));
    assert_string_equal(ids, "65534\t65534\t65534\t65534");
    status_field(worker, "Gid", ids, sizeof(ids));
    assert_string_equal(ids, "65534\t65534\t65534\t65534");
    expect_no_capabilities(worker);
    assert_int_equal(manager_volumes(&m), 1);
    stop_guest(&v); /* which has verified its memory: evictions went through */
    assert_return_code(stat(m.store, &st), errno);
    assert_true(manager_volumes_become(&m, 0, 5000));
    manager_stop(&m);
}

/* A user who may not write to the store: a refusal with the reason, not a stalled guest. */
static void store_of_another_user_is_refused(void **state)
{
    static const char *const arguments[] = {"--run-as", "nobody", NULL};
    struct standin s;
    (void)state;

    if (geteuid() != 0) {
        print_message("skip: changing to another user takes root\n");
        skip();
    }
    manager_start(&m, "UFFDMM_MANAGER", arguments);
    assert_int_equal(standin_open(&s, m.socket, "vm", RAM, 1), -EACCES);
    assert_non_null(strstr(s.error, m.store));
    manager_stop(&m);
}

/* ---- from inside ---------------------------------------------------------- */

enum fate { KILLED, REFUSED, LET_PASS };

/* What becomes of the attempt; a neighbour under the same manager must not feel it. */
static void expect_fate(const char *attempt, const char *mode, enum fate fate)
{
    const char *const arguments[] = {"--limit", "8M", "--sandbox", mode, NULL};
    struct vmm victim, neighbour;
    struct uffdmm_stats stats;
    char text[64], elsewhere[192];
    int ret;

    setenv("UFFDMM_TEST_INTRUDER", "victim", 1);
    setenv("UFFDMM_TEST_ATTEMPT", attempt, 1);
    manager_prepare(&m);
    snprintf(elsewhere, sizeof(elsewhere), "%s/elsewhere", m.dir);
    setenv("UFFDMM_TEST_ELSEWHERE", elsewhere, 1);
    snprintf(text, sizeof(text), "file:%.57s", m.store);
    manager_start_again(&m, "UFFDMM_MANAGER_HOOKS", text, arguments);
    start_guest(&victim, "victim");
    start_guest(&neighbour, "neighbour");
    pid_t worker = worker_of("neighbour");

    ret = control_stats(m.socket, "victim", &stats);
    assert_int_equal(ret == 0, fate != KILLED);
    if (fate == KILLED) {
        assert_true(manager_logged(&m, "was killed by signal 31", 5000));
    } else {
        snprintf(text, sizeof(text), "intruder: %s %s", attempt,
                 fate == REFUSED ? "refused" : "succeeded");
        if (!manager_logged(&m, text, 5000)) {
            manager_print_log(&m);
            fail_msg("no '%s' in the log", text);
        }
    }
    assert_int_equal(worker_of("neighbour"), worker);
    stop_guest(&neighbour);
    if (fate == KILLED) {
        vmm_kill(&victim); /* it waits for its memory: that is all that happens to it */
    } else {
        stop_guest(&victim);
    }
    manager_stop(&m);
    unsetenv("UFFDMM_TEST_INTRUDER");
    unsetenv("UFFDMM_TEST_ATTEMPT");
    unsetenv("UFFDMM_TEST_ELSEWHERE");
}

static void need_all_stages(void)
{
    if (SANDBOX_SANITIZED) {
        print_message("skip: a build with a sanitizer leaves this stage out\n");
        skip();
    }
}

static void need_landlock(void)
{
    if (syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION) <
        1) {
        print_message("skip: this kernel has no Landlock\n");
        skip();
    }
}

static void forbidden_calls_kill_that_worker_alone(void **state)
{
    static const char *const attempts[] = {"execve", "fork",   "ptrace",
                                           "mount",  "socket", "setuid"};
    (void)state;

    need_all_stages();
    for (size_t i = 0; i < sizeof(attempts) / sizeof(attempts[0]); i++) {
        expect_fate(attempts[i], "on", KILLED);
    }
}

static void unknown_calls_are_refused_without_harm(void **state)
{
    (void)state;
    need_all_stages();
    expect_fate("clone3", "on", REFUSED);
    expect_fate("ioctl", "on", REFUSED);
}

static void files_elsewhere_cannot_be_opened(void **state)
{
    (void)state;
    need_all_stages();
    need_landlock();
    expect_fate("read-elsewhere", "on", REFUSED);
    expect_fate("write-elsewhere", "on", REFUSED);
    expect_fate("ring", "on", REFUSED); /* past the filter, not past Landlock */
}

/* The control of the three above. */
static void all_of_it_works_without_the_sandbox(void **state)
{
    (void)state;
    expect_fate("socket", "off", LET_PASS);
    expect_fate("fork", "off", LET_PASS);
    expect_fate("read-elsewhere", "off", LET_PASS);
    expect_fate("write-elsewhere", "off", LET_PASS);
    expect_fate("ring", "off", LET_PASS);
}

/* In this mode the filter lets pass what the other stages do not forbid. */
static void mode_log_lets_calls_pass(void **state)
{
    (void)state;
    expect_fate("socket", "log", LET_PASS);
    expect_fate("fork", "log", LET_PASS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(worker_has_no_rights_left),
        cmocka_unit_test(worker_is_the_last_to_be_killed_for_memory),
        cmocka_unit_test(worker_has_weight_on_a_busy_host),
        cmocka_unit_test(worker_has_no_network_unless_a_tier_is_nbd),
        cmocka_unit_test(workers_run_as_another_user),
        cmocka_unit_test(store_of_another_user_is_refused),
        cmocka_unit_test(forbidden_calls_kill_that_worker_alone),
        cmocka_unit_test(unknown_calls_are_refused_without_harm),
        cmocka_unit_test(files_elsewhere_cannot_be_opened),
        cmocka_unit_test(all_of_it_works_without_the_sandbox),
        cmocka_unit_test(mode_log_lets_calls_pass),
    };

    return cmocka_run_group_tests(tests, end_process_when_hung, NULL);
}
