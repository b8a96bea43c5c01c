/* SPDX-License-Identifier: GPL-2.0-or-later */
/* --vm NAME[,key=value]...: keys of the VM, and TIER.key for those of its tiers. */
#include "vm_options.h"

#include <stdio.h>
#include <string.h>

#include "config.h"
#include "option_pairs.h"
#include "options.h"

/* SIZE, N% or none. */
static bool set_limit(struct vm_options *vm, const char *v)
{
    size_t len = strlen(v);
    char number[8] = "";
    uint64_t percent;

    vm->has_limit = true;
    if (!strcmp(v, "none")) {
        return true;
    }
    if (!len || v[len - 1] != '%') {
        return options_parse_size(v, &vm->limit_bytes) && vm->limit_bytes;
    }
    if (len <= sizeof(number)) {
        memcpy(number, v, len - 1);
    }
    if (!option_number(number, 1, 100, &percent)) {
        return false;
    }
    vm->limit_percent = (unsigned)percent;
    return true;
}

static bool set_readahead(struct vm_options *vm, const char *v)
{
    uint64_t pages;

    if (!option_number(v, 1, WINDOW_MAX, &pages)) {
        return false;
    }
    vm->readahead_pages = (unsigned)pages;
    return true;
}

static bool set_demote_after(struct vm_options *vm, const char *v)
{
    vm->has_demote_after = true;
    return option_demote_after(v, &vm->demote_after_ns);
}

static bool set_on_lost(struct vm_options *vm, const char *v)
{
    vm->has_on_lost = true;
    return option_on_lost(v, &vm->poison_lost);
}

static bool set_tier_capacity(struct vm_tier_options *t, const char *v)
{
    return options_parse_size(v, &t->capacity) && t->capacity >= PAGE_SIZE_4K;
}

static bool set_tier_codec(struct vm_tier_options *t, const char *v)
{
    t->has_codec = true;
    return tier_options_codec(v, &t->codec);
}

static const struct {
    const char *name;
    const char *wanted; /* completes "is not ..." */
    bool (*set)(struct vm_options *vm, const char *v);
} vm_keys[] = {
    {"limit", "a size (512M), a percentage (50%) or none", set_limit},
    {"readahead", "a number from 1 to 64", set_readahead},
    {"demote-after", "a time of whole milliseconds with its unit (30s), or never",
     set_demote_after},
    {"on-lost", "wait or poison", set_on_lost},
};

static const struct {
    const char *name;
    const char *wanted;
    bool (*set)(struct vm_tier_options *t, const char *v);
} tier_keys[] = {
    {"capacity", "a size of one page or more, for example 16G", set_tier_capacity},
    {"codec", "lz4 or zstd", set_tier_codec},
};

#define NR(array) (sizeof(array) / sizeof((array)[0]))

static bool unknown_key(const char *vm, const char *key, const char *word,
                        const char *const *names, size_t nr)
{
    const char *nearest = option_nearest(word, names, nr);

    fprintf(stderr, "uffdmm-manager: --vm '%s': unknown key '%s'", vm, key);
    if (nearest) {
        fprintf(stderr, ": did you mean '%.*s%s'?\n", (int)(word - key), key, nearest);
    } else {
        fprintf(stderr, "; there are limit, readahead, demote-after, on-lost, "
                        "TIER.capacity and TIER.codec\n");
    }
    return false;
}

static bool bad_value(const char *vm, const struct option_pair *pair, const char *wanted)
{
    fprintf(stderr, "uffdmm-manager: --vm '%s': %s '%s' is not %s\n", vm, pair->key,
            pair->value, wanted);
    return false;
}

/* Notes in @given that key @bit is there; false, after a message, when it was before. */
static bool note(uint64_t *given, size_t bit, const char *vm, const char *key)
{
    if (*given & (UINT64_C(1) << bit)) {
        fprintf(stderr, "uffdmm-manager: --vm '%s': '%s' is given twice\n", vm, key);
        return false;
    }
    *given |= UINT64_C(1) << bit;
    return true;
}

static bool set_vm_key(struct vm_options *vm, uint64_t *given,
                       const struct option_pair *pair)
{
    const char *names[NR(vm_keys)];

    for (size_t i = 0; i < NR(vm_keys); i++) {
        names[i] = vm_keys[i].name;
        if (!strcmp(pair->key, vm_keys[i].name)) {
            return note(given, i, vm->name, pair->key) &&
                   (vm_keys[i].set(vm, pair->value) ||
                    bad_value(vm->name, pair, vm_keys[i].wanted));
        }
    }
    return unknown_key(vm->name, pair->key, pair->key, names, NR(vm_keys));
}

