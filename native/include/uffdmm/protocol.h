/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Wire protocol and shared-memory layouts between QEMU, the uffdmm manager
 * and its control clients.  docs/protocol.md is the prose that goes with it.
 *
 * This one header is compiled by the manager, copied into the QEMU series and
 * parsed by the Python package through cffi.  Hence its rules: fixed-size
 * little-endian fields, natural alignment with explicit padding, constants as
 * enumerators, no inline functions, no includes but <stdint.h>.
 *
 * Conversation: a UNIX stream socket.  Every message is one header followed by
 * `length` payload bytes; descriptors travel as SCM_RIGHTS with the first byte
 * of the header, and `nr_fds` says how many.  A reply carries the type of its
 * request with UFFDMM_MSG_REPLY set, the same request id, and a status: 0, or
 * a negative errno, in which case the payload is a struct uffdmm_error.  A peer
 * that is refused before its first message was read (wrong user, too many
 * connections) gets such an error with request id 0, as a reply to HELLO.
 * Strings are NUL-terminated inside their arrays and NUL-padded.
 */
#ifndef UFFDMM_PROTOCOL_H
#define UFFDMM_PROTOCOL_H

#ifndef UFFDMM_CFFI
#include <stdint.h>
#endif

enum uffdmm_limits {
    UFFDMM_MAGIC = 0x4d4d4455, /* "UDMM" */
    UFFDMM_VERSION = 3,        /* what this header describes */
    UFFDMM_MIN_VERSION = 3,    /* oldest peer that still understands it */
    UFFDMM_NAME_MAX = 64,      /* bytes, with the NUL */
    UFFDMM_TEXT_MAX = 256,     /* bytes, with the NUL */
    UFFDMM_PAYLOAD_MAX = 16384,
    UFFDMM_SHARDS_MAX = 8,   /* userfaultfds of one region */
    UFFDMM_FDS_MAX = 16,     /* descriptors of one message */
    UFFDMM_REGIONS_MAX = 32, /* regions of one VM */
    UFFDMM_TIERS_MAX = 8     /* tiers of one VM, the zero tier among them */
};

enum uffdmm_msg_type {
    UFFDMM_MSG_HELLO = 1,         /* anybody -> manager */
    UFFDMM_MSG_REGION_CREATE = 2, /* QEMU -> worker */
    UFFDMM_MSG_REGION_ATTACH = 3, /* QEMU -> worker */
    UFFDMM_MSG_REGION_DETACH = 4, /* QEMU -> worker */
    UFFDMM_MSG_DISCARD = 5,       /* QEMU -> worker, no reply */
    UFFDMM_MSG_ZAP = 6,           /* worker -> QEMU */
    UFFDMM_MSG_QUERY = 7,         /* QEMU or control -> worker */
    UFFDMM_MSG_SET_POLICY = 8,    /* QEMU or control -> worker */
    UFFDMM_MSG_LIST = 9,          /* control -> acceptor */
    UFFDMM_MSG_RECONNECT = 10,    /* QEMU -> worker */
    UFFDMM_MSG_REGIONS = 11,      /* control -> worker */
    UFFDMM_MSG_EVICT = 12,        /* control -> worker */
    UFFDMM_MSG_PREFETCH = 13,     /* control -> worker */
    UFFDMM_MSG_MIG_ARM = 32,      /* control -> worker, on the source */
    UFFDMM_MSG_MIG_START = 33,    /* QEMU -> worker, on the source */
    UFFDMM_MSG_MIG_READ = 34,     /* QEMU -> worker, on the source */
    UFFDMM_MSG_MIG_END = 35,      /* QEMU or control -> worker */
    UFFDMM_MSG_MIG_STATUS = 36,   /* control -> worker */
    UFFDMM_MSG_MIG_EXPORT = 37,   /* control -> worker, on the source */
    UFFDMM_MSG_MIG_ACK = 38,      /* control -> worker, on the source */
    UFFDMM_MSG_MIG_RELEASE = 39,  /* control -> worker, on the source */
    UFFDMM_MSG_MIG_PREPARE = 40,  /* control -> worker, destination */
    UFFDMM_MSG_MIG_IMPORT = 41,   /* control -> worker, destination */
    UFFDMM_MSG_MIG_INSTALL = 42,  /* QEMU -> worker, on the destination */
    UFFDMM_MSG_MIG_TAKE = 43,     /* control -> worker, destination */
    UFFDMM_MSG_MIG_DEPOSIT = 44,  /* control -> worker, on the source */
    UFFDMM_MSG_MIG_COLLECT = 45,  /* control -> worker, destination */
    UFFDMM_MSG_REPLY = 0x8000     /* or-ed into the type of a reply */
};

