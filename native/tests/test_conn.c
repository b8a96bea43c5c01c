/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The message parser on a socket pair: any split of the byte stream gives the same
 * messages, no malformed header passes, and no descriptor is left behind.
 */
#include "unit.h"

#include "conn.h"
#include "peer.h"

#include <dirent.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct pair {
    int sock; /* the peer's end */
    struct conn *conn;
    int descriptors; /* open when the test began */
};

static int count_descriptors(void)
{
    DIR *dir = opendir("/proc/self/fd");
    int n = 0;

    assert_non_null(dir);
    while (readdir(dir)) {
        n++;
    }
    closedir(dir);
    return n;
}

static void pair_open(struct pair *p)
{
    int socks[2];

    p->descriptors = count_descriptors();
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, socks), 0);
    p->sock = socks[0];
    p->conn = conn_new(socks[1]);
    assert_non_null(p->conn);
}

/* Everything that came over the connection is closed with it. */
static void pair_close(struct pair *p)
{
    conn_free(p->conn);
    close(p->sock);
    assert_int_equal(count_descriptors(), p->descriptors);
}

static enum conn_outcome receive(struct pair *p)
{
    char err[256] = "";
    enum conn_outcome outcome = conn_receive(p->conn, err, sizeof(err));

    if (outcome == CONN_BAD) {
        assert_true(err[0] != '\0');
    }
    return outcome;
}

static void peer_is_identified(void **state)
{
    struct pair p;
    (void)state;

    pair_open(&p);
    assert_int_equal(p.conn->pid, getpid());
    assert_int_equal(p.conn->uid, geteuid());
    pair_close(&p);
}

static void nothing_is_again_and_the_end_is_closed(void **state)
{
    struct pair p;
    (void)state;

    pair_open(&p);
    assert_int_equal(receive(&p), CONN_AGAIN);
    shutdown(p.sock, SHUT_WR);
    assert_int_equal(receive(&p), CONN_CLOSED);
    pair_close(&p);
}

static void end_within_a_message_is_bad(void **state)
{
    struct pair p;
    struct uffdmm_msg_header header = peer_header(UFFDMM_MSG_QUERY, 8, 1, 0);
    (void)state;

    pair_open(&p);
    assert_int_equal(peer_send_raw(p.sock, &header, sizeof(header), NULL, 0), 0);
    shutdown(p.sock, SHUT_WR);
    assert_int_equal(receive(&p), CONN_BAD);
    pair_close(&p);
}

static void spoiled_headers_are_bad(void **state)
{
    const struct uffdmm_msg_header good = peer_header(UFFDMM_MSG_QUERY, 0, 1, 0);
    struct uffdmm_msg_header bad[6] = {good, good, good, good, good, good};
    (void)state;

    bad[0].magic = __builtin_bswap32(UFFDMM_MAGIC);
    bad[1].version = UFFDMM_MIN_VERSION - 1;
    bad[2].version = UFFDMM_VERSION + 1;
    bad[2].min_version = UFFDMM_VERSION + 1;
    bad[3].length = UFFDMM_PAYLOAD_MAX + 1;
    bad[4].length = UINT32_MAX;
    bad[5].nr_fds = UFFDMM_FDS_MAX + 1;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct pair p;
        pair_open(&p);
        assert_int_equal(peer_send_raw(p.sock, &bad[i], sizeof(bad[i]), NULL, 0), 0);
        assert_int_equal(receive(&p), CONN_BAD);
        pair_close(&p);
    }
}

static void longest_message_fits(void **state)
{
    static uint8_t bytes[sizeof(struct uffdmm_msg_header) + UFFDMM_PAYLOAD_MAX];
    struct uffdmm_msg_header header =
        peer_header(UFFDMM_MSG_QUERY, UFFDMM_PAYLOAD_MAX, 1, 0);
    struct pair p;
    (void)state;

    memset(bytes, 0xa5, sizeof(bytes));
    memcpy(bytes, &header, sizeof(header));
    pair_open(&p);
    assert_int_equal(peer_send_raw(p.sock, bytes, sizeof(bytes), NULL, 0), 0);
    assert_int_equal(receive(&p), CONN_MESSAGE);
    assert_memory_equal(p.conn->payload, bytes + sizeof(header), UFFDMM_PAYLOAD_MAX);
    pair_close(&p);
}

static void descriptors_must_be_as_many_as_announced(void **state)
{
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    int fds[UFFDMM_FDS_MAX + 3];
    (void)state;

    assert_true(null >= 0);
    for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++) {
        fds[i] = null;
    }
    const struct {
        uint32_t said;
        uint32_t sent;
        enum conn_outcome outcome;
    } cases[] = {
        {0, 0, CONN_MESSAGE},
        {3, 3, CONN_MESSAGE},
        {UFFDMM_FDS_MAX, UFFDMM_FDS_MAX, CONN_MESSAGE},
        {1, 0, CONN_BAD},
        {0, 1, CONN_BAD},
        {3, 2, CONN_BAD},
        {UFFDMM_FDS_MAX, UFFDMM_FDS_MAX + 3, CONN_BAD},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct uffdmm_msg_header header =
            peer_header(UFFDMM_MSG_QUERY, 0, 1, cases[i].said);
        struct pair p;
        pair_open(&p);
        assert_int_equal(
            peer_send_raw(p.sock, &header, sizeof(header), fds, cases[i].sent), 0);
        assert_int_equal(receive(&p), cases[i].outcome);
        pair_close(&p);
    }
    close(null);
}

