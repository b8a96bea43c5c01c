/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Links between memory-backend-external objects and their manager, as seen
 * by the threads that are not the service thread
 *
 * Everything here is a word left under link->lock and a wake-up.  The list
 * of links has a lock of its own, because uffdmm-query may run out-of-band,
 * in the monitor's thread.
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/cutils.h"
#include "qemu/lockable.h"
#include "hostmem-external-news.h"
#include "hostmem-external-service.h"
#include "trace.h"

/* Ranges waiting to be sent; beyond that the table alone tells of discards. */
#define DISCARDS_MAX 4096

static QemuMutex external_links_lock;
static QTAILQ_HEAD(, ExternalLink) external_links =
    QTAILQ_HEAD_INITIALIZER(external_links);

static void __attribute__((constructor)) external_links_init(void)
{
    qemu_mutex_init(&external_links_lock);
}

static void external_link_free(ExternalLink *link)
{
    external_quit_cleanup(&link->quit);
    external_region_destroy(&link->region);
    external_stats_unmap(&link->stats);
    event_notifier_cleanup(&link->wake);
    qemu_cond_destroy(&link->phase_changed);
    qemu_cond_destroy(&link->call_done);
    qemu_mutex_destroy(&link->lock);
    g_array_free(link->discards, true);
    error_free(link->failed);
    g_free(link->policy_error);
    g_free(link->last_loss);
    g_free(link->id);
    g_free(link->socket);
    g_free(link->vm_name);
    g_free(link);
}

/* Wait until the thread reaches @phase.  Returns false if it ended first. */
static bool external_link_wait(ExternalLink *link, ExternalPhase phase,
                               Error **errp)
{
    QEMU_LOCK_GUARD(&link->lock);
    while (link->phase < phase) {
        qemu_cond_wait(&link->phase_changed, &link->lock);
    }
    if (link->phase == PHASE_ENDED) {
        error_propagate(errp, link->failed);
        link->failed = NULL;
        return false;
    }
    return true;
}

ExternalLink *external_link_start(const ExternalLinkConfig *config,
                                  Error **errp)
{
    ExternalLink *link;
    int ret;

    if (!external_news_start(errp)) {
        return NULL;
    }
    link = g_new0(ExternalLink, 1);
    link->id = g_strdup(config->id);
    link->socket = g_strdup(config->socket);
    link->vm_name = g_strdup(config->vm_name);
    link->uuid = config->uuid;
    link->size = config->size;
    link->reconnect_ms = config->reconnect_ms;
    link->discards = g_array_new(FALSE, FALSE, sizeof(ExternalRange));
    link->phase = PHASE_CONNECT;
    external_channel_init(&link->chan);
    external_region_init(&link->region, config->size, config->page_size,
                         config->nr_shards);
    external_quit_init(&link->quit);
    qemu_mutex_init(&link->lock);
    qemu_cond_init(&link->phase_changed);
    qemu_cond_init(&link->call_done);
    QTAILQ_INIT(&link->calls);
    ret = event_notifier_init(&link->wake, false);
    if (ret < 0) {
        error_setg_errno(errp, -ret, "cannot create an event notifier");
        external_link_free(link);
        return NULL;
    }

    WITH_QEMU_LOCK_GUARD(&external_links_lock) {
        QTAILQ_INSERT_TAIL(&external_links, link, next);
    }
    qemu_thread_create(&link->thread, "hostmem-ext", external_link_thread,
                       link, QEMU_THREAD_JOINABLE);
    if (!external_link_wait(link, PHASE_CREATED, errp)) {
        external_link_stop(link);
        return NULL;
    }
    return link;
}

int external_link_dup_memfd(ExternalLink *link)
{
    return qemu_dup(link->region.memfd);
}

bool external_link_attach(ExternalLink *link, void *base, Error **errp)
{
    WITH_QEMU_LOCK_GUARD(&link->lock) {
        link->base = base;
    }
    event_notifier_set(&link->wake);
    return external_link_wait(link, PHASE_LIVE, errp);
}

void external_link_stop(ExternalLink *link)
{
    WITH_QEMU_LOCK_GUARD(&link->lock) {
        link->stop = true;
    }
    event_notifier_set(&link->wake);
    qemu_thread_join(&link->thread);

    WITH_QEMU_LOCK_GUARD(&external_links_lock) {
        QTAILQ_REMOVE(&external_links, link, next);
    }
    external_link_free(link);
}

void external_link_discard(ExternalLink *link, uint64_t offset,
                           uint64_t length)
{
    uint64_t changed = external_region_discard(&link->region, offset, length);

    trace_external_link_discard(link->id, offset, length, changed);
}

