/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The region half of standin.h; the process half is standin_process.c. */
#include "standin.h"

#include "uffd_fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static int complain(struct standin *s, int ret, const char *what)
{
    snprintf(s->error, sizeof(s->error), "%s: %s", what, strerror(-ret));
    return ret;
}

/* Takes over the manager's sentence when it refused. */
static int refused(struct standin *s, int ret, const struct peer_msg *reply,
                   const char *what)
{
    if (reply->header.status < 0 && ret == reply->header.status && reply->payload[0]) {
        snprintf(s->error, sizeof(s->error), "%.*s", UFFDMM_TEXT_MAX,
                 (const char *)reply->payload);
        return ret;
    }
    return complain(s, ret, what);
}

static int map_shared_pages(struct standin *s)
{
    struct stat st;

    if (fstat(s->memfd, &st) < 0 || (uint64_t)st.st_size != s->size) {
        return complain(s, -EPROTO, "memfd of the wrong size");
    }
    int seals = fcntl(s->memfd, F_GET_SEALS);
    if (seals < 0 ||
        (seals & (F_SEAL_SHRINK | F_SEAL_GROW)) != (F_SEAL_SHRINK | F_SEAL_GROW)) {
        return complain(s, -EPROTO, "memfd without seals");
    }
    void *table =
        mmap(NULL, s->table_size, PROT_READ | PROT_WRITE, MAP_SHARED, s->table_fd, 0);
    if (table == MAP_FAILED) {
        return complain(s, -errno, "cannot map the table");
    }
    s->table = table;
    s->entries = (_Atomic uint64_t *)((uint8_t *)table + s->table->entries_offset);
    void *stats = mmap(NULL, sizeof(*s->stats), PROT_READ, MAP_SHARED, s->stats_fd, 0);
    if (stats == MAP_FAILED) {
        return complain(s, -errno, "cannot map the statistics");
    }
    s->stats = stats;
    if (mmap(NULL, sizeof(*s->stats), PROT_READ | PROT_WRITE, MAP_SHARED, s->stats_fd,
             0) != MAP_FAILED) {
        return complain(s, -EPROTO, "the statistics can be written");
    }
    return 0;
}

static int create_named(struct standin *s, const char *socket, const char *vm_name,
                        const char *region, uint32_t flags, uint64_t size,
                        uint64_t page_size, uint32_t nr_shards)
{
    struct uffdmm_region_create create = {
        .size = size, .page_size = page_size, .nr_shards = nr_shards, .flags = flags};
    struct uffdmm_region_create_reply created;
    struct peer_msg reply = {0};

    memset(s, 0, sizeof(*s));
    s->memfd = s->table_fd = s->stats_fd = s->pagemap_fd = -1;
    for (int i = 0; i < UFFDMM_SHARDS_MAX; i++) {
        s->uffds[i] = -1;
    }
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->answered, NULL);
    s->size = size;
    s->page_size = page_size;
    s->nr_shards = nr_shards;
    s->last_id = 1;
    int ret = peer_open(socket, UFFDMM_ROLE_QEMU, vm_name, &reply);
    if (ret < 0) {
        s->sock = -1;
        return refused(s, ret, &reply, "HELLO");
    }
    s->sock = ret;
    snprintf(create.name, sizeof(create.name), "%s", region);
    snprintf(s->socket, sizeof(s->socket), "%s", socket);
    snprintf(s->vm_name, sizeof(s->vm_name), "%s", vm_name);
    memcpy(s->name, create.name, sizeof(s->name));
    ret = peer_request(s->sock, UFFDMM_MSG_REGION_CREATE, &create, sizeof(create), NULL,
                       0, &reply);
    if (ret < 0) {
        return refused(s, ret, &reply, "REGION_CREATE");
    }
    if (reply.nr_fds < 3 || reply.nr_fds > 3 + UFFDMM_TIERS_MAX ||
        reply.header.length != sizeof(created)) {
        peer_close_fds(&reply);
        return complain(s, -EPROTO, "REGION_CREATE reply");
    }
    memcpy(&created, reply.payload, sizeof(created));
    s->memfd = reply.fds[0];
    s->table_fd = reply.fds[1];
    s->stats_fd = reply.fds[2];
    while (s->nr_arenas + 3 < reply.nr_fds) {
        s->arenas[s->nr_arenas] = reply.fds[3 + s->nr_arenas];
        s->nr_arenas++;
    }
    s->id = created.region_id;
    s->table_size = created.table_size;
    return map_shared_pages(s);
}

