/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The worker: one process a VM.
 *
 * Its main thread takes messages of QEMU and of control clients, publishes
 * gauges and watches for QEMU's end.  Nothing here is on the fault path: when
 * this thread is slow, policy is old and guests run on.
 *
 * A worker ends when its QEMU has ended, or when no connection and no region
 * is left (memory backends were removed, or never came to be).  A connection
 * that breaks while QEMU lives takes nothing with it: the userfaultfds are
 * here, so faults are served on.
 */
#include "worker.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "clock.h"
#include "control.h"
#include "evict.h"
#include "evict_io.h"
#include "hierarchy.h"
#include "log.h"
#include "mig.h"
#include "place.h"
#include "policy.h"
#include "queue.h"
#include "recovery.h"
#include "region.h"
#include "sandbox.h"
#include "succession.h"
#include "track.h"
#include "vm.h"

#define CONNS_MAX 64
#define CONNS_RESERVED 8 /* for root, whatever the VM and its user do */
#define TICK_MS 50

struct worker {
    struct vm vm;
    int channel;
    int signal_fd;
    struct succession succession; /* of the acceptor */
    bool stores_open;
    struct conn *conns[CONNS_MAX];
    int nr_conns;
    uint64_t received; /* connections handed over by the acceptor */
    uint64_t ticks;
    uint64_t discards_counted;
};

/* ---- messages ---------------------------------------------------------- */

/* Sends the error and says it in the log; the connection goes on. */
static int refuse(struct conn *c, int status, const char *text)
{
    log_warn("refused message %u of process %d: %s", c->header.type, (int)c->pid, text);
    return conn_reply_error(c, status, text);
}

static int on_create(struct worker *w, struct conn *c)
{
    struct vm *vm = &w->vm;
    struct uffdmm_region_create *req = (void *)c->payload;
    struct uffdmm_region_create_reply reply = {0};
    char err[UFFDMM_TEXT_MAX];
    unsigned nr_fds = 3;
    int fds[3 + UFFDMM_TIERS_MAX];
    struct region *r;
    int ret;

    if (!conn_string_ok(req->name, sizeof(req->name)) || !req->name[0]) {
        return refuse(c, -EINVAL, "region name is empty or not terminated");
    }
    if (c->region) {
        return refuse(c, -EEXIST, "this connection carries a region already");
    }
    if (vm->unsettled) {
        return refuse(
            c, -EAGAIN,
            "memory of this VM is being taken over from a worker that has died: "
            "try again when all of it is back");
    }
    if (!w->stores_open) {
        vm->incoming = (req->flags & UFFDMM_CREATE_INCOMING) != 0;
        ret = hierarchy_open(vm, req->size, err, sizeof(err));
        if (ret) {
            return refuse(c, ret, err);
        }
        w->stores_open = true;
    }
    for (unsigned i = 1; i < UFFDMM_TIERS_MAX; i++) {
        nr_fds += vm->tiers[i] && vm->tiers[i]->arena_fd >= 0;
    }
    /* what RECONNECT will carry one day: memory, table, pagemap, userfaultfds, arenas */
    if (nr_fds + req->nr_shards > UFFDMM_FDS_MAX) {
        snprintf(
            err, sizeof(err),
            "%u shards and %u tiers of type pool or nbd are more descriptors than a message "
            "carries (%d): use fewer of either",
            req->nr_shards, nr_fds - 3, UFFDMM_FDS_MAX);
        return refuse(c, -EINVAL, err);
    }
    ret = region_create(vm, req, &r, err, sizeof(err));
    if (ret) {
        return refuse(c, ret, err);
    }
    ret = policy_region_added(vm, err, sizeof(err));
    if (ret) {
        region_destroy(r);
        return refuse(c, ret, err);
    }
    recovery_note(vm, NULL);
    c->region = r;
    region_set_link(r, c->fd);
    reply.region_id = r->id;
    reply.nr_shards = r->nr_shards;
    reply.table_size = r->table_size;
    reply.stats_size = stats_size();
    fds[0] = r->memfd;
    fds[1] = r->table_fd;
    fds[2] = vm->stats_fd;
    nr_fds = 3;
    for (unsigned i = 1; i < UFFDMM_TIERS_MAX; i++) {
        if (vm->tiers[i] && vm->tiers[i]->arena_fd >= 0) {
            fds[nr_fds++] = vm->tiers[i]->arena_fd;
        }
    }
    return conn_reply(c, &reply, sizeof(reply), fds, nr_fds);
}

