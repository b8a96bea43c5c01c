/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The process half of standin.h. */
#include "unit.h"

#include "standin.h"
#include "uffd_fixture.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

void vmm_start(struct vmm *v, const char *socket,
               void (*body)(struct vmm *v, const void *arg), const void *arg)
{
    v->socket = socket;
    v->report = mmap(NULL, sizeof(*v->report), PROT_READ | PROT_WRITE,
                     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(v->report, MAP_FAILED);
    v->pid = fork_bound();
    if (v->pid == 0) {
        body(v, arg);
        _exit(0);
    }
}

void vmm_fail(struct vmm *v, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(v->report->error, sizeof(v->report->error), format, args);
    va_end(args);
    _exit(1);
}

void vmm_check(struct vmm *v, const struct standin *s, int ret)
{
    if (ret < 0) {
        vmm_fail(v, "%s (%s)", s->error, strerror(-ret));
    }
}

void vmm_set_phase(struct vmm *v, uint32_t phase)
{
    atomic_store(&v->report->phase, phase);
}

void vmm_await_command(struct vmm *v, uint32_t command)
{
    while (atomic_load(&v->report->command) < command) {
        sleep_ms(1);
    }
}

void vmm_await_phase(struct vmm *v, uint32_t phase, int timeout_ms)
{
    int64_t deadline = monotonic_ms() + timeout_ms;

    while (atomic_load(&v->report->phase) < phase) {
        if (waitpid(v->pid, NULL, WNOHANG) == v->pid) {
            v->pid = 0;
            fail_msg("the stand-in ended before phase %u: %s", phase, v->report->error);
        }
        if (monotonic_ms() > deadline) {
            fail_msg("the stand-in did not reach phase %u in %d ms (it is in %u)", phase,
                     timeout_ms, atomic_load(&v->report->phase));
        }
        sleep_ms(1);
    }
}

void vmm_command(struct vmm *v, uint32_t command)
{
    atomic_store(&v->report->command, command);
}

static void release(struct vmm *v)
{
    munmap(v->report, sizeof(*v->report));
    v->report = NULL;
    v->pid = 0;
}

void vmm_join(struct vmm *v, int timeout_ms)
{
    int64_t deadline = monotonic_ms() + timeout_ms;
    int status = 0;

    while (waitpid(v->pid, &status, WNOHANG) == 0) {
        if (monotonic_ms() > deadline) {
            kill(v->pid, SIGKILL);
            waitpid(v->pid, NULL, 0);
            fail_msg("the stand-in did not end in %d ms", timeout_ms);
        }
        sleep_ms(2);
    }
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        fail_msg("the stand-in failed (wait status %#x): %s", status, v->report->error);
    }
    release(v);
}

void vmm_kill(struct vmm *v)
{
    kill(v->pid, SIGKILL);
    waitpid(v->pid, NULL, 0);
    release(v);
}
