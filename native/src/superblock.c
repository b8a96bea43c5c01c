/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Superblocks of shared volumes.
 *
 * Theory of operation.  Storage that several hosts reach has no locks that this
 * program could rely on, so a volume says itself whose it is.  Who wants it
 * reads the block, asks superblock_check(), writes its own block durably and reads
 * it back a moment later: of two that took a free volume at the same time the
 * later write stands, and the other sees it.
 *
 * A volume that is owned can be taken over only where it is certain that its
 * owner writes no more: by the same VM, on the same host, once the process that
 * owned it has ended.  A process is known by its pid, the time it began, and the
 * boot and namespace in which that pid counts.  After a reboot nothing of the
 * former boot lives; the host is then known by machine-id and name together, for
 * cloned machines often share the first.  In every other case a person has to decide.
 *
 * What is neither blank nor a superblock is somebody's data and never touched.
 */
#include "superblock.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#define SUPERBLOCK_VERSION 1

static const char magic[8] = {'U', 'F', 'F', 'D', 'M', 'M', 'S', 'B'};

/* As it lies on the volume; little-endian, zeros up to the checksum. */
struct disk {
    char magic[8];
    uint32_t version;
    uint32_t state;
    uint64_t epoch;
    uint8_t vm_uuid[16];
    char vm_name[UFFDMM_NAME_MAX];
    uint64_t host_id;
    uint8_t boot_id[16];
    uint64_t pid_ns;
    uint64_t pid;
    uint64_t pid_start;
    char host[UFFDMM_NAME_MAX];
    uint64_t vm_pid; /* 0 from those who do not know it yet */
    uint64_t vm_pid_start;
};

/* The checksum takes the last eight bytes, so that half a block never passes. */
#define CHECKSUM_AT (SUPERBLOCK_BYTES - sizeof(uint64_t))

_Static_assert(sizeof(struct disk) <= CHECKSUM_AT, "a superblock fits into its block");

/* ---- who we are ---------------------------------------------------------- */

/* Reads a small file into @text, without its newline.  Its length or a negative errno. */
static ssize_t read_small(const char *path, char *text, size_t len)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n;

    if (fd < 0) {
        return -errno;
    }
    n = read(fd, text, len - 1);
    if (n < 0) {
        n = -errno;
    } else {
        text[n] = '\0';
        text[strcspn(text, "\n")] = '\0';
    }
    close(fd);
    return n;
}

uint64_t superblock_process_start(uint64_t pid)
{
    char path[64], text[1024], *p;
    unsigned long long start = 0;

    snprintf(path, sizeof(path), "/proc/%llu/stat", (unsigned long long)pid);
    if (read_small(path, text, sizeof(text)) <= 0) {
        return 0;
    }
    /* the name in parentheses may hold anything; start time is the 20th field behind it */
    p = strrchr(text, ')');
    for (int i = 0; p && i < 20; i++) {
        p = strchr(p + 1, ' ');
    }
    return p && sscanf(p, "%llu", &start) == 1 ? start : 0;
}

/* The 16 bytes written as "xxxxxxxx-xxxx-..." in @text; false when it is not that. */
static bool parse_uuid(const char *text, uint8_t uuid[16])
{
    unsigned n = 0, byte;

    while (n < 16) {
        if (*text == '-') {
            text++;
        }
        if (sscanf(text, "%2x", &byte) != 1 || !text[0] || !text[1]) {
            return false;
        }
        uuid[n++] = (uint8_t)byte;
        text += 2;
    }
    return true;
}

int superblock_self(struct superblock_owner *owner)
{
    char text[128] = "", identity[256];
    struct utsname uts;
    struct stat st;
    ssize_t n;

    memset(owner, 0, sizeof(*owner));
    n = read_small("/proc/sys/kernel/random/boot_id", text, sizeof(text));
    if (n < 0) {
        return (int)n;
    }
    if (!parse_uuid(text, owner->boot_id)) {
        return -EINVAL;
    }
    if (uname(&uts) < 0 || stat("/proc/self/ns/pid", &st) < 0) {
        return -errno;
    }
    /* without a machine-id no boot of this host is known again, which is the safe side */
    if (read_small("/etc/machine-id", text, sizeof(text)) > 0 && text[0]) {
        snprintf(identity, sizeof(identity), "%s/%s", text, uts.nodename);
        owner->host_id = XXH3_64bits(identity, strlen(identity));
    }
    snprintf(owner->host, sizeof(owner->host), "%.*s", (int)sizeof(owner->host) - 1,
             uts.nodename);
    owner->pid_ns = (uint64_t)st.st_ino;
    owner->pid = (uint64_t)getpid();
    owner->pid_start = superblock_process_start(owner->pid);
    return owner->pid_start ? 0 : -ESRCH;
}

