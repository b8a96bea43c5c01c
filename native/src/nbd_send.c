/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Transfers become commands.
 *
 * In tier_io the client uses: offset (bytes cut into pieces so far), cookie (where
 * in the iovec that is: index << 32 | byte), fd (pieces not ended), result (first
 * error).  A transfer of which something is still to be cut is the first of its queue.
 */
#include "nbd_client_impl.h"

#include <errno.h>
#include <string.h>

#include "config.h"
#include "tier.h"

/* Of NBD_DEPTH places on a connection, as many may be taken by reads. */
#define READS_MAX 48

/* Bytes of writes in flight on a connection: 17 ms at 1 Gbit/s. */
#define WRITE_BYTES_MAX (2 * 1024 * 1024)

static struct nbd_piece *piece_new(struct nbd_client *c)
{
    struct nbd_piece *p = c->unused;

    if (p) {
        c->unused = p->next;
        memset(p, 0, sizeof(*p));
    }
    return p;
}

void nbd_piece_free(struct nbd_client *c, struct nbd_piece *p)
{
    p->io = NULL;
    p->op = NULL;
    p->next = c->unused;
    c->unused = p;
}

/* ---- ends ---------------------------------------------------------------- */

void nbd_op_end(struct nbd_client *c, struct nbd_op *op, int result)
{
    pthread_mutex_lock(&c->lock);
    op->result = result;
    op->done = true;
    pthread_cond_broadcast(&c->cond);
    pthread_mutex_unlock(&c->lock);
}

static const char *kind_name(enum nbd_kind kind)
{
    static const char *const names[] = {"read", "write", "trim", "flush"};

    return names[kind];
}

void nbd_piece_end(struct nbd_client *c, struct nbd_piece *p, int result)
{
    struct tier_io *io = p->io;
    struct nbd_op *op = p->op;

    if (result && result != -ECANCELED) {
        tier_error(c->tier, "%s answered a %s of %llu KiB at byte %llu with: %s", c->name,
                   kind_name(p->kind), (unsigned long long)(p->length >> 10),
                   (unsigned long long)p->offset, strerror(-result));
    }
    nbd_piece_free(c, p);
    if (op) {
        nbd_op_end(c, op, result);
        return;
    }
    io->fd--;
    if (result && !io->result) {
        io->result = result;
    }
    if (!io->fd && io->offset == io->length) {
        tier_io_done(io, io->result);
    }
}

void nbd_drop_failed(struct io_list *l, bool all)
{
    while (l->first && (all || l->first->result)) {
        struct tier_io *io = io_list_pop(l);

        if (!io->result) {
            io->result = -ECANCELED;
        }
        io->offset = io->length;
        if (!io->fd) {
            tier_io_done(io, io->result);
        }
    }
}

void nbd_drop_again(struct nbd_client *c)
{
    struct nbd_piece *p = c->again, *next;

    c->again = NULL;
    for (; p; p = next) {
        next = p->next;
        if (p->io) {
            nbd_piece_end(c, p, -ECANCELED);
        } else {
            p->next = c->again;
            c->again = p;
        }
    }
}

/* ---- sending ------------------------------------------------------------- */

/* Cuts the next piece off a transfer: contiguous memory, at most @max bytes. */
static void cut_piece(struct tier_io *io, struct nbd_piece *p, uint64_t max)
{
    unsigned i = (unsigned)(io->cookie >> 32);
    uint64_t in = (uint32_t)io->cookie, take;
    char *base = io->iov[i].iov_base;

    p->io = io;
    p->kind = io->write ? NBD_WRITE : NBD_READ;
    p->buf = base + in;
    p->offset = io->slot * PAGE_SIZE_4K + io->offset;
    p->length = 0;
    for (;;) {
        take = io->iov[i].iov_len - in;
        if (take > max - p->length) {
            take = max - p->length;
        }
        p->length += take;
        in += take;
        if (in < io->iov[i].iov_len) {
            break;
        }
        i++;
        in = 0;
        if (i == (unsigned)io->nr_iov || p->length == max ||
            io->iov[i].iov_base != (char *)p->buf + p->length) {
            break;
        }
    }
    io->cookie = (uint64_t)i << 32 | in;
    io->offset += p->length;
    io->fd++;
}

/* The connection with the least to do, or NULL when all are full. */
static struct nbd_conn *idlest(struct nbd_client *c)
{
    struct nbd_conn *best = NULL;

    for (unsigned i = 0; i < c->nr_conns; i++) {
        struct nbd_conn *conn = &c->conns[i];

        if (conn->state == NBD_CONN_READY && !conn->failed && conn->pieces < NBD_DEPTH &&
            (!best || conn->pieces < best->pieces)) {
            best = conn;
        }
    }
    return best;
}

/* The next piece to send on @conn, or NULL when there is none that may go now. */
static struct nbd_piece *next_piece(struct nbd_client *c, const struct nbd_conn *conn)
{
    struct io_list *from = NULL;
    struct nbd_piece *p = c->again;
    struct nbd_op *op;

    if (p) {
        c->again = p->next;
        return p;
    }
    if (c->ops) {
        p = piece_new(c);
        if (p) {
            op = nbd_op_pop(c);
            p->op = op;
            p->kind = op->kind;
            p->fua = op->fua;
            p->buf = op->buf;
            p->offset = op->offset;
            p->length = op->length;
        }
        return p;
    }
    if (c->reads.first && conn->reads < READS_MAX) {
        from = &c->reads;
    } else if (c->writes.first && conn->write_bytes < WRITE_BYTES_MAX) {
        from = &c->writes;
    }
    p = from ? piece_new(c) : NULL;
    if (p) {
        cut_piece(from->first, p, c->export.max_request);
        if (from->first->offset == from->first->length) {
            io_list_pop(from);
        }
    }
    return p;
}

void nbd_dispatch(struct nbd_client *c)
{
    struct nbd_conn *conn;
    struct nbd_piece *p;
    int ret;

    nbd_drop_failed(&c->reads, false);
    nbd_drop_failed(&c->writes, false);
    while ((conn = idlest(c)) && (p = next_piece(c, conn))) {
        ret = nbd_conn_send(conn, p);
        if (ret == -ENOTCONN) {
            p->next = c->again;
            c->again = p;
        } else if (ret) {
            nbd_piece_end(c, p, ret);
            nbd_drop_failed(&c->reads, false);
            nbd_drop_failed(&c->writes, false);
        }
    }
}
