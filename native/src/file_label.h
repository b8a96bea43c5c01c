/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The first 4 KiB of a volume that others could take: whose it is. */
#ifndef UFFDMM_FILE_LABEL_H
#define UFFDMM_FILE_LABEL_H

#include <stdbool.h>
#include <stddef.h>

#include "file_volume.h"

/*
 * Takes an open volume for @vm.  Sets v->label, v->labelled and v->leftovers.  0, or a
 * negative errno with one sentence for the user in @err.
 */
int file_label_take(struct file_volume *v, const struct tier_vm *vm, char *err,
                    size_t err_len);

/*
 * Takes over an open volume that a dead worker of @vm has labelled.  0, or a negative errno
 * with @err when the label is not that of @vm and its QEMU process.
 */
int file_label_keep(struct file_volume *v, const struct tier_vm *vm, char *err,
                    size_t err_len);

/*
 * Is a volume that others can reach still ours?  0, or a negative errno with @err;
 * always 0 for one that nobody else can take.
 */
int file_label_held(const struct file_volume *v, char *err, size_t err_len);

/* Is the open volume held by @from, in that epoch?  Notes its label.  0 or as above. */
int file_label_match(struct file_volume *v, const struct tier_source *from, char *err,
                     size_t err_len);

/*
 * Writes that the volume is released to @destination, in the epoch after ours; also when
 * that was done already.  0, or a negative errno with @err.
 */
int file_label_give(struct file_volume *v, const char *destination, uint64_t *epoch,
                    char *err, size_t err_len);

/*
 * Makes a volume that matched ours, if its label says that it was released in @epoch.
 * 0, or a negative errno with @err; -EPERM: it has not been released, or in another epoch.
 */
int file_label_receive(struct file_volume *v, const struct tier_vm *vm, uint64_t epoch,
                       char *err, size_t err_len);

/*
 * Tells in the label of a volume that is being closed what the next owner finds: pages
 * that are needed, with @keep, or nothing.  False when the volume is not ours any more,
 * so that nothing of it may be touched.
 */
bool file_label_release(const struct file_volume *v, bool keep);

#endif
