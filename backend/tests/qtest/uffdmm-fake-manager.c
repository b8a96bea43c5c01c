/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A memory manager for memory-backend-external, in a thread of a test
 *
 * The thread reads blocking and complete messages: the peer is QEMU, and a
 * test that hangs is ended by its harness.
 */

#include "qemu/osdep.h"
#include "qemu/cutils.h"
#include "qemu/memfd.h"
#include "uffdmm-fake-manager.h"
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

#ifndef MFD_HUGE_2MB
#define MFD_HUGE_2MB (21U << 26)
#endif

#define SEALS      (F_SEAL_SHRINK | F_SEAL_GROW)
#define STATS_SIZE ((1 + FAKE_TIERS) * FAKE_PAGE_SIZE)

uint8_t fake_manager_byte(uint64_t pfn)
{
    return 1 + pfn % 251;
}

static int fake_memfd_flags(const char *name, uint64_t size, int seals,
                            unsigned flags)
{
    int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | flags);

    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(ftruncate(fd, size), ==, 0);
    if (seals) {
        g_assert_cmpint(fcntl(fd, F_ADD_SEALS, seals), ==, 0);
    }
    return fd;
}

int fake_memfd(const char *name, uint64_t size, int seals)
{
    return fake_memfd_flags(name, size, seals, 0);
}

/* An arena whose content tells its number */
static int fake_arena(unsigned i)
{
    int fd = fake_memfd("arena", FAKE_PAGE_SIZE, 0);

    g_assert_cmpint(pwrite(fd, &i, sizeof(i), 64), ==, sizeof(i));
    return fd;
}

static void fake_send(int sock, const struct uffdmm_msg_header *header,
                      const void *payload, const int *fds)
{
    struct iovec iov[2] = {
        { (void *)header, sizeof(*header) },
        { (void *)payload, header->length },
    };
    struct msghdr msg = { .msg_iov = iov, .msg_iovlen = 2 };
    char control[CMSG_SPACE(UFFDMM_FDS_MAX * sizeof(int))] = { 0 };

    if (header->nr_fds) {
        struct cmsghdr *cmsg;

        msg.msg_control = control;
        msg.msg_controllen = CMSG_SPACE(header->nr_fds * sizeof(int));
        cmsg = CMSG_FIRSTHDR(&msg);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(header->nr_fds * sizeof(int));
        memcpy(CMSG_DATA(cmsg), fds, header->nr_fds * sizeof(int));
    }
    /* QEMU may be gone already: the test looks at QEMU */
    sendmsg(sock, &msg, MSG_NOSIGNAL);
}

void fake_reply(int sock, const struct uffdmm_msg_header *to,
                const void *payload, uint32_t length, const int *fds,
                uint32_t nr_fds)
{
    struct uffdmm_msg_header header = {
        .magic = UFFDMM_MAGIC,
        .version = UFFDMM_VERSION,
        .min_version = UFFDMM_MIN_VERSION,
        .type = to->type | UFFDMM_MSG_REPLY,
        .request_id = to->request_id,
        .length = length,
        .nr_fds = nr_fds,
    };

    fake_send(sock, &header, payload, fds);
}

void fake_reply_error(int sock, const struct uffdmm_msg_header *to,
                      int status, const char *text)
{
    struct uffdmm_error error = { 0 };
    struct uffdmm_msg_header header = {
        .magic = UFFDMM_MAGIC,
        .version = UFFDMM_VERSION,
        .min_version = UFFDMM_MIN_VERSION,
        .type = to->type | UFFDMM_MSG_REPLY,
        .request_id = to->request_id,
        .status = status,
        .length = sizeof(error),
    };

    pstrcpy(error.text, sizeof(error.text), text);
    fake_send(sock, &header, &error, NULL);
}

