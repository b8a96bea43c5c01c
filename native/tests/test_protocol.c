/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Bad bytes, bad headers and bad HELLOs against the real manager.  Each must be
 * answered by an error with a sentence, or by a closed connection, and must not be
 * felt by a bystander VM that runs all the while.
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

static struct uffdmm_hello good_hello(void)
{
    struct uffdmm_hello hello = {.role = UFFDMM_ROLE_QEMU};

    strcpy(hello.vm_name, "other");
    strcpy(hello.agent, "stand-in VMM");
    return hello;
}

/* ---- headers -------------------------------------------------------------- */

static void send_hello_with(void (*spoil)(struct uffdmm_msg_header *header))
{
    static uint8_t payload[UFFDMM_PAYLOAD_MAX]; /* as long as any header can say */
    struct uffdmm_hello hello = good_hello();
    struct uffdmm_msg_header header = peer_header(UFFDMM_MSG_HELLO, sizeof(hello), 1, 0);
    int sock = connect_raw();

    memcpy(payload, &hello, sizeof(hello));
    spoil(&header);
    peer_send(sock, &header, payload, NULL);
    expect_refusal(sock);
}

static void spoil_magic(struct uffdmm_msg_header *h)
{
    h->magic ^= 1;
}

static void spoil_version(struct uffdmm_msg_header *h)
{
    h->version = UFFDMM_VERSION + 1;
    h->min_version = UFFDMM_VERSION + 1;
}

static void spoil_old_version(struct uffdmm_msg_header *h)
{
    h->version = UFFDMM_MIN_VERSION - 1;
    h->min_version = UFFDMM_MIN_VERSION - 1;
}

static void spoil_length(struct uffdmm_msg_header *h)
{
    h->length = UFFDMM_PAYLOAD_MAX + 1;
}

static void spoil_length_hugely(struct uffdmm_msg_header *h)
{
    h->length = UINT32_MAX;
}

static void spoil_short_length(struct uffdmm_msg_header *h)
{
    h->length = 8;
}

static void spoil_type(struct uffdmm_msg_header *h)
{
    h->type = 31;
}

static void spoil_reply_bit(struct uffdmm_msg_header *h)
{
    h->type |= UFFDMM_MSG_REPLY;
}

static void bad_headers_are_refused(void **state)
{
    (void)state;
    send_hello_with(spoil_magic);
    send_hello_with(spoil_version);
    send_hello_with(spoil_old_version);
    send_hello_with(spoil_length);
    send_hello_with(spoil_length_hugely);
    send_hello_with(spoil_short_length);
    send_hello_with(spoil_type);
    send_hello_with(spoil_reply_bit);
}

static void another_version_is_told_both_versions(void **state)
{
    struct uffdmm_hello hello = good_hello();
    struct uffdmm_msg_header header = peer_header(UFFDMM_MSG_HELLO, sizeof(hello), 1, 0);
    struct peer_msg msg;
    int sock = connect_raw();
    (void)state;

    spoil_version(&header);
    assert_int_equal(peer_send(sock, &header, &hello, NULL), 0);
    assert_int_equal(peer_receive(sock, &msg, PEER_TIMEOUT_MS), 0);
    assert_true(msg.header.status < 0);
    assert_int_equal(msg.header.version, UFFDMM_VERSION);
    assert_non_null(strstr((char *)msg.payload, "version"));
    close(sock);
}

static void newer_peer_that_still_speaks_ours_is_welcome(void **state)
{
    struct uffdmm_hello hello = good_hello();
    struct uffdmm_msg_header header = peer_header(UFFDMM_MSG_HELLO, sizeof(hello), 1, 0);
    struct peer_msg msg;
    int sock = connect_raw();
    (void)state;

    header.version = UFFDMM_VERSION + 5;
    header.min_version = UFFDMM_VERSION;
    assert_int_equal(peer_send(sock, &header, &hello, NULL), 0);
    assert_int_equal(peer_receive(sock, &msg, PEER_TIMEOUT_MS), 0);
    assert_int_equal(msg.header.status, 0);
    close(sock);
}

static void descriptors_that_do_not_match_the_header_are_refused(void **state)
{
    struct uffdmm_hello hello = good_hello();
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    int fds[UFFDMM_FDS_MAX + 4];
    (void)state;

    for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++) {
        fds[i] = null;
    }
    const struct {
        uint32_t said;
        uint32_t sent;
    } cases[] = {
        {1, 0}, {0, 1}, {1, 1}, {2, 1}, {UFFDMM_FDS_MAX + 4, UFFDMM_FDS_MAX + 4}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct {
            struct uffdmm_msg_header header;
            struct uffdmm_hello hello;
        } bytes = {peer_header(UFFDMM_MSG_HELLO, sizeof(hello), 1, cases[i].said), hello};
        int sock = connect_raw();
        peer_send_raw(sock, &bytes, sizeof(bytes), fds, cases[i].sent);
        expect_refusal(sock);
    }
    close(null);
}

