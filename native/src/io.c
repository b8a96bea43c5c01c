/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * io_uring requests, polled for before sleeping.  A disk answers in some tens
 * of microseconds and in a virtual machine a wake-up from another CPU costs
 * about as much again, so the waiting thread looks at the completion queue for
 * a while: the vCPU it works for is standing still anyway.
 */
#include "io.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "clock.h"

int io_init(struct io *io)
{
    /*
     * DEFER_TASKRUN: a completion waits in a list until the owner asks, rather
     * than interrupt its CPU.  The ring is bound to the thread that enables it.
     */
    struct io_uring_params params = {.flags = IORING_SETUP_SINGLE_ISSUER |
                                              IORING_SETUP_DEFER_TASKRUN |
                                              IORING_SETUP_R_DISABLED};
    int ret = io_uring_queue_init_params(IO_DEPTH, &io->ring, &params);

    io->deferred = ret == 0;
    io->enabled = false;
    if (ret == -EINVAL) {
        params = (struct io_uring_params){0};
        io->enabled = true;
        ret = io_uring_queue_init_params(IO_DEPTH, &io->ring, &params);
    }
    return ret;
}

void io_deinit(struct io *io)
{
    io_uring_queue_exit(&io->ring);
}

/* Carries a transfer that stopped after @done bytes on to its end. */
static int finish_short(const struct io_request *r, uint64_t done)
{
    uint64_t skip = done;

    for (int i = 0; i < r->nr_iov; i++) {
        char *base = r->iov[i].iov_base;
        uint64_t len = r->iov[i].iov_len;

        if (skip >= len) {
            skip -= len;
            continue;
        }
        while (skip < len) {
            ssize_t n =
                r->write
                    ? pwrite(r->fd, base + skip, len - skip, (off_t)(r->offset + done))
                    : pread(r->fd, base + skip, len - skip, (off_t)(r->offset + done));

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

static void complete(const struct io_uring_cqe *cqe, int *failed)
{
    struct io_request *r = io_uring_cqe_get_data(cqe);

    if (cqe->res < 0) {
        r->result = cqe->res;
    } else if ((uint64_t)cqe->res < r->length) {
        r->result = finish_short(r, (uint64_t)cqe->res);
    } else {
        r->result = 0;
    }
    *failed += r->result != 0;
}

static int fail_all(struct io_request *reqs, int nr, int result)
{
    for (int i = 0; i < nr; i++) {
        reqs[i].result = result;
    }
    return nr;
}

int io_run(struct io *io, struct io_request *reqs, int nr, uint64_t spin_ns)
{
    struct io_uring_cqe *cqe;
    int failed = 0, left = nr, ret;
    uint64_t until;

    if (!io->enabled) {
        /* liburing 2.3 declares io_uring_enable_rings() but does not export it */
        if (syscall(SYS_io_uring_register, io->ring.ring_fd, IORING_REGISTER_ENABLE_RINGS,
                    NULL, 0) < 0) {
            return fail_all(reqs, nr, -errno);
        }
        io->enabled = true;
    }
    for (int i = 0; i < nr; i++) {
        struct io_request *r = &reqs[i];
        struct io_uring_sqe *sqe = io_uring_get_sqe(&io->ring);

        if (r->write) {
            io_uring_prep_writev(sqe, r->fd, r->iov, (unsigned)r->nr_iov, r->offset);
        } else if (r->nr_iov == 1) {
            io_uring_prep_read(sqe, r->fd, r->iov->iov_base, (unsigned)r->iov->iov_len,
                               r->offset);
        } else {
            io_uring_prep_readv(sqe, r->fd, r->iov, (unsigned)r->nr_iov, r->offset);
        }
        io_uring_sqe_set_data(sqe, r);
    }
    for (int submitted = 0; submitted < nr;) {
        ret = io_uring_submit(&io->ring);
        if (ret > 0) {
            submitted += ret;
        } else if (ret < 0 && ret != -EINTR && ret != -EAGAIN && ret != -EBUSY) {
            /* the ring itself is broken: nothing that was prepared can be trusted */
            return fail_all(reqs, nr, ret);
        }
    }
    until = clock_ns() + spin_ns;
    while (left) {
        if (io_uring_peek_cqe(&io->ring, &cqe) == 0) {
            complete(cqe, &failed);
            io_uring_cqe_seen(&io->ring, cqe);
            left--;
        } else if (clock_ns() >= until) {
            ret = io_uring_wait_cqe(&io->ring, &cqe);
            if (ret && ret != -EINTR && ret != -EAGAIN) {
                /* requests may still be in flight: their buffers are not ours */
                abort();
            }
        } else if (io->deferred) {
            io_uring_get_events(&io->ring);
        } else {
            cpu_relax();
        }
    }
    return failed;
}
