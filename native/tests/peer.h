/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The wire protocol from the other side of the manager's socket, for tests.
 * Nothing is checked or completed on the way out: a test may send whatever it
 * likes, which is how the manager's own checks are tested.
 */
#ifndef UFFDMM_TEST_PEER_H
#define UFFDMM_TEST_PEER_H

#include <stddef.h>
#include <stdint.h>

#include "uffdmm/protocol.h"

enum { PEER_TIMEOUT_MS = 10000 };

struct peer_msg {
    struct uffdmm_msg_header header;
    /* one more than the longest, so that text is always terminated */
    uint8_t payload[UFFDMM_PAYLOAD_MAX + 1];
    int fds[UFFDMM_FDS_MAX];
    uint32_t nr_fds;
};

/* Connects; a descriptor or -errno. */
int peer_connect(const char *path);

/* Sends bytes with descriptors; 0 or -errno (-EPIPE when the peer closed). */
int peer_send_raw(int sock, const void *bytes, size_t length, const int *fds,
                  uint32_t nr_fds);

/* A correct header for a message of this kind. */
struct uffdmm_msg_header peer_header(uint32_t type, uint32_t length, uint64_t request_id,
                                     uint32_t nr_fds);

int peer_send(int sock, const struct uffdmm_msg_header *header, const void *payload,
              const int *fds);

/* Receives one message.  0, -ETIMEDOUT, -EPIPE when the peer closed, -EPROTO. */
int peer_receive(int sock, struct peer_msg *msg, int timeout_ms);
void peer_close_fds(struct peer_msg *msg);

/*
 * Sends a request and waits for its reply.  The reply's status, or -EPIPE,
 * -ETIMEDOUT, -EPROTO as above.  A refused reply has its sentence in
 * msg->payload.  The caller closes the reply's descriptors.
 */
int peer_request(int sock, uint32_t type, const void *payload, uint32_t length,
                 const int *fds, uint32_t nr_fds, struct peer_msg *reply);

int peer_hello(int sock, enum uffdmm_role role, const char *vm_name,
               struct peer_msg *reply);

/*
 * Connects and says HELLO; tries again while the last worker of that name is
 * ending (-EAGAIN).  The descriptor, or a negative errno.
 */
int peer_open(const char *path, enum uffdmm_role role, const char *vm_name,
              struct peer_msg *reply);

/*
 * One exchange on a control connection of its own.  0 or a negative errno; the
 * sentence of a refusal is in err when that is not NULL.
 */
int control_stats(const char *path, const char *vm_name, struct uffdmm_stats *stats);
/* The same with what each tier counts. */
struct peer_stats {
    struct uffdmm_stats vm;
    struct uffdmm_tier_stats tiers[UFFDMM_TIERS_MAX];
};
int control_tier_stats(const char *path, const char *vm_name, struct peer_stats *stats);
int control_set_policy(const char *path, const char *vm_name,
                       struct uffdmm_policy *policy, char err[UFFDMM_TEXT_MAX]);
/* The number of VMs, at most max of them in entries. */
int control_list(const char *path, struct uffdmm_list_entry *entries, int max);

#endif
