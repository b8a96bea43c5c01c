/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the kernel does with a userfaultfd over its life: the facts the manager's
 * design stands on.  None of our own code runs here.  A kernel on which one of
 * these fails is one on which guests could read wrong bytes.
 */
#include "unit.h"

#include "uffd_fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { NR_PAGES = 16 };

static void last_close_before_the_touch_reads_zeros(void **state)
{
    struct uffd_memory m;
    struct toucher t;
    (void)state;

    uffd_memory_init(&m, NR_PAGES, 0);
    uffd_fill(&m, 0, 0x5a);
    assert_int_equal(punch_hole(m.memfd, 0, PAGE), 0);
    close(m.uffd);
    m.uffd = -1;
    toucher_read(&t, m.map);
    toucher_join(&t);
    assert_int_equal(t.value, 0); /* 0x5a was evicted: this is the corruption */
    uffd_memory_deinit(&m);
}

static void last_close_while_a_thread_waits_reads_zeros(void **state)
{
    struct uffd_memory m;
    struct toucher t;
    (void)state;

    uffd_memory_init(&m, NR_PAGES, 0);
    toucher_read(&t, m.map);
    uffd_expect_fault(&m, 0);
    toucher_expect_blocked(&t);
    close(m.uffd);
    m.uffd = -1;
    toucher_join(&t);
    assert_int_equal(t.value, 0);
    uffd_memory_deinit(&m);
}

static void open_and_unserved_blocks_until_a_late_copy(void **state)
{
    struct uffd_memory m;
    struct toucher t;
    (void)state;

    uffd_memory_init(&m, NR_PAGES, 0);
    toucher_read(&t, m.map + 3 * PAGE + 17);
    toucher_expect_blocked(&t);
    uffd_fill(&m, 3, 0x77); /* without ever having read the message */
    toucher_join(&t);
    assert_int_equal(t.value, 0x77);
    uffd_memory_deinit(&m);
}

static void kept_duplicate_still_resolves(void **state)
{
    struct uffd_memory m;
    struct toucher t;
    (void)state;

    uffd_memory_init(&m, NR_PAGES, 0);
    int duplicate = fcntl(m.uffd, F_DUPFD_CLOEXEC, 0);
    assert_true(duplicate >= 0);
    close(m.uffd);
    m.uffd = duplicate;
    toucher_read(&t, m.map);
    toucher_expect_blocked(&t);
    uffd_expect_fault(&m, 0);
    uffd_fill(&m, 0, 0x33);
    toucher_join(&t);
    assert_int_equal(t.value, 0x33);
    uffd_memory_deinit(&m);
}

/* A manager in a process of its own reads the message and dies with it. */
static void message_of_a_dead_manager_returns_only_after_wake(void **state)
{
    struct uffd_memory m;
    struct toucher t;
    (void)state;

    uffd_memory_init(&m, NR_PAGES, 0);
    pid_t manager = fork_bound();
    if (manager == 0) {
        struct uffd_msg msg;
        _exit(uffd_next(m.uffd, &msg, GOES_ON_MS) == 1 ? 0 : 1);
    }
    toucher_read(&t, m.map + 5 * PAGE);
    assert_int_equal(join_child(manager), 0);

    toucher_expect_blocked(&t);
    uffd_expect_silence(m.uffd);
    assert_int_equal(uffd_wake(m.uffd, m.map, NR_PAGES * PAGE), 0);
    uffd_expect_fault(&m, 5);
    uffd_fill(&m, 5, 0x11);
    toucher_join(&t);
    assert_int_equal(t.value, 0x11);
    uffd_memory_deinit(&m);
}

static void wake_without_content_faults_again(void **state)
{
    struct uffd_memory m;
    struct toucher t;
    (void)state;

    uffd_memory_init(&m, NR_PAGES, 0);
    toucher_write(&t, m.map, 9);
    for (int i = 0; i < 3; i++) {
        uint64_t flags = uffd_expect_fault(&m, 0);
        assert_true(flags & UFFD_PAGEFAULT_FLAG_WRITE);
        assert_false(flags & UFFD_PAGEFAULT_FLAG_WP);
        assert_int_equal(uffd_wake(m.uffd, m.map, PAGE), 0);
    }
    uffd_fill(&m, 0, 0x40);
    toucher_join(&t);
    assert_int_equal(m.map[0], 9);
    assert_int_equal(m.map[1], 0x40);
    uffd_memory_deinit(&m);
}

