/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Guest-physical layout: 2 MiB at 0 for what the guest needs to run, never
 * evicted; the memory under test at 1 GiB.  The vCPU starts in long mode with
 * both mapped one to one by 2 MiB entries, so no boot code is needed, and the
 * four-level form is the one that software varieties of KVM support as well.
 */
#include "kvm_guest.h"

#include "uffd_fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
    LOW_SIZE = 2 << 20,
    LOW_PML4 = 0x1000,
    LOW_PDPT = 0x2000,
    LOW_PD_0 = 0x3000,
    LOW_PD_1 = 0x4000,
    LOW_CODE = 0x5000,
    LOW_CONTROL = 0x6000,
    LOW_EXPECTED = 0x7000,
    TEST_GPA = 1 << 30,
    CPUID_MAX = 256
};

enum { PTE_PRESENT_WRITE = 0x3, PTE_LARGE = 0x80 };
enum { CR0_PE = 1, CR0_ET = 1 << 4, CR0_NE = 1 << 5 };
static const uint64_t CR0_PG = 1ULL << 31;
enum { CR4_PAE = 1 << 5, EFER_LME = 1 << 8, EFER_LMA = 1 << 10 };

/*
 * rdi memory under test, rsi expected counters, rcx pages (a power of two), rbp
 * pages - 1, rbx control block.  A pass sweeps over all pages, which keeps an
 * evictor busy, and after each one visits a random page of the half that was swept
 * last: resident, and of any age, so also one that is being evicted right now.
 * A visit is a burst of checked increments.
 */
__asm__(".pushsection .rodata\n"
        ".globl kvm_guest_code, kvm_guest_code_end\n"
        "kvm_guest_code:\n"
        "1:  mov %rcx, %r10\n" /* next pass */
        "2:  inc %r13\n"       /* next page of the sweep */
        "    and %rbp, %r13\n"
        "    mov %r13, %r8\n"
        "    call 3f\n"
        "    imul $1103515245, %r12, %r12\n"
        "    add $12345, %r12\n"
        "    mov %r12, %rax\n"
        "    shr $16, %rax\n"
        "    mov %rbp, %r8\n"
        "    shr $1, %r8\n"
        "    and %rax, %r8\n"
        "    neg %r8\n"
        "    add %r13, %r8\n"
        "    and %rbp, %r8\n"
        "    call 3f\n"
        "    dec %r10\n"
        "    jnz 2b\n"
        "    incq 16(%rbx)\n"
        "    cmpq $0, (%rbx)\n"
        "    je 1b\n"
        "    hlt\n"
        "3:  mov %r8, %r9\n" /* visit page r8 */
        "    shl $12, %r9\n"
        "    add %rdi, %r9\n"
        "    mov $64, %r11d\n"
        "4:  mov (%r9), %rax\n" /* next increment */
        "    mov (%rsi,%r8,8), %rdx\n"
        "    sub %rax, %rdx\n"
        "    jz 5f\n"
        "    add %rdx, 8(%rbx)\n"
        "5:  inc %rax\n"
        "    mov %rax, (%r9)\n"
        "    mov %rax, (%rsi,%r8,8)\n"
        "    dec %r11d\n"
        "    jnz 4b\n"
        "    ret\n"
        "kvm_guest_code_end:\n"
        ".popsection\n");
extern const uint8_t kvm_guest_code[];
extern const uint8_t kvm_guest_code_end[];

static int complain(char *why, size_t why_len, const char *what)
{
    int error = errno;

    snprintf(why, why_len, "%s: %s", what, strerror(error));
    return -error;
}

static void build_low_memory(struct kvm_guest *g)
{
    uint64_t *pml4 = (uint64_t *)(g->low + LOW_PML4);
    uint64_t *pdpt = (uint64_t *)(g->low + LOW_PDPT);
    uint64_t *pd_0 = (uint64_t *)(g->low + LOW_PD_0);
    uint64_t *pd_1 = (uint64_t *)(g->low + LOW_PD_1);

    pml4[0] = LOW_PDPT | PTE_PRESENT_WRITE;
    pdpt[0] = LOW_PD_0 | PTE_PRESENT_WRITE;
    pdpt[1] = LOW_PD_1 | PTE_PRESENT_WRITE;
    pd_0[0] = PTE_PRESENT_WRITE | PTE_LARGE;
    for (uint64_t i = 0; i < KVM_GUEST_PAGES_MAX / 512; i++) {
        pd_1[i] = (TEST_GPA + (i << 21)) | PTE_PRESENT_WRITE | PTE_LARGE;
    }
    memcpy(g->low + LOW_CODE, kvm_guest_code,
           (size_t)(kvm_guest_code_end - kvm_guest_code));
    g->control = (struct kvm_guest_control *)(g->low + LOW_CONTROL);
    g->expected = (uint64_t *)(g->low + LOW_EXPECTED);
}

