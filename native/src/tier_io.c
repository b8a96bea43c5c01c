/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The queue of a thread.
 *
 * Theory of operation.  A transfer ends in one of three places: in the thread's
 * own io_uring (files), in another thread that hands it back (network), or at
 * once (memory).  tier_poll() looks at all three.  A disk answers in some tens of
 * microseconds and in a virtual machine a wake-up from another CPU costs about
 * as much again; so whoever waits polls for a while and sleeps then, on event_fd.
 *
 * The delay wrapper holds a transfer back after it has really ended, so that what
 * is tested is the real store, late.  The error wrapper fails it without starting it.
 */
#include "tier_io.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "clock.h"
#include "config.h"
#include "probes.h"
#include "stats.h"
#include "tier.h"

/* Requests prepared at a time, and completions that fit before the kernel keeps a list. */
#define RING_ENTRIES 64
#define RING_COMPLETIONS 1024

static int ring_init(struct tier_queue *q)
{
    /*
     * DEFER_TASKRUN: a completion waits in a list until the owner asks, rather
     * than interrupt its CPU.  The ring is bound to the thread that enables it.
     */
    struct io_uring_params params = {
        .flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
                 IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_R_DISABLED |
                 IORING_SETUP_CQSIZE,
        .cq_entries = RING_COMPLETIONS};
    int ret = io_uring_queue_init_params(RING_ENTRIES, &q->ring, &params);

    q->deferred = ret == 0;
    if (ret == -EINVAL) {
        params = (struct io_uring_params){.flags = IORING_SETUP_CQSIZE,
                                          .cq_entries = RING_COMPLETIONS};
        q->enabled = true;
        ret = io_uring_queue_init_params(RING_ENTRIES, &q->ring, &params);
    }
    return ret;
}

static void scratch_deinit(struct tier_queue *q)
{
    for (unsigned i = 0; i < UFFDMM_TIERS_MAX; i++) {
        if (q->scratch[i]) {
            q->tiers[i]->ops->scratch_free(q->scratch[i]);
        }
    }
}

int tier_queue_init(struct tier_queue *q, struct tier *const *tiers, unsigned nr_tiers)
{
    int ret;

    memset(q, 0, sizeof(*q));
    q->rng = clock_ns() | 1;
    q->foreign_tail = &q->foreign;
    q->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (q->event_fd < 0) {
        return -errno;
    }
    ret = ring_init(q);
    if (ret) {
        close(q->event_fd);
        return ret;
    }
    /*
     * The ring's own descriptor cannot be polled for: with DEFER_TASKRUN nobody is
     * woken.  The event is switched on only around a sleep.
     */
    ret = io_uring_register_eventfd(&q->ring, q->event_fd);
    if (!ret) {
        ret = io_uring_cq_eventfd_toggle(&q->ring, false);
    }
    if (ret) {
        io_uring_queue_exit(&q->ring);
        close(q->event_fd);
        return ret;
    }
    pthread_mutex_init(&q->lock, NULL);
    for (unsigned i = 0; i < nr_tiers; i++) {
        struct tier *t = tiers[i];

        if (t && t->ops->scratch_new) {
            q->tiers[t->index] = t;
            ret = t->ops->scratch_new(t, &q->scratch[t->index]);
            if (ret) {
                tier_queue_deinit(q);
                return ret;
            }
        }
    }
    return 0;
}

void tier_queue_deinit(struct tier_queue *q)
{
    scratch_deinit(q);
    io_uring_queue_exit(&q->ring);
    close(q->event_fd);
    pthread_mutex_destroy(&q->lock);
}

struct tier_scratch *tier_queue_scratch(struct tier_queue *q, struct tier *t)
{
    return q->scratch[t->index];
}

/* ---- ends of transfers --------------------------------------------------- */

static void push_ended(struct tier_queue *q, struct tier_io *io)
{
    struct tier_io **at = &q->delayed;

    if (io->due_ns <= io->ended_ns) {
        io->next = q->ended;
        q->ended = io;
        return;
    }
    io->ended_ns = io->due_ns;
    while (*at && (*at)->due_ns <= io->due_ns) {
        at = &(*at)->next;
    }
    io->next = *at;
    *at = io;
}