/* Returns false at the end of the connection. */
static bool fake_receive(int sock, struct uffdmm_msg_header *header,
                         void *payload, int *fds)
{
    char control[CMSG_SPACE(UFFDMM_FDS_MAX * sizeof(int))];
    struct iovec iov = { header, sizeof(*header) };
    struct msghdr msg = {
        .msg_iov = &iov,
        .msg_iovlen = 1,
        .msg_control = control,
        .msg_controllen = sizeof(control),
    };
    struct cmsghdr *cmsg;
    uint32_t nr_fds = 0;

    if (recvmsg(sock, &msg, MSG_WAITALL | MSG_CMSG_CLOEXEC) !=
        sizeof(*header)) {
        return false;
    }
    g_assert_cmphex(header->magic, ==, UFFDMM_MAGIC);
    g_assert_cmpuint(header->version, ==, UFFDMM_VERSION);
    g_assert_cmpuint(header->length, <=, UFFDMM_PAYLOAD_MAX);
    for (cmsg = CMSG_FIRSTHDR(&msg); cmsg; cmsg = CMSG_NXTHDR(&msg, cmsg)) {
        g_assert_cmpint(cmsg->cmsg_type, ==, SCM_RIGHTS);
        nr_fds = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        memcpy(fds, CMSG_DATA(cmsg), nr_fds * sizeof(int));
    }
    g_assert_cmpuint(nr_fds, ==, header->nr_fds);
    if (header->length) {
        g_assert_cmpint(recv(sock, payload, header->length, MSG_WAITALL), ==,
                        header->length);
    }
    return true;
}

static void fake_hello(FakeManager *m, FakeRegion *r,
                       const struct uffdmm_msg_header *h,
                       const struct uffdmm_hello *hello)
{
    struct uffdmm_hello_reply reply = { .pid = getpid() };
    struct uffdmm_msg_header odd = {
        .magic = UFFDMM_MAGIC,
        .version = UFFDMM_VERSION,
        .min_version = UFFDMM_MIN_VERSION,
        .type = h->type | UFFDMM_MSG_REPLY,
        .request_id = h->request_id,
    };

    g_assert_cmpuint(h->length, ==, sizeof(*hello));
    g_assert_cmpuint(hello->role, ==, UFFDMM_ROLE_QEMU);
    m->hello = *hello;
    switch (m->fault) {
    case FAKE_MAGIC:
        odd.magic = 0x50545448;
        fake_send(r->sock, &odd, NULL, NULL);
        break;
    case FAKE_VERSION:
        odd.version = odd.min_version = UFFDMM_VERSION + 1;
        odd.status = -EPROTO;
        fake_send(r->sock, &odd, NULL, NULL);
        break;
    case FAKE_SILENT:
        break;
    default:
        fake_reply(r->sock, h, &reply, sizeof(reply), NULL, 0);
    }
}

