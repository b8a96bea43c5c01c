/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A real NBD server, which can be stopped and killed, and an nbd tier on it.
 * Asserts inside: a call that returns has worked.
 */
#ifndef UFFDMM_TEST_NBD_RIG_H
#define UFFDMM_TEST_NBD_RIG_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "tier.h"
#include "tier_io.h"

#define RIG_PAGE 4096UL

struct nbd_rig {
    char dir[64]; /* socket, file and keys are in here; removed at the end */
    char socket[96];
    char file[96];
    uint16_t port; /* in place of the socket, or 0 */
    pid_t server;  /* 0: none */
    /*
     * Set by who kills clients over and over: nbdkit before 1.34 fails an assertion now and
     * then when a client hangs up early, and is started again then, as a service is.
     */
    bool kept;
    struct tier_config config;
    struct uffdmm_tier_stats stats;
    struct tier tier;
    struct tier_queue queue;
    bool opened;
    char err[512];
};

/* A rig with a file of @bytes, and a tier on the socket that is not open yet. */
void rig_init(struct nbd_rig *r, uint64_t bytes);
void rig_deinit(struct nbd_rig *r);

/* Skips the running test when there is no @program. */
void rig_need(const char *program);
bool rig_have(const char *program);

/* Starts `nbdkit` with these arguments, NULL last, and waits until it listens. */
void rig_serve(struct nbd_rig *r, const char *const *args);

/* The same with its own arguments for the socket: any program. */
void rig_serve_program(struct nbd_rig *r, const char *program, const char *const *args);

/* Serves r->file with nbdkit on a free port of the loopback device, which is r->port. */
void rig_serve_tcp(struct nbd_rig *r);

/* Serves r->file with nbdkit's file plugin. */
void rig_serve_file(struct nbd_rig *r);

/* Sends SIGKILL and waits for the end. */
void rig_kill(struct nbd_rig *r);

/* Sends SIGSTOP and waits until no thread of the server runs; not for a kept one. */
void rig_stop(struct nbd_rig *r);

/* Opens the tier for the VM @name and reserves @bytes.  rig_try_open() returns what open() does. */
void rig_open(struct nbd_rig *r, const char *name, uint64_t bytes);
int rig_try_open(struct nbd_rig *r, const char *name);
void rig_close(struct nbd_rig *r, bool keep);

/* Takes @nr slots and keeps them in @slots. */
void rig_take(struct nbd_rig *r, uint64_t *slots, unsigned nr);

/* Fills a page with bytes that depend on @seed; and looks whether they are there. */
void rig_fill(void *page, uint64_t seed);
bool rig_filled(const void *page, uint64_t seed);

/* One transfer of @nr pages from or to @slot, waited for.  Its result. */
int rig_io(struct nbd_rig *r, bool write, uint64_t slot, void *pages, unsigned nr);

/* Submits one transfer; rig_wait() waits up to @ms for it and tells whether it ended. */
void rig_submit(struct nbd_rig *r, struct tier_io *io, struct iovec *iov, bool write,
                uint64_t slot, void *pages, unsigned nr);
bool rig_wait(struct nbd_rig *r, struct tier_io *io, unsigned ms);

/* Waits up to @ms until the tier has @state. */
bool rig_wait_state(struct nbd_rig *r, unsigned state, unsigned ms);

/* Connections that the server has accepted on the socket. */
unsigned rig_connections(const struct nbd_rig *r);

void rig_sleep_ms(unsigned ms);

#endif
