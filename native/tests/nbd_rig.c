/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "unit.h"

#include "nbd_rig.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "clock.h"
#include "stats.h"

#define ARGS_MAX 32
#define LISTEN_MS 10000

void rig_sleep_ms(unsigned ms)
{
    struct timespec ts = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};

    nanosleep(&ts, NULL);
}

void rig_init(struct nbd_rig *r, uint64_t bytes)
{
    int fd;

    memset(r, 0, sizeof(*r));
    snprintf(r->dir, sizeof(r->dir), "/tmp/uffdmm-nbd-XXXXXX");
    assert_non_null(mkdtemp(r->dir));
    snprintf(r->socket, sizeof(r->socket), "%s/sock", r->dir);
    snprintf(r->file, sizeof(r->file), "%s/file", r->dir);
    fd = open(r->file, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, (off_t)bytes), 0);
    close(fd);
    snprintf(r->config.name, sizeof(r->config.name), "remote");
    snprintf(r->config.uri, sizeof(r->config.uri), "nbd+unix:///?socket=%s", r->socket);
    r->config.type = UFFDMM_TIER_NBD;
    r->config.shared = true;
    r->config.connections = 4;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

void rig_deinit(struct nbd_rig *r)
{
    if (r->opened) {
        rig_close(r, false);
    }
    rig_kill(r);
    nftw(r->dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

bool rig_have(const char *program)
{
    char path[4096], *save = NULL, full[4352];
    const char *env = getenv("PATH");

    snprintf(path, sizeof(path), "%s:/usr/sbin:/sbin", env ? env : "/usr/bin:/bin");
    for (char *dir = strtok_r(path, ":", &save); dir; dir = strtok_r(NULL, ":", &save)) {
        snprintf(full, sizeof(full), "%s/%s", dir, program);
        if (access(full, X_OK) == 0) {
            return true;
        }
    }
    return false;
}

void rig_need(const char *program)
{
    if (!rig_have(program)) {
        print_message("skip: %s is not installed\n", program);
        skip();
    }
}

/* The address of the server; its length. */
static socklen_t address(const struct nbd_rig *r, struct sockaddr_storage *addr)
{
    struct sockaddr_un *un = (struct sockaddr_un *)addr;
    struct sockaddr_in *in = (struct sockaddr_in *)addr;

    memset(addr, 0, sizeof(*addr));
    if (r->port) {
        in->sin_family = AF_INET;
        in->sin_port = htons(r->port);
        in->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        return sizeof(*in);
    }
    un->sun_family = AF_UNIX;
    snprintf(un->sun_path, sizeof(un->sun_path), "%s", r->socket);
    return sizeof(*un);
}

static bool listening(const struct nbd_rig *r)
{
    struct sockaddr_storage addr;
    socklen_t len = address(r, &addr);
    int fd = socket(addr.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool ok;

    assert_true(fd >= 0);
    ok = connect(fd, (struct sockaddr *)&addr, len) == 0;
    close(fd);
    return ok;
}

static void become_child_of(pid_t parent)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) {
        _exit(126);
    }
}

static void become_server(const char *const *argv)
{
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);

    if (null < 0 || (!getenv("UFFDMM_TEST_VERBOSE") && dup2(null, STDERR_FILENO) < 0)) {
        _exit(126);
    }
    execvp(argv[0], (char *const *)(uintptr_t)argv);
    _exit(127);
}

/* Runs the server again whenever it has failed an assertion of its own. */
static void keep(const struct nbd_rig *r, const char *const *argv)
{
    pid_t self = getpid();
    int status;

    setpgid(0, 0);
    do {
        pid_t pid = fork();
        if (pid == 0) {
            become_child_of(self);
            become_server(argv);
        }
        if (pid < 0 || waitpid(pid, &status, 0) != pid) {
            _exit(126);
        }
        dprintf(STDERR_FILENO, "%s has ended with status %#x\n", argv[0],
                (unsigned)status);
        unlink(r->socket);
    } while (WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    _exit(126);
}

void rig_serve_program(struct nbd_rig *r, const char *program, const char *const *args)
{
    const char *argv[ARGS_MAX] = {program};
    pid_t parent = getpid();
    unsigned n = 1;

    assert_int_equal(r->server, 0);
    while (*args) {
        assert_true(n < ARGS_MAX - 1);
        argv[n++] = *args++;
    }
    unlink(r->socket);
    r->server = fork();
    assert_true(r->server >= 0);
    if (r->server == 0) {
        become_child_of(parent);
        if (r->kept) {
            keep(r, argv);
        }
        become_server(argv);
    }
    for (unsigned ms = 0; !listening(r); ms += 10) {
        assert_true(ms < LISTEN_MS);
        assert_int_equal(waitpid(r->server, NULL, WNOHANG), 0);
        rig_sleep_ms(10);
    }
}

void rig_serve(struct nbd_rig *r, const char *const *args)
{
    const char *all[ARGS_MAX] = {"-f", "-U", r->socket};
    unsigned n = 3;

    while (*args) {
        assert_true(n < ARGS_MAX - 1);
        all[n++] = *args++;
    }
    rig_serve_program(r, "nbdkit", all);
}

/* A port of the loopback device that nobody uses. */
static uint16_t free_port(void)
{
    struct sockaddr_in addr = {.sin_family = AF_INET,
                               .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(addr);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&addr, &len), 0);
    close(fd);
    return ntohs(addr.sin_port);
}

