/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The service thread of a memory-backend-external
 *
 * Theory of operation
 *
 * Guest memory that is not present is filled in by the manager, another
 * process.  Any thread of QEMU that touches such memory waits for it, the
 * main loop with the BQL held included.  What the manager needs from QEMU to
 * go on must therefore never wait for another thread of QEMU.  Hence this
 * thread: it takes no BQL, enters no RCU critical section, does not access
 * guest memory, and holds the mutexes below only to copy a few words or a
 * few pages of counters.
 *
 * The thread alone uses the socket and the region; other threads leave
 * requests under link->lock and wake it.  It lives in these phases:
 *
 *   CONNECT   connect, HELLO, REGION_CREATE: descriptors arrive
 *   CREATED   waits for the main thread to map the memory
 *   ATTACH    creates the userfaultfds, REGION_ATTACH
 *   LIVE      serves ZAP; sends DISCARD, SET_POLICY and the calls of others;
 *             looks for trouble in the manager's statistics now and then
 *   LOST      no connection: tries again by RECONNECT, with all descriptors
 *             kept, while threads that touch missing memory wait
 *   ENDED     failed before it was live, or stopped
 *
 * external_link_stop() joins the thread before the memory is unmapped, which
 * is why ZAP cannot hit an address that has been reused.
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "qemu/lockable.h"
#include "system/runstate.h"
#include "hostmem-external-service.h"
#include "trace.h"

/* How long a manager may take to answer, per phase */
#define START_TIMEOUT_MS     10000
#define RECONNECT_TIMEOUT_MS 60000
#define DETACH_TIMEOUT_MS    2000
/* Between two looks at the statistics, and so between two news of trouble */
#define LOOK_MS              1000
/* Longest pause between two attempts to reconnect */
#define RECONNECT_MAX_MS     2000
/*
 * A manager that does not read gets no further messages, and none of its own
 * are read.  One that sends without end must not keep the thread from seeing
 * that it has to stop.
 */
#define OUTGOING_MAX         1024
#define INCOMING_AT_ONCE     64

static void external_link_set_phase(ExternalLink *link, ExternalPhase phase)
{
    QEMU_LOCK_GUARD(&link->lock);
    link->phase = phase;
    if (phase == PHASE_LIVE) {
        link->was_live = true;
    } else {
        /* who attaches next reads the table, and has a policy of its own */
        g_array_set_size(link->discards, 0);
        memset(&link->policy, 0, sizeof(link->policy));
        external_calls_fail(link);
    }
    qemu_cond_broadcast(&link->phase_changed);
    trace_external_link_phase(link->id, phase);
}

static bool external_link_stopping(ExternalLink *link)
{
    QEMU_LOCK_GUARD(&link->lock);
    return link->stop;
}

/* ------------------------------------------------------------------------ */
/* Messages                                                                  */

static uint64_t external_link_queue(ExternalLink *link, uint32_t type,
                                    const void *payload, uint32_t length,
                                    const int *fds, uint32_t nr_fds)
{
    struct uffdmm_msg_header header = {
        .type = type,
        .request_id = ++link->last_request,
        .length = length,
        .nr_fds = nr_fds,
    };

    external_channel_queue(&link->chan, &header, payload, fds);
    return header.request_id;
}

static void external_link_queue_reply(ExternalLink *link,
                                      const ExternalMessage *to,
                                      int status, const void *payload,
                                      uint32_t length)
{
    struct uffdmm_msg_header header = {
        .type = to->header.type | UFFDMM_MSG_REPLY,
        .request_id = to->header.request_id,
        .status = status,
        .length = length,
    };

    external_channel_queue(&link->chan, &header, payload, NULL);
}

/* The sentence that comes with a status other than 0. */
static char *external_message_error(const ExternalMessage *msg)
{
    const struct uffdmm_error *e = (const void *)msg->payload;
    size_t length = msg->header.length == sizeof(*e) ?
                    strnlen(e->text, sizeof(e->text)) : 0;

    if (!length || !g_utf8_validate(e->text, length, NULL)) {
        return g_strdup_printf("the memory manager answered: %s",
                               strerror(-msg->header.status));
    }
    return g_strndup(e->text, length);
}