static int on_attach(struct worker *w, struct conn *c)
{
    struct uffdmm_region_attach *req = (void *)c->payload;
    int uffds[UFFDMM_SHARDS_MAX];
    char err[UFFDMM_TEXT_MAX];
    int pagemap_fd, ret;

    if (!c->region) {
        return refuse(c, -ENOENT,
                      "attach before a region was created on this connection");
    }
    if (req->nr_shards < 1 || req->nr_shards > UFFDMM_SHARDS_MAX ||
        c->nr_fds != 1 + req->nr_shards) {
        return refuse(c, -EINVAL, "attach needs the pagemap and one userfaultfd a shard");
    }
    pagemap_fd = conn_take_fd(c, 0);
    for (uint32_t i = 0; i < req->nr_shards; i++) {
        uffds[i] = conn_take_fd(c, 1 + i);
    }
    ret = region_attach(c->region, req, pagemap_fd, uffds, err, sizeof(err));
    if (ret) {
        return refuse(c, ret, err);
    }
    vm_show_state(&w->vm);
    log_info("region %s attached: %llu MiB at %#llx, %u shard(s)", c->region->name,
             (unsigned long long)(c->region->size >> 20),
             (unsigned long long)c->region->base, c->region->nr_shards);
    return conn_reply(c, NULL, 0, NULL, 0);
}

static int on_detach(struct worker *w, struct conn *c)
{
    struct uffdmm_region_detach *req = (void *)c->payload;

    if (!c->region || req->region_id != c->region->id) {
        return refuse(c, -ENOENT,
                      "detach of a region that this connection does not carry");
    }
    log_info("region %s detached", c->region->name);
    recovery_note(&w->vm, c->region);
    region_destroy(c->region);
    c->region = NULL;
    return conn_reply(c, NULL, 0, NULL, 0);
}

/* A range message of QEMU; NULL after a complaint in the log. */
static struct region *range_region(struct conn *c)
{
    struct uffdmm_range *range = (void *)c->payload;

    if (!c->region || range->region_id != c->region->id ||
        !region_range_ok(c->region, range->offset, range->length)) {
        log_warn(
            "process %d: range [%#llx, +%#llx) of region %u is not one of this connection",
            (int)c->pid, (unsigned long long)range->offset,
            (unsigned long long)range->length, range->region_id);
        return NULL;
    }
    return c->region;
}

static int on_discard(struct worker *w, struct conn *c)
{
    struct uffdmm_range *range = (void *)c->payload;
    struct region *r = range_region(c);

    (void)w;
    if (!r) {
        return -EPROTO;
    }
    region_discarded(r, range->offset, range->length);
    return 0;
}

static int on_zap_reply(struct worker *w, struct conn *c)
{
    struct uffdmm_range *range = (void *)c->payload;
    struct region *r = range_region(c);

    (void)w;
    if (!r) {
        return -EPROTO;
    }
    track_zapped(r, range->generation);
    return 0;
}

static int on_query(struct worker *w, struct conn *c)
{
    struct uffdmm_query_reply reply = {.stats_size = stats_size()};

    sandbox_test_intruder(w->vm.name);
    return conn_reply(c, &reply, sizeof(reply), &w->vm.stats_fd, 1);
}

