/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The acceptor.
 *
 * It reads one message of each connection, HELLO, and never touches guest
 * memory.  The first connection of a QEMU process with a VM name forks a
 * worker; later ones of the same process are handed to it.  It is
 * single-threaded, so that fork() is safe and a worker starts from a small and
 * clean process.
 *
 * When it ends, workers go on: they hold all that guests need.  When another one has
 * taken its place they make way for workers of that one (succession.h).
 */
#include "acceptor.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "activation.h"
#include "clock.h"
#include "conn.h"
#include "log.h"
#include "nbd_lib.h"
#include "succession.h"
#include "tier_file.h"
#include "worker.h"

#define VMS_MAX 1024
/* Of one process, and of one user other than root and our own. */
#define VMS_PER_PROCESS 16
#define VMS_PER_USER (VMS_MAX / 4)
/*
 * Connections that wait for a HELLO or only list.  No user takes the room of
 * another; those who may not use the manager share that of one.
 */
#define PENDING_PER_USER 16
#define PENDING_MAX (64 + PENDING_PER_USER * (OPTIONS_UIDS_MAX + 1))
#define HELLO_TIMEOUT_NS (5 * NSEC_PER_SEC)

struct vm_slot {
    char name[UFFDMM_NAME_MAX];
    pid_t qemu_pid;
    uid_t qemu_uid;
    pid_t worker_pid; /* 0: it has died, but QEMU still runs on its memory */
    int channel;
    uint64_t handed_over; /* connections sent over the channel */
};

struct acceptor {
    const struct options *options;
    int listen_fd;
    int signal_fd;
    int lead_fd; /* succession.h */
    bool bound;  /* the socket in the filesystem is ours to remove */
    struct vm_slot vms[VMS_MAX];
    int nr_vms;
    struct conn *pending[PENDING_MAX];
    int nr_pending;
};

/* ---- the listening socket ----------------------------------------------- */

/* True when somebody answers on the socket. */
static bool in_use(const struct sockaddr_un *addr)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool used = fd >= 0 && connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) == 0;

    if (fd >= 0) {
        close(fd);
    }
    return used;
}

static int listen_on(struct acceptor *a, const char *path)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    mode_t old;
    int fd, ret;

    if (strlen(path) >= sizeof(addr.sun_path)) {
        log_error("socket path %s is longer than %zu bytes: use a shorter one", path,
                  sizeof(addr.sun_path) - 1);
        return -ENAMETOOLONG;
    }
    snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", path);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        ret = -errno;
        log_error("cannot create a socket: %s", strerror(-ret));
        return ret;
    }
    if (in_use(&addr)) {
        log_error("another manager listens on %s: end it or use another --socket-path",
                  path);
        close(fd);
        return -EADDRINUSE;
    }
    unlink(path); /* left behind by a manager that was killed */
    /* who may connect is decided by SO_PEERCRED; without --allow-uid nobody else needs to */
    old = umask(a->options->nr_uids ? 0111 : 0177);
    ret = bind(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0 || listen(fd, 64) < 0
              ? -errno
              : 0;
    umask(old);
    if (ret) {
        log_error("cannot listen on %s: %s; its folder must exist and be writable", path,
                  strerror(-ret));
        close(fd);
        return ret;
    }
    a->bound = true;
    return fd;
}

/* ---- VMs ----------------------------------------------------------------- */

static bool alive(pid_t pid)
{
    return kill(pid, 0) == 0 || errno == EPERM;
}

static void forget(struct acceptor *a, int i)
{
    if (a->vms[i].channel >= 0) {
        close(a->vms[i].channel);
    }
    a->vms[i] = a->vms[--a->nr_vms];
}

static struct vm_slot *find_vm(struct acceptor *a, const char *name)
{
    for (int i = 0; i < a->nr_vms; i++) {
        if (!strcmp(a->vms[i].name, name)) {
            if (!a->vms[i].worker_pid && !alive(a->vms[i].qemu_pid)) {
                forget(a, i);
                return NULL;
            }
            return &a->vms[i];
        }
    }
    return NULL;
}