static void message_names_the_thread(void **state)
{
    struct uffd_memory m;
    struct toucher t;
    struct uffd_msg msg;
    (void)state;

    uffd_memory_init(&m, NR_PAGES, 0);
    toucher_read(&t, m.map);
    assert_int_equal(uffd_next(m.uffd, &msg, GOES_ON_MS), 1);
    uffd_fill(&m, 0, 1);
    toucher_join(&t);
    assert_int_equal(msg.arg.pagefault.feat.ptid, t.tid);
    uffd_memory_deinit(&m);
}

static void copy_to_a_present_page_is_eexist_and_changes_nothing(void **state)
{
    struct uffd_memory m;
    uint8_t other[PAGE];
    int64_t copied;
    (void)state;

    uffd_memory_init(&m, NR_PAGES, 0);
    uffd_fill(&m, 2, 0x22);
    memset(other, 0x99, sizeof(other));
    assert_int_equal(uffd_copy(m.uffd, m.map + 2 * PAGE, other, PAGE, 0, &copied),
                     -EEXIST);
    assert_int_equal(copied, -EEXIST);
    assert_int_equal(m.map[2 * PAGE], 0x22);
    assert_int_equal(uffd_zeropage(m.uffd, m.map + 2 * PAGE, PAGE), -EEXIST);
    assert_int_equal(m.map[2 * PAGE], 0x22);
    uffd_memory_deinit(&m);
}

static void copy_over_a_present_page_is_partial(void **state)
{
    struct uffd_memory m;
    uint8_t content[4 * PAGE];
    int64_t copied;
    (void)state;

    uffd_memory_init(&m, NR_PAGES, 0);
    uffd_fill(&m, 2, 0x22);
    memset(content, 0x66, sizeof(content));
    /* Pages 0 and 1 go in, page 2 is there: EAGAIN, and `copy` tells how far it came. */
    assert_int_equal(uffd_copy(m.uffd, m.map, content, sizeof(content), 0, &copied),
                     -EAGAIN);
    assert_int_equal(copied, 2 * PAGE);
    assert_int_equal(m.map[PAGE], 0x66);
    assert_int_equal(m.map[2 * PAGE], 0x22);
    /* Page 3 was not touched: a read of it still faults. */
    struct toucher t;
    toucher_read(&t, m.map + 3 * PAGE);
    uffd_expect_fault(&m, 3);
    toucher_expect_blocked(&t);
    uffd_fill(&m, 3, 0x66);
    toucher_join(&t);
    uffd_memory_deinit(&m);
}

static long drop_first_page(void *arg)
{
    const struct uffd_memory *m = arg;

    return madvise(m->map, PAGE, MADV_REMOVE) < 0 ? -errno : 0;
}

/* We do not request EVENT_REMOVE ourselves: this is why, and how EAGAIN looks. */
static void copy_while_an_event_is_unread_is_eagain(void **state)
{
    struct uffd_memory m;
    struct toucher t;
    struct uffd_msg msg;
    uint8_t content[PAGE] = {1};
    int64_t copied;
    (void)state;

    uffd_memory_init(&m, NR_PAGES, UFFD_FEATURE_EVENT_REMOVE);
    uffd_fill(&m, 0, 1);
    toucher_call(&t, drop_first_page, &m);
    struct pollfd p = {.fd = m.uffd, .events = POLLIN};
    assert_int_equal(poll(&p, 1, GOES_ON_MS), 1);
    assert_int_equal(uffd_copy(m.uffd, m.map + PAGE, content, PAGE, 0, &copied), -EAGAIN);
    assert_int_equal(copied, -EAGAIN);

    assert_int_equal(uffd_next(m.uffd, &msg, GOES_ON_MS), 1);
    assert_int_equal(msg.event, UFFD_EVENT_REMOVE);
    toucher_join(&t);
    assert_int_equal(t.result, 0);
    assert_int_equal(uffd_copy(m.uffd, m.map + PAGE, content, PAGE, 0, NULL), 0);
    uffd_memory_deinit(&m);
}

