/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The real manager with several tiers and one stand-in whose guest does what the
 * test tells it, step by step.  Asserts inside: a call that returns has worked.
 */
#ifndef UFFDMM_TEST_HIER_H
#define UFFDMM_TEST_HIER_H

#include <stdbool.h>
#include <stdint.h>

#include "guest_load.h"
#include "manager_process.h"
#include "peer.h"
#include "standin.h"

#define HIER_MIB ((uint64_t)1 << 20)

enum {
    HIER_END_MS = 60000,
    /* sampled residency may pass the limit by this much */
    HIER_OVERSHOOT = 2 << 20
};

struct hier_options {
    const char *variable; /* NULL: UFFDMM_MANAGER */
    const char *tiers[5]; /* of the command line, NULL last; see manager_start_tiers() */
    const char *arguments[9];
    uint64_t ram;
    uint64_t page_size; /* 0: of 4 KiB */
    uint64_t seed;
    uint32_t nr_shards;  /* 0: one */
    unsigned nr_threads; /* of the guest, 0: two */
    enum load_content content;
    bool impatient; /* see struct standin */
    bool resilient; /* likewise */
    /* what HIER_EXTRA does, in the stand-in's process */
    void (*extra)(struct vmm *v, struct guest_load *l, uint64_t a, uint64_t b);
};

struct hier {
    const struct hier_options *options;
    struct manager manager;
    struct vmm vmm;
    uint32_t commands; /* given so far */
    uint64_t last_steps;
    int64_t last_progress_ms;
    int64_t last_look_ms;
    int64_t awaited_ms; /* since the last command, without time in which we did not run */
    int64_t longest_stall_ms; /* without a step of the guest while one was awaited */
};

enum hier_command {
    HIER_FILL = 1,    /* writes every page */
    HIER_RUN,         /* pattern, milliseconds: touches and verifies */
    HIER_VERIFY,      /* every page */
    HIER_DISCARD_ALL, /* gives every page back */
    HIER_VERIFY_PART, /* first page, number: from one thread */
    HIER_EXTRA,       /* the options' own function */
    HIER_DETACH       /* the region goes, the last one */
};

/* Starts everything; the VM is called "vm". */
void hier_start(struct hier *r, const struct hier_options *o);

/* Ends the stand-in, which must have done all it was told, and the manager. */
void hier_stop(struct hier *r);
/* Ends both whatever they are at, and never mind the manager's status. */
void hier_abandon(struct hier *r);

/* Tells the guest to do something, and does not wait for it. */
void hier_begin(struct hier *r, enum hier_command command, uint64_t a, uint64_t b);
/* Waits until it is done; a guest that saw a wrong byte fails the test. */
void hier_await(struct hier *r, int timeout_ms);
/* True when it is done; notes how long the guest made no step. */
bool hier_done(struct hier *r);
/* Both. */
void hier_do(struct hier *r, enum hier_command command, uint64_t a, uint64_t b);

/* Sends SIGKILL to the stand-in: milliseconds until the manager has ended its worker. */
int hier_kill_vmm(struct hier *r, int timeout_ms);

/* The guest is stuck: no step for this long, and the test goes on. */
void hier_expect_stuck(struct hier *r, int milliseconds);

/* True when the stand-in has found wrong bytes (its process has ended then). */
bool hier_saw_wrong(struct hier *r);

struct peer_stats hier_stats(struct hier *r);
/* Waits until what pick returns is within [least, most]; fails the test with this name. */
void hier_wait_stat(struct hier *r, const char *name,
                    uint64_t (*pick)(const struct peer_stats *s), uint64_t least,
                    uint64_t most, int timeout_ms);

/* Most memory since the start, bytes: guest pages; and these with what pools hold. */
uint64_t hier_resident_max(const struct hier *r);
uint64_t hier_total_max(const struct hier *r);
/* Pages that could be seen after they had been given back. */
uint64_t hier_kept_pages(const struct hier *r);

/* Sets one field of the policy; fails the test when it is refused. */
void hier_set_limit(struct hier *r, uint64_t bytes);
void hier_set_tier_bytes(struct hier *r, unsigned tier, uint64_t bytes);
void hier_set_demote_after(struct hier *r, uint64_t ms);

/* Makes or removes a file in the rig's folder: the triggers of the wrappers. */
void hier_trigger(struct hier *r, const char *name, bool on);

/* In the stand-in's process and in the test: numbers that HIER_EXTRA finds. */
enum { HIER_RESULTS = 2 };
void hier_report(struct vmm *v, unsigned i, uint64_t value);
uint64_t hier_result(const struct hier *r, unsigned i);

/* Prints the statistics, and fails unless nothing was lost and no checksum was wrong. */
void hier_expect_sound(struct hier *r);
void hier_print(struct hier *r);

#endif
