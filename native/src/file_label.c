/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Labels of volumes: superblock.c applied to a file or device.
 *
 * Several processes may want the same volume at once.  On one host a file lock, or
 * O_EXCL on a device, lets one of them in; between hosts locks may or may not work, and
 * then who wrote last has it, and the others see that when they look again.
 *
 * The lock is kept as long as the file is open, in a shared directory too.  It belongs to the
 * open file, and so does each write that a worker has left with the kernel of this host when
 * it died: a new worker that gets the lock knows that none is still to land.  Where there are
 * no locks nothing tells, and the volume is not taken over.
 */
#include "file_label.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"
#include "config.h"
#include "log.h"

/* How long a rival's label may take to show, where no lock tells of him. */
#define RIVAL_NS (200 * NSEC_PER_MSEC)

/* The volume in the words of the user. */
static void describe(const struct file_volume *v, char *text, size_t len)
{
    if (file_volume_is_device(v)) {
        snprintf(text, len, "block device %s of tier %s", v->path, v->config->name);
    } else {
        snprintf(text, len, "volume %s/%s of tier %s", v->path, v->file, v->config->name);
    }
}

/* Reads the label's block; one that was never written counts as zeros. */
static int read_block(const struct file_volume *v, void *block)
{
    ssize_t n;

    memset(block, 0, SUPERBLOCK_BYTES);
    n = pread(v->fd, block, SUPERBLOCK_BYTES, 0);
    return n < 0 ? -errno : 0;
}

static int write_label(const struct file_volume *v, const struct superblock *label)
{
    _Alignas(PAGE_SIZE_4K) char block[SUPERBLOCK_BYTES];
    struct iovec iov = {.iov_base = block, .iov_len = sizeof(block)};
    ssize_t n;

    superblock_make(block, label);
    n = pwritev2(v->fd, &iov, 1, 0, RWF_DSYNC);
    if (n < 0) {
        return -errno;
    }
    return n == SUPERBLOCK_BYTES ? 0 : -EIO;
}

/* The label that says that the volume is @vm's. */
static int make_label(struct superblock *label, const struct tier_vm *vm)
{
    int ret;

    memset(label, 0, sizeof(*label));
    ret = superblock_self(&label->owner);
    if (ret) {
        return ret;
    }
    label->owner.pid = (uint64_t)vm->qemu_pid;
    /* of a process that has ended already: a time that fits none */
    label->owner.pid_start = superblock_process_start(label->owner.pid);
    label->owner.pid_start += label->owner.pid_start == 0;
    memcpy(label->vm_uuid, vm->uuid, sizeof(label->vm_uuid));
    snprintf(label->vm_name, sizeof(label->vm_name), "%s", vm->name);
    return 0;
}

/*
 * Looks whether the volume may be taken, and notes what was there: v->label is what
 * has to be written, v->former the owner before.
 */
static int check_label(struct file_volume *v, const struct tier_vm *vm, const char *what,
                       char *err, size_t err_len)
{
    _Alignas(PAGE_SIZE_4K) char block[SUPERBLOCK_BYTES];
    struct superblock asker = v->label;
    enum superblock_kind kind;
    int ret = read_block(v, block);

    if (ret) {
        snprintf(err, err_len, "cannot read the label of %s: %s", what, strerror(-ret));
        return ret;
    }
    kind = superblock_parse(block, &v->former);
    if (kind == SUPERBLOCK_VALID && !v->config->shared) {
        /* of a local device it only matters that the former VM has ended, not which it was */
        memcpy(asker.vm_uuid, v->former.vm_uuid, sizeof(asker.vm_uuid));
        memcpy(asker.vm_name, v->former.vm_name, sizeof(asker.vm_name));
    }
    ret = superblock_check(block, &asker, what, err, err_len);
    if (ret) {
        return ret;
    }
    if (vm->incoming && kind == SUPERBLOCK_VALID &&
        v->former.state == SUPERBLOCK_RELEASED) {
        /* maybe to us: only who drives the migration knows */
        snprintf(err, err_len, "%s was released by host %s", what, v->former.owner.host);
        return -EBUSY;
    }
    v->label.epoch = asker.epoch;
    v->label.state = asker.state;
    /* a released volume is not left over: its pages are the VM's */
    v->leftovers = kind == SUPERBLOCK_VALID && v->former.state == SUPERBLOCK_OWNED;
    return 0;
}

/*
 * Keeps other processes from the file for as long as it is open; *@locked is false where
 * locks do not work.  0, or -EBUSY when another has the lock.
 */