static bool external_link_zap(ExternalLink *link, const ExternalMessage *msg,
                              Error **errp)
{
    const struct uffdmm_range *range = (const void *)msg->payload;
    Error *err = NULL;

    if (msg->header.length != sizeof(*range) || msg->nr_fds) {
        error_setg(errp, "the memory manager sent a ZAP of %" PRIu32 " bytes",
                   msg->header.length);
        return false;
    }
    if (external_region_zap(&link->region, range, &err)) {
        external_link_queue_reply(link, msg, 0, range, sizeof(*range));
    } else {
        struct uffdmm_error text = { 0 };

        pstrcpy(text.text, sizeof(text.text), error_get_pretty(err));
        external_link_queue_reply(link, msg, -EINVAL, &text, sizeof(text));
        warn_report_once_cond(&link->zap_reported,
                              "memory-backend-external '%s': refused to "
                              "zap: %s", link->id, text.text);
        error_free(err);
    }
    return true;
}

static void external_link_policy_reply(ExternalLink *link,
                                       const ExternalMessage *msg)
{
    char *error = msg->header.status ? external_message_error(msg) : NULL;

    if (error) {
        warn_report("memory-backend-external '%s': policy refused: %s",
                    link->id, error);
    }
    QEMU_LOCK_GUARD(&link->lock);
    g_free(link->policy_error);
    link->policy_error = error;
}

/* Returns false if the manager broke the protocol. */
static bool external_link_dispatch(ExternalLink *link, Error **errp)
{
    ExternalMessage *msg = &link->chan.incoming;
    const struct uffdmm_msg_header *h = &msg->header;

    trace_external_link_message(link->id, h->type, h->request_id, h->status,
                                h->length, h->nr_fds);
    if (h->type == UFFDMM_MSG_ZAP) {
        return external_link_zap(link, msg, errp);
    }
    if (h->type & UFFDMM_MSG_REPLY) {
        /* who is refused before HELLO was read gets a reply to request 0 */
        bool refused = h->type == (UFFDMM_MSG_HELLO | UFFDMM_MSG_REPLY) &&
                       h->status && !h->request_id;

        if (link->awaited && (refused || h->request_id == link->awaited)) {
            link->answered = true;
            return true;
        }
        if (link->policy_id && h->request_id == link->policy_id) {
            link->policy_id = 0;
            external_link_policy_reply(link, msg);
            return true;
        }
        if (h->type == (UFFDMM_MSG_SET_POLICY | UFFDMM_MSG_REPLY)) {
            return true; /* superseded by a later one */
        }
        if (external_calls_reply(link, msg,
                                 h->status ? external_message_error(msg) :
                                             NULL)) {
            return true;
        }
    }
    error_setg(errp, "the memory manager sent an unexpected message of type "
               "0x%" PRIx32, h->type);
    return false;
}

/* Send the calls of other threads, after the discards that came before. */
static void external_link_send_calls(ExternalLink *link)
{
    ExternalCall *call;

    QEMU_LOCK_GUARD(&link->lock);
    while (link->phase == PHASE_LIVE &&
           (call = external_calls_next(link)) != NULL) {
        const void *payload;
        uint32_t length;
        uint32_t type = external_call_request(call, &payload, &length);

        external_call_sent(call, external_link_queue(link, type, payload,
                                                     length, NULL, 0));
    }
}

/* Turn what other threads asked for into messages. */
static void external_link_take_requests(ExternalLink *link)
{
    g_autoptr(GArray) discards = NULL;
    struct uffdmm_policy policy = { 0 };

    WITH_QEMU_LOCK_GUARD(&link->lock) {
        if (link->phase != PHASE_LIVE ||
            link->chan.nr_outgoing >= OUTGOING_MAX) {
            return;
        }
        if (link->discards->len) {
            discards = link->discards;
            link->discards = g_array_new(FALSE, FALSE, sizeof(ExternalRange));
        }
        policy = link->policy;
        memset(&link->policy, 0, sizeof(link->policy));
    }

    for (guint i = 0; discards && i < discards->len; i++) {
        const ExternalRange *r = &g_array_index(discards, ExternalRange, i);
        struct uffdmm_range range = {
            .region_id = link->region.id,
            .offset = r->offset,
            .length = r->length,
        };

        external_link_queue(link, UFFDMM_MSG_DISCARD, &range, sizeof(range),
                            NULL, 0);
    }
    if (policy.fields) {
        link->policy_id = external_link_queue(link, UFFDMM_MSG_SET_POLICY,
                                              &policy, sizeof(policy),
                                              NULL, 0);
    }
    external_link_send_calls(link);
}

