/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the kernel does with write protection, zapped page-table entries and punched
 * holes of registered memory: the facts that eviction and access tracking stand on.
 * None of our own code runs here.
 */
#include "unit.h"

#include "uapi.h"
#include "uffd_fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { NR_PAGES = 16 };

static void write_protected_write_waits_and_reads_go_on(void **state)
{
    struct uffd_memory m;
    struct toucher t;
    (void)state;

    uffd_memory_init(&m, NR_PAGES, 0);
    uffd_fill(&m, 1, 0x10);
    assert_int_equal(uffd_write_protect(m.uffd, m.map + PAGE, PAGE, true), 0);
    assert_int_equal(m.map[PAGE], 0x10);
    toucher_write(&t, m.map + PAGE, 0x20);
    uint64_t flags = uffd_expect_fault(&m, 1);
    assert_true(flags & UFFD_PAGEFAULT_FLAG_WP);
    toucher_expect_blocked(&t);
    assert_int_equal(m.map[PAGE], 0x10);
    assert_int_equal(uffd_write_protect(m.uffd, m.map + PAGE, PAGE, false), 0);
    toucher_join(&t);
    assert_int_equal(m.map[PAGE], 0x20);
    uffd_memory_deinit(&m);
}

/*
 * The service thread zaps page-table entries to learn what is in use.  A zap in
 * the middle of an eviction must not lift the write protection: the next write
 * has to wait, it may never go through unseen.
 */
static void write_protection_survives_a_zap(void **state)
{
    struct uffd_memory m;
    struct toucher t;
    (void)state;

    uffd_memory_init(&m, NR_PAGES, 0);
    uffd_fill(&m, 1, 0x10);
    assert_int_equal(uffd_write_protect(m.uffd, m.map + PAGE, PAGE, true), 0);
    assert_return_code(madvise(m.map, NR_PAGES * PAGE, MADV_DONTNEED), errno);
    toucher_write(&t, m.map + PAGE, 0x20);
    uint64_t flags = uffd_expect_fault(&m, 1);
    assert_true(flags & UFFD_PAGEFAULT_FLAG_WP);
    toucher_expect_blocked(&t);

    uint8_t byte;
    assert_int_equal(pread(m.memfd, &byte, 1, PAGE), 1);
    assert_int_equal(byte, 0x10); /* nothing got past the protection */
    assert_int_equal(uffd_write_protect(m.uffd, m.map + PAGE, PAGE, false), 0);
    toucher_join(&t);
    assert_int_equal(m.map[PAGE], 0x20);
    uffd_memory_deinit(&m);
}

/* As above, with a read in between that maps the page again. */
static void write_protection_survives_a_zap_and_a_read(void **state)
{
    struct uffd_memory m;
    struct toucher t;
    (void)state;

    uffd_memory_init(&m, NR_PAGES, 0);
    uffd_fill(&m, 1, 0x10);
    assert_int_equal(uffd_write_protect(m.uffd, m.map + PAGE, PAGE, true), 0);
    assert_return_code(madvise(m.map, NR_PAGES * PAGE, MADV_DONTNEED), errno);
    toucher_read(&t, m.map + PAGE);
    toucher_join(&t);
    assert_int_equal(t.value, 0x10);
    toucher_write(&t, m.map + PAGE, 0x20);
    uint64_t flags = uffd_expect_fault(&m, 1);
    assert_true(flags & UFFD_PAGEFAULT_FLAG_WP);
    toucher_expect_blocked(&t);
    assert_int_equal(uffd_write_protect(m.uffd, m.map + PAGE, PAGE, false), 0);
    toucher_join(&t);
    uffd_memory_deinit(&m);
}

/* A page whose entry was zapped before the write protection came is protected too. */
static void write_protection_of_a_zapped_page_holds(void **state)
{
    struct uffd_memory m;
    struct toucher t;
    (void)state;

    uffd_memory_init(&m, NR_PAGES, 0);
    uffd_fill(&m, 1, 0x10);
    assert_return_code(madvise(m.map, NR_PAGES * PAGE, MADV_DONTNEED), errno);
    assert_int_equal(uffd_write_protect(m.uffd, m.map + PAGE, PAGE, true), 0);
    toucher_write(&t, m.map + PAGE, 0x20);
    uint64_t flags = uffd_expect_fault(&m, 1);
    assert_true(flags & UFFD_PAGEFAULT_FLAG_WP);
    toucher_expect_blocked(&t);
    assert_int_equal(uffd_write_protect(m.uffd, m.map + PAGE, PAGE, false), 0);
    toucher_join(&t);
    uffd_memory_deinit(&m);
}

