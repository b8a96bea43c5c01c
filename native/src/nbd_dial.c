/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "nbd_dial.h"

#include <ctype.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "thread.h"

/* How long to wait at the end for a name server that does not answer. */
#define STOP_SECONDS 1

struct dial {
    bool wanted, ended;
    struct nbd_handle *handle;
    char text[NBD_TEXT_MAX];
};

struct nbd_dialer {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t cond;  /* something is wanted, or the end */
    pthread_cond_t ended; /* the thread has ended */
    bool stop;            /* nobody takes handles any more, event_fd may be closed */
    bool abandoned;       /* the thread frees all this itself */
    bool gone; /* the thread has ended, or is about to without looking at this again */
    int event_fd;
    struct dial dials[NBD_CONNECTIONS_MAX];
    char uri[NBD_URI_MAX];
};

int nbd_uri_expand(const char *uri, const char *vm_name, char *out, size_t out_len)
{
    static const char hex[] = "0123456789ABCDEF";
    size_t n = 0;

    while (*uri) {
        if (strncmp(uri, "{vm}", 4) != 0) {
            if (n + 1 >= out_len) {
                return -ENAMETOOLONG;
            }
            out[n++] = *uri++;
            continue;
        }
        uri += 4;
        for (const unsigned char *p = (const unsigned char *)vm_name; *p; p++) {
            if (n + 3 >= out_len) {
                return -ENAMETOOLONG;
            }
            if ((*p < 0x80 && isalnum(*p)) || strchr("-._~", *p)) {
                out[n++] = (char)*p;
            } else {
                out[n++] = '%';
                out[n++] = hex[*p >> 4];
                out[n++] = hex[*p & 15];
            }
        }
    }
    out[n] = '\0';
    return 0;
}

static void free_dialer(struct nbd_dialer *d)
{
    for (unsigned i = 0; i < NBD_CONNECTIONS_MAX; i++) {
        nbd_lib.close(d->dials[i].handle);
    }
    pthread_cond_destroy(&d->cond);
    pthread_cond_destroy(&d->ended);
    pthread_mutex_destroy(&d->lock);
    free(d);
}

/*
 * A handle that is connecting, or NULL with @text.  What a URI may ask for is
 * kept to what this program is meant for: TCP and UNIX sockets, TLS, and the
 * certificates or keys for it.
 */
static struct nbd_handle *begin(const char *uri, char text[NBD_TEXT_MAX])
{
    struct nbd_handle *h = nbd_lib.create();

    if (!h ||
        nbd_lib.set_uri_allow_transports(h, LIBNBD_ALLOW_TRANSPORT_TCP |
                                                LIBNBD_ALLOW_TRANSPORT_UNIX) < 0 ||
        nbd_lib.set_uri_allow_tls(h, LIBNBD_TLS_ALLOW) < 0 ||
        nbd_lib.set_uri_allow_local_file(h, true) < 0 ||
        nbd_lib.set_tls_verify_peer(h, true) < 0 ||
        /* a read that failed is not looked at: no need to clear its buffer first */
        nbd_lib.set_pread_initialize(h, false) < 0 ||
        nbd_lib.aio_connect_uri(h, uri) < 0) {
        snprintf(text, NBD_TEXT_MAX, "%s", nbd_lib.get_error());
        nbd_lib.close(h);
        return NULL;
    }
    return h;
}

static bool next_wanted(struct nbd_dialer *d, unsigned *index)
{
    for (unsigned i = 0; i < NBD_CONNECTIONS_MAX; i++) {
        if (d->dials[i].wanted) {
            *index = i;
            return true;
        }
    }
    return false;
}

static void *dialer_main(void *arg)
{
    struct nbd_dialer *d = arg;
    char text[NBD_TEXT_MAX];
    uint64_t one = 1;
    unsigned index;
    bool abandoned;

    pthread_mutex_lock(&d->lock);
    while (!d->stop) {
        struct nbd_handle *h;

        if (!next_wanted(d, &index)) {
            pthread_cond_wait(&d->cond, &d->lock);
            continue;
        }
        pthread_mutex_unlock(&d->lock);
        text[0] = '\0';
        h = begin(d->uri, text);
        pthread_mutex_lock(&d->lock);
        d->dials[index].wanted = false;
        d->dials[index].ended = true;
        d->dials[index].handle = h;
        memcpy(d->dials[index].text, text, sizeof(text));
        if (!d->stop && write(d->event_fd, &one, sizeof(one)) < 0) {
            continue; /* the counter is at its top: the reader is as good as awake */
        }
    }
    abandoned = d->abandoned;
    d->gone = true;
    pthread_cond_signal(&d->ended);
    pthread_mutex_unlock(&d->lock);
    if (abandoned) {
        free_dialer(d);
    }
    return NULL;
}

int nbd_dialer_start(struct nbd_dialer **out, const char *uri, int event_fd)
{
    struct nbd_dialer *d = calloc(1, sizeof(*d));
    pthread_condattr_t attr;
    int ret;

    if (!d) {
        return -ENOMEM;
    }
    d->event_fd = event_fd;
    snprintf(d->uri, sizeof(d->uri), "%s", uri);
    pthread_mutex_init(&d->lock, NULL);
    pthread_cond_init(&d->cond, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&d->ended, &attr);
    pthread_condattr_destroy(&attr);
    ret = thread_start(&d->thread, "nbd-dial", dialer_main, d);
    if (ret) {
        free_dialer(d);
        return ret;
    }
    *out = d;
    return 0;
}

void nbd_dialer_stop(struct nbd_dialer *d)
{
    struct timespec until;
    bool gone;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += STOP_SECONDS;
    pthread_mutex_lock(&d->lock);
    d->stop = true;
    pthread_cond_signal(&d->cond);
    while (!d->gone && pthread_cond_timedwait(&d->ended, &d->lock, &until) == 0) {
    }
    gone = d->gone;
    if (!gone) {
        d->abandoned = true;
        pthread_detach(d->thread);
    }
    pthread_mutex_unlock(&d->lock);
    if (gone) {
        pthread_join(d->thread, NULL);
        free_dialer(d);
    }
}

void nbd_dialer_request(struct nbd_dialer *d, unsigned index)
{
    pthread_mutex_lock(&d->lock);
    d->dials[index].wanted = true;
    pthread_cond_signal(&d->cond);
    pthread_mutex_unlock(&d->lock);
}

bool nbd_dialer_take(struct nbd_dialer *d, unsigned index, struct nbd_handle **handle,
                     char text[NBD_TEXT_MAX])
{
    struct dial *dial = &d->dials[index];
    bool ended;

    pthread_mutex_lock(&d->lock);
    ended = dial->ended;
    if (ended) {
        *handle = dial->handle;
        memcpy(text, dial->text, NBD_TEXT_MAX);
        dial->handle = NULL;
        dial->ended = false;
    }
    pthread_mutex_unlock(&d->lock);
    return ended;
}
