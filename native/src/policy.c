/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "policy.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "evict.h"

/* Less than this and a guest does nothing but fault. */
#define LIMIT_MIN_BYTES (8ULL << 20)
#define LIMIT_MIN_HUGE_BYTES (16ULL << 20)

#define DEMOTE_MAX_MS (365ULL * 24 * 3600 * 1000)

#define FIELDS_KNOWN                                                       \
    (UFFDMM_POLICY_LIMIT | UFFDMM_POLICY_READAHEAD | UFFDMM_POLICY_TIERS | \
     UFFDMM_POLICY_DEMOTE | UFFDMM_POLICY_MIN | UFFDMM_POLICY_MAX |        \
     UFFDMM_POLICY_SHARES | UFFDMM_POLICY_PRIORITY | UFFDMM_POLICY_TRACK | \
     UFFDMM_POLICY_OPT_OUT)

#define SHARES_DEFAULT 100
#define SHARES_MAX 10000
#define PRIORITY_DEFAULT 50
#define PRIORITY_MAX 100

/* Of a CPU, for the faults that looking at accesses costs the guest. */
#define TRACK_PERMILLE_DEFAULT 15

/* "No limit", in pages: far above any region, far below an overflow. */
#define NO_LIMIT_PAGES (1ULL << 50)

/* Share of the limit that a pool inside it gets when nothing else is said, and at most. */
#define POOL_SHARE_PERCENT 30
#define POOL_SHARE_MAX_PERCENT 50

/*
 * Bounds each tier: what policy says, and for a pool that counts against the limit a
 * share of that, so that there is always room for resident pages.
 */
static void bound_tiers(struct vm *vm)
{
    uint64_t limit = stats_get(&vm->stats->limit_bytes);

    for (unsigned i = 1; i < UFFDMM_TIERS_MAX; i++) {
        struct tier *t = vm->tiers[i];
        uint64_t max = vm->tier_bytes[i];

        if (!t) {
            continue;
        }
        if (t->config->inside_limit && limit) {
            uint64_t most = limit / 100 * POOL_SHARE_MAX_PERCENT;

            if (!max) {
                max = limit / 100 * POOL_SHARE_PERCENT;
            }
            max = max < most ? max : most;
        }
        __atomic_store_n(&t->max_bytes, max ? max : UINT64_MAX, __ATOMIC_RELAXED);
    }
}

static void set_limit(struct vm *vm, uint64_t bytes)
{
    atomic_store(&vm->limit, bytes ? bytes >> PAGE_SHIFT_4K : NO_LIMIT_PAGES);
    stats_set(&vm->stats->limit_bytes, bytes);
    bound_tiers(vm);
    evict_kick(vm);
}

static void set_readahead(struct vm *vm, uint32_t pages)
{
    atomic_store(&vm->readahead_max, pages);
    stats_set(&vm->stats->readahead_pages, pages);
}

static void set_demote_after(struct vm *vm, uint64_t ms)
{
    atomic_store(&vm->demote_after_ns, ms * 1000000);
    stats_set(&vm->stats->demote_after_ms, ms);
}

void policy_init(struct vm *vm)
{
    const struct options *o = vm->options;
    const struct vm_options *own = vm_options_find(o->vms, o->nr_vms, vm->name);
    uint64_t limit = o->limit_bytes;

    vm->limit_percent = o->limit_percent;
    atomic_store(&vm->host_limit, UINT64_MAX);
    atomic_store(&vm->evict_to, -1);
    stats_set(&vm->stats->shares, SHARES_DEFAULT);
    stats_set(&vm->stats->priority, PRIORITY_DEFAULT);
    stats_set(&vm->stats->track_permille, o->tracking ? TRACK_PERMILLE_DEFAULT : 0);
    if (own && own->has_limit) {
        limit = own->limit_bytes;
        vm->limit_percent = own->limit_percent;
    }
    atomic_store(&vm->limit, limit ? limit >> PAGE_SHIFT_4K : NO_LIMIT_PAGES);
    stats_set(&vm->stats->limit_bytes, limit);
    set_readahead(vm, own && own->readahead_pages ? own->readahead_pages
                                                  : o->readahead_pages);
    set_demote_after(
        vm, (own && own->has_demote_after ? own->demote_after_ns : o->demote_after_ns) /
                1000000);
    if (own && own->has_on_lost ? own->poison_lost : o->poison_lost) {
        vm->lost_after_ns = o->lost_after_ns;
    }
    for (unsigned i = 0; i < o->nr_tiers; i++) {
        struct tier_config *c = &vm->tier_configs[i + 1];

        *c = o->tiers[i];
        vm_options_apply(own, c);
        vm->tier_bytes[i + 1] = c->capacity;
    }
}

