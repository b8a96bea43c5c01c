/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Connections come and go: dialling, checks of what answers, loss, back-off. */
#include "nbd_client_impl.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "clock.h"
#include "config.h"
#include "log.h"
#include "stats.h"
#include "tier.h"

#define BACKOFF_MIN_NS (50 * NSEC_PER_MSEC)
#define BACKOFF_MAX_NS (2 * NSEC_PER_SEC)

/* The same complaint about a server is repeated no more often than this. */
#define COMPLAIN_NS (60 * NSEC_PER_SEC)

/* ---- links --------------------------------------------------------------- */

static uint64_t jitter(struct nbd_client *c, uint64_t ns)
{
    c->random ^= c->random << 13;
    c->random ^= c->random >> 7;
    c->random ^= c->random << 17;
    return ns - ns / 4 + c->random % (ns / 2);
}

/* Says once why the export cannot be used. */
static void complain(struct nbd_client *c, const char *text)
{
    uint64_t now = clock_ns();

    if (strcmp(text, c->complaint) != 0 || now - c->complained_ns > COMPLAIN_NS) {
        snprintf(c->complaint, sizeof(c->complaint), "%s", text);
        c->complained_ns = now;
        tier_error(c->tier, "%s", text);
    }
}

/* The connection that nbd_client_start() waits for is decided. */
static void decide_first(struct nbd_client *c, int result, const char *text)
{
    pthread_mutex_lock(&c->lock);
    if (c->first > 0) {
        snprintf(c->complaint, sizeof(c->complaint), "%s", text);
        c->first = result;
        pthread_cond_broadcast(&c->cond);
    }
    pthread_mutex_unlock(&c->lock);
}

/* The pieces of a connection that is going down wait for another one. */
static void requeue(struct nbd_client *c, struct nbd_conn *conn)
{
    struct nbd_piece *p;

    while ((p = nbd_conn_take(conn))) {
        if (p != &conn->check) {
            nbd_piece_end(c, p, -p->error);
        }
    }
    for (unsigned i = 0; i < c->nr_pieces; i++) {
        p = &c->pieces[i];
        if (p->conn != conn) {
            continue;
        }
        nbd_conn_forget(conn, p);
        if (p->kind == NBD_WRITE || p->kind == NBD_TRIM) {
            c->in_doubt(c->opaque, p->offset, p->length);
        }
        if (p->op && p->op->withdrawn) {
            nbd_piece_end(c, p, -ECANCELED);
        } else {
            p->next = c->again;
            c->again = p;
        }
    }
    if (atomic_load(&c->cancelled)) {
        nbd_drop_again(c);
    }
}

void nbd_link_down(struct nbd_client *c, struct nbd_conn *conn, const char *text)
{
    bool was_ready = conn->state == NBD_CONN_READY;
    char why[NBD_TEXT_MAX];

    snprintf(why, sizeof(why), "%s", text);
    requeue(c, conn);
    nbd_conn_close(conn);
    conn->backoff = conn->backoff ? conn->backoff * 2 : BACKOFF_MIN_NS;
    if (conn->backoff > BACKOFF_MAX_NS) {
        conn->backoff = BACKOFF_MAX_NS;
    }
    conn->retry_at = clock_ns() + jitter(c, conn->backoff);
    c->ready -= was_ready;
    if (was_ready && !c->ready && !atomic_load(&c->stop)) {
        c->away = true;
        c->complaint[0] = '\0'; /* why it stays away is news again */
        c->away_since = clock_ns();
        tier_set_state(c->tier, UFFDMM_TIER_AWAY);
        tier_error(c->tier, "%s is away: %s; what is stored there waits until it is back",
                   c->name, why);
    } else {
        log_debug("tier %s: connection %u to %s: %s", c->tier->config->name, conn->index,
                  c->name, why);
    }
    if (c->away) {
        /* again, should the gauge have been set in the same moment */
        tier_set_state(c->tier, UFFDMM_TIER_AWAY);
    }
}

/* An export that is there but is not, or no longer, what it has to be. */
static void conn_refuse(struct nbd_client *c, struct nbd_conn *conn, int result,
                        const char *text)
{
    if (c->first > 0) {
        decide_first(c, result, text);
    } else {
        complain(c, text);
    }
    conn->backoff = BACKOFF_MAX_NS;
    nbd_link_down(c, conn, text);
}

static void conn_ready(struct nbd_client *c, struct nbd_conn *conn)
{
    conn->state = NBD_CONN_READY;
    conn->backoff = 0;
    nbd_conn_keepalive(conn);
    c->ready++;
    if (c->away) {
        c->away = false;
        c->complaint[0] = '\0';
        stats_add(&c->tier->stats->reconnects, 1);
        tier_set_state(c->tier, UFFDMM_TIER_OK);
        if (log_ratelimit(&c->logged_back, NSEC_PER_SEC)) {
            log_info("tier %s: %s is back after %.1f s", c->tier->config->name, c->name,
                     (double)(clock_ns() - c->away_since) / (double)NSEC_PER_SEC);
        }
    }
    decide_first(c, 0, "");
}

