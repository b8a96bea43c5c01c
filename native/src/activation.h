/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A listening socket that somebody else made: a service manager, or whoever gave --fd. */
#ifndef UFFDMM_ACTIVATION_H
#define UFFDMM_ACTIVATION_H

#include <stddef.h>

/*
 * The socket that a service manager passes to this process by LISTEN_PID and
 * LISTEN_FDS (sd_listen_fds(3)).  Removes both from the environment.
 * Returns the descriptor, -ENOENT when there is none, -E2BIG when there are several.
 */
int activation_fd(void);

/*
 * Takes an inherited descriptor as a socket to listen on: checks that it is
 * one, and keeps it from blocking and from other programs.
 * Returns 0 or a negative errno with a sentence in @err.
 */
int activation_take(int fd, char *err, size_t err_len);

#endif