static int on_set_policy(struct worker *w, struct conn *c)
{
    struct uffdmm_policy *policy = (void *)c->payload;
    char err[UFFDMM_TEXT_MAX];
    int ret = policy_set(&w->vm, policy, err, sizeof(err));

    if (ret) {
        return refuse(c, ret, err);
    }
    policy_get(&w->vm, policy);
    recovery_note(&w->vm, NULL);
    return conn_reply(c, policy, sizeof(*policy), NULL, 0);
}

static int on_regions(struct worker *w, struct conn *c)
{
    return control_regions(&w->vm, c);
}

static int on_evict(struct worker *w, struct conn *c)
{
    return control_evict(&w->vm, c);
}

static int on_prefetch(struct worker *w, struct conn *c)
{
    return control_prefetch(&w->vm, c);
}

static int on_mig_arm(struct worker *w, struct conn *c)
{
    return mig_arm(&w->vm, c);
}

static int on_mig_start(struct worker *w, struct conn *c)
{
    return mig_start(&w->vm, c);
}

static int on_mig_end(struct worker *w, struct conn *c)
{
    return mig_end(&w->vm, c);
}

static int on_mig_status(struct worker *w, struct conn *c)
{
    return mig_status(&w->vm, c);
}

static int on_mig_export(struct worker *w, struct conn *c)
{
    return mig_export(&w->vm, c);
}

static int on_mig_ack(struct worker *w, struct conn *c)
{
    return mig_ack(&w->vm, c);
}

static int on_mig_read(struct worker *w, struct conn *c)
{
    return mig_read(&w->vm, c);
}

static int on_mig_release(struct worker *w, struct conn *c)
{
    return mig_release(&w->vm, c);
}

static int on_mig_prepare(struct worker *w, struct conn *c)
{
    return mig_prepare(&w->vm, c);
}

static int on_mig_import(struct worker *w, struct conn *c)
{
    return mig_import(&w->vm, c);
}

static int on_mig_install(struct worker *w, struct conn *c)
{
    return mig_install(&w->vm, c);
}

static int on_mig_take(struct worker *w, struct conn *c)
{
    return mig_take(&w->vm, c);
}

static int on_mig_deposit(struct worker *w, struct conn *c)
{
    return mig_deposit(&w->vm, c);
}

static int on_mig_collect(struct worker *w, struct conn *c)
{
    return mig_collect(&w->vm, c);
}

/* RECONNECT of memory whose worker has died. */
static int take_over(struct worker *w, struct conn *c)
{
    const struct uffdmm_reconnect *req = (const void *)c->payload;
    uint32_t nr_shards = req->create.nr_shards;
    char err[UFFDMM_TEXT_MAX];
    int fds[UFFDMM_FDS_MAX];
    unsigned nr_fds = c->nr_fds;
    struct region *r;
    int ret;

    if (nr_shards < 1 || nr_shards > UFFDMM_SHARDS_MAX || nr_fds < 3 + nr_shards ||
        req->attach.nr_shards != nr_shards) {
        return refuse(
            c, -EINVAL,
            "reconnect needs memory, table, pagemap and one userfaultfd a shard");
    }
    for (unsigned i = 0; i < nr_fds; i++) {
        fds[i] = conn_take_fd(c, i);
    }
    ret = recovery_take_over(&w->vm, req, fds, nr_fds, &w->stores_open, &r, err,
                             sizeof(err));
    if (ret) {
        return refuse(c, ret, err);
    }
    c->region = r;
    region_set_link(r, c->fd);
    stats_set(&w->vm.stats->state, UFFDMM_WORKER_RUNNING);
    return conn_reply(c, NULL, 0, NULL, 0);
}

static int on_reconnect(struct worker *w, struct conn *c)
{
    struct uffdmm_reconnect *req = (void *)c->payload;

    if (!conn_string_ok(req->create.name, sizeof(req->create.name)) || c->region) {
        return refuse(c, -EINVAL,
                      "reconnect with a bad name, or on a connection that is in use");
    }
    for (unsigned i = 0; i < UFFDMM_REGIONS_MAX; i++) {
        struct region *r = w->vm.regions[i];

        if (r && r->attached && r->link_fd < 0 && !strcmp(r->name, req->create.name) &&
            r->base == req->attach.base && r->size == req->attach.size) {
            c->region = r;
            region_set_link(r, c->fd);
            log_info("region %s has its link back", r->name);
            return conn_reply(c, NULL, 0, NULL, 0);
        }
    }
    return take_over(w, c);
}

