/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The end of a QEMU whose threads wait for external guest memory
 */

#ifndef BACKENDS_HOSTMEM_EXTERNAL_QUIT_H
#define BACKENDS_HOSTMEM_EXTERNAL_QUIT_H

#include "qemu/notify.h"
#include "system/runstate.h"

typedef struct ExternalQuit {
    Notifier shutdown;
    VMChangeStateEntry *change;
    bool told;     /* QEMU is to end; atomic */
    bool stopped;  /* no vCPU runs or waits; atomic */
    int64_t since; /* of the service thread: 0, or when it saw both too late */
} ExternalQuit;

/* For the main thread. */
void external_quit_init(ExternalQuit *quit);
void external_quit_cleanup(ExternalQuit *quit);

/**
 * external_quit_overdue: should this process be ended now?
 *
 * @quit: looked at about once a second, by the service thread
 * @served: whether guest memory is served as it should be
 *
 * Returns: true if QEMU was told to end, cannot stop its vCPUs, and guest
 * memory was not served all the time for as long as that is waited for
 */
bool external_quit_overdue(ExternalQuit *quit, bool served);

#endif
