/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The eviction race, run on this host's kernel: does write protection keep a
 * page's last update when the page is evicted under a writer's hands?
 *
 * Threads of a child process increment counters in shared memory while the
 * caller evicts their pages (write-protect, read, keep, punch, serve the
 * faults).  Every writer also counts privately, so an update that vanished is
 * seen.  With protect = 0 the write protection is left out: updates must then
 * get lost, or the test could not have seen a loss at all.
 */
#ifndef UFFDMM_SELFTEST_H
#define UFFDMM_SELFTEST_H

#ifndef UFFDMM_CFFI
#include <stddef.h>
#include <stdint.h>
#endif

struct uffdmm_race_result {
    uint64_t evictions; /* pages evicted */
    uint64_t lost;      /* updates that vanished */
};

/*
 * Runs for `seconds` (1..60) and at most a few more.  Needs the right to open a
 * userfaultfd that handles kernel faults and Linux 5.19 (write protection of
 * shared memory).  Leaves no process, descriptor or mapping behind.
 *
 * Returns 0, or a negative errno with one sentence in err (err_len bytes, cut
 * when too long) and out untouched.
 */
int uffdmm_selftest_race(uint32_t seconds, int protect, struct uffdmm_race_result *out,
                         char *err, size_t err_len);

#endif
