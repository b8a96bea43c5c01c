/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Machines on memory-backend-external with a fake manager, and what their
 * monitor says of it
 */

#include "qemu/osdep.h"
#include "uffdmm-machine.h"

QTestState *uffdmm_start(FakeManager *m, const char *props)
{
    return qtest_initf(PC "-name guest1 "
                       "-uuid 01020304-0506-0708-090a-0b0c0d0e0f10 "
                       MEM0 ",socket=%s%s", m->bios, m->path, props);
}

QList *uffdmm_query(QTestState *qts)
{
    QDict *rsp = qtest_qmp(qts, "{'execute': 'uffdmm-query'}");
    QList *list;

    g_assert_true(qdict_haskey(rsp, "return"));
    list = qobject_ref(qdict_get_qlist(rsp, "return"));
    qobject_unref(rsp);
    return list;
}

QDict *uffdmm_vm(QList *list)
{
    g_assert_cmpuint(qlist_size(list), ==, 1);
    return qobject_to(QDict, qlist_peek(list));
}

QDict *uffdmm_first_backend(QDict *vm)
{
    return qobject_to(QDict, qlist_peek(qdict_get_qlist(vm, "backends")));
}

void uffdmm_wait_link(QTestState *qts, const char *state)
{
    for (int i = 0; i < 2000; i++) {
        g_autoptr(QList) list = uffdmm_query(qts);
        QDict *backend = uffdmm_first_backend(uffdmm_vm(list));

        if (!strcmp(qdict_get_str(backend, "link"), state)) {
            return;
        }
        g_usleep(10 * 1000);
    }
    g_assert_not_reached();
}

void *uffdmm_touch(void *opaque)
{
    QTestState *qts = opaque;

    g_assert_cmpuint(qtest_readb(qts, PFN(UFFDMM_TOUCHED_PFN)), ==,
                     fake_manager_byte(UFFDMM_TOUCHED_PFN));
    return NULL;
}
