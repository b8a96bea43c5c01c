/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Fill, touch and verify memory.  The steps are written to cost little beside
 * the page fault they may cause: two words read and compared, two written in a
 * quarter of the cases, and one reading of the time-stamp counter, from which
 * the longest gap between two steps follows.
 */
#include "work.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <x86intrin.h>

#include "content.h"
#include "report.h"

enum {
    HOT_STEPS_PERCENT = 95,
    HOT_PAGES_PERCENT = 30,
    STEPS_BETWEEN_CLOCK_READS = 64,
    WRONG_PAGES_NAMED = 8 /* the rest is only counted */
};

static uint64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static uint64_t *page_at(const struct work *w, uint64_t page)
{
    return w->memory + page * PAGE_WORDS;
}

static void report_wrong(const struct work *w, uint64_t page, uint32_t index,
                         uint64_t expected)
{
    uint64_t found = page_at(w, page)[index];

    report("{\"event\":\"corrupt\",\"page\":%" PRIu64 ",\"offset\":%u,\"version\":%u,"
           "\"expected\":\"%016" PRIx64 "\",\"found\":\"%016" PRIx64 "\"}",
           page, index * 8, w->version[page], expected, found);
}

bool work_fill(struct work *w, uint64_t seed, uint64_t bytes)
{
    uint64_t start = now_ns();
    uint64_t last_report = start;
    uint64_t pages = bytes / PAGE_BYTES;
    uint64_t page;
    void *memory;
    void *version;

    work_release(w);
    if (!pages) {
        report_error("fill: size must be at least one page");
        return false;
    }
    memory = mmap(NULL, pages * PAGE_BYTES, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        report_error("fill: cannot map %" PRIu64 " bytes: %s", bytes, strerror(errno));
        return false;
    }
    version = mmap(NULL, pages * sizeof(uint32_t), PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (version == MAP_FAILED) {
        report_error("fill: cannot map the write counts: %s", strerror(errno));
        munmap(memory, pages * PAGE_BYTES);
        return false;
    }
    *w =
        (struct work){.seed = seed, .pages = pages, .memory = memory, .version = version};

    for (page = 0; page < pages; page++) {
        uint64_t base = page_base(seed, page);
        uint64_t *words = page_at(w, page);
        uint32_t i;

        words[0] = content_stamp(base, 0);
        for (i = 1; i < PAGE_WORDS; i++) {
            words[i] = content_filled(base, i);
        }
        if (page % 256 == 0 && now_ns() - last_report > 500000000u) {
            last_report = now_ns();
            report("{\"event\":\"filling\",\"pages\":%" PRIu64 ",\"of\":%" PRIu64 "}",
                   page, pages);
        }
    }
    report("{\"event\":\"filled\",\"pages\":%" PRIu64 ",\"bytes\":%" PRIu64
           ",\"seed\":%" PRIu64 ",\"seconds\":%.3f}",
           pages, pages * PAGE_BYTES, seed, (double)(now_ns() - start) / 1e9);
    return true;
}

void work_release(struct work *w)
{
    if (w->memory) {
        munmap(w->memory, w->pages * PAGE_BYTES);
        munmap(w->version, w->pages * sizeof(uint32_t));
    }
    *w = (struct work){0};
}

/* xorshift64*: the choice of pages needs speed more than quality. */
static uint64_t next_random(uint64_t *state)
{
    uint64_t x = *state;

    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    *state = x;
    return x * 0x2545f4914f6cdd1dULL;
}

/* The upper 32 bits of @random scaled to [0, @n). */
static uint64_t scale(uint64_t random, uint64_t n)
{
    return ((random >> 32) * n) >> 32;
}

static uint64_t choose_page(enum pattern pattern, uint64_t pages, uint64_t hot_pages,
                            uint64_t step, uint64_t *state)
{
    uint64_t random = next_random(state);

    switch (pattern) {
    case PATTERN_SEQUENTIAL:
        return step % pages;
    case PATTERN_HOT:
        if (random % 100 < HOT_STEPS_PERCENT) {
            return scale(random, hot_pages);
        }
        return hot_pages + scale(random, pages - hot_pages);
    case PATTERN_RANDOM:
        break;
    }
    return scale(random, pages);
}

/*
 * Check the stamp and one other word of @page, and write to it if @write.
 * Returns false after a report if either word is wrong.
 */
static bool step(struct work *w, uint64_t page, uint64_t random, bool write)
{
    uint64_t base = page_base(w->seed, page);
    uint64_t *words = page_at(w, page);
    uint32_t version = w->version[page];
    uint32_t index = 1 + (uint32_t)(random % BODY_WORDS);

    if (words[0] != content_stamp(base, version)) {
        report_wrong(w, page, 0, content_stamp(base, version));
        return false;
    }
    if (words[index] != content_word(base, page, version, index)) {
        report_wrong(w, page, index, content_word(base, page, version, index));
        return false;
    }
    if (write) {
        version++;
        words[content_target(page, version)] = content_written(base, version);
        words[0] = content_stamp(base, version);
        w->version[page] = version;
        w->writes++;
    }
    return true;
}

/* Progress of a run: what happened since @base_ns and @base_tsc. */
struct meter {
    uint64_t base_ns, base_tsc, base_steps;
    uint64_t gap_tsc; /* longest gap between two steps */
};

static double tsc_ms(uint64_t ticks, uint64_t ticks_base, uint64_t ns_base)
{
    return ticks_base ? (double)ticks * ((double)ns_base / (double)ticks_base) / 1e6 : 0;
}

static double meter_report(const char *event, const struct work_run *run, uint64_t steps,
                           const struct meter *m, uint64_t now, uint64_t tsc)
{
    uint64_t ns = now - m->base_ns;
    double gap_ms = tsc_ms(m->gap_tsc, tsc - m->base_tsc, ns);

    report("{\"event\":\"%s\",\"pattern\":\"%s\",\"steps\":%" PRIu64
           ",\"seconds\":%.3f,\"steps_per_s\":%.1f,\"gap_max_ms\":%.3f}",
           event, run->pattern_name, steps - m->base_steps, (double)ns / 1e9,
           ns ? (double)(steps - m->base_steps) * 1e9 / (double)ns : 0, gap_ms);
    return gap_ms;
}

void work_run(struct work *w, const struct work_run *run)
{
    uint64_t state = mix(run->seed + 1) | 1;
    uint64_t pages = w->pages * run->span_percent / 100;
    uint64_t hot_pages = pages * HOT_PAGES_PERCENT / 100;
    uint64_t steps = 0;
    uint64_t last_tsc = __rdtsc();
    uint64_t now = now_ns();
    uint64_t end = run->duration_ms ? now + run->duration_ms * 1000000u : UINT64_MAX;
    struct meter whole = {.base_ns = now, .base_tsc = last_tsc};
    struct meter part = whole;

    if (!pages) {
        report_error("run: nothing is filled, send fill first");
        return;
    }
    while (!w->broken) {
        uint64_t page = choose_page(run->pattern, pages, hot_pages, steps, &state);
        uint64_t random = next_random(&state);
        uint64_t tsc;

        if (!step(w, page, random, (random >> 32) % 100 < run->write_percent)) {
            w->broken = true;
            break;
        }
        steps++;
        tsc = __rdtsc();
        if (tsc - last_tsc > part.gap_tsc) {
            part.gap_tsc = tsc - last_tsc;
        }
        last_tsc = tsc;
        if (steps % STEPS_BETWEEN_CLOCK_READS) {
            continue;
        }
        now = now_ns();
        if (part.gap_tsc > whole.gap_tsc) {
            whole.gap_tsc = part.gap_tsc;
        }
        if (now >= end) {
            break;
        }
        if (now - part.base_ns >= run->report_ms * 1000000u) {
            meter_report("progress", run, steps, &part, now, tsc);
            if (run->stop_requested()) {
                break;
            }
            /* The time the report took is neither a gap nor part of the next one. */
            last_tsc = __rdtsc();
            part = (struct meter){
                .base_ns = now_ns(), .base_tsc = last_tsc, .base_steps = steps};
        }
    }
    if (w->broken) {
        report("{\"event\":\"run-failed\",\"pattern\":\"%s\",\"steps\":%" PRIu64 "}",
               run->pattern_name, steps);
        return;
    }
    meter_report("ran", run, steps, &whole, now, last_tsc);
}

/* Index of the first wrong word of @page, or PAGE_WORDS. */
static uint32_t first_wrong_word(const struct work *w, uint64_t page, uint64_t *expected)
{
    uint64_t base = page_base(w->seed, page);
    const uint64_t *words = page_at(w, page);
    uint32_t version = w->version[page];
    uint32_t i;

    *expected = content_stamp(base, version);
    if (words[0] != *expected) {
        return 0;
    }
    for (i = 1; i < PAGE_WORDS; i++) {
        *expected = content_word(base, page, version, i);
        if (words[i] != *expected) {
            return i;
        }
    }
    return PAGE_WORDS;
}

void work_verify(struct work *w)
{
    uint64_t start = now_ns();
    uint64_t last_report = start;
    uint64_t wrong = 0;
    uint64_t writes = 0;
    uint64_t page;

    if (!w->pages) {
        report_error("verify: nothing is filled, send fill first");
        return;
    }
    for (page = 0; page < w->pages; page++) {
        uint64_t expected;
        uint32_t index = first_wrong_word(w, page, &expected);

        if (index < PAGE_WORDS && wrong++ < WRONG_PAGES_NAMED) {
            report_wrong(w, page, index, expected);
        }
        writes += w->version[page];
        if (page % 64 == 0 && now_ns() - last_report > 500000000u) {
            last_report = now_ns();
            report("{\"event\":\"verifying\",\"pages\":%" PRIu64 ",\"of\":%" PRIu64 "}",
                   page, w->pages);
        }
    }
    if (writes != w->writes) {
        report_error("verify: the write counts sum to %" PRIu64 ", written were %" PRIu64,
                     writes, w->writes);
    }
    if (wrong || w->broken || writes != w->writes) {
        report("{\"event\":\"verify-failed\",\"pages\":%" PRIu64
               ",\"wrong_pages\":%" PRIu64 "}",
               w->pages, wrong);
        return;
    }
    report("{\"event\":\"verified\",\"pages\":%" PRIu64 ",\"bytes\":%" PRIu64
           ",\"writes\":%" PRIu64 ",\"seconds\":%.3f}",
           w->pages, w->pages * PAGE_BYTES, writes, (double)(now_ns() - start) / 1e9);
}

bool work_corrupt(struct work *w, uint64_t page, uint32_t offset)
{
    if (page >= w->pages || offset >= PAGE_BYTES) {
        report_error("corrupt: page %" PRIu64 " offset %u is outside of what is filled",
                     page, offset);
        return false;
    }
    ((uint8_t *)page_at(w, page))[offset] ^= 1;
    return true;
}
