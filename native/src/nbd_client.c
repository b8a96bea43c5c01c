/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The NBD client thread.
 *
 * Theory of operation.  Transfers arrive in a list under a lock; the thread moves
 * them to a queue of reads and one of writes, cuts them into pieces (one NBD
 * command each, contiguous in memory) and gives each piece to the connection with
 * the least to do.  Reads go first, for a vCPU waits behind most of them; some
 * places are kept for writes, and the bytes of writes in flight are bounded, so that a read
 * does not stand behind megabytes.  A transfer is over when all its pieces are.
 *
 * A link that is lost ends nothing.  Its pieces go to the front of the queue and
 * are sent again as soon as there is a link: every slot has one writer, so a write
 * may be repeated.  What must not happen is that the first copy of a write, stuck in a
 * server that was given up, lands after the slot has got another page; in_doubt()
 * tells the tier, which keeps such slots out of use for a while.
 *
 * A server that comes back may serve another volume, or a blank one: before a
 * connection is used, size and flags are compared with what was promised and the
 * superblock is read.  If it is not ours the tier stays away and says why.
 *
 * A request is never given up for being slow.  Only handshakes have a deadline.
 */
#include "nbd_client_impl.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "clock.h"
#include "config.h"
#include "log.h"
#include "stats.h"
#include "thread.h"
#include "tier.h"

/* After a cancel: how long the server may take to answer what it has already got. */
#define CANCEL_NS (500 * NSEC_PER_MSEC)

/* Makes the thread look at everything again, sleeping or about to sleep. */
static void poke(struct nbd_client *c)
{
    uint64_t one = 1;

    if (write(c->event_fd, &one, sizeof(one)) < 0) {
        return; /* the counter is at its top: the thread is as good as awake */
    }
}

/* For what asked() looks at: the thread does so after it has set `sleeping`. */
static void wake(struct nbd_client *c)
{
    if (atomic_load(&c->sleeping)) {
        poke(c);
    }
}

/* ---- the thread ---------------------------------------------------------- */

static void take_incoming(struct nbd_client *c)
{
    struct tier_io *io, *next;
    struct nbd_op *op, *next_op;

    pthread_mutex_lock(&c->lock);
    io = c->incoming.first;
    io_list_init(&c->incoming);
    op = c->ops_in;
    c->ops_in = NULL;
    c->ops_in_last = &c->ops_in;
    pthread_mutex_unlock(&c->lock);
    for (; io; io = next) {
        next = io->next;
        io_list_push(io->write ? &c->writes : &c->reads, io);
    }
    for (; op; op = next_op) {
        next_op = op->next;
        nbd_op_push(&c->ops_last, op);
    }
}

/* Ends operations whose owner has given up, by closing the link if need be. */
static void take_withdrawals(struct nbd_client *c)
{
    struct nbd_op *op = c->ops, *next_op;
    struct nbd_piece *p, *next;
    bool any;

    pthread_mutex_lock(&c->lock);
    any = c->withdrawal;
    c->withdrawal = false;
    pthread_mutex_unlock(&c->lock);
    if (!any) {
        return;
    }
    c->ops = NULL;
    c->ops_last = &c->ops;
    for (; op; op = next_op) {
        next_op = op->next;
        if (op->withdrawn) {
            nbd_op_end(c, op, -ECANCELED);
        } else {
            nbd_op_push(&c->ops_last, op);
        }
    }
    p = c->again;
    c->again = NULL;
    for (; p; p = next) {
        next = p->next;
        if (p->op && p->op->withdrawn) {
            nbd_piece_end(c, p, -ECANCELED);
        } else {
            p->next = c->again;
            c->again = p;
        }
    }
    for (unsigned i = 0; i < c->nr_pieces; i++) {
        p = &c->pieces[i];
        if (p->conn && p->op && p->op->withdrawn) {
            nbd_link_down(c, p->conn, "the server did not answer in time");
        }
    }
}

