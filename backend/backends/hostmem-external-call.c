/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Requests that other threads make of the manager, through the service thread
 *
 * Theory of operation
 *
 * A call is a reference-counted request that waits in link->calls, under
 * link->lock, until its reply arrives or the connection is lost.  Two hold it:
 * the list, as long as it is unanswered, and the thread that asked, as long as
 * it likes.  So a thread that gave up leaves nothing behind that a late reply
 * could write to.
 *
 * A connection that is lost fails all calls: the manager that comes next knows
 * nothing of what they were about.
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/lockable.h"
#include "hostmem-external-service.h"

struct ExternalCall {
    ExternalLink *link; /* outlives all who may wait */
    QTAILQ_ENTRY(ExternalCall) next;

    uint32_t type;
    uint32_t length;
    void *payload;

    /* all below: link->lock */
    int refs;
    uint64_t request_id; /* 0: not sent yet */
    bool done;
    int32_t status; /* of the reply, or -ENOTCONN without one */
    char *error;    /* sentence that goes with it */
    void *reply;
    uint32_t reply_length;
    int fds[UFFDMM_FDS_MAX];
    uint32_t nr_fds;
};

/* Returns true if that was the last reference.  Under link->lock. */
static bool external_call_put(ExternalCall *call)
{
    return --call->refs == 0;
}

static void external_call_free(ExternalCall *call)
{
    for (uint32_t i = 0; i < call->nr_fds; i++) {
        if (call->fds[i] >= 0) {
            close(call->fds[i]);
        }
    }
    g_free(call->payload);
    g_free(call->reply);
    g_free(call->error);
    g_free(call);
}

/* Take a call that has its outcome off the list.  Under link->lock. */
static void external_call_finish(ExternalCall *call)
{
    QTAILQ_REMOVE(&call->link->calls, call, next);
    call->done = true;
    if (external_call_put(call)) {
        external_call_free(call);
    }
}

ExternalCall *external_call_new(ExternalLink *link, uint32_t type,
                                const void *payload, uint32_t length)
{
    ExternalCall *call = g_new0(ExternalCall, 1);

    call->link = link;
    call->type = type;
    call->payload = g_memdup2(payload, length);
    call->length = length;
    call->refs = 1;
    WITH_QEMU_LOCK_GUARD(&link->lock) {
        if (link->phase == PHASE_LIVE) {
            call->refs++;
            QTAILQ_INSERT_TAIL(&link->calls, call, next);
        } else {
            call->done = true;
            call->status = -ENOTCONN;
        }
    }
    event_notifier_set(&link->wake);
    return call;
}

void external_call_unref(ExternalCall *call)
{
    bool last = false;

    if (!call) {
        return;
    }
    WITH_QEMU_LOCK_GUARD(&call->link->lock) {
        last = external_call_put(call);
    }
    if (last) {
        external_call_free(call);
    }
}

bool external_call_wait(ExternalCall *call, int timeout_ms)
{
    ExternalLink *link = call->link;
    int64_t until = g_get_monotonic_time() + timeout_ms * INT64_C(1000);

    QEMU_LOCK_GUARD(&link->lock);
    while (!call->done) {
        int64_t left = until - g_get_monotonic_time();

        if (left <= 0) {
            return false;
        }
        qemu_cond_timedwait(&link->call_done, &link->lock,
                            DIV_ROUND_UP(left, 1000));
    }
    return true;
}

bool external_call_result(ExternalCall *call, void *reply, uint32_t length,
                          int *fds, uint32_t max_fds, uint32_t *nr_fds,
                          Error **errp)
{
    QEMU_LOCK_GUARD(&call->link->lock);
    assert(call->done);
    if (call->status) {
        error_setg(errp, "memory-backend-external '%s': %s", call->link->id,
                   call->error ?: "there is no connection to the memory "
                   "manager");
        return false;
    }
    if (call->reply_length != length || call->nr_fds > max_fds) {
        error_setg(errp, "memory-backend-external '%s': the memory manager "
                   "answered a request of type %" PRIu32 " with %" PRIu32
                   " bytes and %" PRIu32 " descriptors", call->link->id,
                   call->type, call->reply_length, call->nr_fds);
        return false;
    }
    if (length) {
        memcpy(reply, call->reply, length);
    }
    for (uint32_t i = 0; i < call->nr_fds; i++) {
        fds[i] = call->fds[i];
        call->fds[i] = -1;
    }
    if (nr_fds) {
        *nr_fds = call->nr_fds;
    }
    return true;
}

ExternalCall *external_calls_next(ExternalLink *link)
{
    ExternalCall *call;

    QTAILQ_FOREACH(call, &link->calls, next) {
        if (!call->request_id) {
            return call;
        }
    }
    return NULL;
}

uint32_t external_call_request(const ExternalCall *call, const void **payload,
                               uint32_t *length)
{
    *payload = call->payload;
    *length = call->length;
    return call->type;
}

void external_call_sent(ExternalCall *call, uint64_t request_id)
{
    call->request_id = request_id;
}

bool external_calls_reply(ExternalLink *link, ExternalMessage *msg,
                          char *error)
{
    const struct uffdmm_msg_header *h = &msg->header;
    ExternalCall *call;

    QEMU_LOCK_GUARD(&link->lock);
    QTAILQ_FOREACH(call, &link->calls, next) {
        if (call->request_id != h->request_id ||
            (call->type | UFFDMM_MSG_REPLY) != h->type) {
            continue;
        }
        call->status = h->status;
        call->error = error;
        call->reply = g_memdup2(msg->payload, h->length);
        call->reply_length = h->length;
        for (uint32_t i = 0; i < msg->nr_fds; i++) {
            call->fds[i] = msg->fds[i];
            msg->fds[i] = -1;
        }
        call->nr_fds = msg->nr_fds;
        external_call_finish(call);
        qemu_cond_broadcast(&link->call_done);
        return true;
    }
    g_free(error);
    return false;
}

void external_calls_fail(ExternalLink *link)
{
    ExternalCall *call, *tmp;

    QTAILQ_FOREACH_SAFE(call, &link->calls, next, tmp) {
        call->status = -ENOTCONN;
        call->error = g_strdup("the connection to the memory manager was "
                               "lost before it answered");
        external_call_finish(call);
    }
    qemu_cond_broadcast(&link->call_done);
}
