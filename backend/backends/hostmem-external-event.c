/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * QMP events about externally managed guest memory
 *
 * They are emitted in the thread that delivers news, without the BQL, which
 * may be held by who waits for the manager in question.
 */

#include "qemu/osdep.h"
#include "qapi/qapi-events-uffdmm.h"
#include "qapi/util.h"
#include "hostmem-external-news.h"
#include "hostmem-external-qapi.h"

static UffdmmTierTrouble *external_event_tier(const struct uffdmm_tier_stats *t)
{
    UffdmmTierTrouble *trouble = g_new0(UffdmmTierTrouble, 1);

    trouble->name = external_qapi_text(t->name, sizeof(t->name));
    trouble->state = external_qapi_tier_state(t->state);
    trouble->errors = t->errors;
    trouble->checksum_errors = t->checksum_errors;
    if (t->last_error[0]) {
        trouble->reason = external_qapi_text(t->last_error,
                                             sizeof(t->last_error));
    }
    return trouble;
}

static void external_event_stores(const ExternalNews *news)
{
    const struct uffdmm_stats *s = &news->stats;
    UffdmmTierTroubleList *tiers = NULL, **tail = &tiers;

    for (uint32_t i = 0; i < news->nr_tiers; i++) {
        QAPI_LIST_APPEND(tail, external_event_tier(&news->tiers[i]));
    }
    qapi_event_send_uffdmm_store_error(news->id, news->vm_name,
                                       external_qapi_manager_state(s->state),
                                       s->store_errors, s->checksum_errors,
                                       s->lost_pages, tiers);
    qapi_free_UffdmmTierTroubleList(tiers);
}

static void external_event_emit(const ExternalNews *news)
{
    switch (news->kind) {
    case EXTERNAL_NEWS_LOST:
        qapi_event_send_uffdmm_manager_lost(news->id, news->vm_name,
                                            news->reason);
        break;
    case EXTERNAL_NEWS_ATTACHED:
        qapi_event_send_uffdmm_manager_attached(news->id, news->vm_name,
                                                news->stats.worker_pid,
                                                news->reconnects);
        break;
    case EXTERNAL_NEWS_STORES:
        external_event_stores(news);
        break;
    }
}

static void __attribute__((constructor)) external_event_init(void)
{
    external_news_read(external_event_emit);
}
