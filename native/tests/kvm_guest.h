/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A bare-metal KVM guest of a few dozen instructions: it increments a counter in
 * every page of a piece of memory, keeps the expected value of each in memory of
 * its own, and counts what vanished.  So the second-level page tables take part
 * in the eviction race, as they do with real guests.
 */
#ifndef UFFDMM_TEST_KVM_GUEST_H
#define UFFDMM_TEST_KVM_GUEST_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct kvm_run;

/* Read and written by the guest; in memory that is not evicted. */
struct kvm_guest_control {
    volatile uint64_t stop;
    volatile uint64_t lost;   /* updates that vanished */
    volatile uint64_t passes; /* over all pages */
};

struct kvm_guest {
    int vm_fd;
    int vcpu_fd;
    struct kvm_run *run;
    size_t run_size;
    uint8_t *low; /* tables, code, control block, expected counters */
    struct kvm_guest_control *control;
    uint64_t *expected; /* one counter a page */
    uint32_t nr_pages;
    pthread_t thread;
    _Atomic int ended;
    int exit_reason; /* valid once ended; -errno when KVM_RUN failed */
};

enum { KVM_GUEST_PAGES_MAX = 16384 };

/*
 * Builds the guest around nr_pages (a power of two) of memory at `memory`.  0, or a negative errno
 * with the reason in why.
 */
int kvm_guest_init(struct kvm_guest *g, void *memory, uint32_t nr_pages, char *why,
                   size_t why_len);
void kvm_guest_deinit(struct kvm_guest *g);

/* Starts the vCPU thread; it ends when control->stop is seen after a pass. */
int kvm_guest_start(struct kvm_guest *g);
/* True once the vCPU has ended within the time; joins the thread then. */
bool kvm_guest_join(struct kvm_guest *g, int timeout_ms);
/* True when the guest ended the way it should: by its halt instruction. */
bool kvm_guest_halted(const struct kvm_guest *g);

/*
 * Can this host's KVM run the guest at all?  Found out by running it over plain
 * memory, not by looking for the device node.  False with the reason in why.
 */
bool kvm_guest_usable(char *why, size_t why_len);

#endif