void external_link_discarded(ExternalLink *link, uint64_t offset,
                             uint64_t length)
{
    ExternalRange range = { .offset = offset, .length = length };
    ExternalRange *last = NULL;

    WITH_QEMU_LOCK_GUARD(&link->lock) {
        if (link->phase != PHASE_LIVE) {
            /* who attaches next reads the table */
            return;
        }
        if (link->discards->len) {
            last = &g_array_index(link->discards, ExternalRange,
                                  link->discards->len - 1);
        }
        if (last && last->offset + last->length == offset) {
            last->length += length;
        } else if (last && offset + length == last->offset) {
            /* a balloon often goes downwards */
            last->offset = offset;
            last->length += length;
        } else if (link->discards->len < DISCARDS_MAX) {
            g_array_append_val(link->discards, range);
        } else {
            trace_external_link_discard_dropped(link->id, offset, length);
        }
    }
    event_notifier_set(&link->wake);
}

void external_link_pin(ExternalLink *link, uint64_t offset, uint64_t length)
{
    external_region_pin(&link->region, offset, length);
}

void external_link_unpin(ExternalLink *link, uint64_t offset, uint64_t length)
{
    external_region_unpin(&link->region, offset, length);
}

/*
 * Copy the statistics of a link, and the policy that the manager has noted in
 * the table for who comes after it.  Under link->lock.
 */
static void external_link_copy_stats(const ExternalLink *link,
                                     ExternalLinkInfo *info)
{
    if (!link->stats.vm) {
        return;
    }
    /* single words are consistent, the page need not be */
    info->stats = *link->stats.vm;
    info->has_stats = true;
    if (link->was_live) {
        info->policy = link->region.table->policy;
    }
    info->nr_tiers = external_stats_nr_tiers(&link->stats);
    info->tiers = g_new(struct uffdmm_tier_stats, info->nr_tiers);
    for (uint32_t i = 0; i < info->nr_tiers; i++) {
        info->tiers[i] = *external_stats_tier(&link->stats, i);
    }
}

void external_links_info(ExternalLinkInfoList *list)
{
    ExternalLink *link;

    QSIMPLEQ_INIT(list);
    QEMU_LOCK_GUARD(&external_links_lock);
    QTAILQ_FOREACH(link, &external_links, next) {
        ExternalLinkInfo *info = g_new0(ExternalLinkInfo, 1);

        info->id = g_strdup(link->id);
        info->socket = g_strdup(link->socket);
        info->vm_name = g_strdup(link->vm_name);
        info->size = link->size;
        WITH_QEMU_LOCK_GUARD(&link->lock) {
            info->live = link->phase == PHASE_LIVE;
            info->was_live = link->was_live;
            info->nr_shards = link->region.nr_shards;
            info->reconnects = link->reconnects;
            info->policy_error = g_strdup(link->policy_error);
            external_link_copy_stats(link, info);
        }
        QSIMPLEQ_INSERT_TAIL(list, info, next);
    }
}

void external_links_info_free(ExternalLinkInfoList *list)
{
    while (!QSIMPLEQ_EMPTY(list)) {
        ExternalLinkInfo *info = QSIMPLEQ_FIRST(list);

        QSIMPLEQ_REMOVE_HEAD(list, next);
        g_free(info->id);
        g_free(info->socket);
        g_free(info->vm_name);
        g_free(info->policy_error);
        g_free(info->tiers);
        g_free(info);
    }
}

bool external_link_speaks(ExternalLink *link)
{
    ExternalLink *other;

    QEMU_LOCK_GUARD(&external_links_lock);
    QTAILQ_FOREACH(other, &external_links, next) {
        if (other == link) {
            break;
        }
        if (!strcmp(other->vm_name, link->vm_name) &&
            !strcmp(other->socket, link->socket)) {
            QEMU_LOCK_GUARD(&other->lock);
            if (other->phase == PHASE_LIVE) {
                return false;
            }
        }
    }
    return true;
}

/* Find a link of the VM, a live one if possible.  Under the list's lock. */
static ExternalLink *external_links_find(const char *vm_name, bool *live,
                                         Error **errp)
{
    ExternalLink *link, *found = NULL;

    *live = false;
    QTAILQ_FOREACH(link, &external_links, next) {
        if (vm_name && strcmp(vm_name, link->vm_name)) {
            continue;
        }
        if (found && strcmp(found->vm_name, link->vm_name)) {
            error_setg(errp, "the memory backends have different vm-name: "
                       "say which one, '%s' or '%s'", found->vm_name,
                       link->vm_name);
            return NULL;
        }
        if (!*live) {
            QEMU_LOCK_GUARD(&link->lock);
            *live = link->phase == PHASE_LIVE;
            found = link;
        }
    }
    if (!found && vm_name) {
        error_setg(errp, "no memory-backend-external has vm-name '%s'",
                   vm_name);
    } else if (!found) {
        error_setg(errp, "this machine has no memory-backend-external");
    }
    return found;
}

