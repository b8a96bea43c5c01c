/* SPDX-License-Identifier: GPL-2.0-or-later */
/* See guest_load.h. */
#include "guest_load.h"

#include "uffd_fixture.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { WORDS = PAGE / 8, DISCARD_MAX = 32 };

struct load_thread {
    struct guest_load *load;
    unsigned index;
    void (*work)(struct load_thread *t);
    enum load_pattern pattern;
    int64_t deadline;
    uint64_t random;
    pthread_t thread;
};

static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15ULL;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
    return x ^ (x >> 31);
}

static uint64_t next_random(struct load_thread *t)
{
    t->random = mix(t->random);
    return t->random;
}

enum page_kind { KIND_ZERO, KIND_WORD, KIND_NOISE, KIND_COMPRESSIBLE };

/* The kind of a page whose content follows from key. */
static enum page_kind kind_of(enum load_content content, uint64_t key)
{
    static const uint8_t varied[8] = {
        KIND_ZERO,         KIND_WORD,         KIND_NOISE,        KIND_NOISE,
        KIND_COMPRESSIBLE, KIND_COMPRESSIBLE, KIND_COMPRESSIBLE, KIND_COMPRESSIBLE};
    unsigned eighth = (unsigned)(key % 8);

    switch (content) {
    case LOAD_SAME:
        return eighth % 2 ? KIND_WORD : KIND_ZERO;
    case LOAD_COMPRESSIBLE:
        return KIND_COMPRESSIBLE;
    case LOAD_INCOMPRESSIBLE:
        return KIND_NOISE;
    case LOAD_VARIED:
        return (enum page_kind)varied[eighth];
    case LOAD_MIXED:
    default:
        return eighth == 0 ? KIND_ZERO : eighth == 1 ? KIND_WORD : KIND_NOISE;
    }
}

/* What page pfn holds in this version. */
static void page_content(const struct guest_load *l, uint64_t pfn, uint32_t version,
                         uint64_t words[WORDS])
{
    enum { NOISE_MIN = 40, NOISE_SPAN = 200 };
    uint64_t key = mix(l->seed ^ mix(pfn * 0x10001 + ((uint64_t)version << 40)));
    int noise = 0;

    switch (version == 0 ? KIND_ZERO : kind_of(l->content, key)) {
    case KIND_ZERO:
        memset(words, 0, PAGE);
        return;
    case KIND_WORD:
        break;
    case KIND_NOISE:
        noise = WORDS;
        break;
    case KIND_COMPRESSIBLE:
        noise = NOISE_MIN + (int)(key / 8 % NOISE_SPAN);
        break;
    }
    for (int i = 0; i < WORDS; i++) {
        words[i] = i < noise ? mix(key + (uint64_t)i) : key;
    }
}

/* True when page pfn holds exactly this version. */
static bool page_is(const struct guest_load *l, uint64_t pfn, uint32_t version)
{
    uint64_t expected[WORDS];

    page_content(l, pfn, version, expected);
    return memcmp(l->standin->base + pfn * PAGE, expected, PAGE) == 0;
}

static _Noreturn void wrong_page(const struct guest_load *l, uint64_t pfn)
{
    uint64_t expected[WORDS];
    const uint8_t *page = l->standin->base + pfn * PAGE;
    unsigned at = 0;

    atomic_fetch_add(&l->vmm->report->wrong, 1);
    page_content(l, pfn, l->versions[pfn], expected);
    while (at < PAGE - 1 && page[at] == ((const uint8_t *)expected)[at]) {
        at++;
    }
    vmm_fail(
        l->vmm,
        "page %llu of region %u, version %u (discarded %u, written %u): byte %u is %#x, "
        "expected %#x (page state %u)",
        (unsigned long long)pfn, l->standin->id, l->versions[pfn], l->given_back[pfn],
        l->written[pfn], at, page[at], ((const uint8_t *)expected)[at],
        standin_page_state(l->standin, pfn));
}

static void check_page(struct guest_load *l, uint64_t pfn)
{
    uint32_t given_back = l->given_back[pfn];

    l->given_back[pfn] = 0;
    if (page_is(l, pfn, l->versions[pfn])) {
        return;
    }
    if (given_back && page_is(l, pfn, given_back)) {
        l->versions[pfn] = given_back;
        atomic_fetch_add(&l->kept_pages, 1);
        return;
    }
    l->given_back[pfn] = given_back;
    wrong_page(l, pfn);
}

void load_verify_page(struct guest_load *l, uint64_t pfn)
{
    check_page(l, pfn);
    atomic_fetch_add(&l->vmm->report->steps, 1);
}

