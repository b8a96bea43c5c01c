/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The process that listens: checks who connects and gives each VM a worker. */
#ifndef UFFDMM_ACCEPTOR_H
#define UFFDMM_ACCEPTOR_H

#include "options.h"

/* Listens and serves until SIGTERM or SIGINT.  Returns the exit status. */
int acceptor_run(const struct options *options);

#endif
