/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Machines on memory-backend-external with a fake manager, and what their
 * monitor says of it
 */

#ifndef UFFDMM_MACHINE_H
#define UFFDMM_MACHINE_H

#include "libqtest.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"
#include "uffdmm-fake-manager.h"

#define MIB      (1024 * 1024)
#define RAM_SIZE (16 * MIB)
#define PFN(n)   ((uint64_t)(n) * FAKE_PAGE_SIZE)

#define MEM0 "-object memory-backend-external,id=mem0,size=16M"

/* Nothing in these machines touches memory by itself; m->bios is empty. */
#define PC   "-machine pc,memory-backend=mem0 -m 16M " BARE
#define BARE "-nodefaults -vga none -net none -bios %s "

/* A machine named guest1 whose memory is mem0; @props of it begin with ',' */
QTestState *uffdmm_start(FakeManager *m, const char *props);

/* What uffdmm-query returns, to be given up by qobject_unref() */
QList *uffdmm_query(QTestState *qts);

/* The only VM in it, and its first backend */
QDict *uffdmm_vm(QList *list);
QDict *uffdmm_first_backend(QDict *vm);

/* Wait until the first backend's link is in that state. */
void uffdmm_wait_link(QTestState *qts, const char *state);

/* A thread that reads from a page of its QTestState, and checks it */
#define UFFDMM_TOUCHED_PFN 9
void *uffdmm_touch(void *qts);

#endif
