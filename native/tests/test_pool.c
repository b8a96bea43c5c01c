/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Compressed pages in memory: what goes in comes out, and the memory goes back. */
#include "unit.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "clock.h"
#include "config.h"
#include "pool.h"
#include "pool_pages.h"

#define MIB (1ULL << 20)
#define SLAB (64ULL * 1024)
#define ANY UINT64_MAX

struct fixture {
    struct pool *pool;
    struct pool_scratch *scratch;
};

static void open_pool(struct fixture *f, uint64_t bytes, enum tier_codec codec)
{
    assert_int_equal(pool_create(&f->pool, bytes, codec, 0), 0);
    assert_int_equal(pool_scratch_new(f->pool, &f->scratch), 0);
}

static void close_pool(struct fixture *f)
{
    pool_scratch_free(f->scratch);
    pool_destroy(f->pool);
}

static struct pool_owner owner_of(uint64_t pfn)
{
    return (struct pool_owner){.region_id = (uint32_t)(pfn % 32), .pfn = pfn};
}

static int put(struct fixture *f, uint64_t seed, uint64_t max_bytes, uint64_t *slot)
{
    uint8_t page[PAGE_SIZE_4K];

    pool_page(page, seed);
    return pool_put(f->pool, f->scratch, page, owner_of(seed), max_bytes, slot);
}

static void assert_holds(struct fixture *f, uint64_t slot, uint64_t seed)
{
    uint8_t page[PAGE_SIZE_4K], back[PAGE_SIZE_4K];

    pool_page(page, seed);
    assert_int_equal(pool_get(f->pool, f->scratch, slot, owner_of(seed), back), 0);
    assert_memory_equal(page, back, sizeof(page));
}

