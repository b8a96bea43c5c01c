/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * MIG_DEPOSIT and MIG_COLLECT: records by way of the shared volume.
 *
 * Theory of operation.  A record is 8 bytes that no coding makes fewer, and both hosts
 * reach the volume anyway.  So the source writes those of a block of locations to slots of
 * their own, and the destination reads them from there.  Whether they are what was written
 * is for the control planes to tell: a digest goes with the locations.
 *
 * The slots are no page's.  They are freed with what was put aside (mig_freeze.c) when the
 * session has failed.  Who takes the volume claims what pages name, so there they are free.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "conn.h"
#include "log.h"
#include "mig.h"
#include "vm.h"

#define SPIN_NS (20 * NSEC_PER_USEC)

_Static_assert(UFFDMM_MIG_RECORDS_MAX * sizeof(uint64_t) <= MIG_READ_BYTES,
               "they go through the buffer");

static unsigned slots_of(uint64_t nr)
{
    return (unsigned)((nr * sizeof(uint64_t) + PAGE_SIZE_4K - 1) / PAGE_SIZE_4K);
}

int mig_deposit(struct vm *vm, struct conn *c)
{
    const struct uffdmm_mig_deposit *req = (const void *)c->payload;

    if (c->nr_fds != 1 || !req->nr || req->nr > UFFDMM_MIG_RECORDS_MAX) {
        return mig_refuse(c, -EINVAL, "%llu records in %u files: send 1 to %d in one",
                          (unsigned long long)req->nr, c->nr_fds, UFFDMM_MIG_RECORDS_MAX);
    }
    if (!mig_sealed(c->fds[0], F_SEAL_SHRINK | F_SEAL_WRITE)) {
        return mig_refuse(c, -EINVAL,
                          "records must come in a memfd that is sealed against writing "
                          "and shrinking");
    }
    return mig_submit(vm, c, NULL);
}

int mig_collect(struct vm *vm, struct conn *c)
{
    const struct uffdmm_mig_collect *req = (const void *)c->payload;

    if (c->nr_fds != 1 || !req->nr || req->nr > UFFDMM_MIG_RECORDS_MAX) {
        return mig_refuse(c, -EINVAL,
                          "%llu records into %u files: ask for 1 to %d in one",
                          (unsigned long long)req->nr, c->nr_fds, UFFDMM_MIG_RECORDS_MAX);
    }
    /* writing to any other file could make the thread wait for somebody */
    if (!mig_sealed(c->fds[0], F_SEAL_SHRINK)) {
        return mig_refuse(c, -EINVAL,
                          "records go into a memfd that is sealed against shrinking");
    }
    return mig_submit(vm, c, NULL);
}

/* Slots from or to the buffer, in as many transfers as the tier needs. */
static int transfer(struct mig *m, struct tier *t, bool write, uint64_t slot, unsigned nr)
{
    uint64_t n;

    for (uint64_t done = 0; done < nr; done += n) {
        struct iovec iov = {.iov_base = m->buffer + done * PAGE_SIZE_4K};
        struct tier_io io = {.tier = t, .write = write, .iov = &iov, .nr_iov = 1};

        n = t->ops->extent(t, slot + done, nr - done);
        if (!n) {
            return -EINVAL;
        }
        iov.iov_len = n * PAGE_SIZE_4K;
        io.slot = slot + done;
        io.length = iov.iov_len;
        if (tier_run(&m->queue, &io, 1, SPIN_NS)) {
            return io.result;
        }
    }
    return 0;
}

/* Keeps the slots until the session ends.  False: it has ended, or there are too many. */
static bool note(struct mig *m, uint64_t slot, unsigned nr)
{
    bool ok;

    pthread_mutex_lock(&m->freeze_lock);
    ok = atomic_load(&m->freezing) && m->nr_deposits < MIG_DEPOSITS_MAX;
    if (ok) {
        m->deposits[m->nr_deposits++] = (struct mig_deposit){.slot = slot, .nr = nr};
    }
    pthread_mutex_unlock(&m->freeze_lock);
    return ok;
}

void mig_do_deposit(struct mig *m, struct mig_job *job)
{
    const struct uffdmm_mig_deposit *req = &job->request.deposit;
    struct tier *t = m->vm->tiers[atomic_load(&m->tier)];
    struct uffdmm_mig_deposit_reply reply = {0};
    size_t bytes = req->nr * sizeof(uint64_t);
    unsigned nr = slots_of(req->nr);
    uint32_t stage = atomic_load(&m->stage);
    int ret;

    /* the last locations are brought over when QEMU has sent all */
    if ((stage != UFFDMM_MIG_RUNNING && stage != UFFDMM_MIG_ALL_SENT) ||
        req->session != m->session || !t) {
        mig_reply_error(job, -EPERM, "no session %#llx is under way here in a tier",
                        (unsigned long long)req->session);
        return;
    }
    if (pread(job->fd, m->buffer, bytes, 0) != (ssize_t)bytes) {
        mig_reply_error(job, -EINVAL, "the file has less than %llu records",
                        (unsigned long long)req->nr);
        return;
    }
    memset(m->buffer + bytes, 0, nr * PAGE_SIZE_4K - bytes);
    ret = tier_take_run(t, nr, &reply.slot);
    if (!ret) {
        ret = transfer(m, t, true, reply.slot, nr);
        if (ret || !note(m, reply.slot, nr)) {
            tier_free(t, reply.slot, nr);
            ret = ret ? ret : -ENOSPC;
        }
    }
    if (ret) {
        mig_reply_error(job, ret, "tier %s: no room for the records of %llu pages: %s",
                        t->config->name, (unsigned long long)req->nr, strerror(-ret));
        return;
    }
    mig_reply(job, &reply, sizeof(reply));
}

void mig_do_collect(struct mig *m, struct mig_job *job)
{
    const struct uffdmm_mig_collect *req = &job->request.collect;
    struct tier *t = m->vm->tiers[atomic_load(&m->tier)];
    size_t bytes = req->nr * sizeof(uint64_t);
    unsigned nr = slots_of(req->nr);
    int ret;

    if (atomic_load(&m->stage) != UFFDMM_MIG_PREPARED || req->session != m->session ||
        !m->prepared.tier || !t) {
        mig_reply_error(job, -EPERM, "no records are awaited in session %#llx",
                        (unsigned long long)req->session);
        return;
    }
    if (req->slot > UINT64_MAX - nr || !tier_valid(t, req->slot, nr)) {
        mig_reply_error(job, -EINVAL, "tier %s: slots %llu to %llu are not in the volume",
                        t->config->name, (unsigned long long)req->slot,
                        (unsigned long long)req->slot + nr - 1);
        return;
    }
    ret = transfer(m, t, false, req->slot, nr);
    if (!ret && pwrite(job->fd, m->buffer, bytes, 0) != (ssize_t)bytes) {
        ret = -EIO;
    }
    if (ret) {
        mig_reply_error(job, ret, "tier %s: records cannot be read from slot %llu on: %s",
                        t->config->name, (unsigned long long)req->slot, strerror(-ret));
        return;
    }
    mig_reply(job, NULL, 0);
}
