/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The end of a QEMU whose threads wait for external guest memory
 *
 * Theory of operation
 *
 * A vCPU that waits for memory cannot be stopped, so a QEMU that is told to
 * end waits for it: for ever, if the manager is gone or a store does not come
 * back.  The same is true of its main loop, when a device model waits with the
 * BQL held; then the wish to end is not even noticed, but for that of a signal.
 * The memory of a guest that is to end is of no use to anybody, so the service
 * thread ends the process after a while, as a SIGKILL would.
 *
 * It does so only if memory is the reason.  A manager that serves lets the
 * vCPU go sooner or later, and what comes after the vCPUs have stopped takes
 * as long as disks take.
 */

#include "qemu/osdep.h"
#include "qemu/atomic.h"
#include "system/runstate-action.h"
#include "hostmem-external-quit.h"

/* Less than management tools wait before they send SIGKILL */
#define QUIT_TIMEOUT_MS 10000

static void external_quit_told(Notifier *notifier, void *data)
{
    ExternalQuit *quit = container_of(notifier, ExternalQuit, shutdown);

    qatomic_set(&quit->told, shutdown_action != SHUTDOWN_ACTION_PAUSE);
}

static void external_quit_vm_changed(void *opaque, bool running,
                                     RunState state)
{
    ExternalQuit *quit = opaque;

    /* it is told after all vCPUs have stopped, and before they are started */
    qatomic_set(&quit->stopped, !running);
}

void external_quit_init(ExternalQuit *quit)
{
    quit->stopped = !runstate_is_running();
    quit->shutdown.notify = external_quit_told;
    qemu_register_shutdown_notifier(&quit->shutdown);
    quit->change = qemu_add_vm_change_state_handler(external_quit_vm_changed,
                                                    quit);
}

void external_quit_cleanup(ExternalQuit *quit)
{
    notifier_remove(&quit->shutdown);
    qemu_del_vm_change_state_handler(quit->change);
}

bool external_quit_overdue(ExternalQuit *quit, bool served)
{
    /* a wish that the main loop has not got round to */
    bool asked = qemu_shutdown_requested_get() != SHUTDOWN_CAUSE_NONE &&
                 shutdown_action != SHUTDOWN_ACTION_PAUSE;
    bool stuck = asked || (qatomic_read(&quit->told) &&
                           !qatomic_read(&quit->stopped));
    int64_t now = g_get_monotonic_time();

    if (!stuck || served) {
        quit->since = 0;
        return false;
    }
    if (!quit->since) {
        quit->since = now;
    }
    return now - quit->since >= QUIT_TIMEOUT_MS * INT64_C(1000);
}
