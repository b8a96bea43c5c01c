/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the parts of the NBD client share: nbd_client.c (the thread, and the calls
 * for others), nbd_link.c (connections come and go), nbd_send.c (transfers become
 * commands).  Included by these only.
 */
#ifndef UFFDMM_NBD_CLIENT_IMPL_H
#define UFFDMM_NBD_CLIENT_IMPL_H

#include <pthread.h>
#include <stdatomic.h>

#include "clock.h"
#include "nbd_client.h"
#include "tier_io.h"

/* A handshake that takes longer is given up. */
#define NBD_HANDSHAKE_NS (5 * NSEC_PER_SEC)

struct io_list {
    struct tier_io *first, **last;
};

struct nbd_client {
    struct tier *tier;
    void (*in_doubt)(void *opaque, uint64_t offset, uint64_t length);
    void *opaque;
    char uri[NBD_URI_MAX];
    char name[128]; /* of the export in sentences */
    pthread_t thread;
    struct nbd_dialer *dialer;
    int event_fd;
    _Atomic bool sleeping, cancelled, stop, fence, holding;
    _Atomic int first; /* connection, that start() waits for: 1 pending, 0 or -errno */

    pthread_mutex_t lock; /* around what follows up to the blank line */
    pthread_cond_t cond;  /* an operation is done, the first connection is decided */
    struct io_list incoming;
    struct nbd_op *ops_in, **ops_in_last;
    bool withdrawal; /* of some operation */
    struct nbd_export export;
    uint64_t need_bytes;
    struct superblock self;

    /* the thread's own */
    struct io_list reads, writes;
    struct nbd_op *ops, **ops_last;
    struct nbd_piece *again; /* pieces of lost links */
    struct nbd_piece *unused;
    struct nbd_piece *pieces;
    unsigned nr_pieces;
    struct nbd_conn *conns;
    unsigned nr_conns;
    unsigned ready;
    bool multi_conn;
    bool away;
    uint64_t away_since, cancel_at, random, logged_back;
    uint64_t complained_ns;
    char complaint[UFFDMM_TEXT_MAX];
};

static inline void io_list_init(struct io_list *l)
{
    l->first = NULL;
    l->last = &l->first;
}

static inline void io_list_push(struct io_list *l, struct tier_io *io)
{
    io->next = NULL;
    *l->last = io;
    l->last = &io->next;
}

static inline struct tier_io *io_list_pop(struct io_list *l)
{
    struct tier_io *io = l->first;

    if (io) {
        l->first = io->next;
        if (!l->first) {
            l->last = &l->first;
        }
    }
    return io;
}

static inline void nbd_op_push(struct nbd_op ***last, struct nbd_op *op)
{
    op->next = NULL;
    **last = op;
    *last = &op->next;
}

static inline struct nbd_op *nbd_op_pop(struct nbd_client *c)
{
    struct nbd_op *op = c->ops;

    if (op) {
        c->ops = op->next;
        if (!c->ops) {
            c->ops_last = &c->ops;
        }
    }
    return op;
}

/* ---- nbd_send.c ---------------------------------------------------------- */

void nbd_piece_free(struct nbd_client *c, struct nbd_piece *p);

/* A piece is over: with it perhaps its transfer, unless more of that is to be cut. */
void nbd_piece_end(struct nbd_client *c, struct nbd_piece *p, int result);

void nbd_op_end(struct nbd_client *c, struct nbd_op *op, int result);

/* Takes a transfer that failed halfway, or all of them, out of a queue. */
void nbd_drop_failed(struct io_list *l, bool all);

/* Ends the pieces of transfers that wait to be sent again. */
void nbd_drop_again(struct nbd_client *c);

/* Sends what may be sent. */
void nbd_dispatch(struct nbd_client *c);

/* ---- nbd_link.c ---------------------------------------------------------- */

/*
 * One connection is made first.  Others follow once it is known that the volume
 * is ours and the server takes several.
 */
bool nbd_link_wanted(const struct nbd_client *c, const struct nbd_conn *conn);

/* Carries one connection on as far as it goes now. */
void nbd_link_step(struct nbd_client *c, struct nbd_conn *conn, uint64_t now);

/* Closes a connection, or notes that it could not be made, and plans the next try. */
void nbd_link_down(struct nbd_client *c, struct nbd_conn *conn, const char *text);

#endif
