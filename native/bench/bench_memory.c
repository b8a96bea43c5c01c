/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * bench-memory: memory whose faults are timed from inside, for scripts/bench.
 * It takes one command a line and answers each with one JSON line:
 *
 *   fill                     every page is written
 *   resident                 bytes in memory
 *   await BYTES              waits until no more than that is; tells when that was
 *   random N                 touches N pages that are not there, at random places
 *   sweep                    touches every page that is not there, in order
 *   pageout                  MADV_PAGEOUT of everything, timed
 *   raw FILE N               N reads of 4 KiB from FILE at random places with O_DIRECT
 *
 * Times of day are CLOCK_MONOTONIC, so that the caller can say how long something took that
 * it began itself.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "clock.h"
#include "demo_pages.h"
#include "memory.h"
#include "samples.h"

#define PAGE_BYTES_4K 4096UL
#define SAMPLES_MAX (1u << 18)

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

/* Places tried in a row without finding a missing page: there are next to none. */
#define TRIES_MAX 100000u

/* How often await looks, and how long it waits. */
#define AWAIT_STEP_NS (200 * NSEC_PER_USEC)
#define AWAIT_MAX_NS (60 * NSEC_PER_SEC)

struct bench {
    struct memory memory;
    struct samples samples;
    uint64_t rng;
};

static void answer_error(const char *what, int ret)
{
    printf("{\"error\":\"%s: %s\"}\n", what, strerror(-ret));
}

/* The samples, how many words were wrong, and how long all of it took. */
static void answer_samples(struct bench *b, uint64_t wrong, uint64_t ns)
{
    printf("{");
    samples_print(&b->samples);
    printf(",\"wrong\":%" PRIu64 ",\"ns\":%" PRIu64 "}\n", wrong, ns);
}

static void command_random(struct bench *b, uint64_t count)
{
    uint64_t wrong = 0, before = clock_ns();
    unsigned tries = 0;

    samples_clear(&b->samples);
    while (b->samples.nr < count && !samples_full(&b->samples) && tries++ < TRIES_MAX) {
        uint64_t pfn = demo_random(&b->rng) % b->memory.nr_pages;

        if (memory_missing(&b->memory, pfn)) {
            wrong += !memory_touch(&b->memory, pfn, &b->samples);
            tries = 0;
        }
    }
    if (!b->samples.nr) {
        answer_error("no page is missing", -ENODATA);
        return;
    }
    answer_samples(b, wrong, clock_ns() - before);
}

/* Pages that came with another's fault are touched and counted as well. */
static void command_sweep(struct bench *b)
{
    struct memory *m = &b->memory;
    uint64_t wrong = 0, before;

    samples_clear(&b->samples);
    memory_resident(m);
    before = clock_ns();
    for (uint64_t pfn = 0; pfn < m->nr_pages; pfn++) {
        if (!(m->resident[pfn] & 1)) {
            wrong += !memory_touch(m, pfn, &b->samples);
        }
    }
    answer_samples(b, wrong, clock_ns() - before);
}

static void command_await(struct bench *b, uint64_t bytes)
{
    const struct timespec step = {.tv_nsec = (long)AWAIT_STEP_NS};
    uint64_t until = clock_ns() + AWAIT_MAX_NS, resident = 0, now = 0;

    /* blocks of the memfd: looking at every page takes longer than a step */
    do {
        struct stat st;

        if (now) {
            nanosleep(&step, NULL);
        }
        if (fstat(b->memory.standin.memfd, &st) < 0) {
            answer_error("cannot look at the memfd", -errno);
            return;
        }
        now = clock_ns();
        resident = (uint64_t)st.st_blocks * 512;
    } while (resident > bytes && now < until);
    printf("{\"resident_bytes\":%" PRIu64 ",\"at_ns\":%" PRIu64 ",\"reached\":%s}\n",
           resident, now, resident <= bytes ? "true" : "false");
}

static void command_pageout(struct bench *b)
{
    uint64_t resident = memory_resident(&b->memory), before = clock_ns(), ns;
    int ret = madvise(b->memory.base, b->memory.nr_pages * PAGE_BYTES_4K, MADV_PAGEOUT);

    ns = clock_ns() - before;
    if (ret < 0) {
        answer_error("MADV_PAGEOUT", -errno);
        return;
    }
    printf("{\"pages\":%" PRIu64 ",\"ns\":%" PRIu64 "}\n",
           (resident - memory_resident(&b->memory)) / PAGE_BYTES_4K, ns);
}