/* TIER.key, @dot being where. */
static bool set_tier_key(struct vm_options *vm, uint64_t *given,
                         const struct option_pair *pair, const char *dot)
{
    const char *names[NR(tier_keys)];
    size_t len = (size_t)(dot - pair->key);
    struct vm_tier_options *t = NULL;

    for (unsigned i = 0; i < vm->nr_tiers; i++) {
        if (!strncmp(vm->tiers[i].tier, pair->key, len) && !vm->tiers[i].tier[len]) {
            t = &vm->tiers[i];
        }
    }
    if (!t) {
        if (!len || len >= sizeof(t->tier) || vm->nr_tiers == NR(vm->tiers)) {
            fprintf(stderr, "uffdmm-manager: --vm '%s': '%s' names no tier\n", vm->name,
                    pair->key);
            return false;
        }
        t = &vm->tiers[vm->nr_tiers++];
        memcpy(t->tier, pair->key, len);
    }
    for (size_t i = 0; i < NR(tier_keys); i++) {
        names[i] = tier_keys[i].name;
        if (!strcmp(dot + 1, tier_keys[i].name)) {
            size_t bit = NR(vm_keys) + NR(tier_keys) * (size_t)(t - vm->tiers) + i;

            return note(given, bit, vm->name, pair->key) &&
                   (tier_keys[i].set(t, pair->value) ||
                    bad_value(vm->name, pair, tier_keys[i].wanted));
        }
    }
    return unknown_key(vm->name, pair->key, dot + 1, names, NR(tier_keys));
}

bool vm_options_parse(struct vm_options *out, const char *text)
{
    const char *whole = text;
    struct option_pair pair;
    uint64_t given = 0;
    const char *dot;

    memset(out, 0, sizeof(*out));
    /* the names that the acceptor lets in */
    if (!option_first_word(&text, out->name, sizeof(out->name)) ||
        !option_name_ok(out->name, "-_.+:@") || out->name[0] == '.') {
        fprintf(stderr,
                "uffdmm-manager: --vm '%s' does not begin with the name of a VM: 1 to %d "
                "characters of A-Z a-z 0-9 - _ . + : @, the first one not a dot\n",
                whole, UFFDMM_NAME_MAX - 1);
        return false;
    }
    while (*text) {
        if (!option_next_pair(&text, &pair, "--vm", out->name)) {
            return false;
        }
        dot = strchr(pair.key, '.');
        if (!(dot ? set_tier_key(out, &given, &pair, dot)
                  : set_vm_key(out, &given, &pair))) {
            return false;
        }
    }
    return true;
}

static const struct tier_config *find_tier(const struct tier_config *tiers, unsigned nr,
                                           const char *name)
{
    for (unsigned i = 0; i < nr; i++) {
        if (!strcmp(tiers[i].name, name)) {
            return &tiers[i];
        }
    }
    return NULL;
}

/* The overrides of one VM against the tiers there are. */
static bool check_tiers(const struct vm_options *vm, const struct tier_config *tiers,
                        unsigned nr_tiers)
{
    for (unsigned i = 0; i < vm->nr_tiers; i++) {
        const struct vm_tier_options *o = &vm->tiers[i];
        const struct tier_config *t = find_tier(tiers, nr_tiers, o->tier);

        if (!t) {
            const char *names[TIER_OPTIONS_MAX];
            const char *nearest;
            size_t nr = 0;

            while (nr < nr_tiers && nr < NR(names)) {
                names[nr] = tiers[nr].name;
                nr++;
            }
            nearest = option_nearest(o->tier, names, nr);
            fprintf(stderr, "uffdmm-manager: --vm '%s': there is no tier '%s'", vm->name,
                    o->tier);
            if (nearest) {
                fprintf(stderr, ": did you mean '%s'?\n", nearest);
            } else {
                fputs(": add it with --tier\n", stderr);
            }
            return false;
        }
        if (o->has_codec && t->type != UFFDMM_TIER_POOL) {
            fprintf(
                stderr,
                "uffdmm-manager: --vm '%s': tier '%s' has no codec: it is not a pool\n",
                vm->name, o->tier);
            return false;
        }
    }
    return true;
}

bool vm_options_check(const struct vm_options *vms, unsigned nr,
                      const struct tier_config *tiers, unsigned nr_tiers)
{
    for (unsigned i = 0; i < nr; i++) {
        if (vm_options_find(vms, i, vms[i].name)) {
            fprintf(stderr, "uffdmm-manager: --vm '%s' is given twice\n", vms[i].name);
            return false;
        }
        if (!check_tiers(&vms[i], tiers, nr_tiers)) {
            return false;
        }
    }
    return true;
}

const struct vm_options *vm_options_find(const struct vm_options *vms, unsigned nr,
                                         const char *name)
{
    for (unsigned i = 0; i < nr; i++) {
        if (!strcmp(vms[i].name, name)) {
            return &vms[i];
        }
    }
    return NULL;
}

void vm_options_apply(const struct vm_options *vm, struct tier_config *tier)
{
    for (unsigned i = 0; vm && i < vm->nr_tiers; i++) {
        const struct vm_tier_options *o = &vm->tiers[i];

        if (strcmp(o->tier, tier->name) != 0) {
            continue;
        }
        if (o->capacity) {
            tier->capacity = o->capacity;
        }
        if (o->has_codec) {
            tier->codec = o->codec;
            if (o->codec == TIER_CODEC_LZ4) {
                tier->level = 0; /* was meant for zstd */
            }
        }
    }
}