static void zap_keeps_the_data_and_sends_nothing(void **state)
{
    struct uffd_memory m;
    struct toucher t;
    (void)state;

    uffd_memory_init(&m, NR_PAGES, 0);
    for (size_t pfn = 0; pfn < NR_PAGES; pfn++) {
        uffd_fill(&m, pfn, (uint8_t)(pfn + 1));
    }
    assert_return_code(madvise(m.map, NR_PAGES * PAGE, MADV_DONTNEED), errno);
    for (size_t pfn = 0; pfn < NR_PAGES; pfn++) {
        toucher_read(&t, m.map + pfn * PAGE);
        toucher_join(&t);
        assert_int_equal(t.value, pfn + 1);
    }
    uffd_expect_silence(m.uffd);
    uffd_memory_deinit(&m);
}

static void after_the_punch_a_touch_is_missing_and_copy_clears_the_marker(void **state)
{
    struct uffd_memory m;
    struct toucher t;
    (void)state;

    uffd_memory_init(&m, NR_PAGES, 0);
    uffd_fill(&m, 1, 0x10);
    assert_int_equal(uffd_write_protect(m.uffd, m.map + PAGE, PAGE, true), 0);
    assert_int_equal(punch_hole(m.memfd, PAGE, PAGE), 0);
    toucher_write(&t, m.map + PAGE, 0x20);
    uint64_t flags = uffd_expect_fault(&m, 1);
    assert_false(flags & UFFD_PAGEFAULT_FLAG_WP);
    uffd_fill(&m, 1, 0x10);
    toucher_join(&t); /* no second, write-protect fault */
    uffd_expect_silence(m.uffd);
    assert_int_equal(m.map[PAGE], 0x20);
    assert_int_equal(m.map[PAGE + 1], 0x10);
    uffd_memory_deinit(&m);
}

static void zeropage_clears_the_marker_too(void **state)
{
    struct uffd_memory m;
    struct toucher t;
    (void)state;

    uffd_memory_init(&m, NR_PAGES, 0);
    uffd_fill(&m, 1, 0);
    assert_int_equal(uffd_write_protect(m.uffd, m.map + PAGE, PAGE, true), 0);
    assert_int_equal(punch_hole(m.memfd, PAGE, PAGE), 0);
    toucher_write(&t, m.map + PAGE, 0x20);
    uffd_expect_fault(&m, 1);
    assert_int_equal(uffd_zeropage(m.uffd, m.map + PAGE, PAGE), 0);
    toucher_join(&t);
    uffd_expect_silence(m.uffd);
    assert_int_equal(m.map[PAGE], 0x20);
    assert_int_equal(m.map[PAGE + 1], 0);
    uffd_memory_deinit(&m);
}

static void punch_does_not_wake_a_writer_copy_does(void **state)
{
    struct uffd_memory m;
    struct toucher t;
    (void)state;

    uffd_memory_init(&m, NR_PAGES, 0);
    uffd_fill(&m, 1, 0x10);
    assert_int_equal(uffd_write_protect(m.uffd, m.map + PAGE, PAGE, true), 0);
    toucher_write(&t, m.map + PAGE, 0x20);
    assert_true(uffd_expect_fault(&m, 1) & UFFD_PAGEFAULT_FLAG_WP);
    assert_int_equal(punch_hole(m.memfd, PAGE, PAGE), 0);
    toucher_expect_blocked(&t);
    uffd_expect_silence(m.uffd); /* and it does not fault anew either */
    uffd_fill(&m, 1, 0x10);
    toucher_join(&t);
    assert_int_equal(m.map[PAGE], 0x20);
    assert_int_equal(m.map[PAGE + 1], 0x10);
    uffd_memory_deinit(&m);
}

/* EEXIST wakes nobody: whoever gets it has to. */
static void eexist_does_not_wake_the_waiter(void **state)
{
    struct uffd_memory m;
    struct toucher t;
    uint8_t content[PAGE] = {7};
    (void)state;

    uffd_memory_init(&m, NR_PAGES, 0);
    toucher_read(&t, m.map);
    uffd_expect_fault(&m, 0);
    assert_int_equal(
        uffd_copy(m.uffd, m.map, content, PAGE, UFFDIO_COPY_MODE_DONTWAKE, NULL), 0);
    toucher_expect_blocked(&t);
    assert_int_equal(uffd_copy(m.uffd, m.map, content, PAGE, 0, NULL), -EEXIST);
    toucher_expect_blocked(&t);
    assert_int_equal(uffd_wake(m.uffd, m.map, PAGE), 0);
    toucher_join(&t);
    assert_int_equal(t.value, 7);
    uffd_memory_deinit(&m);
}

