/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The `file` tier, beside its struct tier_ops in tier.h. */
#ifndef UFFDMM_TIER_FILE_H
#define UFFDMM_TIER_FILE_H

#include <stddef.h>

#include "tier_config.h"

/*
 * To be called when the manager starts: checks the paths of a file tier and removes
 * volumes in them that were left behind.  0, or a negative errno with one sentence
 * for the user in @err.
 */
int tier_file_sweep(const struct tier_config *config, char *err, size_t err_len);

#endif