struct uffdmm_msg_header {
    uint32_t magic;
    uint16_t version;
    uint16_t min_version;
    uint32_t type;
    uint32_t length;     /* payload bytes, at most UFFDMM_PAYLOAD_MAX */
    uint64_t request_id; /* chosen by the sender of the request */
    int32_t status;      /* replies: 0 or a negative errno */
    uint32_t nr_fds;
};

/* Payload of every reply whose status is not 0: one sentence for the user. */
struct uffdmm_error {
    char text[UFFDMM_TEXT_MAX];
};

enum uffdmm_role {
    UFFDMM_ROLE_QEMU = 1,   /* offers one region of a VM */
    UFFDMM_ROLE_CONTROL = 2 /* reads statistics, changes policy */
};

/*
 * HELLO, first message of every connection.  A QEMU connection carries one
 * region; several connections of one process with one VM name share a worker.
 * A control connection with an empty vm_name talks to the acceptor (LIST),
 * else to the worker of that VM (QUERY, SET_POLICY).
 */
struct uffdmm_hello {
    uint32_t role; /* enum uffdmm_role */
    uint32_t pad;
    uint64_t features; /* none defined yet, must be 0 */
    uint8_t uuid[16];  /* of the VM, all zero when it has none */
    char vm_name[UFFDMM_NAME_MAX];
    char agent[UFFDMM_NAME_MAX]; /* program and version, for the log */
};

struct uffdmm_hello_reply {
    uint64_t features;
    uint32_t pid; /* of the process that answers */
    uint32_t pad;
    char agent[UFFDMM_NAME_MAX];
};

/*
 * REGION_CREATE.  The reply carries three descriptors or more: the sealed
 * memfd of the guest memory, the memfd of the page-state table, a read-only
 * memfd with the statistics of the VM, and then the arenas of its tiers that
 * keep pages in memory.  QEMU does nothing with an arena but keep it open and
 * hand it over with RECONNECT, so that the pages in it outlive the worker.
 */
struct uffdmm_region_create {
    uint64_t size;      /* bytes, a multiple of page_size */
    uint64_t page_size; /* bytes: 4096, or 2097152 for hugetlbfs */
    uint32_t nr_shards; /* 1..UFFDMM_SHARDS_MAX */
    uint32_t flags;     /* or of enum uffdmm_region_flags */
    char name[UFFDMM_NAME_MAX];
};

enum uffdmm_region_flags {
    /*
     * QEMU waits for a migration: the volume of a shared tier that the same VM
     * holds on its old host is no reason to refuse, but left alone until
     * MIG_PREPARE, or until it is given up there.
     */
    UFFDMM_CREATE_INCOMING = 1
};

struct uffdmm_region_create_reply {
    uint32_t region_id;
    uint32_t nr_shards;
    uint64_t table_size; /* bytes to map of the table memfd */
    uint64_t stats_size; /* bytes to map of the statistics memfd */
};

/*
 * REGION_ATTACH.  Descriptors: /proc/self/pagemap opened by QEMU, then one
 * non-blocking userfaultfd a shard.  Shard i covers the pages
 * [i * n / nr_shards, (i + 1) * n / nr_shards) of the n pages of the region
 * and is registered for MISSING and WP.  With the reply the worker serves.
 */
struct uffdmm_region_attach {
    uint32_t region_id;
    uint32_t nr_shards;
    uint64_t base; /* virtual address of the region in QEMU */
    uint64_t size; /* bytes */
};

/* REGION_DETACH: the region is unmapped in QEMU; its slots are freed. */
struct uffdmm_region_detach {
    uint32_t region_id;
    uint32_t pad;
};

/*
 * DISCARD and ZAP name a page-aligned range of a region by byte offset.
 * DISCARD comes after QEMU has set the entries DISCARDED and punched the hole.
 * ZAP asks the service thread for MADV_DONTNEED on its shared mapping, which
 * drops page-table entries and no data; its reply echoes the payload.
 */
