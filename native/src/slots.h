/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which slots (pages) of a volume are taken.  Slot 0 is never handed out: in a
 * page-state entry it means "none".  Safe to call from every thread; no call
 * does I/O or allocates, but slots_init() and slots_grow().
 */
#ifndef UFFDMM_SLOTS_H
#define UFFDMM_SLOTS_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct slots {
    pthread_mutex_t lock;
    uint64_t *taken;   /* bitmap: handed out */
    uint64_t *written; /* bitmap: holds data since the last trim */
    uint64_t *shown;   /* NULL, or a copy of taken that a later worker can read */
    uint64_t nr;       /* slots, slot 0 included */
    uint64_t used;     /* handed out, without slot 0 */
    uint64_t hand;     /* where the next search begins */
    uint64_t trim_hand;
};

/* @nr: slots, 0 to begin empty.  0 or -ENOMEM. */
int slots_init(struct slots *s, uint64_t nr);
void slots_deinit(struct slots *s);

/*
 * Makes room for @nr slots in all; never shrinks.  0 or -ENOMEM.  s->shown, which is
 * somebody else's, has room for them.
 */
int slots_grow(struct slots *s, uint64_t nr);

/*
 * Takes a run of at most @want neighbouring slots, the whole of it when there
 * is one, else the longest of the first ones found.  Returns its length, 0 when
 * all slots are taken; *@start is its first slot.
 */
uint64_t slots_alloc(struct slots *s, uint64_t want, uint64_t *start);

/*
 * Takes exactly @want neighbouring slots, wherever they are; it looks at the whole map.
 * *@start is the first one.  False when there is no such run.
 */
bool slots_alloc_run(struct slots *s, uint64_t want, uint64_t *start);

/* Takes this very slot, which holds data.  False when it is taken, or outside. */
bool slots_claim(struct slots *s, uint64_t slot);

/* Every free slot may hold old data: they are to be trimmed. */
void slots_mark_written(struct slots *s);

/* Gives one slot back.  False, and nothing done, when it was not taken. */
bool slots_free(struct slots *s, uint64_t slot);

/*
 * Takes a run of free slots that still hold old data, so that they can be
 * trimmed with nobody writing to them: at least @min, at most @max.  Returns
 * its length or 0.  slots_trimmed() gives them back.
 */
uint64_t slots_take_untrimmed(struct slots *s, uint64_t min, uint64_t max,
                              uint64_t *start);
void slots_trimmed(struct slots *s, uint64_t start, uint64_t nr, bool clean);

/*
 * Takes the slot that a page-state table names, when a volume is taken over.  False, and
 * nothing done, when it is taken already or not there.  slots_untake() undoes it; but
 * s->shown goes on saying that it was taken, for the volume is not taken over then.
 */
bool slots_take(struct slots *s, uint64_t slot);
void slots_untake(struct slots *s, uint64_t slot);

/* All free slots count as written: they are made unreadable bit by bit. */
void slots_free_are_written(struct slots *s);

/* True when @slot may be named by an entry. */
static inline bool slots_valid(const struct slots *s, uint64_t slot)
{
    return slot > 0 && slot < __atomic_load_n(&s->nr, __ATOMIC_ACQUIRE);
}

#endif
