/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How workers learn that their acceptor has a successor, and make way for its workers.
 * Theory of operation at the head of succession.c.
 */
#ifndef UFFDMM_SUCCESSION_H
#define UFFDMM_SUCCESSION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "options.h"

/*
 * The acceptor on @listen_fd is the one in charge from now on, until the returned
 * descriptor is closed everywhere.  -1: there can be no succession, which is logged.
 */
int succession_lead(const struct options *options, int listen_fd);

/* It ends.  Nothing is left behind that no worker needs. */
void succession_leave(int lead_fd, int listen_fd);

struct conn;

struct succession {
    int fd;                        /* of the file, -1: none */
    char tiers[17];                /* those of this worker */
    uint32_t version, min_version; /* of the protocol, as its QEMU speaks it */
    uid_t uid;                     /* of its QEMU */
    bool seen, agreed; /* when it was asked last: a successor, which would do */
    bool told;         /* that it stays although there is a successor */
};

/* In a worker, before it gives up its rights; @qemu has said HELLO. */
void succession_watch(struct succession *s, const struct options *options, int listen_fd,
                      const struct conn *qemu);

/*
 * To be asked when the own acceptor has ended: is there another one, which has the same
 * tiers and would accept this QEMU, and is it this worker's turn?  Then it should end at
 * once, and nobody else's turn comes before it has.
 */
bool succession_due(struct succession *s);

#endif
