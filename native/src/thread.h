/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Threads of a worker: small locked stacks, all signals left to the main thread. */
#ifndef UFFDMM_THREAD_H
#define UFFDMM_THREAD_H

#include <pthread.h>

/* Starts @fn(@arg) under @name (15 characters).  0 or a negative errno. */
int thread_start(pthread_t *thread, const char *name, void *(*fn)(void *), void *arg);

#endif
