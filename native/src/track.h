/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The background thread of a VM: access history, and trimming of freed slots. */
#ifndef UFFDMM_TRACK_H
#define UFFDMM_TRACK_H

#include <stdint.h>

struct region;
struct vm;

/* Starts and stops the thread.  0 or a negative errno. */
int track_start(struct vm *vm);
void track_stop(struct vm *vm);

/* QEMU has answered the ZAP with that generation.  Called by the main thread. */
void track_zapped(struct region *r, uint64_t generation);

#endif
