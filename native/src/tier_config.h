/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the command line says about tiers; see tier_options.c for the syntax. */
#ifndef UFFDMM_TIER_CONFIG_H
#define UFFDMM_TIER_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "uffdmm/protocol.h"

#define TIER_PATHS_MAX 8

enum tier_codec { TIER_CODEC_LZ4, TIER_CODEC_ZSTD };

enum tier_delay_shape {
    TIER_DELAY_FIXED,       /* always the value */
    TIER_DELAY_UNIFORM,     /* 0 .. twice the value */
    TIER_DELAY_EXPONENTIAL, /* with the value as mean */
};

/* What the wrappers `error:` and `delay:` do to transfers.  Pages are never damaged. */
struct tier_faults {
    double error_rate; /* 0..1, of the transfers chosen below */
    int error_errno;   /* positive */
    bool error_reads, error_writes;
    char error_trigger[256]; /* if not empty: only while this file exists */
    uint64_t delay_read_ns, delay_write_ns;
    enum tier_delay_shape delay_shape;
    char delay_trigger[256];
};

struct tier_config {
    char name[UFFDMM_NAME_MAX];
    uint32_t type; /* enum uffdmm_tier_type */
    bool shared;
    uint64_t capacity; /* bytes a VM may store, 0: as much as its RAM needs */
    struct tier_faults faults;

    /* pool */
    enum tier_codec codec;
    int level;         /* zstd */
    bool inside_limit; /* its memory counts against the VM's limit */

    /* file */
    char paths[TIER_PATHS_MAX][1024]; /* directories or block devices */
    unsigned nr_paths;

    /* nbd */
    char uri[1024]; /* {vm} stands for the name of the VM */
    unsigned connections;
};

#endif