static int set_memory(struct kvm_guest *g, uint32_t slot, uint64_t gpa, void *memory,
                      uint64_t size)
{
    struct kvm_userspace_memory_region region = {
        .slot = slot,
        .guest_phys_addr = gpa,
        .memory_size = size,
        .userspace_addr = (uintptr_t)memory,
    };

    return ioctl(g->vm_fd, KVM_SET_USER_MEMORY_REGION, &region);
}

static int set_cpuid(int kvm_fd, int vcpu_fd)
{
    struct kvm_cpuid2 *cpuid =
        calloc(1, sizeof(*cpuid) + CPUID_MAX * sizeof(struct kvm_cpuid_entry2));
    int ret = -1;

    if (cpuid) {
        cpuid->nent = CPUID_MAX;
        ret = ioctl(kvm_fd, KVM_GET_SUPPORTED_CPUID, cpuid);
        if (ret == 0) {
            ret = ioctl(vcpu_fd, KVM_SET_CPUID2, cpuid);
        }
    }
    free(cpuid);
    return ret;
}

static int set_registers(struct kvm_guest *g)
{
    struct kvm_segment code = {.limit = 0xffffffff,
                               .selector = 8,
                               .type = 11,
                               .present = 1,
                               .s = 1,
                               .l = 1,
                               .g = 1};
    struct kvm_segment data = {.limit = 0xffffffff,
                               .selector = 16,
                               .type = 3,
                               .present = 1,
                               .s = 1,
                               .db = 1,
                               .g = 1};
    struct kvm_regs regs = {
        .rip = LOW_CODE,
        .rsp = LOW_SIZE,
        .rflags = 2,
        .rdi = TEST_GPA,
        .rsi = LOW_EXPECTED,
        .rcx = g->nr_pages,
        .rbp = g->nr_pages - 1,
        .rbx = LOW_CONTROL,
    };
    struct kvm_sregs sregs;

    if (ioctl(g->vcpu_fd, KVM_GET_SREGS, &sregs) < 0) {
        return -1;
    }
    sregs.cs = code;
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
    sregs.cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_PG;
    sregs.cr3 = LOW_PML4;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME | EFER_LMA;
    if (ioctl(g->vcpu_fd, KVM_SET_SREGS, &sregs) < 0) {
        return -1;
    }
    return ioctl(g->vcpu_fd, KVM_SET_REGS, &regs);
}