static int lock_volume(const struct file_volume *v, bool *locked)
{
    *locked = !file_volume_is_device(v) && flock(v->fd, LOCK_EX | LOCK_NB) == 0;
    if (!*locked && !file_volume_is_device(v) && errno == EWOULDBLOCK) {
        return -EBUSY;
    }
    return 0;
}

/* Writes the label and sees that it stands. */
static int set_label(struct file_volume *v, bool locked, const char *what, char *err,
                     size_t err_len)
{
    struct timespec pause = {.tv_nsec = RIVAL_NS};
    int ret = write_label(v, &v->label);

    v->lockless = !locked && !file_volume_is_device(v);
    if (ret) {
        snprintf(err, err_len, "cannot write the label of %s: %s", what, strerror(-ret));
        return ret;
    }
    if (v->config->shared && !locked) {
        nanosleep(&pause, NULL);
    }
    v->labelled = true;
    v->bytes = v->bytes > SUPERBLOCK_BYTES ? v->bytes : SUPERBLOCK_BYTES;
    ret = file_label_held(v, err, err_len);
    v->labelled = ret == 0;
    return ret;
}

int file_label_take(struct file_volume *v, const struct tier_vm *vm, char *err,
                    size_t err_len)
{
    char what[sizeof(v->config->paths[0]) + sizeof(v->file) + 96];
    bool locked;
    int ret, busy;

    describe(v, what, sizeof(what));
    ret = make_label(&v->label, vm);
    if (ret) {
        snprintf(err, err_len,
                 "cannot tell this host and process for the label of %s: %s", what,
                 strerror(-ret));
        return ret;
    }
    busy = lock_volume(v, &locked);
    ret = check_label(v, vm, what, err, err_len);
    if (busy && (!ret || ret != -EBUSY)) {
        /* nothing in its label speaks against it: its owner is about to begin, or to end */
        snprintf(err, err_len,
                 "%s is in use by another process; try again when that has ended", what);
        ret = busy;
    }
    if (!ret && v->leftovers && !file_volume_is_device(v)) {
        if (ftruncate(v->fd, SUPERBLOCK_BYTES) < 0) {
            ret = -errno;
            snprintf(err, err_len, "cannot empty %s: %s", what, strerror(-ret));
        }
        v->bytes = 0;
        v->leftovers = false;
    }
    if (!ret) {
        ret = set_label(v, locked, what, err, err_len);
    }
    return ret;
}

int file_label_keep(struct file_volume *v, const struct tier_vm *vm, char *err,
                    size_t err_len)
{
    _Alignas(PAGE_SIZE_4K) char block[SUPERBLOCK_BYTES];
    char what[sizeof(v->config->paths[0]) + sizeof(v->file) + 96];
    int ret;

    describe(v, what, sizeof(what));
    if (!file_volume_is_device(v) && flock(v->fd, LOCK_EX | LOCK_NB) < 0) {
        ret = -errno;
        if (ret == -EWOULDBLOCK) {
            snprintf(err, err_len,
                     "%s is still being written for a former worker; try again", what);
        } else {
            snprintf(
                err, err_len,
                "%s cannot be locked: %s; so it cannot be told when the last write of the "
                "former worker has landed, and no new one takes it over: end the VM",
                what, strerror(-ret));
        }
        return ret;
    }
    ret = make_label(&v->label, vm);
    ret = ret ? ret : read_block(v, block);
    if (ret) {
        snprintf(err, err_len, "cannot read the label of %s: %s", what, strerror(-ret));
        return ret;
    }
    if (superblock_parse(block, &v->former) == SUPERBLOCK_VALID) {
        v->label.epoch = v->former.epoch;
    }
    v->label.state = SUPERBLOCK_OWNED;
    ret = superblock_still_held(block, &v->label, what, err, err_len);
    if (!ret && v->former.state != SUPERBLOCK_OWNED) {
        snprintf(err, err_len, "%s has been given up: its pages are no longer this VM's",
                 what);
        ret = -ESTALE;
    }
    v->labelled = ret == 0;
    return ret;
}

int file_label_held(const struct file_volume *v, char *err, size_t err_len)
{
    _Alignas(PAGE_SIZE_4K) char block[SUPERBLOCK_BYTES];
    char what[sizeof(v->config->paths[0]) + sizeof(v->file) + 96];
    int ret;

    if (!v->config->shared || !v->labelled) {
        return 0;
    }
    describe(v, what, sizeof(what));
    ret = read_block(v, block);
    if (ret) {
        snprintf(err, err_len, "cannot read the label of %s: %s", what, strerror(-ret));
        return ret;
    }
    return superblock_still_held(block, &v->label, what, err, err_len);
}