/* ---- HELLO ---------------------------------------------------------------- */

static void refuse_hello(const struct uffdmm_hello *hello)
{
    struct uffdmm_msg_header header = peer_header(UFFDMM_MSG_HELLO, sizeof(*hello), 1, 0);
    int sock = connect_raw();

    assert_int_equal(peer_send(sock, &header, hello, NULL), 0);
    expect_refusal(sock);
}

static void bad_hellos_are_refused(void **state)
{
    static const char *const bad_names[] = {"",     "..",     "a/b", "../../tmp/x",
                                            "a\nb", "\x1b[2J"};
    struct uffdmm_hello hello;
    (void)state;

    hello = good_hello();
    hello.role = 3;
    refuse_hello(&hello);
    hello = good_hello();
    hello.features = 1;
    refuse_hello(&hello);
    hello = good_hello();
    memset(hello.vm_name, 'a', sizeof(hello.vm_name)); /* no end */
    refuse_hello(&hello);
    hello = good_hello();
    memset(hello.agent, 'a', sizeof(hello.agent));
    refuse_hello(&hello);
    for (size_t i = 0; i < sizeof(bad_names) / sizeof(bad_names[0]); i++) {
        hello = good_hello();
        memset(hello.vm_name, 0, sizeof(hello.vm_name));
        strcpy(hello.vm_name, bad_names[i]);
        refuse_hello(&hello);
    }
}

static void anything_before_hello_is_refused(void **state)
{
    static const uint32_t types[] = {
        UFFDMM_MSG_REGION_CREATE, UFFDMM_MSG_REGION_ATTACH, UFFDMM_MSG_REGION_DETACH,
        UFFDMM_MSG_DISCARD,       UFFDMM_MSG_ZAP,           UFFDMM_MSG_QUERY,
        UFFDMM_MSG_SET_POLICY,    UFFDMM_MSG_LIST,          UFFDMM_MSG_RECONNECT,
    };
    static const uint8_t zeros[512];
    static const uint32_t lengths[] = {
        sizeof(struct uffdmm_region_create), sizeof(struct uffdmm_region_attach),
        sizeof(struct uffdmm_region_detach), sizeof(struct uffdmm_range),
        sizeof(struct uffdmm_range),         0,
        sizeof(struct uffdmm_policy),        sizeof(struct uffdmm_list),
        sizeof(struct uffdmm_reconnect),
    };
    (void)state;

    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
        struct uffdmm_msg_header header = peer_header(types[i], lengths[i], 1, 0);
        int sock = connect_raw();
        peer_send(sock, &header, zeros, NULL);
        expect_refusal(sock);
    }
}

static void control_of_an_unknown_vm_is_refused(void **state)
{
    struct peer_msg reply;
    int sock = connect_raw();
    (void)state;

    assert_int_equal(peer_hello(sock, UFFDMM_ROLE_CONTROL, "nobody", &reply), -ENOENT);
    assert_non_null(strstr((char *)reply.payload, "nobody"));
    close(sock);
}

static void control_client_may_not_act_as_qemu(void **state)
{
    struct uffdmm_region_create create = {.size = RAM, .page_size = PAGE, .nr_shards = 1};
    struct uffdmm_region_detach detach = {.region_id = 1};
    struct uffdmm_range range = {.region_id = 1, .length = RAM};
    struct uffdmm_msg_header header;
    (void)state;

    strcpy(create.name, "mem0");
    int sock = greeted(UFFDMM_ROLE_CONTROL, "bystander");
    header = peer_header(UFFDMM_MSG_REGION_CREATE, sizeof(create), 1, 0);
    peer_send(sock, &header, &create, NULL);
    expect_refusal(sock);
    sock = greeted(UFFDMM_ROLE_CONTROL, "bystander");
    header = peer_header(UFFDMM_MSG_REGION_DETACH, sizeof(detach), 1, 0);
    peer_send(sock, &header, &detach, NULL);
    expect_refusal(sock);
    sock = greeted(UFFDMM_ROLE_CONTROL, "bystander");
    header = peer_header(UFFDMM_MSG_DISCARD, sizeof(range), 1, 0);
    peer_send(sock, &header, &range, NULL);
    expect_refusal(sock);
}

