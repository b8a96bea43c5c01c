/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * libnbd runs a state machine that this thread pushes on with the two notify
 * calls.  Whatever goes wrong with a link ends in `failed`; an error that the
 * server answered ends the piece alone.
 */
#include "nbd_conn.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "config.h"

/*
 * Larger requests are cut: a page that a vCPU waits for would stand behind the
 * whole of one, and several connections share the work.
 */
#define REQUEST_MAX (1024 * 1024)

/* A peer that has vanished is noticed after this, in seconds; one that stalls is left alone. */
#define KEEPALIVE_IDLE 10
#define KEEPALIVE_INTERVAL 5
#define KEEPALIVE_COUNT 4
#define USER_TIMEOUT_MS 60000

static void fail(struct nbd_conn *conn, const char *text)
{
    if (!conn->failed) {
        conn->failed = true;
        snprintf(conn->text, sizeof(conn->text), "%s", text);
    }
}

/*
 * Runs inside a libnbd call, under the lock of the handle: only notes the end.
 * A command that the end of the link swept away has ENOTCONN, which no server can
 * answer; it stays in flight as far as we are concerned, to be sent again.
 */
static int piece_ended(void *opaque, int *error)
{
    struct nbd_piece *p = opaque;
    struct nbd_conn *conn = p->conn;

    if (!conn) {
        return 1; /* nbd_close() clears up */
    }
    if (*error == ENOTCONN) {
        fail(conn, "the server closed the connection");
    } else if (*error == ESHUTDOWN) {
        fail(conn, "the server is shutting down");
    } else {
        p->error = *error;
        p->next = conn->ended;
        conn->ended = p;
    }
    return 1;
}

void nbd_conn_adopt(struct nbd_conn *conn, struct nbd_handle *h)
{
    conn->h = h;
    conn->failed = false;
    conn->text[0] = '\0';
    conn->state = NBD_CONN_HANDSHAKE;
    conn->pieces = conn->reads = 0;
    conn->write_bytes = 0;
    conn->ended = NULL;
}

void nbd_conn_close(struct nbd_conn *conn)
{
    conn->check.conn = NULL;
    nbd_lib.close(conn->h);
    conn->h = NULL;
    conn->ended = NULL;
    conn->state = NBD_CONN_DOWN;
}

short nbd_conn_interest(const struct nbd_conn *conn, int *fd)
{
    unsigned direction;

    *fd = -1;
    if (!conn->h || conn->failed) {
        return 0;
    }
    *fd = nbd_lib.aio_get_fd(conn->h);
    direction = nbd_lib.aio_get_direction(conn->h);
    return (short)((direction & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) |
                   (direction & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0));
}

void nbd_conn_event(struct nbd_conn *conn, short revents)
{
    const short broken = POLLHUP | POLLERR | POLLNVAL;

    if (!conn->h || conn->failed || !revents) {
        return;
    }
    if ((nbd_lib.aio_get_direction(conn->h) & LIBNBD_AIO_DIRECTION_READ) &&
        (revents & (POLLIN | broken)) && nbd_lib.aio_notify_read(conn->h) < 0) {
        fail(conn, nbd_lib.get_error());
        return;
    }
    /* reading may have changed what it waits for */
    if ((nbd_lib.aio_get_direction(conn->h) & LIBNBD_AIO_DIRECTION_WRITE) &&
        (revents & (POLLOUT | broken)) && nbd_lib.aio_notify_write(conn->h) < 0) {
        fail(conn, nbd_lib.get_error());
        return;
    }
    if (nbd_lib.aio_is_dead(conn->h) || nbd_lib.aio_is_closed(conn->h)) {
        fail(conn, "the server closed the connection");
    }
}

bool nbd_conn_negotiated(const struct nbd_conn *conn)
{
    return conn->h && !conn->failed && nbd_lib.aio_is_ready(conn->h);
}

/* A block size that the server announced, or @otherwise. */
static uint64_t block_size(struct nbd_handle *h, int type, uint64_t otherwise)
{
    int64_t n = nbd_lib.get_block_size(h, type);

    return n > 0 ? (uint64_t)n : otherwise;
}

