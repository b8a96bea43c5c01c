/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "unit.h"

#include "kill_loop.h"

#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include "uffd_fixture.h"

static uint64_t seed_now = 1;

void kill_seed(uint64_t seed)
{
    seed_now = seed;
}

uint64_t kill_random(void)
{
    seed_now = seed_now * 6364136223846793005ULL + 1442695040888963407ULL;
    return seed_now >> 33;
}

pid_t kill_worker_of(struct hier *r, pid_t other)
{
    int64_t deadline = monotonic_ms() + KILL_BACK_MS;
    struct uffdmm_stats st;

    for (;;) {
        if (control_stats(r->manager.socket, "vm", &st) == 0 && st.nr_regions &&
            (pid_t)st.worker_pid != other) {
            return (pid_t)st.worker_pid;
        }
        if (monotonic_ms() > deadline) {
            manager_print_log(&r->manager);
            fail_msg("no worker has taken over");
        }
        sleep_ms(1);
    }
}

void kill_loop(struct hier *r, unsigned pattern, unsigned kills)
{
    uint64_t seed = seed_now;
    struct peer_stats s;
    pid_t worker = 0;

    hier_do(r, HIER_FILL, 0, 0);
    for (unsigned i = 0; i < kills; i++) {
        uint64_t before;
        bool over;

        end_process_when_hung(NULL); /* counted from this kill on */
        worker = kill_worker_of(r, worker);
        if (i % 8 == 0) {
            /* the guest pauses now and then, and all of it is looked at */
            hier_do(r, HIER_VERIFY, 0, 0);
        }
        hier_begin(r, HIER_RUN, pattern, 150);
        usleep((useconds_t)(kill_random() % 120000));
        before = atomic_load(&r->vmm.report->steps);
        over = hier_done(r); /* on a busy machine */
        assert_return_code(kill(worker, SIGKILL), 0);
        /* now and then the next one does not get far either */
        if (kill_random() % 4 == 0) {
            worker = kill_worker_of(r, worker);
            assert_return_code(kill(worker, SIGKILL), 0);
        }
        hier_await(r, HIER_END_MS);
        assert_true(over || atomic_load(&r->vmm.report->steps) > before);
    }
    kill_worker_of(r, worker);
    hier_do(r, HIER_VERIFY, 0, 0);
    hier_expect_sound(r);
    s = hier_stats(r);
    assert_true(s.vm.recoveries >= kills);
    assert_int_equal(s.vm.quarantined, 0);
    print_message("seed %llu: %llu recoveries, the last took %.2f ms, %.1f ms per GiB\n",
                  (unsigned long long)seed, (unsigned long long)s.vm.recoveries,
                  (double)s.vm.recovery_ns / 1e6,
                  (double)s.vm.recovery_ns / 1e6 * 1024 /
                      ((double)r->options->ram / (double)HIER_MIB));
}