struct uffdmm_range {
    uint32_t region_id;
    uint32_t pad;
    uint64_t generation; /* ZAP: echoed; DISCARD: 0 */
    uint64_t offset;     /* bytes */
    uint64_t length;     /* bytes, not 0 */
};

/* QUERY has no payload.  The reply carries the statistics memfd, read-only. */
struct uffdmm_query_reply {
    uint64_t stats_size;
};

enum uffdmm_policy_field {
    UFFDMM_POLICY_LIMIT = 1,      /* limit_bytes */
    UFFDMM_POLICY_READAHEAD = 2,  /* readahead_pages */
    UFFDMM_POLICY_TIERS = 4,      /* tier_bytes[i], bit i of tier_mask */
    UFFDMM_POLICY_DEMOTE = 8,     /* demote_after_ms */
    UFFDMM_POLICY_MIN = 16,       /* min_bytes */
    UFFDMM_POLICY_MAX = 32,       /* max_bytes */
    UFFDMM_POLICY_SHARES = 64,    /* shares */
    UFFDMM_POLICY_PRIORITY = 128, /* priority */
    UFFDMM_POLICY_TRACK = 256,    /* track_permille */
    UFFDMM_POLICY_OPT_OUT = 512   /* opt_out */
};

/* SET_POLICY changes the fields named; the reply carries all in force. */
struct uffdmm_policy {
    uint32_t fields;          /* or of enum uffdmm_policy_field */
    uint32_t readahead_pages; /* largest window, 1 (off) .. 64 */
    uint64_t limit_bytes;     /* resident memory of the whole VM, 0: no limit */
    uint32_t tier_mask;
    uint32_t pad;
    uint64_t tier_bytes[UFFDMM_TIERS_MAX]; /* most to be stored, 0: no bound */
    uint64_t demote_after_ms; /* unused pages go one tier down then, 0: never */

    /*
     * For the control plane, which chooses limit_bytes between the two bounds;
     * the worker keeps and shows them, and refuses min_bytes > max_bytes.
     */
    uint64_t min_bytes;
    uint64_t max_bytes;      /* 0: no bound */
    uint32_t shares;         /* 1..10000, weight among the VMs of the host */
    uint32_t priority;       /* 0..100: higher ones are served first */
    uint32_t opt_out;        /* 1: the control plane leaves this VM alone */
    uint32_t track_permille; /* of a CPU, most for access tracking; 0: off */
};

/*
 * REGIONS: { index }, which regions of a VM there are.  The reply carries the
 * page-state table of that region, read-only; -ENOENT when there are no more.
 */
struct uffdmm_regions {
    uint32_t index; /* 0..UFFDMM_REGIONS_MAX - 1 */
    uint32_t pad;
};

struct uffdmm_regions_reply {
    uint32_t region_id;
    uint32_t next; /* index of the one that follows, 0: it is the last */
    uint64_t size; /* bytes */
    uint64_t page_size;
    uint64_t table_size; /* bytes to map of the table memfd */
    char name[UFFDMM_NAME_MAX];
};

/*
 * EVICT puts out pages until `bytes` less than now are resident, PREFETCH
 * brings in at most `bytes` of what is stored, youngest ages first, and never
 * more than there is room for below the limit.  Both are answered at once and
 * done in the background; a later one replaces an earlier one.  PREFETCH may
 * carry one sealed memfd of `nr_pages` uint64_t page numbers of `region_id`,
 * at most 1 Mi of them, to be brought in in this order.
 */
struct uffdmm_move {
    uint64_t bytes;
    uint32_t region_id; /* with a descriptor only */
    uint32_t nr_pages;  /* 0: without a descriptor */
};

/* LIST: { start }; the reply is an array of these, as many as fit. */
struct uffdmm_list {
    uint32_t start; /* index of the first VM wanted */
    uint32_t pad;
};

struct uffdmm_list_entry {
    char vm_name[UFFDMM_NAME_MAX];
    uint32_t worker_pid; /* 0: it has died, QEMU still runs */
    uint32_t qemu_pid;
};

/*
 * RECONNECT hands a running region to a new worker: the payload and
 * descriptors of REGION_CREATE's reply and of REGION_ATTACH in one.
 * Descriptors: guest memfd, table memfd, pagemap, userfaultfds, arenas.
 */
struct uffdmm_reconnect {
    struct uffdmm_region_create create;
    struct uffdmm_region_attach attach;
};

/* ------------------------------------------------------------------------ */
/* Migration by location: docs/migration.md tells the whole of it             */

