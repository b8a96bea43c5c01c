/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The `file` tier: slots over one or several volumes (file_volume.c).
 *
 * Theory of operation.  Slots are striped over the paths in chunks of 1 MiB: chunk
 * c lies in path c modulo n, behind the chunks c-n, c-2n ... of that path.  A chunk is
 * long enough for any read-ahead to be one request, and short enough for a batch of
 * the evictor to keep several disks busy.  Slot 0 is where the label of the first path
 * is and never a page's; the others have their label before their first chunk.
 *
 * What is freed is made unreadable in the background, by runs of slots; a run is
 * taken first as if to write to it, so that nobody else does (slots.h).
 */
#include "tier_file.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "config.h"
#include "file_label.h"
#include "file_volume.h"
#include "log.h"
#include "slots.h"
#include "stats.h"
#include "tier.h"
#include "tier_io.h"

#define CHUNK_SLOTS 256u

/* Smallest and largest run that one trim makes unreadable, in slots. */
#define TRIM_MIN 64
#define TRIM_MAX 16384

/* Slots beyond the pages of the VM, so that whole blocks can be rewritten. */
#define SLACK_SHIFT 3
#define SLACK_MIN (BLOCK_PAGES * (uint64_t)PAGE_SIZE_4K)

struct file_tier {
    struct slots slots;
    struct file_volume volumes[TIER_PATHS_MAX];
    unsigned nr;
};

/* A run of slots in one path. */
struct place {
    unsigned path;
    uint64_t offset; /* bytes */
};

static struct file_tier *file_of(const struct tier *t)
{
    return t->priv;
}

static struct place place_of(const struct file_tier *f, uint64_t slot)
{
    uint64_t chunk = slot / CHUNK_SLOTS;
    unsigned path = (unsigned)(chunk % f->nr);
    uint64_t local = chunk / f->nr * CHUNK_SLOTS + slot % CHUNK_SLOTS;

    return (struct place){.path = path, .offset = (local + (path != 0)) * PAGE_SIZE_4K};
}

/* Bytes that path @index must have for @nr_slots in all. */
static uint64_t path_bytes(const struct file_tier *f, unsigned index, uint64_t nr_slots)
{
    uint64_t row = (uint64_t)CHUNK_SLOTS * f->nr;
    uint64_t local = nr_slots / row * CHUNK_SLOTS, rest = nr_slots % row;
    uint64_t before = (uint64_t)index * CHUNK_SLOTS;

    if (rest > before) {
        local += rest - before < CHUNK_SLOTS ? rest - before : CHUNK_SLOTS;
    }
    return (local + (index != 0)) * PAGE_SIZE_4K;
}

/* Slots that the devices among the paths have room for; UINT64_MAX without any. */
static uint64_t device_slots(const struct file_tier *f)
{
    uint64_t least = UINT64_MAX;

    for (unsigned i = 0; i < f->nr; i++) {
        const struct file_volume *v = &f->volumes[i];
        uint64_t slots = v->bytes / PAGE_SIZE_4K - (i != 0);

        if (file_volume_is_device(v)) {
            slots = f->nr == 1 ? slots : slots / CHUNK_SLOTS * CHUNK_SLOTS;
            least = slots < least ? slots : least;
        }
    }
    return least == UINT64_MAX ? least : least * f->nr;
}

/* ---- open, close --------------------------------------------------------- */

/* Leaves the volumes as they are, for whoever opens them next or holds them. */
static void detach_volumes(struct file_tier *f)
{
    while (f->nr) {
        file_volume_detach(&f->volumes[--f->nr]);
    }
}

static void close_volumes(struct file_tier *f, bool keep)
{
    while (f->nr) {
        file_volume_close(&f->volumes[--f->nr], keep);
    }
}

/* Slots of a volume that is taken over: all that there is room for. */
static int keep_slots(struct tier *t)
{
    struct file_tier *f = file_of(t);
    uint64_t slots = 0;

    for (unsigned i = 0; i < f->nr; i++) {
        slots += f->volumes[i].bytes / PAGE_SIZE_4K - (i != 0 && f->volumes[i].bytes);
    }
    if (device_slots(f) < slots) {
        slots = device_slots(f);
    }
    stats_set(&t->stats->capacity_bytes, slots ? (slots - 1) * PAGE_SIZE_4K : 0);
    return slots_grow(&f->slots, slots);
}

