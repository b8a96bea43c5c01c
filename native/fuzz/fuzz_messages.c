/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Messages of QEMU and of control clients against a worker in this process, without
 * stores and threads: the parser of conn.c, the table of handlers and what they
 * check.  Bit 0 of the first byte says who speaks, bit 1 how the rest is read:
 *
 *   0  the bytes of the socket, headers and all
 *   1  messages with a right header: number of the handler, number of descriptors,
 *      and as many bytes of payload as that handler wants, zeros where they end
 *
 * Userfaultfds cannot be had here, so regions never get further than created.
 */
#include "fuzz.h"

#include <sys/eventfd.h>

/* its functions are static, and this program wants the table of handlers too */
#include "../src/worker.c"

enum { SIZE_MAX_FUZZED = 4 << 20, MESSAGES_MAX = 32, FDS_AT_MOST = 3 };

static struct options options;
static struct worker worker;
static int null_fd;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    struct vm *vm = &worker.vm;
    pthread_rwlockattr_t attr;

    (void)argc;
    (void)argv;
    log_set_level(0); /* refusals are what this is about */
    options.readahead_pages = WINDOW_MAX;
    options.tracking = true;
    worker.channel = worker.signal_fd = -1;
    worker.stores_open = true;
    vm->options = &options;
    vm->qemu_pid = getpid();
    vm->nr_tiers = 1;
    vm->nr_waited = 1;
    snprintf(vm->name, sizeof(vm->name), "fuzz");
    FUZZ_EXPECT(stats_create(&vm->stats, &vm->stats_fd) == 0);
    vm->evict_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    vm->demote_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    vm->background_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    FUZZ_EXPECT(null_fd >= 0);
    pthread_rwlockattr_init(&attr);
    pthread_rwlock_init(&vm->regions_lock, &attr);
    pthread_rwlockattr_destroy(&attr);
    queue_init(vm);
    policy_init(vm);
    FUZZ_EXPECT(mig_new(vm, &vm->mig) == 0);
    return 0;
}

/* Lets the worker read what there is and throws its answers away; false when it closed. */
static bool turn(int sock)
{
    char answer[4096];
    bool open = worker.nr_conns && on_conn(&worker, 0);

    while (recv(sock, answer, sizeof(answer), MSG_DONTWAIT) > 0) {
    }
    return open;
}

static bool send_message(int sock, uint32_t type, const void *payload, size_t length,
                         unsigned nr_fds)
{
    int fds[FDS_AT_MOST] = {null_fd, null_fd, null_fd};

    return conn_send(sock, type, 1, 0, payload, length, fds, nr_fds) == 0 && turn(sock);
}

/* One message off the input; false when there is none, or no connection any more. */
static bool next_message(int sock, const uint8_t **data, size_t *size)
{
    _Alignas(8) uint8_t payload[UFFDMM_PAYLOAD_MAX] = {0};
    const size_t nr = sizeof(handlers) / sizeof(handlers[0]);
    size_t i, length;
    unsigned nr_fds;

    if (*size < 2) {
        return false;
    }
    i = (*data)[0] % nr;
    nr_fds = handlers[i].nr_fds < 0 ? (*data)[1] % (FDS_AT_MOST + 1)
                                    : (unsigned)handlers[i].nr_fds;
    *data += 2;
    *size -= 2;
    length = *size < handlers[i].length ? *size : handlers[i].length;
    memcpy(payload, *data, length);
    *data += length;
    *size -= length;
    if (handlers[i].type == UFFDMM_MSG_REGION_CREATE) {
        struct uffdmm_region_create *req = (void *)payload;

        /* what is refused for its size is left; what would be made is small */
        if (req->size % PAGE_SIZE_4K == 0) {
            req->size %= SIZE_MAX_FUZZED;
        }
    }
    return send_message(sock, handlers[i].type, payload, handlers[i].length, nr_fds);
}

/* The number that the next descriptor gets. */
static int lowest_free(void)
{
    int fd = dup(null_fd);

    FUZZ_EXPECT(fd >= 0);
    close(fd);
    return fd;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct conn *c;
    int socks[2], lowest = lowest_free();
    bool framed;

    if (size < 1 || size > 16384) {
        return 0;
    }
    FUZZ_EXPECT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, socks) == 0);
    c = conn_new(socks[1]);
    FUZZ_EXPECT(c);
    c->role = data[0] & 1 ? UFFDMM_ROLE_CONTROL : UFFDMM_ROLE_QEMU;
    c->greeted = true;
    worker.conns[worker.nr_conns++] = c;
    framed = data[0] & 2;
    data++;
    size--;
    if (framed) {
        for (int i = 0; i < MESSAGES_MAX && next_message(socks[0], &data, &size); i++) {
        }
    } else if (size && send(socks[0], data, size, MSG_DONTWAIT | MSG_NOSIGNAL) > 0) {
        turn(socks[0]);
    }
    while (worker.nr_conns) {
        drop_conn(&worker, 0);
    }
    close(socks[0]);
    mig_thread_stop(worker.vm.mig); /* has copies of the socket */
    mig_reset(worker.vm.mig);
    for (unsigned i = 0; i < UFFDMM_REGIONS_MAX; i++) {
        FUZZ_EXPECT(!worker.vm.regions[i]); /* none was attached, so none stays */
    }
    FUZZ_EXPECT(stats_get(&worker.vm.stats->nr_regions) == 0);
    FUZZ_EXPECT(lowest_free() == lowest); /* nothing was left open */
    return 0;
}
