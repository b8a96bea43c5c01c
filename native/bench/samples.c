/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "samples.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool samples_init(struct samples *s, size_t max)
{
    s->nr = 0;
    s->max = max;
    s->ns = malloc(max * sizeof(*s->ns));
    if (s->ns) {
        memset(s->ns, 0xff, max * sizeof(*s->ns));
    }
    return s->ns != NULL;
}

void samples_deinit(struct samples *s)
{
    free(s->ns);
}

static int by_size(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

void samples_sort(struct samples *s)
{
    qsort(s->ns, s->nr, sizeof(*s->ns), by_size);
}

uint64_t samples_percentile(const struct samples *s, unsigned percent)
{
    size_t rank = (s->nr * percent + 99) / 100;

    return s->nr ? s->ns[rank ? rank - 1 : 0] : 0;
}

void samples_print(struct samples *s)
{
    uint64_t sum = 0;

    samples_sort(s);
    for (size_t i = 0; i < s->nr; i++) {
        sum += s->ns[i];
    }
    printf("\"samples\":%zu,\"p50_ns\":%" PRIu64 ",\"p99_ns\":%" PRIu64
           ",\"mean_ns\":%" PRIu64,
           s->nr, samples_percentile(s, 50), samples_percentile(s, 99),
           s->nr ? sum / s->nr : 0);
}