/*
 * The set S of a session, one memfd a region, written by the QEMU of the source
 * alone: this header (one page), then at pages_offset one element a page of the
 * region.  An element with entry 0 is not in S.  QEMU writes `record` before
 * `entry`, and reads the page-state entry once more after both, so that a slot
 * which the worker frees meanwhile is either seen here or not named here.
 */
enum uffdmm_set_consts {
    UFFDMM_SET_MAGIC = 0x4d534455, /* "UDSM" */
    UFFDMM_SET_VERSION = 1
};

struct uffdmm_set_header {
    uint32_t magic;
    uint32_t version;
    uint64_t session;
    uint64_t nr_pages;
    uint64_t pages_offset; /* bytes */
    uint64_t changes;      /* elements written so far, by QEMU */
    uint64_t acked;        /* of those: known there; by the worker */
};

/* What the page was when it was skipped: STORED or EMPTY, nothing else. */
struct uffdmm_set_page {
    uint64_t entry;  /* as in the page-state table, flags cleared; 0: none */
    uint64_t record; /* likewise; EMPTY: 0 */
};

/*
 * Digest of S: the sum over its pages, modulo 2^64, of
 * mix(mix(mix(pfn + 1) ^ v) ^ record), where v is entry >> 12 (generation and
 * slot) of a page with a slot, 0 of one in the zero tier and ~0 of an EMPTY
 * one.  mix(x) is the finalizer of splitmix64: x ^= x >> 30,
 * x *= 0xbf58476d1ce4e5b9, x ^= x >> 27, x *= 0x94d049bb133111eb,
 * x ^= x >> 31.  The tier is left out: its number may differ between hosts.
 */

/*
 * MIG_ARM: the next migration of this VM is session `session`, of which the
 * pages in tier `tier` go by location; 0 disarms.
 * Refused while one is under way.
 */
struct uffdmm_mig_arm {
    uint64_t session; /* not 0, chosen at random by the control plane */
    uint32_t tier;    /* of a shared one; 0: only EMPTY and zero pages */
    uint32_t pad;
};

/*
 * MIG_START, one for each region: the migration begins, S is empty.  The reply
 * carries the memfd of S and a bounce buffer for MIG_READ; an older session of
 * this region is dropped.  Without MIG_ARM the session is 0: no page goes by
 * location, and there is no S, but MIG_READ works.
 */
struct uffdmm_mig_start {
    uint32_t region_id;
    uint32_t tid;   /* of the thread that migrates; its faults count apart */
    uint32_t flags; /* or of enum uffdmm_mig_start_flags */
    uint32_t pad;
};

enum uffdmm_mig_start_flags {
    /* as if nothing was armed; what is armed waits for a later migration */
    UFFDMM_MIG_BY_CONTENT = 1
};

struct uffdmm_mig_start_reply {
    uint64_t session;     /* 0: by content only */
    uint64_t set_size;    /* bytes of S, 0 without */
    uint64_t bounce_size; /* bytes */
    uint32_t tier;        /* as armed */
    uint32_t pad;
};

/*
 * MIG_READ: the content of pages that are STORED, without bringing them in.
 * Page first + i goes to byte i * page_size of the bounce buffer; bit i of
 * `valid` tells that it did, entries[i] which entry it was read from.
 */
enum { UFFDMM_MIG_READ_MAX = 64 };

struct uffdmm_mig_read {
    uint32_t region_id;
    uint32_t nr; /* 1..UFFDMM_MIG_READ_MAX */
    uint64_t first;
};

struct uffdmm_mig_read_reply {
    uint64_t valid;
    uint64_t entries[UFFDMM_MIG_READ_MAX];
};

enum uffdmm_mig_outcome {
    UFFDMM_MIG_FAILED = 1, /* the guest stays here: frozen slots are freed */
    UFFDMM_MIG_SENT = 2    /* all has left, the guest is stopped: keep all */
};

/* MIG_END; session 0 stands for that of MIG_START.  FAILED may follow SENT. */
struct uffdmm_mig_end {
    uint64_t session;
    uint32_t outcome; /* enum uffdmm_mig_outcome */
    uint32_t pad;
};

