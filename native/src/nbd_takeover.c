/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A new worker takes over the export of one that has died.
 *
 * Theory of operation.  Whose pages are in the export?  The superblock names the QEMU process
 * beside the worker.  If it is that of this VM, in a volume that is owned, and the worker that
 * owned it has ended on this host, the pages are those that the tables name.  The next epoch is
 * taken when all tiers of the VM have been found; as long as a server is away nothing is
 * written anywhere, and QEMU tries again.  A worker that dies in between, or has to
 * begin anew, finds a volume that it or its predecessor owns, which is as good.
 *
 * Which slots are in use?  Those that entries name.  What else the dead worker had taken may
 * still be written to by the server: nbd_doubt.c.  Which these are is in a journal that QEMU has
 * kept (volume_journal.h).  Where there is none everything is in doubt, and nothing new is
 * stored in the tier for two minutes.
 */
#include "tier_nbd_impl.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "config.h"
#include "log.h"
#include "stats.h"

/* Takes the journal that QEMU has kept; none is no error. */
static int find_journal(struct tier *t, struct nbd_tier *n, int fd, char *err,
                        size_t err_len)
{
    int ret = fd < 0 ? 0 : journal_open(&n->journal, fd);

    if (ret) {
        snprintf(err, err_len, "cannot use the journal of %s that QEMU has kept: %s",
                 n->name, ret == -EUCLEAN ? "it is damaged; end the VM" : strerror(-ret));
        return ret;
    }
    if (fd < 0) {
        log_warn("tier %s: nobody has kept the journal of %s: all free slots of it are "
                 "held back for %u seconds",
                 t->config->name, n->name, nbd_doubt_seconds());
    }
    n->slots.shown = n->journal.taken;
    t->arena_fd = n->journal.fd;
    return 0;
}

int nbd_keep(struct tier *t, struct nbd_tier *n, const struct tier_vm *vm, char *err,
             size_t err_len)
{
    struct nbd_export e;
    uint64_t bytes;
    int ret = nbd_read_block(n, NBD_OPEN_NS, err, err_len);

    if (!ret) {
        ret = superblock_inherit(n->block, &n->self, n->name, err, err_len);
    }
    if (!ret) {
        ret = find_journal(t, n, vm->arena_fd, err, err_len);
    }
    if (ret) {
        return ret;
    }
    bytes = journal_slots(&n->journal) * PAGE_SIZE_4K;
    nbd_client_export(n->client, &e);
    if (bytes > e.bytes) {
        snprintf(err, err_len,
                 "%s has %llu bytes and %llu are in use; make it larger again", n->name,
                 (unsigned long long)e.bytes, (unsigned long long)bytes);
        return -ENOSPC;
    }
    t->priv = n;
    ret = nbd_reserve(t, vm->ram_bytes, err, err_len);
    ret = ret ? ret : nbd_grow(t, bytes, err, err_len);
    if (!ret && nbd_suspect(n)) {
        snprintf(err, err_len, "no memory for the slot map of %s", n->name);
        ret = -ENOMEM;
    }
    t->priv = NULL;
    return ret;
}

int nbd_adopt(struct tier *t, char *err, size_t err_len)
{
    struct nbd_tier *n = t->priv;
    int ret = 0;

    /* a worker that has begun anew has it already */
    if (superblock_still_held(n->block, &n->self, n->name, err, err_len)) {
        ret = nbd_set_block(n, err, err_len);
    }
    if (!ret) {
        nbd_ready(t, n);
    }
    return ret;
}

bool nbd_take_slot(struct tier *t, uint64_t slot, uint32_t region_id, uint64_t pfn)
{
    struct nbd_tier *n = t->priv;

    (void)region_id;
    (void)pfn;
    return slots_take(&n->slots, slot);
}

void nbd_untake_slot(struct tier *t, uint64_t slot)
{
    struct nbd_tier *n = t->priv;

    slots_untake(&n->slots, slot);
}

void nbd_settle(struct tier *t)
{
    struct nbd_tier *n = t->priv;

    nbd_hold_suspects(t);
    slots_mark_written(&n->slots);
}

/* By the journal, which is known by its inode as long as QEMU holds it; else by QEMU itself. */
void nbd_identity(const struct tier *t, uint8_t id[16])
{
    const struct nbd_tier *n = t->priv;
    XXH128_canonical_t hash;
    uint64_t words[2];
    struct stat st;

    if (n->journal.fd >= 0 && fstat(n->journal.fd, &st) == 0) {
        words[0] = st.st_dev;
        words[1] = st.st_ino;
        memcpy(id, words, sizeof(words));
        return;
    }
    words[0] = n->self.vm_pid;
    words[1] = n->self.vm_pid_start;
    XXH128_canonicalFromHash(&hash, XXH3_128bits(words, sizeof(words)));
    memcpy(id, hash.digest, sizeof(hash.digest));
}
