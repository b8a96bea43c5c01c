/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Recovery: a new worker takes over running memory.
 *
 * Theory of operation.  QEMU keeps memory, table, userfaultfds and arenas, and hands them to
 * a new worker one region at a time.  Three questions have to be answered.
 *
 * Is the former worker gone?  Every worker holds a lock on the table, through an open file of
 * its own that no other process has: it ends with the process, and not before the last of its
 * threads has left the kernel.  A volume file is locked likewise, and a write that io_uring
 * carries on after the end of the process holds the open file and so the lock; a block device
 * is opened exclusively, which lasts as long.  So with these locks nothing of the former worker
 * can land any more, in memory or in a store: no slot needs to be put into quarantine for it.
 * It does not matter whether the acceptor has outlived the worker.
 *
 * What is in a page?  Data that is in memory is never older than what a slot holds.  A page
 * leaves memory only by the punch, which comes after STORED is in the table and while the page
 * is protected; it leaves STORED before its protection is lifted or its bytes are copied in.
 * So:
 * - Data, whatever the entry says: RESIDENT.  With STORED the punch is missing, and memory
 *   and slot are the same: keeping it in memory costs room for a while and no thought.  With
 *   DISCARDED the punch of QEMU is to come (MAYHOLE allows it), or a copy was faster than QEMU
 *   would wait, and the guest may have written since: a punch would lose that.
 * - A hole, FILLING: the copy did not happen.  What was stored is there still, for a slot is
 *   freed after the entry has left it.
 * - A hole, EVICTING, RESIDENT or CLEAN: with MAYHOLE it reads as zero.  Else nobody can have
 *   made it, and the page is LOST rather than zeros.
 * CLEAN is not trusted: its slot is free.  Running this twice, as when a worker is killed in
 * the middle of it, ends in the same place, because each entry is changed to a state from
 * which the same follows.
 *
 * Whose are the slots?  Those that STORED entries name are taken, before an entry is changed;
 * one that is not there, or is named twice, refuses the region.  All other slots are free, but
 * only when all regions that there were have come back: until then nothing new is stored.
 * Tables are input throughout: QEMU can write to them.
 */
#include "recovery.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "evict_io.h"
#include "hierarchy.h"
#include "log.h"
#include "lost.h"
#include "policy.h"
#include "region.h"
#include "test_hooks.h"
#include "vm.h"

/* In the first page of a table, behind the header: between workers alone. */
#define NOTE_OFFSET 2048
#define NOTE_MAGIC 0x544f4e55u /* "UNOT" */

struct note {
    uint32_t magic;
    uint32_t regions; /* bit i: there is a region of number i */
    uint64_t recoveries;
    uint64_t ram_bytes; /* of all regions */
};

_Static_assert(sizeof(struct uffdmm_table_header) <= NOTE_OFFSET,
               "the note is behind it");
_Static_assert(UFFDMM_REGIONS_MAX <= 32, "a bit for each region");

static struct note *note_of(const struct region *r)
{
    return (void *)((char *)r->table + NOTE_OFFSET);
}

static uint32_t regions_here(const struct vm *vm, const struct region *leaving)
{
    uint32_t bits = 0;

    for (unsigned i = 0; i < UFFDMM_REGIONS_MAX; i++) {
        if (vm->regions[i] && vm->regions[i] != leaving) {
            bits |= 1u << i;
        }
    }
    return bits;
}

