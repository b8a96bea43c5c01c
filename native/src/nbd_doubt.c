/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Slots that an old write may still go to.
 *
 * Theory of operation.  A server that has lost a connection may carry out what it got on
 * it all the same, and there is no command that asks whether it has: a flush on another
 * connection says nothing of requests that are not answered.  What comes late does no
 * harm as long as the slot belongs to the page that was written.  So slots in doubt are
 * not handed out for DOUBT_NS, counted from when the server is there again: it may have been
 * frozen with all it had.  Should a server hold a write for longer, the page that has got the
 * slot does not match its checksum, and who wants it waits.
 *
 * Two things bring doubt:
 * - A link is lost, and what was under way is sent again.  These slots are in use; they are
 *   held when they are given back.
 * - A worker has died.  What it had taken and no entry names may have been under way: those
 *   slots are held from the start (nbd_takeover.c).  Named slots are not in doubt, since a
 *   slot is named as a page's only place when its write has been answered; unless the dead
 *   worker had doubts of the first sort, which are in the journal too, and remain doubts.
 */
#include "tier_nbd_impl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "config.h"
#include "log.h"
#include "test_hooks.h"

/* How long a server that was given up may still have a write to carry out. */
#define DOUBT_NS (120 * NSEC_PER_SEC)

static uint64_t doubt_ns(void)
{
    return test_hook_number("UFFDMM_TEST_DOUBT_MS", DOUBT_NS / NSEC_PER_MSEC) *
           NSEC_PER_MSEC;
}

unsigned nbd_doubt_seconds(void)
{
    return (unsigned)(doubt_ns() / NSEC_PER_SEC);
}

static bool bit(const uint64_t *map, uint64_t i)
{
    return (map[i / 64] >> (i % 64)) & 1;
}

bool nbd_any_doubt(const struct nbd_tier *n)
{
    return __atomic_load_n(&n->nr_doubts, __ATOMIC_ACQUIRE) ||
           __atomic_load_n(&n->suspects, __ATOMIC_ACQUIRE);
}

static bool in_doubt(const struct nbd_tier *n, uint64_t slot)
{
    if (n->suspects &&
        (n->all_suspect || (slot < n->suspects_nr && bit(n->suspects, slot)))) {
        return true;
    }
    for (unsigned i = 0; i < n->nr_doubts; i++) {
        if (slot >= n->doubts[i].start && slot < n->doubts[i].end) {
            return true;
        }
    }
    return false;
}

static bool taken(struct nbd_tier *n, uint64_t slot)
{
    bool is;

    pthread_mutex_lock(&n->slots.lock);
    is = slot > 0 && slot < n->slots.nr && bit(n->slots.taken, slot);
    pthread_mutex_unlock(&n->slots.lock);
    return is;
}

/* From the client's thread, before it sends the same bytes again. */
void nbd_note_doubt(void *opaque, uint64_t offset, uint64_t length)
{
    struct nbd_tier *n = opaque;
    struct doubt d = {.start = offset / PAGE_SIZE_4K,
                      .end = (offset + length) / PAGE_SIZE_4K,
                      .until = clock_ns() + doubt_ns()};
    unsigned nr;

    pthread_mutex_lock(&n->lock);
    nr = n->nr_doubts;
    if (nr == NBD_DOUBTS_MAX) {
        /* too many to keep apart: everything is in doubt */
        nr = 0;
        d.start = 0;
        d.end = UINT64_MAX;
    }
    n->doubts[nr] = d;
    __atomic_store_n(&n->nr_doubts, nr + 1, __ATOMIC_RELEASE);
    journal_doubt(&n->journal, d.start, d.end);
    pthread_mutex_unlock(&n->lock);
}

/* Of [@start, @end), gives back what is held and in doubt no more. */
static void release(struct nbd_tier *n, uint64_t start, uint64_t end)
{
    for (uint64_t slot = start; slot < end && slot < n->slots.nr; slot++) {
        if (in_doubt(n, slot)) {
            continue;
        }
        if (bit(n->held, slot)) {
            n->held[slot / 64] &= ~(1ULL << (slot % 64));
            slots_free(&n->slots, slot);
        }
        journal_trust(&n->journal, slot);
    }
}

