/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Bad messages about regions of guest memory against the real manager: creation,
 * attachment, and a region that runs.  None may be felt by another VM, nor by the
 * region itself beyond its connection.
 */
#include "unit.h"

#include "bystander.h"
#include "uffd_fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

enum { RAM = BYSTANDER_RAM };

/* ---- REGION_CREATE -------------------------------------------------------- */

static void bad_regions_are_refused(void **state)
{
    static const struct uffdmm_region_create bad[] = {
        {.size = 0, .page_size = PAGE, .nr_shards = 1, .name = "mem0"},
        {.size = RAM + 512, .page_size = PAGE, .nr_shards = 1, .name = "mem0"},
        {.size = RAM, .page_size = 2 * PAGE, .nr_shards = 1, .name = "mem0"},
        {.size = RAM, .page_size = 0, .nr_shards = 1, .name = "mem0"},
        {.size = 1ULL << 63, .page_size = PAGE, .nr_shards = 1, .name = "mem0"},
        {.size = ~0ULL << 12, .page_size = PAGE, .nr_shards = 1, .name = "mem0"},
        {.size = RAM, .page_size = PAGE, .nr_shards = 0, .name = "mem0"},
        {.size = RAM,
         .page_size = PAGE,
         .nr_shards = UFFDMM_SHARDS_MAX + 1,
         .name = "mem0"},
        {.size = PAGE, .page_size = PAGE, .nr_shards = 2, .name = "mem0"},
        {.size = RAM, .page_size = PAGE, .nr_shards = 1, .flags = 2, .name = "mem0"},
    };
    (void)state;

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct uffdmm_msg_header header =
            peer_header(UFFDMM_MSG_REGION_CREATE, sizeof(bad[i]), 1, 0);
        int sock = greeted(UFFDMM_ROLE_QEMU, "other");
        assert_int_equal(peer_send(sock, &header, &bad[i], NULL), 0);
        expect_refusal(sock);
    }
    struct uffdmm_region_create endless = {
        .size = RAM, .page_size = PAGE, .nr_shards = 1};
    memset(endless.name, 'a', sizeof(endless.name));
    struct uffdmm_msg_header header =
        peer_header(UFFDMM_MSG_REGION_CREATE, sizeof(endless), 1, 0);
    int sock = greeted(UFFDMM_ROLE_QEMU, "other");
    assert_int_equal(peer_send(sock, &header, &endless, NULL), 0);
    expect_refusal(sock);
}

static void second_region_on_one_connection_is_refused(void **state)
{
    struct standin s;
    struct uffdmm_region_create create = {.size = RAM, .page_size = PAGE, .nr_shards = 1};
    struct uffdmm_msg_header header =
        peer_header(UFFDMM_MSG_REGION_CREATE, sizeof(create), 9, 0);
    (void)state;

    strcpy(create.name, "mem1");
    assert_int_equal(standin_create(&s, manager.socket, "other", RAM, 1), 0);
    assert_int_equal(peer_send(s.sock, &header, &create, NULL), 0);
    expect_refusal(dup(s.sock));
    standin_close(&s);
}

/* ---- REGION_ATTACH -------------------------------------------------------- */

/* A created and mapped region whose ATTACH the test spoils. */
static void attach_with(void (*spoil)(struct uffdmm_region_attach *a, int fds[2],
                                      const struct standin *s))
{
    struct standin s;
    struct uffdmm_region_attach attach;
    int fds[2];

    assert_int_equal(standin_create(&s, manager.socket, "other", RAM, 1), 0);
    assert_int_equal(standin_map(&s), 0);
    attach = (struct uffdmm_region_attach){
        .region_id = s.id, .nr_shards = 1, .base = (uintptr_t)s.base, .size = RAM};
    fds[0] = s.pagemap_fd;
    fds[1] = s.uffds[0];
    spoil(&attach, fds, &s);
    struct uffdmm_msg_header header =
        peer_header(UFFDMM_MSG_REGION_ATTACH, sizeof(attach), 5, 2);
    assert_int_equal(peer_send(s.sock, &header, &attach, fds), 0);
    expect_refusal(dup(s.sock));
    standin_close(&s);
}