void nbd_conn_export(const struct nbd_conn *conn, struct nbd_export *e)
{
    int64_t bytes = nbd_lib.get_size(conn->h);

    *e = (struct nbd_export){
        .bytes = bytes > 0 ? (uint64_t)bytes : 0,
        .max_request = block_size(conn->h, LIBNBD_SIZE_MAXIMUM, REQUEST_MAX),
        .min_request = block_size(conn->h, LIBNBD_SIZE_MINIMUM, 1),
        .read_only = nbd_lib.is_read_only(conn->h) != 0,
        .can_trim = nbd_lib.can_trim(conn->h) > 0,
        .can_fua = nbd_lib.can_fua(conn->h) > 0,
        .can_flush = nbd_lib.can_flush(conn->h) > 0,
        .multi_conn = nbd_lib.can_multi_conn(conn->h) > 0,
    };
    if (e->max_request > REQUEST_MAX) {
        e->max_request = REQUEST_MAX;
    }
    e->max_request &= ~(uint64_t)(PAGE_SIZE_4K - 1);
}

void nbd_conn_keepalive(const struct nbd_conn *conn)
{
    static const struct {
        int level, option, value;
    } options[] = {
        {SOL_SOCKET, SO_KEEPALIVE, 1},
        {IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_IDLE},
        {IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_INTERVAL},
        {IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_COUNT},
        {IPPROTO_TCP, TCP_USER_TIMEOUT, USER_TIMEOUT_MS},
    };
    int fd = nbd_lib.aio_get_fd(conn->h);

    for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++) {
        if (setsockopt(fd, options[i].level, options[i].option, &options[i].value,
                       sizeof(options[i].value)) < 0) {
            return; /* a UNIX socket: the kernel tells when its peer is gone */
        }
    }
}

int nbd_conn_send(struct nbd_conn *conn, struct nbd_piece *p)
{
    nbd_completion_callback ended = {.callback = piece_ended, .user_data = p};
    uint32_t flags = p->fua ? LIBNBD_CMD_FLAG_FUA : 0;
    int64_t ret = -1;
    int error;

    p->conn = conn;
    p->error = 0;
    conn->pieces++;
    conn->reads += p->kind == NBD_READ;
    conn->write_bytes += p->kind == NBD_WRITE ? p->length : 0;
    switch (p->kind) {
    case NBD_READ:
        ret = nbd_lib.aio_pread(conn->h, p->buf, (size_t)p->length, p->offset, ended, 0);
        break;
    case NBD_WRITE:
        ret = nbd_lib.aio_pwrite(conn->h, p->buf, (size_t)p->length, p->offset, ended,
                                 flags);
        break;
    case NBD_TRIM:
        ret = nbd_lib.aio_trim(conn->h, p->length, p->offset, ended, 0);
        break;
    case NBD_FLUSH:
        ret = nbd_lib.aio_flush(conn->h, ended, 0);
        break;
    }
    if (ret >= 0) {
        return 0;
    }
    error = nbd_lib.get_errno();
    if (error == ENOTCONN || nbd_lib.aio_is_dead(conn->h) ||
        nbd_lib.aio_is_closed(conn->h)) {
        fail(conn, nbd_lib.get_error());
        error = ENOTCONN;
    }
    nbd_conn_forget(conn, p);
    return error ? -error : -EIO;
}

void nbd_conn_forget(struct nbd_conn *conn, struct nbd_piece *p)
{
    p->conn = NULL;
    conn->pieces--;
    conn->reads -= p->kind == NBD_READ;
    conn->write_bytes -= p->kind == NBD_WRITE ? p->length : 0;
}

struct nbd_piece *nbd_conn_take(struct nbd_conn *conn)
{
    struct nbd_piece *p = conn->ended;

    if (p) {
        conn->ended = p->next;
        p->next = NULL;
        nbd_conn_forget(conn, p);
    }
    return p;
}
