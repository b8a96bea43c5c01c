/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Messages between memory-backend-external and its manager
 *
 * QIOChannelSocket is not used: it wants a GMainContext for anything that
 * may take time, and here everything happens between two poll() calls of one
 * thread.  See docs/interop/uffdmm.rst for the messages.
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "qemu/sockets.h"
#include "hostmem-external-wire.h"
#include <sys/un.h>

struct ExternalOutgoing {
    QSIMPLEQ_ENTRY(ExternalOutgoing) next;
    int fds[UFFDMM_FDS_MAX];
    uint32_t nr_fds;
    size_t sent;
    size_t length; /* of data */
    uint8_t data[];
};

static void external_message_close_fds(ExternalMessage *msg)
{
    for (uint32_t i = 0; i < msg->nr_fds; i++) {
        if (msg->fds[i] >= 0) {
            close(msg->fds[i]);
        }
    }
    msg->nr_fds = 0;
}

static void external_channel_pop(ExternalChannel *chan)
{
    ExternalOutgoing *out = QSIMPLEQ_FIRST(&chan->outgoing);

    QSIMPLEQ_REMOVE_HEAD(&chan->outgoing, next);
    chan->nr_outgoing--;
    g_free(out);
}

void external_channel_init(ExternalChannel *chan)
{
    memset(chan, 0, sizeof(*chan));
    chan->sock = -1;
    QSIMPLEQ_INIT(&chan->outgoing);
}

bool external_channel_connect(ExternalChannel *chan, const char *path,
                              Error **errp)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };

    assert(chan->sock < 0);
    if (strlen(path) >= sizeof(addr.sun_path)) {
        error_setg(errp, "socket path '%s' is longer than %zu bytes", path,
                   sizeof(addr.sun_path) - 1);
        return false;
    }
    strcpy(addr.sun_path, path);

    chan->sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (chan->sock < 0) {
        error_setg_errno(errp, errno, "cannot create a UNIX socket");
        return false;
    }
    if (RETRY_ON_EINTR(connect(chan->sock, (struct sockaddr *)&addr,
                               sizeof(addr))) < 0) {
        error_setg_errno(errp, errno,
                         "cannot connect to the memory manager at '%s'", path);
        error_append_hint(errp, "Is uffdmm-manager running with "
                          "--socket-path %s, and may this user connect?\n",
                          path);
        external_channel_close(chan);
        return false;
    }
    return true;
}

void external_channel_close(ExternalChannel *chan)
{
    if (chan->sock >= 0) {
        close(chan->sock);
        chan->sock = -1;
    }
    while (!QSIMPLEQ_EMPTY(&chan->outgoing)) {
        external_channel_pop(chan);
    }
    external_message_close_fds(&chan->incoming);
    chan->received = 0;
}

void external_channel_queue(ExternalChannel *chan,
                            const struct uffdmm_msg_header *header,
                            const void *payload, const int *fds)
{
    ExternalOutgoing *out;
    struct uffdmm_msg_header *h;

    assert(header->length <= UFFDMM_PAYLOAD_MAX);
    assert(header->nr_fds <= UFFDMM_FDS_MAX);
    out = g_malloc0(sizeof(*out) + sizeof(*h) + header->length);
    out->length = sizeof(*h) + header->length;
    out->nr_fds = header->nr_fds;
    if (fds) {
        memcpy(out->fds, fds, header->nr_fds * sizeof(*fds));
    }
    h = (struct uffdmm_msg_header *)out->data;
    *h = *header;
    h->magic = UFFDMM_MAGIC;
    h->version = UFFDMM_VERSION;
    h->min_version = UFFDMM_MIN_VERSION;
    if (header->length) {
        memcpy(out->data + sizeof(*h), payload, header->length);
    }
    QSIMPLEQ_INSERT_TAIL(&chan->outgoing, out, next);
    chan->nr_outgoing++;
}

bool external_channel_send(ExternalChannel *chan, Error **errp)
{
    ExternalOutgoing *out;

    while ((out = QSIMPLEQ_FIRST(&chan->outgoing))) {
        struct iovec iov = {
            .iov_base = out->data + out->sent,
            .iov_len = out->length - out->sent,
        };
        struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
        char control[CMSG_SPACE(sizeof(out->fds))] = { 0 };
        ssize_t ret;

        if (out->nr_fds && !out->sent) {
            size_t fds_size = out->nr_fds * sizeof(int);
            struct cmsghdr *cmsg;

            msg.msg_control = control;
            msg.msg_controllen = CMSG_SPACE(fds_size);
            cmsg = CMSG_FIRSTHDR(&msg);
            cmsg->cmsg_level = SOL_SOCKET;
            cmsg->cmsg_type = SCM_RIGHTS;
            cmsg->cmsg_len = CMSG_LEN(fds_size);
            memcpy(CMSG_DATA(cmsg), out->fds, fds_size);
        }

        ret = RETRY_ON_EINTR(sendmsg(chan->sock, &msg, MSG_NOSIGNAL));
        if (ret < 0) {
            if (errno == EAGAIN) {
                return true;
            }
            error_setg_errno(errp, errno, "cannot send to the memory manager");
            return false;
        }
        out->sent += ret;
        if (out->sent == out->length) {
            external_channel_pop(chan);
        }
    }
    return true;
}

