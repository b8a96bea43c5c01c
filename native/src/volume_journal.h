/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which slots of a volume a worker has taken, where its successor can read it: a memfd that
 * QEMU keeps open with the arenas.
 *
 * Theory of operation.  A server may carry out a write of a worker that has died, and nobody
 * can ask it whether it has.  A slot is taken before anything is sent for it, and given
 * back after the answer has come.  So what was taken when the worker died and is named by
 * no entry is what a late write can go to.  To slots that are named it cannot, but for those
 * that were written once more after a lost link: they are noted besides.
 *
 * QEMU can write to the memfd, so it is input: it is read once, by the worker that takes
 * over, and whoever forges it harms the pages of that VM alone.
 */
#ifndef UFFDMM_VOLUME_JOURNAL_H
#define UFFDMM_VOLUME_JOURNAL_H

#include <stddef.h>
#include <stdint.h>

struct journal_header;

struct volume_journal {
    int fd; /* -1: there is none */
    struct journal_header *header;
    uint64_t *taken;   /* bitmap, for struct slots to keep up to date; NULL: none */
    uint64_t *doubted; /* bitmap: as long as a lost link may still write there */
    uint64_t nr_slots; /* that both have bits for */
    size_t bytes;
};

/* A new one for @nr_slots.  0 or a negative errno. */
int journal_create(struct volume_journal *j, uint64_t nr_slots);

/* That of a dead worker.  @fd is copied.  0, -EUCLEAN when it is none, or another errno. */
int journal_open(struct volume_journal *j, int fd);

/* There is none. */
void journal_none(struct volume_journal *j);
void journal_close(struct volume_journal *j);

/* Slots in use, as last set. */
uint64_t journal_slots(const struct volume_journal *j);
void journal_set_slots(struct volume_journal *j, uint64_t nr_slots);

/* Notes that slots [@start, @end) are in doubt, or @slot no more. */
void journal_doubt(struct volume_journal *j, uint64_t start, uint64_t end);
void journal_trust(struct volume_journal *j, uint64_t slot);

#endif
