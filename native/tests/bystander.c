/* SPDX-License-Identifier: GPL-2.0-or-later */
/* See bystander.h. */
#include "unit.h"

#include "bystander.h"
#include "guest_load.h"
#include "uffd_fixture.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { RAM = BYSTANDER_RAM, END_MS = 60000 };

struct manager manager;
static struct vmm bystander;
static uint32_t bystander_worker;

static void bystander_body(struct vmm *v, const void *arg)
{
    struct standin s;
    struct guest_load l;
    (void)arg;

    vmm_check(v, &s, standin_open(&s, v->socket, "bystander", RAM, 1));
    load_init(&l, v, &s, 3, 1, LOAD_MIXED);
    load_fill(&l);
    vmm_set_phase(v, 1);
    while (atomic_load(&v->report->command) < 1) {
        load_run(&l, LOAD_RANDOM, 20);
        sleep_ms(20); /* leaves the CPUs to the tests */
    }
    load_verify(&l);
}

int bystander_start(void **state)
{
    static const char *const arguments[] = {"--limit", "8M", NULL};

    return bystander_start_with(state, arguments);
}

int bystander_start_with(void **state, const char *const *arguments)
{
    struct uffdmm_stats stats;

    end_process_when_hung(state);
    manager_start(&manager, "UFFDMM_MANAGER", arguments);
    vmm_start(&bystander, manager.socket, bystander_body, NULL);
    vmm_await_phase(&bystander, 1, END_MS);
    assert_int_equal(control_stats(manager.socket, "bystander", &stats), 0);
    bystander_worker = stats.worker_pid;
    return 0;
}

int bystander_stop(void **state)
{
    (void)state;
    vmm_command(&bystander, 1);
    vmm_join(&bystander, END_MS);
    manager_stop(&manager);
    return 0;
}

/* After every test: same worker, steps go on, memory is right (it checks itself). */
int bystander_lives(void **state)
{
    struct uffdmm_stats stats;
    int64_t deadline = monotonic_ms() + END_MS;
    (void)state;

    uint64_t before = atomic_load(&bystander.report->steps);
    while (atomic_load(&bystander.report->steps) < before + 20) {
        assert_true(monotonic_ms() < deadline);
        assert_int_equal(kill(bystander.pid, 0), 0);
        sleep_ms(2);
    }
    assert_int_equal(atomic_load(&bystander.report->wrong), 0);
    assert_int_equal(control_stats(manager.socket, "bystander", &stats), 0);
    assert_int_equal(stats.worker_pid, bystander_worker);
    assert_int_equal(kill(manager.pid, 0), 0);
    return 0;
}

/* True when the peer refuses: an error reply with a sentence, or a closed connection. */
bool refused(int sock)
{
    struct peer_msg msg;
    int ret = peer_receive(sock, &msg, PEER_TIMEOUT_MS);

    if (ret < 0) {
        return ret == -EPIPE;
    }
    return msg.header.status < 0 && msg.header.length == sizeof(struct uffdmm_error) &&
           msg.payload[0] && memchr(msg.payload, '\0', UFFDMM_TEXT_MAX) &&
           msg.nr_fds == 0;
}

void expect_refusal(int sock)
{
    assert_true(refused(sock));
    close(sock);
}

/*
 * A VM in a process of its own: after a bad message its connection may be closed
 * and its region waits for it to reconnect, which only its end puts an end to.
 */
void in_own_process(void (*body)(struct vmm *v, const void *arg), const void *arg)
{
    struct vmm v;

    vmm_start(&v, manager.socket, body, arg);
    vmm_join(&v, END_MS);
}

/* No two of these processes share a worker. */
void open_own_vm(struct vmm *v, struct standin *s)
{
    char name[UFFDMM_NAME_MAX];

    snprintf(name, sizeof(name), "vm-%d", (int)getpid());
    vmm_check(v, s, standin_open(s, v->socket, name, RAM, 1));
}

int connect_raw(void)
{
    int sock = peer_connect(manager.socket);

    assert_return_code(sock, -sock);
    return sock;
}

/* A connection that has said HELLO as a VM or a control client. */
int greeted(enum uffdmm_role role, const char *vm_name)
{
    struct peer_msg reply;
    int sock = peer_open(manager.socket, role, vm_name, &reply);

    if (sock < 0) {
        fail_msg("HELLO as %s: %s (%s)", vm_name, strerror(-sock), (char *)reply.payload);
    }
    return sock;
}
