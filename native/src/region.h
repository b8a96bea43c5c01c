/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Regions of guest memory: creation, the moment when QEMU hands over its
 * userfaultfds, and removal.  All of it is the main thread's.
 */
#ifndef UFFDMM_REGION_H
#define UFFDMM_REGION_H

#include <stddef.h>

#include "vm.h"

/* A sealed memfd of fixed size, @flags beside the usual ones; negative errno on failure. */
int region_memfd(const char *name, unsigned flags, uint64_t size);

/*
 * Creates memory and table for a region that QEMU asks for and adds it to the
 * VM.  0, or a negative errno with one sentence for the user in @err.
 */
int region_create(struct vm *vm, const struct uffdmm_region_create *req,
                  struct region **out, char *err, size_t err_len);

/*
 * Takes over the descriptors of an attach request (closed on failure) and
 * starts serving.  0, or a negative errno with @err.
 */
int region_attach(struct region *r, const struct uffdmm_region_attach *req,
                  int pagemap_fd, const int *uffds, char *err, size_t err_len);

/*
 * Takes over memory and table (descriptors closed on failure) of a region that a dead worker
 * served: checks and maps them, and makes sure that this is the only worker.  Nobody sees
 * the region yet: region_free() undoes it.  -EWOULDBLOCK when another worker has it.
 */
int region_adopt(struct vm *vm, const struct uffdmm_region_create *req, uint32_t id,
                 int memfd, int table_fd, struct region **out, char *err, size_t err_len);

/* Makes what serving it needs, with the tiers open.  0 or a negative errno. */
int region_prepare(struct region *r);

/*
 * Serves a region whose entries have been reconciled: lifts all protection, lets all threads
 * see the region, wakes all waiters.  Takes over the descriptors.  0, or a negative errno with
 * @err: then region_free().
 */
int region_resume(struct region *r, const struct uffdmm_region_attach *req,
                  int pagemap_fd, const int *uffds, char *err, size_t err_len);

/* Frees a region that nobody has seen, and no slot. */
void region_free(struct region *r);

/* QEMU's connection for the region came (@fd) or went (-1). */
void region_set_link(struct region *r, int fd);

/* Stops serving, takes the region out of the VM, frees slots and memory. */
void region_destroy(struct region *r);

/*
 * Frees what QEMU has discarded in the range, which must be inside the region.
 * Returns the number of pages.
 */
uint64_t region_discarded(struct region *r, uint64_t offset, uint64_t length);

/*
 * Frees the slot of a page that QEMU has discarded and nobody works on; false
 * when there is nothing to do.  From any thread.
 */
bool region_reap_discard(struct region *r, uint64_t pfn);

/* Ends the work on a page (BUSY), and does what a discard of QEMU left undone for it. */
void region_release_page(struct region *r, uint64_t pfn);

/* True when page-aligned and inside the region. */
bool region_range_ok(const struct region *r, uint64_t offset, uint64_t length);

/* Counts the pages that are stored, from the tables. */
void region_recount(struct vm *vm);

#endif
