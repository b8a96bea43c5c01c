/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Workers that are killed at random moments while their guest runs. */
#ifndef UFFDMM_TEST_KILL_LOOP_H
#define UFFDMM_TEST_KILL_LOOP_H

#include <stdint.h>
#include <sys/types.h>

#include "hier.h"

/* A worker must be back after so long. */
enum { KILL_BACK_MS = 15000 };

/* Random numbers that follow from a seed, 1 unless it is set; sets it. */
void kill_seed(uint64_t seed);
uint64_t kill_random(void);

/* Process of the worker of "vm"; waits for one that is not @other and serves. */
pid_t kill_worker_of(struct hier *r, pid_t other);

/*
 * Fills guest memory and kills @kills workers or more while the guest does @pattern (enum
 * load_pattern), some of them while they take over.  All of memory is verified in the end,
 * and the recovery time is printed.
 */
void kill_loop(struct hier *r, unsigned pattern, unsigned kills);

#endif