int kvm_guest_init(struct kvm_guest *g, void *memory, uint32_t nr_pages, char *why,
                   size_t why_len)
{
    int ret = 0;

    *g = (struct kvm_guest){.vm_fd = -1, .vcpu_fd = -1, .nr_pages = nr_pages};
    if (nr_pages == 0 || nr_pages > KVM_GUEST_PAGES_MAX || (nr_pages & (nr_pages - 1))) {
        snprintf(why, why_len, "%u pages: not a power of two up to %d", nr_pages,
                 KVM_GUEST_PAGES_MAX);
        return -EINVAL;
    }
    int kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm_fd < 0) {
        return complain(why, why_len, "cannot open /dev/kvm");
    }
    g->low =
        mmap(NULL, LOW_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (g->low == MAP_FAILED) {
        g->low = NULL;
        ret = complain(why, why_len, "cannot map the guest's own memory");
        goto out;
    }
    build_low_memory(g);
    g->vm_fd = ioctl(kvm_fd, KVM_CREATE_VM, 0);
    if (g->vm_fd < 0) {
        ret = complain(why, why_len, "KVM_CREATE_VM failed");
        goto out;
    }
    if (set_memory(g, 0, 0, g->low, LOW_SIZE) < 0 ||
        set_memory(g, 1, TEST_GPA, memory, (uint64_t)nr_pages * PAGE) < 0) {
        ret = complain(why, why_len, "KVM_SET_USER_MEMORY_REGION failed");
        goto out;
    }
    g->vcpu_fd = ioctl(g->vm_fd, KVM_CREATE_VCPU, 0);
    if (g->vcpu_fd < 0) {
        ret = complain(why, why_len, "KVM_CREATE_VCPU failed");
        goto out;
    }
    g->run_size = (size_t)ioctl(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
    g->run = mmap(NULL, g->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, g->vcpu_fd, 0);
    if (g->run == MAP_FAILED) {
        g->run = NULL;
        ret = complain(why, why_len, "cannot map the vCPU's state");
        goto out;
    }
    if (set_cpuid(kvm_fd, g->vcpu_fd) < 0 || set_registers(g) < 0) {
        ret = complain(why, why_len, "cannot set the vCPU's registers");
    }
out:
    close(kvm_fd);
    if (ret < 0) {
        kvm_guest_deinit(g);
    }
    return ret;
}

void kvm_guest_deinit(struct kvm_guest *g)
{
    if (g->run) {
        munmap(g->run, g->run_size);
    }
    if (g->vcpu_fd >= 0) {
        close(g->vcpu_fd);
    }
    if (g->vm_fd >= 0) {
        close(g->vm_fd);
    }
    if (g->low) {
        munmap(g->low, LOW_SIZE);
    }
    *g = (struct kvm_guest){.vm_fd = -1, .vcpu_fd = -1};
}

/* Interrupts KVM_RUN; the handler has nothing to do. */
static void on_kick(int signo)
{
    (void)signo;
}

static void *run_vcpu(void *opaque)
{
    struct kvm_guest *g = opaque;
    int reason;

    for (;;) {
        if (ioctl(g->vcpu_fd, KVM_RUN, 0) < 0) {
            if (errno == EINTR && !g->run->immediate_exit) {
                continue;
            }
            reason = -errno;
            break;
        }
        reason = (int)g->run->exit_reason;
        if (reason != KVM_EXIT_INTR) {
            break;
        }
    }
    g->exit_reason = reason;
    atomic_store(&g->ended, 1);
    return NULL;
}

int kvm_guest_start(struct kvm_guest *g)
{
    struct sigaction kick = {.sa_handler = on_kick};

    sigaction(SIGUSR1, &kick, NULL);
    return -pthread_create(&g->thread, NULL, run_vcpu, g);
}

bool kvm_guest_join(struct kvm_guest *g, int timeout_ms)
{
    int64_t deadline = monotonic_ms() + timeout_ms;

    while (!atomic_load(&g->ended)) {
        if (monotonic_ms() >= deadline) {
            return false;
        }
        sleep_ms(1);
    }
    pthread_join(g->thread, NULL);
    return true;
}

bool kvm_guest_halted(const struct kvm_guest *g)
{
    return g->exit_reason == KVM_EXIT_HLT;
}

bool kvm_guest_usable(char *why, size_t why_len)
{
    enum { PROBE_PAGES = 4, PROBE_MS = 10000 };
    struct kvm_guest g;
    bool usable = false;
    uint8_t *memory = mmap(NULL, PROBE_PAGES * PAGE, PROT_READ | PROT_WRITE,
                           MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED) {
        complain(why, why_len, "cannot map memory for a probe");
        return false;
    }
    if (kvm_guest_init(&g, memory, PROBE_PAGES, why, why_len) == 0) {
        g.control->stop = 1;
        int ret = kvm_guest_start(&g);
        if (ret < 0) {
            snprintf(why, why_len, "cannot start the vCPU thread: %s", strerror(-ret));
        } else if (!kvm_guest_join(&g, PROBE_MS)) {
            snprintf(why, why_len, "a guest of a few instructions did not end in %d s",
                     PROBE_MS / 1000);
            g.run->immediate_exit = 1;
            pthread_kill(g.thread, SIGUSR1);
            pthread_join(g.thread, NULL);
        } else if (!kvm_guest_halted(&g) || g.control->passes != 1) {
            snprintf(why, why_len, "a guest of a few instructions ended with KVM exit %d",
                     g.exit_reason);
        } else {
            usable = true;
        }
        kvm_guest_deinit(&g);
    }
    munmap(memory, PROBE_PAGES * PAGE);
    return usable;
}