static void write_page(struct guest_load *l, uint64_t pfn)
{
    uint64_t words[WORDS];

    l->versions[pfn] = ++l->written[pfn];
    l->given_back[pfn] = 0;
    page_content(l, pfn, l->versions[pfn], words);
    memcpy(l->standin->base + pfn * PAGE, words, PAGE);
}

static uint64_t first_page(const struct load_thread *t, unsigned index)
{
    return t->load->nr_pages * index / t->load->nr_threads;
}

static void fill_slice(struct load_thread *t)
{
    for (uint64_t p = first_page(t, t->index); p < first_page(t, t->index + 1); p++) {
        write_page(t->load, p);
        atomic_fetch_add(&t->load->vmm->report->steps, 1);
    }
}

static void verify_slice(struct load_thread *t)
{
    for (uint64_t p = first_page(t, t->index); p < first_page(t, t->index + 1); p++) {
        load_verify_page(t->load, p);
    }
}

void load_discard(struct guest_load *l, uint64_t pfn, uint64_t nr_pages)
{
    int ret = standin_discard(l->standin, pfn, nr_pages);

    if (ret < 0) {
        vmm_fail(l->vmm, "discard of %llu pages failed: %s", (unsigned long long)nr_pages,
                 strerror(-ret));
    }
    for (uint64_t end = pfn + nr_pages; pfn < end; pfn++) {
        /* Given back twice without a touch: what was there is what was there at first. */
        if (l->versions[pfn]) {
            l->given_back[pfn] = l->versions[pfn];
            l->versions[pfn] = 0;
        }
    }
}

static void discard_some(struct load_thread *t, uint64_t pfn)
{
    uint64_t unit = t->load->standin->page_size / PAGE;
    uint64_t n = unit > 1 ? unit : 1 + next_random(t) % DISCARD_MAX;
    uint64_t end = first_page(t, t->index + 1);

    pfn -= pfn % unit; /* the slices of threads hold whole pages */

    load_discard(t->load, pfn, pfn + n > end ? end - pfn : n);
}

static void touch_slice(struct load_thread *t)
{
    struct guest_load *l = t->load;
    uint64_t first = first_page(t, t->index);
    uint64_t end = first_page(t, t->index + 1);
    uint64_t pfn = first;

    while (monotonic_ms() < t->deadline) {
        uint64_t random = next_random(t);
        if (t->pattern == LOAD_SEQUENTIAL || t->pattern == LOAD_DISCARD_AHEAD) {
            pfn = pfn + 1 < end ? pfn + 1 : first;
        } else {
            pfn = first + random % (end - first);
        }
        check_page(l, pfn);
        if (t->pattern == LOAD_DISCARD_AHEAD && (random >> 40) % 16 == 0 &&
            pfn + 1 < end) {
            /* At once: what came in with this page may still be on its way. */
            discard_some(t, pfn + 1);
        }
        if (random >> 32 & 1) {
            write_page(l, pfn);
            check_page(l, pfn);
        }
        if (t->pattern == LOAD_DISCARD && (random >> 40) % 16 == 0) {
            discard_some(t, pfn);
        }
        atomic_fetch_add(&l->vmm->report->steps, 1);
    }
}

static void *run_thread(void *opaque)
{
    struct load_thread *t = opaque;

    t->work(t);
    return NULL;
}

static void run_threads(struct guest_load *l, void (*work)(struct load_thread *t),
                        enum load_pattern pattern, int milliseconds)
{
    struct load_thread threads[LOAD_THREADS_MAX];

    for (unsigned i = 0; i < l->nr_threads; i++) {
        threads[i] = (struct load_thread){
            .load = l,
            .index = i,
            .work = work,
            .pattern = pattern,
            .deadline = monotonic_ms() + milliseconds,
            .random = mix(l->seed + i + (uint64_t)pattern * 977),
        };
        if (pthread_create(&threads[i].thread, NULL, run_thread, &threads[i]) != 0) {
            vmm_fail(l->vmm, "cannot start a load thread");
        }
    }
    for (unsigned i = 0; i < l->nr_threads; i++) {
        pthread_join(threads[i].thread, NULL);
    }
}

void load_init(struct guest_load *l, struct vmm *v, struct standin *s, uint64_t seed,
               unsigned nr_threads, enum load_content content)
{
    *l = (struct guest_load){
        .vmm = v,
        .standin = s,
        .seed = seed,
        .nr_pages = s->size / PAGE,
        .nr_threads = nr_threads,
        .content = content,
    };
    l->versions = calloc(l->nr_pages, sizeof(*l->versions));
    l->written = calloc(l->nr_pages, sizeof(*l->written));
    l->given_back = calloc(l->nr_pages, sizeof(*l->given_back));
    if (!l->versions || !l->written || !l->given_back || nr_threads > LOAD_THREADS_MAX) {
        vmm_fail(v, "cannot set up the load");
    }
}

