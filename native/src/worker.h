/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The process that serves one VM. */
#ifndef UFFDMM_WORKER_H
#define UFFDMM_WORKER_H

#include "conn.h"
#include "options.h"
#include "succession.h"

/*
 * Serves the VM that @first has said HELLO for (its message is still in @first)
 * until its QEMU is gone.  @channel: SOCK_SEQPACKET from the acceptor, with
 * struct worker_handover messages.  @succession: what succession_watch() made.  Returns
 * the exit status.
 */
int worker_run(const struct options *options, struct conn *first, int channel,
               const struct succession *succession);

/*
 * Worker to acceptor: it has nothing left to serve and would end.  The acceptor
 * closes the channel if it has handed over no connection that the worker does
 * not know of; else the worker finds that connection and goes on.
 */
struct worker_farewell {
    uint64_t received; /* connections handed over so far */
};

/* A connection whose HELLO the acceptor has read, with its descriptor. */
struct worker_handover {
    struct uffdmm_msg_header header;
    struct uffdmm_hello hello;
};

#endif
