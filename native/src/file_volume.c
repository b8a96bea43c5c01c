/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Volumes of the `file` tier.
 *
 * Theory of operation.  A volume file is reserved as a whole when the VM gets its
 * memory, so that a full disk refuses a VM at its start and does not stop one that
 * runs.  Data need not outlive the host (a VM does not either): O_DIRECT without a
 * flush is durable enough for "if the manager dies, the pages are there".
 *
 * Whose a volume is:
 * - A file in a directory of this host alone is named VM.PID-START.volume: the QEMU
 *   process and the time it began say whether anybody can still need the pages in it.
 * - A file in a shared directory is named VM.volume, the same for every host, and a
 *   device has no name of ours: their label says it.  The process in the label is QEMU,
 *   not the worker, for it is QEMU's pages that are there.
 * A device that holds anything but a label or zeros is never touched: a name typed
 * wrong must not cost a filesystem.
 */
#include "file_volume.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "config.h"
#include "file_label.h"
#include "log.h"

/* A smaller block device is a mistake, and would have no whole chunk beside its label. */
#define DEVICE_MIN (2ULL << 20)

/* Written where nothing better makes old content unreadable; O_DIRECT wants it aligned. */
static char zeros[1 << 16] __attribute__((aligned(PAGE_SIZE_4K)));

/* ---- opening ------------------------------------------------------------- */

static int open_dir(const struct tier_config *config, const char *path, char *err,
                    size_t err_len)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int ret;

    if (fd < 0) {
        ret = -errno;
        snprintf(err, err_len,
                 "tier %s: cannot open store directory %s: %s; create it or name another "
                 "with path=",
                 config->name, path, strerror(-ret));
        return ret;
    }
    return fd;
}

/*
 * A lock belongs to the open file, and so does each write that a dead worker has left with
 * the kernel: io_uring goes on with it after the process has ended, and holds the file.  So
 * who has the lock knows that no write of a former worker is still to land.
 */
static int lock_file(const struct file_volume *v, char *err, size_t err_len)
{
    int ret = flock(v->fd, LOCK_EX | LOCK_NB) < 0 ? -errno : 0;

    if (ret == -EWOULDBLOCK) {
        snprintf(err, err_len,
                 "tier %s: volume %s/%s is still being written for a former worker; try "
                 "again",
                 v->config->name, v->path, v->file);
    } else if (ret) {
        snprintf(err, err_len, "tier %s: cannot lock volume %s/%s: %s", v->config->name,
                 v->path, v->file, strerror(-ret));
    }
    return ret;
}

/* Creates the volume file, or opens that of a shared directory. */
static int open_file(struct file_volume *v, const struct tier_vm *vm, char *err,
                     size_t err_len)
{
    int flags = O_RDWR | O_CREAT | O_CLOEXEC | O_DIRECT | O_NOFOLLOW;
    struct stat st;
    int ret;

    if (v->config->shared) {
        snprintf(v->file, sizeof(v->file), "%s.volume", vm->name);
    } else {
        flags = vm->kept ? flags & ~O_CREAT : flags | O_EXCL;
        snprintf(v->file, sizeof(v->file), "%s.%d-%llu.volume", vm->name,
                 (int)vm->qemu_pid,
                 (unsigned long long)superblock_process_start((uint64_t)vm->qemu_pid));
    }
    v->fd = openat(v->dir_fd, v->file, flags, 0600);
    if (v->fd >= 0 && fstat(v->fd, &st) == 0 && S_ISREG(st.st_mode)) {
        v->bytes = (uint64_t)st.st_size;
        return v->config->shared ? 0 : lock_file(v, err, err_len);
    }
    ret = v->fd < 0 ? -errno : -EINVAL;
    if (v->fd >= 0) {
        snprintf(err, err_len, "tier %s: volume %s/%s is not a file; remove it",
                 v->config->name, v->path, v->file);
    } else if (ret == -EINVAL) {
        snprintf(
            err, err_len,
            "tier %s: store directory %s does not support O_DIRECT; put the store on "
            "a filesystem that does (ext4, xfs, btrfs)",
            v->config->name, v->path);
        unlinkat(v->dir_fd, v->file, 0);
    } else if (ret == -ENOENT && vm->kept) {
        snprintf(err, err_len,
                 "tier %s: volume %s/%s, which holds pages of this VM, is not there; put "
                 "it back",
                 v->config->name, v->path, v->file);
    } else if (ret == -EEXIST) {
        snprintf(
            err, err_len,
            "tier %s: volume %s/%s exists already: it holds memory that QEMU process "
            "has not handed to a new worker yet; try again, or end the VM",
            v->config->name, v->path, v->file);
    } else {
        snprintf(err, err_len,
                 "tier %s: cannot create volume %s in store directory %s: %s",
                 v->config->name, v->file, v->path, strerror(-ret));
    }
    return ret;
}

