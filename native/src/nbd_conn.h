/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One connection to an NBD export: a libnbd handle that is polled on, and the
 * commands in flight on it.  What to do when it is lost is nbd_client.c's affair.
 * All calls from one thread.
 */
#ifndef UFFDMM_NBD_CONN_H
#define UFFDMM_NBD_CONN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "nbd_dial.h"
#include "superblock.h"

struct tier_io;
struct nbd_op;
struct nbd_conn;

/* Commands in flight on one connection. */
#define NBD_DEPTH 64

enum nbd_kind { NBD_READ, NBD_WRITE, NBD_TRIM, NBD_FLUSH };

/* One NBD command: a contiguous piece of a transfer, or an operation. */
struct nbd_piece {
    struct nbd_piece *next;
    struct nbd_conn *conn; /* in flight there, or NULL */
    struct tier_io *io;    /* of either one of these, or of the connection itself */
    struct nbd_op *op;
    enum nbd_kind kind;
    bool fua;
    void *buf;
    uint64_t offset; /* in the export */
    uint64_t length;
    int error; /* of the server, positive, once ended */
};

/* What a server says of its export. */
struct nbd_export {
    uint64_t bytes;
    uint64_t max_request; /* bytes of one command, whole pages */
    uint64_t min_request;
    bool read_only, can_trim, can_fua, can_flush, multi_conn;
};

enum nbd_conn_state {
    NBD_CONN_DOWN,      /* no handle; again at retry_at */
    NBD_CONN_DIALING,   /* the dialer has it */
    NBD_CONN_HANDSHAKE, /* connecting and negotiating, until deadline */
    NBD_CONN_CHECKING,  /* reading the superblock, until deadline */
    NBD_CONN_READY
};

struct nbd_conn {
    unsigned index;
    enum nbd_conn_state state;
    struct nbd_handle *h;
    bool failed; /* the link is gone: to be closed */
    char text[NBD_TEXT_MAX];
    uint64_t retry_at, deadline, backoff; /* ns */
    unsigned pieces, reads;               /* in flight */
    uint64_t write_bytes;                 /* in flight */
    struct nbd_piece *ended;
    struct nbd_piece check; /* reads the superblock into block */
    uint8_t block[SUPERBLOCK_BYTES];
};

/* Takes a handle from the dialer. */
void nbd_conn_adopt(struct nbd_conn *conn, struct nbd_handle *h);

/*
 * Closes the handle, after the caller has taken what has ended and forgotten the
 * rest.  No buffer of a piece is touched any more.
 */
void nbd_conn_close(struct nbd_conn *conn);

/* What to poll for; the descriptor is *@fd. */
short nbd_conn_interest(const struct nbd_conn *conn, int *fd);

/* Carries on after poll().  May set failed and fill the list of ended pieces. */
void nbd_conn_event(struct nbd_conn *conn, short revents);

/* True when the handshake is over and nothing failed. */
bool nbd_conn_negotiated(const struct nbd_conn *conn);

/* What the server said in the handshake. */
void nbd_conn_export(const struct nbd_conn *conn, struct nbd_export *e);

/* Keeps a TCP connection from outliving a host that vanished without a word. */
void nbd_conn_keepalive(const struct nbd_conn *conn);

/*
 * Sends a piece.  0, or a negative errno when it was not sent: -ENOTCONN with
 * failed set when the link is gone.
 */
int nbd_conn_send(struct nbd_conn *conn, struct nbd_piece *p);

/* The next piece that the server answered, or NULL; it is no longer in flight. */
struct nbd_piece *nbd_conn_take(struct nbd_conn *conn);

/* The piece is no longer in flight, whatever became of it. */
void nbd_conn_forget(struct nbd_conn *conn, struct nbd_piece *p);

#endif
