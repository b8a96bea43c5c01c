/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The evictor: one thread a VM that keeps it a little below its limit. */
#ifndef UFFDMM_EVICT_H
#define UFFDMM_EVICT_H

#include <stdint.h>

struct vm;

/* Starts and stops the thread.  0 or a negative errno. */
int evict_start(struct vm *vm);
void evict_stop(struct vm *vm);

/* Asks for @bytes less of resident memory than now, 0: for nothing more. */
void evict_by(struct vm *vm, uint64_t bytes);

/* Says that room may be wanted.  Cheap when the evictor is at work already. */
void evict_kick(struct vm *vm);

#endif