enum uffdmm_mig_stage {
    UFFDMM_MIG_IDLE = 0,
    UFFDMM_MIG_ARMED = 1,      /* source */
    UFFDMM_MIG_RUNNING = 2,    /* source: MIG_START has come */
    UFFDMM_MIG_ALL_SENT = 3,   /* source: MIG_END with SENT */
    UFFDMM_MIG_RELEASED = 4,   /* source: the volume is the destination's */
    UFFDMM_MIG_PREPARED = 16,  /* destination */
    UFFDMM_MIG_INSTALLED = 17, /* destination: S is in the table */
    UFFDMM_MIG_TAKEN = 18      /* destination: it owns the volume */
};

/* MIG_STATUS has no payload. */
struct uffdmm_mig_status_reply {
    uint64_t session;
    uint32_t stage; /* enum uffdmm_mig_stage */
    uint32_t tier;
    uint64_t located;        /* pages in S now, or imported */
    uint64_t bypass_pages;   /* sent from a store without bringing them in */
    uint64_t swap_ins;       /* faults of the threads that migrate */
    uint64_t frozen_slots;   /* kept only because S names them */
    uint64_t epoch;          /* of the volume of the tier */
    uint8_t volume_uuid[16]; /* of the VM that it was made for */
};

/*
 * MIG_EXPORT: { index } as in REGIONS, during a session.  The reply is that of
 * REGIONS and carries two read-only memfds: S and the page-state table,
 * where the ages are.
 *
 * MIG_ACK: { session, changes }: the destination has S as it was when so many
 * changes had been made to the S of this region.
 */
struct uffdmm_mig_ack {
    uint64_t session;
    uint32_t region_id;
    uint32_t pad;
    uint64_t changes;
};

/*
 * MIG_RELEASE, after SENT: drains writes and trims, then writes RELEASED with
 * the next epoch and the destination durably to the volume; from the reply on
 * this side writes nothing more there and frees nothing.
 */
struct uffdmm_mig_release {
    uint64_t session;
    char destination[UFFDMM_NAME_MAX]; /* host, for the record in the volume */
};

struct uffdmm_mig_release_reply {
    uint64_t epoch; /* that the destination has to take */
};

/*
 * MIG_PREPARE, on the destination before its QEMU loads: locations of `session`
 * will come, in the volume of tier `tier`, which the source holds in `epoch`.
 * The volume is opened for reading only; this side stores new pages elsewhere.
 */
struct uffdmm_mig_prepare {
    uint64_t session;
    uint32_t tier; /* index here; 0: no slots will be named */
    uint32_t pad;
    uint64_t epoch;
    uint8_t volume_uuid[16];
    char volume_name[UFFDMM_NAME_MAX]; /* name of the VM on the source */
};

/*
 * MIG_IMPORT carries one memfd of `nr` locations, sealed against writing and
 * shrinking; later ones replace earlier ones of the same page.  All or none of
 * them are taken.  That no slot is named twice is checked at MIG_INSTALL: while
 * S changes one slot may go from page to page.
 */
struct uffdmm_mig_location {
    uint64_t pfn;
    uint64_t entry;  /* as in S, tier 0 or that of MIG_PREPARE; 0: withdrawn */
    uint64_t record; /* as in S */
    uint8_t age;     /* as in the page-state table */
    uint8_t pad[7];
};

struct uffdmm_mig_import {
    uint64_t session;
    uint64_t nr; /* 1..16 Mi */
    char region[UFFDMM_NAME_MAX];
};

/*
 * MIG_DEPOSIT, on the source during a session, carries one memfd of `nr`
 * records, sealed against writing and shrinking.  They are written to
 * neighbouring slots of the tier that is armed, which are no page's: freed when
 * the session has failed, and unknown to who takes the volume.  -ENOSPC: there
 * are no such slots.  Whoever gets them checks that they are what was written.
 */
enum { UFFDMM_MIG_RECORDS_MAX = 65536 };

struct uffdmm_mig_deposit {
    uint64_t session;
    uint64_t nr; /* 1..UFFDMM_MIG_RECORDS_MAX */
};

struct uffdmm_mig_deposit_reply {
    uint64_t slot; /* the first */
};

/*
 * MIG_COLLECT, on the destination after MIG_PREPARE: `nr` records are read from
 * `slot` on, in the volume of the source, and written to the memfd that comes
 * along, from its begin on.
 */
struct uffdmm_mig_collect {
    uint64_t session;
    uint64_t slot;
    uint64_t nr; /* 1..UFFDMM_MIG_RECORDS_MAX */
};

