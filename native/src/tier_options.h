/* SPDX-License-Identifier: GPL-2.0-or-later */
/* --tier and --store: the stores of the manager, in order. */
#ifndef UFFDMM_TIER_OPTIONS_H
#define UFFDMM_TIER_OPTIONS_H

#include <stdbool.h>

#include "tier_config.h"

/* The zero tier is always there and not configured. */
#define TIER_OPTIONS_MAX (UFFDMM_TIERS_MAX - 1)

/*
 * NAME=TYPE[,key=value]... of --tier.  False after an error was printed; *@out is
 * then not to be used.
 */
bool tier_options_parse(struct tier_config *out, const char *text);

/* file:DIR[,size=SIZE] of --store: the file tier named "file". */
bool tier_options_parse_store(struct tier_config *out, const char *text);

/*
 * What only shows in the whole list: none, too many, a name or a path given
 * twice.  False after an error was printed.
 */
bool tier_options_check(const struct tier_config *tiers, unsigned nr);

/* "lz4" or "zstd". */
bool tier_options_codec(const char *text, enum tier_codec *codec);

#endif
