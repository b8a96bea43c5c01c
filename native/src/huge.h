/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Huge pages on their way into guest memory: room for them under the limit, and what
 * to do when the host has none left.  Theory of operation at the head of huge.c.
 */
#ifndef UFFDMM_HUGE_H
#define UFFDMM_HUGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "uffd.h"

struct shard;
struct vm;

/* Takes room for a page before it is read; false when there is none. */
bool huge_claim_room(struct vm *vm);

/* The page is in and counted as resident, or did not come. */
void huge_release_room(struct vm *vm);

/* uffd_copy() of one page of @sh; UFFD_NO_PAGE when the host has no huge page left. */
enum uffd_outcome huge_copy(struct shard *sh, uint64_t pfn, const void *src,
                            size_t *done);

#endif
