/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The tiers of a VM together, and the threads that work on them. */
#ifndef UFFDMM_HIERARCHY_H
#define UFFDMM_HIERARCHY_H

#include <stddef.h>
#include <stdint.h>

struct vm;

/*
 * Opens the tiers for a VM whose first region has @ram_bytes, and starts evictor,
 * demoter and background thread.  0, or a negative errno with @err and nothing open.
 */
int hierarchy_open(struct vm *vm, uint64_t ram_bytes, char *err, size_t err_len);

/* Lets transfers end that wait for a store: the VM is gone. */
void hierarchy_cancel(struct vm *vm);

/* Ends the threads; the tiers stay open for regions that still name slots. */
void hierarchy_stop(struct vm *vm);

/* Ends the threads if they run and frees the volumes.  No region is left. */
void hierarchy_close(struct vm *vm);

/* Brings the gauges of all tiers and their sums up to date. */
void hierarchy_gauges(struct vm *vm);

#endif