static int open_device(struct file_volume *v, char *err, size_t err_len)
{
    int sector = 0, ret;

    /* without O_CREAT the flag O_EXCL asks for a device that nobody else has claimed */
    v->fd = open(v->path, O_RDWR | O_EXCL | O_DIRECT | O_CLOEXEC);
    if (v->fd < 0) {
        ret = -errno;
        if (ret == -EBUSY) {
            snprintf(err, err_len,
                     "tier %s: block device %s is in use by another VM or is mounted; it "
                     "can serve one VM at a time: name another with path=",
                     v->config->name, v->path);
        } else {
            snprintf(err, err_len, "tier %s: cannot open block device %s: %s",
                     v->config->name, v->path, strerror(-ret));
        }
        return ret;
    }
    if (ioctl(v->fd, BLKGETSIZE64, &v->bytes) < 0 ||
        ioctl(v->fd, BLKSSZGET, &sector) < 0) {
        ret = -errno;
        snprintf(err, err_len, "tier %s: cannot get the size of block device %s: %s",
                 v->config->name, v->path, strerror(-ret));
        return ret;
    }
    if (v->bytes < DEVICE_MIN) {
        snprintf(
            err, err_len,
            "tier %s: block device %s has %llu KiB, which is too little; name one of at "
            "least %llu MiB with path=",
            v->config->name, v->path, (unsigned long long)(v->bytes >> 10),
            DEVICE_MIN >> 20);
        return -ENOSPC;
    }
    if (sector > (int)PAGE_SIZE_4K) {
        snprintf(
            err, err_len,
            "tier %s: block device %s has sectors of %d bytes; pages of %u bytes need "
            "a device with sectors no larger than that",
            v->config->name, v->path, sector, PAGE_SIZE_4K);
        return -EINVAL;
    }
    return 0;
}

static int refuse_type(const struct tier_config *config, const char *path, char *err,
                       size_t err_len)
{
    snprintf(err, err_len,
             "tier %s: path %s is neither a directory nor a block device; name one with "
             "path=",
             config->name, path);
    return -ENOTBLK;
}

/* Gives up what file_volume_open() has so far; nothing has been labelled. */
static void undo_open(struct file_volume *v, bool created)
{
    if (v->fd >= 0) {
        if (created && unlinkat(v->dir_fd, v->file, 0) < 0) {
            log_warn("cannot remove volume %s/%s: %s", v->path, v->file, strerror(errno));
        }
        close(v->fd);
    }
    if (v->dir_fd >= 0) {
        close(v->dir_fd);
    }
    v->fd = v->dir_fd = -1;
}

int file_volume_open(struct file_volume *v, const struct tier_config *config,
                     unsigned index, const struct tier_vm *vm, char *err, size_t err_len)
{
    struct stat st;
    int ret;

    memset(v, 0, sizeof(*v));
    v->fd = v->dir_fd = -1;
    v->config = config;
    v->path = config->paths[index];
    if (stat(v->path, &st) == 0 && S_ISBLK(st.st_mode)) {
        v->zero = FILE_VOLUME_PUNCH;
        ret = open_device(v, err, err_len);
    } else if (stat(v->path, &st) == 0 && !S_ISDIR(st.st_mode)) {
        ret = refuse_type(config, v->path, err, err_len);
    } else {
        v->dir_fd = open_dir(config, v->path, err, err_len);
        ret = v->dir_fd < 0 ? v->dir_fd : open_file(v, vm, err, err_len);
    }
    if (!ret && (config->shared || file_volume_is_device(v))) {
        ret = vm->kept ? file_label_keep(v, vm, err, err_len)
                       : file_label_take(v, vm, err, err_len);
    }
    if (ret) {
        /* a file of a shared directory may be another's: it stays */
        undo_open(v, !file_volume_is_device(v) && !config->shared && !vm->kept);
    }
    return ret;
}