static int create_pages(struct standin *s, const char *socket, const char *vm_name,
                        uint64_t size, uint64_t page_size, uint32_t nr_shards)
{
    static _Atomic unsigned last_name;
    char region[UFFDMM_NAME_MAX];

    /* As with QEMU's object ids, no two of a process have the same. */
    snprintf(region, sizeof(region), "mem%u", atomic_fetch_add(&last_name, 1));
    return create_named(s, socket, vm_name, region, 0, size, page_size, nr_shards);
}

int standin_create(struct standin *s, const char *socket, const char *vm_name,
                   uint64_t size, uint32_t nr_shards)
{
    return create_pages(s, socket, vm_name, size, PAGE, nr_shards);
}

int standin_map(struct standin *s)
{
    uint64_t nr_pages = s->size / s->page_size;

    s->base = mmap(NULL, s->size, PROT_READ | PROT_WRITE,
                   MAP_SHARED | (s->page_size == PAGE ? 0 : MAP_NORESERVE), s->memfd, 0);
    if (s->base == MAP_FAILED) {
        s->base = NULL;
        return complain(s, -errno, "cannot map guest memory");
    }
    s->pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (s->pagemap_fd < 0) {
        return complain(s, -errno, "cannot open pagemap");
    }
    for (uint32_t i = 0; i < s->nr_shards; i++) {
        uint64_t first = i * nr_pages / s->nr_shards;
        uint64_t end = (i + 1) * nr_pages / s->nr_shards;
        int fd = uffd_open(
            O_NONBLOCK, UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_MISSING_SHMEM |
                            UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_THREAD_ID |
                            (s->page_size == PAGE ? 0 : UFFD_FEATURE_MISSING_HUGETLBFS));
        if (fd < 0) {
            return complain(s, fd, "cannot open a userfaultfd");
        }
        s->uffds[i] = fd;
        int ret = uffd_register(fd, s->base + first * s->page_size,
                                (end - first) * s->page_size,
                                UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP);
        if (ret < 0) {
            return complain(s, ret, "cannot register guest memory");
        }
    }
    return 0;
}

/* QEMU's service thread does the same: bounds first, then the zap, then the echo. */
static void answer_zap(struct standin *s, const struct peer_msg *msg)
{
    struct uffdmm_range range;
    struct uffdmm_msg_header header;

    memcpy(&range, msg->payload, sizeof(range));
    header = peer_header(UFFDMM_MSG_ZAP | UFFDMM_MSG_REPLY, sizeof(range),
                         msg->header.request_id, 0);
    if (range.region_id != s->id || range.offset % s->page_size ||
        range.length % s->page_size || range.length == 0 || range.offset >= s->size ||
        range.length > s->size - range.offset ||
        madvise(s->base + range.offset, range.length, MADV_DONTNEED) < 0) {
        header.status = -EINVAL;
    }
    atomic_fetch_add(&s->zaps, 1);
    pthread_mutex_lock(&s->lock);
    peer_send(s->sock, &header, &range, NULL);
    pthread_mutex_unlock(&s->lock);
}

static void take_reply(struct standin *s, struct peer_msg *msg)
{
    pthread_mutex_lock(&s->lock);
    if (s->pending_id && msg->header.request_id == s->pending_id) {
        s->reply = *msg;
        s->pending_id = 0;
        pthread_cond_broadcast(&s->answered);
    } else {
        peer_close_fds(msg);
    }
    pthread_mutex_unlock(&s->lock);
}

int standin_reconnect(struct standin *s)
{
    struct uffdmm_reconnect payload = {
        .create = {.size = s->size, .page_size = s->page_size, .nr_shards = s->nr_shards},
        .attach = {.region_id = s->id,
                   .nr_shards = s->nr_shards,
                   .base = (uintptr_t)s->base,
                   .size = s->size},
    };
    int fds[UFFDMM_FDS_MAX] = {s->memfd, s->table_fd, s->pagemap_fd};
    struct peer_msg reply = {0};
    uint32_t n = 3;

    memcpy(payload.create.name, s->name, sizeof(s->name));
    for (uint32_t i = 0; i < s->nr_shards; i++) {
        fds[n++] = s->uffds[i];
    }
    for (uint32_t i = 0; i < s->nr_arenas; i++) {
        fds[n++] = s->arenas[i];
    }
    int sock = peer_open(s->socket, UFFDMM_ROLE_QEMU, s->vm_name, &reply);
    if (sock < 0) {
        return refused(s, sock, &reply, "HELLO");
    }
    int ret = peer_request(sock, UFFDMM_MSG_RECONNECT, &payload, sizeof(payload), fds, n,
                           &reply);
    if (ret < 0) {
        close(sock);
        return refused(s, ret, &reply, "RECONNECT");
    }
    pthread_mutex_lock(&s->lock);
    if (s->sock >= 0) {
        close(s->sock);
    }
    s->sock = sock;
    pthread_mutex_unlock(&s->lock);
    atomic_fetch_add(&s->reconnects, 1);
    return 0;
}

