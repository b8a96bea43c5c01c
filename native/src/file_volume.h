/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What one VM has of one path of a `file` tier: a volume file in a directory, or
 * a whole block device.  Read and written past the page cache.  Theory of operation
 * at the head of file_volume.c.
 *
 * Its first 4 KiB are its label (superblock.h) and never hold a page.
 */
#ifndef UFFDMM_FILE_VOLUME_H
#define UFFDMM_FILE_VOLUME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "superblock.h"
#include "tier.h"

/* How a volume makes the content of a range unreadable; the best first. */
enum file_volume_zero {
    FILE_VOLUME_ZERO_RANGE, /* the file keeps its blocks, as unwritten ones */
    FILE_VOLUME_PUNCH,      /* given back, and reserved again; a device: unmapped */
    FILE_VOLUME_ZEROOUT,    /* a device: zeros written by it or to it */
    FILE_VOLUME_WRITE,      /* zeros written */
};

struct file_volume {
    const struct tier_config *config;
    const char *path; /* as configured */
    int fd;
    int dir_fd;     /* of the directory, -1: a block device */
    uint64_t bytes; /* reserved, or the size of the device */
    bool leftovers; /* it holds old pages that nobody needs */
    enum file_volume_zero zero;
    bool labelled;
    bool lockless;                   /* a file whose file system has no locks */
    struct superblock label;         /* as written, if labelled */
    struct superblock former;        /* what the volume said before */
    char file[UFFDMM_NAME_MAX + 64]; /* name in the directory */
};

/*
 * Creates the volume of @vm in path @index of a tier, or takes the device.  0, or a
 * negative errno with one sentence for the user in @err.
 */
int file_volume_open(struct file_volume *v, const struct tier_config *config,
                     unsigned index, const struct tier_vm *vm, char *err, size_t err_len);

/* Opens the volume of @from, which another host holds, for reading; as above. */
int file_volume_attach(struct file_volume *v, const struct tier_config *config,
                       unsigned index, const struct tier_source *from, char *err,
                       size_t err_len);

/* May be written from now on: the label says that it is ours.  0 or a negative errno. */
int file_volume_writable(struct file_volume *v);

/* Closes it and leaves it as it is: it is another's. */
void file_volume_detach(struct file_volume *v);

/* Closes it: with @keep it stays as it is, else the file is removed or the device freed. */
void file_volume_close(struct file_volume *v, bool keep);

static inline bool file_volume_is_device(const struct file_volume *v)
{
    return v->dir_fd < 0;
}

/*
 * Reserves @bytes of disk for a volume in a directory; never shrinks.  0, or a
 * negative errno with @err: some of it may have been reserved all the same, until the
 * volume is taken back to its former size.
 */
int file_volume_grow(struct file_volume *v, uint64_t bytes, char *err, size_t err_len);
void file_volume_shrink(struct file_volume *v, uint64_t bytes);

/* Makes the old content of a range unreadable.  0 or a negative errno. */
int file_volume_zero(struct file_volume *v, uint64_t offset, uint64_t length);

/*
 * Looks at path @index before any VM needs it, and removes volumes there whose QEMU
 * process has ended and whose worker did not live to remove them.  0, or a negative
 * errno with @err when the path is unusable.
 */
int file_volume_sweep(const struct tier_config *config, unsigned index, char *err,
                      size_t err_len);

#endif