static void fake_create(FakeManager *m, FakeRegion *r,
                        const struct uffdmm_msg_header *h,
                        const struct uffdmm_region_create *create)
{
    uint64_t nr_pages = create->size / create->page_size;
    bool huge = create->page_size != FAKE_PAGE_SIZE &&
                m->fault != FAKE_PAGES;
    struct uffdmm_region_create_reply reply;
    uint64_t memfd_size = create->size;
    int fds[UFFDMM_FDS_MAX];

    g_assert_cmpuint(h->length, ==, sizeof(*create));
    if (m->fault == FAKE_REFUSE) {
        fake_reply_error(r->sock, h, -ENOSPC,
                         "the store has no room for 1 GiB: remove a guest");
        return;
    }
    if (m->fault == FAKE_SHORT_MEMFD) {
        memfd_size -= FAKE_PAGE_SIZE;
    }
    pstrcpy(r->name, sizeof(r->name), create->name);
    r->size = create->size;
    r->page_size = create->page_size;
    r->flags = create->flags;
    r->nr_shards = create->nr_shards;
    r->table_size = FAKE_PAGE_SIZE + nr_pages * 24; /* 21 and padding */
    r->memfd = fake_memfd_flags("guest", memfd_size,
                                m->fault == FAKE_UNSEALED ? 0 : SEALS,
                                huge ? MFD_HUGETLB | MFD_HUGE_2MB : 0);
    r->table_fd = fake_memfd("table", r->table_size, SEALS);
    r->table = mmap(NULL, r->table_size, PROT_READ | PROT_WRITE, MAP_SHARED,
                    r->table_fd, 0);
    g_assert_true(r->table != MAP_FAILED);
    *r->table = (struct uffdmm_table_header) {
        .magic = UFFDMM_TABLE_MAGIC,
        .version = UFFDMM_TABLE_VERSION,
        .page_size = r->page_size,
        .nr_pages = m->fault == FAKE_TABLE ? nr_pages + 1 : nr_pages,
        .entries_offset = FAKE_PAGE_SIZE,
        .records_offset = FAKE_PAGE_SIZE + nr_pages * 8,
        .ages_offset = FAKE_PAGE_SIZE + nr_pages * 16,
        .pins_offset = m->fault == FAKE_PINS ? r->table_size - nr_pages :
                       FAKE_PAGE_SIZE + nr_pages * 20,
        .region_state = UFFDMM_REGION_LIVE,
        .region_id = r->id,
    };
    r->entries = (uint64_t *)((uint8_t *)r->table + FAKE_PAGE_SIZE);
    r->records = r->entries + nr_pages;
    r->pins = (uint32_t *)((uint8_t *)r->table + r->table->pins_offset);
    for (uint64_t pfn = 0; pfn < nr_pages; pfn++) {
        r->entries[pfn] = m->initial_entry ? m->initial_entry(pfn) :
                          UFFDMM_PAGE_EMPTY;
    }
    reply = (struct uffdmm_region_create_reply) {
        .region_id = r->id,
        .nr_shards = r->nr_shards,
        .table_size = r->table_size,
        .stats_size = STATS_SIZE,
    };
    fds[0] = r->memfd;
    fds[1] = r->table_fd;
    fds[2] = m->stats_fd;
    for (unsigned i = 0; i < m->nr_arenas; i++) {
        fds[3 + i] = fake_arena(i);
    }
    fake_reply(r->sock, h, &reply, sizeof(reply), fds,
               m->fault == FAKE_FEW_FDS ? 2 : 3 + m->nr_arenas);
    for (unsigned i = 0; i < m->nr_arenas; i++) {
        close(fds[3 + i]);
    }
}

static void fake_attach(FakeManager *m, FakeRegion *r,
                        const struct uffdmm_msg_header *h,
                        const struct uffdmm_region_attach *attach,
                        const int *fds)
{
    g_assert_cmpuint(attach->region_id, ==, r->id);
    g_assert_cmpuint(attach->size, ==, r->size);
    g_assert_cmpuint(attach->nr_shards, ==, r->nr_shards);
    g_assert_cmpuint(h->nr_fds, ==, 1 + r->nr_shards);
    if (m->fault == FAKE_REFUSE_ATTACH) {
        fake_reply_error(r->sock, h, -EBUSY, "no thread left for this guest");
        return;
    }
    r->base = attach->base;
    r->pagemap = fds[0];
    memcpy(r->uffd, &fds[1], r->nr_shards * sizeof(int));
    fake_reply(r->sock, h, NULL, 0, NULL, 0);
}

