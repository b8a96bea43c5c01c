/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * bench-tiers: how long tiers take to store runs of pages and to give them back,
 * beside what they are made of.
 *
 * Theory of operation.  All subjects hold the same working set of 64 MiB.  In each
 * round every subject has a slice of time for each operation and length of run, at
 * random places, so that whatever else the machine does hits all of them.  A JSON
 * line is printed for each slice; who reads them takes medians over the rounds.
 * Every page that comes back is looked at, outside the time that is taken.
 *
 * Writes are never durable here, as in the manager: a store need not outlive its host.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "config.h"
#include "demo_pages.h"
#include "samples.h"
#include "subject.h"

#define SUBJECTS_MAX 16
#define SAMPLES_MAX (1u << 18)

static const unsigned lengths[] = {1, 8, RUN_MAX};

struct bench {
    struct subject subjects[SUBJECTS_MAX];
    unsigned nr_subjects;
    uint8_t *pages; /* the working set */
    uint8_t *in;    /* where pages come back to */
    struct samples samples;
    uint64_t slice_ns;
    uint64_t rng;
};

static void usage(FILE *to)
{
    fprintf(
        to,
        "usage: bench-tiers --folder DIR [--rounds N] [--slice-ms N] [--tier TIER]...\n"
        "\n"
        "Prints a JSON line for each round of: memcpy, the codecs, the device of DIR, and\n"
        "the tiers given, as uffdmm-manager --tier takes them.\n");
}

/* One slice of one subject.  0 or a negative errno. */
static int slice(struct bench *b, struct subject *s, bool put, unsigned nr,
                 unsigned round)
{
    uint64_t end = clock_ns() + b->slice_ns;

    samples_clear(&b->samples);
    while (clock_ns() < end && !samples_full(&b->samples)) {
        uint64_t pfn = demo_random(&b->rng) % (SET_PAGES / nr) * nr;
        int64_t ns = put ? s->put(s, pfn, b->pages + pfn * PAGE_SIZE_4K, nr)
                         : s->read(s, pfn, b->in, nr);

        if (ns < 0) {
            fprintf(stderr, "bench-tiers: %s of %u pages, %s: %s\n", put ? "put" : "read",
                    nr, s->name, strerror((int)-ns));
            return (int)ns;
        }
        for (unsigned i = 0; !put && i < nr; i++) {
            if (!demo_page_ok(b->in + (size_t)i * PAGE_SIZE_4K, pfn + i)) {
                fprintf(stderr, "bench-tiers: %s gave wrong bytes for page %" PRIu64 "\n",
                        s->name, pfn + i);
                return -EUCLEAN;
            }
            /* the next read must bring the words itself */
            memset(b->in + (size_t)i * PAGE_SIZE_4K, 0, 8);
        }
        samples_add(&b->samples, (uint64_t)ns);
    }
    printf("{\"subject\":\"%s\",\"operation\":\"%s\",\"pages\":%u,\"round\":%u,", s->name,
           put ? "put" : "read", nr, round);
    samples_print(&b->samples);
    printf("}\n");
    fflush(stdout);
    return 0;
}

static int run_round(struct bench *b, unsigned round)
{
    for (size_t k = 0; k < sizeof(lengths) / sizeof(lengths[0]); k++) {
        for (int put = 0; put < 2; put++) {
            for (unsigned i = 0; i < b->nr_subjects; i++) {
                int ret = slice(b, &b->subjects[i], put, lengths[k], round);

                if (ret) {
                    return ret;
                }
            }
        }
    }
    return 0;
}

static int bench_init(struct bench *b)
{
    b->rng = 0x2545f4914f6cdd1dULL;
    b->pages = aligned_alloc(PAGE_SIZE_4K, (size_t)SET_PAGES * PAGE_SIZE_4K);
    b->in = aligned_alloc(PAGE_SIZE_4K, (size_t)RUN_MAX * PAGE_SIZE_4K);
    if (!b->pages || !b->in || !samples_init(&b->samples, SAMPLES_MAX)) {
        fprintf(stderr, "bench-tiers: no memory for the working set\n");
        return -ENOMEM;
    }
    for (uint64_t pfn = 0; pfn < SET_PAGES; pfn++) {
        demo_page_fill(b->pages + pfn * PAGE_SIZE_4K, pfn);
    }
    return 0;
}

/* Everything but the tiers. */
static int add_raw(struct bench *b, const char *folder)
{
    int ret = subject_memcpy(&b->subjects[0], b->pages);

    b->nr_subjects += ret == 0;
    if (!ret) {
        ret = subject_codec(&b->subjects[b->nr_subjects], b->pages, false);
        b->nr_subjects += ret == 0;
    }
    if (!ret) {
        ret = subject_codec(&b->subjects[b->nr_subjects], b->pages, true);
        b->nr_subjects += ret == 0;
    }
    if (!ret) {
        ret = subject_device(&b->subjects[b->nr_subjects], b->pages, folder);
        b->nr_subjects += ret == 0;
    }
    return ret;
}

static bool number(const char *text, unsigned long max, unsigned long *out)
{
    char *end;

    errno = 0;
    *out = strtoul(text, &end, 10);
    return !errno && end != text && !*end && *out >= 1 && *out <= max;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"folder", required_argument, NULL, 'f'},
        {"rounds", required_argument, NULL, 'r'},
        {"slice-ms", required_argument, NULL, 's'},
        {"tier", required_argument, NULL, 't'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    const char *tiers[SUBJECTS_MAX], *folder = NULL;
    unsigned long rounds = 5, slice_ms = 100;
    unsigned nr_tiers = 0;
    struct bench b = {.nr_subjects = 0};
    bool ok = true;
    int opt, ret;

    while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (opt) {
        case 'f':
            folder = optarg;
            break;
        case 'r':
            ok = ok && number(optarg, 1000, &rounds);
            break;
        case 's':
            ok = ok && number(optarg, 60000, &slice_ms);
            break;
        case 't':
            ok = ok && nr_tiers < SUBJECTS_MAX - 4;
            if (ok) {
                tiers[nr_tiers++] = optarg;
            }
            break;
        case 'h':
            usage(stdout);
            return 0;
        default:
            ok = false;
        }
    }
    if (!ok || !folder || optind != argc) {
        usage(stderr);
        return 2;
    }
    b.slice_ns = slice_ms * NSEC_PER_MSEC;
    ret = bench_init(&b);
    ret = ret ? ret : add_raw(&b, folder);
    for (unsigned i = 0; !ret && i < nr_tiers; i++) {
        ret = subject_tier(&b.subjects[b.nr_subjects], b.pages, tiers[i]);
        b.nr_subjects += ret == 0;
    }
    for (unsigned round = 1; !ret && round <= rounds; round++) {
        ret = run_round(&b, round);
    }
    while (b.nr_subjects) {
        struct subject *s = &b.subjects[--b.nr_subjects];

        s->end(s);
    }
    samples_deinit(&b.samples);
    free(b.pages);
    free(b.in);
    return ret ? 1 : 0;
}
