/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A pool with a page-state table of small scale, which knows what must be in it. */
#ifndef UFFDMM_TEST_POOL_FIXTURE_H
#define UFFDMM_TEST_POOL_FIXTURE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "pool.h"
#include "tier_config.h"

#define MIB (1ULL << 20)
#define ANY UINT64_MAX
#define FIXTURE_PAGES 6000

/* One page: pool_page(@seed) is what it holds. */
struct pool_row {
    pthread_mutex_t lock;
    uint64_t slot; /* 0: not stored */
    uint64_t seed;
};

struct pool_fixture {
    struct pool *pool;
    struct pool_scratch *scratch;
    struct pool_row rows[FIXTURE_PAGES];

    /* what the mover does and saw */
    unsigned refuse_every; /* claims, 0: none */
    bool discard;          /* the page goes away while it moves */
    _Atomic unsigned claims, moves;

    _Atomic bool stop; /* of the threads */
    _Atomic uint64_t puts, gets, frees, full, wrong;
};

/* A fresh pool over @bytes, and rows that hold nothing. */
struct pool_fixture *pool_fixture_new(uint64_t bytes, enum tier_codec codec);
void pool_fixture_free(struct pool_fixture *f);

/* The owner of page @pfn. */
struct pool_owner fixture_owner(uint64_t pfn);

/* pool_put() of the page @seed for row @pfn. */
int fixture_store(struct pool_fixture *f, struct pool_scratch *s, uint64_t pfn,
                  uint64_t seed, uint64_t max_bytes);

/* True when the pool gives back what the row says. */
bool fixture_holds(struct pool_fixture *f, struct pool_scratch *s, uint64_t pfn);

/* pool_free() of the page of a row. */
bool fixture_drop(struct pool_fixture *f, uint64_t pfn);

/* Stores a page for each row; every fourth does not compress. */
void fixture_fill(struct pool_fixture *f);

/* Frees about @percent of what is stored. */
void fixture_thin_out(struct pool_fixture *f, unsigned percent);

/* All rows hold their pages, and the pool holds nothing else. */
void fixture_assert_holds(struct pool_fixture *f);

/* Frees everything; then no memory is left and the books are closed. */
void fixture_assert_ends_empty(struct pool_fixture *f);

/* Moves pages as a worker would, with a lock per page. */
struct pool_mover fixture_mover(struct pool_fixture *f);

#endif