static void fake_reconnect(FakeManager *m, FakeRegion *r,
                           const struct uffdmm_msg_header *h,
                           const struct uffdmm_reconnect *again,
                           const int *fds)
{
    g_assert_cmpuint(h->length, ==, sizeof(*again));
    g_assert_cmpuint(again->attach.size, ==, again->create.size);
    g_assert_cmpuint(h->nr_fds, ==,
                     3 + again->attach.nr_shards + m->nr_arenas);
    if (m->refuse_reconnects) {
        m->refuse_reconnects--;
        m->reconnects_refused++;
        fake_reply_error(r->sock, h, -EBUSY, "the old worker is not dead yet");
        return;
    }
    pstrcpy(r->name, sizeof(r->name), again->create.name);
    r->memfd = fds[0];
    r->table_fd = fds[1];
    r->pagemap = fds[2];
    r->size = again->create.size;
    r->page_size = again->create.page_size;
    r->base = again->attach.base;
    r->nr_shards = again->attach.nr_shards;
    memcpy(r->uffd, &fds[3], r->nr_shards * sizeof(int));
    m->reconnects++;
    m->arenas_back = 0;
    for (unsigned i = 0; i < m->nr_arenas; i++) {
        int fd = fds[3 + r->nr_shards + i];
        unsigned number;

        g_assert_cmpint(pread(fd, &number, sizeof(number), 64), ==,
                        sizeof(number));
        g_assert_cmpuint(number, ==, i);
        close(fd);
        m->arenas_back++;
    }
    fake_reply(r->sock, h, NULL, 0, NULL, 0);
    for (uint32_t i = 0; i < r->nr_shards; i++) {
        /* messages that the old manager read are not delivered again */
        uint64_t nr_pages = r->size / r->page_size;
        uint64_t first = i * nr_pages / r->nr_shards;
        uint64_t end = (i + 1) * nr_pages / r->nr_shards;
        struct uffdio_range range = {
            r->base + first * r->page_size, (end - first) * r->page_size
        };

        g_assert_cmpint(ioctl(r->uffd[i], UFFDIO_WAKE, &range), ==, 0);
    }
}

static void fake_query(FakeManager *m, FakeRegion *r,
                       const struct uffdmm_msg_header *h)
{
    struct uffdmm_query_reply reply = {
        .stats_size = STATS_SIZE,
    };

    fake_reply(r->sock, h, &reply, sizeof(reply), &m->stats_fd, 1);
}

static void fake_set_policy(FakeManager *m, FakeRegion *r,
                            const struct uffdmm_msg_header *h,
                            const struct uffdmm_policy *policy)
{
    m->policies++;
    m->policy = *policy;
    if (m->refuse_policy) {
        fake_reply_error(r->sock, h, -EINVAL, m->refuse_policy);
        return;
    }
    if (policy->fields & UFFDMM_POLICY_LIMIT) {
        m->stats->limit_bytes = policy->limit_bytes;
    }
    if (policy->fields & UFFDMM_POLICY_READAHEAD) {
        m->stats->readahead_pages = policy->readahead_pages;
    }
    if (policy->fields & UFFDMM_POLICY_DEMOTE) {
        m->stats->demote_after_ms = policy->demote_after_ms;
    }
    if (policy->fields & UFFDMM_POLICY_MIN) {
        m->stats->min_bytes = policy->min_bytes;
    }
    if (policy->fields & UFFDMM_POLICY_MAX) {
        m->stats->max_bytes = policy->max_bytes;
    }
    if (policy->fields & UFFDMM_POLICY_SHARES) {
        m->stats->shares = policy->shares;
    }
    if (policy->fields & UFFDMM_POLICY_PRIORITY) {
        m->stats->priority = policy->priority;
    }
    if (policy->fields & UFFDMM_POLICY_OPT_OUT) {
        m->stats->opt_out = policy->opt_out;
    }
    if (policy->fields & UFFDMM_POLICY_TRACK) {
        m->stats->track_permille = policy->track_permille;
    }
    for (int i = 0; i < FAKE_TIERS; i++) {
        if (policy->tier_mask & 1u << i) {
            r->table->policy.tier_mask |= 1u << i;
            r->table->policy.tier_bytes[i] = policy->tier_bytes[i];
        }
    }
    fake_reply(r->sock, h, policy, sizeof(*policy), NULL, 0);
}