static void punch_sends_no_event(void **state)
{
    struct uffd_memory m;
    (void)state;

    uffd_memory_init(&m, NR_PAGES, UFFD_FEATURE_EVENT_REMOVE);
    uffd_fill(&m, 0, 1);
    assert_int_equal(punch_hole(m.memfd, 0, PAGE), 0);
    uffd_expect_silence(m.uffd);
    uffd_memory_deinit(&m);
}

static int send_uffd(int sock, int uffd, uint8_t *map)
{
    char control[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8))) = {0};
    struct iovec iov = {.iov_base = &map, .iov_len = sizeof(map)};
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = control,
                         .msg_controllen = sizeof(control)};
    struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);

    cmsg->cmsg_level = SOL_SOCKET;
    cmsg->cmsg_type = SCM_RIGHTS;
    cmsg->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(cmsg), &uffd, sizeof(uffd));
    return sendmsg(sock, &msg, 0) < 0 ? -errno : 0;
}

static int receive_uffd(int sock, uint8_t **map)
{
    char control[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8)));
    struct iovec iov = {.iov_base = map, .iov_len = sizeof(*map)};
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = control,
                         .msg_controllen = sizeof(control)};
    int fd;

    if (recvmsg(sock, &msg, 0) != sizeof(*map) || !CMSG_FIRSTHDR(&msg)) {
        return -EPIPE;
    }
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(fd));
    return fd;
}

static void death_of_the_vmm_is_esrch_without_pollhup(void **state)
{
    int sock[2];
    uint8_t *map;
    uint8_t content[PAGE] = {1};
    struct uffd_msg msg;
    (void)state;

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sock), 0);
    pid_t vmm = fork_bound();
    if (vmm == 0) {
        struct uffd_memory m;
        uffd_memory_init(&m, NR_PAGES, 0);
        send_uffd(sock[1], m.uffd, m.map);
        volatile uint8_t *page = m.map;
        _exit(*page); /* waits here until it is killed */
    }
    close(sock[1]);
    int uffd = receive_uffd(sock[0], &map);
    assert_true(uffd >= 0);
    assert_int_equal(uffd_next(uffd, &msg, GOES_ON_MS), 1);
    kill(vmm, SIGKILL);
    assert_int_equal(waitpid(vmm, NULL, 0), vmm);

    struct pollfd p = {.fd = uffd, .events = POLLIN};
    assert_int_equal(poll(&p, 1, BLOCKED_MS), 0);
    assert_int_equal(read(uffd, &msg, sizeof(msg)), -1);
    assert_int_equal(errno, EAGAIN);
    assert_int_equal(uffd_copy(uffd, map, content, PAGE, 0, NULL), -ESRCH);
    assert_int_equal(uffd_write_protect(uffd, map, PAGE, true), -ESRCH);
    close(uffd);
    close(sock[0]);
}

static void one_mapping_has_one_userfaultfd(void **state)
{
    struct uffd_memory m;
    (void)state;

    uffd_memory_init(&m, NR_PAGES, 0);
    int second = uffd_open(O_NONBLOCK, UFFD_FEATURE_MISSING_SHMEM);
    assert_return_code(second, -second);
    assert_int_equal(
        uffd_register(second, m.map, NR_PAGES * PAGE, UFFDIO_REGISTER_MODE_MISSING),
        -EBUSY);
    close(second);
    uffd_memory_deinit(&m);
}

static void poll_on_a_blocking_userfaultfd_is_pollerr(void **state)
{
    struct uffd_memory m;
    (void)state;

    uffd_memory_init(&m, NR_PAGES, 0);
    int flags = fcntl(m.uffd, F_GETFL);
    assert_int_equal(fcntl(m.uffd, F_SETFL, flags & ~O_NONBLOCK), 0);
    struct pollfd p = {.fd = m.uffd, .events = POLLIN};
    assert_int_equal(poll(&p, 1, 0), 1);
    assert_true(p.revents & POLLERR);
    assert_int_equal(fcntl(m.uffd, F_SETFL, flags | O_NONBLOCK), 0);
    assert_int_equal(poll(&p, 1, 0), 0);
    uffd_memory_deinit(&m);
}

