/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What happens to links to memory managers, for who wants to hear of it
 *
 * Theory of operation
 *
 * The service thread of a link must not wait for anything, and a monitor may
 * have to be waited for.  So news is left in a queue and delivered by another
 * thread.  That is not the main loop: when the manager is gone, the main loop
 * may be the first that waits for a page, and news of it would come when it is
 * over.  It is an IOThread for this purpose, one for all links.
 *
 * Bottom halves of an AioContext run in no particular order, hence the queue.
 */

#include "qemu/osdep.h"
#include "block/aio.h"
#include "qapi/error.h"
#include "qemu/lockable.h"
#include "qemu/thread.h"
#include "system/iothread.h"
#include "hostmem-external-news.h"
#include "trace.h"

/* A reader that is stuck does not get more than this. */
#define NEWS_MAX 256

static ExternalNewsReader *external_news_reader;
static QEMUBH *external_news_bh; /* constant once there is a link */

static QemuMutex external_news_lock;
/* all below: external_news_lock */
static QSIMPLEQ_HEAD(, ExternalNews) external_news_queue =
    QSIMPLEQ_HEAD_INITIALIZER(external_news_queue);
static unsigned external_news_queued;

static void __attribute__((constructor)) external_news_init(void)
{
    qemu_mutex_init(&external_news_lock);
}

void external_news_free(ExternalNews *news)
{
    if (!news) {
        return;
    }
    g_free(news->id);
    g_free(news->vm_name);
    g_free(news->reason);
    g_free(news->tiers);
    g_free(news);
}

/* The next one, or NULL */
static ExternalNews *external_news_take(void)
{
    ExternalNews *news;

    QEMU_LOCK_GUARD(&external_news_lock);
    news = QSIMPLEQ_FIRST(&external_news_queue);
    if (news) {
        QSIMPLEQ_REMOVE_HEAD(&external_news_queue, next);
        external_news_queued--;
    }
    return news;
}

static void external_news_deliver(void *opaque)
{
    ExternalNews *news;

    while ((news = external_news_take()) != NULL) {
        external_news_reader(news);
        external_news_free(news);
    }
}

void external_news_read(ExternalNewsReader *reader)
{
    external_news_reader = reader;
}

bool external_news_start(Error **errp)
{
    IOThread *thread;

    if (external_news_bh || !external_news_reader) {
        return true;
    }
    /* it stays: memory backends may come again */
    thread = iothread_create("hostmem-news", errp);
    if (!thread) {
        return false;
    }
    external_news_bh = aio_bh_new(iothread_get_aio_context(thread),
                                  external_news_deliver, NULL);
    return true;
}

void external_news_post(ExternalNews *news)
{
    if (!external_news_bh) {
        external_news_free(news);
        return;
    }
    WITH_QEMU_LOCK_GUARD(&external_news_lock) {
        if (external_news_queued < NEWS_MAX) {
            QSIMPLEQ_INSERT_TAIL(&external_news_queue, news, next);
            external_news_queued++;
            news = NULL;
        }
    }
    if (news) {
        trace_external_news_dropped(news->id, news->kind);
        external_news_free(news);
    }
    qemu_bh_schedule(external_news_bh);
}