static void settle_suspects(struct nbd_tier *n, bool away)
{
    uint64_t now = clock_ns();
    uint64_t *suspects = n->suspects;

    if (!suspects || !n->suspects_until) {
        return;
    }
    if (away) {
        n->suspects_until = now + doubt_ns();
    } else if (n->suspects_until <= now) {
        __atomic_store_n(&n->suspects, NULL, __ATOMIC_RELEASE);
        n->all_suspect = false;
        free(suspects);
        release(n, 0, UINT64_MAX);
        log_info(
            "nbd export %s: what was held back after the former worker is used again",
            n->name);
    }
}

void nbd_settle_doubts(struct nbd_tier *n, bool away)
{
    uint64_t now = clock_ns();

    if (!nbd_any_doubt(n)) {
        return;
    }
    pthread_mutex_lock(&n->lock);
    settle_suspects(n, away);
    for (unsigned i = 0; i < n->nr_doubts;) {
        struct doubt d = n->doubts[i];

        if (away) {
            /* the time counts from its return on: it may be frozen with all it had */
            n->doubts[i].until = now + doubt_ns();
        }
        if (away || d.until > now) {
            i++;
            continue;
        }
        n->doubts[i] = n->doubts[n->nr_doubts - 1];
        __atomic_store_n(&n->nr_doubts, n->nr_doubts - 1, __ATOMIC_RELEASE);
        release(n, d.start, d.end);
    }
    pthread_mutex_unlock(&n->lock);
}

bool nbd_free(struct tier *t, uint64_t slot)
{
    struct nbd_tier *n = t->priv;
    bool ok;

    if (!nbd_any_doubt(n)) {
        return slots_free(&n->slots, slot);
    }
    pthread_mutex_lock(&n->lock);
    if (!taken(n, slot) || bit(n->held, slot)) {
        ok = false;
    } else if (in_doubt(n, slot)) {
        n->held[slot / 64] |= 1ULL << (slot % 64);
        ok = true;
    } else {
        ok = slots_free(&n->slots, slot);
    }
    pthread_mutex_unlock(&n->lock);
    return ok;
}

void nbd_end_trim(struct nbd_tier *n, bool clean)
{
    n->tidy = TIDY_IDLE;
    if (!nbd_any_doubt(n)) {
        slots_trimmed(&n->slots, n->trim_start, n->trim_nr, clean);
        return;
    }
    pthread_mutex_lock(&n->lock);
    for (uint64_t i = n->trim_start; i < n->trim_start + n->trim_nr; i++) {
        if (in_doubt(n, i)) {
            n->held[i / 64] |= 1ULL << (i % 64);
        } else {
            slots_trimmed(&n->slots, i, 1, clean);
        }
    }
    pthread_mutex_unlock(&n->lock);
}

/* ---- what a dead worker had taken ------------------------------------------- */

int nbd_suspect(struct nbd_tier *n)
{
    uint64_t *suspects;

    if (test_hook("UFFDMM_TEST_NO_QUARANTINE")) {
        return 0;
    }
    suspects = calloc((size_t)(n->slots.nr / 64 + 1), sizeof(*suspects));
    if (!suspects) {
        return -ENOMEM;
    }
    n->suspects_nr = n->slots.nr;
    n->all_suspect = !n->journal.taken;
    for (uint64_t word = 0; !n->all_suspect && word < (n->suspects_nr + 63) / 64;
         word++) {
        suspects[word] = __atomic_load_n(&n->journal.taken[word], __ATOMIC_RELAXED) |
                         __atomic_load_n(&n->journal.doubted[word], __ATOMIC_RELAXED);
    }
    __atomic_store_n(&n->suspects, suspects, __ATOMIC_RELEASE);
    return 0;
}

void nbd_hold_suspects(struct tier *t)
{
    struct nbd_tier *n = t->priv;
    uint64_t nr = 0;

    pthread_mutex_lock(&n->lock);
    for (uint64_t slot = 1; n->suspects && slot < n->slots.nr; slot++) {
        uint64_t mask = 1ULL << (slot % 64);

        if (!in_doubt(n, slot)) {
            continue;
        }
        if (slots_take(&n->slots, slot)) {
            n->held[slot / 64] |= mask;
            nr++;
        } else if (!n->all_suspect && !bit(n->held, slot) &&
                   !bit(n->journal.doubted, slot)) {
            n->suspects[slot / 64] &= ~mask; /* an entry names it: it was answered */
        }
    }
    n->suspects_until = clock_ns() + doubt_ns();
    pthread_mutex_unlock(&n->lock);
    if (nr) {
        log_info(
            "tier %s: %llu slots that the former worker may have been writing to are "
            "not used for %u seconds",
            t->config->name, (unsigned long long)nr, nbd_doubt_seconds());
    }
}
