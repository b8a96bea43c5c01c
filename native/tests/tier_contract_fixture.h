/* SPDX-License-Identifier: GPL-2.0-or-later */
/* An open tier with pages to store, for tier_contract.c. */
#ifndef UFFDMM_TEST_TIER_CONTRACT_FIXTURE_H
#define UFFDMM_TEST_TIER_CONTRACT_FIXTURE_H

#include <stddef.h>
#include <stdint.h>

#include "config.h"
#include "tier.h"
#include "tier_io.h"

enum {
    PAGES = 2048, /* buffers of a test */
    BATCH = 200,  /* pages of one put(); no multiple or divisor of anything */
    REGION = 3    /* whose pages they are */
};

/* What is reserved in an ordinary test. */
#define ROOM (32ULL << 20)

struct contract {
    struct tier_config config;
    struct uffdmm_tier_stats *stats;
    struct tier tier;
    struct tier_queue queue;
    char *written; /* PAGES pages */
    char *read;
    uint64_t slots[PAGES];
};

/* Setup and teardown of a test; the state is a struct tier_config at first. */
int contract_set_up(void **state);
int contract_tear_down(void **state);

/* Opens the tier of c->config with room for @bytes; fails the test when that fails. */
void contract_open(struct contract *c, uint64_t bytes);
void contract_close(struct contract *c);

static inline char *page_at(char *pages, unsigned i)
{
    return pages + (size_t)i * PAGE_SIZE_4K;
}

/* A page that compresses to about a quarter, different for each @seed. */
void contract_page(char *page, uint64_t seed);

/*
 * Transfers pages first .. first+nr, in as few requests as the slots allow; returns how
 * many of these failed.  Asserts nothing: for any thread.
 */
int contract_transfer(struct contract *c, struct tier_queue *q, bool write, char *pages,
                      const uint64_t *slots, unsigned first, unsigned nr);

/*
 * Puts pages first .. first+nr in batches; returns how many found room, UINT32_MAX for
 * an outcome that tier.h does not name.  Asserts nothing: for any thread.
 */
unsigned contract_put(struct contract *c, struct tier_queue *q, char *pages,
                      uint64_t *slots, unsigned first, unsigned nr);

/* Stores pages first .. first+nr with content of @seed. */
void contract_store(struct contract *c, uint64_t seed, unsigned first, unsigned nr);

/* Reads pages first .. first+nr back and compares them with what was stored. */
void contract_verify(struct contract *c, unsigned first, unsigned nr);

/* A single transfer of one page; returns its result. */
int contract_read_one(struct contract *c, uint64_t slot, uint64_t pfn, char *page);

/* Frees the slots of every @step-th of pages first .. first+nr. */
void contract_free(struct contract *c, unsigned first, unsigned nr, unsigned step);

void contract_expect_distinct(const uint64_t *slots, unsigned nr);

#endif
