/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Moving stored pages down the hierarchy, and tidying the tiers: a thread of its own. */
#ifndef UFFDMM_DEMOTE_H
#define UFFDMM_DEMOTE_H

struct vm;

/* Starts and stops the thread; the tiers are open.  0 or a negative errno. */
int demote_start(struct vm *vm);
void demote_stop(struct vm *vm);

#endif
