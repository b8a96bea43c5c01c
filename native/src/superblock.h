/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The first 4 KiB of a volume that several hosts can reach: whose it is, and in
 * which epoch.  Only the holder of the current epoch writes to the volume.
 *
 * Everything here works on a buffer; reading, and writing durably, is the
 * tier's.  Theory of operation at the head of superblock.c.
 */
#ifndef UFFDMM_SUPERBLOCK_H
#define UFFDMM_SUPERBLOCK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "uffdmm/protocol.h"

#define SUPERBLOCK_BYTES 4096

enum superblock_state {
    SUPERBLOCK_OWNED = 1,    /* the owner may write */
    SUPERBLOCK_RELEASED = 2, /* pages of the VM are there, nobody writes: it has moved */
    SUPERBLOCK_FREE = 3      /* nothing of value */
};

/* A process, such that another host or a later life of this one can tell it apart. */
struct superblock_owner {
    uint64_t host_id;    /* of machine-id and host name: survives a reboot */
    uint8_t boot_id[16]; /* of this boot of the host */
    uint64_t pid_ns;     /* namespace in which pid counts */
    uint64_t pid;
    uint64_t pid_start; /* clock ticks since boot: pids come again */
    char host[UFFDMM_NAME_MAX];
};

struct superblock {
    uint8_t vm_uuid[16];
    char vm_name[UFFDMM_NAME_MAX];
    uint64_t epoch; /* 1 for the first owner, one more for each that follows */
    uint32_t state; /* enum superblock_state */
    struct superblock_owner owner;
    /* process of QEMU on the owner's host whose pages are there; 0: it is the owner */
    uint64_t vm_pid;
    uint64_t vm_pid_start;
};

enum superblock_kind {
    SUPERBLOCK_BLANK,   /* all zeros */
    SUPERBLOCK_VALID,   /* the superblock is filled in */
    SUPERBLOCK_DAMAGED, /* ours once: magic there, checksum wrong */
    SUPERBLOCK_NEWER,   /* of a version that this program does not know */
    SUPERBLOCK_ALIEN    /* somebody else's data */
};

/* Describes the calling process.  0 or a negative errno. */
int superblock_self(struct superblock_owner *owner);

/* Notes the process of QEMU in @sb. */
void superblock_set_vm_process(struct superblock *sb, pid_t pid);

/* Clock ticks since boot at which process @pid began, 0: no such process. */
uint64_t superblock_process_start(uint64_t pid);

/* Writes @sb into the SUPERBLOCK_BYTES at @buf. */
void superblock_make(void *buf, const struct superblock *sb);

/* Tells what is in the SUPERBLOCK_BYTES at @buf; @sb is set when it is VALID. */
enum superblock_kind superblock_parse(const void *buf, struct superblock *sb);

/*
 * May @self take the volume whose first bytes are @buf?  @self names the VM and
 * the process that asks; @volume names the volume in sentences.  0 with
 * self->epoch and self->state set to what has to be written, or a negative errno
 * with one sentence in @err:
 * -EBUSY: it is another's, -EUCLEAN: damaged, -EPROTO: newer, -EEXIST: other data.
 */
int superblock_check(const void *buf, struct superblock *self, const char *volume,
                     char *err, size_t err_len);

/*
 * Is the volume whose first bytes are @buf the one that a worker of this host, which has
 * ended, has left with the pages of the VM and the QEMU process that @self names?  0 with
 * self->epoch and self->state set to what has to be written, or a negative errno with one
 * sentence in @err: -EBUSY: that worker has not ended yet, others as below.
 */
int superblock_inherit(const void *buf, struct superblock *self, const char *volume,
                       char *err, size_t err_len);

/*
 * Is @sb the label of a volume in which another host has the pages of this VM, in that
 * epoch?  0, or -ESTALE with one sentence in @err.
 */
int superblock_match(const struct superblock *sb, const char *vm_name,
                     const uint8_t *vm_uuid, uint64_t epoch, const char *volume,
                     char *err, size_t err_len);

/* Makes the label of a holder that which hands the volume over to @destination. */
void superblock_give(struct superblock *sb, const char *destination);

/*
 * May a volume whose label was @before, and is @now, be taken, which was released in
 * @epoch?  0, or -EPERM with one sentence in @err.
 */
int superblock_receive(const struct superblock *now, const struct superblock *before,
                       uint64_t epoch, const char *volume, char *err, size_t err_len);

/* True when both are the same label. */
bool superblock_same(const struct superblock *a, const struct superblock *b);

/*
 * Is the volume whose first bytes are @buf still held by @self, in the same
 * epoch?  To be asked before a trim, and after a link was lost.  0, -ENOMEDIUM
 * when it is blank, -ESTALE when it has another owner or epoch, or as above.
 */
int superblock_still_held(const void *buf, const struct superblock *self,
                          const char *volume, char *err, size_t err_len);

#endif
