/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The migration side of the fake manager
 *
 * A page that is STORED in a tier with slots holds bytes that tell its slot.
 * The source hands out S; the destination takes it from the source's fake,
 * with no control plane in between, and installs it as the protocol says.
 */

#include "qemu/osdep.h"
#include "qemu/atomic.h"
#include "uffdmm-fake-manager.h"
#include <sys/mman.h>

#define SET_OFFSET  FAKE_PAGE_SIZE
#define BOUNCE_SIZE (UFFDMM_MIG_READ_MAX * FAKE_PAGE_SIZE)
#define SEALS       (F_SEAL_SHRINK | F_SEAL_GROW)

static uint64_t set_size(const FakeRegion *r)
{
    return SET_OFFSET + r->size / r->page_size *
           sizeof(struct uffdmm_set_page);
}

static void *map_memfd(int fd, uint64_t size)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    g_assert_true(p != MAP_FAILED);
    return p;
}

void fake_migration_close(FakeRegion *r)
{
    if (r->set) {
        munmap(r->set, set_size(r));
        r->set = NULL;
    }
    if (r->bounce) {
        munmap(r->bounce, BOUNCE_SIZE);
        r->bounce = NULL;
    }
}

static void fake_mig_start(FakeManager *m, FakeRegion *r,
                           const struct uffdmm_msg_header *h,
                           const struct uffdmm_mig_start *start)
{
    const uint64_t session = start->flags & UFFDMM_MIG_BY_CONTENT ? 0 :
                             m->session;
    struct uffdmm_mig_start_reply reply = {
        .session = session,
        .set_size = session ? set_size(r) : 0,
        .bounce_size = BOUNCE_SIZE,
        .tier = FAKE_SHARED_TIER,
    };
    int fds[2], nr = 0;

    g_assert_cmpuint(h->length, ==, sizeof(*start));
    g_assert_cmpuint(start->region_id, ==, r->id);
    g_assert_cmpuint(start->tid, !=, 0);
    fake_migration_close(r);
    r->starts++;
    r->start_flags = start->flags;
    if (session) {
        fds[nr] = fake_memfd("set", set_size(r), SEALS);
        r->set = map_memfd(fds[nr++], set_size(r));
        r->elements = (void *)((uint8_t *)r->set + SET_OFFSET);
    }
    fds[nr] = fake_memfd("bounce", BOUNCE_SIZE, SEALS);
    r->bounce = map_memfd(fds[nr++], BOUNCE_SIZE);
    fake_reply(r->sock, h, &reply, sizeof(reply), fds, nr);
    while (nr--) {
        close(fds[nr]);
    }
}

static void fake_mig_read(FakeManager *m, FakeRegion *r,
                          const struct uffdmm_msg_header *h,
                          const struct uffdmm_mig_read *read)
{
    struct uffdmm_mig_read_reply reply = { 0 };

    g_assert_cmpuint(read->nr, >=, 1);
    g_assert_cmpuint(read->nr, <=, UFFDMM_MIG_READ_MAX);
    g_assert_cmpuint(read->first + read->nr, <=, r->size / r->page_size);
    r->reads++;
    if (m->hold_reads) {
        return;
    }
    for (uint32_t i = 0; i < read->nr; i++) {
        uint64_t entry = qatomic_read(&r->entries[read->first + i]);

        if ((entry & UFFDMM_ENTRY_STATE_MASK) != UFFDMM_PAGE_STORED) {
            continue;
        }
        memset(r->bounce + i * r->page_size,
               fake_manager_byte(entry >> UFFDMM_ENTRY_SLOT_SHIFT),
               r->page_size);
        reply.valid |= UINT64_C(1) << i;
        reply.entries[i] = entry;
        r->read_pages++;
    }
    fake_reply(r->sock, h, &reply, sizeof(reply), NULL, 0);
}

/* As documented beside struct uffdmm_set_page, and written a second time */
static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
    return x ^ (x >> 31);
}

void fake_set_digest(const FakeRegion *r, uint64_t *count, uint64_t *digest)
{
    *count = *digest = 0;
    for (uint64_t pfn = 0; pfn < r->size / r->page_size; pfn++) {
        const struct uffdmm_set_page *e = &r->elements[pfn];
        uint64_t v = e->entry >> 12;

        if (!e->entry) {
            continue;
        }
        if ((e->entry & UFFDMM_ENTRY_STATE_MASK) == UFFDMM_PAGE_EMPTY) {
            v = ~UINT64_C(0);
        } else if (!(e->entry >> UFFDMM_ENTRY_TIER_SHIFT & 0xf)) {
            v = 0;
        }
        *digest += mix(mix(mix(pfn + 1) ^ v) ^ e->record);
        ++*count;
    }
}

static void fake_mig_install(FakeManager *m, FakeRegion *r,
                             const struct uffdmm_msg_header *h,
                             const struct uffdmm_mig_install *install)
{
    const FakeRegion *from = &m->source->regions[0];
    uint64_t count, digest;

    r->installs++;
    r->install = *install;
    fake_set_digest(from, &count, &digest);
    if (install->session != m->session || install->count != count ||
        install->digest != digest) {
        fake_reply_error(r->sock, h, -ETIMEDOUT, "the locations that came do "
                         "not agree with those of the source");
        return;
    }
    for (uint64_t pfn = 0; pfn < r->size / r->page_size; pfn++) {
        const struct uffdmm_set_page *e = &from->elements[pfn];

        if (e->entry) {
            qatomic_set(&r->records[pfn], e->record);
            qatomic_set(&r->entries[pfn], e->entry);
            g_assert_cmpint(fallocate(r->memfd, FALLOC_FL_PUNCH_HOLE |
                                      FALLOC_FL_KEEP_SIZE,
                                      pfn * r->page_size, r->page_size),
                            ==, 0);
        }
    }
    fake_reply(r->sock, h, NULL, 0, NULL, 0);
}

bool fake_migration_message(FakeManager *m, FakeRegion *r,
                            const struct uffdmm_msg_header *h,
                            const void *payload)
{
    const struct uffdmm_mig_end *end = payload;

    switch (h->type) {
    case UFFDMM_MSG_MIG_START:
        fake_mig_start(m, r, h, payload);
        return true;
    case UFFDMM_MSG_MIG_READ:
        fake_mig_read(m, r, h, payload);
        return true;
    case UFFDMM_MSG_MIG_END:
        if (end->outcome == UFFDMM_MIG_SENT) {
            r->sent++;
        } else {
            r->failed++;
        }
        fake_reply(r->sock, h, NULL, 0, NULL, 0);
        return true;
    case UFFDMM_MSG_MIG_INSTALL:
        fake_mig_install(m, r, h, payload);
        return true;
    default:
        return false;
    }
}
