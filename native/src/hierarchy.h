/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The tiers of a VM together, and the threads that work on them. */
#ifndef UFFDMM_HIERARCHY_H
#define UFFDMM_HIERARCHY_H

#include <stddef.h>
#include <stdint.h>

#include "uffdmm/protocol.h"

struct tier_queue;
struct vm;

/* What a dead worker of the VM has left behind, as the header of a table tells it. */
struct hierarchy_kept {
    uint64_t nr_tiers; /* the zero tier too */
    char names[UFFDMM_TIERS_MAX][UFFDMM_NAME_MAX];
    uint8_t volume_ids[UFFDMM_TIERS_MAX][16];
    const int *arenas;
    unsigned nr_arenas;
};

/*
 * Opens the tiers for a VM whose first region has @ram_bytes, and starts evictor,
 * demoter and background thread.  0, or a negative errno with @err and nothing open.
 */
int hierarchy_open(struct vm *vm, uint64_t ram_bytes, char *err, size_t err_len);

/*
 * The same with the volumes that a dead worker has left: nothing new is stored in them
 * before hierarchy_settle().  With nothing changed in them on failure.
 */
int hierarchy_take_over(struct vm *vm, uint64_t ram_bytes,
                        const struct hierarchy_kept *kept, char *err, size_t err_len);

/* All regions have come back: what no entry names is free. */
void hierarchy_settle(struct vm *vm);

/* A queue for a thread of the VM, to the tiers that are open.  0 or a negative errno. */
int hierarchy_queue(const struct vm *vm, struct tier_queue *q);

/* Lets transfers end that wait for a store: the VM is gone. */
void hierarchy_cancel(struct vm *vm);

/* Ends the threads; the tiers stay open for regions that still name slots. */
void hierarchy_stop(struct vm *vm);

/*
 * Ends the threads if they run and frees the volumes; those of a VM that is unsettled stay.
 * No region is left.
 */
void hierarchy_close(struct vm *vm);

/* Brings the gauges of all tiers and their sums up to date. */
void hierarchy_gauges(struct vm *vm);

#endif