static int open_file(struct tier *t, const struct tier_vm *vm, char *err, size_t err_len)
{
    struct file_tier *f = calloc(1, sizeof(*f));
    int ret = f ? slots_init(&f->slots, 0) : -ENOMEM;

    if (ret) {
        snprintf(err, err_len, "tier %s: no memory for the slot map of VM %s",
                 t->config->name, vm->name);
        free(f);
        return ret;
    }
    if (!t->config->nr_paths) {
        snprintf(
            err, err_len,
            "tier %s has no place for its volumes; name one with path=", t->config->name);
        ret = -EINVAL;
    }
    for (unsigned i = 0; !ret && i < t->config->nr_paths; i++) {
        ret = file_volume_open(&f->volumes[i], t->config, i, vm, err, err_len);
        f->nr += ret == 0;
        t->hard_to_keep |= f->volumes[i].lockless;
    }
    t->priv = f;
    if (!ret && vm->kept) {
        ret = keep_slots(t);
        if (ret) {
            snprintf(err, err_len, "tier %s: no memory for the slot map of VM %s",
                     t->config->name, vm->name);
        }
    }
    if (ret) {
        if (vm->kept) {
            detach_volumes(f);
        }
        close_volumes(f, false);
        slots_deinit(&f->slots);
        free(f);
        t->priv = NULL;
        return ret;
    }
    return 0;
}

/* Makes the slots from @start on unreadable.  0 or a negative errno. */
static int zero_slots(struct file_tier *f, uint64_t start, uint64_t nr)
{
    struct place first[TIER_PATHS_MAX] = {0};
    uint64_t length[TIER_PATHS_MAX] = {0};
    uint64_t slot, end = start + nr, n;

    /* of a run, what lies in one path lies there without a gap */
    for (slot = start; slot < end; slot += n) {
        struct place at = place_of(f, slot);

        n = CHUNK_SLOTS - slot % CHUNK_SLOTS;
        n = n < end - slot ? n : end - slot;
        if (!length[at.path]) {
            first[at.path] = at;
        }
        length[at.path] += n * PAGE_SIZE_4K;
    }
    for (unsigned i = 0; i < f->nr; i++) {
        int ret =
            length[i] ? file_volume_zero(&f->volumes[i], first[i].offset, length[i]) : 0;

        if (ret) {
            return ret;
        }
    }
    return 0;
}

/* Makes whatever is on a device that is given back unreadable for its next owner. */
static void zero_all(const struct tier *t)
{
    struct file_tier *f = file_of(t);
    uint64_t start, nr;
    int ret = 0;

    for (uint64_t slot = 1; slot < f->slots.nr; slot++) {
        slots_free(&f->slots, slot);
    }
    /* the search ends at the end of the map, and begins anew with the next call */
    for (int rounds = 0; !ret && rounds < 2; rounds++) {
        while (!ret && (nr = slots_take_untrimmed(&f->slots, 1, TRIM_MAX, &start))) {
            ret = zero_slots(f, start, nr);
            slots_trimmed(&f->slots, start, nr, true);
        }
    }
    if (ret) {
        log_warn("tier %s: cannot make the pages of VM %s on %s unreadable: %s",
                 t->config->name, t->vm.name, t->config->paths[0], strerror(-ret));
    }
}

static bool any_device(const struct file_tier *f)
{
    for (unsigned i = 0; i < f->nr; i++) {
        if (file_volume_is_device(&f->volumes[i])) {
            return true;
        }
    }
    return false;
}

/* True while all volumes are ours; else says why not, in the statistics. */
static bool held(struct tier *t)
{
    struct file_tier *f = file_of(t);
    char err[UFFDMM_TEXT_MAX];

    for (unsigned i = 0; i < f->nr; i++) {
        if (file_label_held(&f->volumes[i], err, sizeof(err))) {
            tier_error(t, "%s", err);
            return false;
        }
    }
    return true;
}

static void close_file(struct tier *t, bool keep)
{
    struct file_tier *f = file_of(t);

    if (tier_hold(t) != TIER_HELD || t->unsettled) {
        detach_volumes(f);
    } else if (!keep && any_device(f) && held(t)) {
        zero_all(t);
    }
    close_volumes(f, keep);
    slots_deinit(&f->slots);
    free(f);
    t->priv = NULL;
}

/* ---- room ---------------------------------------------------------------- */

/*
 * A device that a dead worker left behind is full of pages of that VM: counts every
 * slot as written, so that tidy() makes it unreadable bit by bit.
 */
static void mark_leftovers(struct file_tier *f)
{
    bool leftovers = false;
    uint64_t start, nr;

    for (unsigned i = 0; i < f->nr; i++) {
        leftovers |= f->volumes[i].leftovers;
        f->volumes[i].leftovers = false;
    }
    if (leftovers) {
        nr = slots_alloc(&f->slots, f->slots.nr, &start);
        while (nr) {
            slots_free(&f->slots, start + --nr);
        }
    }
}