void superblock_set_vm_process(struct superblock *sb, pid_t pid)
{
    sb->vm_pid = (uint64_t)pid;
    sb->vm_pid_start = superblock_process_start(sb->vm_pid);
    sb->vm_pid_start += sb->vm_pid_start == 0; /* it has ended: a time that fits none */
}

/* ---- the block ----------------------------------------------------------- */

void superblock_make(void *buf, const struct superblock *sb)
{
    struct disk d = {
        .version = htole32(SUPERBLOCK_VERSION),
        .state = htole32(sb->state),
        .epoch = htole64(sb->epoch),
        .host_id = htole64(sb->owner.host_id),
        .pid_ns = htole64(sb->owner.pid_ns),
        .pid = htole64(sb->owner.pid),
        .pid_start = htole64(sb->owner.pid_start),
        .vm_pid = htole64(sb->vm_pid),
        .vm_pid_start = htole64(sb->vm_pid_start),
    };
    uint64_t sum;

    memcpy(d.magic, magic, sizeof(magic));
    memcpy(d.vm_uuid, sb->vm_uuid, sizeof(d.vm_uuid));
    memcpy(d.boot_id, sb->owner.boot_id, sizeof(d.boot_id));
    snprintf(d.vm_name, sizeof(d.vm_name), "%s", sb->vm_name);
    snprintf(d.host, sizeof(d.host), "%s", sb->owner.host);
    memset(buf, 0, SUPERBLOCK_BYTES);
    memcpy(buf, &d, sizeof(d));
    sum = htole64(XXH3_64bits(buf, CHECKSUM_AT));
    memcpy((char *)buf + CHECKSUM_AT, &sum, sizeof(sum));
}

static bool blank(const void *buf)
{
    const char *p = buf;

    return p[0] == 0 && memcmp(p, p + 1, SUPERBLOCK_BYTES - 1) == 0;
}

enum superblock_kind superblock_parse(const void *buf, struct superblock *sb)
{
    struct disk d;
    uint64_t sum;

    memcpy(&d, buf, sizeof(d));
    memcpy(&sum, (const char *)buf + CHECKSUM_AT, sizeof(sum));
    if (memcmp(d.magic, magic, sizeof(magic)) != 0) {
        return blank(buf) ? SUPERBLOCK_BLANK : SUPERBLOCK_ALIEN;
    }
    if (le64toh(sum) != XXH3_64bits(buf, CHECKSUM_AT)) {
        return SUPERBLOCK_DAMAGED;
    }
    if (le32toh(d.version) != SUPERBLOCK_VERSION || le32toh(d.state) < SUPERBLOCK_OWNED ||
        le32toh(d.state) > SUPERBLOCK_FREE) {
        return SUPERBLOCK_NEWER;
    }
    memset(sb, 0, sizeof(*sb));
    sb->state = le32toh(d.state);
    sb->epoch = le64toh(d.epoch);
    sb->owner.host_id = le64toh(d.host_id);
    sb->owner.pid_ns = le64toh(d.pid_ns);
    sb->owner.pid = le64toh(d.pid);
    sb->owner.pid_start = le64toh(d.pid_start);
    sb->vm_pid = le64toh(d.vm_pid);
    sb->vm_pid_start = le64toh(d.vm_pid_start);
    memcpy(sb->vm_uuid, d.vm_uuid, sizeof(d.vm_uuid));
    memcpy(sb->owner.boot_id, d.boot_id, sizeof(d.boot_id));
    memcpy(sb->vm_name, d.vm_name, sizeof(d.vm_name) - 1);
    memcpy(sb->owner.host, d.host, sizeof(d.host) - 1);
    return SUPERBLOCK_VALID;
}

/* ---- verdicts ------------------------------------------------------------ */

static bool same_vm(const struct superblock *a, const struct superblock *b)
{
    return memcmp(a->vm_uuid, b->vm_uuid, sizeof(a->vm_uuid)) == 0 &&
           strcmp(a->vm_name, b->vm_name) == 0;
}

