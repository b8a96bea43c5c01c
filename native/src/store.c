/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The `file` tier.
 *
 * The volume is reserved as a whole when the VM gets its memory, so that a
 * full disk refuses a VM at its start and does not stop one that runs.  Data
 * need not outlive the host (a VM does not either): O_DIRECT without a flush is
 * durable enough for "if the manager dies, the pages are there".
 */
#include "store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "config.h"
#include "log.h"
#include "stats.h"

/* Smallest and largest run that one trim gives back, in slots. */
#define TRIM_MIN 64
#define TRIM_MAX 16384

/* Slots beyond the pages of the VM, so that whole blocks can be rewritten. */
#define SLACK_SHIFT 3

/*
 * A volume is named VM.PID-START.volume: the process and the time it began say
 * whether anybody can still need the pages in it.
 */
static uint64_t process_start(pid_t pid)
{
    char path[64], text[512], *p;
    unsigned long long start = 0;
    ssize_t n;
    int fd;

    snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return 0;
    }
    n = read(fd, text, sizeof(text) - 1);
    close(fd);
    if (n <= 0) {
        return 0;
    }
    text[n] = '\0';
    /* the name in parentheses may hold anything; start time is the 20th field behind it */
    p = strrchr(text, ')');
    for (int i = 0; p && i < 20; i++) {
        p = strchr(p + 1, ' ');
    }
    return p && sscanf(p, "%llu", &start) == 1 ? start : 0;
}

static int open_volume(struct store *st, char *err, size_t err_len)
{
    int fd = openat(st->dir_fd, st->file,
                    O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_DIRECT | O_NOFOLLOW, 0600);
    int ret;

    if (fd >= 0) {
        return fd;
    }
    ret = -errno;
    if (ret == -EINVAL) {
        snprintf(
            err, err_len,
            "store directory %s does not support O_DIRECT: put the store on a filesystem that "
            "does (ext4, xfs, btrfs)",
            st->dir);
        unlinkat(st->dir_fd, st->file, 0);
    } else if (ret == -EEXIST) {
        snprintf(
            err, err_len,
            "volume %s/%s exists already: its worker has died and the VM cannot go on; end "
            "the VM, then remove the volume",
            st->dir, st->file);
    } else {
        snprintf(err, err_len, "cannot create volume %s in store directory %s: %s",
                 st->file, st->dir, strerror(-ret));
    }
    return ret;
}

static int open_dir(const char *dir, char *err, size_t err_len)
{
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int ret;

    if (fd < 0) {
        ret = -errno;
        snprintf(err, err_len,
                 "cannot open store directory %s: %s; create it or name another with "
                 "--store",
                 dir, strerror(-ret));
        return ret;
    }
    return fd;
}

int store_open(struct store *st, const char *dir, uint64_t max_bytes, const char *vm_name,
               pid_t qemu_pid, struct uffdmm_stats *stats, char *err, size_t err_len)
{
    int ret;

    memset(st, 0, sizeof(*st));
    st->fd = -1;
    st->stats = stats;
    st->max_bytes = max_bytes;
    snprintf(st->dir, sizeof(st->dir), "%s", dir);
    snprintf(st->file, sizeof(st->file), "%s.%d-%llu.volume", vm_name, (int)qemu_pid,
             (unsigned long long)process_start(qemu_pid));
    st->dir_fd = open_dir(dir, err, err_len);
    if (st->dir_fd < 0) {
        return st->dir_fd;
    }
    st->fd = open_volume(st, err, err_len);
    if (st->fd < 0) {
        close(st->dir_fd);
        return st->fd;
    }
    ret = slots_init(&st->slots, 0);
    if (ret) {
        snprintf(err, err_len, "no memory for the slot map of volume %s/%s", dir,
                 st->file);
        store_close(st);
    }
    return ret;
}

/* True when @name is a volume whose QEMU process is no more. */
static bool abandoned(const char *name)
{
    size_t len = strlen(name);
    const char *dot;
    int pid;
    unsigned long long start;

    if (len < 8 || strcmp(name + len - 7, ".volume") != 0) {
        return false;
    }
    dot = memrchr(name, '.', len - 7);
    return dot && sscanf(dot, ".%d-%llu.volume", &pid, &start) == 2 && pid > 0 &&
           process_start(pid) != start;
}

int store_sweep(const char *dir, char *err, size_t err_len)
{
    int fd = open_dir(dir, err, err_len);
    struct dirent *entry;
    DIR *d;
    int ret;

    if (fd < 0) {
        return fd;
    }
    if (faccessat(fd, ".", W_OK | X_OK, AT_EACCESS) < 0) {
        ret = -errno;
        snprintf(err, err_len,
                 "store directory %s is not writable: %s; change its owner or mode", dir,
                 strerror(-ret));
        close(fd);
        return ret;
    }
    d = fdopendir(fd);
    if (!d) {
        ret = -errno;
        snprintf(err, err_len, "cannot read store directory %s: %s", dir, strerror(-ret));
        close(fd);
        return ret;
    }
    while ((entry = readdir(d))) {
        if (abandoned(entry->d_name)) {
            log_info("removing volume %s/%s: its QEMU process has ended", dir,
                     entry->d_name);
            if (unlinkat(fd, entry->d_name, 0) < 0) {
                log_warn("cannot remove volume %s/%s: %s", dir, entry->d_name,
                         strerror(errno));
            }
        }
    }
    closedir(d);
    return 0;
}