static void fake_region_close(FakeRegion *r)
{
    int *fds[] = { &r->sock, &r->memfd, &r->table_fd, &r->pagemap };

    for (int i = 0; i < ARRAY_SIZE(fds); i++) {
        if (*fds[i] >= 0) {
            close(*fds[i]);
        }
        *fds[i] = -1;
    }
    for (int i = 0; i < UFFDMM_SHARDS_MAX; i++) {
        if (r->uffd[i] >= 0) {
            close(r->uffd[i]);
        }
        r->uffd[i] = -1;
    }
    fake_migration_close(r);
    if (r->table) {
        munmap(r->table, r->table_size);
        r->table = NULL;
    }
}

/* Handle one message.  Called under the lock. */
static void fake_message(FakeManager *m, FakeRegion *r)
{
    static uint64_t payload[UFFDMM_PAYLOAD_MAX / 8];
    struct uffdmm_msg_header h;
    int fds[UFFDMM_FDS_MAX];

    if (!fake_receive(r->sock, &h, payload, fds)) {
        fake_region_close(r);
        return;
    }
    switch (h.type) {
    case UFFDMM_MSG_HELLO:
        fake_hello(m, r, &h, (void *)payload);
        break;
    case UFFDMM_MSG_REGION_CREATE:
        fake_create(m, r, &h, (void *)payload);
        break;
    case UFFDMM_MSG_REGION_ATTACH:
        fake_attach(m, r, &h, (void *)payload, fds);
        break;
    case UFFDMM_MSG_RECONNECT:
        fake_reconnect(m, r, &h, (void *)payload, fds);
        break;
    case UFFDMM_MSG_QUERY:
        fake_query(m, r, &h);
        break;
    case UFFDMM_MSG_REGION_DETACH:
        m->detaches++;
        if (!m->hold_detach) {
            fake_reply(r->sock, &h, NULL, 0, NULL, 0);
        }
        break;
    case UFFDMM_MSG_DISCARD:
        g_array_append_vals(m->discards, payload, 1);
        break;
    case UFFDMM_MSG_SET_POLICY:
        fake_set_policy(m, r, &h, (void *)payload);
        break;
    case UFFDMM_MSG_ZAP | UFFDMM_MSG_REPLY:
        m->zap_status = h.status;
        m->zap_replies++;
        break;
    default:
        g_assert_true(fake_migration_message(m, r, &h, payload));
    }
}

static void fake_serve_fault(FakeRegion *r, uint32_t shard)
{
    g_autofree uint8_t *content = g_malloc(r->page_size);
    struct uffd_msg msg;
    struct uffdio_copy copy = { 0 };
    uint64_t pfn;

    if (read(r->uffd[shard], &msg, sizeof(msg)) != sizeof(msg)) {
        g_assert_cmpint(errno, ==, EAGAIN);
        return;
    }
    g_assert_cmpuint(msg.event, ==, UFFD_EVENT_PAGEFAULT);
    g_assert_cmpuint(msg.arg.pagefault.feat.ptid, !=, 0);
    pfn = (msg.arg.pagefault.address - r->base) / r->page_size;
    g_assert_cmpuint(pfn, <, r->size / r->page_size);
    memset(content, fake_manager_byte(pfn), r->page_size);
    copy.dst = r->base + pfn * r->page_size;
    copy.src = (uintptr_t)content;
    copy.len = r->page_size;
    /* counted before the toucher, and with it the test, goes on */
    r->faults[shard]++;
    if (ioctl(r->uffd[shard], UFFDIO_COPY, &copy) < 0) {
        struct uffdio_range range = { copy.dst, r->page_size };

        g_assert_true(errno == EEXIST || errno == ESRCH || errno == ENOENT);
        ioctl(r->uffd[shard], UFFDIO_WAKE, &range);
    }
}

static FakeRegion *fake_region_unused(FakeManager *m)
{
    for (int i = 0; i < FAKE_REGIONS; i++) {
        if (m->regions[i].sock < 0) {
            return &m->regions[i];
        }
    }
    g_assert_not_reached();
}

