/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What control clients ask of a worker beside statistics and policy. */
#ifndef UFFDMM_CONTROL_H
#define UFFDMM_CONTROL_H

#include <stdint.h>

struct conn;
struct region;
struct uffdmm_regions_reply;
struct vm;

/* The first region of index @i or above, NULL when there is none, and what it is like. */
const struct region *control_describe(const struct vm *vm, uint32_t i,
                                      struct uffdmm_regions_reply *reply);

/* A descriptor whose holder cannot map for writing; a negative errno on failure. */
int control_open_readonly(int fd);

/*
 * Answer the message in @c: 0, or a negative errno when the connection must be closed.
 * They are called by the main thread and wait for nothing.
 */
int control_regions(struct vm *vm, struct conn *c);
int control_evict(struct vm *vm, struct conn *c);
int control_prefetch(struct vm *vm, struct conn *c);

#endif
