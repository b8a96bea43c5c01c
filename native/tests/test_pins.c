/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Transfers in flight: pages that the kernel has pinned for a device are written to past
 * any write protection, and must not be evicted meanwhile.
 *
 * The device is an io_uring with a registered buffer in guest memory: the kernel holds its
 * pages, and a read into it goes to them directly.  The stand-in VMM counts them as QEMU
 * does.  Each protection has its control, in which the same test sees bytes lost.
 */
#include "unit.h"

#include "manager_process.h"
#include "standin.h"
#include "uffd_fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    RAM = 16 << 20,
    PAGES = RAM / PAGE,
    BUFFER_PAGES = 16,
    DEVICES = 2, /* each with pages of its own, at the beginning of RAM */
    DEVICE_PAGES = 256,
    DISK_PAGES = 64,
    END_MS = 120000
};

static const char *const limited[] = {"--limit", "4M", NULL};

struct setup {
    int milliseconds; /* of random transfers; 0: one that waits for evictions */
    bool forget;      /* pins are never taken back */
    bool many;        /* more pins than the limit has pages, and no transfer */
};

/* ---- the VMM ------------------------------------------------------------------ */

struct device {
    struct vmm *v;
    struct standin *s;
    struct io_uring ring;
    int disk;
    unsigned index;
    unsigned seed;
    int milliseconds;
    _Atomic bool *stop;
};

static _Atomic uint32_t *pins_of(struct standin *s)
{
    return (_Atomic uint32_t *)(void *)((char *)s->table + s->table->pins_offset);
}

static void count_pins(struct standin *s, uint64_t pfn, uint64_t n, bool up)
{
    for (uint64_t i = pfn; i < pfn + n; i++) {
        if (up) {
            atomic_fetch_add(&pins_of(s)[i], 1);
        } else {
            atomic_fetch_sub(&pins_of(s)[i], 1);
        }
    }
    atomic_thread_fence(memory_order_seq_cst);
}

static void stamp(uint64_t *page, uint64_t value)
{
    for (unsigned i = 0; i < PAGE / sizeof(*page); i++) {
        page[i] = value * 0x9e3779b97f4a7c15ULL + i;
    }
}

static bool stamped(const uint64_t *page, uint64_t value)
{
    uint64_t want[PAGE / sizeof(*page)];

    stamp(want, value);
    return memcmp(want, page, PAGE) == 0;
}

static uint64_t *guest_page(struct standin *s, uint64_t pfn)
{
    return (uint64_t *)(void *)(s->base + pfn * PAGE);
}

/* Touches what is not the devices', often enough to push everything else out. */
static void sweep(struct standin *s, struct vmm *v)
{
    for (uint64_t pfn = (uint64_t)DEVICES * DEVICE_PAGES; pfn < PAGES; pfn++) {
        if (!stamped(guest_page(s, pfn), pfn)) {
            atomic_fetch_add(&v->report->wrong, 1);
        }
    }
}

static uint64_t resident_bytes(struct standin *s)
{
    struct stat st;

    return fstat(s->memfd, &st) ? UINT64_MAX : (uint64_t)st.st_blocks * 512;
}

/* The device takes hold of the pages; they can be written to from now on. */
static void dma_map(struct device *d, uint64_t pfn, unsigned n)
{
    struct iovec iov = {.iov_base = guest_page(d->s, pfn), .iov_len = (size_t)n * PAGE};
    int ret;

    count_pins(d->s, pfn, n, true);
    ret = io_uring_register_buffers(&d->ring, &iov, 1);
    if (ret) {
        vmm_fail(d->v, "cannot register a buffer with io_uring: %s", strerror(-ret));
    }
}

