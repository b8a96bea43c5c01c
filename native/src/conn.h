/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One connection: takes messages off a stream socket, with every check that
 * does not depend on what the message means, and sends replies.
 */
#ifndef UFFDMM_CONN_H
#define UFFDMM_CONN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "uffdmm/protocol.h"

struct region;

struct conn {
    int fd;
    pid_t pid; /* of the peer, by SO_PEERCRED */
    uid_t uid;
    bool greeted; /* HELLO has been answered */
    uint32_t role;
    uint64_t deadline;     /* clock_ns() by which HELLO must be here; 0: none */
    struct region *region; /* that a QEMU connection carries */

    /* the message being received */
    size_t have; /* bytes of header and payload so far */
    int fds[UFFDMM_FDS_MAX];
    unsigned nr_fds;
    struct uffdmm_msg_header header;
    _Alignas(8) unsigned char payload[UFFDMM_PAYLOAD_MAX];
};

enum conn_outcome {
    CONN_MESSAGE, /* header, payload and fds hold one message */
    CONN_AGAIN,   /* nothing more for now */
    CONN_CLOSED,  /* the peer has closed */
    CONN_BAD      /* not this protocol, or broken; @err says why */
};

/* Takes over @fd.  NULL when out of memory (@fd is closed then). */
struct conn *conn_new(int fd);

/* Closes it, with all descriptors that it still holds. */
void conn_free(struct conn *c);

/* Receives without waiting. */
enum conn_outcome conn_receive(struct conn *c, char *err, size_t err_len);

/* Makes room for the next message; descriptors that nobody took are closed. */
void conn_next(struct conn *c);

/* Takes descriptor @i out of the message; the caller owns it. */
int conn_take_fd(struct conn *c, unsigned i);

/*
 * Replies to the message at hand.  0 or a negative errno; a peer that does not
 * read its replies is an error, nobody waits for it.
 */
int conn_reply(struct conn *c, const void *payload, size_t length, const int *fds,
               unsigned nr_fds);
int conn_reply_error(struct conn *c, int status, const char *text);

/* Sends a message of our own.  May be called from any thread. */
int conn_send(int fd, uint32_t type, uint64_t request_id, int32_t status,
              const void *payload, size_t length, const int *fds, unsigned nr_fds);

/* True when @text is a NUL-terminated string inside its @size bytes. */
bool conn_string_ok(const char *text, size_t size);

#endif