/* What each message must look like, and who may send it. */
static const struct {
    uint32_t type;
    uint32_t role; /* 0: both */
    uint32_t length;
    int nr_fds; /* -1: the handler checks */
    int (*fn)(struct worker *w, struct conn *c);
} handlers[] = {
    {UFFDMM_MSG_REGION_CREATE, UFFDMM_ROLE_QEMU, sizeof(struct uffdmm_region_create), 0,
     on_create},
    {UFFDMM_MSG_REGION_ATTACH, UFFDMM_ROLE_QEMU, sizeof(struct uffdmm_region_attach), -1,
     on_attach},
    {UFFDMM_MSG_REGION_DETACH, UFFDMM_ROLE_QEMU, sizeof(struct uffdmm_region_detach), 0,
     on_detach},
    {UFFDMM_MSG_DISCARD, UFFDMM_ROLE_QEMU, sizeof(struct uffdmm_range), 0, on_discard},
    {UFFDMM_MSG_ZAP | UFFDMM_MSG_REPLY, UFFDMM_ROLE_QEMU, sizeof(struct uffdmm_range), 0,
     on_zap_reply},
    {UFFDMM_MSG_QUERY, 0, 0, 0, on_query},
    {UFFDMM_MSG_SET_POLICY, 0, sizeof(struct uffdmm_policy), 0, on_set_policy},
    {UFFDMM_MSG_RECONNECT, UFFDMM_ROLE_QEMU, sizeof(struct uffdmm_reconnect), -1,
     on_reconnect},
    {UFFDMM_MSG_REGIONS, UFFDMM_ROLE_CONTROL, sizeof(struct uffdmm_regions), 0,
     on_regions},
    {UFFDMM_MSG_EVICT, UFFDMM_ROLE_CONTROL, sizeof(struct uffdmm_move), 0, on_evict},
    {UFFDMM_MSG_PREFETCH, UFFDMM_ROLE_CONTROL, sizeof(struct uffdmm_move), -1,
     on_prefetch},
    {UFFDMM_MSG_MIG_ARM, UFFDMM_ROLE_CONTROL, sizeof(struct uffdmm_mig_arm), 0,
     on_mig_arm},
    {UFFDMM_MSG_MIG_START, UFFDMM_ROLE_QEMU, sizeof(struct uffdmm_mig_start), 0,
     on_mig_start},
    {UFFDMM_MSG_MIG_END, 0, sizeof(struct uffdmm_mig_end), 0, on_mig_end},
    {UFFDMM_MSG_MIG_STATUS, UFFDMM_ROLE_CONTROL, 0, 0, on_mig_status},
    {UFFDMM_MSG_MIG_EXPORT, UFFDMM_ROLE_CONTROL, sizeof(struct uffdmm_regions), 0,
     on_mig_export},
    {UFFDMM_MSG_MIG_ACK, UFFDMM_ROLE_CONTROL, sizeof(struct uffdmm_mig_ack), 0,
     on_mig_ack},
    {UFFDMM_MSG_MIG_READ, UFFDMM_ROLE_QEMU, sizeof(struct uffdmm_mig_read), 0,
     on_mig_read},
    {UFFDMM_MSG_MIG_RELEASE, UFFDMM_ROLE_CONTROL, sizeof(struct uffdmm_mig_release), 0,
     on_mig_release},
    {UFFDMM_MSG_MIG_PREPARE, UFFDMM_ROLE_CONTROL, sizeof(struct uffdmm_mig_prepare), 0,
     on_mig_prepare},
    {UFFDMM_MSG_MIG_IMPORT, UFFDMM_ROLE_CONTROL, sizeof(struct uffdmm_mig_import), -1,
     on_mig_import},
    {UFFDMM_MSG_MIG_INSTALL, UFFDMM_ROLE_QEMU, sizeof(struct uffdmm_mig_install), 0,
     on_mig_install},
    {UFFDMM_MSG_MIG_TAKE, UFFDMM_ROLE_CONTROL, sizeof(struct uffdmm_mig_take), 0,
     on_mig_take},
    {UFFDMM_MSG_MIG_DEPOSIT, UFFDMM_ROLE_CONTROL, sizeof(struct uffdmm_mig_deposit), -1,
     on_mig_deposit},
    {UFFDMM_MSG_MIG_COLLECT, UFFDMM_ROLE_CONTROL, sizeof(struct uffdmm_mig_collect), -1,
     on_mig_collect},
};