static int reserve(struct tier *t, uint64_t bytes, char *err, size_t err_len)
{
    struct file_tier *f = file_of(t);
    uint64_t before[TIER_PATHS_MAX];
    uint64_t want = bytes + (bytes >> SLACK_SHIFT) + SLACK_MIN, slots, devices;
    unsigned i;
    int ret = 0;

    if (t->config->capacity && want > t->config->capacity) {
        want = t->config->capacity;
    }
    slots = want / PAGE_SIZE_4K + 1;
    devices = device_slots(f);
    slots = slots < devices ? slots : devices;
    if (slots <= f->slots.nr) {
        return 0;
    }
    for (i = 0; !ret && i < f->nr; i++) {
        before[i] = f->volumes[i].bytes;
        if (!file_volume_is_device(&f->volumes[i])) {
            ret = file_volume_grow(&f->volumes[i], path_bytes(f, i, slots), err, err_len);
        }
    }
    if (!ret) {
        ret = slots_grow(&f->slots, slots);
        if (ret) {
            snprintf(err, err_len,
                     "tier %s: no memory for the slot map of a volume of %llu MiB",
                     t->config->name, (unsigned long long)(slots * PAGE_SIZE_4K >> 20));
        }
    }
    if (ret) {
        while (i--) {
            file_volume_shrink(&f->volumes[i], before[i]);
        }
        return ret;
    }
    mark_leftovers(f);
    stats_set(&t->stats->capacity_bytes, (slots - 1) * PAGE_SIZE_4K);
    return 0;
}

/* ---- slots --------------------------------------------------------------- */

/* Sorts the slots of pages; they come in ascending runs, so that there is little to do. */
static void sort_slots(struct tier_put *puts, unsigned nr)
{
    for (unsigned i = 1; i < nr; i++) {
        uint64_t slot = puts[i].slot;
        unsigned k = i;

        for (; k && puts[k - 1].slot > slot; k--) {
            puts[k].slot = puts[k - 1].slot;
        }
        puts[k].slot = slot;
    }
}

static void put(struct tier *t, struct tier_scratch *s, struct tier_put *puts,
                unsigned nr)
{
    struct file_tier *f = file_of(t);
    unsigned done = 0;
    uint64_t start, got;

    (void)s;
    while (done < nr && (got = slots_alloc(&f->slots, nr - done, &start))) {
        for (uint64_t i = 0; i < got; i++, done++) {
            puts[done].slot = start + i;
            puts[done].result = 0;
        }
    }
    sort_slots(puts, done);
    for (; done < nr; done++) {
        puts[done].slot = 0;
        puts[done].result = -ENOSPC;
    }
}

static int take_run(struct tier *t, unsigned nr, uint64_t *slot)
{
    return slots_alloc_run(&file_of(t)->slots, nr, slot) ? 0 : -ENOSPC;
}

static bool free_slot(struct tier *t, uint64_t slot)
{
    return slots_free(&file_of(t)->slots, slot);
}

static bool take(struct tier *t, uint64_t slot, uint32_t region_id, uint64_t pfn)
{
    (void)region_id;
    (void)pfn;
    return slots_take(&file_of(t)->slots, slot);
}

static void untake(struct tier *t, uint64_t slot)
{
    slots_untake(&file_of(t)->slots, slot);
}

static void settle(struct tier *t)
{
    slots_free_are_written(&file_of(t)->slots);
}

static void identity(const struct tier *t, uint8_t id[16])
{
    const struct file_tier *f = file_of(t);
    uint64_t seen[2 * TIER_PATHS_MAX] = {0};
    XXH128_canonical_t hash;

    for (unsigned i = 0; i < f->nr; i++) {
        struct stat st = {0};

        if (fstat(f->volumes[i].fd, &st) == 0) {
            seen[2 * i] = S_ISBLK(st.st_mode) ? st.st_rdev : st.st_dev;
            seen[2 * i + 1] = S_ISBLK(st.st_mode) ? 0 : st.st_ino;
        }
    }
    XXH128_canonicalFromHash(&hash, XXH3_128bits(seen, sizeof(seen)));
    memcpy(id, hash.digest, sizeof(hash.digest));
}

static bool valid(const struct tier *t, uint64_t slot)
{
    return slots_valid(&file_of(t)->slots, slot);
}

static uint64_t extent(const struct tier *t, uint64_t slot, uint64_t nr)
{
    const struct file_tier *f = file_of(t);
    uint64_t end = __atomic_load_n(&f->slots.nr, __ATOMIC_ACQUIRE);
    uint64_t most = slot < end ? end - slot : 0;

    if (f->nr > 1 && most > CHUNK_SLOTS - slot % CHUNK_SLOTS) {
        most = CHUNK_SLOTS - slot % CHUNK_SLOTS;
    }
    return nr < most ? nr : most;
}

static void submit(struct tier *t, struct tier_queue *q, struct tier_io *io)
{
    const struct file_tier *f = file_of(t);
    uint64_t nr = io->length / PAGE_SIZE_4K;
    struct place at;

    /* slots come from tables that QEMU can write */
    if (!valid(t, io->slot) || extent(t, io->slot, nr) < nr) {
        tier_io_done(io, -EINVAL);
        return;
    }
    at = place_of(f, io->slot);
    tier_ring_submit(q, io, f->volumes[at.path].fd, at.offset);
}