static void pread_of_a_hole_leaves_it_a_hole(void **state)
{
    struct uffd_memory m;
    uint8_t content[PAGE];
    (void)state;

    uffd_memory_init(&m, NR_PAGES, 0);
    memset(content, 1, sizeof(content));
    assert_int_equal(pread(m.memfd, content, PAGE, 0), PAGE);
    assert_int_equal(content[0], 0);
    assert_int_equal(lseek(m.memfd, 0, SEEK_DATA), -1);
    assert_int_equal(errno, ENXIO);
    /* A mapping that is not registered does allocate, and the guest then sees zeros. */
    volatile uint8_t *other =
        mmap(NULL, NR_PAGES * PAGE, PROT_READ, MAP_SHARED, m.memfd, 0);
    assert_ptr_not_equal(other, MAP_FAILED);
    assert_int_equal(other[0], 0);
    assert_int_equal(lseek(m.memfd, 0, SEEK_DATA), 0);
    munmap((void *)other, NR_PAGES * PAGE);
    uffd_memory_deinit(&m);
}

/*
 * How the manager learns what is in use: another process, without rights over this
 * one, asks through a pagemap descriptor that was passed to it.  Registered memory
 * is not mapped around a fault, so exactly the touched page shows.
 */
static void scan_by_another_user_shows_what_was_touched_after_a_zap(void **state)
{
    enum { TOUCHED = 5, OTHER_USER = 65534, NO_SCAN = 77 };
    struct uffd_memory m;
    struct toucher t;
    (void)state;

    uffd_memory_init(&m, NR_PAGES, 0);
    for (size_t pfn = 0; pfn < NR_PAGES; pfn++) {
        uffd_fill(&m, pfn, 1);
    }
    assert_return_code(madvise(m.map, NR_PAGES * PAGE, MADV_DONTNEED), errno);
    toucher_read(&t, m.map + TOUCHED * PAGE);
    toucher_join(&t);
    int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    assert_true(pagemap >= 0);
    pid_t scanner = fork_bound();
    if (scanner == 0) {
        struct page_region found[NR_PAGES];
        struct pm_scan_arg scan = {
            .size = sizeof(scan),
            .start = (uintptr_t)m.map,
            .end = (uintptr_t)m.map + NR_PAGES * PAGE,
            .vec = (uintptr_t)found,
            .vec_len = NR_PAGES,
            .category_mask = PAGE_IS_PRESENT,
            .return_mask = PAGE_IS_PRESENT,
        };
        if (setresuid(OTHER_USER, OTHER_USER, OTHER_USER) < 0) {
            /* not root: then it is the same user, which is enough of another process */
        }
        int n = ioctl(pagemap, PAGEMAP_SCAN, &scan);
        if (n < 0) {
            _exit(errno == ENOTTY ? NO_SCAN : 2);
        }
        _exit(n == 1 && found[0].start == (uintptr_t)m.map + TOUCHED * PAGE &&
                      found[0].end == found[0].start + PAGE
                  ? 0
                  : 1);
    }
    int status = join_child(scanner);
    close(pagemap);
    uffd_memory_deinit(&m);
    if (status == NO_SCAN) {
        print_message("skip: this kernel has no PAGEMAP_SCAN\n");
        skip();
    }
    assert_int_equal(status, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(write_protected_write_waits_and_reads_go_on),
        cmocka_unit_test(write_protection_survives_a_zap),
        cmocka_unit_test(write_protection_survives_a_zap_and_a_read),
        cmocka_unit_test(write_protection_of_a_zapped_page_holds),
        cmocka_unit_test(zap_keeps_the_data_and_sends_nothing),
        cmocka_unit_test(after_the_punch_a_touch_is_missing_and_copy_clears_the_marker),
        cmocka_unit_test(zeropage_clears_the_marker_too),
        cmocka_unit_test(punch_does_not_wake_a_writer_copy_does),
        cmocka_unit_test(eexist_does_not_wake_the_waiter),
        cmocka_unit_test(pread_of_a_hole_leaves_it_a_hole),
        cmocka_unit_test(scan_by_another_user_shows_what_was_touched_after_a_zap),
    };

    return cmocka_run_group_tests_name("uffd_protect", tests, end_process_when_hung,
                                       NULL);
}