/* Ends what has not been sent; what has been sent gets a moment longer. */
static void take_cancel(struct nbd_client *c, uint64_t now)
{
    if (!atomic_load(&c->cancelled)) {
        return;
    }
    if (!c->cancel_at) {
        c->cancel_at = now + CANCEL_NS;
    }
    nbd_drop_failed(&c->reads, true);
    nbd_drop_failed(&c->writes, true);
    nbd_drop_again(c);
    for (unsigned i = 0; now >= c->cancel_at && i < c->nr_pieces; i++) {
        struct nbd_piece *p = &c->pieces[i];

        if (p->conn && p->io) {
            nbd_link_down(c, p->conn,
                          "the server did not answer before the end of the VM");
        }
    }
}

static void take_fence(struct nbd_client *c)
{
    if (!atomic_exchange(&c->fence, false)) {
        return;
    }
    for (unsigned i = 0; i < c->nr_conns; i++) {
        if (c->conns[i].h) {
            nbd_link_down(c, &c->conns[i], "its superblock is not ours any more");
        }
    }
}

/* Nanoseconds until something has to be done without being asked. */
static uint64_t next_timer(const struct nbd_client *c, uint64_t now)
{
    uint64_t at = UINT64_MAX;

    for (unsigned i = 0; i < c->nr_conns; i++) {
        const struct nbd_conn *conn = &c->conns[i];

        if (conn->state == NBD_CONN_DOWN && nbd_link_wanted(c, conn) &&
            conn->retry_at < at) {
            at = conn->retry_at;
        } else if ((conn->state == NBD_CONN_HANDSHAKE ||
                    conn->state == NBD_CONN_CHECKING) &&
                   conn->deadline < at) {
            at = conn->deadline;
        }
    }
    if (atomic_load(&c->cancelled) && c->cancel_at > now && c->cancel_at < at) {
        at = c->cancel_at;
    }
    return at == UINT64_MAX ? at : at > now ? at - now : 0;
}

/* True when another thread has left something to do, or sending has brought something. */
static bool asked(struct nbd_client *c)
{
    bool any;

    for (unsigned i = 0; i < c->nr_conns; i++) {
        if (c->conns[i].h && (c->conns[i].failed || c->conns[i].ended)) {
            return true;
        }
    }
    pthread_mutex_lock(&c->lock);
    any = c->incoming.first || c->ops_in || c->withdrawal;
    pthread_mutex_unlock(&c->lock);
    return any || atomic_load(&c->stop) || atomic_load(&c->fence) ||
           (atomic_load(&c->cancelled) && !c->cancel_at);
}

/* Sleeps until a socket, a timer or another thread wants something. */
static void wait_events(struct nbd_client *c)
{
    struct pollfd pfds[NBD_CONNECTIONS_MAX + 1];
    uint64_t ns = next_timer(c, clock_ns()), count;
    struct timespec ts;

    pfds[0] = (struct pollfd){.fd = c->event_fd, .events = POLLIN};
    for (unsigned i = 0; i < c->nr_conns; i++) {
        pfds[i + 1].revents = 0;
        pfds[i + 1].events = nbd_conn_interest(&c->conns[i], &pfds[i + 1].fd);
    }
    atomic_store(&c->sleeping, true);
    if (asked(c)) {
        ns = 0;
    }
    ts = (struct timespec){.tv_sec = (time_t)(ns / NSEC_PER_SEC),
                           .tv_nsec = (long)(ns % NSEC_PER_SEC)};
    if (ppoll(pfds, c->nr_conns + 1, ns == UINT64_MAX ? NULL : &ts, NULL) <= 0) {
        atomic_store(&c->sleeping, false);
        return;
    }
    atomic_store(&c->sleeping, false);
    if (pfds[0].revents && read(c->event_fd, &count, sizeof(count)) < 0) {
        return; /* somebody else cannot have read it: an interrupted call */
    }
    for (unsigned i = 0; i < c->nr_conns; i++) {
        nbd_conn_event(&c->conns[i], pfds[i + 1].revents);
    }
}