/* The thread that submitted: known by its ring, which nobody else may touch. */
static _Thread_local struct tier_queue *own_queue;

void tier_io_done(struct tier_io *io, int result)
{
    struct tier_queue *q = io->queue;
    uint64_t one = 1;

    io->result = result;
    io->ended_ns = clock_ns();
    if (own_queue == q) {
        push_ended(q, io);
        return;
    }
    io->next = NULL;
    pthread_mutex_lock(&q->lock);
    __atomic_store_n(q->foreign_tail, io, __ATOMIC_SEQ_CST);
    q->foreign_tail = &io->next;
    /* with the lock, for the owner may free the queue as soon as it has got the transfer */
    if (atomic_load(&q->sleeping) && write(q->event_fd, &one, sizeof(one)) < 0) {
        /* the counter is at its top: the owner is as good as awake */
    }
    pthread_mutex_unlock(&q->lock);
}

static void take_foreign(struct tier_queue *q)
{
    struct tier_io *io, *next;

    if (!__atomic_load_n(&q->foreign, __ATOMIC_RELAXED)) {
        return;
    }
    pthread_mutex_lock(&q->lock);
    io = q->foreign;
    __atomic_store_n(&q->foreign, NULL, __ATOMIC_RELAXED);
    q->foreign_tail = &q->foreign;
    pthread_mutex_unlock(&q->lock);
    for (; io; io = next) {
        next = io->next;
        push_ended(q, io);
    }
}

static void take_due(struct tier_queue *q)
{
    uint64_t now = q->delayed ? clock_ns() : 0;

    while (q->delayed && q->delayed->due_ns <= now) {
        struct tier_io *io = q->delayed;

        q->delayed = io->next;
        io->next = q->ended;
        q->ended = io;
    }
}

/* Carries a transfer that stopped after @done bytes on to its end. */
static int finish_short(const struct tier_io *io, uint64_t done)
{
    uint64_t skip = done;

    for (int i = 0; i < io->nr_iov; i++) {
        char *base = io->iov[i].iov_base;
        uint64_t len = io->iov[i].iov_len;

        if (skip >= len) {
            skip -= len;
            continue;
        }
        while (skip < len) {
            off_t at = (off_t)(io->offset + done);
            ssize_t n = io->write ? pwrite(io->fd, base + skip, len - skip, at)
                                  : pread(io->fd, base + skip, len - skip, at);

            if (n < 0 && errno == EINTR) {
                continue;
            }
            if (n <= 0) {
                return n ? -errno : -EIO;
            }
            skip += (uint64_t)n;
            done += (uint64_t)n;
        }
        skip = 0;
    }
    return 0;
}

static void take_ring(struct tier_queue *q)
{
    struct io_uring_cqe *cqe;

    if (!q->in_ring) {
        return;
    }
    if (q->deferred) {
        io_uring_get_events(&q->ring);
    }
    while (io_uring_peek_cqe(&q->ring, &cqe) == 0) {
        struct tier_io *io = io_uring_cqe_get_data(cqe);
        int result = cqe->res;

        io_uring_cqe_seen(&q->ring, cqe);
        q->in_ring--;
        if (result >= 0) {
            result =
                (uint64_t)result < io->length ? finish_short(io, (uint64_t)result) : 0;
        }
        tier_io_done(io, result);
    }
}

/* ---- submission ---------------------------------------------------------- */

static int enable(struct tier_queue *q)
{
    if (!q->enabled) {
        /* liburing 2.3 declares io_uring_enable_rings() but does not export it */
        if (syscall(SYS_io_uring_register, q->ring.ring_fd, IORING_REGISTER_ENABLE_RINGS,
                    NULL, 0) < 0) {
            return -errno;
        }
        q->enabled = true;
    }
    return 0;
}

/*
 * The kernel takes nothing from the ring: prepared requests end with @error, and their
 * owners try again or go elsewhere.  Without a polling thread it reads the ring only
 * while it is called, and a call that failed has consumed none, so what lies behind its
 * head can be taken out again.  Left there it would be carried out by the next call that
 * succeeds, on buffers that are somebody else's by then.
 */