void recovery_note(struct vm *vm, const struct region *leaving)
{
    struct uffdmm_policy policy;
    uint32_t regions = regions_here(vm, leaving) | (vm->unsettled ? vm->expected : 0);

    policy_get(vm, &policy);
    if (!vm->limit_chosen) {
        policy.fields &= ~(uint32_t)UFFDMM_POLICY_LIMIT;
    }
    for (unsigned k = 0; k < UFFDMM_REGIONS_MAX; k++) {
        struct region *r = vm->regions[k];

        if (!r) {
            continue;
        }
        r->header->nr_tiers = vm->nr_tiers;
        for (unsigned i = 1; i < UFFDMM_TIERS_MAX; i++) {
            const struct tier *t = vm->tiers[i];

            if (t) {
                memcpy(r->header->tier_names[i], t->config->name, UFFDMM_NAME_MAX);
            }
            if (t && t->ops->identity) {
                t->ops->identity(t, r->header->volume_ids[i]);
            }
        }
        r->header->policy = policy;
        *note_of(r) = (struct note){.magic = NOTE_MAGIC,
                                    .regions = regions,
                                    .recoveries = stats_get(&vm->stats->recoveries),
                                    .ram_bytes = stats_get(&vm->stats->ram_bytes)};
    }
}

/* ---- pages ---------------------------------------------------------------- */

/* What an entry becomes, knowing whether memory has the page; UINT64_MAX: it is damaged. */
static uint64_t outcome(uint64_t e, bool present)
{
    unsigned mayhole = (unsigned)e & UFFDMM_ENTRY_MAYHOLE;
    unsigned state = entry_state(e), gen = entry_gen(e);

    if (state > UFFDMM_PAGE_LOST) {
        return UINT64_MAX;
    }
    if (state == UFFDMM_PAGE_LOST) {
        /* poisoned: its slot is what it comes back from once the store is repaired */
        return present || !entry_slot(e) ? entry_make(UFFDMM_PAGE_LOST, 0, 0, gen, 0)
                                         : entry_with(e, UFFDMM_PAGE_LOST, 0);
    }
    if (state == UFFDMM_PAGE_DISCARDED || state == UFFDMM_PAGE_UNTRACKED) {
        mayhole = UFFDMM_ENTRY_MAYHOLE;
    }
    if (present) {
        return entry_make(UFFDMM_PAGE_RESIDENT, mayhole, 0, gen, 0);
    }
    switch (state) {
    case UFFDMM_PAGE_STORED:
        return entry_with(e, UFFDMM_PAGE_STORED, 0);
    case UFFDMM_PAGE_FILLING:
        if (entry_tier(e) != ENTRY_TIER_HOLE) {
            return entry_with(e, UFFDMM_PAGE_STORED, 0);
        }
        return entry_make(UFFDMM_PAGE_EMPTY, mayhole, 0, gen, 0);
    case UFFDMM_PAGE_EMPTY:
    case UFFDMM_PAGE_DISCARDED:
    case UFFDMM_PAGE_UNTRACKED:
        return entry_make(UFFDMM_PAGE_EMPTY, mayhole, 0, gen, 0);
    default:
        return mayhole ? entry_make(UFFDMM_PAGE_EMPTY, mayhole, 0, gen, 0)
                       : entry_make(UFFDMM_PAGE_LOST, 0, 0, gen, 0);
    }
}

/*
 * The same for a page of @r.  A poisoned page is read again by whoever wants it when poison
 * is no longer configured: nobody else would.
 */
static uint64_t decide(const struct region *r, uint64_t e, bool present)
{
    uint64_t to = outcome(e, present);

    if (entry_state(to) == UFFDMM_PAGE_LOST && entry_slot(to) && !r->vm->lost_after_ns) {
        to = entry_with(to, UFFDMM_PAGE_STORED, 0);
    }
    return to;
}

/* True when @e names slots of a tier. */
static bool names_slot(uint64_t e)
{
    return (entry_state(e) == UFFDMM_PAGE_STORED ||
            (entry_state(e) == UFFDMM_PAGE_LOST && entry_slot(e))) &&
           entry_tier(e) != UFFDMM_TIER_ZERO;
}