static void *client_main(void *arg)
{
    struct nbd_client *c = arg;

    while (!atomic_load(&c->stop)) {
        uint64_t now = clock_ns();

        take_incoming(c);
        take_fence(c);
        take_withdrawals(c);
        take_cancel(c, now);
        for (unsigned i = 0; i < c->nr_conns; i++) {
            nbd_link_step(c, &c->conns[i], now);
        }
        nbd_dispatch(c);
        wait_events(c);
    }
    /* cancelled before: what is left are buffers that nobody may touch any more */
    take_incoming(c);
    for (unsigned i = 0; i < c->nr_conns; i++) {
        if (c->conns[i].h) {
            nbd_link_down(c, &c->conns[i], "the end");
        }
    }
    nbd_drop_failed(&c->reads, true);
    nbd_drop_failed(&c->writes, true);
    nbd_drop_again(c);
    while (c->again) {
        struct nbd_piece *p = c->again;

        c->again = p->next;
        nbd_piece_end(c, p, -ECANCELED);
    }
    for (struct nbd_op *op = nbd_op_pop(c); op; op = nbd_op_pop(c)) {
        nbd_op_end(c, op, -ECANCELED);
    }
    return NULL;
}

/* ---- for other threads --------------------------------------------------- */

static void deadline(struct timespec *ts, uint64_t timeout_ns)
{
    uint64_t at = clock_ns() + timeout_ns;

    ts->tv_sec = (time_t)(at / NSEC_PER_SEC);
    ts->tv_nsec = (long)(at % NSEC_PER_SEC);
}

/* Waits for the first connection; the sentence says what became of it. */
static int wait_first(struct nbd_client *c, char *err, size_t err_len)
{
    struct timespec until;
    int ret;

    deadline(&until, NBD_HANDSHAKE_NS + NSEC_PER_SEC);
    pthread_mutex_lock(&c->lock);
    while (c->first > 0 && pthread_cond_timedwait(&c->cond, &c->lock, &until) == 0) {
    }
    ret = c->first;
    if (ret > 0) {
        c->first = ret = -ETIMEDOUT;
        snprintf(c->complaint, sizeof(c->complaint), "no answer");
    }
    if (ret == -ENOTCONN || ret == -ETIMEDOUT) {
        snprintf(err, err_len,
                 "cannot connect to %s: %s; start its server or correct uri=", c->name,
                 c->complaint);
    } else if (ret) {
        snprintf(err, err_len, "%s", c->complaint);
    }
    pthread_mutex_unlock(&c->lock);
    return ret;
}

static void client_free(struct nbd_client *c)
{
    if (c->dialer) {
        nbd_dialer_stop(c->dialer);
    }
    if (c->event_fd >= 0) {
        close(c->event_fd);
    }
    pthread_cond_destroy(&c->cond);
    pthread_mutex_destroy(&c->lock);
    free(c->pieces);
    free(c->conns);
    free(c);
}

/* Everything but the thread.  0 or a negative errno. */
static int client_new(struct nbd_client **out, const struct nbd_client_config *config)
{
    struct nbd_client *c = calloc(1, sizeof(*c));
    pthread_condattr_t attr;

    if (!c) {
        return -ENOMEM;
    }
    c->tier = config->tier;
    c->in_doubt = config->in_doubt;
    c->opaque = config->opaque;
    c->need_bytes = config->min_bytes;
    c->first = 1;
    c->random = clock_ns() | 1;
    c->nr_conns = config->connections ? config->connections : 1;
    if (c->nr_conns > NBD_CONNECTIONS_MAX) {
        c->nr_conns = NBD_CONNECTIONS_MAX;
    }
    c->nr_pieces = c->nr_conns * NBD_DEPTH;
    snprintf(c->uri, sizeof(c->uri), "%s", config->uri);
    /* up to a first parameter, which may be a socket; certificates and keys are dull */
    snprintf(c->name, sizeof(c->name), "nbd export %.110s", config->uri);
    c->name[strcspn(c->name, "&")] = '\0';
    io_list_init(&c->incoming);
    io_list_init(&c->reads);
    io_list_init(&c->writes);
    c->ops_last = &c->ops;
    c->ops_in_last = &c->ops_in;
    pthread_mutex_init(&c->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&c->cond, &attr);
    pthread_condattr_destroy(&attr);
    c->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    c->pieces = calloc(c->nr_pieces, sizeof(*c->pieces));
    c->conns = calloc(c->nr_conns, sizeof(*c->conns));
    if (c->event_fd < 0 || !c->pieces || !c->conns) {
        client_free(c);
        return -ENOMEM;
    }
    for (unsigned i = 0; i < c->nr_pieces; i++) {
        nbd_piece_free(c, &c->pieces[i]);
    }
    for (unsigned i = 0; i < c->nr_conns; i++) {
        c->conns[i].index = i;
    }
    *out = c;
    return 0;
}