/* Is the memory of the guest served?  Nobody need be waiting for it if not. */
static bool external_link_serves(ExternalLink *link)
{
    QEMU_LOCK_GUARD(&link->lock);
    return link->phase == PHASE_LIVE && external_stats_serving(&link->stats);
}

static void external_link_end_if_overdue(ExternalLink *link)
{
    if (external_quit_overdue(&link->quit, external_link_serves(link))) {
        error_report("memory-backend-external '%s': QEMU is to end, and cannot "
                     "stop its vCPUs, for guest memory is not served by the "
                     "manager at '%s': ended as by SIGKILL", link->id,
                     link->socket);
        _exit(EXIT_FAILURE);
    }
}

/**
 * external_link_io: wait for something to happen, and deal with it
 *
 * @timeout_ms: at most this long; -1 for as long as that may be
 *
 * Returns: false if the connection is lost.  After true, look at
 * link->answered, the time and external_link_stopping(): it may be true
 * without a cause.
 */
static bool external_link_io(ExternalLink *link, int timeout_ms, Error **errp)
{
    GPollFD fds[2] = {
        { .fd = event_notifier_get_fd(&link->wake), .events = G_IO_IN },
        { .fd = link->chan.sock },
    };
    int ret = 0;

    external_link_end_if_overdue(link);
    if (timeout_ms < 0 || timeout_ms > LOOK_MS) {
        timeout_ms = LOOK_MS;
    }
    if (link->chan.sock >= 0) {
        external_link_take_requests(link);
    }
    if (link->chan.nr_outgoing) {
        fds[1].events |= G_IO_OUT;
    }
    if (link->chan.nr_outgoing < OUTGOING_MAX) {
        fds[1].events |= G_IO_IN;
    }
    if (g_poll(fds, link->chan.sock >= 0 ? 2 : 1, timeout_ms) < 0 &&
        errno != EINTR) {
        error_setg_errno(errp, errno, "cannot wait for the memory manager");
        return false;
    }
    event_notifier_test_and_clear(&link->wake);
    if (link->chan.sock < 0) {
        return true;
    }

    for (int i = 0; i < INCOMING_AT_ONCE; i++) {
        if (link->chan.nr_outgoing >= OUTGOING_MAX) {
            break;
        }
        ret = external_channel_receive(&link->chan, errp);
        if (ret <= 0) {
            break;
        }
        if (!external_link_dispatch(link, errp)) {
            return false;
        }
        if (link->answered) {
            /*
             * The caller reads it from link->chan.incoming.  The manager may
             * have closed the connection after it, so do not send now.
             */
            return true;
        }
    }
    return ret >= 0 && external_channel_send(&link->chan, errp);
}

/**
 * external_link_request: send a request and wait for its reply
 *
 * @reply_length: expected payload
 * @reply_fds: expected number of descriptors; that of REGION_CREATE may have
 *             more, the arenas
 * @deadline: by g_get_monotonic_time()
 *
 * Returns: the reply, valid until the next I/O, or NULL with the manager's
 * reason in @errp.  ZAP is served meanwhile.  A stopped link gives up, but
 * for REGION_DETACH, which is what stopping is for.
 */