/* True when the link is there again, false when nobody wants it any more. */
static bool mend(struct standin *s)
{
    sleep_ms(s->reconnect_after_ms);
    while (s->resilient && !atomic_load(&s->closing)) {
        if (standin_reconnect(s) == 0) {
            return true;
        }
        sleep_ms(2);
    }
    return false;
}

static void *serve(void *opaque)
{
    struct standin *s = opaque;
    struct peer_msg msg;

    for (;;) {
        struct pollfd p = {.fd = s->sock, .events = POLLIN};

        if (poll(&p, 1, -1) < 0 && errno == EINTR) {
            continue;
        }
        if (peer_receive(s->sock, &msg, PEER_TIMEOUT_MS) < 0) {
            if (mend(s)) {
                continue;
            }
            break;
        }
        if (msg.header.type == UFFDMM_MSG_ZAP) {
            answer_zap(s, &msg);
        } else {
            take_reply(s, &msg);
        }
    }
    pthread_mutex_lock(&s->lock);
    atomic_store(&s->link_lost, 1);
    pthread_cond_broadcast(&s->answered);
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

int standin_attach(struct standin *s)
{
    struct uffdmm_region_attach attach = {
        .region_id = s->id,
        .nr_shards = s->nr_shards,
        .base = (uintptr_t)s->base,
        .size = s->size,
    };
    int fds[1 + UFFDMM_SHARDS_MAX] = {s->pagemap_fd};
    struct peer_msg reply = {0};

    memcpy(fds + 1, s->uffds, s->nr_shards * sizeof(int));
    int ret = peer_request(s->sock, UFFDMM_MSG_REGION_ATTACH, &attach, sizeof(attach),
                           fds, 1 + s->nr_shards, &reply);
    if (ret < 0) {
        return refused(s, ret, &reply, "REGION_ATTACH");
    }
    ret = pthread_create(&s->service, NULL, serve, s);
    s->serving = ret == 0;
    return ret ? complain(s, -ret, "cannot start the service thread") : 0;
}

int standin_open(struct standin *s, const char *socket, const char *vm_name,
                 uint64_t size, uint32_t nr_shards)
{
    return standin_open_pages(s, socket, vm_name, size, PAGE, nr_shards);
}

int standin_open_pages(struct standin *s, const char *socket, const char *vm_name,
                       uint64_t size, uint64_t page_size, uint32_t nr_shards)
{
    int ret = create_pages(s, socket, vm_name, size, page_size, nr_shards);

    if (ret == 0) {
        ret = standin_map(s);
    }
    if (ret == 0) {
        ret = standin_attach(s);
    }
    return ret;
}

int standin_open_as(struct standin *s, const char *socket, const char *vm_name,
                    const char *region, uint32_t flags, uint64_t size)
{
    int ret = create_named(s, socket, vm_name, region, flags, size, PAGE, 1);

    if (ret == 0) {
        ret = standin_map(s);
    }
    if (ret == 0) {
        ret = standin_attach(s);
    }
    return ret;
}

int standin_ask(struct standin *s, uint32_t type, const void *payload, uint32_t length,
                struct peer_msg *reply)
{
    struct timespec deadline;
    int ret;

    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += PEER_TIMEOUT_MS / 1000;
    pthread_mutex_lock(&s->lock);
    struct uffdmm_msg_header header = peer_header(type, length, ++s->last_id, 0);
    s->pending_id = s->last_id;
    ret = peer_send(s->sock, &header, payload, NULL);
    while (ret == 0 && s->pending_id) {
        if (atomic_load(&s->link_lost)) {
            ret = -EPIPE;
        } else {
            ret = -pthread_cond_timedwait(&s->answered, &s->lock, &deadline);
        }
    }
    s->pending_id = 0;
    if (ret == 0) {
        ret = s->reply.header.status;
        if (ret < 0) {
            snprintf(s->error, sizeof(s->error), "%.*s", UFFDMM_TEXT_MAX,
                     (const char *)s->reply.payload);
        }
        *reply = s->reply;
    }
    pthread_mutex_unlock(&s->lock);
    return ret;
}

int standin_request(struct standin *s, uint32_t type, const void *payload,
                    uint32_t length)
{
    struct peer_msg reply = {0};
    int ret = standin_ask(s, type, payload, length, &reply);

    peer_close_fds(&reply);
    return ret;
}

void standin_close(struct standin *s)
{
    atomic_store(&s->closing, 1);
    if (s->sock >= 0) {
        shutdown(s->sock, SHUT_RDWR);
    }
    if (s->serving) {
        pthread_join(s->service, NULL);
    }
    if (s->base) {
        munmap(s->base, s->size);
    }
    if (s->table) {
        munmap(s->table, s->table_size);
    }
    if (s->stats) {
        munmap((void *)(uintptr_t)s->stats, sizeof(*s->stats));
    }
    const int fds[] = {s->sock, s->memfd, s->table_fd, s->stats_fd, s->pagemap_fd};
    for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++) {
        if (fds[i] >= 0) {
            close(fds[i]);
        }
    }
    for (uint32_t i = 0; i < s->nr_arenas; i++) {
        close(s->arenas[i]);
    }
    for (uint32_t i = 0; i < s->nr_shards; i++) {
        if (s->uffds[i] >= 0) {
            close(s->uffds[i]);
        }
    }
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->answered);
}