/* One whole message.  Negative: the connection must be closed. */
static int dispatch(struct worker *w, struct conn *c)
{
    char err[UFFDMM_TEXT_MAX];

    if (c->header.type & UFFDMM_MSG_REPLY && c->header.status) {
        log_warn("QEMU could not carry out message %u: %s",
                 c->header.type & ~(uint32_t)UFFDMM_MSG_REPLY,
                 strerror(-c->header.status));
        return 0;
    }
    for (size_t i = 0; i < sizeof(handlers) / sizeof(handlers[0]); i++) {
        if (handlers[i].type != c->header.type) {
            continue;
        }
        if (handlers[i].role && handlers[i].role != c->role) {
            return refuse(c, -EPERM,
                          c->role == UFFDMM_ROLE_CONTROL
                              ? "a control client may not do what is QEMU's"
                              : "only a control client may ask for this");
        }
        if (handlers[i].length != c->header.length ||
            (handlers[i].nr_fds >= 0 && (unsigned)handlers[i].nr_fds != c->nr_fds)) {
            snprintf(err, sizeof(err),
                     "message %u has %u bytes and %u descriptors, expected %u bytes",
                     c->header.type, c->header.length, c->nr_fds, handlers[i].length);
            refuse(c, -EPROTO, err);
            return -EPROTO;
        }
        return handlers[i].fn(w, c);
    }
    snprintf(err, sizeof(err), "message type %u is unknown to this manager",
             c->header.type);
    refuse(c, -EPROTO, err);
    return -EPROTO;
}

/* ---- connections ------------------------------------------------------- */

static void drop_conn(struct worker *w, int i)
{
    struct conn *c = w->conns[i];

    if (c->region) {
        region_set_link(c->region, -1);
        if (!c->region->attached) {
            region_destroy(c->region);
        } else {
            log_warn("QEMU has closed the link of region %s: its faults are served on",
                     c->region->name);
        }
    }
    conn_free(c);
    w->conns[i] = w->conns[--w->nr_conns];
}

/* Answers the HELLO that @c holds and adds it. */
static void welcome(struct worker *w, struct conn *c)
{
    const struct uffdmm_hello *hello = (const void *)c->payload;
    struct uffdmm_hello_reply reply = {.pid = (uint32_t)getpid(),
                                       .agent = "uffdmm-manager " UFFDMM_PROGRAM_VERSION};

    c->role = hello->role;
    c->greeted = true;
    if (w->nr_conns >= CONNS_MAX - (c->uid ? CONNS_RESERVED : 0)) {
        refuse(c, -EBUSY, "this VM has too many connections: close some");
        conn_free(c);
        return;
    }
    if (conn_reply(c, &reply, sizeof(reply), NULL, 0)) {
        conn_free(c);
        return;
    }
    conn_next(c);
    w->conns[w->nr_conns++] = c;
}