static ExternalMessage *external_link_request(ExternalLink *link,
                                              uint32_t type,
                                              const void *payload,
                                              uint32_t length,
                                              const int *fds, uint32_t nr_fds,
                                              uint32_t reply_length,
                                              uint32_t reply_fds,
                                              int64_t deadline, Error **errp)
{
    ExternalMessage *reply = &link->chan.incoming;
    bool ok = true;

    link->answered = false;
    link->awaited = external_link_queue(link, type, payload, length,
                                        fds, nr_fds);
    while (ok && !link->answered) {
        int64_t left = deadline - g_get_monotonic_time();

        if (left <= 0) {
            error_setg(errp, "the memory manager did not answer in time");
            ok = false;
        } else if (type != UFFDMM_MSG_REGION_DETACH &&
                   external_link_stopping(link)) {
            error_setg(errp, "stopped");
            ok = false;
        } else {
            ok = external_link_io(link, DIV_ROUND_UP(left, 1000), errp);
        }
    }
    link->awaited = 0;
    link->answered = false;
    if (!ok) {
        return NULL;
    }

    if (reply->header.status) {
        g_autofree char *text = external_message_error(reply);

        error_setg(errp, "%s", text);
        return NULL;
    }
    if (reply->header.type != (type | UFFDMM_MSG_REPLY) ||
        reply->header.length != reply_length || reply->nr_fds < reply_fds ||
        (reply->nr_fds > reply_fds && type != UFFDMM_MSG_REGION_CREATE)) {
        error_setg(errp, "the memory manager answered a request of type %"
                   PRIu32 " by type 0x%" PRIx32 " with %" PRIu32 " bytes and %"
                   PRIu32 " descriptors", type, reply->header.type,
                   reply->header.length, reply->nr_fds);
        return NULL;
    }
    return reply;
}

/* ------------------------------------------------------------------------ */
/* The steps of a conversation                                               */

static bool external_link_hello(ExternalLink *link, int64_t deadline,
                                Error **errp)
{
    struct uffdmm_hello hello = { .role = UFFDMM_ROLE_QEMU };

    memcpy(hello.uuid, link->uuid.data, sizeof(hello.uuid));
    pstrcpy(hello.vm_name, sizeof(hello.vm_name), link->vm_name);
    pstrcpy(hello.agent, sizeof(hello.agent), "QEMU " QEMU_VERSION);

    return external_channel_connect(&link->chan, link->socket, errp) &&
           external_link_request(link, UFFDMM_MSG_HELLO, &hello, sizeof(hello),
                                 NULL, 0, sizeof(struct uffdmm_hello_reply), 0,
                                 deadline, errp);
}

static void external_link_set_stats(ExternalLink *link, ExternalStats stats)
{
    ExternalStats old;

    WITH_QEMU_LOCK_GUARD(&link->lock) {
        old = link->stats;
        link->stats = stats;
    }
    external_stats_unmap(&old);
}

static void external_link_fill_create(ExternalLink *link,
                                      struct uffdmm_region_create *create)
{
    *create = (struct uffdmm_region_create) {
        .size = link->size,
        .page_size = link->region.page_size,
        .nr_shards = link->region.nr_shards,
        .flags = runstate_check(RUN_STATE_INMIGRATE) ?
                 UFFDMM_CREATE_INCOMING : 0,
    };
    pstrcpy(create->name, sizeof(create->name), link->id);
}

static void external_link_fill_attach(ExternalLink *link,
                                      struct uffdmm_region_attach *attach)
{
    *attach = (struct uffdmm_region_attach) {
        .region_id = link->region.id,
        .nr_shards = link->region.nr_shards,
        .base = (uintptr_t)link->region.base,
        .size = link->size,
    };
}

static bool external_link_create(ExternalLink *link, int64_t deadline,
                                 Error **errp)
{
    struct uffdmm_region_create create;
    struct uffdmm_region_create_reply created;
    ExternalMessage *reply;
    ExternalStats stats;

    external_link_fill_create(link, &create);
    reply = external_link_request(link, UFFDMM_MSG_REGION_CREATE, &create,
                                  sizeof(create), NULL, 0, sizeof(created), 3,
                                  deadline, errp);
    if (!reply) {
        return false;
    }
    memcpy(&created, reply->payload, sizeof(created));
    if (!external_region_adopt(&link->region, &created, reply->fds,
                               reply->nr_fds, errp) ||
        !external_stats_map(&stats, reply->fds[2], created.stats_size, errp)) {
        return false;
    }
    external_link_set_stats(link, stats);
    return true;
}