int standin_detach(struct standin *s)
{
    struct uffdmm_region_detach detach = {.region_id = s->id};
    int ret = standin_request(s, UFFDMM_MSG_REGION_DETACH, &detach, sizeof(detach));

    standin_close(s);
    return ret;
}

/*
 * The rule of protocol.h.  True when the page became DISCARDED.  A page that is being
 * put in place is waited for, for as long as it takes.
 */
static bool mark_discarded(const struct standin *s, _Atomic uint64_t *entry)
{
    const uint64_t gen_mask = (uint64_t)UFFDMM_ENTRY_GEN_MASK << UFFDMM_ENTRY_GEN_SHIFT;
    uint64_t old = atomic_load(entry);
    uint64_t new, state;

    do {
        while ((old & UFFDMM_ENTRY_INSTALL) && !s->impatient) {
            sched_yield();
            old = atomic_load(entry);
        }
        state = old & UFFDMM_ENTRY_STATE_MASK;
        if (state == UFFDMM_PAGE_UNTRACKED || state == UFFDMM_PAGE_DISCARDED) {
            return false;
        }
        if (state == UFFDMM_PAGE_EMPTY) {
            new = old | UFFDMM_ENTRY_MAYHOLE;
        } else {
            uint64_t gen = (old & gen_mask) + (1ULL << UFFDMM_ENTRY_GEN_SHIFT);
            new = old & ~(gen_mask | UFFDMM_ENTRY_STATE_MASK | UFFDMM_ENTRY_MAYHOLE |
                          UFFDMM_ENTRY_INSTALL);
            new |= (gen & gen_mask) | UFFDMM_PAGE_DISCARDED;
            if (state == UFFDMM_PAGE_FILLING) {
                new |= UFFDMM_ENTRY_BUSY;
            }
        }
    } while (!atomic_compare_exchange_weak(entry, &old, new));
    return state != UFFDMM_PAGE_EMPTY;
}

int standin_discard(struct standin *s, uint64_t first_pfn, uint64_t nr_pages)
{
    struct uffdmm_range range = {
        .region_id = s->id,
        .offset = first_pfn * PAGE,
        .length = nr_pages * PAGE,
    };
    struct uffdmm_msg_header header =
        peer_header(UFFDMM_MSG_DISCARD, sizeof(range), 0, 0);
    uint64_t changed = 0;

    if (range.offset % s->page_size || range.length % s->page_size) {
        return -EINVAL;
    }
    for (uint64_t i = 0; i < range.length / s->page_size; i++) {
        changed += mark_discarded(s, &s->entries[range.offset / s->page_size + i]);
    }
    __atomic_fetch_add(&s->table->discards, changed, __ATOMIC_SEQ_CST);
    int ret = punch_hole(s->memfd, range.offset, range.length);
    if (ret < 0) {
        return ret;
    }
    pthread_mutex_lock(&s->lock);
    ret = peer_send(s->sock, &header, &range, NULL);
    pthread_mutex_unlock(&s->lock);
    /* who takes over reads the table */
    return s->resilient ? 0 : ret;
}

static _Atomic uint64_t *entry_of(const struct standin *s, uint64_t pfn)
{
    return &s->entries[pfn * PAGE / s->page_size];
}

unsigned standin_page_state(const struct standin *s, uint64_t pfn)
{
    return (unsigned)(atomic_load(entry_of(s, pfn)) & UFFDMM_ENTRY_STATE_MASK);
}

unsigned standin_page_tier(const struct standin *s, uint64_t pfn)
{
    return (unsigned)(atomic_load(entry_of(s, pfn)) >> UFFDMM_ENTRY_TIER_SHIFT) &
           UFFDMM_ENTRY_TIER_MASK;
}

uint64_t standin_count(const struct standin *s, unsigned state)
{
    uint64_t n = 0;

    for (uint64_t pfn = 0; pfn < s->size / PAGE; pfn++) {
        n += standin_page_state(s, pfn) == state;
    }
    return n;
}