/* In the child: only what this worker needs stays open. */
static void close_inherited(struct acceptor *a, const struct conn *keep)
{
    close(a->listen_fd);
    close(a->signal_fd);
    if (a->lead_fd >= 0) {
        close(a->lead_fd);
    }
    for (int i = 0; i < a->nr_vms; i++) {
        if (a->vms[i].channel >= 0) {
            close(a->vms[i].channel);
        }
    }
    for (int i = 0; i < a->nr_pending; i++) {
        if (a->pending[i] != keep) {
            close(a->pending[i]->fd);
        }
    }
}

static void refuse(struct conn *c, int status, const char *text)
{
    log_warn("refused process %d (uid %d): %s", (int)c->pid, (int)c->uid, text);
    conn_reply_error(c, status, text);
}

/* A worker for the VM of @c. */
static void start_worker(struct acceptor *a, struct conn *c)
{
    const struct uffdmm_hello *hello = (const void *)c->payload;
    struct succession succession;
    int channel[2];
    pid_t pid;

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, channel) < 0) {
        refuse(c, -errno, "the manager cannot start a worker: it is out of descriptors");
        return;
    }
    pid = fork();
    if (pid == 0) {
        succession_watch(&succession, a->options, a->listen_fd, c);
        close_inherited(a, c);
        close(channel[0]);
        setsid(); /* a Ctrl-C at the manager's terminal is not for the guests */
        exit(worker_run(a->options, c, channel[1], &succession));
    }
    close(channel[1]);
    if (pid < 0) {
        close(channel[0]);
        refuse(c, -errno, "the manager cannot start a worker: fork failed");
        return;
    }
    snprintf(a->vms[a->nr_vms].name, UFFDMM_NAME_MAX, "%s", hello->vm_name);
    a->vms[a->nr_vms].qemu_pid = c->pid;
    a->vms[a->nr_vms].qemu_uid = c->uid;
    a->vms[a->nr_vms].worker_pid = pid;
    a->vms[a->nr_vms].handed_over = 0;
    a->vms[a->nr_vms++].channel = channel[0];
}