static bool external_link_do_attach(ExternalLink *link, void *base,
                                    int64_t deadline, Error **errp)
{
    ExternalRegion *region = &link->region;
    struct uffdmm_region_attach attach;
    int fds[UFFDMM_FDS_MAX];

    if (!external_region_register(region, base, errp)) {
        return false;
    }
    external_link_fill_attach(link, &attach);
    fds[0] = region->pagemap_fd;
    memcpy(&fds[1], region->uffd, region->nr_shards * sizeof(int));
    return external_link_request(link, UFFDMM_MSG_REGION_ATTACH, &attach,
                                 sizeof(attach), fds, 1 + region->nr_shards,
                                 0, 0, deadline, errp);
}

static bool external_link_reconnect(ExternalLink *link, Error **errp)
{
    int64_t deadline = g_get_monotonic_time() +
                       RECONNECT_TIMEOUT_MS * INT64_C(1000);
    struct uffdmm_query_reply queried;
    struct uffdmm_reconnect payload;
    ExternalMessage *reply;
    ExternalStats stats;
    int fds[UFFDMM_FDS_MAX];
    uint32_t nr_fds = external_region_handover(&link->region, fds);

    if (!external_link_hello(link, deadline, errp)) {
        return false;
    }
    external_link_fill_create(link, &payload.create);
    external_link_fill_attach(link, &payload.attach);
    if (!external_link_request(link, UFFDMM_MSG_RECONNECT, &payload,
                               sizeof(payload), fds, nr_fds, 0, 0, deadline,
                               errp)) {
        return false;
    }

    /* it may be another process, with other statistics */
    reply = external_link_request(link, UFFDMM_MSG_QUERY, NULL, 0, NULL, 0,
                                  sizeof(queried), 1, deadline, errp);
    if (!reply) {
        return false;
    }
    memcpy(&queried, reply->payload, sizeof(queried));
    if (!external_stats_map(&stats, reply->fds[0], queried.stats_size, errp)) {
        return false;
    }
    external_link_set_stats(link, stats);
    return true;
}

/* ------------------------------------------------------------------------ */
/* The thread                                                                */

static void external_link_tell(ExternalLink *link, ExternalNews *news)
{
    news->id = g_strdup(link->id);
    news->vm_name = g_strdup(link->vm_name);
    external_news_post(news);
}

static void external_link_tell_lost(ExternalLink *link, const Error *err)
{
    ExternalNews *news = g_new0(ExternalNews, 1);

    news->kind = EXTERNAL_NEWS_LOST;
    news->reason = g_strdup(error_get_pretty(err));
    external_link_tell(link, news);
}

/* To be called with the statistics of the manager that has been attached. */
static void external_link_tell_attached(ExternalLink *link,
                                        uint64_t reconnects)
{
    ExternalNews *news = g_new0(ExternalNews, 1);

    news->kind = EXTERNAL_NEWS_ATTACHED;
    news->reconnects = reconnects;
    /* replaced by this thread alone, so it may read them without the lock */
    news->stats = *link->stats.vm;
    external_link_tell(link, news);
}

/* Tell of trouble with stores.  Returns after how many ms to look again. */
static int external_link_look(ExternalLink *link)
{
    int64_t now = g_get_monotonic_time();

    if (now >= link->next_look) {
        ExternalNews *news = external_watch_look(&link->watch, &link->stats);

        link->next_look = now + LOOK_MS * INT64_C(1000);
        if (news && external_link_speaks(link)) {
            external_link_tell(link, news);
        } else {
            external_news_free(news);
        }
    }
    return DIV_ROUND_UP(link->next_look - now, 1000);
}

/* Wait for the main thread to map the memory.  Returns NULL when stopped. */
static void *external_link_wait_base(ExternalLink *link, Error **errp)
{
    for (;;) {
        WITH_QEMU_LOCK_GUARD(&link->lock) {
            if (link->base) {
                return link->base;
            }
            if (link->stop) {
                error_setg(errp, "stopped");
                return NULL;
            }
        }
        if (!external_link_io(link, -1, errp)) {
            return NULL;
        }
    }
}