/* Reads the label, which must be a superblock.  0 or a negative errno with @err. */
static int read_label(const struct file_volume *v, const char *what,
                      struct superblock *label, char *err, size_t err_len)
{
    _Alignas(PAGE_SIZE_4K) char block[SUPERBLOCK_BYTES];
    int ret = read_block(v, block);

    if (ret) {
        snprintf(err, err_len, "cannot read the label of %s: %s", what, strerror(-ret));
    } else if (superblock_parse(block, label) != SUPERBLOCK_VALID) {
        snprintf(err, err_len, "the label of %s is not that of a volume in use", what);
        ret = -EUCLEAN;
    }
    return ret;
}

int file_label_match(struct file_volume *v, const struct tier_source *from, char *err,
                     size_t err_len)
{
    char what[sizeof(v->config->paths[0]) + sizeof(v->file) + 96];
    int ret;

    describe(v, what, sizeof(what));
    ret = read_label(v, what, &v->label, err, err_len);
    return ret ? ret
               : superblock_match(&v->label, from->name, from->uuid, from->epoch, what,
                                  err, err_len);
}

int file_label_give(struct file_volume *v, const char *destination, uint64_t *epoch,
                    char *err, size_t err_len)
{
    char what[sizeof(v->config->paths[0]) + sizeof(v->file) + 96];
    struct superblock now, label = v->label;
    int ret;

    describe(v, what, sizeof(what));
    superblock_give(&label, destination);
    *epoch = label.epoch;
    ret = read_label(v, what, &now, err, err_len);
    if (ret) {
        return ret;
    }
    if (!superblock_same(&now, &label)) { /* else the call before has done it after all */
        ret = file_label_held(v, err, err_len);
        if (ret) {
            return ret;
        }
        ret = fdatasync(v->fd) < 0 ? -errno : write_label(v, &label);
    }
    if (ret) {
        snprintf(err, err_len, "cannot write the label of %s: %s", what, strerror(-ret));
    } else if (!file_volume_is_device(v)) {
        flock(v->fd, LOCK_UN); /* the destination takes it */
    }
    return ret;
}

int file_label_receive(struct file_volume *v, const struct tier_vm *vm, uint64_t epoch,
                       char *err, size_t err_len)
{
    char what[sizeof(v->config->paths[0]) + sizeof(v->file) + 96];
    struct superblock now, label;
    bool locked;
    int ret;

    describe(v, what, sizeof(what));
    ret = make_label(&label, vm);
    if (ret) {
        snprintf(err, err_len, "cannot tell this host and process: %s", strerror(-ret));
        return ret;
    }
    label.epoch = epoch;
    label.state = SUPERBLOCK_OWNED;
    ret = read_label(v, what, &now, err, err_len);
    if (!ret && !superblock_same(&now, &label)) { /* else: it was taken a moment ago */
        ret = superblock_receive(&now, &v->label, epoch, what, err, err_len);
    }
    if (!ret) {
        ret = file_volume_writable(v);
        if (!ret) {
            ret = lock_volume(v, &locked);
        }
        if (ret) {
            snprintf(err, err_len, "cannot open %s for writing: %s", what,
                     strerror(-ret));
            return ret;
        }
        now = v->label;
        v->label = label;
        ret = set_label(v, locked, what, err, err_len);
        if (ret) {
            v->label = now;
        }
        if (ret && locked) {
            flock(v->fd, LOCK_UN);
        }
    }
    return ret;
}

bool file_label_release(const struct file_volume *v, bool keep)
{
    char err[UFFDMM_TEXT_MAX];
    struct superblock label = v->label;
    int ret;

    if (file_label_held(v, err, sizeof(err))) {
        log_warn("%s", err);
        return false;
    }
    if (keep && !v->config->shared) {
        return true; /* the process in the label says how long the pages are needed */
    }
    if (keep) {
        label.state = SUPERBLOCK_RELEASED;
    } else if (v->leftovers) {
        label = v->former; /* its pages are still to be made unreadable */
        label.epoch = v->label.epoch;
    } else {
        label.state = SUPERBLOCK_FREE;
    }
    ret = write_label(v, &label);
    if (ret) {
        log_warn("tier %s: cannot write the label of %s: %s", v->config->name, v->path,
                 strerror(-ret));
    }
    return true;
}
