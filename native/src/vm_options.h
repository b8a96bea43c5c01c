/* SPDX-License-Identifier: GPL-2.0-or-later */
/* --vm: what is different for one VM. */
#ifndef UFFDMM_VM_OPTIONS_H
#define UFFDMM_VM_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

#include "tier_config.h"
#include "tier_options.h"

/* What a VM has different in one tier. */
struct vm_tier_options {
    char tier[UFFDMM_NAME_MAX];
    uint64_t capacity; /* 0: as configured for all */
    bool has_codec;
    enum tier_codec codec;
};

struct vm_options {
    char name[UFFDMM_NAME_MAX];
    bool has_limit;           /* else the default */
    uint64_t limit_bytes;     /* 0: none, or see limit_percent */
    unsigned limit_percent;   /* of its RAM; 0: see limit_bytes */
    unsigned readahead_pages; /* 0: the default */
    bool has_demote_after;    /* else the default */
    uint64_t demote_after_ns; /* 0: never */
    bool has_on_lost;         /* else the default */
    bool poison_lost;
    struct vm_tier_options tiers[TIER_OPTIONS_MAX];
    unsigned nr_tiers;
};

/*
 * NAME[,limit=SIZE|N%|none][,readahead=N][,demote-after=TIME][,on-lost=wait|poison]
 * [,TIER.capacity=SIZE][,TIER.codec=lz4|zstd] of --vm.  False after an error was printed; *@out is then not
 * to be used.
 */
bool vm_options_parse(struct vm_options *out, const char *text);

/*
 * What only shows in the whole: a VM named twice, overrides for tiers that
 * do not exist or have no such setting.  False after an error was printed.
 */
bool vm_options_check(const struct vm_options *vms, unsigned nr,
                      const struct tier_config *tiers, unsigned nr_tiers);

/* The options of the VM @name, or NULL. */
const struct vm_options *vm_options_find(const struct vm_options *vms, unsigned nr,
                                         const char *name);

/* Changes a copy of the configuration of a tier to what @vm has different; NULL: nothing. */
void vm_options_apply(const struct vm_options *vm, struct tier_config *tier);

#endif