/* ---- bytes ---------------------------------------------------------------- */

static void half_a_message_holds_up_nobody(void **state)
{
    struct uffdmm_hello hello = good_hello();
    struct {
        struct uffdmm_msg_header header;
        struct uffdmm_hello hello;
    } bytes = {peer_header(UFFDMM_MSG_HELLO, sizeof(hello), 1, 0), hello};
    int socks[8];
    (void)state;

    for (int i = 0; i < 8; i++) {
        socks[i] = connect_raw();
        peer_send_raw(socks[i], &bytes, 1 + (size_t)i * 9, NULL, 0);
    }
    bystander_lives(NULL);
    int sock = greeted(UFFDMM_ROLE_CONTROL, "");
    close(sock);
    for (int i = 0; i < 8; i++) {
        close(socks[i]);
    }
}

static void message_in_single_bytes_is_understood(void **state)
{
    struct uffdmm_hello hello = good_hello();
    struct {
        struct uffdmm_msg_header header;
        struct uffdmm_hello hello;
    } bytes;
    struct peer_msg msg;
    int sock = connect_raw();
    (void)state;

    hello.role = UFFDMM_ROLE_CONTROL;
    strcpy(hello.vm_name, "bystander");
    bytes.header = peer_header(UFFDMM_MSG_HELLO, sizeof(hello), 42, 0);
    bytes.hello = hello;
    for (size_t i = 0; i < sizeof(bytes); i++) {
        assert_int_equal(peer_send_raw(sock, (char *)&bytes + i, 1, NULL, 0), 0);
    }
    assert_int_equal(peer_receive(sock, &msg, PEER_TIMEOUT_MS), 0);
    assert_int_equal(msg.header.status, 0);
    assert_int_equal(msg.header.request_id, 42);
    close(sock);
}

static void many_connections_come_and_go(void **state)
{
    enum { ROUNDS = 300, AT_ONCE = 40 };
    int socks[AT_ONCE];
    (void)state;

    memset(socks, -1, sizeof(socks));
    for (int i = 0; i < ROUNDS; i++) {
        int *slot = &socks[i % AT_ONCE];
        if (*slot >= 0) {
            close(*slot);
        }
        *slot = connect_raw();
    }
    for (int i = 0; i < AT_ONCE; i++) {
        close(socks[i]);
    }
}

/* Well-formed headers with random payloads, of every type and role. */
static void random_messages_do_no_harm(void **state)
{
    enum { ROUNDS = 1500 };
    uint64_t random = 88172645463325252ULL;
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    (void)state;

    for (int round = 0; round < ROUNDS; round++) {
        uint8_t payload[256];
        struct uffdmm_msg_header header;
        int sock = round % 3 == 0   ? greeted(UFFDMM_ROLE_QEMU, "other")
                   : round % 3 == 1 ? greeted(UFFDMM_ROLE_CONTROL, "bystander")
                                    : connect_raw();
        for (int n = 0; n < 3; n++) {
            for (size_t i = 0; i < sizeof(payload); i++) {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                payload[i] = (uint8_t)(random >> 24);
            }
            uint32_t length = (uint32_t)(random >> 8) % sizeof(payload);
            header =
                peer_header((uint32_t)random % 12, length, random, (random >> 50) % 3);
            int fds[3] = {null, null, null};
            peer_send(sock, &header, payload, fds);
        }
        close(sock);
    }
    close(null);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(bad_headers_are_refused, bystander_lives),
        cmocka_unit_test_teardown(another_version_is_told_both_versions, bystander_lives),
        cmocka_unit_test_teardown(newer_peer_that_still_speaks_ours_is_welcome,
                                  bystander_lives),
        cmocka_unit_test_teardown(descriptors_that_do_not_match_the_header_are_refused,
                                  bystander_lives),
        cmocka_unit_test_teardown(bad_hellos_are_refused, bystander_lives),
        cmocka_unit_test_teardown(anything_before_hello_is_refused, bystander_lives),
        cmocka_unit_test_teardown(control_of_an_unknown_vm_is_refused, bystander_lives),
        cmocka_unit_test_teardown(control_client_may_not_act_as_qemu, bystander_lives),
        cmocka_unit_test_teardown(half_a_message_holds_up_nobody, bystander_lives),
        cmocka_unit_test_teardown(message_in_single_bytes_is_understood, bystander_lives),
        cmocka_unit_test_teardown(many_connections_come_and_go, bystander_lives),
        cmocka_unit_test_teardown(random_messages_do_no_harm, bystander_lives),
    };

    return cmocka_run_group_tests_name("protocol", tests, bystander_start,
                                       bystander_stop);
}