/*
 * Put the budgets of tiers into @policy, by their numbers.  Under link->lock,
 * for another manager may have other tiers.
 */
static bool external_link_find_tiers(const ExternalLink *link,
                                     const ExternalTierBudget *budgets,
                                     size_t nr_budgets,
                                     struct uffdmm_policy *policy,
                                     Error **errp)
{
    uint32_t nr_tiers = external_stats_nr_tiers(&link->stats);

    for (size_t i = 0; i < nr_budgets; i++) {
        g_autoptr(GString) names = g_string_new(NULL);
        uint32_t tier;

        for (tier = 0; tier < nr_tiers; tier++) {
            const char *name = external_stats_tier(&link->stats, tier)->name;

            if (!strncmp(budgets[i].name, name, UFFDMM_NAME_MAX)) {
                break;
            }
            g_string_append_printf(names, "%s%.*s", tier ? ", " : "",
                                   UFFDMM_NAME_MAX, name);
        }
        if (tier == nr_tiers) {
            g_autofree char *valid = g_utf8_make_valid(names->str, -1);

            error_setg(errp, "VM '%s' has no tier '%s', but %s",
                       link->vm_name, budgets[i].name,
                       nr_tiers ? valid : "none at all");
            return false;
        }
        if (policy->tier_mask & 1u << tier) {
            error_setg(errp, "tier '%s' is named twice", budgets[i].name);
            return false;
        }
        policy->fields |= UFFDMM_POLICY_TIERS;
        policy->tier_mask |= 1u << tier;
        policy->tier_bytes[tier] = budgets[i].size;
    }
    return true;
}

/* Add to what waits to be sent; later settings win.  Under link->lock. */
static void external_link_merge_policy(ExternalLink *link,
                                       const struct uffdmm_policy *policy)
{
    link->policy.fields |= policy->fields;
    link->policy.tier_mask |= policy->tier_mask;
    if (policy->fields & UFFDMM_POLICY_LIMIT) {
        link->policy.limit_bytes = policy->limit_bytes;
    }
    if (policy->fields & UFFDMM_POLICY_READAHEAD) {
        link->policy.readahead_pages = policy->readahead_pages;
    }
    if (policy->fields & UFFDMM_POLICY_DEMOTE) {
        link->policy.demote_after_ms = policy->demote_after_ms;
    }
    if (policy->fields & UFFDMM_POLICY_MIN) {
        link->policy.min_bytes = policy->min_bytes;
    }
    if (policy->fields & UFFDMM_POLICY_MAX) {
        link->policy.max_bytes = policy->max_bytes;
    }
    if (policy->fields & UFFDMM_POLICY_SHARES) {
        link->policy.shares = policy->shares;
    }
    if (policy->fields & UFFDMM_POLICY_PRIORITY) {
        link->policy.priority = policy->priority;
    }
    if (policy->fields & UFFDMM_POLICY_OPT_OUT) {
        link->policy.opt_out = policy->opt_out;
    }
    if (policy->fields & UFFDMM_POLICY_TRACK) {
        link->policy.track_permille = policy->track_permille;
    }
    for (int i = 0; i < UFFDMM_TIERS_MAX; i++) {
        if (policy->tier_mask & 1u << i) {
            link->policy.tier_bytes[i] = policy->tier_bytes[i];
        }
    }
}

bool external_links_set_policy(const char *vm_name,
                               const struct uffdmm_policy *policy,
                               const ExternalTierBudget *budgets,
                               size_t nr_budgets, Error **errp)
{
    struct uffdmm_policy change = *policy;
    ExternalLink *link;
    bool live;

    QEMU_LOCK_GUARD(&external_links_lock);
    link = external_links_find(vm_name, &live, errp);
    if (!link) {
        return false;
    }
    if (!live) {
        error_setg(errp, "no connection to the memory manager at '%s' at the "
                   "moment: try again later", link->socket);
        return false;
    }
    WITH_QEMU_LOCK_GUARD(&link->lock) {
        if (!external_link_find_tiers(link, budgets, nr_budgets, &change,
                                      errp)) {
            return false;
        }
        external_link_merge_policy(link, &change);
    }
    event_notifier_set(&link->wake);
    return true;
}
