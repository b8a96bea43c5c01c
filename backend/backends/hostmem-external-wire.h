/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Messages between memory-backend-external and its manager
 *
 * A channel is one non-blocking UNIX stream socket.  Nothing in here waits,
 * takes a lock or knows what a message means; the thread that owns the
 * channel polls the socket and calls in.
 */

#ifndef BACKENDS_HOSTMEM_EXTERNAL_WIRE_H
#define BACKENDS_HOSTMEM_EXTERNAL_WIRE_H

#include "qemu/queue.h"
#include "system/uffdmm-protocol.h"

typedef struct ExternalOutgoing ExternalOutgoing;

/* A complete message, checked for magic, versions, length and descriptors. */
typedef struct ExternalMessage {
    struct uffdmm_msg_header header;
    /* eight bytes aligned, so that payload structs can be read in place */
    uint8_t payload[UFFDMM_PAYLOAD_MAX] QEMU_ALIGNED(8);
    /* owned by the message until somebody takes them and leaves -1 behind */
    int fds[UFFDMM_FDS_MAX];
    uint32_t nr_fds;
} ExternalMessage;

typedef struct ExternalChannel {
    int sock; /* -1 while there is no connection */
    QSIMPLEQ_HEAD(, ExternalOutgoing) outgoing;
    unsigned nr_outgoing; /* messages in it */
    ExternalMessage incoming;
    size_t received; /* bytes of header and payload so far */
} ExternalChannel;

void external_channel_init(ExternalChannel *chan);

/**
 * external_channel_connect: connect to the manager
 *
 * @chan: a channel without a connection
 * @path: the manager's socket
 * @errp: what failed, and the remedy
 *
 * Returns: true when connected.  Does not wait: a manager that does not
 * accept fast enough for its backlog is an error like one that is not there.
 */
bool external_channel_connect(ExternalChannel *chan, const char *path,
                              Error **errp);

/* Close the connection, and drop what was not sent or not read completely. */
void external_channel_close(ExternalChannel *chan);

/**
 * external_channel_queue: queue a message
 *
 * @chan: a connected channel
 * @header: type, request_id, status, length and nr_fds as they will be sent
 * @payload: header->length bytes
 * @fds: header->nr_fds descriptors; they stay the caller's, and open until sent
 */
void external_channel_queue(ExternalChannel *chan,
                            const struct uffdmm_msg_header *header,
                            const void *payload, const int *fds);

/**
 * external_channel_send: write what the socket takes
 *
 * Returns: false if the connection is lost
 */
bool external_channel_send(ExternalChannel *chan, Error **errp);

/**
 * external_channel_receive: read at most one message
 *
 * Returns: 1 if chan->incoming holds a message, valid until the next call;
 * 0 if there is none yet; -1 if the connection is lost or the peer broke the
 * protocol.
 */
int external_channel_receive(ExternalChannel *chan, Error **errp);

#endif
