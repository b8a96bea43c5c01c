/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Fault threads: one a shard, from its start to its end. */
#ifndef UFFDMM_FAULT_H
#define UFFDMM_FAULT_H

struct shard;

/* Allocates what the thread of @sh needs, so that it allocates nothing later. 0 or -errno. */
int fault_prepare(struct shard *sh);
void fault_release(struct shard *sh);

/* Starts and stops the thread.  0 or -errno. */
int fault_start(struct shard *sh);
void fault_stop(struct shard *sh);

/* Tells a thread that waits for room or for a page that there may be progress. */
void fault_kick(struct shard *sh);

#endif