/* Smallest limit that makes sense for this VM. */
static uint64_t limit_min(const struct vm *vm)
{
    uint64_t ram = stats_get(&vm->stats->ram_bytes);

    uint64_t least = atomic_load(&vm->nr_huge) ? LIMIT_MIN_HUGE_BYTES : LIMIT_MIN_BYTES;

    return ram < least ? ram : least;
}

/* RAM of the VM in huge pages, which only some tiers take. */
static uint64_t huge_bytes(const struct vm *vm)
{
    uint64_t bytes = 0;

    for (unsigned i = 0; i < UFFDMM_REGIONS_MAX; i++) {
        const struct region *r = vm->regions[i];

        bytes += r && region_is_huge(r) ? r->size : 0;
    }
    return bytes;
}

/*
 * Makes room in the tiers for @ram bytes of guest memory of which @limit stay
 * resident.  Refuses when all of them together are too small for the rest.
 */
static int reserve(struct vm *vm, uint64_t ram, uint64_t limit, char *err, size_t err_len)
{
    uint64_t need = ram > limit ? ram - limit : 0, room = 0, more;
    uint64_t huge = huge_bytes(vm), huge_room = 0;

    for (unsigned i = 1; i < UFFDMM_TIERS_MAX; i++) {
        struct tier *t = vm->tiers[i];
        int ret;

        if (!t) {
            continue;
        }
        ret = t->ops->reserve(t, ram, err, err_len);
        if (ret) {
            return ret;
        }
        room += stats_get(&t->stats->capacity_bytes);
        if (t->ops->take_run) {
            huge_room += stats_get(&t->stats->capacity_bytes);
        }
    }
    if (huge > limit && huge_room < huge - limit + 2 * (uint64_t)PAGE_SIZE_2M) {
        /* the pools do not count */
        need = huge - limit;
        room = huge_room;
    }
    /* a batch needs room beside what is stored already */
    if (vm->incoming) {
        for (unsigned i = 1; i <= vm->options->nr_tiers; i++) {
            if (!vm->tiers[i]) {
                return 0; /* its room is known when the volume has come */
            }
        }
    }
    more = need + 2 * (uint64_t)(huge ? PAGE_SIZE_2M : BATCH_PAGES * PAGE_SIZE_4K);
    if (need && room < more) {
        snprintf(
            err, err_len,
            "the tiers are too small: together they hold %llu MiB of VM '%s', but %llu MiB of "
            "RAM with a limit of %llu MiB need %llu MiB; raise a capacity or the limit",
            (unsigned long long)(room >> 20), vm->name, (unsigned long long)(ram >> 20),
            (unsigned long long)(limit >> 20), (unsigned long long)(more >> 20));
        return -ENOSPC;
    }
    return 0;
}