void store_close(struct store *st)
{
    if (unlinkat(st->dir_fd, st->file, 0) < 0) {
        log_warn("cannot remove volume %s/%s: %s", st->dir, st->file, strerror(errno));
    }
    close(st->fd);
    close(st->dir_fd);
    slots_deinit(&st->slots);
    st->fd = -1;
}

/* Bytes that a VM of @ram_bytes can ever keep in the volume at once, rounded up. */
static uint64_t volume_size(uint64_t ram_bytes)
{
    return ram_bytes + (ram_bytes >> SLACK_SHIFT) + (64 + 1) * (uint64_t)PAGE_SIZE_4K;
}

int store_reserve(struct store *st, uint64_t ram_bytes, uint64_t limit_bytes, char *err,
                  size_t err_len)
{
    uint64_t want = volume_size(ram_bytes);
    uint64_t need = ram_bytes > limit_bytes ? ram_bytes - limit_bytes : 0;
    int ret;

    if (st->max_bytes && want > st->max_bytes) {
        want = st->max_bytes & ~(uint64_t)(PAGE_SIZE_4K - 1);
        /* one slot is nobody's, and a batch needs room beside what is stored already */
        if (want < need + (2 * (uint64_t)BATCH_PAGES + 1) * PAGE_SIZE_4K) {
            snprintf(
                err, err_len,
                "store %s is too small: its volumes hold %llu MiB, but %llu MiB of RAM with a "
                "limit of %llu MiB need %llu MiB; raise size= or the limit",
                st->dir, (unsigned long long)(st->max_bytes >> 20),
                (unsigned long long)(ram_bytes >> 20),
                (unsigned long long)(limit_bytes >> 20),
                (unsigned long long)(need >> 20));
            return -ENOSPC;
        }
    }
    if (want <= st->bytes) {
        return 0;
    }
    if (fallocate(st->fd, 0, 0, (off_t)want) < 0) {
        struct statvfs vfs;
        uint64_t avail = 0;

        ret = -errno;
        if (fstatvfs(st->fd, &vfs) == 0) {
            avail = (uint64_t)vfs.f_bavail * vfs.f_frsize;
        }
        if (ftruncate(st->fd, (off_t)st->bytes) < 0) {
            log_warn("cannot shrink volume %s/%s back: %s", st->dir, st->file,
                     strerror(errno));
        }
        snprintf(
            err, err_len,
            "cannot reserve %llu MiB in store directory %s (%llu MiB are free): %s; free "
            "space there, or bound the volumes with size=",
            (unsigned long long)(want >> 20), st->dir, (unsigned long long)(avail >> 20),
            strerror(-ret));
        return ret;
    }
    ret = slots_grow(&st->slots, want / PAGE_SIZE_4K);
    if (ret) {
        snprintf(err, err_len, "no memory for the slot map of a volume of %llu MiB",
                 (unsigned long long)(want >> 20));
        return ret;
    }
    st->bytes = want;
    return 0;
}

struct io_request store_request(const struct store *st, bool write, struct iovec *iov,
                                int nr_iov, uint64_t slot, uint64_t length)
{
    return (struct io_request){
        .write = write,
        .fd = st->fd,
        .iov = iov,
        .nr_iov = nr_iov,
        .offset = slot * PAGE_SIZE_4K,
        .length = length,
    };
}

int store_run(struct store *st, struct io *io, struct io_request *reqs, int nr,
              uint64_t spin_ns)
{
    int failed = io_run(io, reqs, nr, spin_ns);

    for (int i = 0; i < nr; i++) {
        if (reqs[i].write) {
            stats_add(&st->stats->store_writes, 1);
            stats_add(&st->stats->store_write_bytes, reqs[i].length);
        } else {
            stats_add(&st->stats->store_reads, 1);
            stats_add(&st->stats->store_read_bytes, reqs[i].length);
        }
    }
    if (failed) {
        stats_add(&st->stats->store_errors, (uint64_t)failed);
    }
    return failed;
}

uint64_t store_trim(struct store *st)
{
    uint64_t start, nr;
    bool ok;

    nr = slots_take_untrimmed(&st->slots, TRIM_MIN, TRIM_MAX, &start);
    if (!nr) {
        return 0;
    }
    /*
     * Zeroing the range keeps its blocks reserved and makes its old content
     * unreadable; a filesystem that cannot do it keeps the old content.
     */
    ok = fallocate(st->fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
                   (off_t)(start * PAGE_SIZE_4K), (off_t)(nr * PAGE_SIZE_4K)) == 0;
    slots_trimmed(&st->slots, start, nr, true);
    if (ok) {
        stats_add(&st->stats->store_trim_bytes, nr * PAGE_SIZE_4K);
    }
    return ok ? nr * PAGE_SIZE_4K : 0;
}

uint64_t store_checksum(const void *page, uint32_t region_id, uint64_t pfn,
                        unsigned generation)
{
    uint64_t seed = pfn ^ ((uint64_t)generation << 52) ^ ((uint64_t)region_id << 44);

    return XXH3_64bits_withSeed(page, PAGE_SIZE_4K, seed);
}
