/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What happens to links to memory managers, for who wants to hear of it
 */

#ifndef BACKENDS_HOSTMEM_EXTERNAL_NEWS_H
#define BACKENDS_HOSTMEM_EXTERNAL_NEWS_H

#include "qemu/queue.h"
#include "system/uffdmm-protocol.h"

typedef enum ExternalNewsKind {
    /* the connection is lost; QEMU reconnects */
    EXTERNAL_NEWS_LOST,
    /* the manager serves, for the first time or again */
    EXTERNAL_NEWS_ATTACHED,
    /* stores of the manager are in trouble */
    EXTERNAL_NEWS_STORES,
} ExternalNewsKind;

typedef struct ExternalNews {
    ExternalNewsKind kind;
    char *id; /* of the backend */
    char *vm_name;
    char *reason;                    /* LOST */
    uint64_t reconnects;             /* ATTACHED: so many so far */
    struct uffdmm_stats stats;       /* ATTACHED and STORES */
    struct uffdmm_tier_stats *tiers; /* STORES: those in trouble */
    uint32_t nr_tiers;
    QSIMPLEQ_ENTRY(ExternalNews) next;
} ExternalNews;

typedef void ExternalNewsReader(const ExternalNews *news);

/**
 * external_news_read: have news delivered
 *
 * @reader: called for all news, one after the other, in a thread of its own.
 *          It may wait, but must not take the BQL: whoever holds that may
 *          wait for a page of the manager that the news is about.
 *
 * To be called once, before there is any link.
 */
void external_news_read(ExternalNewsReader *reader);

/* Start the thread unless it runs.  Under the BQL. */
bool external_news_start(Error **errp);

/* Takes over @news and what it points to.  Any thread; never waits. */
void external_news_post(ExternalNews *news);

/* For news that nobody is to hear of.  NULL is fine. */
void external_news_free(ExternalNews *news);

#endif