int policy_region_added(struct vm *vm, char *err, size_t err_len)
{
    uint64_t ram = stats_get(&vm->stats->ram_bytes);
    uint64_t limit = stats_get(&vm->stats->limit_bytes);

    if (vm->limit_percent && !vm->limit_chosen) {
        limit = (ram / 100 * vm->limit_percent) & ~(uint64_t)(PAGE_SIZE_4K - 1);
        if (limit < limit_min(vm)) {
            limit = limit_min(vm);
        }
        set_limit(vm, limit);
    }
    bound_tiers(vm);
    if (atomic_load(&vm->nr_huge) && limit && limit < limit_min(vm)) {
        snprintf(err, err_len,
                 "limit of %llu MiB is too small for VM '%s' with pages of 2 MiB: use at "
                 "least %llu MiB",
                 (unsigned long long)(limit >> 20), vm->name,
                 (unsigned long long)(limit_min(vm) >> 20));
        return -EINVAL;
    }
    return reserve(vm, ram, limit ? limit : ram, err, err_len);
}

/* True when tier_mask names tiers that this VM has. */
static bool tiers_ok(const struct vm *vm, const struct uffdmm_policy *p)
{
    for (unsigned i = 0; i < 32; i++) {
        if (p->tier_mask >> i & 1 && (i >= UFFDMM_TIERS_MAX || !vm->tiers[i])) {
            return false;
        }
    }
    return p->tier_mask != 0;
}

/* Of the settings that the control plane works with; the worker only keeps them. */
static int check_plane(const struct vm *vm, const struct uffdmm_policy *p, char *err,
                       size_t err_len)
{
    uint64_t min =
        p->fields & UFFDMM_POLICY_MIN ? p->min_bytes : stats_get(&vm->stats->min_bytes);
    uint64_t max =
        p->fields & UFFDMM_POLICY_MAX ? p->max_bytes : stats_get(&vm->stats->max_bytes);
    const struct {
        uint32_t field;
        uint32_t value, least, most;
        const char *what;
    } numbers[] = {
        {UFFDMM_POLICY_SHARES, p->shares, 1, SHARES_MAX, "shares"},
        {UFFDMM_POLICY_PRIORITY, p->priority, 0, PRIORITY_MAX, "priority"},
        {UFFDMM_POLICY_TRACK, p->track_permille, 0, 1000, "tracking rate (permille)"},
        {UFFDMM_POLICY_OPT_OUT, p->opt_out, 0, 1, "opt-out"},
    };

    if ((p->fields & (UFFDMM_POLICY_MIN | UFFDMM_POLICY_MAX)) && max && min > max) {
        snprintf(err, err_len,
                 "VM '%s': the minimum of %llu bytes is above the maximum of %llu: lower "
                 "the one or raise the other",
                 vm->name, (unsigned long long)min, (unsigned long long)max);
        return -EINVAL;
    }
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        if ((p->fields & numbers[i].field) &&
            (numbers[i].value < numbers[i].least || numbers[i].value > numbers[i].most)) {
            snprintf(err, err_len, "%s of %u for VM '%s': use %u to %u", numbers[i].what,
                     numbers[i].value, vm->name, numbers[i].least, numbers[i].most);
            return -EINVAL;
        }
    }
    return 0;
}

/* Checks everything before anything is changed. */
static int check_policy(struct vm *vm, const struct uffdmm_policy *p, char *err,
                        size_t err_len)
{
    if (!p->fields || p->fields & ~FIELDS_KNOWN) {
        snprintf(err, err_len, "policy fields %#x: this manager knows %#x", p->fields,
                 FIELDS_KNOWN);
        return -EINVAL;
    }
    if ((p->fields & UFFDMM_POLICY_READAHEAD) &&
        (p->readahead_pages < 1 || p->readahead_pages > WINDOW_MAX)) {
        snprintf(err, err_len, "read-ahead of %u pages: use 1 (off) to %u",
                 p->readahead_pages, WINDOW_MAX);
        return -EINVAL;
    }
    if ((p->fields & UFFDMM_POLICY_LIMIT) && p->limit_bytes &&
        p->limit_bytes < limit_min(vm)) {
        snprintf(
            err, err_len,
            "limit of %llu bytes is too small for VM '%s': use at least %llu, or 0 for none",
            (unsigned long long)p->limit_bytes, vm->name,
            (unsigned long long)limit_min(vm));
        return -EINVAL;
    }
    if ((p->fields & UFFDMM_POLICY_TIERS) && !tiers_ok(vm, p)) {
        snprintf(err, err_len, "tiers %#x: VM '%s' has tiers 1 to %u", p->tier_mask,
                 vm->name, vm->nr_tiers - 1);
        return -EINVAL;
    }
    if ((p->fields & UFFDMM_POLICY_DEMOTE) && p->demote_after_ms > DEMOTE_MAX_MS) {
        snprintf(err, err_len, "demotion after %llu ms: use at most %llu, or 0 for never",
                 (unsigned long long)p->demote_after_ms,
                 (unsigned long long)DEMOTE_MAX_MS);
        return -EINVAL;
    }
    return check_plane(vm, p, err, err_len);
}

