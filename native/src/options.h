/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The command line of uffdmm-manager. */
#ifndef UFFDMM_OPTIONS_H
#define UFFDMM_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "sandbox.h"
#include "tier_options.h"
#include "vm_options.h"

#define OPTIONS_UIDS_MAX 16
#define OPTIONS_VMS_MAX 64

struct options {
    const char *socket_path;                    /* or NULL */
    int fd;                                     /* inherited listening socket, or -1 */
    struct tier_config tiers[TIER_OPTIONS_MAX]; /* in order, without the zero tier */
    unsigned nr_tiers;
    struct vm_options vms[OPTIONS_VMS_MAX];
    unsigned nr_vms;
    uint64_t demote_after_ns; /* 0: never */
    bool poison_lost;         /* pages that cannot be had for lost_after_ns */
    uint64_t lost_after_ns;   /* 0: never */
    uint64_t limit_bytes;     /* default limit of a VM, 0: none */
    unsigned limit_percent;   /* of its RAM; 0: see limit_bytes */
    unsigned readahead_pages;
    uint64_t spin_max_ns;
    bool tracking;
    uid_t uids[OPTIONS_UIDS_MAX]; /* besides root and our own */
    int nr_uids;
    struct sandbox_config sandbox; /* of workers */
};

enum options_outcome { OPTIONS_RUN, OPTIONS_EXIT_OK, OPTIONS_EXIT_USAGE };

/*
 * Parses the command line.  Prints what --help, --version and
 * --print-capabilities ask for to stdout, and errors to stderr.
 */
enum options_outcome options_parse(struct options *o, int argc, char **argv);

/* "512M", "1GiB", "4096" -> bytes.  False when it is no size. */
bool options_parse_size(const char *text, uint64_t *bytes);

#endif
