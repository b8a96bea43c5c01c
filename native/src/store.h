/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The `file` tier: one volume file a VM, made of page-sized slots, read and
 * written past the page cache.  docs/architecture.md, "Stores".
 */
#ifndef UFFDMM_STORE_H
#define UFFDMM_STORE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "io.h"
#include "slots.h"
#include "uffdmm/protocol.h"

struct store {
    struct slots slots;
    int fd;
    int dir_fd;
    uint64_t max_bytes; /* configured capacity, 0: as much as the VM's RAM needs */
    uint64_t bytes;     /* size of the volume */
    char dir[4096];
    char file[UFFDMM_NAME_MAX + 64]; /* name of the volume in dir */
    struct uffdmm_stats *stats;
};

/*
 * Creates the volume of the VM @vm_name, whose QEMU is process @qemu_pid, in
 * the directory @dir.  0, or a negative errno with one sentence for the user in
 * @err.
 */
int store_open(struct store *st, const char *dir, uint64_t max_bytes, const char *vm_name,
               pid_t qemu_pid, struct uffdmm_stats *stats, char *err, size_t err_len);

/*
 * Removes volumes in @dir whose QEMU process has ended and whose worker did not
 * live to remove them.  0, or a negative errno with @err when @dir is unusable.
 */
int store_sweep(const char *dir, char *err, size_t err_len);

/* Removes the volume. */
void store_close(struct store *st);

/*
 * Reserves room on the disk for @ram_bytes of guest memory of which at most
 * @limit_bytes stay resident.  0, or a negative errno with @err.
 */
int store_reserve(struct store *st, uint64_t ram_bytes, uint64_t limit_bytes, char *err,
                  size_t err_len);

/* A request over @length bytes beginning at @slot. */
struct io_request store_request(const struct store *st, bool write, struct iovec *iov,
                                int nr_iov, uint64_t slot, uint64_t length);

/* Runs requests and counts them; returns how many failed. */
int store_run(struct store *st, struct io *io, struct io_request *reqs, int nr,
              uint64_t spin_ns);

/* Trims some freed slots; returns the bytes given back, 0 when there is nothing to do. */
uint64_t store_trim(struct store *st);

/* Checksum of a stored page: a page that lands in another place does not match. */
uint64_t store_checksum(const void *page, uint32_t region_id, uint64_t pfn,
                        unsigned generation);

#endif