/* Gives the connection, with the HELLO that was read from it, to a worker. */
static int hand_over(struct vm_slot *vm, const struct conn *c)
{
    struct worker_handover h;
    union {
        char buf[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec iov = {.iov_base = &h, .iov_len = sizeof(h)};
    struct msghdr mh = {.msg_iov = &iov,
                        .msg_iovlen = 1,
                        .msg_control = control.buf,
                        .msg_controllen = sizeof(control.buf)};
    struct cmsghdr *cm;

    memset(&control, 0, sizeof(control));
    h.header = c->header;
    memcpy(&h.hello, c->payload, sizeof(h.hello));
    cm = CMSG_FIRSTHDR(&mh);
    cm->cmsg_level = SOL_SOCKET;
    cm->cmsg_type = SCM_RIGHTS;
    cm->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(cm), &c->fd, sizeof(int));
    if (sendmsg(vm->channel, &mh, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) {
        return -errno;
    }
    vm->handed_over++;
    return 0;
}

/* ---- messages ------------------------------------------------------------ */

/* The name becomes part of a file name. */
static bool name_ok(const char *name)
{
    static const char allowed[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
        "-_.+:@";

    return name[0] && name[0] != '.' && strspn(name, allowed) == strlen(name);
}

static bool uid_ok(const struct acceptor *a, uid_t uid)
{
    if (uid == 0 || uid == geteuid()) {
        return true;
    }
    for (int i = 0; i < a->options->nr_uids; i++) {
        if (a->options->uids[i] == uid) {
            return true;
        }
    }
    return false;
}

static bool trusted(uid_t uid)
{
    return uid == 0 || uid == geteuid();
}

/* Has @uid as many connections as it may have? */
static bool too_many_pending(const struct acceptor *a, uid_t uid)
{
    bool known = uid_ok(a, uid);
    int n = 0;

    if (a->nr_pending == PENDING_MAX) {
        return true;
    }
    for (int i = 0; i < a->nr_pending; i++) {
        uid_t other = a->pending[i]->uid;

        n += known ? other == uid : !uid_ok(a, other);
    }
    return !trusted(uid) && n >= PENDING_PER_USER;
}

/* Has this process, or its user, as many VMs as it may have? */
static bool too_many_vms(const struct acceptor *a, const struct conn *c)
{
    int of_process = 0, of_user = 0;

    for (int i = 0; i < a->nr_vms; i++) {
        of_process += a->vms[i].qemu_pid == c->pid;
        of_user += a->vms[i].qemu_uid == c->uid;
    }
    return a->nr_vms == VMS_MAX || of_process >= VMS_PER_PROCESS ||
           (!trusted(c->uid) && of_user >= VMS_PER_USER);
}

/* May @uid look at and change a VM of user @owner? */
static bool may_control(uid_t uid, uid_t owner)
{
    return trusted(uid) || uid == owner;
}

static void greet_qemu(struct acceptor *a, struct conn *c)
{
    const struct uffdmm_hello *hello = (const void *)c->payload;
    struct vm_slot *vm = find_vm(a, hello->vm_name);
    char text[UFFDMM_TEXT_MAX];

    if (!vm && too_many_vms(a, c)) {
        refuse(
            c, -EBUSY,
            "this manager serves as many VMs of this process or user as it may: end some");
    } else if (!vm) {
        start_worker(a, c);
    } else if (vm->qemu_pid != c->pid) {
        snprintf(
            text, sizeof(text),
            "VM name '%s' is in use by QEMU process %d: give this VM another one (vm-name= or "
            "-name) or end that process",
            hello->vm_name, (int)vm->qemu_pid);
        refuse(c, -EEXIST, text);
    } else if (!vm->worker_pid) {
        /* QEMU has come to hand its memory to another one */
        forget(a, (int)(vm - a->vms));
        start_worker(a, c);
    } else if (hand_over(vm, c)) {
        refuse(c, -EAGAIN, "the worker of this VM is ending: try again");
    }
}

static void greet_control(struct acceptor *a, struct conn *c)
{
    const struct uffdmm_hello *hello = (const void *)c->payload;
    struct vm_slot *vm = find_vm(a, hello->vm_name);
    char text[UFFDMM_TEXT_MAX];

    if (!vm || !may_control(c->uid, vm->qemu_uid)) {
        snprintf(text, sizeof(text),
                 "there is no VM '%s' here; 'uffdmm list' shows those there are",
                 hello->vm_name);
        refuse(c, -ENOENT, text);
    } else if (!vm->worker_pid) {
        snprintf(
            text, sizeof(text),
            "the worker of VM '%s' has died: its guest waits until QEMU process %d reconnects",
            hello->vm_name, (int)vm->qemu_pid);
        refuse(c, -EOWNERDEAD, text);
    } else if (hand_over(vm, c)) {
        refuse(c, -EAGAIN, "the worker of this VM is ending");
    }
}

/* HELLO.  True when the connection stays with the acceptor. */
static bool on_hello(struct acceptor *a, struct conn *c)
{
    const struct uffdmm_hello *hello = (const void *)c->payload;
    struct uffdmm_hello_reply reply = {.pid = (uint32_t)getpid(),
                                       .agent = "uffdmm-manager " UFFDMM_PROGRAM_VERSION};

    if (!uid_ok(a, c->uid)) {
        char text[UFFDMM_TEXT_MAX];

        snprintf(text, sizeof(text),
                 "user %d may not use this manager: start it with --allow-uid %d",
                 (int)c->uid, (int)c->uid);
        refuse(c, -EACCES, text);
        return false;
    }
    if (c->header.type != UFFDMM_MSG_HELLO || c->header.length != sizeof(*hello) ||
        c->nr_fds) {
        refuse(c, -EPROTO, "the first message of a connection must be HELLO");
        return false;
    }
    if (!conn_string_ok(hello->vm_name, sizeof(hello->vm_name)) ||
        !conn_string_ok(hello->agent, sizeof(hello->agent)) || hello->features) {
        refuse(c, -EPROTO, "HELLO has unknown features or a name that is not terminated");
        return false;
    }
    if (hello->role == UFFDMM_ROLE_CONTROL && !hello->vm_name[0]) {
        c->greeted = true;
        c->deadline = 0;
        return conn_reply(c, &reply, sizeof(reply), NULL, 0) == 0;
    }
    if (!name_ok(hello->vm_name)) {
        refuse(
            c, -EINVAL,
            "a VM name must be 1 to 63 characters of A-Z a-z 0-9 - _ . + : @ and not begin with "
            "a dot");
        return false;
    }
    if (hello->role == UFFDMM_ROLE_QEMU) {
        greet_qemu(a, c);
    } else if (hello->role == UFFDMM_ROLE_CONTROL) {
        greet_control(a, c);
    } else {
        refuse(c, -EPROTO, "HELLO has an unknown role");
    }
    return false;
}

static bool on_list(struct acceptor *a, struct conn *c)
{
    const struct uffdmm_list *req = (const void *)c->payload;
    struct uffdmm_list_entry list[UFFDMM_PAYLOAD_MAX / sizeof(struct uffdmm_list_entry)];
    uint32_t seen = 0;
    size_t n = 0;

    if (c->header.type != UFFDMM_MSG_LIST || c->header.length != sizeof(*req) ||
        c->nr_fds) {
        refuse(c, -EPROTO, "a control connection without a VM can only list");
        return false;
    }
    memset(list, 0, sizeof(list));
    for (int i = 0; i < a->nr_vms && n < sizeof(list) / sizeof(list[0]); i++) {
        if (!may_control(c->uid, a->vms[i].qemu_uid) || seen++ < req->start) {
            continue;
        }
        snprintf(list[n].vm_name, sizeof(list[n].vm_name), "%s", a->vms[i].name);
        list[n].worker_pid = (uint32_t)a->vms[i].worker_pid;
        list[n++].qemu_pid = (uint32_t)a->vms[i].qemu_pid;
    }
    return conn_reply(c, list, n * sizeof(list[0]), NULL, 0) == 0;
}

/* Everything that a connection has to say; false when it is done with. */
static bool on_pending(struct acceptor *a, struct conn *c)
{
    char err[UFFDMM_TEXT_MAX];

    for (;;) {
        switch (conn_receive(c, err, sizeof(err))) {
        case CONN_MESSAGE:
            if (!(c->greeted ? on_list(a, c) : on_hello(a, c))) {
                return false;
            }
            conn_next(c);
            break;
        case CONN_AGAIN:
            return true;
        case CONN_BAD:
            refuse(c, -EPROTO, err);
            return false;
        case CONN_CLOSED:
        default:
            return false;
        }
    }
}

static void on_listen(struct acceptor *a)
{
    int fd = accept4(a->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    struct conn *c;

    if (fd < 0) {
        return;
    }
    c = conn_new(fd);
    if (!c) {
        return;
    }
    c->header.type = UFFDMM_MSG_HELLO; /* what a refusal answers */
    if (too_many_pending(a, c->uid)) {
        refuse(c, -EBUSY, "too many connections: close some");
        conn_free(c);
        return;
    }
    c->deadline = clock_ns() + HELLO_TIMEOUT_NS;
    a->pending[a->nr_pending++] = c;
}

/* ---- life ---------------------------------------------------------------- */

/* A worker has ended. */
static void on_child(struct acceptor *a, pid_t pid, int status)
{
    for (int i = 0; i < a->nr_vms; i++) {
        if (a->vms[i].worker_pid != pid) {
            continue;
        }
        if (WIFEXITED(status)) {
            forget(a, i);
            return;
        }
        log_error(
            "worker %d of VM '%s' was killed by signal %d: its guest waits, undamaged, until QEMU "
            "process %d reconnects",
            (int)pid, a->vms[i].name, WTERMSIG(status), (int)a->vms[i].qemu_pid);
        /* the name stays taken: its volume holds pages of a guest that may still exist */
        a->vms[i].worker_pid = 0;
        if (a->vms[i].channel >= 0) {
            close(a->vms[i].channel);
            a->vms[i].channel = -1;
        }
        return;
    }
}

/* False when it is time to end. */
static bool on_signal(struct acceptor *a)
{
    struct signalfd_siginfo si;
    pid_t pid;
    int status;

    if (read(a->signal_fd, &si, sizeof(si)) != sizeof(si)) {
        return true;
    }
    if (si.ssi_signo != SIGCHLD) {
        log_info("signal %u: ending; workers of running VMs go on", si.ssi_signo);
        return false;
    }
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        on_child(a, pid, status);
    }
    return true;
}

/* A worker would end, or has closed its channel by dying. */
static void on_channel(struct acceptor *a, int i)
{
    struct worker_farewell bye;
    ssize_t n = recv(a->vms[i].channel, &bye, sizeof(bye), MSG_DONTWAIT);

    if (n == (ssize_t)sizeof(bye)) {
        if (bye.received == a->vms[i].handed_over) {
            forget(a, i); /* closes the channel: the worker may go */
        }
    } else if (n >= 0 || errno != EAGAIN) {
        /* its end as a child says the rest */
        close(a->vms[i].channel);
        a->vms[i].channel = -1;
    }
}

static void serve(struct acceptor *a)
{
    static struct pollfd fds[2 + PENDING_MAX + VMS_MAX];

    for (;;) {
        int nr = a->nr_pending, vms = a->nr_vms;
        struct pollfd *channels = fds + 2 + nr;
        uint64_t now;

        fds[0] = (struct pollfd){.fd = a->listen_fd, .events = POLLIN};
        fds[1] = (struct pollfd){.fd = a->signal_fd, .events = POLLIN};
        for (int i = 0; i < nr; i++) {
            fds[2 + i] = (struct pollfd){.fd = a->pending[i]->fd, .events = POLLIN};
        }
        for (int i = 0; i < vms; i++) {
            channels[i] = (struct pollfd){.fd = a->vms[i].channel, .events = POLLIN};
        }
        /* only connections without a HELLO have a deadline: nobody else costs wake-ups */
        if (poll(fds, 2 + (nfds_t)nr + (nfds_t)vms, nr ? 1000 : -1) < 0) {
            continue;
        }
        for (int i = vms - 1; i >= 0; i--) {
            if (channels[i].fd >= 0 && channels[i].revents) {
                on_channel(a, i);
            }
        }
        now = clock_ns();
        for (int i = nr - 1; i >= 0; i--) {
            struct conn *c = a->pending[i];

            if ((fds[2 + i].revents && !on_pending(a, c)) ||
                (c->deadline && now > c->deadline)) {
                conn_free(c);
                a->pending[i] = a->pending[--a->nr_pending];
            }
        }
        if (fds[1].revents && !on_signal(a)) {
            return;
        }
        if (fds[0].revents) {
            on_listen(a);
        }
    }
}

int acceptor_run(const struct options *options)
{
    struct acceptor *a = calloc(1, sizeof(*a));
    char err[UFFDMM_TEXT_MAX];
    struct rlimit files;
    sigset_t set;

    if (!a) {
        log_error("no memory");
        return EXIT_FAILURE;
    }
    a->options = options;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max; /* VMs by the hundred; workers inherit it */
        (void)setrlimit(RLIMIT_NOFILE, &files);
    }
    for (unsigned i = 0; i < options->nr_tiers; i++) {
        const struct tier_config *c = &options->tiers[i];

        if ((c->type == UFFDMM_TIER_FILE && tier_file_sweep(c, err, sizeof(err))) ||
            (c->type == UFFDMM_TIER_NBD && nbd_lib_load(err, sizeof(err)))) {
            log_error("%s", err);
            free(a);
            return EXIT_FAILURE;
        }
    }
    if (options->fd >= 0 && activation_take(options->fd, err, sizeof(err))) {
        log_error("%s", err);
        free(a);
        return EXIT_FAILURE;
    }
    a->listen_fd = options->fd >= 0 ? options->fd : listen_on(a, options->socket_path);
    if (a->listen_fd < 0) {
        free(a);
        return EXIT_FAILURE;
    }
    a->lead_fd = succession_lead(options, a->listen_fd);
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_SETMASK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a file size limit is an error like any other */
    a->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    log_info("version %s, listening on %s, %u tier(s) besides zero",
             UFFDMM_PROGRAM_VERSION,
             options->socket_path ? options->socket_path : "an inherited socket",
             options->nr_tiers);
    serve(a);
    if (a->bound) {
        unlink(options->socket_path);
    }
    succession_leave(a->lead_fd, a->listen_fd);
    while (a->nr_pending) {
        conn_free(a->pending[--a->nr_pending]);
    }
    while (a->nr_vms) {
        forget(a, 0);
    }
    free(a);
    return EXIT_SUCCESS;
}
