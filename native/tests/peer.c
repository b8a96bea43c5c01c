/* SPDX-License-Identifier: GPL-2.0-or-later */
/* See peer.h. */
#include "peer.h"

#include "uffd_fixture.h"

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int peer_connect(const char *path)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};

    if (snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", path) >=
        (int)sizeof(addr.sun_path)) {
        return -ENAMETOOLONG;
    }
    int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (sock < 0) {
        return -errno;
    }
    if (connect(sock, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
        int ret = -errno;
        close(sock);
        return ret;
    }
    return sock;
}

int peer_send_raw(int sock, const void *bytes, size_t length, const int *fds,
                  uint32_t nr_fds)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(64 * sizeof(int))];
    } control = {0};
    struct iovec iov = {.iov_base = (void *)(uintptr_t)bytes, .iov_len = length};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

    if (nr_fds > 64) {
        return -EINVAL;
    }
    if (nr_fds) {
        msg.msg_control = control.bytes;
        msg.msg_controllen = CMSG_SPACE(nr_fds * sizeof(int));
        struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(nr_fds * sizeof(int));
        memcpy(CMSG_DATA(cmsg), fds, nr_fds * sizeof(int));
    }
    while (iov.iov_len) {
        ssize_t sent = sendmsg(sock, &msg, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno == EINTR) {
                continue;
            }
            return errno == ECONNRESET ? -EPIPE : -errno;
        }
        iov.iov_base = (char *)iov.iov_base + sent;
        iov.iov_len -= (size_t)sent;
        msg.msg_control = NULL;
        msg.msg_controllen = 0;
    }
    return 0;
}

struct uffdmm_msg_header peer_header(uint32_t type, uint32_t length, uint64_t request_id,
                                     uint32_t nr_fds)
{
    return (struct uffdmm_msg_header){
        .magic = UFFDMM_MAGIC,
        .version = UFFDMM_VERSION,
        .min_version = UFFDMM_MIN_VERSION,
        .type = type,
        .length = length,
        .request_id = request_id,
        .nr_fds = nr_fds,
    };
}

int peer_send(int sock, const struct uffdmm_msg_header *header, const void *payload,
              const int *fds)
{
    uint8_t bytes[sizeof(*header) + UFFDMM_PAYLOAD_MAX];
    size_t length =
        header->length < UFFDMM_PAYLOAD_MAX ? header->length : UFFDMM_PAYLOAD_MAX;

    memcpy(bytes, header, sizeof(*header));
    if (length) {
        memcpy(bytes + sizeof(*header), payload, length);
    }
    return peer_send_raw(sock, bytes, sizeof(*header) + length, fds, header->nr_fds);
}

/* Reads exactly `length` bytes and collects descriptors that come with them. */
static int receive_bytes(int sock, void *buffer, size_t length, struct peer_msg *msg,
                         int64_t deadline)
{
    char *at = buffer;

    while (length) {
        union {
            struct cmsghdr align;
            char bytes[CMSG_SPACE(UFFDMM_FDS_MAX * sizeof(int))];
        } control;
        struct iovec iov = {.iov_base = at, .iov_len = length};
        struct msghdr m = {.msg_iov = &iov,
                           .msg_iovlen = 1,
                           .msg_control = control.bytes,
                           .msg_controllen = sizeof(control.bytes)};
        struct pollfd p = {.fd = sock, .events = POLLIN};
        int64_t left = deadline - monotonic_ms();

        int ready = poll(&p, 1, left < 0 ? 0 : (int)left);
        if (ready == 0) {
            return -ETIMEDOUT;
        }
        ssize_t got = ready < 0 ? -1 : recvmsg(sock, &m, MSG_CMSG_CLOEXEC);
        if (got < 0) {
            if (errno == EINTR) {
                continue;
            }
            return errno == ECONNRESET ? -EPIPE : -errno;
        }
        if (got == 0) {
            return -EPIPE;
        }
        struct cmsghdr *cmsg = CMSG_FIRSTHDR(&m);
        if (cmsg && cmsg->cmsg_level == SOL_SOCKET && cmsg->cmsg_type == SCM_RIGHTS) {
            uint32_t n = (uint32_t)((cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int));
            if (msg->nr_fds || n > UFFDMM_FDS_MAX) {
                return -EPROTO;
            }
            memcpy(msg->fds, CMSG_DATA(cmsg), n * sizeof(int));
            msg->nr_fds = n;
        }
        at += got;
        length -= (size_t)got;
    }
    return 0;
}

int peer_receive(int sock, struct peer_msg *msg, int timeout_ms)
{
    int64_t deadline = monotonic_ms() + timeout_ms;

    memset(msg, 0, sizeof(*msg));
    int ret = receive_bytes(sock, &msg->header, sizeof(msg->header), msg, deadline);
    if (ret < 0) {
        return ret;
    }
    if (msg->header.magic != UFFDMM_MAGIC || msg->header.length > UFFDMM_PAYLOAD_MAX ||
        msg->header.nr_fds != msg->nr_fds) {
        peer_close_fds(msg);
        return -EPROTO;
    }
    return receive_bytes(sock, msg->payload, msg->header.length, msg, deadline);
}

void peer_close_fds(struct peer_msg *msg)
{
    for (uint32_t i = 0; i < msg->nr_fds; i++) {
        close(msg->fds[i]);
    }
    msg->nr_fds = 0;
}

