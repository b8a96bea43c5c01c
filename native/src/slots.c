/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Slot allocation.
 *
 * Theory of operation: next fit.  The search goes on where the last one ended,
 * so that pages written together lie together and, over time, the volume is
 * written like a log; that is what makes read-ahead over neighbouring slots
 * pay.  A bitmap is enough: runs of up to a few hundred slots are found by
 * looking at 64 slots at a time, off the fault path.
 *
 * Freed slots are trimmed later, in runs, by the background thread.  It first
 * takes the run as if to write to it: a slot is never trimmed while its next
 * owner may already be writing.
 */
#include "slots.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define WORD_BITS 64

/* How many candidate runs to look at before taking the longest of them. */
#define SEARCH_RUNS 64u

static bool bit_test(const uint64_t *map, uint64_t i)
{
    return (map[i / WORD_BITS] >> (i % WORD_BITS)) & 1;
}

static void bit_set(uint64_t *map, uint64_t i)
{
    map[i / WORD_BITS] |= 1ULL << (i % WORD_BITS);
}

static void bit_clear(uint64_t *map, uint64_t i)
{
    map[i / WORD_BITS] &= ~(1ULL << (i % WORD_BITS));
}

/*
 * A slot is shown as taken before anybody can write to it.  Atomic, for another process reads
 * it; no order is asked for beyond that of the lock that whoever writes to the slot takes.
 */
static void set_taken(struct slots *s, uint64_t i)
{
    if (s->shown) {
        __atomic_fetch_or(&s->shown[i / WORD_BITS], 1ULL << (i % WORD_BITS),
                          __ATOMIC_RELAXED);
    }
    bit_set(s->taken, i);
}

static void clear_taken(struct slots *s, uint64_t i)
{
    bit_clear(s->taken, i);
    if (s->shown) {
        __atomic_fetch_and(&s->shown[i / WORD_BITS], ~(1ULL << (i % WORD_BITS)),
                           __ATOMIC_RELAXED);
    }
}

/* With the lock held; who shows the number reads it without (tier_ops.used). */
static void add_used(struct slots *s, uint64_t n)
{
    __atomic_store_n(&s->used, s->used + n, __ATOMIC_RELAXED);
}

/* First position >= @i whose bit in @map equals @value, or @end. */
static uint64_t bit_next(const uint64_t *map, uint64_t i, uint64_t end, bool value)
{
    while (i < end) {
        uint64_t word = map[i / WORD_BITS];

        if (!value) {
            word = ~word;
        }
        word >>= i % WORD_BITS;
        if (word) {
            i += (uint64_t)__builtin_ctzll(word);
            return i < end ? i : end;
        }
        i += WORD_BITS - i % WORD_BITS;
    }
    return end;
}

int slots_init(struct slots *s, uint64_t nr)
{
    memset(s, 0, sizeof(*s));
    pthread_mutex_init(&s->lock, NULL);
    s->hand = 1;
    s->trim_hand = 1;
    return nr ? slots_grow(s, nr) : 0;
}

void slots_deinit(struct slots *s)
{
    free(s->taken);
    free(s->written);
    pthread_mutex_destroy(&s->lock);
}

int slots_grow(struct slots *s, uint64_t nr)
{
    size_t words = (size_t)((nr + WORD_BITS - 1) / WORD_BITS);
    size_t old_words = (size_t)((s->nr + WORD_BITS - 1) / WORD_BITS);
    uint64_t *taken, *written;

    if (nr <= s->nr) {
        return 0;
    }
    taken = calloc(words, sizeof(*taken));
    written = calloc(words, sizeof(*written));
    if (!taken || !written) {
        free(taken);
        free(written);
        return -ENOMEM;
    }
    pthread_mutex_lock(&s->lock);
    if (old_words) {
        memcpy(taken, s->taken, old_words * sizeof(*taken));
        memcpy(written, s->written, old_words * sizeof(*written));
    }
    free(s->taken);
    free(s->written);
    s->taken = taken;
    s->written = written;
    bit_set(s->taken, 0);
    __atomic_store_n(&s->nr, nr, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&s->lock);
    return 0;
}

/*
 * Longest free run in [@from, @to), the first of @want slots if there is one;
 * looks at no more than @max_runs of them.  Returns its length.
 */
static uint64_t search(const struct slots *s, uint64_t from, uint64_t to, uint64_t want,
                       uint64_t max_runs, uint64_t *start)
{
    uint64_t best = 0, i = from, seen = 0;

    while (i < to && seen < max_runs) {
        uint64_t begin = bit_next(s->taken, i, to, false);
        uint64_t end;

        if (begin >= to) {
            break;
        }
        end = bit_next(s->taken, begin, begin + want < to ? begin + want : to, true);
        if (end - begin > best) {
            best = end - begin;
            *start = begin;
            if (best == want) {
                break;
            }
        }
        seen++;
        i = end;
    }
    return best;
}

