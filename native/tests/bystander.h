/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One manager with one well-behaved VM, for programs that send bad messages: after
 * every test the bystander must have the same worker, go on and read right bytes.
 */
#ifndef UFFDMM_TEST_BYSTANDER_H
#define UFFDMM_TEST_BYSTANDER_H

#include <stdbool.h>

#include "manager_process.h"
#include "peer.h"
#include "standin.h"

enum { BYSTANDER_RAM = 16 << 20 };

extern struct manager manager;

/* cmocka: group set-up, group tear-down, tear-down of every test. */
int bystander_start(void **state);
/* The set-up with other arguments for the manager, which must give the VM a limit. */
int bystander_start_with(void **state, const char *const *arguments);
int bystander_stop(void **state);
int bystander_lives(void **state);

/* A connection to the manager; greeted: HELLO has been answered. */
int connect_raw(void);
int greeted(enum uffdmm_role role, const char *vm_name);

/* True when the peer refuses: an error reply with a sentence, or a closed connection. */
bool refused(int sock);
/* As an assertion; closes the socket. */
void expect_refusal(int sock);

/*
 * Runs a VM in a process of its own: after a bad message its connection may be
 * closed and its region waits for it to reconnect, which only its end puts an end to.
 */
void in_own_process(void (*body)(struct vmm *v, const void *arg), const void *arg);
/* In that process: a region of BYSTANDER_RAM; no two processes share a worker. */
void open_own_vm(struct vmm *v, struct standin *s);

#endif
