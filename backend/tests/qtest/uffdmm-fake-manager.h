/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A memory manager for memory-backend-external, in a thread of a test
 *
 * It serves every fault by a page whose bytes tell its number, keeps no
 * limit, and misbehaves on request.
 */

#ifndef UFFDMM_FAKE_MANAGER_H
#define UFFDMM_FAKE_MANAGER_H

#include "system/uffdmm-protocol.h"

#define FAKE_PAGE_SIZE 4096
#define FAKE_HUGE_SIZE 2097152
#define FAKE_REGIONS   4
#define FAKE_TIERS     3
#define FAKE_SHARED_TIER 2 /* that of the file, named disk */

typedef enum FakeFault {
    FAKE_OK,
    FAKE_REFUSE_PEER, /* closes the connection with a sentence at once */
    FAKE_MAGIC,       /* HELLO: answered by something else */
    FAKE_VERSION,     /* HELLO: answered by a future version */
    FAKE_REFUSE,      /* REGION_CREATE: error with a sentence */
    FAKE_SILENT,      /* HELLO: never answered */
    FAKE_FEW_FDS,     /* REGION_CREATE: without statistics */
    FAKE_SHORT_MEMFD, /* REGION_CREATE: memory smaller than asked for */
    FAKE_UNSEALED,    /* REGION_CREATE: memory that can shrink */
    FAKE_TABLE,       /* REGION_CREATE: table of another size */
    FAKE_PINS,        /* REGION_CREATE: table that ends before the pins do */
    FAKE_PAGES,       /* REGION_CREATE: memory not on hugetlbfs */
    FAKE_REFUSE_ATTACH,
} FakeFault;

typedef struct FakeRegion {
    int sock; /* -1: unused */
    int memfd;
    int table_fd;
    int pagemap;
    int uffd[UFFDMM_SHARDS_MAX];
    uint32_t nr_shards;
    uint32_t id;
    uint64_t base;
    uint64_t size;
    uint64_t page_size;
    uint64_t faults[UFFDMM_SHARDS_MAX];
    struct uffdmm_table_header *table;
    uint64_t table_size;
    uint32_t flags; /* of REGION_CREATE */
    uint64_t *entries;
    uint64_t *records;
    uint32_t *pins;

    /* migration, see uffdmm-fake-migration.c */
    struct uffdmm_set_header *set; /* mapped while there is a session */
    struct uffdmm_set_page *elements;
    uint8_t *bounce;
    unsigned starts;
    uint32_t start_flags; /* MIG_START, the last one */
    unsigned reads;      /* MIG_READ */
    uint64_t read_pages; /* whose content went into the bounce buffer */
    unsigned sent;       /* MIG_END */
    unsigned failed;     /* MIG_END */
    unsigned installs;
    struct uffdmm_mig_install install; /* the last one */
    char name[UFFDMM_NAME_MAX];
} FakeRegion;

typedef struct FakeManager {
    char *dir;
    char *path; /* of the socket */
    char *bios; /* of a file that machines take for a firmware */
    int listener;
    int wake[2];
    GThread *thread;
    struct uffdmm_stats *stats;
    struct uffdmm_tier_stats *tiers[FAKE_TIERS];
    int stats_fd;

    GMutex lock;
    GCond changed;
    /* all below: lock */
    bool stop;
    FakeFault fault;
    bool hold_faults;       /* leave userfaultfds alone */
    bool hold_detach;       /* do not answer REGION_DETACH */
    unsigned refuse_reconnects;
    unsigned nr_arenas; /* come with REGION_CREATE, and with RECONNECT */
    char *refuse_policy;    /* answer to SET_POLICY */
    /* entry that all pages have from REGION_CREATE on */
    uint64_t (*initial_entry)(uint64_t pfn);
    FakeRegion regions[FAKE_REGIONS];
    unsigned connects;
    unsigned reconnects;
    unsigned reconnects_refused;
    unsigned detaches;
    unsigned policies;
    unsigned arenas_back; /* that came with RECONNECT, with their content */
    unsigned zap_replies;
    int32_t zap_status;
    struct uffdmm_hello hello;
    struct uffdmm_policy policy;
    GArray *discards; /* of struct uffdmm_range */

    /* migration, of all regions */
    uint64_t session;        /* armed, or 0 */
    bool hold_reads;         /* do not answer MIG_READ */
    struct FakeManager *source; /* whose S MIG_INSTALL takes */
} FakeManager;

/* Messages of a migration; false for any other type.  Under the lock. */
bool fake_migration_message(FakeManager *m, FakeRegion *r,
                            const struct uffdmm_msg_header *h,
                            const void *payload);
void fake_migration_close(FakeRegion *r);

/* Count and digest of S, from its elements */
void fake_set_digest(const FakeRegion *r, uint64_t *count, uint64_t *digest);

/* For the messages above */
int fake_memfd(const char *name, uint64_t size, int seals);
void fake_reply(int sock, const struct uffdmm_msg_header *to,
                const void *payload, uint32_t length, const int *fds,
                uint32_t nr_fds);
void fake_reply_error(int sock, const struct uffdmm_msg_header *to,
                      int status, const char *text);

FakeManager *fake_manager_new(void);
void fake_manager_free(FakeManager *m);

/* Wait until the condition holds; m->lock is held meanwhile in the test. */
#define fake_manager_wait(m, condition)                                     \
    do {                                                                    \
        gint64 until = g_get_monotonic_time() + 20 * G_TIME_SPAN_SECOND;    \
        g_mutex_lock(&(m)->lock);                                           \
        while (!(condition)) {                                              \
            g_assert_true(g_cond_wait_until(&(m)->changed, &(m)->lock,      \
                                            until));                        \
        }                                                                   \
        g_mutex_unlock(&(m)->lock);                                         \
    } while (0)

/* Close all connections, as if the manager had died; new ones are accepted. */
void fake_manager_drop(FakeManager *m);

/* Send ZAP, wait for the reply, return its status. */
int32_t fake_manager_zap(FakeManager *m, unsigned region, uint32_t region_id,
                         uint64_t offset, uint64_t length);

/* Send ZAP so often without looking at replies; m->zap_replies counts them. */
void fake_manager_zap_burst(FakeManager *m, unsigned region, unsigned count);

/* Let the held faults go. */
void fake_manager_release_faults(FakeManager *m);

/* What a page looks like that the manager has put in place. */
uint8_t fake_manager_byte(uint64_t pfn);

#endif
