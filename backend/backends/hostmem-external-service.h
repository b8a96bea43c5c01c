/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the service thread of a memory-backend-external shares with the
 * functions that other threads call (hostmem-external-link.h)
 */

#ifndef BACKENDS_HOSTMEM_EXTERNAL_SERVICE_H
#define BACKENDS_HOSTMEM_EXTERNAL_SERVICE_H

#include "qemu/event_notifier.h"
#include "qemu/thread.h"
#include "hostmem-external-call.h"
#include "hostmem-external-link.h"
#include "hostmem-external-quit.h"
#include "hostmem-external-region.h"
#include "hostmem-external-watch.h"
#include "hostmem-external-wire.h"

/* See the head of hostmem-external-service.c. */
typedef enum ExternalPhase {
    PHASE_CONNECT,
    PHASE_CREATED,
    PHASE_ATTACH,
    PHASE_LIVE,
    PHASE_LOST,
    PHASE_ENDED,
} ExternalPhase;

typedef struct ExternalRange {
    uint64_t offset;
    uint64_t length;
} ExternalRange;

struct ExternalLink {
    /* constant after start */
    char *id;
    char *socket;
    char *vm_name;
    QemuUUID uuid;
    uint64_t size;
    uint32_t reconnect_ms;
    QemuThread thread;
    EventNotifier wake;
    QTAILQ_ENTRY(ExternalLink) next; /* under the lock of the list */

    /*
     * Written by the thread alone, and before PHASE_LIVE.
     * Discards use the table from other threads: it is made for that.
     */
    ExternalRegion region;

    /* of the thread alone */
    ExternalChannel chan;
    uint64_t last_request;
    uint64_t awaited;   /* request whose reply ends a wait, or 0 */
    bool answered;      /* chan.incoming is that reply */
    uint64_t policy_id; /* SET_POLICY without a reply so far, or 0 */
    char *last_loss;    /* what was reported, so as not to repeat it */
    bool zap_reported;  /* likewise */
    ExternalWatch watch;
    int64_t next_look; /* at the statistics, by g_get_monotonic_time() */
    ExternalQuit quit; /* which says what is whose */

    QemuMutex lock;
    QemuCond phase_changed;
    /* all below: under lock, which is never held for long */
    ExternalPhase phase;
    bool was_live;
    bool stop;
    void *base;    /* set by attach */
    Error *failed; /* why the thread ended before PHASE_LIVE */
    uint64_t reconnects;
    ExternalStats stats;
    GArray *discards;            /* of ExternalRange, to be sent */
    struct uffdmm_policy policy; /* to be sent if it names any field */
    char *policy_error;
    QTAILQ_HEAD(, ExternalCall) calls; /* unanswered, in order */
    QemuCond call_done;

    /* of the thread that migrates; the BQL while there is none */
    ExternalMigration *migration;
};

/* First call that was not sent yet, or NULL.  Under link->lock. */
ExternalCall *external_calls_next(ExternalLink *link);

/* Type and payload of a call; they stay as they are while it is listed. */
uint32_t external_call_request(const ExternalCall *call, const void **payload,
                               uint32_t *length);

/* It is on its way.  Under link->lock. */
void external_call_sent(ExternalCall *call, uint64_t request_id);

/**
 * external_calls_reply: give a reply to the call that it answers
 *
 * @msg: a reply; its descriptors may be taken
 * @error: its sentence if its status is not 0, which is taken in any case
 *
 * Returns: whether there is such a call
 */
bool external_calls_reply(ExternalLink *link, ExternalMessage *msg,
                          char *error);

/* The connection is gone.  Under link->lock. */
void external_calls_fail(ExternalLink *link);

/* Is it the first live one of its VM?  The others see the same statistics. */
bool external_link_speaks(ExternalLink *link);

void *external_link_thread(void *opaque);

#endif
