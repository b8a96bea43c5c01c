/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The eviction queue of a VM: blocks that have resident pages, oldest first.
 * A block is in it once or not at all.
 */
#ifndef UFFDMM_QUEUE_H
#define UFFDMM_QUEUE_H

#include <stdbool.h>

struct block;
struct region;
struct vm;

void queue_init(struct vm *vm);

/* Puts the block at the young end unless it is queued already.  Never waits for I/O. */
void queue_push(struct vm *vm, struct block *b);

/* Moves a block that is in the queue to its young end. */
void queue_touch(struct vm *vm, struct block *b);

/* Takes the oldest block out, NULL when there is none. */
struct block *queue_pop(struct vm *vm);

/* Puts a block that was taken out back to the old end. */
void queue_put_back(struct vm *vm, struct block *b);

/* Takes every block of @r out. */
void queue_remove_region(struct vm *vm, struct region *r);

#endif
