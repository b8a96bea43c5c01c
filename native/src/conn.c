/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conn.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define HEADER sizeof(struct uffdmm_msg_header)

_Static_assert(sizeof(struct uffdmm_msg_header) == 32,
               "the header is part of the protocol");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "the protocol is little-endian");

struct conn *conn_new(int fd)
{
    struct conn *c = calloc(1, sizeof(*c));
    struct ucred cred = {.pid = 0, .uid = (uid_t)-1};
    socklen_t len = sizeof(cred);

    if (!c) {
        close(fd);
        return NULL;
    }
    c->fd = fd;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0) {
        cred.uid = (uid_t)-1;
    }
    c->pid = cred.pid;
    c->uid = cred.uid;
    return c;
}

static void drop_fds(struct conn *c)
{
    for (unsigned i = 0; i < c->nr_fds; i++) {
        if (c->fds[i] >= 0) {
            close(c->fds[i]);
        }
    }
    c->nr_fds = 0;
}

void conn_free(struct conn *c)
{
    drop_fds(c);
    close(c->fd);
    free(c);
}

void conn_next(struct conn *c)
{
    drop_fds(c);
    c->have = 0;
}

int conn_take_fd(struct conn *c, unsigned i)
{
    int fd = c->fds[i];

    c->fds[i] = -1;
    return fd;
}

/* Keeps the descriptors of one recvmsg(); false when there are too many. */
static bool keep_fds(struct conn *c, struct msghdr *mh)
{
    bool ok = !(mh->msg_flags & MSG_CTRUNC);

    for (struct cmsghdr *cm = CMSG_FIRSTHDR(mh); cm; cm = CMSG_NXTHDR(mh, cm)) {
        size_t nr;

        if (cm->cmsg_level != SOL_SOCKET || cm->cmsg_type != SCM_RIGHTS) {
            continue;
        }
        nr = (cm->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < nr; i++) {
            int fd;

            memcpy(&fd, CMSG_DATA(cm) + i * sizeof(int), sizeof(fd));
            if (c->nr_fds < UFFDMM_FDS_MAX) {
                c->fds[c->nr_fds++] = fd;
            } else {
                close(fd);
                ok = false;
            }
        }
    }
    return ok;
}

static enum conn_outcome bad(char *err, size_t err_len, const char *what, uint64_t value,
                             uint64_t wanted)
{
    snprintf(err, err_len,
             "%s is %#llx, expected %#llx: the peer does not speak this protocol", what,
             (unsigned long long)value, (unsigned long long)wanted);
    return CONN_BAD;
}

static enum conn_outcome check_header(const struct conn *c, char *err, size_t err_len)
{
    const struct uffdmm_msg_header *h = &c->header;

    if (h->magic != UFFDMM_MAGIC) {
        return bad(err, err_len, "magic", h->magic, UFFDMM_MAGIC);
    }
    if (h->version < UFFDMM_MIN_VERSION || h->min_version > UFFDMM_VERSION) {
        snprintf(
            err, err_len,
            "the peer speaks protocol versions %u to %u, this manager %d to %d: install "
            "matching versions of QEMU's series and the manager",
            h->min_version, h->version, UFFDMM_MIN_VERSION, UFFDMM_VERSION);
        return CONN_BAD;
    }
    if (h->length > UFFDMM_PAYLOAD_MAX) {
        return bad(err, err_len, "payload length", h->length, UFFDMM_PAYLOAD_MAX);
    }
    if (h->nr_fds > UFFDMM_FDS_MAX) {
        return bad(err, err_len, "number of descriptors", h->nr_fds, UFFDMM_FDS_MAX);
    }
    return CONN_MESSAGE;
}

