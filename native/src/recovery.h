/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A new worker takes over the memory that a dead one served. */
#ifndef UFFDMM_RECOVERY_H
#define UFFDMM_RECOVERY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "uffdmm/protocol.h"

struct region;
struct vm;

/*
 * Writes into the tables of all regions what a later worker needs to know: tiers, policy,
 * which regions there are (without @leaving, when not NULL).  To be called whenever one of
 * them changes, before QEMU hears of it.
 */
void recovery_note(struct vm *vm, const struct region *leaving);

/*
 * RECONNECT of a region that this worker does not know.  @fds: memory, table, pagemap,
 * userfaultfds, arenas; taken over.  *@tiers_open tells whether the tiers are, before and
 * after.  0, or a negative errno with one sentence in @err and nothing lost: QEMU tries again.
 */
int recovery_take_over(struct vm *vm, const struct uffdmm_reconnect *req, const int *fds,
                       unsigned nr_fds, bool *tiers_open, struct region **out, char *err,
                       size_t err_len);

#endif