static void dma_read(struct device *d, uint64_t pfn, unsigned n, uint64_t disk_page)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&d->ring);
    struct io_uring_cqe *cqe;
    int ret;

    io_uring_prep_read_fixed(sqe, d->disk, guest_page(d->s, pfn), n * PAGE,
                             disk_page * PAGE, 0);
    ret = io_uring_submit_and_wait(&d->ring, 1);
    if (ret < 0 || io_uring_wait_cqe(&d->ring, &cqe) < 0) {
        vmm_fail(d->v, "io_uring: %s", strerror(-ret));
    }
    if (cqe->res != (int)(n * PAGE)) {
        vmm_fail(d->v, "a read of %u bytes gave %d", n * PAGE, cqe->res);
    }
    io_uring_cqe_seen(&d->ring, cqe);
}

static void dma_unmap(struct device *d, uint64_t pfn, unsigned n, bool forget)
{
    io_uring_unregister_buffers(&d->ring);
    if (!forget) {
        count_pins(d->s, pfn, n, false);
    }
}

static void check_read(struct device *d, uint64_t pfn, unsigned n, uint64_t disk_page)
{
    for (unsigned i = 0; i < n; i++) {
        if (!stamped(guest_page(d->s, pfn + i), 1000000 + disk_page + i)) {
            atomic_fetch_add(&d->v->report->wrong, 1);
        }
    }
}

/* A transfer that takes so long that everything else is evicted meanwhile. */
static void slow_transfer(struct device *d, const struct setup *setup)
{
    uint64_t resident = 0;

    dma_map(d, 32, BUFFER_PAGES);
    sweep(d->s, d->v);
    sweep(d->s, d->v);
    for (unsigned i = 0; i < BUFFER_PAGES; i++) {
        unsigned state = standin_page_state(d->s, 32 + i);

        resident += state == UFFDMM_PAGE_RESIDENT || state == UFFDMM_PAGE_CLEAN;
    }
    atomic_store(&d->v->report->user[0], resident);
    dma_read(d, 32, BUFFER_PAGES, 5);
    dma_unmap(d, 32, BUFFER_PAGES, setup->forget);
    check_read(d, 32, BUFFER_PAGES, 5);

    /* and then they go like all others, with what came from the disk */
    sweep(d->s, d->v);
    sweep(d->s, d->v);
    resident = 0;
    for (unsigned i = 0; i < BUFFER_PAGES; i++) {
        resident += standin_page_state(d->s, 32 + i) != UFFDMM_PAGE_STORED;
    }
    atomic_store(&d->v->report->user[1], resident);
    check_read(d, 32, BUFFER_PAGES, 5);
}

/* Requests that wait hold more than the limit, and each needs all of its pages. */
static void hold_more_than_the_limit(struct vmm *v, struct standin *s)
{
    const uint64_t n = (8 << 20) / PAGE;

    count_pins(s, 0, n, true);
    for (uint64_t pfn = 0; pfn < n; pfn++) {
        if (!stamped(guest_page(s, pfn), pfn)) {
            atomic_fetch_add(&v->report->wrong, 1);
        }
    }
    atomic_store(&v->report->user[0], resident_bytes(s));
    count_pins(s, 0, n, false);
    for (int i = 0; i < 200 && resident_bytes(s) > (4 << 20); i++) {
        sleep_ms(20);
    }
    atomic_store(&v->report->user[1], resident_bytes(s));
    sweep(s, v);
}

/* One transfer after the other, each into a few pages of the device's own. */
static void *device_thread(void *opaque)
{
    struct device *d = opaque;
    int64_t until = monotonic_ms() + d->milliseconds;

    while (monotonic_ms() < until) {
        unsigned n = 1 + (unsigned)rand_r(&d->seed) % BUFFER_PAGES;
        uint64_t pfn = (uint64_t)d->index * DEVICE_PAGES +
                       (unsigned)rand_r(&d->seed) % (DEVICE_PAGES - BUFFER_PAGES);
        uint64_t disk_page = (unsigned)rand_r(&d->seed) % (DISK_PAGES - BUFFER_PAGES);

        dma_map(d, pfn, n);
        usleep((useconds_t)rand_r(&d->seed) % 8000);
        dma_read(d, pfn, n, disk_page);
        dma_unmap(d, pfn, n, false);
        check_read(d, pfn, n, disk_page);
        atomic_fetch_add(&d->v->report->steps, 1);
    }
    return NULL;
}

