/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What every tier has to do, as one group of tests that runs against any of them. */
#ifndef UFFDMM_TEST_TIER_CONTRACT_H
#define UFFDMM_TEST_TIER_CONTRACT_H

#include "tier_config.h"

/*
 * Runs the tests against the tier that @config describes, which must have room for
 * 40 MiB of pages; its capacity and faults are not used.  @name is that of the group in
 * the output.  Returns how many tests failed, for the program's exit status.
 */
int tier_contract(const char *name, const struct tier_config *config);

#endif
