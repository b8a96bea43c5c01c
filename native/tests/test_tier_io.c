/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Transfers that another thread ends: whose is the queue then? */
#include "unit.h"

#include "tier.h"
#include "tier_io.h"

#include <pthread.h>
#include <stdlib.h>

enum { ROUNDS = 300 };

static void *end_it(void *io)
{
    tier_io_done(io, 0);
    return NULL;
}

/*
 * Whoever has polled the last transfer out may free the queue: the thread that ended it
 * must not look at it any more.  The time in which it could is short: it is the address
 * and thread sanitizers that see it, the latter whether it happens or not.
 */
static void queue_can_go_when_its_last_transfer_has_ended(void **state)
{
    (void)state;

    for (int i = 0; i < ROUNDS; i++) {
        static struct uffdmm_tier_stats stats;
        struct tier_queue *q = malloc(sizeof(*q));
        struct tier t = {.stats = &stats};
        struct tier_io io = {.queue = q, .tier = &t};
        pthread_t thread;

        assert_non_null(q);
        assert_int_equal(tier_queue_init(q, NULL, 0), 0);
        q->in_flight = 1;
        assert_int_equal(pthread_create(&thread, NULL, end_it, &io), 0);
        while (!tier_poll(q)) {
        }
        assert_int_equal(io.result, 0);
        tier_queue_deinit(q);
        free(q);
        pthread_join(thread, NULL);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(queue_can_go_when_its_last_transfer_has_ended),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