static void withdraw(struct tier_queue *q, int error)
{
    struct io_uring_sq *sq = &q->ring.sq;
    unsigned head = io_uring_smp_load_acquire(sq->khead), tail = sq->sqe_tail;

    sq->sqe_head = sq->sqe_tail = head;
    io_uring_smp_store_release(sq->ktail, head);
    q->unflushed = 0;
    for (unsigned i = head; i != tail; i++) {
        struct tier_io *io =
            (struct tier_io *)(uintptr_t)sq->sqes[i & sq->ring_mask].user_data;

        q->in_ring--;
        tier_io_done(io, error);
    }
}

void tier_flush(struct tier_queue *q)
{
    while (q->unflushed) {
        int ret = io_uring_submit(&q->ring);

        if (ret > 0) {
            q->unflushed -= (unsigned)ret;
        } else if (ret == -EBUSY || ret == -EAGAIN) {
            take_ring(q);
        } else if (ret != -EINTR) {
            withdraw(q, ret ? ret : -EIO);
        }
    }
}

void tier_ring_submit(struct tier_queue *q, struct tier_io *io, int fd, uint64_t offset)
{
    struct io_uring_sqe *sqe;
    int ret = enable(q);

    if (ret) {
        tier_io_done(io, ret);
        return;
    }
    io->fd = fd;
    io->offset = offset;
    sqe = io_uring_get_sqe(&q->ring);
    if (!sqe) {
        tier_flush(q);
        sqe = io_uring_get_sqe(&q->ring);
    }
    if (io->write) {
        io_uring_prep_writev(sqe, fd, io->iov, (unsigned)io->nr_iov, offset);
    } else if (io->nr_iov == 1) {
        io_uring_prep_read(sqe, fd, io->iov->iov_base, (unsigned)io->iov->iov_len,
                           offset);
    } else {
        io_uring_prep_readv(sqe, fd, io->iov, (unsigned)io->nr_iov, offset);
    }
    io_uring_sqe_set_data(sqe, io);
    q->unflushed++;
    q->in_ring++;
}

unsigned tier_build_write(struct tier_io *io, struct tier *t, const struct tier_put *puts,
                          unsigned nr, unsigned i, struct iovec *iov)
{
    uint64_t first = puts[i].slot, extent = t->ops->extent(t, first, nr - i);
    unsigned k;
    int n = 0;

    for (k = i;
         k < nr && k - i < extent && !puts[k].result && puts[k].slot == first + (k - i);
         k++) {
        char *data = (char *)(uintptr_t)puts[k].data;

        if (n && (char *)iov[n - 1].iov_base + iov[n - 1].iov_len == data) {
            iov[n - 1].iov_len += PAGE_SIZE_4K;
        } else {
            iov[n++] = (struct iovec){.iov_base = data, .iov_len = PAGE_SIZE_4K};
        }
    }
    *io = (struct tier_io){
        .tier = t,
        .write = true,
        .slot = first,
        .region_id = puts[i].region_id,
        .pfn = puts[i].pfn,
        .iov = iov,
        .nr_iov = n,
        .length = (uint64_t)(k - i) * PAGE_SIZE_4K,
    };
    return k;
}

void tier_submit(struct tier_queue *q, struct tier_io *io)
{
    struct tier *t = io->tier;

    own_queue = q;
    io->queue = q;
    io->next = NULL;
    io->done = false;
    io->result = 0;
    io->injected = 0;
    io->due_ns = 0;
    io->scratch = q->scratch[t->index];
    io->submitted_ns = clock_ns();
    q->in_flight++;
    __atomic_fetch_add(&t->io_pending, 1, __ATOMIC_RELAXED);
    if (io->write) {
        __atomic_fetch_add(&t->writes, 1, __ATOMIC_SEQ_CST); /* tier_quiesce() */
    }
    tier_inject(q, io);
    if (io->write && tier_hold(t) != TIER_HELD) {
        tier_io_done(io, -EROFS);
    } else if (io->injected) {
        tier_io_done(io, io->injected);
    } else {
        t->ops->submit(t, q, io);
    }
}