/* True when it is certain that @owner, as seen from @self, is no more. */
static bool owner_gone(const struct superblock_owner *owner,
                       const struct superblock_owner *self)
{
    if (memcmp(owner->boot_id, self->boot_id, sizeof(owner->boot_id)) != 0) {
        return owner->host_id && owner->host_id == self->host_id;
    }
    if (owner->pid_ns != self->pid_ns) {
        return false;
    }
    return superblock_process_start(owner->pid) != owner->pid_start;
}

/* The sentence and errno for what is no superblock that can be read. */
static int refuse_kind(enum superblock_kind kind, const char *volume, char *err,
                       size_t err_len)
{
    switch (kind) {
    case SUPERBLOCK_DAMAGED:
        snprintf(
            err, err_len,
            "the superblock of %s is damaged; make sure that no host uses the volume, "
            "then zero its first 4 KiB",
            volume);
        return -EUCLEAN;
    case SUPERBLOCK_NEWER:
        snprintf(
            err, err_len,
            "the superblock of %s was written by a newer version of this program; use "
            "that one, or zero the first 4 KiB if the volume is not needed",
            volume);
        return -EPROTO;
    default:
        snprintf(
            err, err_len,
            "%s holds data that is not a volume of this program; name another one, or "
            "zero its first 4 KiB if the data is not needed",
            volume);
        return -EEXIST;
    }
}

static int refuse_blank(const char *volume, char *err, size_t err_len)
{
    snprintf(err, err_len,
             "%s is blank: the pages that were stored in it are not there; give the "
             "volume with the data back",
             volume);
    return -ENOMEDIUM;
}

/* The sentence for a volume that another holds. */
static int refuse_owner(const struct superblock *sb, const char *volume, char *err,
                        size_t err_len)
{
    if (sb->state == SUPERBLOCK_RELEASED) {
        snprintf(
            err, err_len,
            "%s holds pages of VM %s, which host %s released; start that VM on it, or "
            "zero its first 4 KiB once the VM has ended",
            volume, sb->vm_name, sb->owner.host);
    } else {
        snprintf(
            err, err_len,
            "%s is owned by VM %s on host %s (process %llu, epoch %llu); give each VM a "
            "volume of its own, or zero the first 4 KiB once that process has ended",
            volume, sb->vm_name, sb->owner.host, (unsigned long long)sb->owner.pid,
            (unsigned long long)sb->epoch);
    }
    return -EBUSY;
}

int superblock_check(const void *buf, struct superblock *self, const char *volume,
                     char *err, size_t err_len)
{
    struct superblock sb = {0};
    enum superblock_kind kind = superblock_parse(buf, &sb);
    bool may;

    if (kind == SUPERBLOCK_VALID) {
        may = sb.state == SUPERBLOCK_FREE ||
              (same_vm(&sb, self) &&
               (sb.state == SUPERBLOCK_RELEASED || owner_gone(&sb.owner, &self->owner)));
        if (!may) {
            return refuse_owner(&sb, volume, err, err_len);
        }
    } else if (kind != SUPERBLOCK_BLANK) {
        return refuse_kind(kind, volume, err, err_len);
    }
    self->epoch = sb.epoch + 1;
    self->state = SUPERBLOCK_OWNED;
    return 0;
}

static bool same_owner(const struct superblock_owner *a, const struct superblock_owner *b)
{
    return a->pid == b->pid && a->pid_start == b->pid_start && a->pid_ns == b->pid_ns &&
           memcmp(a->boot_id, b->boot_id, sizeof(a->boot_id)) == 0;
}

int superblock_inherit(const void *buf, struct superblock *self, const char *volume,
                       char *err, size_t err_len)
{
    struct superblock sb = {0};
    enum superblock_kind kind = superblock_parse(buf, &sb);
    bool ours;

    if (kind == SUPERBLOCK_BLANK) {
        return refuse_blank(volume, err, err_len);
    }
    if (kind != SUPERBLOCK_VALID) {
        return refuse_kind(kind, volume, err, err_len);
    }
    ours = sb.state == SUPERBLOCK_OWNED && same_vm(&sb, self) &&
           sb.owner.pid_ns == self->owner.pid_ns &&
           memcmp(sb.owner.boot_id, self->owner.boot_id, sizeof(sb.owner.boot_id)) == 0 &&
           sb.vm_pid == self->vm_pid && sb.vm_pid_start == self->vm_pid_start;
    if (!ours) {
        snprintf(
            err, err_len,
            "%s is not what the pages of VM %s are in: it is that of VM %s on host %s "
            "(process %llu, epoch %llu, state %u); give the volume with the data back",
            volume, self->vm_name, sb.vm_name, sb.owner.host,
            (unsigned long long)sb.owner.pid, (unsigned long long)sb.epoch, sb.state);
        return -ESTALE;
    }
    self->state = SUPERBLOCK_OWNED;
    self->epoch = sb.epoch;
    if (same_owner(&sb.owner, &self->owner)) {
        return 0; /* taken over, and given up before anything was stored */
    }
    if (!owner_gone(&sb.owner, &self->owner)) {
        snprintf(err, err_len, "%s is held by the former worker, process %llu; try again",
                 volume, (unsigned long long)sb.owner.pid);
        return -EBUSY;
    }
    self->epoch++;
    return 0;
}