int file_volume_attach(struct file_volume *v, const struct tier_config *config,
                       unsigned index, const struct tier_source *from, char *err,
                       size_t err_len)
{
    struct stat st;
    int ret = 0;

    memset(v, 0, sizeof(*v));
    v->fd = v->dir_fd = -1;
    v->config = config;
    v->path = config->paths[index];
    if (stat(v->path, &st) == 0 && S_ISBLK(st.st_mode)) {
        v->zero = FILE_VOLUME_PUNCH;
        v->fd = open(v->path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    } else {
        snprintf(v->file, sizeof(v->file), "%s.volume", from->name);
        v->dir_fd = open_dir(config, v->path, err, err_len);
        if (v->dir_fd < 0) {
            return v->dir_fd;
        }
        v->fd =
            openat(v->dir_fd, v->file, O_RDONLY | O_DIRECT | O_CLOEXEC | O_NOFOLLOW, 0);
    }
    if (v->fd < 0) {
        ret = -errno;
    } else if (file_volume_is_device(v)) {
        ret = ioctl(v->fd, BLKGETSIZE64, &v->bytes) < 0 ? -errno : 0;
    } else {
        ret = fstat(v->fd, &st) < 0 ? -errno : S_ISREG(st.st_mode) ? 0 : -EINVAL;
        v->bytes = ret ? 0 : (uint64_t)st.st_size;
    }
    if (ret) {
        snprintf(
            err, err_len,
            "tier %s: cannot open volume %s of the source in %s: %s; is that what the "
            "source's tier has, too?",
            config->name, v->file, v->path, strerror(-ret));
    } else {
        ret = file_label_match(v, from, err, err_len);
    }
    if (ret) {
        file_volume_detach(v);
    }
    return ret;
}

int file_volume_writable(struct file_volume *v)
{
    int fd = file_volume_is_device(v)
                 ? open(v->path, O_RDWR | O_EXCL | O_DIRECT | O_CLOEXEC)
                 : openat(v->dir_fd, v->file, O_RDWR | O_DIRECT | O_CLOEXEC | O_NOFOLLOW);
    int ret = 0;

    if (fd < 0) {
        return -errno;
    }
    /* under the same number: reads go on meanwhile */
    if (dup3(fd, v->fd, O_CLOEXEC) < 0) {
        ret = -errno;
    }
    close(fd);
    return ret;
}

/* ---- closing ------------------------------------------------------------- */

void file_volume_detach(struct file_volume *v)
{
    if (v->fd >= 0) {
        close(v->fd);
    }
    if (v->dir_fd >= 0) {
        close(v->dir_fd);
    }
    v->fd = v->dir_fd = -1;
}

void file_volume_close(struct file_volume *v, bool keep)
{
    bool ours = !v->labelled || file_label_release(v, keep);

    if (!file_volume_is_device(v)) {
        if (ours && !keep && unlinkat(v->dir_fd, v->file, 0) < 0) {
            log_warn("cannot remove volume %s/%s: %s", v->path, v->file, strerror(errno));
        }
        close(v->dir_fd);
    }
    close(v->fd);
    v->fd = v->dir_fd = -1;
}

/* ---- room ---------------------------------------------------------------- */

void file_volume_shrink(struct file_volume *v, uint64_t bytes)
{
    if (file_volume_is_device(v)) {
        return;
    }
    if (ftruncate(v->fd, (off_t)bytes) < 0) {
        log_warn("cannot shrink volume %s/%s back: %s", v->path, v->file,
                 strerror(errno));
        return;
    }
    v->bytes = bytes;
}

/* Reserves where the filesystem can; a network's that cannot gets a file with holes. */
static int reserve_range(const struct file_volume *v, uint64_t bytes)
{
    if (fallocate(v->fd, 0, 0, (off_t)bytes) == 0) {
        return 0;
    }
    if (errno == EOPNOTSUPP && v->config->shared && ftruncate(v->fd, (off_t)bytes) == 0) {
        log_warn(
            "store directory %s cannot reserve room: when it is full, eviction stops",
            v->path);
        return 0;
    }
    return -errno;
}

int file_volume_grow(struct file_volume *v, uint64_t bytes, char *err, size_t err_len)
{
    struct statvfs vfs;
    uint64_t avail = 0;
    int ret;

    if (bytes <= v->bytes) {
        return 0;
    }
    ret = reserve_range(v, bytes);
    if (!ret) {
        v->bytes = bytes;
        return 0;
    }
    if (fstatvfs(v->fd, &vfs) == 0) {
        avail = (uint64_t)vfs.f_bavail * vfs.f_frsize;
    }
    snprintf(
        err, err_len,
        "tier %s: cannot reserve %llu MiB in store directory %s (%llu MiB are free): "
        "%s; free space there, or bound the volumes with capacity=",
        v->config->name, (unsigned long long)(bytes >> 20), v->path,
        (unsigned long long)(avail >> 20), strerror(-ret));
    return ret;
}

static int write_zeros(const struct file_volume *v, uint64_t offset, uint64_t length)
{
    while (length) {
        size_t len = length < sizeof(zeros) ? (size_t)length : sizeof(zeros);
        ssize_t n = pwrite(v->fd, zeros, len, (off_t)offset);

        if (n < 0 && errno != EINTR) {
            return -errno;
        }
        if (n > 0) {
            offset += (uint64_t)n;
            length -= (uint64_t)n;
        }
    }
    return 0;
}

static int zero_by(const struct file_volume *v, uint64_t offset, uint64_t length)
{
    uint64_t range[2] = {offset, length};
    off_t at = (off_t)offset, len = (off_t)length;

    switch (v->zero) {
    case FILE_VOLUME_ZERO_RANGE:
        return fallocate(v->fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, at, len) < 0
                   ? -errno
                   : 0;
    case FILE_VOLUME_PUNCH:
        /* on a device: unmaps if, and only if, that is sure to read as zeros then */
        if (fallocate(v->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, len) < 0) {
            return -errno;
        }
        if (file_volume_is_device(v) ||
            fallocate(v->fd, FALLOC_FL_KEEP_SIZE, at, len) == 0) {
            return 0;
        }
        /* a filesystem that reserves nothing has nothing to take back */
        return errno == EOPNOTSUPP ? 0 : -errno;
    case FILE_VOLUME_ZEROOUT:
        return ioctl(v->fd, BLKZEROOUT, range) < 0 ? -errno : 0;
    case FILE_VOLUME_WRITE:
        break;
    }
    return write_zeros(v, offset, length);
}

int file_volume_zero(struct file_volume *v, uint64_t offset, uint64_t length)
{
    int ret;

    while ((ret = zero_by(v, offset, length)) == -EOPNOTSUPP) {
        if (v->zero == FILE_VOLUME_ZERO_RANGE) {
            v->zero = FILE_VOLUME_PUNCH;
        } else if (v->zero == FILE_VOLUME_PUNCH && file_volume_is_device(v)) {
            v->zero = FILE_VOLUME_ZEROOUT;
        } else if (v->zero != FILE_VOLUME_WRITE) {
            v->zero = FILE_VOLUME_WRITE;
        } else {
            break;
        }
    }
    return ret;
}

/* ---- at the manager's start ---------------------------------------------- */

/* True when @name is a volume whose QEMU process is no more. */
static bool abandoned(const char *name)
{
    size_t len = strlen(name);
    const char *dot;
    int pid;
    unsigned long long start, now;

    if (len < 8 || strcmp(name + len - 7, ".volume") != 0) {
        return false;
    }
    dot = memrchr(name, '.', len - 7);
    if (!dot || sscanf(dot, ".%d-%llu.volume", &pid, &start) != 2 || pid <= 0) {
        return false;
    }
    now = superblock_process_start((uint64_t)pid);
    return !now || now != start;
}

/* Removes abandoned volumes in the directory @fd, which is closed. */
static int sweep_dir(const char *path, int fd)
{
    struct dirent *entry;
    DIR *d = fdopendir(fd);

    if (!d) {
        int ret = -errno;

        close(fd);
        return ret;
    }
    while ((entry = readdir(d))) {
        if (abandoned(entry->d_name)) {
            log_info("removing volume %s/%s: its QEMU process has ended", path,
                     entry->d_name);
            if (unlinkat(fd, entry->d_name, 0) < 0) {
                log_warn("cannot remove volume %s/%s: %s", path, entry->d_name,
                         strerror(errno));
            }
        }
    }
    closedir(d);
    return 0;
}

int file_volume_sweep(const struct tier_config *config, unsigned index, char *err,
                      size_t err_len)
{
    const char *path = config->paths[index];
    struct stat st;
    int fd, ret;

    if (stat(path, &st) == 0 && S_ISBLK(st.st_mode)) {
        if (faccessat(AT_FDCWD, path, R_OK | W_OK, AT_EACCESS) == 0) {
            return 0;
        }
        ret = -errno;
        snprintf(
            err, err_len,
            "tier %s: block device %s cannot be written: %s; change its owner or mode",
            config->name, path, strerror(-ret));
        return ret;
    }
    if (stat(path, &st) == 0 && !S_ISDIR(st.st_mode)) {
        return refuse_type(config, path, err, err_len);
    }
    fd = open_dir(config, path, err, err_len);
    if (fd < 0) {
        return fd;
    }
    if (faccessat(fd, ".", W_OK | X_OK, AT_EACCESS) < 0) {
        ret = -errno;
        snprintf(
            err, err_len,
            "tier %s: store directory %s is not writable: %s; change its owner or mode",
            config->name, path, strerror(-ret));
        close(fd);
        return ret;
    }
    if (config->shared) {
        close(fd); /* other hosts know what is needed there */
        return 0;
    }
    ret = sweep_dir(path, fd);
    if (ret) {
        snprintf(err, err_len, "tier %s: cannot read store directory %s: %s",
                 config->name, path, strerror(-ret));
    }
    return ret;
}
