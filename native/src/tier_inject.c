/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "tier_inject.h"

#include <errno.h>
#include <math.h>
#include <unistd.h>

#include "tier.h"
#include "tier_io.h"

/*
 * An exponential delay has no upper end; what lies beyond this many times its mean
 * (one in 9 million) is cut off, so that no transfer sleeps for hours.
 */
#define DELAY_TAIL 16.0

bool inject_armed(struct inject_trigger *t, const char *path, uint64_t now_ns)
{
    uint64_t look_at;
    bool armed;

    if (!path[0]) {
        return true;
    }
    look_at = __atomic_load_n(&t->look_at_ns, __ATOMIC_ACQUIRE);
    if (now_ns < look_at) {
        return __atomic_load_n(&t->armed, __ATOMIC_RELAXED);
    }
    /* a path lookup takes microseconds, and this is the fault path */
    armed = access(path, F_OK) == 0;
    __atomic_store_n(&t->armed, armed, __ATOMIC_RELAXED);
    __atomic_store_n(&t->look_at_ns, now_ns + INJECT_TRIGGER_NS, __ATOMIC_RELEASE);
    return armed;
}

double inject_random(uint64_t *rng)
{
    uint64_t x = *rng;

    /* xorshift64*: its upper bits are good ones, and 53 of them fill a double */
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    *rng = x;
    return (double)((x * 0x2545f4914f6cdd1dULL) >> 11) * 0x1p-53;
}

bool inject_fails(const struct tier_faults *f, bool write, uint64_t *rng)
{
    if (f->error_rate <= 0 || !(write ? f->error_writes : f->error_reads)) {
        return false;
    }
    return inject_random(rng) < f->error_rate;
}

uint64_t inject_delay(const struct tier_faults *f, bool write, uint64_t *rng)
{
    uint64_t mean = write ? f->delay_write_ns : f->delay_read_ns;
    double times = 1;

    if (!mean) {
        return 0;
    }
    switch (f->delay_shape) {
    case TIER_DELAY_FIXED:
        return mean;
    case TIER_DELAY_UNIFORM:
        times = 2 * inject_random(rng);
        break;
    case TIER_DELAY_EXPONENTIAL:
        times = -log1p(-inject_random(rng));
        times = times < DELAY_TAIL ? times : DELAY_TAIL;
        break;
    }
    return (uint64_t)((double)mean * times);
}

void tier_inject(struct tier_queue *q, struct tier_io *io)
{
    struct tier *t = io->tier;
    const struct tier_faults *f = &t->config->faults;
    uint64_t now = io->submitted_ns;

    if (f->error_rate > 0 && inject_armed(&t->error_trigger, f->error_trigger, now) &&
        inject_fails(f, io->write, &q->rng)) {
        io->injected = -f->error_errno;
    }
    if ((f->delay_read_ns || f->delay_write_ns) &&
        inject_armed(&t->delay_trigger, f->delay_trigger, now)) {
        uint64_t delay = inject_delay(f, io->write, &q->rng);

        io->due_ns = delay ? now + delay : 0;
    }
}