/*
 * MIG_INSTALL: RAM has been loaded; S of this region has `count` pages and this
 * digest.  Answered once the locations that came agree and are in the table,
 * and all of S is punched; or with an error after `timeout_ms`.
 */
struct uffdmm_mig_install {
    uint64_t session;
    uint32_t region_id;
    uint32_t timeout_ms;
    uint64_t count;
    uint64_t digest;
};

/* MIG_TAKE: the source has released the volume; this side owns it now. */
struct uffdmm_mig_take {
    uint64_t session;
    uint64_t epoch; /* as MIG_RELEASE told */
};

/* ------------------------------------------------------------------------ */
/* Page-state table                                                          */

/*
 * The table memfd is mapped by the worker and by QEMU.  Layout: this header
 * (one page), then at entries_offset one uint64_t a page, at records_offset
 * one uint64_t a page (checksum of the stored page, or the repeated word of a
 * same-filled one), at ages_offset one byte a page, at pins_offset one uint32_t
 * a page.
 *
 * Pins are written by QEMU alone: how many users, devices above all, hold the
 * address of a page to access it later.  The kernel writes to such a page past
 * any write protection.  The evictor reads the count after it has
 * write-protected a page, behind a full barrier, and leaves a pinned page
 * alone; QEMU counts before it touches the page, behind a full barrier.
 */
enum uffdmm_table_consts {
    UFFDMM_TABLE_MAGIC = 0x54444d55, /* "UMDT" */
    UFFDMM_TABLE_VERSION = 2
};

enum uffdmm_region_state {
    UFFDMM_REGION_INCOMING = 1,
    UFFDMM_REGION_INSTALLING = 2,
    UFFDMM_REGION_LIVE = 3
};

struct uffdmm_table_header {
    uint32_t magic;
    uint32_t version;
    uint64_t page_size;
    uint64_t nr_pages;
    uint64_t entries_offset;
    uint64_t records_offset;
    uint64_t ages_offset;
    uint64_t pins_offset;
    uint32_t region_state; /* enum uffdmm_region_state */
    uint32_t region_id;
    uint64_t session;  /* migration session while INSTALLING */
    uint64_t discards; /* pages set DISCARDED by QEMU so far */

    /* what a new worker needs to know; written by the worker */
    uint64_t nr_tiers;                                  /* the zero tier too */
    char tier_names[UFFDMM_TIERS_MAX][UFFDMM_NAME_MAX]; /* as in entries */
    uint8_t volume_ids[UFFDMM_TIERS_MAX][16];           /* which volume */
    struct uffdmm_policy policy; /* in force, fields: those chosen */
};

/*
 * An entry, from bit 0: state (4 bits), flags (4), tier (4), generation (12),
 * slot (40).  Slot 0 is never a page's: it stands for "none".
 *
 * QEMU changes entries in one way only: a discard replaces the state by
 * DISCARDED and adds one to the generation, keeps slot, tier, BUSY and
 * WRITING, clears MAYHOLE, and sets BUSY when the state was FILLING.  An EMPTY
 * entry just gets MAYHOLE; UNTRACKED and DISCARDED ones stay as they are.  An
 * entry with INSTALL is waited for, which takes microseconds: else the punch
 * could come before the copy, and the guest would find its old page.
 */
enum uffdmm_entry_layout {
    UFFDMM_ENTRY_STATE_MASK = 0xf,
    /* somebody works on the page outside the table: leave it alone */
    UFFDMM_ENTRY_BUSY = 0x10,
    /* a discard of QEMU raced with a fill: a hole here reads as zero */
    UFFDMM_ENTRY_MAYHOLE = 0x20,
    /* EVICTING: a write to this slot is in flight, only the evictor frees it */
    UFFDMM_ENTRY_WRITING = 0x40,
    /* FILLING: the bytes are being put into guest memory right now */
    UFFDMM_ENTRY_INSTALL = 0x80,
    UFFDMM_ENTRY_TIER_SHIFT = 8,
    UFFDMM_ENTRY_TIER_MASK = 0xf,
    UFFDMM_ENTRY_GEN_SHIFT = 12,
    UFFDMM_ENTRY_GEN_MASK = 0xfff,
    UFFDMM_ENTRY_SLOT_SHIFT = 24
};

