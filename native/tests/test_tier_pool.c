/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The contract of tiers, against the pool with each codec. */
#include <stddef.h>

#include "tier_contract.h"
#include "tier_config.h"

int main(void)
{
    struct tier_config lz4 = {.name = "pool", .type = UFFDMM_TIER_POOL};
    struct tier_config zstd = {
        .name = "pool", .type = UFFDMM_TIER_POOL, .codec = TIER_CODEC_ZSTD};

    return tier_contract("pool lz4", &lz4) + tier_contract("pool zstd", &zstd);
}
