/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "memory.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "clock.h"
#include "demo_pages.h"

#define PAGE_BYTES_4K 4096UL

static int open_external(struct memory *m, const char *socket, const char *vm_name,
                         uint64_t bytes)
{
    int ret = standin_open(&m->standin, socket, vm_name, bytes, 1);

    if (ret) {
        fprintf(stderr, "bench-memory: no memory from the manager at %s: %s\n", socket,
                m->standin.error);
        standin_close(&m->standin);
        return ret;
    }
    m->external = true;
    m->base = m->standin.base;
    return 0;
}

int memory_open(struct memory *m, const char *socket, const char *vm_name, uint64_t bytes)
{
    void *map;
    int ret;

    memset(m, 0, sizeof(*m));
    m->nr_pages = bytes / PAGE_BYTES_4K;
    m->resident = malloc(m->nr_pages);
    if (!m->resident) {
        fprintf(stderr, "bench-memory: no memory for the state of pages\n");
        return -ENOMEM;
    }
    if (socket) {
        ret = open_external(m, socket, vm_name, bytes);
        if (ret) {
            free(m->resident);
        }
        return ret;
    }
    map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED) {
        ret = -errno;
        fprintf(stderr, "bench-memory: cannot map %llu bytes: %s\n",
                (unsigned long long)bytes, strerror(errno));
        free(m->resident);
        return ret;
    }
    /* a huge page would come and go as a whole: QEMU's guests are compared page by page */
    madvise(map, bytes, MADV_NOHUGEPAGE);
    m->base = map;
    return 0;
}

void memory_close(struct memory *m)
{
    if (m->external) {
        standin_detach(&m->standin);
    } else {
        munmap(m->base, m->nr_pages * PAGE_BYTES_4K);
    }
    free(m->resident);
}

void memory_fill(struct memory *m)
{
    for (uint64_t pfn = 0; pfn < m->nr_pages; pfn++) {
        demo_page_fill(m->base + pfn * PAGE_BYTES_4K, pfn);
    }
}

uint64_t memory_resident(struct memory *m)
{
    uint64_t nr = 0;

    if (mincore(m->base, m->nr_pages * PAGE_BYTES_4K, m->resident) < 0) {
        return 0;
    }
    for (uint64_t pfn = 0; pfn < m->nr_pages; pfn++) {
        nr += m->resident[pfn] & 1;
    }
    return nr * PAGE_BYTES_4K;
}

bool memory_missing(const struct memory *m, uint64_t pfn)
{
    unsigned char resident = 1;

    return mincore(m->base + pfn * PAGE_BYTES_4K, PAGE_BYTES_4K, &resident) == 0 &&
           !(resident & 1);
}

bool memory_touch(struct memory *m, uint64_t pfn, struct samples *s)
{
    const volatile uint64_t *word =
        (const volatile uint64_t *)(m->base + pfn * PAGE_BYTES_4K);
    uint64_t before = clock_ns();

    (void)*word;
    samples_add(s, clock_ns() - before);
    return demo_page_ok(m->base + pfn * PAGE_BYTES_4K, pfn);
}