static void taken_descriptor_is_the_callers(void **state)
{
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    int fds[2] = {null, null};
    struct uffdmm_msg_header header = peer_header(UFFDMM_MSG_QUERY, 0, 1, 2);
    struct pair p;
    (void)state;

    assert_true(null >= 0);
    pair_open(&p);
    assert_int_equal(peer_send_raw(p.sock, &header, sizeof(header), fds, 2), 0);
    assert_int_equal(receive(&p), CONN_MESSAGE);
    int mine = conn_take_fd(p.conn, 1);
    conn_next(p.conn);
    assert_true(fcntl(mine, F_GETFD) & FD_CLOEXEC);
    close(mine);
    pair_close(&p);
    close(null);
}

/* A seeded stream of messages in random pieces, a piece possibly across several. */
static void any_split_gives_the_same_messages(void **state)
{
    enum { MESSAGES = 300, LENGTH_MAX = 200 };
    static uint8_t stream[MESSAGES * (sizeof(struct uffdmm_msg_header) + LENGTH_MAX)];
    static uint32_t lengths[MESSAGES];
    uint64_t random = 88172645463325252ULL;
    size_t total = 0;
    size_t sent = 0;
    uint32_t got = 0;
    struct pair p;
    (void)state;

    for (uint32_t i = 0; i < MESSAGES; i++) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        lengths[i] = (uint32_t)(random % LENGTH_MAX);
        struct uffdmm_msg_header header = peer_header(i, lengths[i], i * 3ULL, 0);
        memcpy(stream + total, &header, sizeof(header));
        total += sizeof(header);
        memset(stream + total, (int)i, lengths[i]);
        total += lengths[i];
    }
    pair_open(&p);
    while (got < MESSAGES) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        size_t piece = 1 + random % 150;
        piece = piece > total - sent ? total - sent : piece;
        assert_true(piece > 0);
        assert_int_equal(peer_send_raw(p.sock, stream + sent, piece, NULL, 0), 0);
        sent += piece;
        enum conn_outcome outcome;
        while ((outcome = receive(&p)) == CONN_MESSAGE) {
            assert_int_equal(p.conn->header.type, got);
            assert_int_equal(p.conn->header.request_id, got * 3ULL);
            assert_int_equal(p.conn->header.length, lengths[got]);
            for (uint32_t k = 0; k < lengths[got]; k++) {
                assert_int_equal(p.conn->payload[k], (uint8_t)got);
            }
            got++;
            conn_next(p.conn);
        }
        assert_int_equal(outcome, CONN_AGAIN);
    }
    assert_int_equal(sent, total);
    pair_close(&p);
}

static void replies_carry_type_id_and_sentence(void **state)
{
    struct uffdmm_msg_header header = peer_header(UFFDMM_MSG_QUERY, 0, 77, 0);
    struct peer_msg msg;
    struct pair p;
    char text[400];
    (void)state;

    memset(text, 'x', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    pair_open(&p);
    assert_int_equal(peer_send_raw(p.sock, &header, sizeof(header), NULL, 0), 0);
    assert_int_equal(receive(&p), CONN_MESSAGE);
    assert_int_equal(conn_reply(p.conn, "abc", 3, &p.sock, 1), 0);
    assert_int_equal(conn_reply_error(p.conn, -22, text), 0);

    assert_int_equal(peer_receive(p.sock, &msg, PEER_TIMEOUT_MS), 0);
    assert_int_equal(msg.header.type, UFFDMM_MSG_QUERY | UFFDMM_MSG_REPLY);
    assert_int_equal(msg.header.request_id, 77);
    assert_int_equal(msg.header.status, 0);
    assert_int_equal(msg.nr_fds, 1);
    assert_memory_equal(msg.payload, "abc", 3);
    peer_close_fds(&msg);
    assert_int_equal(peer_receive(p.sock, &msg, PEER_TIMEOUT_MS), 0);
    assert_int_equal(msg.header.status, -22);
    assert_int_equal(msg.header.length, sizeof(struct uffdmm_error));
    assert_int_equal(strlen((char *)msg.payload),
                     UFFDMM_TEXT_MAX - 1); /* cut, terminated */
    pair_close(&p);
}

static void peer_that_reads_nothing_is_an_error(void **state)
{
    static const uint8_t payload[4096];
    struct pair p;
    int ret = 0;
    (void)state;

    pair_open(&p);
    for (int i = 0; i < 1000 && ret == 0; i++) {
        ret = conn_send(p.conn->fd, UFFDMM_MSG_ZAP, 1, 0, payload, sizeof(payload), NULL,
                        0);
    }
    assert_true(ret < 0); /* and it did not wait */
    pair_close(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(peer_is_identified),
        cmocka_unit_test(nothing_is_again_and_the_end_is_closed),
        cmocka_unit_test(end_within_a_message_is_bad),
        cmocka_unit_test(spoiled_headers_are_bad),
        cmocka_unit_test(longest_message_fits),
        cmocka_unit_test(descriptors_must_be_as_many_as_announced),
        cmocka_unit_test(taken_descriptor_is_the_callers),
        cmocka_unit_test(any_split_gives_the_same_messages),
        cmocka_unit_test(replies_carry_type_id_and_sentence),
        cmocka_unit_test(peer_that_reads_nothing_is_an_error),
    };

    return cmocka_run_group_tests_name("conn", tests, NULL, NULL);
}