enum conn_outcome conn_receive(struct conn *c, char *err, size_t err_len)
{
    for (;;) {
        union {
            char buf[CMSG_SPACE(sizeof(int) * UFFDMM_FDS_MAX)];
            struct cmsghdr align;
        } control;
        struct iovec iov;
        struct msghdr mh = {.msg_iov = &iov,
                            .msg_iovlen = 1,
                            .msg_control = control.buf,
                            .msg_controllen = sizeof(control.buf)};
        ssize_t n;

        if (c->have >= HEADER && c->have == HEADER + c->header.length) {
            if (c->nr_fds != c->header.nr_fds) {
                return bad(err, err_len, "number of descriptors received", c->nr_fds,
                           c->header.nr_fds);
            }
            return CONN_MESSAGE;
        }
        if (c->have < HEADER) {
            iov.iov_base = (char *)&c->header + c->have;
            iov.iov_len = HEADER - c->have;
        } else {
            iov.iov_base = c->payload + (c->have - HEADER);
            iov.iov_len = HEADER + c->header.length - c->have;
        }
        n = recvmsg(c->fd, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (n < 0) {
            if (errno == EAGAIN || errno == EINTR) {
                return CONN_AGAIN;
            }
            return CONN_CLOSED;
        }
        if (!keep_fds(c, &mh)) {
            return bad(err, err_len, "number of descriptors received", c->nr_fds + 1,
                       UFFDMM_FDS_MAX);
        }
        if (n == 0) {
            if (c->have) {
                snprintf(err, err_len, "the peer closed in the middle of a message");
                return CONN_BAD;
            }
            return CONN_CLOSED;
        }
        c->have += (size_t)n;
        if (c->have == HEADER && check_header(c, err, err_len) != CONN_MESSAGE) {
            return CONN_BAD;
        }
    }
}

int conn_send(int fd, uint32_t type, uint64_t request_id, int32_t status,
              const void *payload, size_t length, const int *fds, unsigned nr_fds)
{
    struct uffdmm_msg_header header = {
        .magic = UFFDMM_MAGIC,
        .version = UFFDMM_VERSION,
        .min_version = UFFDMM_MIN_VERSION,
        .type = type,
        .length = (uint32_t)length,
        .request_id = request_id,
        .status = status,
        .nr_fds = nr_fds,
    };
    struct iovec iov[2] = {
        {.iov_base = &header, .iov_len = sizeof(header)},
        {.iov_base = (void *)(uintptr_t)payload, .iov_len = length},
    };
    union {
        char buf[CMSG_SPACE(sizeof(int) * UFFDMM_FDS_MAX)];
        struct cmsghdr align;
    } control;
    struct msghdr mh = {.msg_iov = iov, .msg_iovlen = length ? 2 : 1};
    ssize_t n;

    if (nr_fds) {
        struct cmsghdr *cm;

        memset(&control, 0, sizeof(control));
        mh.msg_control = control.buf;
        mh.msg_controllen = CMSG_SPACE(sizeof(int) * nr_fds);
        cm = CMSG_FIRSTHDR(&mh);
        cm->cmsg_level = SOL_SOCKET;
        cm->cmsg_type = SCM_RIGHTS;
        cm->cmsg_len = CMSG_LEN(sizeof(int) * nr_fds);
        memcpy(CMSG_DATA(cm), fds, sizeof(int) * nr_fds);
    }
    do {
        n = sendmsg(fd, &mh, MSG_DONTWAIT | MSG_NOSIGNAL);
    } while (n < 0 && errno == EINTR);
    if (n < 0) {
        return -errno;
    }
    /* messages are far smaller than a socket buffer: half a one means that nobody reads */
    return (size_t)n == sizeof(header) + length ? 0 : -EPIPE;
}

int conn_reply(struct conn *c, const void *payload, size_t length, const int *fds,
               unsigned nr_fds)
{
    return conn_send(c->fd, c->header.type | UFFDMM_MSG_REPLY, c->header.request_id, 0,
                     payload, length, fds, nr_fds);
}

int conn_reply_error(struct conn *c, int status, const char *text)
{
    struct uffdmm_error error = {.text = ""};

    snprintf(error.text, sizeof(error.text), "%s", text);
    return conn_send(c->fd, c->header.type | UFFDMM_MSG_REPLY, c->header.request_id,
                     status, &error, sizeof(error), NULL, 0);
}

bool conn_string_ok(const char *text, size_t size)
{
    return memchr(text, '\0', size) != NULL;
}
