/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation.  A run of pages leaves memory in the order write-protect,
 * read, keep, punch.  The first step makes every later writer wait, so what is
 * read is the last word; without it a write that lands between the read and the
 * punch is punched away with the page.  Faults of the run that arrive meanwhile
 * stay queued in the userfaultfd until the punch is done: one thread does both,
 * so no fault can be answered from a half-evicted page.
 *
 * Keeping a page takes a store some time.  The short sleep stands for that; it
 * also makes the window wide enough that the control run loses updates when
 * writers and evictor share one CPU.
 */
#include "race_evict.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/userfaultfd.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum {
    RUN_MAX = 16,          /* pages of one eviction */
    STORE_TIME_NS = 20000, /* what keeping a run is taken to cost */
    EAGAIN_RETRIES = 10000
};

int race_evictor_init(struct race_evictor *e, int memfd, int uffd, uint64_t base,
                      uint32_t nr_pages, bool protect)
{
    *e = (struct race_evictor){
        .memfd = memfd,
        .uffd = uffd,
        .base = base,
        .nr_pages = nr_pages,
        .protect = protect,
        .random = 0x9e3779b97f4a7c15,
    };
    e->kept = calloc(nr_pages, RACE_PAGE_SIZE);
    e->out = malloc(nr_pages * sizeof(*e->out));
    if (!e->kept || !e->out) {
        race_evictor_deinit(e);
        return -ENOMEM;
    }
    for (uint32_t pfn = 0; pfn < nr_pages; pfn++) {
        e->out[pfn] = true;
    }
    return 0;
}

void race_evictor_deinit(struct race_evictor *e)
{
    free(e->kept);
    free(e->out);
    e->kept = NULL;
    e->out = NULL;
}

static uint64_t next_random(struct race_evictor *e)
{
    e->random ^= e->random << 13;
    e->random ^= e->random >> 7;
    e->random ^= e->random << 17;
    return e->random;
}

static int write_protect(struct race_evictor *e, uint64_t offset, uint64_t length)
{
    struct uffdio_writeprotect wp = {
        .range = {.start = e->base + offset, .len = length},
        .mode = UFFDIO_WRITEPROTECT_MODE_WP,
    };

    for (int i = 0; i < EAGAIN_RETRIES; i++) {
        if (ioctl(e->uffd, UFFDIO_WRITEPROTECT, &wp) == 0) {
            return 0;
        }
        if (errno != EAGAIN) {
            return -errno;
        }
    }
    return -EAGAIN;
}

int race_evictor_evict(struct race_evictor *e)
{
    uint32_t first = (uint32_t)(next_random(e) % e->nr_pages);
    uint32_t want = 1 + (uint32_t)(next_random(e) % RUN_MAX);
    uint32_t n = 0;
    struct timespec store_time = {.tv_nsec = STORE_TIME_NS};

    while (n < want && first + n < e->nr_pages && !e->out[first + n]) {
        n++;
    }
    if (n == 0) {
        return 0;
    }
    uint64_t offset = (uint64_t)first * RACE_PAGE_SIZE;
    uint64_t length = (uint64_t)n * RACE_PAGE_SIZE;

    if (e->protect) {
        int ret = write_protect(e, offset, length);
        if (ret < 0) {
            return ret;
        }
    }
    ssize_t got = pread(e->memfd, e->kept + offset, length, (off_t)offset);
    if (got != (ssize_t)length) {
        return got < 0 ? -errno : -EIO;
    }
    nanosleep(&store_time, NULL);
    if (fallocate(e->memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
                  (off_t)length) < 0) {
        return -errno;
    }
    for (uint32_t i = 0; i < n; i++) {
        e->out[first + i] = true;
    }
    e->evictions += n;
    return 0;
}

static int wake(struct race_evictor *e, uint64_t offset)
{
    struct uffdio_range range = {.start = e->base + offset, .len = RACE_PAGE_SIZE};

    return ioctl(e->uffd, UFFDIO_WAKE, &range) < 0 ? -errno : 0;
}

/* Brings one page back; COPY also clears the write-protect marker of the page. */
static int fill(struct race_evictor *e, uint32_t pfn)
{
    uint64_t offset = (uint64_t)pfn * RACE_PAGE_SIZE;

    for (int i = 0; i < EAGAIN_RETRIES; i++) {
        struct uffdio_copy copy = {
            .dst = e->base + offset,
            .src = (uint64_t)(uintptr_t)(e->kept + offset),
            .len = RACE_PAGE_SIZE,
        };
        if (ioctl(e->uffd, UFFDIO_COPY, &copy) == 0) {
            e->out[pfn] = false;
            return 0;
        }
        if (errno != EAGAIN) {
            return -errno;
        }
    }
    return -EAGAIN;
}

int race_evictor_serve(struct race_evictor *e)
{
    struct uffd_msg msgs[16];

    for (;;) {
        ssize_t got = read(e->uffd, msgs, sizeof(msgs));
        if (got < 0) {
            if (errno == EAGAIN) {
                return 0;
            }
            if (errno == EINTR) {
                continue;
            }
            return -errno;
        }
        if (got == 0) {
            return -ESRCH;
        }
        for (size_t i = 0; i < (size_t)got / sizeof(msgs[0]); i++) {
            if (msgs[i].event != UFFD_EVENT_PAGEFAULT) {
                return -EPROTO;
            }
            uint64_t offset = msgs[i].arg.pagefault.address - e->base;
            uint32_t pfn = (uint32_t)(offset / RACE_PAGE_SIZE);
            if (offset >= (uint64_t)e->nr_pages * RACE_PAGE_SIZE) {
                return -EPROTO;
            }
            /*
             * A page that is in: another waiter of the same page was served
             * first, or the page came back between fault and message.
             */
            int ret =
                e->out[pfn] ? fill(e, pfn) : wake(e, (uint64_t)pfn * RACE_PAGE_SIZE);
            if (ret < 0) {
                return ret;
            }
            e->served++;
        }
    }
}
