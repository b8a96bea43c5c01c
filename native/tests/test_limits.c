/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What one user, one process or one connection can take of a manager that serves
 * others, too: connections, names, descriptors and time.
 */
#include "unit.h"

#include "bystander.h"
#include "uffd_fixture.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { NOBODY = 65534, STRANGER = 65533, HELLO_MS = 5000, SLACK_MS = 4000 };
/* as in acceptor.c and worker.c */
enum { PENDING_PER_USER = 16, VMS_PER_PROCESS = 16, CONNS_OF_USER = 64 - 8 };

static void become(struct vmm *v, uid_t uid)
{
    VMM_EXPECT(v, setresgid(uid, uid, uid) == 0);
    VMM_EXPECT(v, setresuid(uid, uid, uid) == 0);
}

/* The descriptors of the manager. */
static int manager_descriptors(void)
{
    char path[64];
    int n = 0;

    snprintf(path, sizeof(path), "/proc/%d/fd", (int)manager.pid);
    DIR *dir = opendir(path);
    assert_non_null(dir);
    while (readdir(dir)) {
        n++;
    }
    closedir(dir);
    return n;
}

/* True when the other side has closed within the time; what it says is thrown away. */
static bool closes(int sock, int timeout_ms)
{
    int64_t deadline = monotonic_ms() + timeout_ms;
    char text[1024];

    while (monotonic_ms() < deadline) {
        struct pollfd pfd = {.fd = sock, .events = POLLIN};

        if (poll(&pfd, 1, 100) > 0 && read(sock, text, sizeof(text)) <= 0) {
            return true;
        }
    }
    return false;
}

/* ---- connections ---------------------------------------------------------- */

/* Takes all that a user gets and keeps it. */
static void hoard_body(struct vmm *v, const void *arg)
{
    const uid_t *uid = arg;
    int socks[2 * PENDING_PER_USER];

    become(v, *uid);
    for (int i = 0; i < 2 * PENDING_PER_USER; i++) {
        socks[i] = peer_connect(v->socket);
        VMM_EXPECT(v, socks[i] >= 0);
    }
    for (int i = 0; i < 2 * PENDING_PER_USER; i++) {
        struct peer_msg msg;
        int ret = peer_receive(socks[i], &msg, i < PENDING_PER_USER ? 100 : 3000);

        if (i < PENDING_PER_USER) {
            VMM_EXPECT(v, ret == -ETIMEDOUT); /* waits for our HELLO */
        } else {
            VMM_EXPECT(v, ret == 0 && msg.header.status == -EBUSY);
        }
    }
    vmm_set_phase(v, 1);
    vmm_await_command(v, 1);
}

static void one_user_cannot_take_all_connections(void **state)
{
    static const uid_t uids[] = {NOBODY, STRANGER};
    struct uffdmm_list_entry list[4];
    struct vmm hoarders[2];
    (void)state;

    for (int i = 0; i < 2; i++) {
        vmm_start(&hoarders[i], manager.socket, hoard_body, &uids[i]);
    }
    for (int i = 0; i < 2; i++) {
        vmm_await_phase(&hoarders[i], 1, 20000);
    }
    assert_true(control_list(manager.socket, list, 4) >= 1);
    for (int i = 0; i < 2; i++) {
        vmm_command(&hoarders[i], 1);
        vmm_join(&hoarders[i], 5000);
    }
}

static void connection_that_never_says_hello_is_closed(void **state)
{
    struct uffdmm_msg_header header =
        peer_header(UFFDMM_MSG_HELLO, sizeof(struct uffdmm_hello), 1, 0);
    int64_t begin = monotonic_ms();
    int silent = connect_raw(), half = connect_raw();
    (void)state;

    /* one byte now and then does not prolong it */
    for (size_t i = 0; i < 8; i++) {
        assert_int_equal(peer_send_raw(half, (char *)&header + i, 1, NULL, 0), 0);
        sleep_ms(300);
    }
    assert_true(closes(silent, HELLO_MS + SLACK_MS));
    assert_true(closes(half, HELLO_MS + SLACK_MS));
    assert_true(monotonic_ms() - begin >= HELLO_MS - 100);
    close(silent);
    close(half);
}

/* A VM whose user takes all connections of its worker. */
static void greedy_body(struct vmm *v, const void *arg)
{
    struct peer_msg reply;
    int refusals = 0;
    (void)arg;

    become(v, NOBODY);
    for (int i = 0; i < CONNS_OF_USER + 1; i++) {
        enum uffdmm_role role = i ? UFFDMM_ROLE_CONTROL : UFFDMM_ROLE_QEMU;
        int sock = peer_open(v->socket, role, "greedy", &reply);

        VMM_EXPECT(v, sock >= 0 || sock == -EBUSY);
        refusals += sock < 0;
    }
    VMM_EXPECT(v, refusals == 1);
    vmm_set_phase(v, 1);
    vmm_await_command(v, 1);
}

