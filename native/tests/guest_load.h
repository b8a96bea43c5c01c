/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the stand-in's "guest" does with its memory: pages whose whole content
 * follows from seed, page number and version, threads that verify and rewrite
 * them, and counters hammered by several threads in one page.  Each thread
 * knows what it last wrote, so wrong bytes are found at the next touch and not
 * only at the end.
 */
#ifndef UFFDMM_TEST_GUEST_LOAD_H
#define UFFDMM_TEST_GUEST_LOAD_H

#include <stdbool.h>
#include <stdint.h>

#include "standin.h"

enum { LOAD_THREADS_MAX = 32 };

enum load_pattern {
    LOAD_RANDOM,
    LOAD_SEQUENTIAL,
    LOAD_DISCARD,      /* random, and now and then gives a range back */
    LOAD_DISCARD_AHEAD /* sequential, and gives back pages that read-ahead brings in */
};

/* Which contents occur. */
enum load_content {
    LOAD_MIXED,          /* an eighth zero pages, an eighth one repeated word, noise */
    LOAD_SAME,           /* zero pages and repeated words alone */
    LOAD_COMPRESSIBLE,   /* to a twelfth up to the half, by page */
    LOAD_INCOMPRESSIBLE, /* noise alone */
    LOAD_VARIED          /* an eighth zero, an eighth a word, a quarter noise, half of
                            them compressible */
};

struct guest_load {
    struct vmm *vmm;
    struct standin *standin;
    uint64_t seed;
    uint64_t nr_pages;
    unsigned nr_threads;
    enum load_content content;
    uint32_t *versions;   /* one a page; 0: never written or given back, reads as zero */
    uint32_t *written;    /* largest version a page ever had */
    uint32_t *given_back; /* its version when it was discarded, until it is touched */
    _Atomic uint64_t kept_pages; /* discarded ones that were still there at that touch */
    /* bytes, by fstat every few milliseconds: of the memfd, and of arenas as well */
    _Atomic uint64_t resident_max;
    _Atomic uint64_t total_max;
    pthread_t sampler;
    _Atomic int stop_sampler;
};

/* In the stand-in's process; a failure ends it with a sentence. */
void load_init(struct guest_load *l, struct vmm *v, struct standin *s, uint64_t seed,
               unsigned nr_threads, enum load_content content);

/* Writes every page once. */
void load_fill(struct guest_load *l);
/*
 * Gives pages back.  Each then reads as zero, or, when the manager was bringing it in
 * at that moment, as it was: which of the two is settled at its next touch.
 */
void load_discard(struct guest_load *l, uint64_t pfn, uint64_t nr_pages);
/* Touches pages for so long: every step verifies a whole page, half rewrite it. */
void load_run(struct guest_load *l, enum load_pattern pattern, int milliseconds);
/* Verifies every page. */
void load_verify(struct guest_load *l);
/* Verifies one page; the caller sees to it that no other thread has it. */
void load_verify_page(struct guest_load *l, uint64_t pfn);

/* Guest memory in use, bytes, by fstat of the memfd. */
uint64_t load_resident(const struct standin *s);
/* Samples it in a thread of its own from now to load_sampler_stop(). */
void load_sampler_start(struct guest_load *l);
uint64_t load_sampler_stop(struct guest_load *l);

/*
 * Threads increment words of the first nr_pages pages for so long; every thread
 * has one word in each page.  Returns the updates that vanished.
 */
uint64_t load_hammer(struct standin *s, uint64_t nr_pages, unsigned nr_threads,
                     int milliseconds, _Atomic uint64_t *updates);

#endif
