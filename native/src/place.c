/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Placement of threads.
 *
 * A fault is served fastest on the CPU where it happened: no wake-up crosses
 * CPUs, and the CPU is free since the vCPU sleeps.  So a fault thread follows
 * the thread that faults most, as long as that is one thread; with several it
 * stays where the scheduler puts it and polls.  The evictor keeps off those
 * CPUs.  A thread's CPU is read from /proc off the fault path, some times a
 * second, and only while there are faults.
 */
#include "place.h"

#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "vm.h"

/* Faults since the last look that make a shard worth moving. */
#define FAULTS_MIN 20

/* Of its faults, at most one in this many may come from another thread than the one before. */
#define SWITCH_SHARE 8

/* CPU that thread @tid of process @pid ran on last; -1 when it has ended. */
static int cpu_of(pid_t pid, uint32_t tid)
{
    char path[64], text[1024], *p;
    ssize_t n;
    int fd, cpu;

    snprintf(path, sizeof(path), "/proc/%d/task/%u/stat", (int)pid, tid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return -1;
    }
    n = read(fd, text, sizeof(text) - 1);
    close(fd);
    if (n <= 0) {
        return -1;
    }
    text[n] = '\0';
    /* the CPU is the 37th field behind the name, which may hold anything */
    p = strrchr(text, ')');
    for (int i = 0; p && i < 37; i++) {
        p = strchr(p + 1, ' ');
    }
    return p && sscanf(p, "%d", &cpu) == 1 ? cpu : -1;
}

static void follow(struct vm *vm, struct shard *sh, const cpu_set_t *all)
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
        cpu = cpu_of(vm->qemu_pid, atomic_load(&sh->fault_tid));
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

            follow(vm, &r->shards[i], &all);
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
