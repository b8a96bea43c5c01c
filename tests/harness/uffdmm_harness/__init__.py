# SPDX-License-Identifier: GPL-2.0-or-later
"""Starts a manager and guests, watches them, and cleans up: for the demo, benchmarks and tests.

What is where::

    places      where the binaries, the guest image and the caches are
    accel       which accelerator guests run under, by measurement
    manager     one uffdmm-manager in a folder of its own
    port        the line protocol of the program in the guest
    machine     the command line of a QEMU machine
    monitor     QEMU's monitor, synchronous
    guest       one QEMU process, its monitor and its port
    hostmem     what a process and the host have in memory and in swap
    nativeswap  memory cgroup and swap file: the way without uffdmm
    zram        swap on compressed memory, likewise
    nbdserver   nbdkit or qemu-nbd with a file behind it
    sampler     resident memory every 50 ms
    interrupts  signals as exceptions, so that nothing is left behind
    progress    progress of a benchmark, in lines
    demo        scripts/demo
    memoryprocess
                memory whose faults are timed from inside
    patterns    the guest that is filled, touched in patterns and verified
    overcommit  scripts/bench overcommit
    migration   scripts/bench migration; migration_ways: one migration either way,
                migration_guest: the guest's steps while it moves
    stores      scripts/bench stores: its sections, its tables
    stores_tiers, stores_faults, stores_guest
                what each section measures
    soak        scripts/soak; soak_plan, soak_guest, soak_count: its parts
    spread      medians and ranges of what was measured several times

Errors that a person can do something about are :class:`HarnessError`.
"""


class HarnessError(Exception):
    """Something that was to be started, found or measured is not there; the text says what."""