/* Takes the slots that @e names; false when they are not there for page @pfn. */
static bool take_slots(struct region *r, uint64_t pfn, uint64_t e)
{
    struct tier *t = vm_tier(r->vm, e);
    unsigned units = region_units(r), i = 0;

    if (!t || !entry_slot(e) || !tier_valid(t, entry_slot(e), units)) {
        return false;
    }
    while (i < units && t->ops->take(t, entry_slot(e) + i, r->id, pfn)) {
        i++;
    }
    if (i == units) {
        return true;
    }
    while (i) {
        t->ops->untake(t, entry_slot(e) + --i);
    }
    return false;
}

static void untake_slots(struct region *r, uint64_t e)
{
    struct tier *t = vm_tier(r->vm, e);

    for (unsigned i = 0; t && i < region_units(r); i++) {
        t->ops->untake(t, entry_slot(e) + i);
    }
}

/* Which pages memory has, a bit for each.  Before the entries are read: only holes are made. */
static int find_present(const struct region *r, uint64_t *present)
{
    off_t pos = 0, end;

    if (region_is_huge(r)) {
        for (uint64_t pfn = 0; pfn < r->nr_pages; pfn++) {
            if (presence_of(&r->presence, pfn << r->page_shift, PAGE_SIZE_2M)) {
                present[pfn / 64] |= 1ULL << (pfn % 64);
            }
        }
        return 0;
    }
    while ((pos = lseek(r->memfd, pos, SEEK_DATA)) >= 0) {
        end = lseek(r->memfd, pos, SEEK_HOLE);
        if (end <= pos) {
            return -EIO;
        }
        for (uint64_t pfn = (uint64_t)pos >> PAGE_SHIFT_4K;
             pfn < (uint64_t)end >> PAGE_SHIFT_4K; pfn++) {
            present[pfn / 64] |= 1ULL << (pfn % 64);
        }
        pos = end;
    }
    return errno == ENXIO ? 0 : -errno;
}

/*
 * Decides for each page, and takes the slots that stay in use: nothing is changed yet.
 * 0, or a negative errno with @err and no slot taken.
 */
static int plan_pages(struct region *r, const uint64_t *present, uint64_t *plan,
                      char *err, size_t err_len)
{
    for (uint64_t pfn = 0; pfn < r->nr_pages; pfn++) {
        uint64_t e = entry_load(&r->entries[pfn]);

        plan[pfn] = decide(r, e, present[pfn / 64] >> (pfn % 64) & 1);
        if (plan[pfn] != UINT64_MAX &&
            (!names_slot(plan[pfn]) || take_slots(r, pfn, plan[pfn]))) {
            continue;
        }
        snprintf(
            err, err_len,
            "the table of region '%s' is damaged: page %llu has state %u and names "
            "slot %llu of tier %u, which is not there, or another page's; end the VM",
            r->name, (unsigned long long)pfn, entry_state(e),
            (unsigned long long)entry_slot(e), entry_tier(e));
        while (pfn--) {
            if (names_slot(plan[pfn])) {
                untake_slots(r, plan[pfn]);
            }
        }
        return -EUCLEAN;
    }
    return 0;
}

/*
 * Puts the plan into the table.  QEMU may discard meanwhile: that wins, and the plan then
 * names no slot any more.
 */
static void apply_pages(struct region *r, const uint64_t *present, uint64_t *plan)
{
    uint64_t lost = 0, poisoned = 0;

    for (uint64_t pfn = 0; pfn < r->nr_pages; pfn++) {
        uint64_t e, to;

        do {
            e = entry_load(&r->entries[pfn]);
            to = decide(r, e, present[pfn / 64] >> (pfn % 64) & 1);
            if (to == UINT64_MAX || (names_slot(to) && to != plan[pfn])) {
                to = entry_make(UFFDMM_PAGE_LOST, 0, 0, entry_gen(e), 0);
            }
        } while (!entry_cas(&r->entries[pfn], e, to));
        if (names_slot(plan[pfn]) && to != plan[pfn]) {
            untake_slots(r, plan[pfn]);
            plan[pfn] = 0;
        }
        if (entry_state(to) == UFFDMM_PAGE_LOST && names_slot(to)) {
            lost_adopt(page_shard(r, pfn), pfn);
            poisoned++;
        } else {
            lost += entry_state(to) == UFFDMM_PAGE_LOST;
        }
    }
    stats_add(&r->vm->stats->lost_pages, lost + poisoned);
    if (lost) {
        log_error("region %s: %llu pages are in no place where they could be: they stay "
                  "blocked",
                  r->name, (unsigned long long)lost);
    }
}

