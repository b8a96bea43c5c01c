/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Reads of a disk past the page cache, each word of which is known beforehand. */
#ifndef GUEST_DISK_H
#define GUEST_DISK_H

#include <stdint.h>

#include "work.h"

/*
 * Read pieces of @path at random into random places of 16 MiB of memory, for @ms,
 * while a child reads the memory of @w, so that pages are short.  What is in a place is
 * compared after the read, and once more before the next one.
 */
void disk_read(const struct work *w, const char *path, uint64_t ms);

#endif
