/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A file tier over directories and block devices of its own, for the tests of that tier. */
#ifndef UFFDMM_TEST_FILE_BENCH_H
#define UFFDMM_TEST_FILE_BENCH_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "config.h"
#include "superblock.h"
#include "tier.h"
#include "tier_config.h"
#include "tier_io.h"

enum { MIB = 1 << 20, CHUNK = 256, PATHS = 3 };

/* One directory with all that a test makes, and a tier over part of it. */
struct file_bench {
    char root[64];
    struct tier_config config;
    struct uffdmm_tier_stats *stats;
    struct tier tier;
    struct tier_queue queue; /* of the test's thread */
    bool has_queue;
    char err[2048];
};

/* One page for whoever needs it, aligned for O_DIRECT. */
extern char page_buffer[PAGE_SIZE_4K];

int file_bench_set_up(void **state);
int file_bench_tear_down(void **state);

/* Adds a path of this name under the root; makes the paths "d0", "d1" ... directories. */
void file_bench_name_path(struct file_bench *b, const char *name);
void file_bench_make_dirs(struct file_bench *b, unsigned nr);

/*
 * Makes the next path a block device over a file of @mib; its descriptor, on whose close
 * the device goes away.  Skips the test where that is not possible.
 */
int file_bench_make_device(struct file_bench *b, unsigned mib);

/* VM "vm" of the QEMU process @pid. */
struct tier_vm file_bench_vm(pid_t pid, uint8_t uuid);

/* Opens a tier, for this process or another: 0 or a negative errno with b->err. */
int file_bench_try_open(struct file_bench *b);
int file_bench_try_open_as(struct file_bench *b, struct tier *t, pid_t pid, uint8_t uuid);

/* Opens the tier with room for @bytes; fails the test when that fails. */
void file_bench_open(struct file_bench *b, uint64_t bytes);
void file_bench_close(struct file_bench *b, bool keep);

/* Refused, with a sentence that has this word and the name of the tier in it. */
void file_bench_expect_refused(struct file_bench *b, int ret, const char *word);

/* The only volume in path @index; its path in @file.  False when there is none. */
bool file_bench_find_volume(const struct file_bench *b, unsigned index, char file[2048]);
struct stat file_bench_stat(const struct file_bench *b, unsigned index);

/* The label at the beginning of @file, which must be a good one. */
void label_of(const char *file, struct superblock *sb);

/* Takes @nr slots. */
void file_bench_put(struct file_bench *b, uint64_t *slots, unsigned nr);

/* Writes a page full of the number of its slot. */
void file_bench_write_slot(struct file_bench *b, uint64_t slot);

/* What @file has at @offset, past the page cache: the number of a slot, or 0. */
uint64_t file_bench_number_at(const char *file, uint64_t offset);

/* A process that stands for QEMU until it is ended. */
pid_t start_process(void);
void end_process(pid_t pid);

#endif
