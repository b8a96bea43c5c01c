/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Placement of threads.
 *
 * A fault is served fastest on the CPU where it happened: no wake-up crosses
 * CPUs, and the CPU is free since the vCPU sleeps.  That works only for a thread
 * that is bound to one CPU.  One that is not is never woken where its fault thread runs:
 * the scheduler sees that CPU busy, another one idle, and moves it there.  So a
 * fault thread joins the thread that faults most if that is bound, and else
 * stays where the scheduler puts it and polls.  The evictor keeps off the CPUs
 * of bound threads.  All of this is looked up off the fault path, some times a
 * second, and only while there are faults.
 */
#include "place.h"

#include <sched.h>

#include "vm.h"

/* Faults since the last look that make a shard worth moving. */
#define FAULTS_MIN 20

/* Of its faults, at most one in this many may come from another thread than the one before. */
#define SWITCH_SHARE 8

/*
 * CPU that thread @tid is bound to; -1 when it may run on several, or has ended.
 */
static int cpu_of(uint32_t tid)
{
    cpu_set_t set;

    if (sched_getaffinity((pid_t)tid, sizeof(set), &set) < 0 || CPU_COUNT(&set) != 1) {
        return -1;
    }
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (CPU_ISSET(cpu, &set)) {
            return cpu;
        }
    }
    return -1;
}

static void follow(struct shard *sh, const cpu_set_t *all)
{
    uint64_t faults = atomic_load(&sh->nr_faults),
             switches = atomic_load(&sh->fault_switches);
    uint64_t new_faults = faults - sh->placed_faults;
    uint64_t new_switches = switches - sh->placed_switches;
    cpu_set_t set;
    int cpu = -1;

    if (new_faults < FAULTS_MIN) {
        return;
    }
    sh->placed_faults = faults;
    sh->placed_switches = switches;
    if (new_switches * SWITCH_SHARE <= new_faults) {
        cpu = cpu_of(atomic_load(&sh->fault_tid));
    }
    if (cpu == sh->cpu) {
        return;
    }
    if (cpu >= 0 && CPU_ISSET(cpu, all)) {
        CPU_ZERO(&set);
        CPU_SET(cpu, &set);
    } else {
        cpu = -1;
        set = *all;
    }
    if (sched_setaffinity(atomic_load(&sh->tid), sizeof(set), &set) == 0) {
        sh->cpu = cpu;
        atomic_store(&sh->same_cpu, cpu >= 0);
    }
}

void place_threads(struct vm *vm)
{
    cpu_set_t all, set;
    bool moved = false;

    if (sched_getaffinity(0, sizeof(all), &all) < 0 || CPU_COUNT(&all) < 2) {
        return;
    }
    set = all;
    for (unsigned k = 0; k < UFFDMM_REGIONS_MAX; k++) {
        struct region *r = vm->regions[k];

        for (unsigned i = 0; r && r->attached && i < r->nr_shards; i++) {
            int before = r->shards[i].cpu;

            follow(&r->shards[i], &all);
            moved |= before != r->shards[i].cpu;
            if (r->shards[i].cpu >= 0) {
                CPU_CLR(r->shards[i].cpu, &set);
            }
        }
    }
    if (moved) {
        sched_setaffinity(atomic_load(&vm->evictor_tid), sizeof(set),
                          CPU_COUNT(&set) ? &set : &all);
    }
}
