/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The error and delay wrappers: what they are told is what they do. */
#include "unit.h"

#include "tier_inject.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "clock.h"
#include "tier.h"
#include "tier_io.h"

enum { DRAWS = 200000 };

#define SEED 0x9e3779b97f4a7c15ULL

/* ---- errors ---------------------------------------------------------------- */

static unsigned failures(const struct tier_faults *f, bool write)
{
    uint64_t rng = SEED;
    unsigned n = 0;

    for (int i = 0; i < DRAWS; i++) {
        n += inject_fails(f, write, &rng);
    }
    return n;
}

static void errors_have_their_rate(void **state)
{
    const double rates[] = {0.001, 0.1, 0.5, 0.9};
    (void)state;

    for (unsigned i = 0; i < sizeof(rates) / sizeof(rates[0]); i++) {
        struct tier_faults f = {.error_rate = rates[i], .error_reads = true};
        double want = rates[i] * DRAWS;
        /* five standard deviations of at most sqrt(want) */
        double slack = 5 * (want < 1000 ? 15 : want < 30000 ? 142 : 450);
        double got = failures(&f, false);

        assert_true(got > want - slack && got < want + slack);
    }
}

static void rate_of_one_fails_all_and_of_zero_none(void **state)
{
    struct tier_faults f = {.error_rate = 1, .error_reads = true, .error_writes = true};
    (void)state;

    assert_int_equal(failures(&f, false), DRAWS);
    assert_int_equal(failures(&f, true), DRAWS);
    f.error_rate = 0;
    assert_int_equal(failures(&f, false), 0);
}

static void only_the_chosen_operations_fail(void **state)
{
    struct tier_faults f = {.error_rate = 1, .error_reads = true};
    (void)state;

    assert_int_equal(failures(&f, true), 0);
    f = (struct tier_faults){.error_rate = 1, .error_writes = true};
    assert_int_equal(failures(&f, false), 0);
    assert_int_equal(failures(&f, true), DRAWS);
}

/* ---- delays ---------------------------------------------------------------- */

struct drawn {
    double mean;
    uint64_t least, most;
    double above; /* part of them above the stated value */
};

static struct drawn draw(const struct tier_faults *f, bool write, uint64_t stated)
{
    struct drawn d = {.least = UINT64_MAX};
    uint64_t rng = SEED;

    for (int i = 0; i < DRAWS; i++) {
        uint64_t ns = inject_delay(f, write, &rng);

        d.mean += (double)ns / DRAWS;
        d.above += (double)(ns > stated) / DRAWS;
        d.least = ns < d.least ? ns : d.least;
        d.most = ns > d.most ? ns : d.most;
    }
    return d;
}

static void expect_near(double got, double want, double part)
{
    if (got < want * (1 - part) || got > want * (1 + part)) {
        fail_msg("%g is not %g", got, want);
    }
}

static void delays_have_their_mean_and_shape(void **state)
{
    const uint64_t mean = 5 * NSEC_PER_MSEC;
    struct tier_faults f = {.delay_read_ns = mean, .delay_shape = TIER_DELAY_FIXED};
    struct drawn d;
    (void)state;

    d = draw(&f, false, mean);
    assert_int_equal(d.least, mean);
    assert_int_equal(d.most, mean);

    f.delay_shape = TIER_DELAY_UNIFORM;
    d = draw(&f, false, mean);
    expect_near(d.mean, (double)mean, 0.01);
    expect_near(d.above, 0.5, 0.02);
    assert_true(d.least < mean / 1000);
    assert_in_range(d.most, mean * 2 - mean / 1000, mean * 2);

    f.delay_shape = TIER_DELAY_EXPONENTIAL;
    d = draw(&f, false, mean);
    expect_near(d.mean, (double)mean, 0.02);
    expect_near(d.above, 0.3679, 0.02); /* 1/e */
    assert_true(d.least < mean / 1000);
    assert_in_range(d.most, mean * 8, mean * 16);
}

static void reads_and_writes_have_their_own_delay(void **state)
{
    struct tier_faults f = {.delay_read_ns = 7, .delay_write_ns = 9};
    uint64_t rng = SEED;
    (void)state;

    assert_int_equal(inject_delay(&f, false, &rng), 7);
    assert_int_equal(inject_delay(&f, true, &rng), 9);
    f.delay_write_ns = 0;
    assert_int_equal(inject_delay(&f, true, &rng), 0);
}

static void numbers_repeat_with_their_seed(void **state)
{
    uint64_t a = SEED, b = SEED, c = SEED + 1;
    unsigned same = 0;
    (void)state;

    for (int i = 0; i < 1000; i++) {
        double x = inject_random(&a);

        assert_true(x >= 0 && x < 1);
        assert_true(x == inject_random(&b));
        same += x == inject_random(&c);
    }
    assert_in_range(same, 0, 1);
}

