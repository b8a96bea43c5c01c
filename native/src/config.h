/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Sizes that several files share, with the reason for each. */
#ifndef UFFDMM_CONFIG_H
#define UFFDMM_CONFIG_H

#define PAGE_SIZE_4K 4096u
#define PAGE_SHIFT_4K 12

/*
 * Pages of hugetlbfs.  What is counted in pages (limit, residency, slots, statistics)
 * is counted in pages of 4 KiB: one of these counts HUGE_PAGE_UNITS.
 */
#define PAGE_SIZE_2M (2048u * 1024u)
#define PAGE_SHIFT_2M 21
#define HUGE_PAGE_UNITS (PAGE_SIZE_2M / PAGE_SIZE_4K)

/*
 * Pages are evicted and queued in blocks of 64 (256 KiB): write-protecting and
 * punching a whole block costs little more than one page of it.
 */
#define BLOCK_PAGES 64u

/* Largest read-ahead window, and so the size of a fault thread's buffer. */
#define WINDOW_MAX 64u

/* Pages that one round of the evictor handles: 1 MiB of buffer. */
#define BATCH_PAGES 256u

/* A fault thread remembers this many faults that it cannot serve yet. */
#define DEFERRED_MAX 256u

#endif
