/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "stats.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "config.h"

_Static_assert(sizeof(struct uffdmm_stats) <= PAGE_SIZE_4K,
               "statistics fit into one page");
_Static_assert(sizeof(struct uffdmm_tier_stats) <= PAGE_SIZE_4K,
               "statistics of a tier fit into one page");

uint64_t stats_size(void)
{
    return (1 + UFFDMM_TIERS_MAX) * (uint64_t)PAGE_SIZE_4K;
}

int stats_create(struct uffdmm_stats **stats, int *fd_ro)
{
    char path[64];
    void *map;
    int fd, ret;

    fd = memfd_create("uffdmm-stats", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) {
        return -errno;
    }
    if (ftruncate(fd, (off_t)stats_size()) < 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) < 0) {
        ret = -errno;
        close(fd);
        return ret;
    }
    map = mmap(NULL, stats_size(), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) {
        ret = -errno;
        close(fd);
        return ret;
    }
    /* a descriptor opened read-only: its holders cannot map it for writing */
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    *fd_ro = open(path, O_RDONLY | O_CLOEXEC);
    ret = *fd_ro < 0 ? -errno : 0;
    close(fd);
    if (ret) {
        munmap(map, stats_size());
        return ret;
    }
    *stats = map;
    (*stats)->magic = UFFDMM_STATS_MAGIC;
    (*stats)->features = UFFDMM_FEATURE_DEPOSITS;
    (*stats)->version = UFFDMM_STATS_VERSION;
    (*stats)->worker_pid = (uint32_t)getpid();
    return 0;
}
