/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The migration thread: what may take as long as a store takes.
 *
 * Theory of operation.  The main thread checks the form of a request and leaves it
 * here with a duplicate of the peer's socket; the answer goes out from here.  Jobs are
 * done one after the other.  A MIG_INSTALL that lacks locations waits, and is tried again
 * after each MIG_IMPORT.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "clock.h"
#include "conn.h"
#include "hierarchy.h"
#include "log.h"
#include "mig.h"
#include "thread.h"
#include "vm.h"

/* How often to look for time-outs, and for volumes that were another's. */
#define LOOK_MS 50
#define LATE_NS (2 * NSEC_PER_SEC)

int mig_new(struct vm *vm, struct mig **out)
{
    struct mig *m = calloc(1, sizeof(*m));

    if (!m) {
        return -ENOMEM;
    }
    m->vm = vm;
    m->event_fd = -1;
    m->last = &m->first;
    pthread_mutex_init(&m->freeze_lock, NULL);
    pthread_mutex_init(&m->lock, NULL);
    *out = m;
    return 0;
}

void mig_reset(struct mig *m)
{
    atomic_store(&m->freezing, false);
    free(m->frozen);
    m->frozen = NULL;
    m->frozen_slots = 0;
    m->nr_deposits = 0;
    atomic_store(&m->nr_frozen, 0);
    atomic_store(&m->uncertain, false);
    atomic_store(&m->releasing, false);
    atomic_store(&m->tid, 0);
    atomic_store(&m->stage, UFFDMM_MIG_IDLE);
}

void mig_free(struct mig *m)
{
    free(m->frozen);
    pthread_mutex_destroy(&m->freeze_lock);
    pthread_mutex_destroy(&m->lock);
    free(m);
}

int mig_refuse(struct conn *c, int status, const char *fmt, ...)
{
    char text[UFFDMM_TEXT_MAX];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    log_warn("refused message %u of process %d: %s", c->header.type, (int)c->pid, text);
    return conn_reply_error(c, status, text);
}

bool mig_sealed(int fd, int seals)
{
    int has = fcntl(fd, F_GET_SEALS);

    return has >= 0 && (has & seals) == seals;
}

/* ---- answers --------------------------------------------------------------- */

static void job_free(struct mig_job *job)
{
    close(job->sock);
    if (job->fd >= 0) {
        close(job->fd);
    }
    if (job->region) {
        atomic_fetch_sub(&job->region->mig.jobs, 1);
    }
    free(job);
}

void mig_reply(struct mig_job *job, const void *payload, size_t length)
{
    conn_send(job->sock, job->type | UFFDMM_MSG_REPLY, job->request_id, 0, payload,
              length, NULL, 0);
    job_free(job);
}

void mig_reply_error(struct mig_job *job, int status, const char *fmt, ...)
{
    struct uffdmm_error error = {.text = ""};
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(error.text, sizeof(error.text), fmt, ap);
    va_end(ap);
    log_warn("migration: message %u refused: %s", job->type, error.text);
    conn_send(job->sock, job->type | UFFDMM_MSG_REPLY, job->request_id, status, &error,
              sizeof(error), NULL, 0);
    job_free(job);
}

/* ---- the thread -------------------------------------------------------------- */

static struct mig_job *take_job(struct mig *m)
{
    struct mig_job *job;

    pthread_mutex_lock(&m->lock);
    job = m->first;
    if (job) {
        m->first = job->next;
        m->last = m->first ? m->last : &m->first;
    }
    pthread_mutex_unlock(&m->lock);
    return job;
}

static void keep_waiting(struct mig *m, struct mig_job *job)
{
    struct mig_job **at = &m->waiting[job->region->id];

    if (*at) {
        mig_reply_error(job, -EBUSY,
                        "the locations of region '%s' are waited for already",
                        job->region->name);
    } else {
        *at = job;
    }
}

/* Tries what waits for locations once more, and ends what has waited for too long. */
static void look_at_waiting(struct mig *m)
{
    for (unsigned i = 0; i < UFFDMM_REGIONS_MAX; i++) {
        struct mig_job *job = m->waiting[i];
        bool gone = job && (atomic_load(&job->region->mig.gone) || atomic_load(&m->stop));

        if (!job) {
            continue;
        }
        if (!gone && clock_ns() < job->deadline) {
            m->waiting[i] = mig_try_install(m, job) ? NULL : job;
            continue;
        }
        m->waiting[i] = NULL;
        mig_reply_error(
            job, gone ? -ECANCELED : -ETIMEDOUT,
            "region '%s': %llu locations have come and QEMU counts %llu (digests %s): is "
            "the control plane of the source still there?",
            job->region->name, (unsigned long long)job->region->mig.count,
            (unsigned long long)job->request.install.count,
            job->region->mig.digest == job->request.install.digest ? "agree" : "differ");
    }
}