static void *fake_thread(void *opaque)
{
    FakeManager *m = opaque;

    for (;;) {
        struct pollfd fds[2 + FAKE_REGIONS * (1 + UFFDMM_SHARDS_MAX)];
        int nr = 2;

        fds[0] = (struct pollfd) { .fd = m->listener, .events = POLLIN };
        fds[1] = (struct pollfd) { .fd = m->wake[0], .events = POLLIN };
        g_mutex_lock(&m->lock);
        for (int i = 0; i < FAKE_REGIONS; i++) {
            FakeRegion *r = &m->regions[i];

            /* poll() ignores negative descriptors */
            fds[nr++] = (struct pollfd) { .fd = r->sock, .events = POLLIN };
            for (int j = 0; j < UFFDMM_SHARDS_MAX; j++) {
                fds[nr++] = (struct pollfd) {
                    .fd = m->hold_faults ? -1 : r->uffd[j],
                    .events = POLLIN,
                };
            }
        }
        g_mutex_unlock(&m->lock);

        poll(fds, nr, -1);

        g_mutex_lock(&m->lock);
        if (m->stop) {
            g_mutex_unlock(&m->lock);
            return NULL;
        }
        if (fds[1].revents) {
            char c;

            g_assert_cmpint(read(m->wake[0], &c, 1), ==, 1);
        }
        for (int i = 0; i < FAKE_REGIONS; i++) {
            FakeRegion *r = &m->regions[i];
            struct pollfd *fd = &fds[2 + i * (1 + UFFDMM_SHARDS_MAX)];

            for (int j = 0; j < UFFDMM_SHARDS_MAX; j++) {
                if (fd[1 + j].revents && fd[1 + j].fd == r->uffd[j]) {
                    fake_serve_fault(r, j);
                }
            }
            if (fd->revents && fd->fd == r->sock) {
                fake_message(m, r);
            }
        }
        if (fds[0].revents) {
            FakeRegion *r = fake_region_unused(m);

            /* not for a QEMU that is started later */
            r->sock = accept4(m->listener, NULL, NULL, SOCK_CLOEXEC);
            memset(r->faults, 0, sizeof(r->faults));
            m->connects++;
            if (m->fault == FAKE_REFUSE_PEER) {
                struct uffdmm_msg_header hello = { .type = UFFDMM_MSG_HELLO };

                fake_reply_error(r->sock, &hello, -EACCES,
                                 "user 77 may not use this manager");
                fake_region_close(r);
            }
        }
        g_cond_broadcast(&m->changed);
        g_mutex_unlock(&m->lock);
    }
}

static void fake_manager_wake(FakeManager *m)
{
    g_assert_cmpint(write(m->wake[1], "", 1), ==, 1);
}

FakeManager *fake_manager_new(void)
{
    FakeManager *m = g_new0(FakeManager, 1);
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    g_autofree char *zeros = NULL;

    m->dir = g_dir_make_tmp("uffdmm-test-XXXXXX", NULL);
    g_assert_nonnull(m->dir);
    m->path = g_build_filename(m->dir, "sock", NULL);
    m->bios = g_build_filename(m->dir, "bios", NULL);
    zeros = g_malloc0(65536);
    g_assert_true(g_file_set_contents(m->bios, zeros, 65536, NULL));
    pstrcpy(addr.sun_path, sizeof(addr.sun_path), m->path);
    m->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    g_assert_cmpint(bind(m->listener, (void *)&addr, sizeof(addr)), ==, 0);
    g_assert_cmpint(listen(m->listener, 8), ==, 0);
    g_assert_cmpint(pipe(m->wake), ==, 0);

    m->stats_fd = fake_memfd("stats", STATS_SIZE, SEALS);
    m->stats = mmap(NULL, STATS_SIZE, PROT_READ | PROT_WRITE,
                    MAP_SHARED, m->stats_fd, 0);
    g_assert_true(m->stats != MAP_FAILED);
    m->stats->magic = UFFDMM_STATS_MAGIC;
    m->stats->version = UFFDMM_STATS_VERSION;
    m->stats->worker_pid = getpid();
    m->stats->state = UFFDMM_WORKER_RUNNING;
    m->stats->nr_tiers = FAKE_TIERS;
    for (int i = 0; i < FAKE_TIERS; i++) {
        static const char *const names[] = { "zero", "ram", "disk" };

        m->tiers[i] = (void *)((uint8_t *)m->stats + (1 + i) * FAKE_PAGE_SIZE);
        pstrcpy(m->tiers[i]->name, sizeof(m->tiers[i]->name), names[i]);
        m->tiers[i]->type = i;
    }

    m->discards = g_array_new(FALSE, FALSE, sizeof(struct uffdmm_range));
    for (int i = 0; i < FAKE_REGIONS; i++) {
        FakeRegion *r = &m->regions[i];

        r->id = 100 + i;
        r->sock = r->memfd = r->table_fd = r->pagemap = -1;
        memset(r->uffd, -1, sizeof(r->uffd));
    }
    g_mutex_init(&m->lock);
    g_cond_init(&m->changed);
    m->thread = g_thread_new("fake-manager", fake_thread, m);
    return m;
}