static void user_of_a_vm_cannot_lock_root_out_of_it(void **state)
{
    struct uffdmm_stats stats;
    struct vmm v;
    (void)state;

    vmm_start(&v, manager.socket, greedy_body, NULL);
    vmm_await_phase(&v, 1, 20000);
    assert_int_equal(control_stats(manager.socket, "greedy", &stats), 0);
    vmm_command(&v, 1);
    vmm_join(&v, 5000);
}

/* ---- names ---------------------------------------------------------------- */

static void many_names_body(struct vmm *v, const void *arg)
{
    (void)arg;
    become(v, NOBODY);
    for (int i = 0; i <= VMS_PER_PROCESS; i++) {
        struct peer_msg reply;
        char name[UFFDMM_NAME_MAX];

        snprintf(name, sizeof(name), "many-%d", i);
        int sock = peer_open(v->socket, UFFDMM_ROLE_QEMU, name, &reply);
        if (i < VMS_PER_PROCESS) {
            VMM_EXPECT(v, sock >= 0);
        } else {
            VMM_EXPECT(v, sock == -EBUSY);
        }
    }
}

static void one_process_has_few_vms(void **state)
{
    (void)state;
    in_own_process(many_names_body, NULL);
    assert_true(manager_vms_become(&manager, 1, 10000));
}

static void name_thief_body(struct vmm *v, const void *arg)
{
    struct peer_msg reply;
    (void)arg;

    become(v, NOBODY);
    VMM_EXPECT(v, peer_open(v->socket, UFFDMM_ROLE_QEMU, "bystander", &reply) == -EEXIST);
    /* to look at it is no more allowed than to learn that it is there */
    VMM_EXPECT(v,
               peer_open(v->socket, UFFDMM_ROLE_CONTROL, "bystander", &reply) == -ENOENT);
    struct uffdmm_list_entry list[4];
    VMM_EXPECT(v, control_list(v->socket, list, 4) == 0);
}

static void vm_of_another_user_is_out_of_reach(void **state)
{
    (void)state;
    in_own_process(name_thief_body, NULL);
}

/* ---- descriptors ---------------------------------------------------------- */

static void descriptors_do_not_pile_up(void **state)
{
    enum { ROUNDS = 40 };
    struct uffdmm_msg_header header =
        peer_header(UFFDMM_MSG_HELLO, sizeof(struct uffdmm_hello), 1, 0);
    int fds[32], before = manager_descriptors();
    int socks[ROUNDS];
    (void)state;

    for (int i = 0; i < 32; i++) {
        fds[i] = open("/dev/null", O_RDONLY | O_CLOEXEC);
        assert_true(fds[i] >= 0);
    }
    for (int i = 0; i < ROUNDS; i++) {
        socks[i] = connect_raw();
        /* again and again with part of one message: more than any may carry */
        for (size_t j = 0; j < sizeof(header) - 1; j++) {
            if (peer_send_raw(socks[i], (char *)&header + j, 1, fds, 32) < 0) {
                break;
            }
        }
    }
    for (int i = 0; i < ROUNDS; i++) {
        assert_true(closes(socks[i], 3000)); /* not by the time-out of HELLO */
        close(socks[i]);
    }
    for (int i = 0; i < 32; i++) {
        close(fds[i]);
    }
    int64_t deadline = monotonic_ms() + 3000;
    while (manager_descriptors() > before && monotonic_ms() < deadline) {
        sleep_ms(10);
    }
    assert_true(manager_descriptors() <= before);
}

/* ---- fixture -------------------------------------------------------------- */

static int start(void **state)
{
    static const char *const arguments[] = {"--limit", "8M", "--allow-uid", "65534",
                                            NULL};
    int ret = bystander_start_with(state, arguments);
    assert_return_code(chmod(manager.dir, 0755), errno);
    return ret;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(one_user_cannot_take_all_connections, bystander_lives),
        cmocka_unit_test_teardown(connection_that_never_says_hello_is_closed,
                                  bystander_lives),
        cmocka_unit_test_teardown(user_of_a_vm_cannot_lock_root_out_of_it,
                                  bystander_lives),
        cmocka_unit_test_teardown(one_process_has_few_vms, bystander_lives),
        cmocka_unit_test_teardown(vm_of_another_user_is_out_of_reach, bystander_lives),
        cmocka_unit_test_teardown(descriptors_do_not_pile_up, bystander_lives),
    };

    if (geteuid() != 0) {
        puts("skip: being several users takes root");
        return 77;
    }
    return cmocka_run_group_tests(tests, start, bystander_stop);
}