static void spoil_region_id(struct uffdmm_region_attach *a, int fds[2],
                            const struct standin *s)
{
    (void)fds;
    (void)s;
    a->region_id += 77;
}

static void spoil_base(struct uffdmm_region_attach *a, int fds[2],
                       const struct standin *s)
{
    (void)fds;
    (void)s;
    a->base += 8;
}

static void spoil_base_wraps(struct uffdmm_region_attach *a, int fds[2],
                             const struct standin *s)
{
    (void)fds;
    (void)s;
    a->base = ~0ULL << 12;
}

static void spoil_size(struct uffdmm_region_attach *a, int fds[2],
                       const struct standin *s)
{
    (void)fds;
    (void)s;
    a->size += PAGE;
}

static void spoil_shards(struct uffdmm_region_attach *a, int fds[2],
                         const struct standin *s)
{
    (void)fds;
    (void)s;
    a->nr_shards = 2;
}

static void spoil_uffd(struct uffdmm_region_attach *a, int fds[2],
                       const struct standin *s)
{
    (void)a;
    fds[1] = s->memfd;
}

static void spoil_pagemap(struct uffdmm_region_attach *a, int fds[2],
                          const struct standin *s)
{
    (void)a;
    fds[0] = s->memfd;
}

static void spoil_order(struct uffdmm_region_attach *a, int fds[2],
                        const struct standin *s)
{
    (void)a;
    fds[0] = s->uffds[0];
    fds[1] = s->pagemap_fd;
}

static void bad_attaches_are_refused(void **state)
{
    (void)state;
    attach_with(spoil_region_id);
    attach_with(spoil_base);
    attach_with(spoil_base_wraps);
    attach_with(spoil_size);
    attach_with(spoil_shards);
    attach_with(spoil_uffd);
    attach_with(spoil_pagemap);
    attach_with(spoil_order);
}

static void attach_without_registration_is_refused(void **state)
{
    struct standin s;
    (void)state;

    assert_int_equal(standin_create(&s, manager.socket, "other", RAM, 1), 0);
    assert_int_equal(standin_map(&s), 0);
    /* A userfaultfd of ours that covers other memory than the one it claims to. */
    int other = uffd_open(O_NONBLOCK, UFFD_FEATURE_PAGEFAULT_FLAG_WP |
                                          UFFD_FEATURE_WP_HUGETLBFS_SHMEM);
    assert_true(other >= 0);
    close(s.uffds[0]);
    s.uffds[0] = other;
    assert_true(standin_attach(&s) < 0);
    standin_close(&s);
}

static void overlapping_attach_is_refused(void **state)
{
    struct standin first;
    struct standin second;
    (void)state;

    assert_int_equal(standin_open(&first, manager.socket, "other", RAM, 1), 0);
    assert_int_equal(standin_create(&second, manager.socket, "other", RAM, 1), 0);
    assert_int_equal(standin_map(&second), 0);
    struct uffdmm_region_attach attach = {
        .region_id = second.id,
        .nr_shards = 1,
        .base = (uintptr_t)first.base + PAGE,
        .size = RAM,
    };
    int fds[2] = {second.pagemap_fd, second.uffds[0]};
    struct uffdmm_msg_header header =
        peer_header(UFFDMM_MSG_REGION_ATTACH, sizeof(attach), 5, 2);
    assert_int_equal(peer_send(second.sock, &header, &attach, fds), 0);
    expect_refusal(dup(second.sock));
    standin_close(&second);
    /* The first region of the same worker is not harmed. */
    first.base[0] = 1;
    assert_int_equal(first.base[5 * PAGE], 0);
    assert_int_equal(standin_detach(&first), 0);
}

static void attach_twice(struct vmm *v, const void *arg)
{
    struct standin s;
    (void)arg;

    open_own_vm(v, &s);
    struct uffdmm_region_attach attach = {
        .region_id = s.id, .nr_shards = 1, .base = (uintptr_t)s.base, .size = RAM};
    VMM_EXPECT(v, standin_request(&s, UFFDMM_MSG_REGION_ATTACH, &attach, sizeof(attach)) <
                      0);
}