static uint64_t tidy(struct tier *t)
{
    struct file_tier *f = file_of(t);
    uint64_t start, nr, bytes;
    int ret;

    if (__atomic_load_n(&t->unsettled, __ATOMIC_ACQUIRE)) {
        return 0;
    }

    nr = slots_take_untrimmed(&f->slots, TRIM_MIN, TRIM_MAX, &start);
    if (!nr) {
        return 0;
    }
    bytes = nr * PAGE_SIZE_4K;
    ret = held(t) ? zero_slots(f, start, nr) : -ESTALE;
    slots_trimmed(&f->slots, start, nr, ret == 0);
    if (ret) {
        if (ret != -ESTALE) {
            tier_error(t, "cannot make freed slots on %s unreadable: %s; tried again",
                       t->config->paths[0], strerror(-ret));
        }
        return 0;
    }
    stats_add(&t->stats->trim_bytes, bytes);
    return bytes;
}

static uint64_t used(const struct tier *t)
{
    return __atomic_load_n(&file_of(t)->slots.used, __ATOMIC_RELAXED) * PAGE_SIZE_4K;
}

int tier_file_sweep(const struct tier_config *config, char *err, size_t err_len)
{
    int ret = 0;

    for (unsigned i = 0; !ret && i < config->nr_paths; i++) {
        ret = file_volume_sweep(config, i, err, err_len);
    }
    return ret;
}

/* ---- from host to host --------------------------------------------------- */

static int label_file(const struct tier *t, struct superblock *label, char *err,
                      size_t err_len)
{
    const struct file_tier *f = file_of(t);

    if (!t->config->shared || f->nr != 1) {
        snprintf(err, err_len, "tier %s %s", t->config->name,
                 f->nr != 1
                     ? "has several paths: a volume that goes to another host has one"
                     : "is not shared: say shared=on when other hosts can reach it");
        return -EOPNOTSUPP;
    }
    *label = f->volumes[0].label;
    return 0;
}

static int attach_file(struct tier *t, const struct tier_vm *vm,
                       const struct tier_source *from, char *err, size_t err_len)
{
    struct file_tier *f = calloc(1, sizeof(*f));
    uint64_t nr;
    int ret = f ? slots_init(&f->slots, 0) : -ENOMEM;

    (void)vm;
    if (ret) {
        snprintf(err, err_len, "tier %s: no memory for a slot map", t->config->name);
        free(f);
        return ret;
    }
    if (!t->config->shared || t->config->nr_paths != 1) {
        snprintf(err, err_len, "tier %s must have one path that is shared=on",
                 t->config->name);
        ret = -EOPNOTSUPP;
    }
    if (!ret) {
        ret = file_volume_attach(&f->volumes[0], t->config, 0, from, err, err_len);
    }
    if (!ret) {
        f->nr = 1;
        nr = f->volumes[0].bytes / PAGE_SIZE_4K;
        ret = slots_grow(&f->slots, nr);
        stats_set(&t->stats->capacity_bytes, (nr ? nr - 1 : 0) * PAGE_SIZE_4K);
        if (ret) {
            snprintf(err, err_len, "tier %s: no memory for a slot map", t->config->name);
            file_volume_detach(&f->volumes[0]);
        }
    }
    if (ret) {
        slots_deinit(&f->slots);
        free(f);
        return ret;
    }
    t->priv = f;
    return 0;
}

static bool claim(struct tier *t, uint64_t slot)
{
    return slots_claim(&file_of(t)->slots, slot);
}

static int release_volume(struct tier *t, const char *destination, uint64_t *epoch,
                          char *err, size_t err_len)
{
    return file_label_give(&file_of(t)->volumes[0], destination, epoch, err, err_len);
}

static int take_volume(struct tier *t, uint64_t epoch, char *err, size_t err_len)
{
    struct file_tier *f = file_of(t);
    int ret = file_label_receive(&f->volumes[0], &t->vm, epoch, err, err_len);

    if (!ret) {
        slots_mark_written(&f->slots);
        t->hard_to_keep = f->volumes[0].lockless;
    }
    return ret;
}

const struct tier_ops tier_file_ops = {
    .open = open_file,
    .close = close_file,
    .reserve = reserve,
    .put = put,
    .take_run = take_run,
    .take = take,
    .untake = untake,
    .settle = settle,
    .identity = identity,
    .free = free_slot,
    .valid = valid,
    .extent = extent,
    .submit = submit,
    .tidy = tidy,
    .used = used,
    .label = label_file,
    .attach = attach_file,
    .claim = claim,
    .release_volume = release_volume,
    .take_volume = take_volume,
};