/* The acceptor hands over a connection; false when it has ended. */
static bool on_channel(struct worker *w)
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
    ssize_t n = recvmsg(w->channel, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    struct cmsghdr *cm;
    struct conn *c;
    int fd;

    if (n < 0) {
        return errno == EAGAIN || errno == EINTR;
    }
    cm = n ? CMSG_FIRSTHDR(&mh) : NULL;
    if (!cm || cm->cmsg_type != SCM_RIGHTS) {
        return n != 0;
    }
    memcpy(&fd, CMSG_DATA(cm), sizeof(fd));
    w->received++;
    c = conn_new(fd);
    if (c) {
        c->header = h.header;
        memcpy(c->payload, &h.hello, sizeof(h.hello));
        welcome(w, c);
    }
    return true;
}

/* Everything that connection @i has to say; false when it was dropped. */
static bool on_conn(struct worker *w, int i)
{
    struct conn *c = w->conns[i];
    char err[UFFDMM_TEXT_MAX];

    for (;;) {
        switch (conn_receive(c, err, sizeof(err))) {
        case CONN_MESSAGE:
            if (dispatch(w, c) < 0) {
                drop_conn(w, i);
                return false;
            }
            conn_next(c);
            break;
        case CONN_AGAIN:
            return true;
        case CONN_BAD:
            log_warn("closing a connection of process %d: %s", (int)c->pid, err);
            conn_reply_error(c, -EPROTO, err);
            drop_conn(w, i);
            return false;
        case CONN_CLOSED:
        default:
            drop_conn(w, i);
            return false;
        }
    }
}

/* ---- gauges ------------------------------------------------------------ */

static uint64_t rss_bytes(void)
{
    unsigned long size, rss = 0;
    FILE *f = fopen("/proc/self/statm", "re");

    if (f) {
        if (fscanf(f, "%lu %lu", &size, &rss) != 2) {
            rss = 0;
        }
        fclose(f);
    }
    return rss * (uint64_t)sysconf(_SC_PAGESIZE);
}

static void tick(struct worker *w)
{
    struct vm *vm = &w->vm;
    struct uffdmm_stats *st = vm->stats;
    uint64_t discards = 0;

    if (atomic_exchange(&vm->note_due, false)) {
        recovery_note(vm, NULL);
    }
    vm_sync_resident(vm);
    if (vm_room(vm) < vm_margin_low(vm)) {
        evict_kick(vm);
    }
    stats_set(&st->heartbeat_ns, clock_ns());
    for (int i = 0; i < UFFDMM_REGIONS_MAX; i++) {
        if (vm->regions[i]) {
            discards +=
                __atomic_load_n(&vm->regions[i]->header->discards, __ATOMIC_RELAXED);
        }
    }
    /* a discard takes pages out of STORED without our counting it */
    if (discards != w->discards_counted && w->ticks % (1000 / TICK_MS) == 0) {
        w->discards_counted = discards;
        region_recount(vm);
    }
    hierarchy_gauges(vm);
    if (w->ticks++ % (1000 / TICK_MS) == 0) {
        stats_set(&st->worker_rss_bytes, rss_bytes());
    }
    place_threads(vm);
}

/* ---- life -------------------------------------------------------------- */

static int worker_init(struct worker *w, const struct options *options,
                       struct conn *first, int channel, char *err, size_t err_len)
{
    const struct uffdmm_hello *hello = (const void *)first->payload;
    struct vm *vm = &w->vm;
    pthread_rwlockattr_t attr;
    int ret;