static void do_job(struct mig *m, struct mig_job *job)
{
    if (atomic_load(&m->stop) || (job->region && atomic_load(&job->region->mig.gone))) {
        mig_reply_error(job, -ECANCELED, "the memory of the VM goes away");
        return;
    }
    switch (job->type) {
    case UFFDMM_MSG_MIG_READ:
        mig_do_read(m, job);
        break;
    case UFFDMM_MSG_MIG_RELEASE:
        mig_do_release(m, job);
        break;
    case UFFDMM_MSG_MIG_PREPARE:
        mig_do_prepare(m, job);
        break;
    case UFFDMM_MSG_MIG_IMPORT:
        mig_do_import(m, job);
        break;
    case UFFDMM_MSG_MIG_TAKE:
        mig_do_take(m, job);
        break;
    case UFFDMM_MSG_MIG_DEPOSIT:
        mig_do_deposit(m, job);
        break;
    case UFFDMM_MSG_MIG_COLLECT:
        mig_do_collect(m, job);
        break;
    default:
        if (!mig_try_install(m, job)) {
            keep_waiting(m, job);
        }
    }
}

static void *mig_main(void *opaque)
{
    struct mig *m = opaque;
    uint64_t late = 0;

    while (!atomic_load(&m->stop)) {
        struct pollfd pfd = {.fd = m->event_fd, .events = POLLIN};
        struct mig_job *job;
        uint64_t count;

        if (poll(&pfd, 1, LOOK_MS) > 0 && read(m->event_fd, &count, sizeof(count)) < 0) {
            continue;
        }
        while ((job = take_job(m))) {
            do_job(m, job);
            look_at_waiting(m);
        }
        look_at_waiting(m);
        if (clock_ns() >= late) {
            mig_open_late(m);
            late = clock_ns() + LATE_NS;
        }
    }
    return NULL;
}

/* ---- for the main thread --------------------------------------------------- */

int mig_thread_start(struct mig *m)
{
    void *map;
    int ret;

    if (m->running) {
        return 0;
    }
    map = mmap(NULL, MIG_READ_BYTES, PROT_READ | PROT_WRITE,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (map == MAP_FAILED) {
        return -errno;
    }
    m->buffer = map;
    m->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    ret = m->event_fd < 0 ? -errno : hierarchy_queue(m->vm, &m->queue);
    if (!ret) {
        atomic_store(&m->stop, false);
        ret = thread_start(&m->thread, "uffdmm-migrate", mig_main, m);
        if (ret) {
            tier_queue_deinit(&m->queue);
        }
    }
    if (ret) {
        if (m->event_fd >= 0) {
            close(m->event_fd);
        }
        munmap(m->buffer, MIG_READ_BYTES);
        return ret;
    }
    m->running = true;
    return 0;
}

static void kick(struct mig *m)
{
    uint64_t one = 1;

    if (write(m->event_fd, &one, sizeof(one)) < 0) {
        return; /* full: a wake-up is pending anyway */
    }
}

void mig_thread_stop(struct mig *m)
{
    struct mig_job *job;

    if (!m->running) {
        return;
    }
    atomic_store(&m->stop, true);
    kick(m);
    pthread_join(m->thread, NULL);
    while ((job = take_job(m))) {
        do_job(m, job); /* which refuses it */
    }
    look_at_waiting(m);
    tier_queue_deinit(&m->queue);
    close(m->event_fd);
    munmap(m->buffer, MIG_READ_BYTES);
    m->running = false;
}

int mig_submit(struct vm *vm, struct conn *c, struct region *r)
{
    struct mig *m = vm->mig;
    struct mig_job *job = calloc(1, sizeof(*job));
    int ret = job ? mig_thread_start(m) : -ENOMEM;

    if (!ret) {
        job->sock = fcntl(c->fd, F_DUPFD_CLOEXEC, 0);
        ret = job->sock < 0 ? -errno : 0;
    }
    if (ret) {
        free(job);
        return mig_refuse(c, ret, "cannot start the thread that migrates: %s",
                          strerror(-ret));
    }
    job->type = c->header.type;
    job->request_id = c->header.request_id;
    job->fd = c->nr_fds ? conn_take_fd(c, 0) : -1;
    job->region = r;
    memcpy(&job->request, c->payload,
           c->header.length < sizeof(job->request) ? c->header.length
                                                   : sizeof(job->request));
    if (job->type == UFFDMM_MSG_MIG_INSTALL) {
        job->deadline =
            clock_ns() + job->request.install.timeout_ms * (uint64_t)NSEC_PER_MSEC;
    }
    if (r) {
        atomic_fetch_add(&r->mig.jobs, 1);
    }
    pthread_mutex_lock(&m->lock);
    *m->last = job;
    m->last = &job->next;
    pthread_mutex_unlock(&m->lock);
    kick(m);
    return 0;
}

void mig_free_staging(struct region *r)
{
    free(r->mig.entries);
    free(r->mig.records);
    free(r->mig.ages);
    r->mig.entries = r->mig.records = NULL;
    r->mig.ages = NULL;
}

void mig_region_gone(struct region *r)
{
    struct mig *m = r->vm->mig;

    atomic_store(&r->mig.gone, true);
    while (atomic_load(&r->mig.jobs)) {
        kick(m);
        usleep(1000);
    }
    mig_free_staging(r);
}
