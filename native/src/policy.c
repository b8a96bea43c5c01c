/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "policy.h"

#include <errno.h>
#include <stdio.h>

#include "evict.h"

/* Less than this and a guest does nothing but fault. */
#define LIMIT_MIN_BYTES (8ULL << 20)

/* "No limit", in pages: far above any region, far below an overflow. */
#define NO_LIMIT_PAGES (1ULL << 50)

static void set_limit(struct vm *vm, uint64_t bytes)
{
    atomic_store(&vm->limit, bytes ? bytes >> PAGE_SHIFT_4K : NO_LIMIT_PAGES);
    stats_set(&vm->stats->limit_bytes, bytes);
    evict_kick(vm);
}

static void set_readahead(struct vm *vm, uint32_t pages)
{
    atomic_store(&vm->readahead_max, pages);
    stats_set(&vm->stats->readahead_pages, pages);
}

void policy_init(struct vm *vm)
{
    atomic_store(&vm->limit, NO_LIMIT_PAGES);
    stats_set(&vm->stats->limit_bytes, vm->options->limit_bytes);
    if (vm->options->limit_bytes) {
        atomic_store(&vm->limit, vm->options->limit_bytes >> PAGE_SHIFT_4K);
    }
    set_readahead(vm, vm->options->readahead_pages);
}

/* Smallest limit that makes sense for this VM. */
static uint64_t limit_min(const struct vm *vm)
{
    uint64_t ram = stats_get(&vm->stats->ram_bytes);

    return ram < LIMIT_MIN_BYTES ? ram : LIMIT_MIN_BYTES;
}

int policy_region_added(struct vm *vm, char *err, size_t err_len)
{
    uint64_t ram = stats_get(&vm->stats->ram_bytes);
    uint64_t limit = stats_get(&vm->stats->limit_bytes);

    if (vm->options->limit_percent && !vm->limit_chosen) {
        limit = (ram / 100 * vm->options->limit_percent) & ~(uint64_t)(PAGE_SIZE_4K - 1);
        if (limit < limit_min(vm)) {
            limit = limit_min(vm);
        }
        set_limit(vm, limit);
    }
    return store_reserve(&vm->store, ram, limit ? limit : ram, err, err_len);
}

int policy_set(struct vm *vm, const struct uffdmm_policy *p, char *err, size_t err_len)
{
    uint64_t ram = stats_get(&vm->stats->ram_bytes);
    int ret;

    if (!p->fields ||
        p->fields & ~(uint32_t)(UFFDMM_POLICY_LIMIT | UFFDMM_POLICY_READAHEAD)) {
        snprintf(err, err_len,
                 "policy fields %#x: this manager knows limit (1) and read-ahead (2)",
                 p->fields);
        return -EINVAL;
    }
    if ((p->fields & UFFDMM_POLICY_READAHEAD) &&
        (p->readahead_pages < 1 || p->readahead_pages > WINDOW_MAX)) {
        snprintf(err, err_len, "read-ahead of %u pages: use 1 (off) to %u",
                 p->readahead_pages, WINDOW_MAX);
        return -EINVAL;
    }
    if (p->fields & UFFDMM_POLICY_LIMIT) {
        if (p->limit_bytes && p->limit_bytes < limit_min(vm)) {
            snprintf(
                err, err_len,
                "limit of %llu bytes is too small for VM '%s': use at least %llu, or 0 for none",
                (unsigned long long)p->limit_bytes, vm->name,
                (unsigned long long)limit_min(vm));
            return -EINVAL;
        }
        if (ram) {
            ret = store_reserve(&vm->store, ram, p->limit_bytes ? p->limit_bytes : ram,
                                err, err_len);
            if (ret) {
                return ret;
            }
        }
        vm->limit_chosen = true;
        set_limit(vm, p->limit_bytes);
    }
    if (p->fields & UFFDMM_POLICY_READAHEAD) {
        set_readahead(vm, p->readahead_pages);
    }
    return 0;
}

void policy_get(const struct vm *vm, struct uffdmm_policy *p)
{
    *p = (struct uffdmm_policy){
        .fields = UFFDMM_POLICY_LIMIT | UFFDMM_POLICY_READAHEAD,
        .readahead_pages = (uint32_t)stats_get(&vm->stats->readahead_pages),
        .limit_bytes = stats_get(&vm->stats->limit_bytes),
    };
}
