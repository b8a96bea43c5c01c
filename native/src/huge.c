/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Theory of operation.  Several pages of a VM can be on their way in at a time, each
 * read for milliseconds.  Pages of 4 KiB may pass the limit by those few; 2 MiB each
 * would show, so a huge page takes its room before it is read.
 *
 * The limit says nothing about how many huge pages the host has.  When it has none
 * left, what this VM has in memory is all that it can have for now: that becomes its
 * limit, so that the evictor makes room in the usual way, and it rises again slowly as
 * long as pages are to be had.  The guest waits meanwhile, as it does at its limit.
 */
#include "huge.h"

#include <errno.h>

#include "clock.h"
#include "evict.h"
#include "log.h"
#include "vm.h"

/* Rise of the host's limit for each page that comes in: sixteen pages find out about one. */
#define HOST_LIMIT_STEP (HUGE_PAGE_UNITS / 16)

bool huge_claim_room(struct vm *vm)
{
    atomic_fetch_add(&vm->claimed, HUGE_PAGE_UNITS);
    if (vm_room(vm) < 0) {
        huge_release_room(vm);
        return false;
    }
    return true;
}

void huge_release_room(struct vm *vm)
{
    atomic_fetch_sub(&vm->claimed, HUGE_PAGE_UNITS);
}

static void host_has_pages(struct vm *vm)
{
    uint64_t host = atomic_load_explicit(&vm->host_limit, memory_order_relaxed);

    if (host == UINT64_MAX) {
        return;
    }
    host += HOST_LIMIT_STEP;
    atomic_store(&vm->host_limit, host < atomic_load(&vm->limit) ? host : UINT64_MAX);
}

static void host_has_none(struct vm *vm, const struct region *r)
{
    static uint64_t logged;
    int64_t have = atomic_load(&vm->resident) + atomic_load(&vm->arena_pages);

    atomic_store(&vm->host_limit, have > 0 ? (uint64_t)have : 0);
    evict_kick(vm);
    if (log_ratelimit(&logged, 10 * NSEC_PER_SEC)) {
        log_error(
            "region %s: the host has no huge page left (%lld MiB are in memory): the guest "
            "makes do with less than its limit; raise vm.nr_hugepages or lower the limit",
            r->name, (long long)(have >> (20 - PAGE_SHIFT_4K)));
    }
}

enum uffd_outcome huge_copy(struct shard *sh, uint64_t pfn, const void *src, size_t *done)
{
    struct region *r = sh->region;
    enum uffd_outcome out =
        uffd_copy(sh->uffd, page_addr(r, pfn), src, PAGE_SIZE_2M, done);

    if (out == UFFD_DONE) {
        host_has_pages(r->vm);
    } else if ((out == UFFD_ERROR && errno == ENOMEM) ||
               (out == UFFD_PRESENT &&
                !presence_of(&r->presence, pfn << PAGE_SHIFT_2M, PAGE_SIZE_2M))) {
        host_has_none(r->vm, r);
        out = UFFD_NO_PAGE;
    }
    return out;
}
