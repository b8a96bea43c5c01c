/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Trouble with the stores of a memory manager, seen in its statistics
 *
 * The manager counts whether or not anybody looks, in memory that is mapped
 * here; a look costs it nothing, and is not in need of its help.
 */

#include "qemu/osdep.h"
#include "qemu/atomic.h"
#include "hostmem-external-watch.h"

/* A manager that is alive gives a sign of it several times a second. */
#define SILENCE_MS INT64_C(3000)

static bool external_worker_bad(uint64_t state)
{
    return state == UFFDMM_WORKER_STORE_FULL ||
           state == UFFDMM_WORKER_STORE_ERROR;
}

/* One that is full or slow is not in trouble: the next one takes over. */
static bool external_tier_bad(uint64_t state)
{
    return state == UFFDMM_TIER_ERROR || state == UFFDMM_TIER_AWAY;
}

/* Replace what was seen.  Returns true if it has become worse. */
static bool external_trouble_update(ExternalTrouble *seen,
                                    const ExternalTrouble *now,
                                    bool (*bad)(uint64_t state))
{
    bool worse = now->errors > seen->errors ||
                 now->checksum_errors > seen->checksum_errors ||
                 (bad(now->state) && now->state != seen->state);

    *seen = *now;
    return worse;
}

bool external_stats_serving(const ExternalStats *stats)
{
    const uint32_t nr_tiers = MIN(external_stats_nr_tiers(stats),
                                  UFFDMM_TIERS_MAX);
    const int64_t beat_ns = qatomic_read(&stats->vm->heartbeat_ns);

    if (g_get_monotonic_time() - beat_ns / 1000 > SILENCE_MS * 1000 ||
        external_worker_bad(qatomic_read(&stats->vm->state))) {
        return false;
    }
    for (uint32_t i = 0; i < nr_tiers; i++) {
        const struct uffdmm_tier_stats *t = external_stats_tier(stats, i);

        if (external_tier_bad(qatomic_read(&t->state))) {
            return false;
        }
    }
    return true;
}

ExternalNews *external_watch_look(ExternalWatch *watch,
                                  const ExternalStats *stats)
{
    const struct uffdmm_stats *s = stats->vm;
    g_autofree struct uffdmm_tier_stats *tiers = NULL;
    uint32_t nr_tiers = MIN(external_stats_nr_tiers(stats), UFFDMM_TIERS_MAX);
    uint32_t nr_bad = 0;
    uint64_t lost_pages = qatomic_read(&s->lost_pages);
    ExternalTrouble all = {
        .state = qatomic_read(&s->state),
        .errors = qatomic_read(&s->store_errors),
        .checksum_errors = qatomic_read(&s->checksum_errors),
    };
    ExternalNews *news;
    bool worse;

    if (watch->worker_pid != s->worker_pid) {
        /* another one, which counts from 0 */
        *watch = (ExternalWatch) { .worker_pid = s->worker_pid };
    }
    worse = external_trouble_update(&watch->all, &all, external_worker_bad);
    worse |= lost_pages > watch->lost_pages;
    watch->lost_pages = lost_pages;
    for (uint32_t i = 0; i < nr_tiers; i++) {
        const struct uffdmm_tier_stats *t = external_stats_tier(stats, i);
        ExternalTrouble now = {
            .state = qatomic_read(&t->state),
            .errors = qatomic_read(&t->errors),
            .checksum_errors = qatomic_read(&t->checksum_errors),
        };

        if (external_trouble_update(&watch->tier[i], &now,
                                    external_tier_bad)) {
            tiers = g_renew(struct uffdmm_tier_stats, tiers, nr_bad + 1);
            tiers[nr_bad++] = *t;
        }
    }
    if (!worse && !nr_bad) {
        return NULL;
    }
    news = g_new0(ExternalNews, 1);
    news->kind = EXTERNAL_NEWS_STORES;
    news->stats = *s;
    news->tiers = g_steal_pointer(&tiers);
    news->nr_tiers = nr_bad;
    return news;
}
