/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "unit.h"

#include "late_link.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "uffd_fixture.h"

enum { CHUNK = 1 << 16, KEPT_MAX = 64 << 20, DELIVER_MS = 500, AWAIT_MS = 20000 };

struct late_link_state {
    _Atomic uint32_t serial;          /* of the connection that came last */
    _Atomic uint32_t held;            /* connections up to this one are kept */
    _Atomic uint32_t deliver;         /* what was kept goes out */
    _Atomic uint64_t kept, delivered; /* bytes */
};

struct link {
    struct late_link_state *state;
    uint32_t serial;
    int client, server;
    char *kept;
    size_t nr_kept;
};

static int unix_socket(const char *path, struct sockaddr_un *addr)
{
    *addr = (struct sockaddr_un){.sun_family = AF_UNIX};
    snprintf(addr->sun_path, sizeof(addr->sun_path), "%s", path);
    return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
}

static bool send_all(int fd, const char *bytes, size_t length)
{
    while (length) {
        ssize_t n = send(fd, bytes, length, MSG_NOSIGNAL);

        if (n <= 0) {
            return false;
        }
        bytes += n;
        length -= (size_t)n;
    }
    return true;
}

static void *to_client(void *opaque)
{
    struct link *l = opaque;
    char buf[CHUNK];
    ssize_t n;

    while ((n = recv(l->server, buf, sizeof(buf), 0)) > 0) {
        /* a client that is gone wants no answer; the server is read all the same */
        if (!send_all(l->client, buf, (size_t)n)) {
            continue;
        }
    }
    shutdown(l->client, SHUT_RDWR);
    return NULL;
}

/* Whether what comes on the link is kept; noted before each piece is read. */
static bool is_held(const struct link *l)
{
    return atomic_load(&l->state->held) >= l->serial;
}

static void *to_server(void *opaque)
{
    struct link *l = opaque;
    char buf[CHUNK];
    ssize_t n;

    while ((n = recv(l->client, buf, sizeof(buf), 0)) > 0) {
        if (!is_held(l)) {
            if (!send_all(l->server, buf, (size_t)n)) {
                break;
            }
        } else if (l->nr_kept + (size_t)n <= KEPT_MAX) {
            memcpy(l->kept + l->nr_kept, buf, (size_t)n);
            l->nr_kept += (size_t)n;
            atomic_fetch_add(&l->state->kept, (uint64_t)n);
        }
    }
    while (is_held(l) && !atomic_load(&l->state->deliver)) {
        sleep_ms(1);
    }
    send_all(l->server, l->kept, l->nr_kept);
    atomic_fetch_add(&l->state->delivered, l->nr_kept);
    if (!is_held(l)) {
        shutdown(l->server, SHUT_RDWR);
    } /* else left open: a server may drop what it has not begun when it sees the end */
    return NULL;
}

static _Noreturn void serve(struct late_link_state *state, int listener,
                            const char *server)
{
    for (;;) {
        struct link *l = calloc(1, sizeof(*l));
        struct sockaddr_un addr;
        pthread_t thread;

        if (!l || !(l->kept = malloc(KEPT_MAX))) {
            _exit(1);
        }
        l->state = state;
        l->client = accept(listener, NULL, NULL);
        l->server = unix_socket(server, &addr);
        l->serial = atomic_load(&state->serial) + 1;
        if (l->client < 0 || l->server < 0 ||
            connect(l->server, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
            close(l->client);
            close(l->server);
            free(l->kept);
            free(l);
            continue;
        }
        atomic_store(&state->serial, l->serial);
        if (pthread_create(&thread, NULL, to_client, l) ||
            pthread_create(&thread, NULL, to_server, l)) {
            _exit(1);
        }
    }
}

void late_link_start(struct late_link *l, const char *path, const char *server)
{
    struct sockaddr_un addr;
    pid_t parent = getpid();
    int fd = unix_socket(path, &addr);

    assert_true(fd >= 0);
    assert_return_code(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
    assert_return_code(listen(fd, 64), 0);
    l->state = mmap(NULL, sizeof(*l->state), PROT_READ | PROT_WRITE,
                    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(l->state != MAP_FAILED);
    l->pid = fork();
    assert_true(l->pid >= 0);
    if (!l->pid) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) {
            _exit(126);
        }
        serve(l->state, fd, server);
    }
    close(fd);
}

void late_link_stop(struct late_link *l)
{
    kill(l->pid, SIGKILL);
    assert_int_equal(waitpid(l->pid, NULL, 0), l->pid);
    munmap(l->state, sizeof(*l->state));
}

void late_link_hold(struct late_link *l)
{
    atomic_store(&l->state->held, atomic_load(&l->state->serial));
}

void late_link_await(struct late_link *l, uint64_t bytes)
{
    int64_t deadline = monotonic_ms() + AWAIT_MS;

    while (atomic_load(&l->state->kept) < bytes) {
        assert_true(monotonic_ms() < deadline);
        sleep_ms(1);
    }
}

void late_link_deliver(struct late_link *l)
{
    int64_t deadline = monotonic_ms() + AWAIT_MS;

    atomic_store(&l->state->deliver, 1);
    while (atomic_load(&l->state->delivered) < atomic_load(&l->state->kept)) {
        assert_true(monotonic_ms() < deadline);
        sleep_ms(1);
    }
    sleep_ms(DELIVER_MS);
}