static void *guest_thread(void *opaque)
{
    struct device *d = opaque;

    while (!atomic_load(d->stop)) {
        sweep(d->s, d->v);
    }
    return NULL;
}

static int make_disk(struct vmm *v)
{
    char path[] = "/tmp/uffdmm-pins-XXXXXX";
    uint64_t page[PAGE / sizeof(uint64_t)];
    int fd = mkstemp(path);

    if (fd < 0 || unlink(path) < 0) {
        vmm_fail(v, "cannot create %s: %s", path, strerror(errno));
    }
    for (uint64_t i = 0; i < DISK_PAGES; i++) {
        stamp(page, 1000000 + i);
        if (pwrite(fd, page, PAGE, (off_t)(i * PAGE)) != PAGE) {
            vmm_fail(v, "cannot write %s: %s", path, strerror(errno));
        }
    }
    return fd;
}

static void vmm_body(struct vmm *v, const void *arg)
{
    const struct setup *setup = arg;
    struct device devices[DEVICES];
    pthread_t threads[DEVICES + 1];
    struct standin s;
    _Atomic bool stop = false;
    int disk;

    vmm_check(v, &s, standin_open(&s, v->socket, "vm", RAM, 1));
    disk = make_disk(v);
    for (uint64_t pfn = 0; pfn < PAGES; pfn++) {
        stamp(guest_page(&s, pfn), pfn);
    }
    for (unsigned i = 0; i < DEVICES; i++) {
        devices[i] = (struct device){.v = v,
                                     .s = &s,
                                     .disk = disk,
                                     .index = i,
                                     .seed = i + 1,
                                     .milliseconds = setup->milliseconds,
                                     .stop = &stop};
        if (io_uring_queue_init(4, &devices[i].ring, 0) < 0) {
            vmm_fail(v, "no io_uring");
        }
    }
    if (setup->many) {
        hold_more_than_the_limit(v, &s);
    } else if (!setup->milliseconds) {
        slow_transfer(&devices[0], setup);
    } else {
        VMM_EXPECT(v, !pthread_create(&threads[DEVICES], NULL, guest_thread, devices));
        for (unsigned i = 0; i < DEVICES; i++) {
            VMM_EXPECT(v, !pthread_create(&threads[i], NULL, device_thread, &devices[i]));
        }
        for (unsigned i = 0; i < DEVICES; i++) {
            pthread_join(threads[i], NULL);
        }
        atomic_store(&stop, true);
        pthread_join(threads[DEVICES], NULL);
    }
    for (unsigned i = 0; i < DEVICES; i++) {
        io_uring_queue_exit(&devices[i].ring);
    }
    vmm_set_phase(v, 1);
    vmm_await_command(v, 1);
    if (standin_detach(&s) < 0) {
        vmm_fail(v, "detach failed: %s", s.error);
    }
}

/* ---- the test's side ------------------------------------------------------------ */

struct outcome {
    struct uffdmm_stats stats;
    uint64_t wrong; /* pages */
    uint64_t steps;
    uint64_t stayed; /* pages of the buffer in memory before the transfer, and */
    uint64_t kept;   /* after it was unmapped and everything else had been used */
};

static struct outcome run(const char *variable, const struct setup *setup)
{
    struct manager m;
    struct vmm v;
    struct outcome o;

    manager_start(&m, variable, limited);
    vmm_start(&v, m.socket, vmm_body, setup);
    vmm_await_phase(&v, 1, END_MS);
    assert_int_equal(control_stats(m.socket, "vm", &o.stats), 0);
    o.wrong = atomic_load(&v.report->wrong);
    o.steps = atomic_load(&v.report->steps);
    o.stayed = atomic_load(&v.report->user[0]);
    o.kept = atomic_load(&v.report->user[1]);
    print_message("transfers=%llu evicted=%llu pinned=%llu wrong=%llu\n",
                  (unsigned long long)o.steps, (unsigned long long)o.stats.evicted,
                  (unsigned long long)o.stats.pinned, (unsigned long long)o.wrong);
    vmm_command(&v, 1);
    vmm_join(&v, END_MS);
    manager_stop(&m);
    assert_true(o.stats.evicted > PAGES);
    return o;
}