static void second_attach_is_refused(void **state)
{
    (void)state;
    in_own_process(attach_twice, NULL);
}

/* ---- a running region ----------------------------------------------------- */

struct bad_range {
    uint32_t region; /* added to the right one */
    uint64_t offset;
    uint64_t length;
};

static void send_bad_range(struct vmm *v, const void *arg)
{
    const struct bad_range *bad = arg;
    struct standin s;

    open_own_vm(v, &s);
    s.base[0] = 7;
    struct uffdmm_range range = {
        .region_id = s.id + bad->region,
        .offset = bad->offset,
        .length = bad->length,
    };
    struct uffdmm_msg_header header =
        peer_header(UFFDMM_MSG_DISCARD, sizeof(range), 0, 0);
    VMM_EXPECT(v, peer_send(s.sock, &header, &range, NULL) == 0);
    /* The connection may be closed for it; the region keeps its content and is served. */
    sleep_ms(20);
    VMM_EXPECT(v, s.base[0] == 7);
    VMM_EXPECT(v, s.base[RAM - PAGE] == 0);
}

static void bad_discards_do_no_harm(void **state)
{
    static const struct bad_range ranges[] = {
        {0, RAM, PAGE}, {0, 0, RAM + PAGE}, {0, PAGE, ~0ULL << 12}, {0, 0, 0},
        {0, 5, PAGE},   {0, 0, PAGE - 1},   {99, 0, PAGE},
    };
    (void)state;

    for (size_t i = 0; i < sizeof(ranges) / sizeof(ranges[0]); i++) {
        in_own_process(send_bad_range, &ranges[i]);
    }
}

/* A message without the work: a DISCARD whose pages are neither marked nor punched. */
static void send_lying_discard(struct vmm *v, const void *arg)
{
    struct standin s;
    (void)arg;

    open_own_vm(v, &s);
    for (size_t pfn = 0; pfn < RAM / PAGE; pfn++) {
        s.base[pfn * PAGE] = (uint8_t)(pfn | 1);
    }
    struct uffdmm_range range = {.region_id = s.id, .length = RAM};
    struct uffdmm_msg_header header =
        peer_header(UFFDMM_MSG_DISCARD, sizeof(range), 0, 0);
    VMM_EXPECT(v, peer_send(s.sock, &header, &range, NULL) == 0);
    sleep_ms(20);
    for (size_t pfn = 0; pfn < RAM / PAGE; pfn++) {
        VMM_EXPECT(v, s.base[pfn * PAGE] == (uint8_t)(pfn | 1));
    }
}

static void discard_message_alone_gives_nothing_back(void **state)
{
    (void)state;
    in_own_process(send_lying_discard, NULL);
}

static void send_stray_replies(struct vmm *v, const void *arg)
{
    static const uint8_t junk[64] = {0xff, 0xee, 0xdd};
    struct standin s;
    (void)arg;

    open_own_vm(v, &s);
    s.base[0] = 7;
    for (uint32_t type = 0; type < 12; type++) {
        struct uffdmm_msg_header header =
            peer_header(type | UFFDMM_MSG_REPLY, sizeof(junk), 123456789 + type, 0);
        if (peer_send(s.sock, &header, junk, NULL) < 0) {
            break; /* closed for the one before */
        }
    }
    sleep_ms(20);
    VMM_EXPECT(v, s.base[0] == 7);
    VMM_EXPECT(v, s.base[RAM - PAGE] == 0);
}

static void stray_replies_do_no_harm(void **state)
{
    (void)state;
    in_own_process(send_stray_replies, NULL);
}

static void detach_the_neighbour(struct vmm *v, const void *arg)
{
    struct standin a;
    struct standin b;
    (void)arg;

    open_own_vm(v, &a);
    open_own_vm(v, &b);
    b.base[3 * PAGE] = 4;
    struct uffdmm_region_detach detach = {.region_id = b.id};
    VMM_EXPECT(v, standin_request(&a, UFFDMM_MSG_REGION_DETACH, &detach, sizeof(detach)) <
                      0);
    VMM_EXPECT(v, b.base[3 * PAGE] == 4);
    VMM_EXPECT(v, b.base[9 * PAGE] == 0); /* still served */
}