void fake_manager_free(FakeManager *m)
{
    g_mutex_lock(&m->lock);
    m->stop = true;
    g_mutex_unlock(&m->lock);
    fake_manager_wake(m);
    g_thread_join(m->thread);
    for (int i = 0; i < FAKE_REGIONS; i++) {
        fake_region_close(&m->regions[i]);
    }
    munmap(m->stats, STATS_SIZE);
    close(m->stats_fd);
    close(m->listener);
    close(m->wake[0]);
    close(m->wake[1]);
    g_array_free(m->discards, true);
    unlink(m->path);
    unlink(m->bios);
    rmdir(m->dir);
    g_free(m->path);
    g_free(m->bios);
    g_free(m->dir);
    g_mutex_clear(&m->lock);
    g_cond_clear(&m->changed);
    g_free(m);
}

void fake_manager_drop(FakeManager *m)
{
    g_mutex_lock(&m->lock);
    for (int i = 0; i < FAKE_REGIONS; i++) {
        fake_region_close(&m->regions[i]);
    }
    g_mutex_unlock(&m->lock);
    fake_manager_wake(m);
}

void fake_manager_release_faults(FakeManager *m)
{
    g_mutex_lock(&m->lock);
    m->hold_faults = false;
    g_mutex_unlock(&m->lock);
    fake_manager_wake(m);
}

static void fake_send_zap(FakeRegion *r, uint32_t region_id, uint64_t offset,
                          uint64_t length)
{
    struct uffdmm_range range = {
        .region_id = region_id,
        .offset = offset,
        .length = length,
    };
    struct uffdmm_msg_header header = {
        .magic = UFFDMM_MAGIC,
        .version = UFFDMM_VERSION,
        .min_version = UFFDMM_MIN_VERSION,
        .type = UFFDMM_MSG_ZAP,
        .request_id = 1,
        .length = sizeof(range),
    };

    fake_send(r->sock, &header, &range, NULL);
}

void fake_manager_zap_burst(FakeManager *m, unsigned region, unsigned count)
{
    FakeRegion *r = &m->regions[region];

    /* under the lock, the thread reads no replies */
    g_mutex_lock(&m->lock);
    for (unsigned i = 0; i < count; i++) {
        fake_send_zap(r, r->id, 0, r->size);
    }
    g_mutex_unlock(&m->lock);
}

int32_t fake_manager_zap(FakeManager *m, unsigned region, uint32_t region_id,
                         uint64_t offset, uint64_t length)
{
    unsigned replies;

    g_mutex_lock(&m->lock);
    replies = m->zap_replies;
    fake_send_zap(&m->regions[region], region_id, offset, length);
    g_mutex_unlock(&m->lock);
    fake_manager_wait(m, m->zap_replies != replies);
    return m->zap_status;
}