int superblock_still_held(const void *buf, const struct superblock *self,
                          const char *volume, char *err, size_t err_len)
{
    char mine[SUPERBLOCK_BYTES];
    struct superblock sb = {0}, held = *self;
    enum superblock_kind kind = superblock_parse(buf, &sb);

    /* the state may be another: it is the holder who changes it */
    held.state = sb.state;
    superblock_make(mine, &held);
    if (kind == SUPERBLOCK_VALID && memcmp(mine, buf, SUPERBLOCK_BYTES) == 0) {
        return 0;
    }
    if (kind == SUPERBLOCK_BLANK) {
        return refuse_blank(volume, err, err_len);
    }
    if (kind != SUPERBLOCK_VALID) {
        return refuse_kind(kind, volume, err, err_len);
    }
    snprintf(
        err, err_len,
        "%s was taken by VM %s on host %s (process %llu, epoch %llu; ours was %llu): "
        "nothing is written to it any more; give the volume with the data back",
        volume, sb.vm_name, sb.owner.host, (unsigned long long)sb.owner.pid,
        (unsigned long long)sb.epoch, (unsigned long long)self->epoch);
    return -ESTALE;
}

/* ---- from host to host --------------------------------------------------- */

int superblock_match(const struct superblock *sb, const char *vm_name,
                     const uint8_t *vm_uuid, uint64_t epoch, const char *volume,
                     char *err, size_t err_len)
{
    if (sb->state == SUPERBLOCK_OWNED && sb->epoch == epoch &&
        strcmp(sb->vm_name, vm_name) == 0 &&
        memcmp(sb->vm_uuid, vm_uuid, sizeof(sb->vm_uuid)) == 0) {
        return 0;
    }
    snprintf(
        err, err_len,
        "%s is that of VM %s on host %s in epoch %llu, state %u; the source says VM %s in "
        "epoch %llu: do both hosts see the same store?",
        volume, sb->vm_name, sb->owner.host, (unsigned long long)sb->epoch, sb->state,
        vm_name, (unsigned long long)epoch);
    return -ESTALE;
}

void superblock_give(struct superblock *sb, const char *destination)
{
    memset(&sb->owner, 0, sizeof(sb->owner));
    sb->vm_pid = sb->vm_pid_start = 0;
    snprintf(sb->owner.host, sizeof(sb->owner.host), "%s", destination);
    sb->state = SUPERBLOCK_RELEASED;
    sb->epoch++;
}

int superblock_receive(const struct superblock *now, const struct superblock *before,
                       uint64_t epoch, const char *volume, char *err, size_t err_len)
{
    /*
     * Another epoch than the next one: it has been somewhere else meanwhile.  The same:
     * the source has ended between "all sent" and its release, and a person decides.
     */
    if (now->state == SUPERBLOCK_RELEASED && now->epoch == epoch &&
        (epoch == before->epoch + 1 || epoch == before->epoch) && same_vm(now, before)) {
        return 0;
    }
    snprintf(
        err, err_len,
        "%s has not been released in epoch %llu: it is VM %s's, of host %s, in epoch "
        "%llu and state %u; the guest must not run here",
        volume, (unsigned long long)epoch, now->vm_name, now->owner.host,
        (unsigned long long)now->epoch, now->state);
    return -EPERM;
}

bool superblock_same(const struct superblock *a, const struct superblock *b)
{
    char one[SUPERBLOCK_BYTES], other[SUPERBLOCK_BYTES];

    superblock_make(one, a);
    superblock_make(other, b);
    return memcmp(one, other, sizeof(one)) == 0;
}