static void pinned_pages_stay_until_the_transfer_has_ended(void **state)
{
    (void)state;
    struct outcome o = run("UFFDMM_MANAGER", &(struct setup){0});

    assert_int_equal(o.stayed, BUFFER_PAGES);
    assert_int_equal(o.wrong, 0);
    assert_true(o.stats.pinned >= BUFFER_PAGES);
    assert_int_equal(o.kept, 0);
}

static void pins_that_are_never_taken_back_harm_nothing_else(void **state)
{
    (void)state;
    struct outcome o = run("UFFDMM_MANAGER", &(struct setup){.forget = true});

    assert_int_equal(o.wrong, 0);
    assert_int_equal(o.kept, BUFFER_PAGES);
}

/* The guest does not wait for ever, and the limit holds again afterwards. */
static void pins_above_the_limit_pass_it_while_they_last(void **state)
{
    (void)state;
    struct outcome o = run("UFFDMM_MANAGER", &(struct setup){.many = true});

    assert_int_equal(o.wrong, 0);
    assert_true(o.stayed >= 8 << 20);
    assert_true(o.kept <= 4 << 20);
}

/* The control: an evictor that does not look at the pins. */
static void transfers_are_lost_when_pins_are_ignored(void **state)
{
    (void)state;
    setenv("UFFDMM_TEST_NO_PINS", "1", 1);
    struct outcome o = run("UFFDMM_MANAGER_HOOKS", &(struct setup){0});
    unsetenv("UFFDMM_TEST_NO_PINS");

    assert_int_equal(o.stayed, 0);
    assert_int_equal(o.stats.pinned, 0);
    assert_true(o.wrong > 0);
}

static void transfers_that_race_with_evictions_lose_nothing(void **state)
{
    (void)state;
    struct outcome o = run("UFFDMM_MANAGER", &(struct setup){.milliseconds = 4000});

    assert_int_equal(o.wrong, 0);
    assert_true(o.steps > 100);
    assert_true(o.stats.pinned > 0);
}

static void transfers_that_meet_a_slow_evictor_lose_nothing(void **state)
{
    (void)state;
    setenv("UFFDMM_TEST_PROTECT_DELAY_US", "2000", 1);
    struct outcome o = run("UFFDMM_MANAGER_HOOKS", &(struct setup){.milliseconds = 4000});
    unsetenv("UFFDMM_TEST_PROTECT_DELAY_US");

    assert_int_equal(o.wrong, 0);
    assert_true(o.stats.pinned > 0);
}

/* The control of the order: an evictor that looks before it protects, and not after. */
static void transfers_are_lost_when_the_look_comes_too_early(void **state)
{
    (void)state;
    setenv("UFFDMM_TEST_PROTECT_DELAY_US", "2000", 1);
    setenv("UFFDMM_TEST_PINS_EARLY", "1", 1);
    struct outcome o = run("UFFDMM_MANAGER_HOOKS", &(struct setup){.milliseconds = 4000});
    unsetenv("UFFDMM_TEST_PINS_EARLY");
    unsetenv("UFFDMM_TEST_PROTECT_DELAY_US");

    assert_true(o.wrong > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pinned_pages_stay_until_the_transfer_has_ended),
        cmocka_unit_test(pins_that_are_never_taken_back_harm_nothing_else),
        cmocka_unit_test(pins_above_the_limit_pass_it_while_they_last),
        cmocka_unit_test(transfers_are_lost_when_pins_are_ignored),
        cmocka_unit_test(transfers_that_race_with_evictions_lose_nothing),
        cmocka_unit_test(transfers_that_meet_a_slow_evictor_lose_nothing),
        cmocka_unit_test(transfers_are_lost_when_the_look_comes_too_early),
    };

    return cmocka_run_group_tests_name("pins", tests, end_process_when_hung, NULL);
}