static void detach_of_another_region_is_refused(void **state)
{
    (void)state;
    in_own_process(detach_the_neighbour, NULL);
}

/* Entries that QEMU could never have written: its own VM may suffer, no other. */
static void scribble_over_the_table(struct vmm *v, const void *arg)
{
    struct standin s;
    uint64_t random = 88172645463325252ULL;
    (void)arg;

    open_own_vm(v, &s);
    for (size_t pfn = 0; pfn < RAM / PAGE; pfn++) {
        s.base[pfn * PAGE] = 1;
    }
    for (int n = 0; n < 200000; n++) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        atomic_store(&s.entries[random % (RAM / PAGE)], random * 0x9e3779b97f4a7c15ULL);
        if (n % 1000 == 0) {
            sleep_ms(1);
        }
    }
    memset(s.table, 0xff, sizeof(*s.table));
    sleep_ms(200);
}

static void random_table_entries_harm_no_other_vm(void **state)
{
    (void)state;
    in_own_process(scribble_over_the_table, NULL);
}

/* A worker that lives needs no new one; descriptors of QEMU's own making least of all. */
static void reconnect_beside_a_running_worker(struct vmm *v, const void *arg)
{
    struct standin s;
    struct peer_msg reply;
    char name[UFFDMM_NAME_MAX];
    (void)arg;

    open_own_vm(v, &s);
    s.base[0] = 7;
    snprintf(name, sizeof(name), "vm-%d", (int)getpid());
    int own = memfd_create("not-the-managers", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    VMM_EXPECT(v, own >= 0 && ftruncate(own, RAM) == 0);
    const int memfds[] = {own, s.memfd};
    for (int i = 0; i < 2; i++) {
        struct uffdmm_reconnect reconnect = {
            .create = {.size = RAM, .page_size = PAGE, .nr_shards = 1, .name = "mem0"},
            .attach = {.region_id = s.id,
                       .nr_shards = 1,
                       .base = (uintptr_t)s.base,
                       .size = RAM},
        };
        int fds[] = {memfds[i], s.table_fd, s.pagemap_fd, s.uffds[0]};
        int sock = peer_open(v->socket, UFFDMM_ROLE_QEMU, name, &reply);
        VMM_EXPECT(v, sock >= 0);
        struct uffdmm_msg_header header =
            peer_header(UFFDMM_MSG_RECONNECT, sizeof(reconnect), 3, 4);
        VMM_EXPECT(v, peer_send(sock, &header, &reconnect, fds) == 0);
        VMM_EXPECT(v, refused(sock));
        close(sock);
    }
    VMM_EXPECT(v, s.base[0] == 7);
    VMM_EXPECT(v, s.base[RAM - PAGE] == 0); /* still served */
}

static void reconnect_is_refused_while_the_worker_lives(void **state)
{
    (void)state;
    in_own_process(reconnect_beside_a_running_worker, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(bad_regions_are_refused, bystander_lives),
        cmocka_unit_test_teardown(second_region_on_one_connection_is_refused,
                                  bystander_lives),
        cmocka_unit_test_teardown(bad_attaches_are_refused, bystander_lives),
        cmocka_unit_test_teardown(attach_without_registration_is_refused,
                                  bystander_lives),
        cmocka_unit_test_teardown(overlapping_attach_is_refused, bystander_lives),
        cmocka_unit_test_teardown(second_attach_is_refused, bystander_lives),
        cmocka_unit_test_teardown(bad_discards_do_no_harm, bystander_lives),
        cmocka_unit_test_teardown(discard_message_alone_gives_nothing_back,
                                  bystander_lives),
        cmocka_unit_test_teardown(stray_replies_do_no_harm, bystander_lives),
        cmocka_unit_test_teardown(detach_of_another_region_is_refused, bystander_lives),
        cmocka_unit_test_teardown(reconnect_is_refused_while_the_worker_lives,
                                  bystander_lives),
        cmocka_unit_test_teardown(random_table_entries_harm_no_other_vm, bystander_lives),
    };

    return cmocka_run_group_tests_name("protocol_region", tests, bystander_start,
                                       bystander_stop);
}
