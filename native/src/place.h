/* SPDX-License-Identifier: GPL-2.0-or-later */
/* On which CPUs the threads of a worker run. */
#ifndef UFFDMM_PLACE_H
#define UFFDMM_PLACE_H

struct vm;

/* Looks where the faults come from and moves threads there.  Called every now and then. */
void place_threads(struct vm *vm);

#endif