/* Counts a transfer that leaves the queue. */
static void account(struct tier_io *io)
{
    struct tier *t = io->tier;
    struct uffdmm_tier_stats *st = t->stats;
    uint64_t ns = io->ended_ns - io->submitted_ns;

    __atomic_fetch_sub(&t->io_pending, 1, __ATOMIC_RELAXED);
    if (io->write) {
        __atomic_fetch_sub(&t->writes, 1, __ATOMIC_SEQ_CST);
    }
    if (io->result) {
        stats_add(&st->errors, 1);
    } else if (io->write) {
        stats_add(&st->writes, 1);
        stats_add(&st->write_bytes, io->length);
        stats_hist(st->write_hist, ns);
    } else {
        stats_add(&st->reads, 1);
        stats_add(&st->read_bytes, io->length);
        stats_hist(st->read_hist, ns);
    }
    if (io->write) {
        PROBE_WRITE_END(st->name, io->length, ns, io->result);
    } else {
        PROBE_READ_END(st->name, io->length, ns, io->result);
    }
}

struct tier_io *tier_poll(struct tier_queue *q)
{
    struct tier_io *io;

    own_queue = q;
    if (!q->ended) {
        tier_flush(q);
        take_ring(q);
        take_foreign(q);
        take_due(q);
    }
    io = q->ended;
    if (io) {
        q->ended = io->next;
        io->next = NULL;
        io->done = true;
        q->in_flight--;
        account(io);
    }
    return io;
}

/* ---- waiting ------------------------------------------------------------- */

uint64_t tier_queue_sleep(struct tier_queue *q)
{
    uint64_t now;

    tier_flush(q);
    atomic_store(&q->sleeping, true);
    if (q->in_ring) {
        io_uring_cq_eventfd_toggle(&q->ring, true);
        atomic_thread_fence(memory_order_seq_cst);
    }
    if (q->ended || __atomic_load_n(&q->foreign, __ATOMIC_SEQ_CST)) {
        return 0;
    }
    if (q->deferred && q->in_ring) {
        io_uring_get_events(&q->ring);
    }
    if (q->in_ring && io_uring_cq_ready(&q->ring)) {
        return 0;
    }
    /*
     * The kernel runs some 20 pieces of work at a time, which need not end in a
     * completion (a busy device is asked again), and signals only when its list was
     * empty: with more of it there would be no event.
     */
    if (q->deferred && IO_URING_READ_ONCE(*q->ring.sq.kflags) & IORING_SQ_TASKRUN) {
        return 0;
    }
    if (!q->delayed) {
        return UINT64_MAX;
    }
    now = clock_ns();
    return q->delayed->due_ns > now ? q->delayed->due_ns - now : 0;
}

void tier_queue_awake(struct tier_queue *q)
{
    uint64_t count;

    atomic_store(&q->sleeping, false);
    io_uring_cq_eventfd_toggle(&q->ring, false);
    if (read(q->event_fd, &count, sizeof(count)) < 0) {
        return; /* nothing was handed over */
    }
}

void tier_wait(struct tier_queue *q, uint64_t max_ns)
{
    uint64_t ns = tier_queue_sleep(q);
    struct pollfd pfd = {.fd = q->event_fd, .events = POLLIN};
    struct timespec ts;

    ns = ns < max_ns ? ns : max_ns;
    if (ns) {
        ts = (struct timespec){.tv_sec = (time_t)(ns / NSEC_PER_SEC),
                               .tv_nsec = (long)(ns % NSEC_PER_SEC)};
        ppoll(&pfd, 1, ns == UINT64_MAX ? NULL : &ts, NULL);
    }
    tier_queue_awake(q);
}

int tier_run(struct tier_queue *q, struct tier_io *ios, int nr, uint64_t spin_ns)
{
    uint64_t until;
    int failed = 0, left = nr;

    for (int i = 0; i < nr; i++) {
        tier_submit(q, &ios[i]);
    }
    until = clock_ns() + spin_ns;
    while (left) {
        struct tier_io *io = tier_poll(q);

        if (io) {
            failed += io->result != 0;
            left--;
        } else if (clock_ns() < until) {
            cpu_relax();
        } else {
            tier_wait(q, UINT64_MAX);
        }
    }
    return failed;
}