enum uffdmm_page_state {
    UFFDMM_PAGE_UNTRACKED = 0, /* not registered: the kernel fills it */
    UFFDMM_PAGE_EMPTY = 1,     /* a hole, nothing stored: reads as zero */
    UFFDMM_PAGE_FILLING = 2,   /* content is on its way in */
    UFFDMM_PAGE_RESIDENT = 3,  /* in memory only */
    UFFDMM_PAGE_CLEAN = 4,     /* in memory, a copy may still be in its slot */
    UFFDMM_PAGE_EVICTING = 5,  /* write-protected, on its way out */
    UFFDMM_PAGE_STORED = 6,    /* in its slot only */
    UFFDMM_PAGE_DISCARDED = 7, /* given back by the guest */
    UFFDMM_PAGE_LOST = 8       /* its content cannot be had */
};

/*
 * The tier in an entry is an index into the tiers of the VM, in the order of
 * its configuration.  Tier 0 is always the zero tier, where the record holds
 * the repeated word.
 */
enum uffdmm_tier_type {
    UFFDMM_TIER_ZERO = 0,
    UFFDMM_TIER_POOL = 1, /* compressed, in memory */
    UFFDMM_TIER_FILE = 2, /* files or block devices */
    UFFDMM_TIER_NBD = 3   /* an NBD export */
};

/* ------------------------------------------------------------------------ */
/* Statistics                                                                */

enum uffdmm_stats_consts {
    UFFDMM_STATS_MAGIC = 0x53444d55, /* "UMDS" */
    UFFDMM_STATS_VERSION = 2,
    /*
     * Histogram of durations in nanoseconds, log-linear: bucket
     * 8 * (floor(log2 v) - 8) + (next three bits of v) for v >= 256,
     * bucket 0 for less; the last one takes the rest (from 16 s up).
     */
    UFFDMM_HIST_SUB_BITS = 3,
    UFFDMM_HIST_MIN_LOG2 = 8,
    UFFDMM_HIST_BUCKETS = 208
};

/* What a worker can beyond version 3, as bits. */
enum uffdmm_features {
    UFFDMM_FEATURE_DEPOSITS = 1 /* MIG_DEPOSIT, MIG_COLLECT */
};

enum uffdmm_worker_state {
    UFFDMM_WORKER_STARTING = 0,
    UFFDMM_WORKER_RUNNING = 1,
    UFFDMM_WORKER_STORE_FULL = 2, /* eviction stopped, faults wait for room */
    UFFDMM_WORKER_STORE_ERROR = 3 /* some page cannot be read or written now */
};

enum uffdmm_tier_state {
    UFFDMM_TIER_OK = 0,
    UFFDMM_TIER_FULL = 1,  /* no room: the next tier takes over */
    UFFDMM_TIER_SLOW = 2,  /* a request waits for long: likewise */
    UFFDMM_TIER_ERROR = 3, /* the last request failed: likewise, tried again */
    UFFDMM_TIER_AWAY = 4   /* its server is gone: pages in it wait */
};

/*
 * One page of counters for a VM, written by its worker alone; readers map it
 * read-only and take single aligned words (no word tears; two words need not
 * belong to the same instant).  Counters only grow; the others are gauges.
 */
struct uffdmm_stats {
    uint32_t magic;
    uint32_t version;
    uint32_t worker_pid;
    uint32_t qemu_pid;
    char vm_name[UFFDMM_NAME_MAX];

    /* gauges */
    uint64_t heartbeat_ns; /* CLOCK_MONOTONIC of the last sign of life */
    uint64_t state;        /* enum uffdmm_worker_state */
    uint64_t nr_regions;
    uint64_t ram_bytes;          /* sum of the regions */
    uint64_t limit_bytes;        /* policy in force, 0: no limit */
    uint64_t readahead_pages;    /* policy in force */
    uint64_t resident_bytes;     /* guest pages in the memfds, by fstat */
    uint64_t resident_max_bytes; /* largest value seen of it */
    uint64_t stored_bytes;       /* pages STORED in a tier with slots */
    uint64_t zero_bytes;         /* pages STORED as one repeated word */
    uint64_t slots_used;         /* of all tiers, CLEAN copies too */
    uint64_t slots_total;
    uint64_t table_bytes;      /* page-state tables */
    uint64_t worker_rss_bytes; /* resident set of the worker process */
    uint64_t age_tracking;     /* 1 while access tracking runs */

