/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Reads of a disk with O_DIRECT: the disk writes to the pages of this program.
 *
 * Word i of page k of the disk is k * PAGE_FACTOR + i * WORD_FACTOR + 1; whoever
 * makes the disk does the same (tests/avocado/test_disks.py).
 */
#define _GNU_SOURCE
#include "disk.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "content.h"
#include "report.h"

enum {
    PIECE_PAGES = 16,
    PLACES = 256, /* 16 MiB */
    NONE = -1
};

#define PAGE_FACTOR 0x9e3779b97f4a7c15ULL
#define WORD_FACTOR 0xd1342543de82ef95ULL

struct places {
    uint64_t *memory;
    int64_t page[PLACES]; /* of the disk, that is there; or NONE */
    uint64_t reads;
    uint64_t wrong;
};

static uint64_t now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/* Count the pages of a place that are not as on the disk. */
static void compare(struct places *p, unsigned place)
{
    for (unsigned n = 0; p->page[place] != NONE && n < PIECE_PAGES; n++) {
        const uint64_t *words = p->memory + (place * PIECE_PAGES + n) * PAGE_WORDS;
        uint64_t base = ((uint64_t)p->page[place] + n) * PAGE_FACTOR + 1;
        unsigned i = 0;

        while (i < PAGE_WORDS && words[i] == base + i * WORD_FACTOR) {
            i++;
        }
        p->wrong += i < PAGE_WORDS;
    }
}

/* In a child: use all of the memory, again and again. */
static void press(const struct work *w)
{
    volatile uint64_t sum = 0;

    for (;;) {
        for (uint64_t page = 0; page < w->pages; page++) {
            sum += w->memory[page * PAGE_WORDS];
        }
    }
}

static bool read_piece(struct places *p, int fd, uint64_t disk_pages)
{
    const size_t bytes = (size_t)PIECE_PAGES * PAGE_BYTES;
    unsigned place = (unsigned)rand() % PLACES;
    int64_t page = (int64_t)((uint64_t)rand() % (disk_pages - PIECE_PAGES));
    ssize_t n;

    compare(p, place);
    n = pread(fd, p->memory + (size_t)place * PIECE_PAGES * PAGE_WORDS, bytes,
              (off_t)page * PAGE_BYTES);
    if (n != (ssize_t)bytes) {
        report_error("a read of the disk gave %zd: %s", n, strerror(errno));
        return false;
    }
    p->page[place] = page;
    p->reads++;
    compare(p, place);
    return true;
}

void disk_read(const struct work *w, const char *path, uint64_t ms)
{
    const size_t bytes = (size_t)PLACES * PIECE_PAGES * PAGE_BYTES;
    struct places p = {0};
    uint64_t until = now_ms() + ms;
    int fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    off_t size = fd < 0 ? -1 : lseek(fd, 0, SEEK_END);
    bool well = true;
    pid_t child;

    p.memory =
        mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p.memory == MAP_FAILED || size < 2 * PIECE_PAGES * PAGE_BYTES) {
        report_error("%s cannot be opened, or is too small: %s", path, strerror(errno));
        return;
    }
    for (unsigned i = 0; i < PLACES; i++) {
        p.page[i] = NONE;
    }
    child = fork();
    if (child == 0) {
        press(w);
    }
    while (well && now_ms() < until) {
        well = read_piece(&p, fd, (uint64_t)size / PAGE_BYTES);
    }
    if (child > 0) {
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
    }
    for (unsigned i = 0; i < PLACES; i++) {
        compare(&p, i);
    }
    munmap(p.memory, bytes);
    close(fd);
    if (well) {
        report("{\"event\":\"disk-read\",\"reads\":%" PRIu64 ",\"wrong_pages\":%" PRIu64
               "}",
               p.reads, p.wrong);
    }
}