/* *@planned: which slots are taken, an entry a page; to be freed. */
static int reconcile(struct region *r, uint64_t **planned, char *err, size_t err_len)
{
    uint64_t *plan = calloc(r->nr_pages, sizeof(*plan));
    uint64_t *present = calloc((r->nr_pages + 63) / 64, sizeof(*present));
    int ret = plan && present ? 0 : -ENOMEM;

    if (!ret) {
        ret = find_present(r, present);
    }
    if (ret) {
        snprintf(err, err_len, "cannot find out what is in memory of region '%s': %s",
                 r->name, strerror(-ret));
    } else {
        ret = plan_pages(r, present, plan, err, err_len);
    }
    test_hook_crash("recover-planned");
    if (!ret) {
        apply_pages(r, present, plan);
        *planned = plan;
    } else {
        free(plan);
    }
    free(present);
    return ret;
}

/* ---- the VM --------------------------------------------------------------- */

static int open_kept_tiers(struct vm *vm, struct region *r, const int *arenas,
                           unsigned nr_arenas, char *err, size_t err_len)
{
    struct hierarchy_kept kept = {.arenas = arenas, .nr_arenas = nr_arenas};
    struct note note = *note_of(r);
    uint64_t ram = r->size;

    /* copies: QEMU can write to them */
    kept.nr_tiers = __atomic_load_n(&r->header->nr_tiers, __ATOMIC_RELAXED);
    memcpy(kept.names, r->header->tier_names, sizeof(kept.names));
    memcpy(kept.volume_ids, r->header->volume_ids, sizeof(kept.volume_ids));
    if (note.magic == NOTE_MAGIC && note.ram_bytes > ram) {
        ram = note.ram_bytes;
    }
    return hierarchy_take_over(vm, ram, &kept, err, err_len);
}

/* What had been chosen for the VM stays chosen. */
static void apply_policy(struct vm *vm, const struct uffdmm_policy *found)
{
    struct uffdmm_policy policy = *found;
    char err[UFFDMM_TEXT_MAX];

    if (policy.fields && policy_set(vm, &policy, err, sizeof(err))) {
        log_warn("the policy of the former worker is not taken over: %s", err);
    }
}

/* Notes which regions are still to come; with the last one stores are in full use again. */
static void count_regions(struct vm *vm, const struct note *found, uint32_t id)
{
    uint32_t named = found->magic == NOTE_MAGIC ? found->regions | 1u << id : 1u << id;
    uint32_t missing;

    vm->expected = stats_get(&vm->stats->nr_regions) == 1 ? named : vm->expected & named;
    missing = vm->expected & ~regions_here(vm, NULL);
    if (missing && !test_hook("UFFDMM_TEST_RECOVER_SETTLE_EARLY")) {
        log_info("regions still to come back: mask %#x; nothing new is stored until then",
                 missing);
        return;
    }
    hierarchy_settle(vm);
}

/* Slots that nobody has named, as long as some may still be. */
static void count_quarantined(struct vm *vm)
{
    uint64_t pages = 0;

    for (unsigned i = 1; vm->unsettled && i < UFFDMM_TIERS_MAX; i++) {
        const struct tier *t = vm->tiers[i];

        if (t) {
            uint64_t room = stats_get(&t->stats->capacity_bytes) / PAGE_SIZE_4K;

            pages += room > tier_pages(t) ? room - tier_pages(t) : 0;
        }
    }
    stats_set(&vm->stats->quarantined, pages);
}

