/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Block I/O of one thread: a few requests submitted together through io_uring
 * and awaited together.  One struct io belongs to one thread.
 */
#ifndef UFFDMM_IO_H
#define UFFDMM_IO_H

#include <liburing.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#define IO_DEPTH 64

struct io_request {
    bool write;
    int fd;
    struct iovec *iov; /* page-aligned, lengths multiples of the page size */
    int nr_iov;
    uint64_t offset; /* bytes in the file */
    uint64_t length; /* bytes, sum of iov */
    int result;      /* 0, or a negative errno; set by io_run() */
};

struct io {
    struct io_uring ring;
    bool deferred; /* completions have to be asked for */
    bool enabled;  /* by the thread that it belongs to */
};

/* 0 or a negative errno. */
int io_init(struct io *io);
void io_deinit(struct io *io);

/*
 * Submits @nr (at most IO_DEPTH) requests and waits for all of them: first by
 * polling for up to @spin_ns, then asleep.  Short transfers are carried on to
 * their end.  Each request gets its own result; returns how many failed.
 */
int io_run(struct io *io, struct io_request *reqs, int nr, uint64_t spin_ns);

#endif