static int read_raw(struct bench *b, int fd, void *buffer, uint64_t pages, uint64_t count)
{
    samples_clear(&b->samples);
    while (b->samples.nr < count && !samples_full(&b->samples)) {
        off_t at = (off_t)(demo_random(&b->rng) % pages * PAGE_BYTES_4K);
        uint64_t before = clock_ns();
        ssize_t n = pread(fd, buffer, PAGE_BYTES_4K, at);

        if (n != (ssize_t)PAGE_BYTES_4K) {
            return n < 0 ? -errno : -EIO;
        }
        samples_add(&b->samples, clock_ns() - before);
    }
    return 0;
}

static void command_raw(struct bench *b, const char *path, uint64_t count)
{
    void *buffer = aligned_alloc(PAGE_BYTES_4K, PAGE_BYTES_4K);
    int fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    uint64_t before = clock_ns();
    struct stat st = {.st_size = 0};
    int ret = fd < 0 || fstat(fd, &st) < 0 ? -errno : 0;

    if (!ret && (uint64_t)st.st_size < PAGE_BYTES_4K) {
        ret = -ENODATA;
    }
    if (!ret && !buffer) {
        ret = -ENOMEM;
    }
    if (!ret) {
        ret = read_raw(b, fd, buffer, (uint64_t)st.st_size / PAGE_BYTES_4K, count);
    }
    if (ret) {
        answer_error("raw reads", ret);
    } else {
        answer_samples(b, 0, clock_ns() - before);
    }
    if (fd >= 0) {
        close(fd);
    }
    free(buffer);
}

/* The number in a word; what is none is 0, which no command takes. */
static uint64_t number(const char *word)
{
    return word ? strtoull(word, NULL, 10) : 0;
}

static void obey(struct bench *b, char *line)
{
    char *save = NULL;
    const char *verb = strtok_r(line, " \n", &save);
    const char *first = strtok_r(NULL, " \n", &save);
    const char *second = strtok_r(NULL, " \n", &save);

    if (!verb) {
        answer_error("no command", -EINVAL);
    } else if (strcmp(verb, "fill") == 0) {
        uint64_t before = clock_ns();

        memory_fill(&b->memory);
        printf("{\"pages\":%" PRIu64 ",\"ns\":%" PRIu64 "}\n", b->memory.nr_pages,
               clock_ns() - before);
    } else if (strcmp(verb, "resident") == 0) {
        printf("{\"resident_bytes\":%" PRIu64 "}\n", memory_resident(&b->memory));
    } else if (strcmp(verb, "await") == 0 && number(first) && b->memory.external) {
        command_await(b, number(first));
    } else if (strcmp(verb, "random") == 0 && number(first)) {
        command_random(b, number(first));
    } else if (strcmp(verb, "sweep") == 0) {
        command_sweep(b);
    } else if (strcmp(verb, "pageout") == 0 && !b->memory.external) {
        command_pageout(b);
    } else if (strcmp(verb, "raw") == 0 && number(second)) {
        command_raw(b, first, number(second));
    } else {
        answer_error(verb, -EINVAL);
    }
    fflush(stdout);
}

int main(int argc, char **argv)
{
    struct bench b = {.rng = 0x9e3779b97f4a7c15ULL};
    const char *socket = argc == 4 ? argv[2] : NULL;
    const char *vm_name = argc == 4 ? argv[3] : NULL;
    uint64_t bytes = argc >= 2 ? number(argv[1]) & ~(PAGE_BYTES_4K - 1) : 0;
    char line[4096];

    if ((argc != 2 && argc != 4) || !bytes) {
        fprintf(stderr, "usage: bench-memory BYTES [SOCKET VM]\n");
        return 2;
    }
    if (!samples_init(&b.samples, SAMPLES_MAX)) {
        fprintf(stderr, "bench-memory: no memory for samples\n");
        return 1;
    }
    if (memory_open(&b.memory, socket, vm_name, bytes)) {
        samples_deinit(&b.samples);
        return 1;
    }
    printf("{\"ready\":true}\n");
    fflush(stdout);
    while (fgets(line, sizeof(line), stdin)) {
        obey(&b, line);
    }
    memory_close(&b.memory);
    samples_deinit(&b.samples);
    return 0;
}
