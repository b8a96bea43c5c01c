/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Begins connections to an NBD export, in a thread of its own: libnbd resolves
 * host names with getaddrinfo(), which may hang for as long as it likes.  What
 * comes out is a handle that is connecting; who asked for it polls it on.
 */
#ifndef UFFDMM_NBD_DIAL_H
#define UFFDMM_NBD_DIAL_H

#include <stdbool.h>
#include <stddef.h>

#include "nbd_lib.h"

#define NBD_CONNECTIONS_MAX 16
#define NBD_URI_MAX 4096
#define NBD_TEXT_MAX 256

struct nbd_dialer;

/*
 * Writes @uri into @out with each {vm} replaced by @vm_name, percent-encoded.  0,
 * -ENAMETOOLONG when it does not fit.
 */
int nbd_uri_expand(const char *uri, const char *vm_name, char *out, size_t out_len);

/* @event_fd is written to when a handle is ready to be taken.  0 or a negative errno. */
int nbd_dialer_start(struct nbd_dialer **out, const char *uri, int event_fd);

/* Ends it, after a moment even while it hangs; takes no notice of who waits. */
void nbd_dialer_stop(struct nbd_dialer *d);

/* Asks for connection @index, of which none is under way. */
void nbd_dialer_request(struct nbd_dialer *d, unsigned index);

/*
 * True when the request for @index has ended: *@handle is the caller's, or NULL
 * with the reason in @text.
 */
bool nbd_dialer_take(struct nbd_dialer *d, unsigned index, struct nbd_handle **handle,
                     char text[NBD_TEXT_MAX]);

#endif