/* Compares what the server offers with what is needed.  False: refused. */
static bool acceptable(struct nbd_client *c, struct nbd_conn *conn,
                       const struct nbd_export *e)
{
    char text[UFFDMM_TEXT_MAX];
    int result = -EINVAL;
    uint64_t need;

    pthread_mutex_lock(&c->lock);
    need = c->need_bytes;
    pthread_mutex_unlock(&c->lock);
    if (e->read_only) {
        snprintf(text, sizeof(text), "%s is read-only; export it writable", c->name);
        result = -EROFS;
    } else if (e->bytes < need) {
        snprintf(text, sizeof(text),
                 "%s has %llu bytes and %llu are needed; make the export larger", c->name,
                 (unsigned long long)e->bytes, (unsigned long long)need);
        result = -ENOSPC;
    } else if (e->min_request > PAGE_SIZE_4K || e->max_request < PAGE_SIZE_4K) {
        snprintf(
            text, sizeof(text),
            "%s takes no requests of %u bytes, the size of a page; set its block size to "
            "that or less",
            c->name, PAGE_SIZE_4K);
    } else {
        return true;
    }
    conn_refuse(c, conn, result, text);
    return false;
}

/* The handshake is over: looks at the export and then at its superblock. */
static void conn_negotiated(struct nbd_client *c, struct nbd_conn *conn)
{
    struct nbd_export e;

    nbd_conn_export(conn, &e);
    if (!acceptable(c, conn, &e)) {
        return;
    }
    if (!e.multi_conn && c->ready) {
        c->multi_conn = false;
        nbd_link_down(c, conn, "the server allows one connection only");
        return;
    }
    c->multi_conn = e.multi_conn;
    pthread_mutex_lock(&c->lock);
    c->export = e;
    pthread_mutex_unlock(&c->lock);
    if (!atomic_load(&c->holding)) {
        conn_ready(c, conn);
        return;
    }
    conn->state = NBD_CONN_CHECKING;
    conn->check = (struct nbd_piece){
        .kind = NBD_READ, .buf = conn->block, .length = sizeof(conn->block)};
    if (nbd_conn_send(conn, &conn->check) < 0) {
        nbd_link_down(c, conn, "the superblock cannot be read");
    }
}

/* The superblock has been read. */
static void conn_checked(struct nbd_client *c, struct nbd_conn *conn, int error)
{
    char text[UFFDMM_TEXT_MAX];
    int ret = -error;

    if (error) {
        snprintf(text, sizeof(text), "cannot read the superblock of %s: %s", c->name,
                 strerror(error));
    } else {
        ret = superblock_still_held(conn->block, &c->self, c->name, text, sizeof(text));
    }
    if (ret) {
        conn_refuse(c, conn, ret, text);
        if (!error) {
            atomic_store(&c->fence, true); /* what one link sees holds for all */
        }
    } else {
        conn_ready(c, conn);
    }
}

/* Gives a handle that the dialer has made to its connection. */
static void take_dialed(struct nbd_client *c, struct nbd_conn *conn)
{
    char text[NBD_TEXT_MAX];
    struct nbd_handle *h;

    if (!nbd_dialer_take(c->dialer, conn->index, &h, text)) {
        return;
    }
    if (!h) {
        if (c->first > 0) {
            decide_first(c, -ENOTCONN, text);
        }
        nbd_link_down(c, conn, text);
        return;
    }
    nbd_conn_adopt(conn, h);
    conn->deadline = clock_ns() + NBD_HANDSHAKE_NS;
}

bool nbd_link_wanted(const struct nbd_client *c, const struct nbd_conn *conn)
{
    bool wanted = c->ready ? atomic_load(&c->holding) && c->multi_conn : conn->index == 0;

    return wanted && !atomic_load(&c->stop) && !(c->ready && atomic_load(&c->cancelled));
}

void nbd_link_step(struct nbd_client *c, struct nbd_conn *conn, uint64_t now)
{
    struct nbd_piece *p;

    if (conn->state == NBD_CONN_DOWN) {
        if (conn->retry_at <= now && nbd_link_wanted(c, conn)) {
            conn->state = NBD_CONN_DIALING;
            nbd_dialer_request(c->dialer, conn->index);
        }
        return;
    }
    if (conn->state == NBD_CONN_DIALING) {
        take_dialed(c, conn);
    }
    if (conn->state == NBD_CONN_HANDSHAKE && nbd_conn_negotiated(conn)) {
        conn_negotiated(c, conn);
    }
    while ((p = nbd_conn_take(conn))) {
        if (p == &conn->check) {
            conn_checked(c, conn, p->error);
        } else {
            nbd_piece_end(c, p, -p->error);
        }
    }
    if (conn->failed && conn->h) {
        if (c->first > 0) {
            decide_first(c, -ENOTCONN, conn->text);
        }
        nbd_link_down(c, conn, conn->text);
    } else if ((conn->state == NBD_CONN_HANDSHAKE || conn->state == NBD_CONN_CHECKING) &&
               conn->deadline <= now) {
        if (c->first > 0) {
            decide_first(c, -ETIMEDOUT, "no answer");
        }
        nbd_link_down(c, conn, "no answer");
    }
}
