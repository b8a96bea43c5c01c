/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Static probes (USDT) of the manager, for bpftrace, perf and SystemTap.
 *
 * Each is a nop in the code and a note in the program that says where it is and
 * where its arguments are.  Nobody looks: no branch is taken, no
 * argument is computed that the code around does not have already.  Where
 * sys/sdt.h is missing they are nothing at all.
 *
 * Names and sizes are kept: scripts/bpftrace uses them.  Strings are pointers
 * to NUL-terminated arrays, times nanoseconds.
 */
#ifndef UFFDMM_PROBES_H
#define UFFDMM_PROBES_H

#ifdef UFFDMM_HAVE_SDT
#include <sys/sdt.h>
#ifdef __clang__
/* its macros pass nothing for "..."; clang counts that where they are used */
#pragma clang diagnostic ignored "-Wgnu-zero-variadic-macro-arguments"
#endif
#define PROBE3(name, a, b, c) DTRACE_PROBE3(uffdmm, name, a, b, c)
#define PROBE4(name, a, b, c, d) DTRACE_PROBE4(uffdmm, name, a, b, c, d)
#define PROBE5(name, a, b, c, d, e) DTRACE_PROBE5(uffdmm, name, a, b, c, d, e)
#else
/* the arguments count as used, and are not evaluated */
#define PROBE3(name, a, b, c) ((void)sizeof(a), (void)sizeof(b), (void)sizeof(c))
#define PROBE4(name, a, b, c, d) (PROBE3(name, a, b, c), (void)sizeof(d))
#define PROBE5(name, a, b, c, d, e) (PROBE4(name, a, b, c, d), (void)sizeof(e))
#endif

/* A fault's message was read: the VM's name, id of the region, page number. */
#define PROBE_FAULT_BEGIN(vm, region, pfn) PROBE3(fault__begin, vm, region, pfn)

/* Its page is there: the same, and the time since. */
#define PROBE_FAULT_END(vm, region, pfn, ns) PROBE4(fault__end, vm, region, pfn, ns)

/*
 * A batch was put out: the VM's name, pages of 4 KiB, of those: same-filled ones, ones that
 * were dropped without a write, ones that a later tier than the first had to take.
 */
#define PROBE_EVICT_BATCH(vm, pages, same, clean, passed_on) \
    PROBE5(evict__batch, vm, pages, same, clean, passed_on)

/* A request to a tier has ended: the tier's name, bytes, time, 0 or a negative errno. */
#define PROBE_READ_END(tier, bytes, ns, result) PROBE4(read__end, tier, bytes, ns, result)
#define PROBE_WRITE_END(tier, bytes, ns, result) \
    PROBE4(write__end, tier, bytes, ns, result)

/* A tier is in another state: its name, enum uffdmm_tier_state before and now. */
#define PROBE_TIER_STATE(tier, before, now) PROBE3(tier__state, tier, before, now)

#endif
