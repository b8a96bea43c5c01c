/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The client of one NBD export: a thread that owns its connections, and to
 * which other threads hand transfers.  Theory of operation at the head of
 * nbd_client.c.
 */
#ifndef UFFDMM_NBD_CLIENT_H
#define UFFDMM_NBD_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "nbd_conn.h"
#include "superblock.h"

struct tier;
struct tier_io;
struct nbd_client;

/* An operation beside the transfers of pages: few, one at a time. */
struct nbd_op {
    struct nbd_op *next;
    enum nbd_kind kind;
    bool fua;
    void *buf;
    uint64_t offset, length;
    int result; /* 0 or a negative errno, once done */
    bool done;
    _Atomic bool withdrawn;
};

struct nbd_client_config {
    struct tier *tier;
    const char *uri;      /* complete, see nbd_uri_expand() */
    unsigned connections; /* at most, when the server allows several */
    uint64_t min_bytes;   /* a smaller export is refused */

    /*
     * A write or trim of this range was under way on a link that was lost.  It
     * is sent again; but the server may carry out the first one late, as long as
     * it still has it.  From the client's thread.
     */
    void (*in_doubt)(void *opaque, uint64_t offset, uint64_t length);
    void *opaque;
};

/* Connects.  0, or a negative errno with one sentence for the user in @err. */
int nbd_client_start(struct nbd_client **out, const struct nbd_client_config *config,
                     char *err, size_t err_len);

/* Ends everything, transfers with -ECANCELED. */
void nbd_client_stop(struct nbd_client *c);

/* What the server said when it was last connected to. */
void nbd_client_export(struct nbd_client *c, struct nbd_export *e);

/* From now on an export smaller than @bytes is not that of this volume. */
void nbd_client_need(struct nbd_client *c, uint64_t bytes);

/*
 * The volume is ours: from now on every new connection must find @self in the
 * first block, and there may be several.  @self is copied.
 */
void nbd_client_hold(struct nbd_client *c, const struct superblock *self);

/* The volume is another's: links are cut, and made again only when it is ours. */
void nbd_client_fence(struct nbd_client *c);

/* Starts a transfer, at page io->slot of the export.  Ends in tier_io_done(). */
void nbd_client_submit(struct nbd_client *c, struct tier_io *io);

/* Ends all transfers, those to come too, with -ECANCELED within half a second. */
void nbd_client_cancel(struct nbd_client *c);

/* Begins an operation, which stays in place until it is done. */
void nbd_client_begin(struct nbd_client *c, struct nbd_op *op);

/* True when @op is done; waits up to @timeout_ns for it. */
bool nbd_client_wait(struct nbd_client *c, struct nbd_op *op, uint64_t timeout_ns);

/*
 * Waits for @op, gives it up after @timeout_ns and returns its result, -ETIMEDOUT
 * when it was given up.  @op and its buffer are the caller's again.
 */
int nbd_client_finish(struct nbd_client *c, struct nbd_op *op, uint64_t timeout_ns);

/* Begins and finishes. */
int nbd_client_run(struct nbd_client *c, struct nbd_op *op, uint64_t timeout_ns);

#endif