    w->channel = channel;
    vm->options = options;
    vm->qemu_pid = first->pid;
    snprintf(vm->name, sizeof(vm->name), "%s", hello->vm_name);
    memcpy(vm->uuid, hello->uuid, sizeof(vm->uuid));
    vm->qemu_pidfd = (int)syscall(SYS_pidfd_open, vm->qemu_pid, 0);
    if (vm->qemu_pidfd < 0) {
        ret = -errno;
        snprintf(err, err_len, "cannot watch QEMU process %d: %s", (int)vm->qemu_pid,
                 strerror(-ret));
        return ret;
    }
    sandbox_limits();
    /* a worker that is swapped out cannot bring in anybody's pages */
    if (mlockall(MCL_CURRENT | MCL_FUTURE) < 0) {
        ret = -errno;
        snprintf(
            err, err_len,
            "cannot lock the worker in memory: %s; run the manager as root or raise its "
            "memlock limit (LimitMEMLOCK=infinity)",
            strerror(-ret));
        return ret;
    }
    ret = stats_create(&vm->stats, &vm->stats_fd);
    if (ret) {
        snprintf(err, err_len, "cannot create the statistics page: %s", strerror(-ret));
        return ret;
    }
    snprintf(vm->stats->vm_name, sizeof(vm->stats->vm_name), "%s", vm->name);
    vm->stats->qemu_pid = (uint32_t)vm->qemu_pid;
    pthread_rwlockattr_init(&attr);
    pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(&vm->regions_lock, &attr);
    pthread_rwlockattr_destroy(&attr);
    queue_init(vm);
    ret = mig_new(vm, &vm->mig);
    if (ret) {
        snprintf(err, err_len, "no memory for a worker");
        return ret;
    }
    policy_init(vm);
    snprintf(stats_tier(vm->stats, 0)->name, UFFDMM_NAME_MAX, "zero");
    stats_tier(vm->stats, 0)->shared = 1; /* the value is all there is */
    return sandbox_enter(&options->sandbox, options->tiers, options->nr_tiers, err,
                         err_len);
}

static void close_channel(struct worker *w)
{
    if (w->channel >= 0) {
        close(w->channel);
        w->channel = -1;
    }
}

static void worker_end(struct worker *w)
{
    struct vm *vm = &w->vm;

    struct pollfd qemu = {.fd = vm->qemu_pidfd, .events = POLLIN};

    if (vm->qemu_pidfd >= 0 && poll(&qemu, 1, 0) > 0) {
        vm->unsettled = false; /* nobody comes back: the volumes are not needed */
    }
    /* a store that does not answer must not keep the threads from ending */
    if (w->stores_open) {
        hierarchy_cancel(vm);
        hierarchy_stop(vm);
    }
    for (int i = 0; i < UFFDMM_REGIONS_MAX; i++) {
        if (vm->regions[i]) {
            region_destroy(vm->regions[i]);
        }
    }
    while (w->nr_conns) {
        conn_free(w->conns[--w->nr_conns]);
    }
    if (w->stores_open) {
        hierarchy_close(vm);
    }
    if (vm->mig) {
        mig_free(vm->mig);
    }
    close_channel(w);
}

/* SIGTERM ends a worker without a VM; with one it must not. */
static bool on_signal(struct worker *w)
{
    struct signalfd_siginfo si;

    if (read(w->signal_fd, &si, sizeof(si)) != sizeof(si)) {
        return true;
    }
    if (stats_get(&w->vm.stats->nr_regions)) {
        log_warn(
            "signal %u: QEMU process %d still runs on this memory, so this worker goes on until "
            "it ends",
            si.ssi_signo, (int)w->vm.qemu_pid);
        return true;
    }
    return false;
}

static int open_signals(void)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigprocmask(SIG_SETMASK, &set, NULL);
    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

static bool idle(const struct worker *w)
{
    return !w->nr_conns && !stats_get(&w->vm.stats->nr_regions);
}

/*
 * Nothing is left to serve: agrees with the acceptor on that.  True when this
 * worker may end; false when a connection was on its way.
 */
static bool farewell(struct worker *w)
{
    struct worker_farewell bye = {.received = w->received};
    struct pollfd pfd = {.fd = w->channel, .events = POLLIN};

    if (w->stores_open) {
        hierarchy_close(&w->vm); /* a successor makes volumes of the same name */
        w->stores_open = false;
    }
    if (w->channel < 0 ||
        send(w->channel, &bye, sizeof(bye), MSG_NOSIGNAL) != (ssize_t)sizeof(bye)) {
        return true;
    }
    while (poll(&pfd, 1, -1) < 0 && errno == EINTR) {
    }
    return !on_channel(w) && idle(w);
}

