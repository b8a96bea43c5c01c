/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What cannot be used together with memory-backend-external
 *
 * Two counts that exclude each other: of the backends, and of the features
 * that would go past userfaultfd.  Whoever comes second is refused, at start
 * or at hot-plug.
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/lockable.h"
#include "qemu/queue.h"
#include "qemu/thread.h"
#include "system/hostmem-external.h"

typedef struct ExternalBlocker {
    const char *what;
    const char *why;
    unsigned users;
    QLIST_ENTRY(ExternalBlocker) next;
} ExternalBlocker;

static const char nested_what[] = "nested virtualization (vmx or svm)";
static const char nested_why[] =
    "the hypervisor pins guest pages for it and writes to them past "
    "userfaultfd (switch it off by -cpu ...,vmx=off,svm=off, or set "
    "x-allow-nested=on on the backend to risk it)";

static QemuMutex external_lock;
/* all below: under external_lock */
static unsigned external_backends;
static unsigned external_backends_not_nested;
static unsigned external_nested;
static QLIST_HEAD(, ExternalBlocker) external_blockers =
    QLIST_HEAD_INITIALIZER(external_blockers);

static void __attribute__((constructor)) external_block_init(void)
{
    qemu_mutex_init(&external_lock);
}

static void external_refuse(const char *what, const char *why, Error **errp)
{
    error_setg(errp, "%s cannot be used together with %s: %s", what,
               TYPE_MEMORY_BACKEND_EXTERNAL, why);
}

bool hostmem_external_in_use(void)
{
    QEMU_LOCK_GUARD(&external_lock);
    return external_backends;
}

static ExternalBlocker *external_blocker_find(const char *what)
{
    ExternalBlocker *blocker;

    QLIST_FOREACH(blocker, &external_blockers, next) {
        if (!strcmp(blocker->what, what)) {
            return blocker;
        }
    }
    return NULL;
}

bool hostmem_external_block(const char *what, const char *why, Error **errp)
{
    ExternalBlocker *blocker;

    QEMU_LOCK_GUARD(&external_lock);
    if (external_backends) {
        external_refuse(what, why, errp);
        return false;
    }
    blocker = external_blocker_find(what);
    if (!blocker) {
        blocker = g_new0(ExternalBlocker, 1);
        blocker->what = what;
        blocker->why = why;
        QLIST_INSERT_HEAD(&external_blockers, blocker, next);
    }
    blocker->users++;
    return true;
}

void hostmem_external_unblock(const char *what)
{
    ExternalBlocker *blocker;

    QEMU_LOCK_GUARD(&external_lock);
    blocker = external_blocker_find(what);
    assert(blocker && blocker->users);
    blocker->users--;
    if (!blocker->users) {
        QLIST_REMOVE(blocker, next);
        g_free(blocker);
    }
}

bool hostmem_external_block_nested(Error **errp)
{
    QEMU_LOCK_GUARD(&external_lock);
    if (external_backends_not_nested) {
        external_refuse(nested_what, nested_why, errp);
        return false;
    }
    external_nested++;
    return true;
}

void hostmem_external_unblock_nested(void)
{
    QEMU_LOCK_GUARD(&external_lock);
    assert(external_nested);
    external_nested--;
}

bool hostmem_external_enter(bool allow_nested, Error **errp)
{
    ExternalBlocker *blocker;

    QEMU_LOCK_GUARD(&external_lock);
    blocker = QLIST_FIRST(&external_blockers);
    if (blocker) {
        external_refuse(blocker->what, blocker->why, errp);
        return false;
    }
    if (external_nested && !allow_nested) {
        external_refuse(nested_what, nested_why, errp);
        return false;
    }
    external_backends++;
    external_backends_not_nested += !allow_nested;
    return true;
}

void hostmem_external_leave(bool allow_nested)
{
    QEMU_LOCK_GUARD(&external_lock);
    assert(external_backends);
    external_backends--;
    external_backends_not_nested -= !allow_nested;
}