void load_fill(struct guest_load *l)
{
    run_threads(l, fill_slice, LOAD_SEQUENTIAL, 0);
}

void load_run(struct guest_load *l, enum load_pattern pattern, int milliseconds)
{
    run_threads(l, touch_slice, pattern, milliseconds);
}

void load_verify(struct guest_load *l)
{
    run_threads(l, verify_slice, LOAD_SEQUENTIAL, 0);
}

uint64_t load_resident(const struct standin *s)
{
    struct stat st;

    return fstat(s->memfd, &st) == 0 ? (uint64_t)st.st_blocks * 512 : 0;
}

static void raise_to(_Atomic uint64_t *max, uint64_t now)
{
    if (now > atomic_load(max)) {
        atomic_store(max, now);
    }
}

static void *sample(void *opaque)
{
    struct guest_load *l = opaque;
    struct stat st;

    while (!atomic_load(&l->stop_sampler)) {
        uint64_t now = load_resident(l->standin);
        raise_to(&l->resident_max, now);
        for (uint32_t i = 0; i < l->standin->nr_arenas; i++) {
            now +=
                fstat(l->standin->arenas[i], &st) == 0 ? (uint64_t)st.st_blocks * 512 : 0;
        }
        raise_to(&l->total_max, now);
        sleep_ms(5);
    }
    return NULL;
}

void load_sampler_start(struct guest_load *l)
{
    atomic_store(&l->resident_max, 0);
    atomic_store(&l->total_max, 0);
    atomic_store(&l->stop_sampler, 0);
    if (pthread_create(&l->sampler, NULL, sample, l) != 0) {
        vmm_fail(l->vmm, "cannot start the sampler");
    }
}

uint64_t load_sampler_stop(struct guest_load *l)
{
    atomic_store(&l->stop_sampler, 1);
    pthread_join(l->sampler, NULL);
    return atomic_load(&l->resident_max);
}

/* ---- hammering -------------------------------------------------------------- */

struct hammer {
    struct standin *standin;
    uint64_t nr_pages;
    unsigned index;
    int64_t deadline;
    uint64_t *expected;
    uint64_t lost;
    uint64_t updates;
    pthread_t thread;
};

static void check_counter(struct hammer *h, uint64_t pfn, uint64_t seen)
{
    if (seen != h->expected[pfn]) {
        h->lost += seen < h->expected[pfn] ? h->expected[pfn] - seen : 1;
        h->expected[pfn] = seen;
    }
}

static void *hammer(void *opaque)
{
    enum { BURST = 64, PAGES_A_LOOK = 16 };
    struct hammer *h = opaque;
    uint64_t random = mix(h->index);

    for (uint64_t pfn = 0; pfn < h->nr_pages; pfn++) {
        h->expected[pfn] =
            ((volatile uint64_t *)(h->standin->base + pfn * PAGE))[h->index];
    }
    while (monotonic_ms() < h->deadline) {
        for (int n = 0; n < PAGES_A_LOOK; n++) {
            random = mix(random);
            uint64_t pfn = random % h->nr_pages;
            volatile uint64_t *word =
                (volatile uint64_t *)(h->standin->base + pfn * PAGE) + h->index;
            for (int i = 0; i < BURST; i++) {
                uint64_t seen = *word;
                check_counter(h, pfn, seen);
                *word = seen + 1;
                h->expected[pfn] = seen + 1;
            }
            h->updates += BURST;
        }
    }
    for (uint64_t pfn = 0; pfn < h->nr_pages; pfn++) {
        check_counter(h, pfn,
                      ((volatile uint64_t *)(h->standin->base + pfn * PAGE))[h->index]);
    }
    return NULL;
}

uint64_t load_hammer(struct standin *s, uint64_t nr_pages, unsigned nr_threads,
                     int milliseconds, _Atomic uint64_t *updates)
{
    struct hammer hammers[LOAD_THREADS_MAX];
    uint64_t lost = 0;

    for (unsigned i = 0; i < nr_threads; i++) {
        hammers[i] = (struct hammer){
            .standin = s,
            .nr_pages = nr_pages,
            .index = i,
            .deadline = monotonic_ms() + milliseconds,
            .expected = calloc(nr_pages, sizeof(uint64_t)),
        };
        if (!hammers[i].expected ||
            pthread_create(&hammers[i].thread, NULL, hammer, &hammers[i]) != 0) {
            abort();
        }
    }
    for (unsigned i = 0; i < nr_threads; i++) {
        pthread_join(hammers[i].thread, NULL);
        lost += hammers[i].lost;
        atomic_fetch_add(updates, hammers[i].updates);
        free(hammers[i].expected);
    }
    return lost;
}