void rig_serve_tcp(struct nbd_rig *r)
{
    char port[16];
    const char *const args[] = {"-f", "-i",   "127.0.0.1", "-p",
                                port, "file", r->file,     NULL};

    r->port = free_port();
    snprintf(port, sizeof(port), "%u", r->port);
    snprintf(r->config.uri, sizeof(r->config.uri), "nbd://127.0.0.1:%u/", r->port);
    rig_serve_program(r, "nbdkit", args);
}

void rig_serve_file(struct nbd_rig *r)
{
    const char *const args[] = {"file", r->file, NULL};

    rig_serve(r, args);
}

void rig_kill(struct nbd_rig *r)
{
    if (r->server) {
        kill(r->kept ? -r->server : r->server, SIGKILL);
        assert_int_equal(waitpid(r->server, NULL, 0), r->server);
        r->server = 0;
    }
}

void rig_stop(struct nbd_rig *r)
{
    int status;

    assert_int_equal(kill(r->server, SIGSTOP), 0);
    assert_int_equal(waitpid(r->server, &status, WUNTRACED), r->server);
    assert_true(WIFSTOPPED(status));
}

int rig_try_open(struct nbd_rig *r, const char *name)
{
    struct tier_vm vm = {.name = name, .uuid = {1, 2, 3}, .qemu_pid = getpid()};

    r->err[0] = '\0';
    memset(&r->stats, 0, sizeof(r->stats));
    memset(&r->tier, 0, sizeof(r->tier));
    r->tier.ops = &tier_nbd_ops;
    r->tier.config = &r->config;
    r->tier.stats = &r->stats;
    r->tier.vm = vm;
    r->tier.index = 1;
    r->tier.arena_fd = -1;
    r->tier.max_bytes = UINT64_MAX;
    return tier_nbd_ops.open(&r->tier, &vm, r->err, sizeof(r->err));
}

void rig_open(struct nbd_rig *r, const char *name, uint64_t bytes)
{
    struct tier *tiers[] = {&r->tier};

    if (rig_try_open(r, name) != 0) {
        fail_msg("cannot open the tier: %s", r->err);
    }
    assert_int_equal(tier_nbd_ops.reserve(&r->tier, bytes, r->err, sizeof(r->err)), 0);
    assert_int_equal(tier_queue_init(&r->queue, tiers, 1), 0);
    r->opened = true;
}

void rig_close(struct nbd_rig *r, bool keep)
{
    tier_queue_deinit(&r->queue);
    tier_nbd_ops.close(&r->tier, keep);
    r->opened = false;
}

void rig_take(struct nbd_rig *r, uint64_t *slots, unsigned nr)
{
    struct tier_put *puts = calloc(nr, sizeof(*puts));

    assert_non_null(puts);
    tier_nbd_ops.put(&r->tier, NULL, puts, nr);
    for (unsigned i = 0; i < nr; i++) {
        assert_int_equal(puts[i].result, 0);
        slots[i] = puts[i].slot;
    }
    free(puts);
}

void rig_fill(void *page, uint64_t seed)
{
    uint64_t *words = page;

    for (unsigned i = 0; i < RIG_PAGE / sizeof(*words); i++) {
        words[i] = (seed + 1) * 0x9e3779b97f4a7c15ULL + i;
    }
}

bool rig_filled(const void *page, uint64_t seed)
{
    char expected[RIG_PAGE];

    rig_fill(expected, seed);
    return memcmp(page, expected, RIG_PAGE) == 0;
}

void rig_submit(struct nbd_rig *r, struct tier_io *io, struct iovec *iov, bool write,
                uint64_t slot, void *pages, unsigned nr)
{
    *iov = (struct iovec){.iov_base = pages, .iov_len = nr * RIG_PAGE};
    *io = (struct tier_io){.tier = &r->tier,
                           .write = write,
                           .slot = slot,
                           .iov = iov,
                           .nr_iov = 1,
                           .length = nr * RIG_PAGE};
    tier_submit(&r->queue, io);
}

bool rig_wait(struct nbd_rig *r, struct tier_io *io, unsigned ms)
{
    uint64_t until = clock_ns() + ms * NSEC_PER_MSEC;

    while (!io->done && clock_ns() < until) {
        if (!tier_poll(&r->queue)) {
            rig_sleep_ms(1);
        }
    }
    return io->done;
}

int rig_io(struct nbd_rig *r, bool write, uint64_t slot, void *pages, unsigned nr)
{
    struct iovec iov;
    struct tier_io io;

    rig_submit(r, &io, &iov, write, slot, pages, nr);
    assert_true(rig_wait(r, &io, 30000));
    return io.result;
}

bool rig_wait_state(struct nbd_rig *r, unsigned state, unsigned ms)
{
    uint64_t until = clock_ns() + ms * NSEC_PER_MSEC;

    while (stats_get(&r->stats.state) != state) {
        if (clock_ns() >= until) {
            return false;
        }
        rig_sleep_ms(1);
    }
    return true;
}

unsigned rig_connections(const struct nbd_rig *r)
{
    FILE *f = fopen("/proc/net/unix", "re");
    char line[512];
    unsigned n = 0;

    assert_non_null(f);
    while (fgets(line, sizeof(line), f)) {
        /* Num RefCount Protocol Flags Type St Inode Path: 03 is connected */
        n += strstr(line, r->socket) && strstr(line, " 0001 03 ");
    }
    fclose(f);
    return n;
}