/* Take over the descriptors of a received chunk.  Returns false if too many. */
static bool external_message_take_fds(ExternalMessage *in, struct msghdr *msg)
{
    struct cmsghdr *cmsg;
    bool fits = !(msg->msg_flags & MSG_CTRUNC);

    for (cmsg = CMSG_FIRSTHDR(msg); cmsg; cmsg = CMSG_NXTHDR(msg, cmsg)) {
        const int *fds = (const int *)CMSG_DATA(cmsg);
        size_t nr = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);

        if (cmsg->cmsg_level != SOL_SOCKET || cmsg->cmsg_type != SCM_RIGHTS) {
            continue;
        }
        for (size_t i = 0; i < nr; i++) {
            if (in->nr_fds < UFFDMM_FDS_MAX) {
                in->fds[in->nr_fds++] = fds[i];
            } else {
                close(fds[i]);
                fits = false;
            }
        }
    }
    return fits;
}

static bool external_header_check(const struct uffdmm_msg_header *h,
                                  Error **errp)
{
    if (h->magic != UFFDMM_MAGIC) {
        error_setg(errp, "the peer does not speak the uffdmm protocol "
                   "(magic 0x%" PRIx32 " instead of 0x%x)", h->magic,
                   UFFDMM_MAGIC);
        error_append_hint(errp, "Name the socket of an uffdmm-manager.\n");
        return false;
    }
    if (h->version < UFFDMM_MIN_VERSION || h->min_version > UFFDMM_VERSION) {
        error_setg(errp, "the memory manager speaks versions %u to %u of the "
                   "uffdmm protocol, this QEMU versions %u to %u",
                   h->min_version, h->version,
                   UFFDMM_MIN_VERSION, UFFDMM_VERSION);
        error_append_hint(errp, "Update the older one of the two.\n");
        return false;
    }
    if (h->length > UFFDMM_PAYLOAD_MAX || h->nr_fds > UFFDMM_FDS_MAX) {
        error_setg(errp, "the memory manager sent a message of type 0x%" PRIx32
                   " with %" PRIu32 " bytes and %" PRIu32 " descriptors, "
                   "which is more than the protocol allows", h->type,
                   h->length, h->nr_fds);
        return false;
    }
    return true;
}

int external_channel_receive(ExternalChannel *chan, Error **errp)
{
    ExternalMessage *in = &chan->incoming;
    const size_t header_size = sizeof(in->header);

    if (chan->received >= header_size &&
        chan->received == header_size + in->header.length) {
        /* the caller is done with the last one */
        external_message_close_fds(in);
        chan->received = 0;
    }

    for (;;) {
        char control[CMSG_SPACE(UFFDMM_FDS_MAX * sizeof(int))];
        bool in_header = chan->received < header_size;
        struct iovec iov = {
            .iov_base = in_header ? (uint8_t *)&in->header + chan->received
                                  : in->payload + chan->received - header_size,
            .iov_len = in_header ? header_size - chan->received
                                 : header_size + in->header.length -
                                   chan->received,
        };
        struct msghdr msg = {
            .msg_iov = &iov,
            .msg_iovlen = 1,
            .msg_control = control,
            .msg_controllen = sizeof(control),
        };
        ssize_t ret;

        ret = RETRY_ON_EINTR(recvmsg(chan->sock, &msg, MSG_CMSG_CLOEXEC));
        if (ret < 0) {
            if (errno == EAGAIN) {
                return 0;
            }
            error_setg_errno(errp, errno,
                             "cannot receive from the memory manager");
            return -1;
        }
        if (ret == 0) {
            error_setg(errp, "the memory manager closed the connection");
            return -1;
        }
        if (!external_message_take_fds(in, &msg)) {
            error_setg(errp, "the memory manager sent more descriptors than "
                       "the protocol allows, or than this process may open");
            return -1;
        }

        chan->received += ret;
        if (chan->received < header_size) {
            continue;
        }
        if (in_header && !external_header_check(&in->header, errp)) {
            return -1;
        }
        if (chan->received < header_size + in->header.length) {
            continue;
        }
        if (in->nr_fds != in->header.nr_fds) {
            error_setg(errp, "the memory manager announced %" PRIu32
                       " descriptors and sent %" PRIu32, in->header.nr_fds,
                       in->nr_fds);
            return -1;
        }
        return 1;
    }
}