static sigjmp_buf after_sigbus;

static void on_sigbus(int signo)
{
    (void)signo;
    siglongjmp(after_sigbus, 1);
}

/* 1 when reading the byte raised SIGBUS. */
static int read_raises_sigbus(const volatile uint8_t *address)
{
    struct sigaction action = {.sa_handler = on_sigbus};
    struct sigaction before;
    volatile int raised = 1;

    sigaction(SIGBUS, &action, &before);
    if (sigsetjmp(after_sigbus, 1) == 0) {
        (void)*address;
        raised = 0;
    }
    sigaction(SIGBUS, &before, NULL);
    return raised;
}

static void poison_is_sigbus_and_a_copy_undoes_it(void **state)
{
    struct uffd_memory m;
    (void)state;

    int probe = uffd_open(O_NONBLOCK, UFFD_FEATURE_POISON);
    if (probe < 0) {
        print_message("skip: this kernel has no UFFDIO_POISON\n");
        skip();
    }
    close(probe);
    uffd_memory_init(&m, NR_PAGES, UFFD_FEATURE_POISON);
    struct uffdio_poison poison = {
        .range = {.start = (uintptr_t)m.map, .len = PAGE},
    };
    assert_return_code(ioctl(m.uffd, UFFDIO_POISON, &poison), errno);
    assert_true(read_raises_sigbus(m.map));

    int event = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    assert_true(event >= 0);
    assert_int_equal(write(event, m.map, 8), -1);
    assert_int_equal(errno, EFAULT);
    close(event);

    uffd_fill(&m, 0, 0x42);
    assert_false(read_raises_sigbus(m.map));
    assert_int_equal(m.map[0], 0x42);
    uffd_memory_deinit(&m);
}

struct kernel_read {
    int fd;
    void *buffer;
};

static long write_from_memory(void *arg)
{
    const struct kernel_read *k = arg;
    ssize_t got = write(k->fd, k->buffer, 8);

    return got < 0 ? -errno : got;
}

static void kernel_access_waits_and_completes(void **state)
{
    struct uffd_memory m;
    struct toucher t;
    uint64_t value = 0;
    (void)state;

    uffd_memory_init(&m, NR_PAGES, 0);
    int event = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    assert_true(event >= 0);
    struct kernel_read k = {.fd = event, .buffer = m.map + PAGE};
    toucher_call(&t, write_from_memory, &k);
    uffd_expect_fault(&m, 1);
    toucher_expect_blocked(&t);
    uffd_fill(&m, 1, 0x01);
    toucher_join(&t);
    assert_int_equal(t.result, 8);
    assert_int_equal(read(event, &value, sizeof(value)), 8);
    assert_int_equal(value, 0x0101010101010101);
    close(event);
    uffd_memory_deinit(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(last_close_before_the_touch_reads_zeros),
        cmocka_unit_test(last_close_while_a_thread_waits_reads_zeros),
        cmocka_unit_test(open_and_unserved_blocks_until_a_late_copy),
        cmocka_unit_test(kept_duplicate_still_resolves),
        cmocka_unit_test(message_of_a_dead_manager_returns_only_after_wake),
        cmocka_unit_test(wake_without_content_faults_again),
        cmocka_unit_test(message_names_the_thread),
        cmocka_unit_test(copy_to_a_present_page_is_eexist_and_changes_nothing),
        cmocka_unit_test(copy_over_a_present_page_is_partial),
        cmocka_unit_test(copy_while_an_event_is_unread_is_eagain),
        cmocka_unit_test(punch_sends_no_event),
        cmocka_unit_test(death_of_the_vmm_is_esrch_without_pollhup),
        cmocka_unit_test(one_mapping_has_one_userfaultfd),
        cmocka_unit_test(poll_on_a_blocking_userfaultfd_is_pollerr),
        cmocka_unit_test(poison_is_sigbus_and_a_copy_undoes_it),
        cmocka_unit_test(kernel_access_waits_and_completes),
    };

    return cmocka_run_group_tests_name("uffd_lifecycle", tests, end_process_when_hung,
                                       NULL);
}