static bool external_link_bring_up(ExternalLink *link, Error **errp)
{
    int64_t timeout = START_TIMEOUT_MS * INT64_C(1000);
    int64_t deadline = g_get_monotonic_time() + timeout;
    void *base;

    if (!external_link_hello(link, deadline, errp) ||
        !external_link_create(link, deadline, errp)) {
        return false;
    }
    external_link_set_phase(link, PHASE_CREATED);
    base = external_link_wait_base(link, errp);
    if (!base) {
        return false;
    }
    external_link_set_phase(link, PHASE_ATTACH);
    return external_link_do_attach(link, base,
                                   g_get_monotonic_time() + timeout, errp);
}

/* Report a loss, or a failed attempt to mend it, unless said before. */
static void external_link_report_loss(ExternalLink *link, const char *what,
                                      Error *err)
{
    const char *text = error_get_pretty(err);

    if (g_strcmp0(text, link->last_loss)) {
        warn_report("memory-backend-external '%s': %s: %s; guest accesses to "
                    "memory that is swapped out wait until the manager at "
                    "'%s' is back", link->id, what, text, link->socket);
        g_free(link->last_loss);
        link->last_loss = g_strdup(text);
    }
    trace_external_link_lost(link->id, text);
    error_free(err);
}

/* Pause, but for a stop.  The event notifier may wake it more often. */
static bool external_link_pause(ExternalLink *link, uint32_t ms)
{
    int64_t until = g_get_monotonic_time() + ms * INT64_C(1000);

    for (;;) {
        int64_t left = until - g_get_monotonic_time();

        if (external_link_stopping(link)) {
            return false;
        }
        if (left <= 0) {
            return true;
        }
        external_link_io(link, DIV_ROUND_UP(left, 1000), NULL);
    }
}

/* Returns false when stopped, true when the link is live again. */
static bool external_link_mend(ExternalLink *link)
{
    uint32_t pause = link->reconnect_ms;
    uint64_t reconnects = 0;

    while (external_link_pause(link, pause)) {
        Error *err = NULL;

        if (external_link_reconnect(link, &err)) {
            warn_report("memory-backend-external '%s': connected again to "
                        "the manager at '%s'", link->id, link->socket);
            g_clear_pointer(&link->last_loss, g_free);
            WITH_QEMU_LOCK_GUARD(&link->lock) {
                reconnects = ++link->reconnects;
            }
            external_link_set_phase(link, PHASE_LIVE);
            external_link_tell_attached(link, reconnects);
            return true;
        }
        external_channel_close(&link->chan);
        external_link_report_loss(link, "cannot reconnect", err);
        pause = MAX(link->reconnect_ms, MIN(pause * 2, RECONNECT_MAX_MS));
    }
    return false;
}

static void external_link_detach(ExternalLink *link)
{
    struct uffdmm_region_detach detach = { .region_id = link->region.id };
    Error *err = NULL;

    if (!external_link_request(link, UFFDMM_MSG_REGION_DETACH, &detach,
                               sizeof(detach), NULL, 0, 0, 0,
                               g_get_monotonic_time() +
                               DETACH_TIMEOUT_MS * INT64_C(1000), &err)) {
        /* the manager sees the connection end, and cleans up by that */
        warn_reportf_err(err, "memory-backend-external '%s': detaching: ",
                         link->id);
    }
}

void *external_link_thread(void *opaque)
{
    ExternalLink *link = opaque;
    Error *err = NULL;

    if (external_link_bring_up(link, &err)) {
        external_link_set_phase(link, PHASE_LIVE);
        external_link_tell_attached(link, 0);
        /* older trouble of other backends is no news */
        external_news_free(external_watch_look(&link->watch, &link->stats));
        while (!external_link_stopping(link)) {
            if (!external_link_io(link, external_link_look(link), &err)) {
                external_channel_close(&link->chan);
                external_link_set_phase(link, PHASE_LOST);
                external_link_tell_lost(link, err);
                external_link_report_loss(link, "lost the manager", err);
                err = NULL;
                if (!external_link_mend(link)) {
                    break;
                }
            }
        }
        if (link->chan.sock >= 0) {
            external_link_detach(link);
        }
    }
    /* nobody needs the content now: let go all who still wait for it */
    external_region_unregister(&link->region);
    external_channel_close(&link->chan);
    WITH_QEMU_LOCK_GUARD(&link->lock) {
        link->failed = err;
    }
    external_link_set_phase(link, PHASE_ENDED);
    return NULL;
}
