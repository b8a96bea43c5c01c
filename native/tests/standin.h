/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A stand-in for QEMU: one region of guest memory on the real manager, with the
 * duties of QEMU's backend (service thread that answers ZAP, discards by the
 * rule of docs/protocol.md), and the process that holds it.
 */
#ifndef UFFDMM_TEST_STANDIN_H
#define UFFDMM_TEST_STANDIN_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "peer.h"

struct standin {
    int sock;
    int memfd;
    int table_fd;
    int stats_fd;
    int pagemap_fd;
    int uffds[UFFDMM_SHARDS_MAX];
    int arenas[UFFDMM_TIERS_MAX]; /* memory in which tiers keep pages */
    uint32_t nr_arenas;
    uint32_t nr_shards;
    uint32_t id;
    uint8_t *base;
    uint64_t size;
    uint64_t page_size; /* of the region; page numbers below are of 4 KiB all the same */
    struct uffdmm_table_header *table;
    uint64_t table_size;
    _Atomic uint64_t *entries;
    const struct uffdmm_stats *stats;

    pthread_t service;
    bool serving;
    pthread_mutex_t lock; /* sending, and the pending request */
    pthread_cond_t answered;
    uint64_t pending_id; /* 0: none */
    uint64_t last_id;
    struct peer_msg reply;
    _Atomic int link_lost;
    _Atomic uint64_t zaps;
    bool impatient; /* discards do not wait for INSTALL: the control of that rule */
    /* for standin_reconnect(): whom to ask for what */
    char socket[160];
    char vm_name[UFFDMM_NAME_MAX];
    char name[UFFDMM_NAME_MAX];
    _Atomic bool resilient;         /* reconnects when the link is lost, as QEMU does */
    _Atomic int reconnect_after_ms; /* but not at once */
    _Atomic int closing;            /* and gives up */
    _Atomic uint64_t reconnects;
    char error[UFFDMM_TEXT_MAX + 64];
};

/*
 * The whole start sequence, to the point where the worker serves.  0 or a
 * negative errno with the sentence (the manager's own, if it refused) in error.
 */
int standin_open(struct standin *s, const char *socket, const char *vm_name,
                 uint64_t size, uint32_t nr_shards);
/* The same with pages of this size. */
int standin_open_pages(struct standin *s, const char *socket, const char *vm_name,
                       uint64_t size, uint64_t page_size, uint32_t nr_shards);
/* The same with this name of the region and these flags, enum uffdmm_region_flags. */
int standin_open_as(struct standin *s, const char *socket, const char *vm_name,
                    const char *region, uint32_t flags, uint64_t size);
/* Its stages: HELLO and REGION_CREATE; mmap and userfaultfds; REGION_ATTACH. */
int standin_create(struct standin *s, const char *socket, const char *vm_name,
                   uint64_t size, uint32_t nr_shards);
int standin_map(struct standin *s);
int standin_attach(struct standin *s);

/*
 * Hands the region over anew, once: RECONNECT with all descriptors.  0 with a new s->sock, or
 * a negative errno with the sentence in error.
 */
int standin_reconnect(struct standin *s);

/* REGION_DETACH, then unmaps and closes everything.  0 or a negative errno. */
int standin_detach(struct standin *s);
/* Unmaps and closes everything without a word to the manager. */
void standin_close(struct standin *s);

/*
 * Gives pages back as QEMU does: entries, punch, message.  0 or a negative errno; -EINVAL
 * for a part of a huge page.
 */
int standin_discard(struct standin *s, uint64_t first_pfn, uint64_t nr_pages);

/* A request on the region's own connection, while the service thread runs. */
int standin_request(struct standin *s, uint32_t type, const void *payload,
                    uint32_t length);

/* The same with the reply, whose descriptors are the caller's. */
int standin_ask(struct standin *s, uint32_t type, const void *payload, uint32_t length,
                struct peer_msg *reply);

/* State of a page in the table, enum uffdmm_page_state; its tier. */
unsigned standin_page_state(const struct standin *s, uint64_t pfn);
unsigned standin_page_tier(const struct standin *s, uint64_t pfn);
/* Number of pages in a state. */
uint64_t standin_count(const struct standin *s, unsigned state);

/* ---- the process ---------------------------------------------------------- */

/* Shared between the test and the process. */
struct vmm_report {
    _Atomic uint32_t phase;   /* the process tells how far it is */
    _Atomic uint32_t command; /* the test tells how far it may go */
    _Atomic uint64_t steps;
    _Atomic uint64_t wrong; /* pages or counters that were not as expected */
    _Atomic uint64_t user[8];
    char error[512];
};

struct vmm {
    pid_t pid;
    struct vmm_report *report;
    const char *socket;
};

/* Runs body in a new process; it ends the process by returning. */
void vmm_start(struct vmm *v, const char *socket,
               void (*body)(struct vmm *v, const void *arg), const void *arg);
/* In the process: ends it with this sentence as its error. */
_Noreturn void vmm_fail(struct vmm *v, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* In the process: fails unless the stand-in call went well. */
void vmm_check(struct vmm *v, const struct standin *s, int ret);
/* In the process, where cmocka's assertions cannot be used. */
#define VMM_EXPECT(v, condition)                                                      \
    do {                                                                              \
        if (!(condition)) {                                                           \
            vmm_fail((v), "%s:%d: %s does not hold", __FILE__, __LINE__, #condition); \
        }                                                                             \
    } while (0)
void vmm_set_phase(struct vmm *v, uint32_t phase);
void vmm_await_command(struct vmm *v, uint32_t command);

/* In the test: waits until the process has reached a phase; fails the test if it ends. */
void vmm_await_phase(struct vmm *v, uint32_t phase, int timeout_ms);
void vmm_command(struct vmm *v, uint32_t command);
/* In the test: waits for the end, which must be a good one. */
void vmm_join(struct vmm *v, int timeout_ms);
void vmm_kill(struct vmm *v);

#endif
