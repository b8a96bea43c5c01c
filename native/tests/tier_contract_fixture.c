/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "unit.h"

#include "tier_contract_fixture.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "clock.h"

/* ---- fixture -------------------------------------------------------------- */

static char *map_pages(unsigned nr)
{
    char *p = mmap(NULL, (size_t)nr * PAGE_SIZE_4K, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    assert_ptr_not_equal(p, MAP_FAILED);
    return p;
}

void contract_open(struct contract *c, uint64_t bytes)
{
    struct tier_vm vm = {
        .name = "contract", .uuid = {1, 2, 3}, .qemu_pid = getpid(), .ram_bytes = ROOM};
    struct tier *tiers[1] = {&c->tier};
    char err[512] = "";

    memset(c->stats, 0, sizeof(*c->stats));
    if (tier_open(&c->tier, 1, &c->config, &vm, c->stats, err, sizeof(err))) {
        fail_msg("open: %s", err);
    }
    if (c->tier.ops->reserve(&c->tier, bytes, err, sizeof(err))) {
        fail_msg("reserve: %s", err);
    }
    assert_int_equal(tier_queue_init(&c->queue, tiers, 1), 0);
}

void contract_close(struct contract *c)
{
    tier_queue_deinit(&c->queue);
    c->tier.ops->close(&c->tier, false);
}

int contract_set_up(void **state)
{
    struct contract *c = calloc(1, sizeof(*c));

    if (!c) {
        return -1;
    }
    c->config = *(const struct tier_config *)*state;
    c->config.capacity = 0;
    memset(&c->config.faults, 0, sizeof(c->config.faults));
    c->stats = calloc(1, sizeof(*c->stats));
    if (!c->stats) {
        free(c);
        return -1;
    }
    c->written = map_pages(PAGES);
    c->read = map_pages(PAGES);
    contract_open(c, ROOM);
    *state = c;
    return 0;
}

int contract_tear_down(void **state)
{
    struct contract *c = *state;

    contract_close(c);
    munmap(c->written, (size_t)PAGES * PAGE_SIZE_4K);
    munmap(c->read, (size_t)PAGES * PAGE_SIZE_4K);
    free(c->stats);
    free(c);
    return 0;
}

/* ---- pages ----------------------------------------------------------------- */

static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 31)) * 0x7fb5d329728ea185ULL;
    x = (x ^ (x >> 27)) * 0x81dadef4bc2dd44dULL;
    return x ^ (x >> 33);
}

void contract_page(char *page, uint64_t seed)
{
    uint64_t words[PAGE_SIZE_4K / 8];

    for (unsigned i = 0; i < PAGE_SIZE_4K / 8; i++) {
        words[i] = mix((seed << 8) + i / 8);
    }
    memcpy(page, words, sizeof(words));
}

int contract_transfer(struct contract *c, struct tier_queue *q, bool write, char *pages,
                      const uint64_t *slots, unsigned first, unsigned nr)
{
    struct tier_io *ios = calloc(nr, sizeof(*ios));
    struct iovec *iovs = calloc(nr, sizeof(*iovs));
    unsigned i, len;
    int n = 0, failed = -1;

    if (!ios || !iovs || (write && c->tier.put_stores)) {
        free(ios);
        free(iovs);
        return c->tier.put_stores ? 0 : -1;
    }
    for (i = first; i < first + nr; i += len, n++) {
        uint64_t most = c->tier.ops->extent(&c->tier, slots[i], first + nr - i);

        for (len = 1; len < most && slots[i + len] == slots[i] + len; len++) {
        }
        iovs[n] = (struct iovec){.iov_base = page_at(pages, i),
                                 .iov_len = (size_t)len * PAGE_SIZE_4K};
        ios[n] = (struct tier_io){.tier = &c->tier,
                                  .write = write,
                                  .slot = slots[i],
                                  .region_id = REGION,
                                  .pfn = i,
                                  .iov = &iovs[n],
                                  .nr_iov = 1,
                                  .length = iovs[n].iov_len};
    }
    failed = tier_run(q, ios, n, 20 * NSEC_PER_USEC);
    free(ios);
    free(iovs);
    return failed;
}

unsigned contract_put(struct contract *c, struct tier_queue *q, char *pages,
                      uint64_t *slots, unsigned first, unsigned nr)
{
    struct tier_put puts[BATCH];
    unsigned i = first, stored = 0;

    while (i < first + nr) {
        unsigned n = first + nr - i < BATCH ? first + nr - i : BATCH;

        for (unsigned k = 0; k < n; k++) {
            puts[k] = (struct tier_put){.data = page_at(pages, i + k),
                                        .region_id = REGION,
                                        .pfn = i + k,
                                        .result = 1};
        }
        tier_put(&c->tier, tier_queue_scratch(q, &c->tier), puts, n);
        for (unsigned k = 0; k < n; k++) {
            slots[i + k] = puts[k].result ? 0 : puts[k].slot;
            stored += puts[k].result == 0;
            /* outcomes that tier.h names, nothing else */
            if (puts[k].result && puts[k].result != -ENOSPC) {
                return UINT32_MAX;
            }
        }
        i += n;
    }
    return stored;
}

void contract_store(struct contract *c, uint64_t seed, unsigned first, unsigned nr)
{
    for (unsigned i = first; i < first + nr; i++) {
        contract_page(page_at(c->written, i), (seed << 20) + i);
    }
    assert_int_equal(contract_put(c, &c->queue, c->written, c->slots, first, nr), nr);
    assert_int_equal(
        contract_transfer(c, &c->queue, true, c->written, c->slots, first, nr), 0);
}

void contract_verify(struct contract *c, unsigned first, unsigned nr)
{
    memset(page_at(c->read, first), 0xee, (size_t)nr * PAGE_SIZE_4K);
    assert_int_equal(contract_transfer(c, &c->queue, false, c->read, c->slots, first, nr),
                     0);
    for (unsigned i = first; i < first + nr; i++) {
        if (memcmp(page_at(c->read, i), page_at(c->written, i), PAGE_SIZE_4K) != 0) {
            fail_msg("page %u in slot %llu is not what was stored", i,
                     (unsigned long long)c->slots[i]);
        }
    }
}

int contract_read_one(struct contract *c, uint64_t slot, uint64_t pfn, char *page)
{
    struct iovec iov = {.iov_base = page, .iov_len = PAGE_SIZE_4K};
    struct tier_io io = {.tier = &c->tier,
                         .slot = slot,
                         .region_id = REGION,
                         .pfn = pfn,
                         .iov = &iov,
                         .nr_iov = 1,
                         .length = PAGE_SIZE_4K};

    tier_run(&c->queue, &io, 1, 0);
    return io.result;
}

void contract_free(struct contract *c, unsigned first, unsigned nr, unsigned step)
{
    for (unsigned i = first; i < first + nr; i += step) {
        assert_true(c->tier.ops->free(&c->tier, c->slots[i]));
    }
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

void contract_expect_distinct(const uint64_t *slots, unsigned nr)
{
    uint64_t *sorted = malloc(nr * sizeof(*sorted));

    assert_non_null(sorted);
    memcpy(sorted, slots, nr * sizeof(*sorted));
    qsort(sorted, nr, sizeof(*sorted), by_value);
    for (unsigned i = 1; i < nr; i++) {
        assert_int_not_equal(sorted[i - 1], sorted[i]);
    }
    free(sorted);
}