/* Marks a run as taken; the next search begins behind it. */
static void take(struct slots *s, uint64_t start, uint64_t len)
{
    for (uint64_t i = start; i < start + len; i++) {
        set_taken(s, i);
        bit_set(s->written, i);
    }
    add_used(s, len);
    if (len) {
        s->hand = start + len < s->nr ? start + len : 1;
    }
}

uint64_t slots_alloc(struct slots *s, uint64_t want, uint64_t *start)
{
    uint64_t len, other, at = 0;

    pthread_mutex_lock(&s->lock);
    if (!want || s->used + 1 >= s->nr) {
        pthread_mutex_unlock(&s->lock);
        return 0;
    }
    len = search(s, s->hand, s->nr, want, SEARCH_RUNS, start);
    if (len < want) {
        other = search(s, 1, s->hand, want, SEARCH_RUNS, &at);
        if (other > len) {
            len = other;
            *start = at;
        }
    }
    take(s, *start, len);
    pthread_mutex_unlock(&s->lock);
    return len;
}

bool slots_alloc_run(struct slots *s, uint64_t want, uint64_t *start)
{
    uint64_t at = 0;
    bool found;

    pthread_mutex_lock(&s->lock);
    found = s->used + want < s->nr &&
            (search(s, s->hand, s->nr, want, UINT64_MAX, &at) == want ||
             search(s, 1, s->nr, want, UINT64_MAX, &at) == want);
    if (found) {
        take(s, at, want);
        *start = at;
    }
    pthread_mutex_unlock(&s->lock);
    return found;
}

bool slots_claim(struct slots *s, uint64_t slot)
{
    bool ok = false;

    pthread_mutex_lock(&s->lock);
    if (slot > 0 && slot < s->nr && !bit_test(s->taken, slot)) {
        set_taken(s, slot);
        bit_set(s->written, slot);
        add_used(s, 1);
        ok = true;
    }
    pthread_mutex_unlock(&s->lock);
    return ok;
}

void slots_mark_written(struct slots *s)
{
    pthread_mutex_lock(&s->lock);
    for (uint64_t slot = 1; slot < s->nr; slot++) {
        bit_set(s->written, slot);
    }
    pthread_mutex_unlock(&s->lock);
}

bool slots_free(struct slots *s, uint64_t slot)
{
    bool ok = false;

    pthread_mutex_lock(&s->lock);
    if (slot > 0 && slot < s->nr && bit_test(s->taken, slot)) {
        clear_taken(s, slot);
        add_used(s, UINT64_MAX);
        ok = true;
    }
    pthread_mutex_unlock(&s->lock);
    return ok;
}

bool slots_take(struct slots *s, uint64_t slot)
{
    bool ok = false;

    pthread_mutex_lock(&s->lock);
    if (slot > 0 && slot < s->nr && !bit_test(s->taken, slot)) {
        set_taken(s, slot);
        bit_set(s->written, slot);
        add_used(s, 1);
        ok = true;
    }
    pthread_mutex_unlock(&s->lock);
    return ok;
}

void slots_untake(struct slots *s, uint64_t slot)
{
    pthread_mutex_lock(&s->lock);
    if (slot > 0 && slot < s->nr && bit_test(s->taken, slot)) {
        bit_clear(s->taken, slot);
        bit_clear(s->written, slot);
        add_used(s, UINT64_MAX);
    }
    pthread_mutex_unlock(&s->lock);
}

void slots_free_are_written(struct slots *s)
{
    pthread_mutex_lock(&s->lock);
    for (uint64_t slot = 1; slot < s->nr; slot++) {
        bit_set(s->written, slot);
    }
    pthread_mutex_unlock(&s->lock);
}

uint64_t slots_take_untrimmed(struct slots *s, uint64_t min, uint64_t max,
                              uint64_t *start)
{
    uint64_t i, begin, end = 0, len = 0;

    pthread_mutex_lock(&s->lock);
    i = s->trim_hand;
    while (i < s->nr) {
        begin = bit_next(s->written, i, s->nr, true);
        if (begin >= s->nr) {
            break;
        }
        end =
            bit_next(s->written, begin, begin + max < s->nr ? begin + max : s->nr, false);
        if (bit_test(s->taken, begin)) {
            i = bit_next(s->taken, begin, end, false);
            continue;
        }
        end = bit_next(s->taken, begin, end, true);
        if (end - begin >= min) {
            len = end - begin;
            *start = begin;
            break;
        }
        i = end;
    }
    for (i = 0; i < len; i++) {
        set_taken(s, *start + i);
    }
    add_used(s, len);
    s->trim_hand = len ? *start + len : 1;
    pthread_mutex_unlock(&s->lock);
    return len;
}

void slots_trimmed(struct slots *s, uint64_t start, uint64_t nr, bool clean)
{
    uint64_t i;

    pthread_mutex_lock(&s->lock);
    for (i = start; i < start + nr; i++) {
        clear_taken(s, i);
        if (clean) {
            bit_clear(s->written, i);
        }
    }
    add_used(s, -nr);
    pthread_mutex_unlock(&s->lock);
}