int peer_request(int sock, uint32_t type, const void *payload, uint32_t length,
                 const int *fds, uint32_t nr_fds, struct peer_msg *reply)
{
    static _Atomic uint64_t last_id = 1000; /* a stand-in has two threads */
    struct uffdmm_msg_header header = peer_header(type, length, ++last_id, nr_fds);

    int ret = peer_send(sock, &header, payload, fds);
    /* A refusal may have been sent before the close: read it all the same. */
    if (ret < 0 && ret != -EPIPE) {
        return ret;
    }
    ret = peer_receive(sock, reply, PEER_TIMEOUT_MS);
    if (ret < 0) {
        return ret;
    }
    if (reply->header.type != (type | UFFDMM_MSG_REPLY) ||
        reply->header.request_id != header.request_id) {
        return -EPROTO;
    }
    return reply->header.status;
}

int peer_hello(int sock, enum uffdmm_role role, const char *vm_name,
               struct peer_msg *reply)
{
    struct uffdmm_hello hello = {.role = role};

    snprintf(hello.vm_name, sizeof(hello.vm_name), "%s", vm_name);
    snprintf(hello.agent, sizeof(hello.agent), "stand-in VMM");
    return peer_request(sock, UFFDMM_MSG_HELLO, &hello, sizeof(hello), NULL, 0, reply);
}

int peer_open(const char *path, enum uffdmm_role role, const char *vm_name,
              struct peer_msg *reply)
{
    int64_t deadline = monotonic_ms() + PEER_TIMEOUT_MS;

    for (;;) {
        memset(reply, 0, sizeof(*reply));
        int sock = peer_connect(path);
        if (sock < 0) {
            return sock;
        }
        int ret = peer_hello(sock, role, vm_name, reply);
        if (ret == 0) {
            return sock;
        }
        close(sock);
        if (ret != -EAGAIN || monotonic_ms() > deadline) {
            return ret;
        }
        sleep_ms(5);
    }
}

static int control_open(const char *path, const char *vm_name, struct peer_msg *reply)
{
    return peer_open(path, UFFDMM_ROLE_CONTROL, vm_name, reply);
}

/* Maps the statistics of a VM; 0 or a negative errno. */
static int map_stats(const char *path, const char *vm_name, void **map, uint64_t *size)
{
    struct peer_msg reply;
    struct uffdmm_query_reply query;

    int sock = control_open(path, vm_name, &reply);
    if (sock < 0) {
        return sock;
    }
    int ret = peer_request(sock, UFFDMM_MSG_QUERY, NULL, 0, NULL, 0, &reply);
    if (ret == 0) {
        memcpy(&query, reply.payload, sizeof(query));
        ret = -EPROTO;
        if (reply.nr_fds == 1 && reply.header.length == sizeof(query) &&
            query.stats_size >= (1 + UFFDMM_TIERS_MAX) * 4096UL) {
            *size = query.stats_size;
            *map = mmap(NULL, *size, PROT_READ, MAP_SHARED, reply.fds[0], 0);
            ret = *map == MAP_FAILED ? -errno : 0;
        }
    }
    peer_close_fds(&reply);
    close(sock);
    return ret;
}

int control_tier_stats(const char *path, const char *vm_name, struct peer_stats *stats)
{
    void *map;
    uint64_t size;

    int ret = map_stats(path, vm_name, &map, &size);
    if (ret < 0) {
        return ret;
    }
    memcpy(&stats->vm, map, sizeof(stats->vm));
    for (size_t i = 0; i < UFFDMM_TIERS_MAX; i++) {
        memcpy(&stats->tiers[i], (const char *)map + (1 + i) * 4096,
               sizeof(stats->tiers[i]));
    }
    munmap(map, size);
    return 0;
}

int control_stats(const char *path, const char *vm_name, struct uffdmm_stats *stats)
{
    struct peer_stats all;

    int ret = control_tier_stats(path, vm_name, &all);
    if (ret == 0) {
        *stats = all.vm;
    }
    return ret;
}

int control_set_policy(const char *path, const char *vm_name,
                       struct uffdmm_policy *policy, char err[UFFDMM_TEXT_MAX])
{
    struct peer_msg reply;

    int sock = control_open(path, vm_name, &reply);
    if (sock < 0) {
        return sock;
    }
    int ret = peer_request(sock, UFFDMM_MSG_SET_POLICY, policy, sizeof(*policy), NULL, 0,
                           &reply);
    if (ret == 0 && reply.header.length != sizeof(*policy)) {
        ret = -EPROTO;
    }
    if (ret == 0) {
        memcpy(policy, reply.payload, sizeof(*policy));
    } else if (err) {
        snprintf(err, UFFDMM_TEXT_MAX, "%.*s", UFFDMM_TEXT_MAX - 1,
                 (const char *)reply.payload);
    }
    close(sock);
    return ret;
}

int control_list(const char *path, struct uffdmm_list_entry *entries, int max)
{
    struct uffdmm_list list = {.start = 0};
    struct peer_msg reply;

    int sock = control_open(path, "", &reply);
    if (sock < 0) {
        return sock;
    }
    int ret = peer_request(sock, UFFDMM_MSG_LIST, &list, sizeof(list), NULL, 0, &reply);
    if (ret == 0) {
        int n = (int)(reply.header.length / sizeof(*entries));
        ret = reply.header.length % sizeof(*entries) ? -EPROTO : n;
        if (ret > 0) {
            memcpy(entries, reply.payload,
                   sizeof(*entries) * (size_t)(n < max ? n : max));
        }
    }
    close(sock);
    return ret;
}