/* ---- triggers -------------------------------------------------------------- */

static void make_trigger(char *path, size_t len)
{
    int fd;

    snprintf(path, len, "/tmp/uffdmm-trigger-XXXXXX");
    fd = mkstemp(path);
    assert_return_code(fd, errno);
    close(fd);
}

static void trigger_is_looked_up_once_in_a_while(void **state)
{
    struct inject_trigger t = {0};
    uint64_t now = 1000 * INJECT_TRIGGER_NS;
    char path[64];
    int fd;
    (void)state;

    make_trigger(path, sizeof(path));
    assert_true(inject_armed(&t, path, now));
    assert_return_code(unlink(path), errno);
    assert_true(inject_armed(&t, path, now + INJECT_TRIGGER_NS - 1));
    assert_false(inject_armed(&t, path, now + INJECT_TRIGGER_NS));
    fd = open(path, O_CREAT | O_EXCL | O_WRONLY, 0600);
    assert_return_code(fd, errno);
    close(fd);
    assert_false(inject_armed(&t, path, now + 2 * INJECT_TRIGGER_NS - 1));
    assert_true(inject_armed(&t, path, now + 2 * INJECT_TRIGGER_NS));
    assert_return_code(unlink(path), errno);
}

static void without_a_trigger_file_it_is_always_armed(void **state)
{
    struct inject_trigger t = {0};
    (void)state;

    assert_true(inject_armed(&t, "", 1));
}

/* ---- on a transfer ---------------------------------------------------------- */

static void transfer_gets_error_and_due_time(void **state)
{
    struct tier_config config = {.faults = {.error_rate = 1,
                                            .error_errno = EIO,
                                            .error_reads = true,
                                            .delay_read_ns = 1000,
                                            .delay_write_ns = 3000}};
    struct tier t = {.config = &config};
    struct tier_queue q = {.rng = SEED};
    struct tier_io rd = {.tier = &t, .submitted_ns = 500};
    struct tier_io wr = {.tier = &t, .submitted_ns = 500, .write = true};
    (void)state;

    tier_inject(&q, &rd);
    assert_int_equal(rd.injected, -EIO);
    assert_int_equal(rd.due_ns, 1500);
    tier_inject(&q, &wr);
    assert_int_equal(wr.injected, 0);
    assert_int_equal(wr.due_ns, 3500);
}

static void triggers_of_errors_and_delays_are_separate(void **state)
{
    struct tier_config config = {.faults = {.error_rate = 1,
                                            .error_errno = EIO,
                                            .error_reads = true,
                                            .delay_read_ns = 50}};
    struct tier t = {.config = &config};
    struct tier_queue q = {.rng = SEED};
    struct tier_io io = {.tier = &t, .submitted_ns = clock_ns()};
    (void)state;

    snprintf(config.faults.error_trigger, sizeof(config.faults.error_trigger),
             "/nonexistent/uffdmm-trigger");
    make_trigger(config.faults.delay_trigger, sizeof(config.faults.delay_trigger));
    tier_inject(&q, &io);
    assert_int_equal(io.injected, 0);
    assert_int_equal(io.due_ns, io.submitted_ns + 50);
    assert_return_code(unlink(config.faults.delay_trigger), errno);
    io.due_ns = 0;
    io.submitted_ns += INJECT_TRIGGER_NS;
    tier_inject(&q, &io);
    assert_int_equal(io.due_ns, 0);
}

static void tier_without_faults_is_left_alone(void **state)
{
    struct tier_config config = {0};
    struct tier t = {.config = &config};
    struct tier_queue q = {.rng = SEED};
    struct tier_io io = {.tier = &t, .submitted_ns = 500};
    (void)state;

    tier_inject(&q, &io);
    assert_int_equal(io.injected, 0);
    assert_int_equal(io.due_ns, 0);
    assert_true(q.rng == SEED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(errors_have_their_rate),
        cmocka_unit_test(rate_of_one_fails_all_and_of_zero_none),
        cmocka_unit_test(only_the_chosen_operations_fail),
        cmocka_unit_test(delays_have_their_mean_and_shape),
        cmocka_unit_test(reads_and_writes_have_their_own_delay),
        cmocka_unit_test(numbers_repeat_with_their_seed),
        cmocka_unit_test(trigger_is_looked_up_once_in_a_while),
        cmocka_unit_test(without_a_trigger_file_it_is_always_armed),
        cmocka_unit_test(transfer_gets_error_and_due_time),
        cmocka_unit_test(triggers_of_errors_and_delays_are_separate),
        cmocka_unit_test(tier_without_faults_is_left_alone),
    };

    return cmocka_run_group_tests_name("tier_inject", tests, NULL, NULL);
}