/* Would a worker of another manager find all that the guest needs? */
static bool can_make_way(const struct worker *w)
{
    const struct vm *vm = &w->vm;
    bool can = stats_get(&vm->stats->nr_regions) && !vm->unsettled && mig_idle(vm->mig) &&
               vm->nr_tiers == vm->options->nr_tiers + 1;

    for (unsigned i = 1; i < vm->nr_tiers; i++) {
        const struct tier *t = vm->tiers[i];

        /* a new worker would have to wait for a server that is away */
        can &= t && !t->hard_to_keep && stats_get(&t->stats->state) != UFFDMM_TIER_AWAY;
    }
    for (int i = 0; i < UFFDMM_REGIONS_MAX; i++) {
        const struct region *r = vm->regions[i];

        can &= !r || (r->attached && r->header->region_state == UFFDMM_REGION_LIVE);
    }
    return can;
}

/* The acceptor has ended.  Ends this worker when another one can take over. */
static void make_way(struct worker *w)
{
    if (!can_make_way(w) || !succession_due(&w->succession)) {
        return;
    }
    log_info("a new manager is there: this worker ends, and QEMU process %d hands its "
             "memory to one of that manager",
             (int)w->vm.qemu_pid);
    /* as if it were killed: whatever is under way, its successor finds the state of it */
    _exit(EXIT_SUCCESS);
}

static void serve_vm(struct worker *w)
{
    uint64_t next_tick = 0;

    while (!idle(w) || !farewell(w)) {
        struct pollfd fds[3 + CONNS_MAX];
        int nr = w->nr_conns;
        uint64_t now = clock_ns();

        fds[0] = (struct pollfd){.fd = w->vm.qemu_pidfd, .events = POLLIN};
        fds[1] = (struct pollfd){.fd = w->channel, .events = POLLIN};
        fds[2] = (struct pollfd){.fd = w->signal_fd, .events = POLLIN};
        for (int i = 0; i < nr; i++) {
            fds[3 + i] = (struct pollfd){.fd = w->conns[i]->fd, .events = POLLIN};
        }
        if (now >= next_tick) {
            tick(w);
            if (w->channel < 0 && w->ticks % (1000 / TICK_MS) == 0) {
                make_way(w);
            }
            next_tick = now + TICK_MS * NSEC_PER_MSEC;
        }
        if (poll(fds, 3 + (nfds_t)nr, TICK_MS) <= 0) {
            continue;
        }
        if (fds[0].revents) {
            return; /* QEMU has ended */
        }
        for (int i = nr - 1; i >= 0; i--) {
            if (fds[3 + i].revents) {
                on_conn(w, i);
            }
        }
        if (fds[1].revents && !on_channel(w)) {
            log_info("the acceptor has ended: this worker goes on until its VM ends");
            close_channel(w);
        }
        if (fds[2].revents && !on_signal(w)) {
            return;
        }
    }
}

int worker_run(const struct options *options, struct conn *first, int channel,
               const struct succession *succession)
{
    struct worker *w = calloc(1, sizeof(*w));
    char err[UFFDMM_TEXT_MAX] = "no memory for a worker";
    const struct uffdmm_hello *hello = (const void *)first->payload;
    int ret = -ENOMEM;

    prctl(PR_SET_NAME, "uffdmm-worker");
    log_set_vm(hello->vm_name);
    if (w) {
        w->succession = *succession;
        w->signal_fd = open_signals();
        ret = worker_init(w, options, first, channel, err, sizeof(err));
    }
    if (ret) {
        log_error("%s", err);
        conn_reply_error(first, ret, err);
        conn_free(first);
    } else {
        log_info("serving QEMU process %d", (int)w->vm.qemu_pid);
        welcome(w, first);
        serve_vm(w);
        log_info("QEMU process %d is done with its memory", (int)w->vm.qemu_pid);
    }
    if (w) {
        worker_end(w);
        free(w);
    }
    return ret ? EXIT_FAILURE : EXIT_SUCCESS;
}