    /* counters: faults */
    uint64_t faults;          /* messages served */
    uint64_t faults_zero;     /* served by a zero page */
    uint64_t faults_store;    /* served from a tier with slots */
    uint64_t faults_wp;       /* write to a page on its way out: cancelled */
    uint64_t faults_spurious; /* the page was there */
    uint64_t faults_deferred; /* put back at least once */
    uint64_t faults_waited;   /* waited for room under the limit */
    uint64_t fault_ns;        /* sum of the histogram below */
    uint64_t readahead_in;    /* pages brought in beside a fault */
    uint64_t readahead_hits;  /* windows whose end was reached */

    /* counters: eviction and tracking */
    uint64_t evicted;           /* pages */
    uint64_t evicted_clean;     /* of those: without a write, unchanged */
    uint64_t evicted_zero;      /* of those: zero or same-filled */
    uint64_t evicted_cancelled; /* pages taken back on the way out */
    uint64_t discarded;
    uint64_t zaps;          /* windows */
    uint64_t scanned_pages; /* pages looked at by access scans */
    uint64_t touched_pages; /* of those: in use */

    /* counters: stores */
    uint64_t store_reads; /* requests */
    uint64_t store_read_bytes;
    uint64_t store_writes; /* requests */
    uint64_t store_write_bytes;
    uint64_t store_trim_bytes;
    uint64_t store_errors; /* requests that failed */
    uint64_t checksum_errors;
    uint64_t lost_pages; /* pages that became LOST */

    /* gauges and counters of all tiers together */
    uint64_t nr_tiers;         /* the zero tier among them */
    uint64_t demote_after_ms;  /* policy in force */
    uint64_t arena_bytes;      /* memory in which tiers keep pages */
    uint64_t readahead_wasted; /* of the pages read ahead, not used */
    uint64_t demoted;          /* pages moved to a later tier */
    uint64_t demote_cancelled; /* pages used or discarded meanwhile */
    uint64_t passed_on;        /* pages that the next tier had to take */

    /* policy in force for the control plane, see struct uffdmm_policy */
    uint64_t min_bytes;
    uint64_t max_bytes;
    uint64_t shares;
    uint64_t priority;
    uint64_t opt_out;
    uint64_t track_permille;

    uint64_t pinned;             /* pages not evicted because of a pin */
    uint64_t prefetched;         /* pages brought in by PREFETCH */
    uint64_t migration_swap_ins; /* faults of threads that migrate */
    uint64_t bypass_pages;       /* read by MIG_READ */
    uint64_t recoveries;         /* workers that took over from a dead one */
    uint64_t recovery_ns;        /* how long the last one took */
    uint64_t quarantined;        /* slots that wait for late writes */

    uint64_t features; /* enum uffdmm_features */

    uint64_t reserved[11];
    uint64_t fault_hist[UFFDMM_HIST_BUCKETS]; /* from message to page */
};

/*
 * One page a tier, behind the page of struct uffdmm_stats: tier i is at byte
 * (1 + i) * 4096.  The same rules hold.
 */
struct uffdmm_tier_stats {
    char name[UFFDMM_NAME_MAX]; /* as configured */
    uint32_t type;              /* enum uffdmm_tier_type */
    uint32_t shared;            /* 1: other hosts can read it */

    /* gauges */
    uint64_t state;          /* enum uffdmm_tier_state */
    uint64_t capacity_bytes; /* room for this VM, 0: as much as there is */
    uint64_t used_bytes;     /* of that, CLEAN copies too */
    uint64_t stored_pages;   /* STORED here */
    uint64_t copy_pages;     /* in memory, with a copy here */
    uint64_t stored_bytes;   /* of both before compression */

    /* counters */
    uint64_t reads; /* requests */
    uint64_t read_bytes;
    uint64_t writes; /* requests */
    uint64_t write_bytes;
    uint64_t trim_bytes;
    uint64_t errors;          /* requests that failed */
    uint64_t checksum_errors; /* pages that were not what had been stored */
    uint64_t refused;         /* pages not taken: full, or not compressible */
    uint64_t compactions;     /* pages moved inside the tier */
    uint64_t reconnects;
    uint64_t last_error_ns; /* CLOCK_REALTIME */
    char last_error[UFFDMM_TEXT_MAX];

    uint64_t read_hist[UFFDMM_HIST_BUCKETS];  /* of requests */
    uint64_t write_hist[UFFDMM_HIST_BUCKETS]; /* of requests */
};

#endif