static void set_plane(struct uffdmm_stats *stats, const struct uffdmm_policy *p)
{
    if (p->fields & UFFDMM_POLICY_MIN) {
        stats_set(&stats->min_bytes, p->min_bytes);
    }
    if (p->fields & UFFDMM_POLICY_MAX) {
        stats_set(&stats->max_bytes, p->max_bytes);
    }
    if (p->fields & UFFDMM_POLICY_SHARES) {
        stats_set(&stats->shares, p->shares);
    }
    if (p->fields & UFFDMM_POLICY_PRIORITY) {
        stats_set(&stats->priority, p->priority);
    }
    if (p->fields & UFFDMM_POLICY_OPT_OUT) {
        stats_set(&stats->opt_out, p->opt_out);
    }
    if (p->fields & UFFDMM_POLICY_TRACK) {
        stats_set(&stats->track_permille, p->track_permille);
    }
}

int policy_set(struct vm *vm, const struct uffdmm_policy *p, char *err, size_t err_len)
{
    uint64_t ram = stats_get(&vm->stats->ram_bytes);
    int ret = check_policy(vm, p, err, err_len);

    if (!ret && (p->fields & UFFDMM_POLICY_LIMIT) && ram) {
        ret = reserve(vm, ram, p->limit_bytes ? p->limit_bytes : ram, err, err_len);
    }
    if (ret) {
        return ret;
    }
    if (p->fields & UFFDMM_POLICY_TIERS) {
        for (unsigned i = 1; i < UFFDMM_TIERS_MAX; i++) {
            if (p->tier_mask >> i & 1) {
                vm->tier_bytes[i] = p->tier_bytes[i];
            }
        }
        bound_tiers(vm);
    }
    if (p->fields & UFFDMM_POLICY_LIMIT) {
        vm->limit_chosen = true;
        set_limit(vm, p->limit_bytes);
    }
    if (p->fields & UFFDMM_POLICY_READAHEAD) {
        set_readahead(vm, p->readahead_pages);
    }
    if (p->fields & UFFDMM_POLICY_DEMOTE) {
        set_demote_after(vm, p->demote_after_ms);
    }
    set_plane(vm->stats, p);
    return 0;
}

void policy_get(const struct vm *vm, struct uffdmm_policy *p)
{
    *p = (struct uffdmm_policy){
        .fields = FIELDS_KNOWN,
        .readahead_pages = (uint32_t)stats_get(&vm->stats->readahead_pages),
        .limit_bytes = stats_get(&vm->stats->limit_bytes),
        .demote_after_ms = stats_get(&vm->stats->demote_after_ms),
        .min_bytes = stats_get(&vm->stats->min_bytes),
        .max_bytes = stats_get(&vm->stats->max_bytes),
        .shares = (uint32_t)stats_get(&vm->stats->shares),
        .priority = (uint32_t)stats_get(&vm->stats->priority),
        .opt_out = (uint32_t)stats_get(&vm->stats->opt_out),
        .track_permille = (uint32_t)stats_get(&vm->stats->track_permille),
    };
    for (unsigned i = 1; i < UFFDMM_TIERS_MAX; i++) {
        if (vm->tiers[i]) {
            p->tier_mask |= 1u << i;
            p->tier_bytes[i] = vm->tier_bytes[i];
        }
    }
}
