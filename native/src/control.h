/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What control clients ask of a worker beside statistics and policy. */
#ifndef UFFDMM_CONTROL_H
#define UFFDMM_CONTROL_H

struct conn;
struct vm;

/*
 * Answer the message in @c: 0, or a negative errno when the connection must be closed.
 * They are called by the main thread and wait for nothing.
 */
int control_regions(struct vm *vm, struct conn *c);
int control_evict(struct vm *vm, struct conn *c);
int control_prefetch(struct vm *vm, struct conn *c);

#endif