/* Everything but the userfaultfds, which are not ours to close here. */
static int adopt_region(struct vm *vm, const struct uffdmm_reconnect *req, const int *fds,
                        unsigned nr_fds, bool *tiers_open, struct region **out,
                        uint64_t **planned, char *err, size_t err_len)
{
    unsigned nr_shards = req->create.nr_shards;
    struct region *r;
    int ret = region_adopt(vm, &req->create, req->attach.region_id, fds[0], fds[1], &r,
                           err, err_len);

    if (ret) {
        return ret;
    }
    if (!*tiers_open) {
        ret = open_kept_tiers(vm, r, fds + 3 + nr_shards, nr_fds - 3 - nr_shards, err,
                              err_len);
        *tiers_open = ret == 0;
    } else if (!vm->unsettled) {
        snprintf(
            err, err_len,
            "region '%s' was not among those of VM '%s' that came back: it cannot be "
            "taken over any more",
            req->create.name, vm->name);
        ret = -ESTALE;
    }
    if (!ret) {
        ret = region_prepare(r);
        if (ret) {
            snprintf(err, err_len, "cannot set up region '%s': %s", r->name,
                     strerror(-ret));
        }
    }
    if (!ret) {
        ret = reconcile(r, planned, err, err_len);
    }
    if (ret) {
        region_free(r);
        return ret;
    }
    *out = r;
    return 0;
}

int recovery_take_over(struct vm *vm, const struct uffdmm_reconnect *req, const int *fds,
                       unsigned nr_fds, bool *tiers_open, struct region **out, char *err,
                       size_t err_len)
{
    unsigned nr_shards = req->create.nr_shards;
    uint64_t began = clock_ns(), *plan = NULL;
    struct uffdmm_policy policy;
    char text[UFFDMM_TEXT_MAX];
    struct region *r = NULL;
    struct note found;
    int ret;

    ret = adopt_region(vm, req, fds, nr_fds, tiers_open, &r, &plan, err, err_len);
    for (unsigned i = 3 + nr_shards; i < nr_fds; i++) {
        close(fds[i]); /* the pools have copies */
    }
    if (ret) {
        for (unsigned i = 2; i < 3 + nr_shards; i++) {
            close(fds[i]);
        }
        return ret;
    }
    found = *note_of(r);
    policy = r->header->policy;
    test_hook_crash("recover-applied");
    ret = region_resume(r, &req->attach, fds[2], fds + 3, err, err_len);
    if (ret) {
        /* by the plan, not by the table: QEMU may have named slots of another region there */
        for (uint64_t pfn = 0; pfn < r->nr_pages; pfn++) {
            if (names_slot(plan[pfn])) {
                untake_slots(r, plan[pfn]);
            }
        }
        free(plan);
        region_free(r);
        return ret;
    }
    free(plan);
    if (stats_get(&vm->stats->nr_regions) == 1) {
        apply_policy(vm, &policy);
        stats_set(&vm->stats->recoveries,
                  (found.magic == NOTE_MAGIC ? found.recoveries : 0) + 1);
    }
    if (policy_region_added(vm, text, sizeof(text))) {
        log_warn("%s", text);
    }
    vm_sync_resident(vm);
    test_hook_crash("recover-resumed");
    count_regions(vm, &found, r->id);
    count_quarantined(vm);
    recovery_note(vm, NULL);
    stats_add(&vm->stats->recovery_ns, clock_ns() - began);
    log_info("region %s taken over: %llu MiB, %llu in memory, in %llu us", r->name,
             (unsigned long long)(r->size >> 20),
             (unsigned long long)(atomic_load(&vm->resident) >> (20 - PAGE_SHIFT_4K)),
             (unsigned long long)((clock_ns() - began) / NSEC_PER_USEC));
    *out = r;
    return 0;
}
