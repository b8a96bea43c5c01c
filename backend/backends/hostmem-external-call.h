/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Requests that other threads make of the manager, through the service thread
 *
 * The service thread does the I/O and waits for nobody; the thread that asks
 * may wait, poll, or walk away.
 */

#ifndef BACKENDS_HOSTMEM_EXTERNAL_CALL_H
#define BACKENDS_HOSTMEM_EXTERNAL_CALL_H

#include "hostmem-external-link.h"

typedef struct ExternalCall ExternalCall;

/**
 * external_call_new: queue a request
 *
 * @type: enum uffdmm_msg_type
 * @payload: @length bytes, which are copied
 *
 * Returns: the call, to be released by external_call_unref() at any time: a
 * reply to a call that nobody holds is dropped.  Without a connection it has
 * failed at once.
 */
ExternalCall *external_call_new(ExternalLink *link, uint32_t type,
                                const void *payload, uint32_t length);
void external_call_unref(ExternalCall *call);

/* Wait until there is an answer or a failure; false: not within @timeout_ms. */
bool external_call_wait(ExternalCall *call, int timeout_ms);

/**
 * external_call_result: what came of an answered call
 *
 * @reply: set to the payload
 * @length: that it must have
 * @fds: set to the descriptors, which are the caller's then
 * @max_fds: most of them; others are closed
 * @nr_fds: set to how many there are; may be NULL if @max_fds is 0
 * @errp: the manager's reason, or why there is no answer
 */
bool external_call_result(ExternalCall *call, void *reply, uint32_t length,
                          int *fds, uint32_t max_fds, uint32_t *nr_fds,
                          Error **errp);

#endif
