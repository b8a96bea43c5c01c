/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A way to a server that can be late: what a client has sent is kept, and is delivered when
 * the client has long gone.  That is what a network, or a server with a queue, may do.
 */
#ifndef UFFDMM_TEST_LATE_LINK_H
#define UFFDMM_TEST_LATE_LINK_H

#include <stdint.h>
#include <sys/types.h>

struct late_link_state;

struct late_link {
    pid_t pid;
    struct late_link_state *state; /* shared with its process */
};

/* Connects whoever comes to the socket @path with the socket @server. */
void late_link_start(struct late_link *l, const char *path, const char *server);
void late_link_stop(struct late_link *l);

/* From now on keeps what comes from connections that are there; later ones are not affected. */
void late_link_hold(struct late_link *l);

/* Waits until so much has been kept. */
void late_link_await(struct late_link *l, uint64_t bytes);

/*
 * Delivers what has been kept, in the order in which it came, and returns when the server
 * has had time for it.
 */
void late_link_deliver(struct late_link *l);

#endif