int nbd_client_start(struct nbd_client **out, const struct nbd_client_config *config,
                     char *err, size_t err_len)
{
    struct nbd_client *c;
    int ret = nbd_lib_load(err, err_len);

    if (ret) {
        return ret;
    }
    ret = client_new(&c, config);
    if (!ret) {
        ret = nbd_dialer_start(&c->dialer, c->uri, c->event_fd);
        if (!ret) {
            ret = thread_start(&c->thread, "nbd-client", client_main, c);
        }
        if (ret) {
            client_free(c);
        }
    }
    if (ret) {
        snprintf(err, err_len, "cannot start the client of %s: %s", config->uri,
                 strerror(-ret));
        return ret;
    }
    ret = wait_first(c, err, err_len);
    if (ret) {
        nbd_client_stop(c);
        return ret;
    }
    *out = c;
    return 0;
}

void nbd_client_stop(struct nbd_client *c)
{
    atomic_store(&c->cancelled, true);
    atomic_store(&c->stop, true);
    wake(c);
    pthread_join(c->thread, NULL);
    client_free(c);
}

void nbd_client_export(struct nbd_client *c, struct nbd_export *e)
{
    pthread_mutex_lock(&c->lock);
    *e = c->export;
    pthread_mutex_unlock(&c->lock);
}

void nbd_client_need(struct nbd_client *c, uint64_t bytes)
{
    pthread_mutex_lock(&c->lock);
    if (bytes > c->need_bytes) {
        c->need_bytes = bytes;
    }
    pthread_mutex_unlock(&c->lock);
}

void nbd_client_hold(struct nbd_client *c, const struct superblock *self)
{
    pthread_mutex_lock(&c->lock);
    c->self = *self;
    pthread_mutex_unlock(&c->lock);
    atomic_store(&c->holding, true);
    poke(c);
}

void nbd_client_fence(struct nbd_client *c)
{
    atomic_store(&c->fence, true);
    wake(c);
}

void nbd_client_submit(struct nbd_client *c, struct tier_io *io)
{
    io->offset = 0;
    io->cookie = 0;
    io->fd = 0;
    if (atomic_load(&c->cancelled)) {
        tier_io_done(io, -ECANCELED);
        return;
    }
    pthread_mutex_lock(&c->lock);
    io_list_push(&c->incoming, io);
    pthread_mutex_unlock(&c->lock);
    wake(c);
}

void nbd_client_cancel(struct nbd_client *c)
{
    atomic_store(&c->cancelled, true);
    wake(c);
}

void nbd_client_begin(struct nbd_client *c, struct nbd_op *op)
{
    op->done = false;
    op->withdrawn = false;
    op->result = 0;
    pthread_mutex_lock(&c->lock);
    nbd_op_push(&c->ops_in_last, op);
    pthread_mutex_unlock(&c->lock);
    wake(c);
}

bool nbd_client_wait(struct nbd_client *c, struct nbd_op *op, uint64_t timeout_ns)
{
    struct timespec until;
    bool done;

    deadline(&until, timeout_ns);
    pthread_mutex_lock(&c->lock);
    while (!op->done && pthread_cond_timedwait(&c->cond, &c->lock, &until) == 0) {
    }
    done = op->done;
    pthread_mutex_unlock(&c->lock);
    return done;
}

int nbd_client_finish(struct nbd_client *c, struct nbd_op *op, uint64_t timeout_ns)
{
    int result;

    if (nbd_client_wait(c, op, timeout_ns)) {
        return op->result;
    }
    pthread_mutex_lock(&c->lock);
    op->withdrawn = true;
    c->withdrawal = true;
    pthread_mutex_unlock(&c->lock);
    wake(c);
    pthread_mutex_lock(&c->lock);
    while (!op->done) {
        pthread_cond_wait(&c->cond, &c->lock);
    }
    result = op->result == -ECANCELED ? -ETIMEDOUT : op->result;
    pthread_mutex_unlock(&c->lock);
    return result;
}

int nbd_client_run(struct nbd_client *c, struct nbd_op *op, uint64_t timeout_ns)
{
    nbd_client_begin(c, op);
    return nbd_client_finish(c, op, timeout_ns);
}
