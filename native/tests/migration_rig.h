/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Two real managers that share a store, a stand-in on each, and a test that plays
 * QEMU's hook (which pages are skipped) and the control plane (which brings their
 * locations over).  Asserts inside: a call that returns has worked.
 */
#ifndef UFFDMM_TEST_MIGRATION_RIG_H
#define UFFDMM_TEST_MIGRATION_RIG_H

#include <stdbool.h>
#include <stdint.h>

#include "manager_process.h"
#include "standin.h"

enum { RIG_RAM = 32 << 20, RIG_PAGES = RIG_RAM / 4096, RIG_SESSION = 0x1122 };

struct rig {
    char shared[160];      /* folder of the store, "" for an export */
    char tier[256];        /* the shared tier, as an option */
    const char *target_vm; /* name of the VM there, NULL: "vm", as on the source */
    bool target_bare;      /* it has the shared tier and no other */
    const char *variable;  /* which manager, NULL: UFFDMM_MANAGER */
    struct manager source_manager, target_manager;
    struct standin source, target;
    bool source_open, target_open;
    uint32_t version[RIG_PAGES]; /* what the source's guest wrote last, 0: nothing */

    /* the session on the source, as QEMU has it */
    struct uffdmm_mig_start_reply session;
    struct uffdmm_set_header *set;
    struct uffdmm_set_page *pages;
    const uint8_t *bounce;
    struct uffdmm_set_page sent[RIG_PAGES]; /* what the destination has */
    uint64_t skipped, copied, bypassed;     /* by the hook */
    pid_t server;                           /* of an export, 0: none */
};

/* A store in a folder, or an export of nbdkit; false when there is no nbdkit. */
void rig_init(struct rig *g);
bool rig_init_nbd(struct rig *g);
void rig_end(struct rig *g);

/* The source and its guest; the destination, which waits for a migration. */
void rig_start_source(struct rig *g);
void rig_start_target(struct rig *g);
void rig_stop_source(struct rig *g);
void rig_stop_target(struct rig *g);

/* Guest pages: words that follow from page and version, some of them zero or one word. */
void rig_write(struct rig *g, struct standin *s, uint64_t pfn, uint32_t version);
bool rig_page_is(const struct standin *s, uint64_t pfn, uint32_t version);
/* Writes every page of the source, most of which go out. */
void rig_fill(struct rig *g, uint32_t version);
/* All pages of a side are what the source wrote last. */
void rig_expect_all(struct rig *g, const struct standin *s);

/* One request of a control client; the reply's status. */
int rig_control(const struct rig *g, const struct manager *m, uint32_t type,
                const void *payload, uint32_t length, int fd, struct peer_msg *reply);
struct uffdmm_mig_status_reply rig_status(const struct rig *g, const struct manager *m);

/* MIG_ARM with the shared tier, MIG_START. */
void rig_begin(struct rig *g);
/* MIG_PREPARE, as the control plane of the source tells; the status. */
int rig_prepare(struct rig *g);
/* What QEMU does with a page whose dirty bit it has cleared. */
void rig_hook(struct rig *g, uint64_t pfn);
/* Without sending content: true when the page went into S. */
bool rig_skip(struct rig *g, uint64_t pfn);
/* MIG_EXPORT, difference to what was sent, MIG_IMPORT, MIG_ACK. */
void rig_stream(struct rig *g);
/* MIG_IMPORT of these; the status. */
int rig_import(struct rig *g, const struct uffdmm_mig_location *l, uint64_t nr);
/* Count and digest of S as protocol.h has it. */
void rig_sum(const struct rig *g, uint64_t *count, uint64_t *digest);
int rig_install(struct rig *g, uint64_t count, uint64_t digest, uint32_t timeout_ms);
int rig_source_end(struct rig *g, uint32_t outcome);
int rig_release(struct rig *g, uint64_t *epoch);
int rig_take(struct rig *g, uint64_t epoch);

/* Slots taken in the shared tier, and slots that entries name there, agree. */
void rig_expect_slots(const struct rig *g, const struct manager *m,
                      const struct standin *s, unsigned tier);
/* Pages of S whose slot the entry of another page names: slots that were used again. */
uint64_t rig_reused(const struct rig *g);

#endif