/* Bytes of the arena that the kernel holds in memory. */
static uint64_t arena_in_memory(struct pool *p)
{
    struct stat st;

    assert_int_equal(fstat(pool_fd(p), &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

static void all_pages_come_back(enum tier_codec codec)
{
    enum { NR = 2000 };
    static uint64_t slots[NR];
    struct fixture f;
    struct pool_usage u;
    unsigned stored = 0;

    open_pool(&f, 64 * MIB, codec);
    for (uint64_t i = 0; i < NR; i++) {
        int ret = put(&f, i, ANY, &slots[i]);

        if (i % PAGE_KINDS == PAGE_NOISE) {
            assert_int_equal(ret, -E2BIG);
            slots[i] = 0;
        } else {
            assert_int_equal(ret, 0);
            assert_in_range(slots[i], 1, (1ULL << 40) - 1);
            assert_true(pool_valid(f.pool, slots[i]));
            stored++;
        }
    }
    pool_usage(f.pool, &u);
    assert_int_equal(u.objects, stored);
    for (uint64_t i = 0; i < NR; i++) {
        if (slots[i]) {
            assert_holds(&f, slots[i], i);
        }
    }
    close_pool(&f);
}

static void pages_come_back_from_lz4(void **state)
{
    (void)state;
    all_pages_come_back(TIER_CODEC_LZ4);
}

static void pages_come_back_from_zstd(void **state)
{
    (void)state;
    all_pages_come_back(TIER_CODEC_ZSTD);
}

/* All lengths, so all classes: pages with 0 .. 4096 bytes of noise. */
static void page_of_any_length_comes_back(void **state)
{
    uint8_t noise[PAGE_SIZE_4K], page[PAGE_SIZE_4K], back[PAGE_SIZE_4K];
    static uint64_t slots[PAGE_SIZE_4K + 1];
    unsigned refused = 0;
    struct fixture f;
    (void)state;

    open_pool(&f, 64 * MIB, TIER_CODEC_LZ4);
    pool_page_of_kind(noise, 1, PAGE_NOISE);
    for (unsigned n = 0; n <= PAGE_SIZE_4K; n++) {
        int ret;

        memset(page, 0, sizeof(page));
        memcpy(page, noise, n);
        ret = pool_put(f.pool, f.scratch, page, owner_of(n), ANY, &slots[n]);
        if (ret == -E2BIG) {
            slots[n] = 0;
            refused++;
            assert_true(n > 2900); /* three quarters, less what lz4 adds */
        } else {
            assert_int_equal(ret, 0);
            assert_true(n < 3072);
        }
    }
    assert_true(refused > 1000);
    for (unsigned n = 0; n <= PAGE_SIZE_4K; n++) {
        if (slots[n]) {
            memset(page, 0, sizeof(page));
            memcpy(page, noise, n);
            assert_int_equal(pool_get(f.pool, f.scratch, slots[n], owner_of(n), back), 0);
            assert_memory_equal(page, back, sizeof(page));
        }
    }
    close_pool(&f);
}

static void refused_page_costs_nothing(void **state)
{
    uint8_t page[PAGE_SIZE_4K];
    uint64_t slot = 77;
    struct pool_usage u;
    struct fixture f;
    (void)state;

    open_pool(&f, MIB, TIER_CODEC_LZ4);
    pool_page_of_kind(page, 5, PAGE_NOISE);
    assert_int_equal(pool_put(f.pool, f.scratch, page, owner_of(5), ANY, &slot), -E2BIG);
    assert_int_equal(slot, 77);
    pool_usage(f.pool, &u);
    assert_int_equal(u.arena_bytes, 0);
    assert_int_equal(u.objects, 0);
    close_pool(&f);
}

static void impossible_owner_is_refused(void **state)
{
    struct pool_owner far = {.pfn = 1ULL << 34};
    struct pool_owner region = {.region_id = 32};
    struct pool_owner last = {.region_id = 31, .pfn = (1ULL << 34) - 1};
    uint8_t page[PAGE_SIZE_4K] = {1}, back[PAGE_SIZE_4K];
    struct fixture f;
    uint64_t slot;
    (void)state;

    open_pool(&f, MIB, TIER_CODEC_LZ4);
    assert_int_equal(pool_put(f.pool, f.scratch, page, far, ANY, &slot), -EINVAL);
    assert_int_equal(pool_put(f.pool, f.scratch, page, region, ANY, &slot), -EINVAL);
    assert_int_equal(pool_put(f.pool, f.scratch, page, last, ANY, &slot), 0);
    assert_int_equal(pool_get(f.pool, f.scratch, slot, last, back), 0);
    assert_memory_equal(page, back, sizeof(page));
    close_pool(&f);
}

static void page_of_another_owner_is_not_given_out(void **state)
{
    uint8_t back[PAGE_SIZE_4K];
    struct pool_owner other = owner_of(8);
    struct fixture f;
    uint64_t slot;
    (void)state;

    open_pool(&f, MIB, TIER_CODEC_LZ4);
    assert_int_equal(put(&f, 8, ANY, &slot), 0);
    other.pfn ^= 1;
    assert_int_equal(pool_get(f.pool, f.scratch, slot, other, back), -EUCLEAN);
    other = owner_of(8);
    other.region_id ^= 1;
    assert_int_equal(pool_get(f.pool, f.scratch, slot, other, back), -EUCLEAN);
    assert_holds(&f, slot, 8);
    close_pool(&f);
}

static void slot_of_nothing_is_told(void **state)
{
    uint8_t back[PAGE_SIZE_4K];
    const uint64_t nowhere[] = {0, 1, 3, 64 * MIB / 16, 1ULL << 40, UINT64_MAX};
    struct fixture f;
    uint64_t slot;
    (void)state;

    open_pool(&f, 64 * MIB, TIER_CODEC_LZ4);
    assert_int_equal(put(&f, 4, ANY, &slot), 0);
    for (unsigned i = 0; i < sizeof(nowhere) / sizeof(nowhere[0]); i++) {
        assert_false(pool_valid(f.pool, nowhere[i]));
        assert_false(pool_free(f.pool, nowhere[i]));
        assert_int_equal(pool_get(f.pool, f.scratch, nowhere[i], owner_of(4), back),
                         -ENOENT);
    }
    /* inside the object, behind it, in a slab that was never used */
    for (uint64_t s = slot + 1; s < 2 * SLAB / 16; s++) {
        assert_int_equal(pool_get(f.pool, f.scratch, s, owner_of(4), back), -ENOENT);
        assert_false(pool_free(f.pool, s));
    }
    assert_holds(&f, slot, 4);
    assert_true(pool_free(f.pool, slot));
    assert_false(pool_free(f.pool, slot));
    assert_int_equal(pool_get(f.pool, f.scratch, slot, owner_of(4), back), -ENOENT);
    close_pool(&f);
}

static void pool_of_no_size_or_codec_is_refused(void **state)
{
    struct pool *p;
    (void)state;

    assert_int_equal(pool_create(&p, SLAB - 1, TIER_CODEC_LZ4, 0), -EINVAL);
    assert_int_equal(pool_create(&p, (1ULL << 44) + 1, TIER_CODEC_LZ4, 0), -EINVAL);
    assert_int_equal(pool_create(&p, MIB, (enum tier_codec)7, 0), -EINVAL);
    assert_int_equal(pool_create(&p, MIB, TIER_CODEC_ZSTD, 1000), -EINVAL);
}

static bool claim_nothing(void *opaque, struct pool_owner owner, uint64_t from)
{
    (void)opaque;
    (void)owner;
    (void)from;
    return false;
}

static void moved_nothing(void *opaque, struct pool_owner owner, uint64_t from,
                          uint64_t to)
{
    (void)opaque;
    (void)owner;
    (void)from;
    (void)to;
    fail_msg("an object moved that nobody allowed to move");
}

/* A slab that runs empty and is needed again at once stays; what is idle goes. */
static void spare_slabs_in_use_are_kept(void **state)
{
    const struct pool_mover nobody = {.claim = claim_nothing, .moved = moved_nothing};
    static uint64_t slots[400];
    uint8_t page[PAGE_SIZE_4K];
    struct pool_usage u;
    struct fixture f;
    uint64_t all = 0;
    (void)state;

    open_pool(&f, 16 * MIB, TIER_CODEC_LZ4);
    pool_page_of_kind(page, 1, PAGE_TEXT);
    for (int round = 0; round < 4; round++) {
        for (unsigned i = 0; i < 400; i++) {
            assert_int_equal(
                pool_put(f.pool, f.scratch, page, owner_of(i), ANY, &slots[i]), 0);
        }
        pool_usage(f.pool, &u);
        assert_true(all == 0 || all == u.arena_bytes); /* the same slabs again */
        all = u.arena_bytes;
        for (unsigned i = 0; i < 400; i++) {
            assert_true(pool_free(f.pool, slots[i]));
        }
        (void)pool_compact(f.pool, &nobody, 1, 100);
        pool_usage(f.pool, &u);
        assert_int_equal(u.arena_bytes, all);
        assert_int_equal(u.arena_bytes, arena_in_memory(f.pool));
    }
    (void)pool_compact(f.pool, &nobody, 1, 100);
    assert_int_equal(arena_in_memory(f.pool), 0);
    close_pool(&f);
}

static void limit_is_kept_and_room_is_used_again(void **state)
{
    static uint64_t slots[4096];
    struct pool_usage u;
    struct fixture f;
    unsigned nr = 0;
    uint64_t slot;
    int ret;
    (void)state;

    open_pool(&f, 64 * MIB, TIER_CODEC_LZ4);
    /* of one kind, or a slab would be needed for each class */
    for (;;) {
        uint8_t page[PAGE_SIZE_4K];

        pool_page_of_kind(page, 1, PAGE_TEXT);
        ret = pool_put(f.pool, f.scratch, page, owner_of(nr), 4 * SLAB, &slots[nr]);
        if (ret) {
            break;
        }
        nr++;
        assert_in_range(nr, 1, 4095);
    }
    assert_int_equal(ret, -ENOSPC);
    pool_usage(f.pool, &u);
    assert_int_equal(u.arena_bytes, 4 * SLAB);
    assert_true(u.data_bytes > 3 * SLAB);
    assert_int_equal(put(&f, 0, 4 * SLAB, &slot), -ENOSPC);
    assert_int_equal(put(&f, 0, 5 * SLAB, &slot), 0);
    assert_true(pool_free(f.pool, slot));
    assert_true(pool_free(f.pool, slots[nr / 2]));
    {
        uint8_t page[PAGE_SIZE_4K];

        pool_page_of_kind(page, 1, PAGE_TEXT);
        assert_int_equal(pool_put(f.pool, f.scratch, page, owner_of(9), 4 * SLAB, &slot),
                         0);
        assert_int_equal(slot, slots[nr / 2]);
    }
    close_pool(&f);
}

/* When there is no new slab a page may take a place that is a little too large. */
static void page_takes_a_larger_place_when_memory_is_short(void **state)
{
    uint8_t noise[PAGE_SIZE_4K], page[PAGE_SIZE_4K] = {0}, back[PAGE_SIZE_4K];
    struct fixture f;
    uint64_t slot;
    (void)state;

    open_pool(&f, SLAB, TIER_CODEC_LZ4);
    pool_page_of_kind(noise, 1, PAGE_NOISE);
    memcpy(page, noise, 2000);
    assert_int_equal(pool_put(f.pool, f.scratch, page, owner_of(1), ANY, &slot), 0);
    memset(page, 0, sizeof(page));
    memcpy(page, noise, 1700);
    assert_int_equal(pool_put(f.pool, f.scratch, page, owner_of(2), ANY, &slot), 0);
    assert_int_equal(pool_get(f.pool, f.scratch, slot, owner_of(2), back), 0);
    assert_memory_equal(page, back, sizeof(page));
    /* but not one that is twice as large */
    memset(page, 0, sizeof(page));
    memcpy(page, noise, 900);
    assert_int_equal(pool_put(f.pool, f.scratch, page, owner_of(3), ANY, &slot), -ENOSPC);
    close_pool(&f);
}

static void waste_of(enum tier_codec codec)
{
    enum { NR = 16384 };
    struct pool_usage u;
    struct fixture f;
    uint64_t slot;

    open_pool(&f, 64 * MIB, codec);
    for (uint64_t i = 0; i < NR; i++) {
        int ret = put(&f, i, ANY, &slot);

        assert_true(ret == 0 || ret == -E2BIG);
    }
    pool_usage(f.pool, &u);
    print_message("%s: %llu pages, %.1f MiB compressed, in %.1f MiB: %.1f %% waste\n",
                  codec == TIER_CODEC_LZ4 ? "lz4" : "zstd", (unsigned long long)u.objects,
                  (double)u.data_bytes / (double)MIB, (double)u.arena_bytes / (double)MIB,
                  100.0 - 100.0 * (double)u.data_bytes / (double)u.arena_bytes);
    assert_int_equal(u.objects, NR / PAGE_KINDS * (PAGE_KINDS - 1));
    /* a ratio between 1.5 and 4, or the data is not what it should be */
    assert_in_range(u.objects * PAGE_SIZE_4K * 10 / u.data_bytes, 15, 40);
    assert_int_equal(u.arena_bytes, arena_in_memory(f.pool));
    assert_true((u.arena_bytes - u.data_bytes) * 100 <= u.arena_bytes * 15);
    close_pool(&f);
}

static void at_most_15_percent_are_wasted(void **state)
{
    (void)state;
    waste_of(TIER_CODEC_LZ4);
    waste_of(TIER_CODEC_ZSTD);
}

static void freed_memory_goes_back_and_reads_as_zero(void **state)
{
    enum { NR = 4000 };
    const struct pool_mover nobody = {.claim = claim_nothing, .moved = moved_nothing};
    static uint64_t slots[NR];
    static uint8_t bytes[SLAB], zero[SLAB];
    struct pool_usage u;
    struct fixture f;
    (void)state;

    open_pool(&f, 16 * MIB, TIER_CODEC_LZ4);
    for (int round = 0; round < 3; round++) {
        for (uint64_t i = 0; i < NR; i++) {
            slots[i] = 0;
            put(&f, i, ANY, &slots[i]);
        }
        pool_usage(f.pool, &u);
        assert_true(u.arena_bytes > 4 * MIB);
        assert_int_equal(u.arena_bytes, arena_in_memory(f.pool));
        for (uint64_t i = 0; i < NR; i++) {
            assert_int_equal(pool_free(f.pool, slots[i]), slots[i] != 0);
        }
        pool_usage(f.pool, &u);
        assert_int_equal(u.objects, 0);
        assert_int_equal(u.object_bytes, 0);
        assert_int_equal(u.data_bytes, 0);
        assert_true(u.arena_bytes <= 2 * MIB); /* spare slabs */
        assert_int_equal(u.arena_bytes, arena_in_memory(f.pool));
    }
    /* first it sees that they are there, then that nobody took them meanwhile */
    assert_int_equal(pool_compact(f.pool, &nobody, 1, 0), 0);
    pool_usage(f.pool, &u);
    assert_true(u.arena_bytes > MIB);
    assert_int_equal(pool_compact(f.pool, &nobody, 1, 0), 0);
    pool_usage(f.pool, &u);
    assert_int_equal(u.arena_bytes, 0);
    assert_int_equal(arena_in_memory(f.pool), 0);
    for (uint64_t at = 0; at < 16 * MIB; at += SLAB) {
        assert_int_equal(pread(pool_fd(f.pool), bytes, SLAB, (off_t)at), SLAB);
        assert_memory_equal(bytes, zero, SLAB);
    }
    close_pool(&f);
}

/* Bytes of this process that are in memory. */
static uint64_t process_in_memory(void)
{
    unsigned long long size, resident = 0;
    FILE *file = fopen("/proc/self/statm", "re");

    if (file) {
        if (fscanf(file, "%llu %llu", &size, &resident) != 2) {
            resident = 0;
        }
        fclose(file);
    }
    return resident * PAGE_SIZE_4K;
}

/* A shared mapping as anybody makes one: is it filled? */
static bool ordinary_mapping_is_filled(void)
{
    int fd = memfd_create("control", MFD_CLOEXEC);
    struct stat st = {0};

    if (fd >= 0 && ftruncate(fd, (off_t)MIB) == 0 &&
        mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) != MAP_FAILED) {
        (void)fstat(fd, &st);
    }
    return (uint64_t)st.st_blocks * 512 == MIB;
}

/*
 * In a process of its own, which mlockall() changes for good.  Returns 77 where
 * it cannot be had: without the right to lock, or under a sanitizer, which
 * makes it do nothing.
 */
static int locked_process(void)
{
    uint8_t page[PAGE_SIZE_4K] = {1, 2, 3};
    struct pool_scratch *s;
    struct pool_usage u;
    uint64_t slot, before;
    struct stat st;
    struct pool *p;

    if (mlockall(MCL_CURRENT | MCL_FUTURE) < 0 || !ordinary_mapping_is_filled()) {
        return 77;
    }
    before = process_in_memory();
    if (pool_create(&p, 4096 * MIB, TIER_CODEC_LZ4, 0) != 0) {
        return 1;
    }
    if (fstat(pool_fd(p), &st) < 0 || st.st_blocks != 0) {
        return 2;
    }
    if (!before || process_in_memory() > before + MIB) {
        return 3;
    }
    if (pool_scratch_new(p, &s) ||
        pool_put(p, s, page, (struct pool_owner){0}, UINT64_MAX, &slot) != 0) {
        return 4;
    }
    pool_usage(p, &u);
    if (fstat(pool_fd(p), &st) < 0 || (uint64_t)st.st_blocks * 512 != SLAB ||
        u.arena_bytes != SLAB) {
        return 5;
    }
    pool_scratch_free(s);
    pool_destroy(p);
    return 0;
}

static void locked_process_does_not_fill_the_arena(void **state)
{
    int status;
    pid_t pid = fork();
    (void)state;

    assert_true(pid >= 0);
    if (pid == 0) {
        _exit(locked_process());
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77) {
        print_message("skip: mlockall() does nothing under a sanitizer\n");
        skip();
    }
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void arena_cannot_be_truncated(void **state)
{
    struct fixture f;
    (void)state;

    open_pool(&f, MIB, TIER_CODEC_LZ4);
    assert_int_equal(ftruncate(pool_fd(f.pool), 0), -1);
    assert_int_equal(errno, EPERM);
    assert_int_equal(ftruncate(pool_fd(f.pool), (off_t)(2 * MIB)), -1);
    assert_int_equal(errno, EPERM);
    close_pool(&f);
}

/* Against a plain array, with a seeded random sequence of all calls. */
static void agrees_with_a_plain_model(void **state)
{
    enum { NR = 2000, STEPS = 60000 };
    static uint64_t slots[NR];
    static uint64_t seeds[NR];
    uint64_t rng = 88172645463325252ULL, used = 0;
    struct pool_usage u;
    struct fixture f;
    (void)state;

    memset(slots, 0, sizeof(slots));
    open_pool(&f, 3 * MIB, TIER_CODEC_LZ4); /* too small for all */
    for (int step = 0; step < STEPS; step++) {
        uint64_t i = pool_random(&rng) % NR;

        if (slots[i]) {
            assert_holds(&f, slots[i], seeds[i]);
            if (pool_random(&rng) % 4) {
                assert_true(pool_free(f.pool, slots[i]));
                assert_false(pool_free(f.pool, slots[i]));
                slots[i] = 0;
                used--;
            }
        } else {
            int ret;

            seeds[i] = pool_random(&rng) % (1u << 20);
            ret = put(&f, seeds[i], ANY, &slots[i]);
            assert_int_equal(ret == -E2BIG, seeds[i] % PAGE_KINDS == PAGE_NOISE);
            assert_true(ret == 0 || ret == -E2BIG || ret == -ENOSPC);
            if (ret) {
                slots[i] = 0;
            }
            used += ret == 0;
        }
        pool_usage(f.pool, &u);
        assert_int_equal(u.objects, used);
        assert_true(u.data_bytes <= u.object_bytes);
        assert_true(u.object_bytes <= u.arena_bytes);
        assert_true(u.arena_bytes <= 3 * MIB);
    }
    close_pool(&f);
}

static void pages_that_do_not_compress_are_kept_raw_when_asked(void **state)
{
    struct pool_scratch *s;
    struct pool *p;
    struct pool_usage u;
    uint64_t slots[100];
    uint8_t page[PAGE_SIZE_4K], back[PAGE_SIZE_4K];
    uint64_t random = 88172645463325252ULL;
    (void)state;

    assert_int_equal(pool_create(&p, 8 << 20, TIER_CODEC_LZ4, 0), 0);
    assert_int_equal(pool_scratch_new(p, &s), 0);
    for (int keep = 0; keep < 2; keep++) {
        pool_keep_raw(p, keep);
        for (uint64_t i = 0; i < 100; i++) {
            struct pool_owner owner = {.region_id = 1, .pfn = i};

            for (size_t k = 0; k < sizeof(page); k++) {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                page[k] = (uint8_t)random;
            }
            page[0] = (uint8_t)i;
            assert_int_equal(pool_put(p, s, page, owner, UINT64_MAX, &slots[i]),
                             keep ? 0 : -E2BIG);
            if (keep) {
                assert_int_equal(pool_get(p, s, slots[i], owner, back), 0);
                assert_memory_equal(page, back, sizeof(page));
            }
        }
    }
    pool_usage(p, &u);
    assert_int_equal(u.objects, 100);
    assert_int_equal(u.data_bytes, 100 * PAGE_SIZE_4K);
    for (uint64_t i = 0; i < 100; i++) {
        assert_true(pool_free(p, slots[i]));
    }
    pool_scratch_free(s);
    pool_destroy(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pages_come_back_from_lz4),
        cmocka_unit_test(pages_come_back_from_zstd),
        cmocka_unit_test(page_of_any_length_comes_back),
        cmocka_unit_test(refused_page_costs_nothing),
        cmocka_unit_test(impossible_owner_is_refused),
        cmocka_unit_test(page_of_another_owner_is_not_given_out),
        cmocka_unit_test(slot_of_nothing_is_told),
        cmocka_unit_test(pool_of_no_size_or_codec_is_refused),
        cmocka_unit_test(spare_slabs_in_use_are_kept),
        cmocka_unit_test(limit_is_kept_and_room_is_used_again),
        cmocka_unit_test(page_takes_a_larger_place_when_memory_is_short),
        cmocka_unit_test(at_most_15_percent_are_wasted),
        cmocka_unit_test(freed_memory_goes_back_and_reads_as_zero),
        cmocka_unit_test(locked_process_does_not_fill_the_arena),
        cmocka_unit_test(arena_cannot_be_truncated),
        cmocka_unit_test(agrees_with_a_plain_model),
        cmocka_unit_test(pages_that_do_not_compress_are_kept_raw_when_asked),
    };

    return cmocka_run_group_tests_name("pool", tests, NULL, NULL);
}
