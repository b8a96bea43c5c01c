/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the parts of the nbd tier share: tier_nbd.c (the interface), nbd_doubt.c (slots that
 * an old write may still go to), nbd_takeover.c (a new worker).  Included by these only.
 */
#ifndef UFFDMM_TIER_NBD_IMPL_H
#define UFFDMM_TIER_NBD_IMPL_H

#include <pthread.h>

#include "clock.h"
#include "nbd_client.h"
#include "slots.h"
#include "superblock.h"
#include "tier.h"
#include "volume_journal.h"

#define NBD_OPEN_NS (10 * NSEC_PER_SEC)

#define NBD_DOUBTS_MAX 256

/* Slots [start, end). */
struct doubt {
    uint64_t start, end, until;
};

enum tidy_state { TIDY_IDLE, TIDY_LOOKING, TIDY_TRIMMING };

struct nbd_tier {
    struct nbd_client *client;
    struct slots slots;
    struct superblock self;
    char name[128];
    uint64_t bytes; /* of the export, that are in use as slots */
    struct volume_journal journal;

    pthread_mutex_t lock; /* around what follows up to the blank line */
    uint64_t *held;       /* bitmap: given back while in doubt */
    struct doubt doubts[NBD_DOUBTS_MAX];
    unsigned nr_doubts; /* read without the lock, too */
    uint64_t
        *suspects; /* bitmap: what a dead worker may have written to, or NULL; as above */
    uint64_t suspects_nr;    /* slots that it has bits for */
    uint64_t suspects_until; /* 0: not all of them are known yet */
    bool all_suspect;        /* those that are named, too */

    /* one run at a time is being trimmed, by whoever calls tidy() */
    enum tidy_state tidy;
    struct nbd_op op;
    uint64_t trim_start, trim_nr;
    uint8_t block[SUPERBLOCK_BYTES]; /* for op */
};

/* ---- tier_nbd.c ---------------------------------------------------------- */

int nbd_read_block(struct nbd_tier *n, uint64_t timeout_ns, char *err, size_t err_len);

/* Writes n->self, durably as far as the server knows what that is. */
int nbd_write_block(struct nbd_tier *n, uint64_t timeout_ns, char *err, size_t err_len);

/* The same, and looks a moment later whether it stands. */
int nbd_set_block(struct nbd_tier *n, char *err, size_t err_len);

/* Its superblock is n->self: from now on every link has to find that. */
void nbd_ready(struct tier *t, struct nbd_tier *n);

/* Makes @bytes of the export slots, the superblock's page among them.  0 or -ENOMEM. */
int nbd_grow(struct tier *t, uint64_t bytes, char *err, size_t err_len);

/* reserve() of the interface. */
int nbd_reserve(struct tier *t, uint64_t bytes, char *err, size_t err_len);

/* ---- nbd_doubt.c --------------------------------------------------------- */

/* For the client. */
void nbd_note_doubt(void *opaque, uint64_t offset, uint64_t length);

/* Hands out again what has been held for long enough. */
void nbd_settle_doubts(struct nbd_tier *n, bool away);

/* True while an old write may still come. */
bool nbd_any_doubt(const struct nbd_tier *n);

/* Seconds for which a slot in doubt is held. */
unsigned nbd_doubt_seconds(void);

/* free() of the interface. */
bool nbd_free(struct tier *t, uint64_t slot);

/* A run that was taken for a trim goes back, but for what is in doubt. */
void nbd_end_trim(struct nbd_tier *n, bool clean);

/*
 * Notes what the journal says that a dead worker had taken; all slots, when it says that
 * or there is none.  Before any slot is taken here.  0 or -ENOMEM.
 */
int nbd_suspect(struct nbd_tier *n);

/* All entries have been seen: holds the suspects that they do not name. */
void nbd_hold_suspects(struct tier *t);

/* ---- nbd_takeover.c ------------------------------------------------------ */

/* What the interface says: tier.h. */
int nbd_keep(struct tier *t, struct nbd_tier *n, const struct tier_vm *vm, char *err,
             size_t err_len);
int nbd_adopt(struct tier *t, char *err, size_t err_len);
bool nbd_take_slot(struct tier *t, uint64_t slot, uint32_t region_id, uint64_t pfn);
void nbd_untake_slot(struct tier *t, uint64_t slot);
void nbd_settle(struct tier *t);
void nbd_identity(const struct tier *t, uint8_t id[16]);

#endif
