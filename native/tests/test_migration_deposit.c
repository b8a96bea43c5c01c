/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Records that go from host to host by way of the volume that both reach. */
#include "unit.h"

#include "mig.h"
#include "migration_rig.h"
#include "uffd_fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { SHARED_AT_SOURCE = 1, SHARED_AT_TARGET = 2, SOME = 5000 };

static uint64_t records[UFFDMM_MIG_RECORDS_MAX], found[UFFDMM_MIG_RECORDS_MAX];

static int memfd_of(const void *content, size_t bytes, int seals)
{
    int fd = memfd_create("records", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, (off_t)bytes), 0);
    if (content) {
        assert_int_equal(pwrite(fd, content, bytes, 0), (ssize_t)bytes);
    }
    assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
    return fd;
}

/* MIG_DEPOSIT; its status, and the slot. */
static int deposit(const struct rig *g, uint64_t session, uint64_t nr, int seals,
                   uint64_t *slot)
{
    struct uffdmm_mig_deposit request = {.session = session, .nr = nr};
    struct uffdmm_mig_deposit_reply answer;
    struct peer_msg reply;
    int fd = memfd_of(records, sizeof(records), seals), ret;

    ret = rig_control(g, &g->source_manager, UFFDMM_MSG_MIG_DEPOSIT, &request,
                      sizeof(request), fd, &reply);
    memcpy(&answer, reply.payload, sizeof(answer));
    *slot = answer.slot;
    close(fd);
    return ret;
}

/* MIG_COLLECT into @found; its status. */
static int collect(const struct rig *g, uint64_t session, uint64_t slot, uint64_t nr)
{
    struct uffdmm_mig_collect request = {.session = session, .slot = slot, .nr = nr};
    struct peer_msg reply;
    int fd = memfd_of(NULL, sizeof(found), F_SEAL_SHRINK), ret;

    ret = rig_control(g, &g->target_manager, UFFDMM_MSG_MIG_COLLECT, &request,
                      sizeof(request), fd, &reply);
    assert_int_equal(pread(fd, found, sizeof(found), 0), sizeof(found));
    close(fd);
    return ret;
}

static void begin(struct rig *g)
{
    for (unsigned i = 0; i < UFFDMM_MIG_RECORDS_MAX; i++) {
        records[i] = mig_mix(i + 1);
    }
    rig_start_source(g);
    rig_fill(g, 1);
    rig_start_target(g);
}

/* Whole slots and a part of one; those of several blocks beside each other. */
static void records_arrive(struct rig *g)
{
    static const uint64_t counts[] = {1, 512, 513, SOME, UFFDMM_MIG_RECORDS_MAX};
    uint64_t slots[5];

    begin(g);
    rig_begin(g);
    assert_int_equal(rig_prepare(g), 0);
    for (unsigned i = 0; i < 5; i++) {
        assert_int_equal(
            deposit(g, RIG_SESSION, counts[i], F_SEAL_SHRINK | F_SEAL_WRITE, &slots[i]),
            0);
    }
    for (unsigned i = 0; i < 5; i++) {
        assert_int_equal(collect(g, RIG_SESSION, slots[i], counts[i]), 0);
        assert_memory_equal(found, records, counts[i] * sizeof(records[0]));
    }
    /* the guest's pages are where they were, and the session costs nothing in the end */
    rig_stop_target(g);
    assert_int_equal(rig_source_end(g, UFFDMM_MIG_FAILED), 0);
    rig_expect_slots(g, &g->source_manager, &g->source, SHARED_AT_SOURCE);
    rig_expect_all(g, &g->source);
    rig_end(g);
}

static void records_arrive_by_a_folder(void **state)
{
    static struct rig g;
    (void)state;

    rig_init(&g);
    records_arrive(&g);
}

static void records_arrive_by_an_export(void **state)
{
    static struct rig g;
    (void)state;

    if (!rig_init_nbd(&g)) {
        print_message("skip: nbdkit does not run\n");
        skip();
    }
    records_arrive(&g);
}

/* Who takes the volume has the pages, and the room of the records. */
static void records_are_nobody_s_when_the_volume_is_taken(void **state)
{
    static struct rig g;
    uint64_t slot, count, digest, epoch;
    (void)state;

    rig_init(&g);
    begin(&g);
    rig_begin(&g);
    assert_int_equal(rig_prepare(&g), 0);
    for (uint64_t pfn = 0; pfn < RIG_PAGES; pfn++) {
        rig_hook(&g, pfn);
    }
    assert_int_equal(deposit(&g, RIG_SESSION, SOME, F_SEAL_SHRINK | F_SEAL_WRITE, &slot),
                     0);
    rig_stream(&g);
    rig_sum(&g, &count, &digest);
    assert_int_equal(rig_source_end(&g, UFFDMM_MIG_SENT), 0);
    assert_int_equal(deposit(&g, RIG_SESSION, 1, F_SEAL_SHRINK | F_SEAL_WRITE, &slot), 0);
    assert_int_equal(rig_install(&g, count, digest, 5000), 0);
    assert_int_equal(rig_release(&g, &epoch), 0);
    assert_int_equal(deposit(&g, RIG_SESSION, 1, F_SEAL_SHRINK | F_SEAL_WRITE, &slot),
                     -EPERM);
    assert_int_equal(rig_take(&g, epoch), 0);
    rig_expect_all(&g, &g.target);
    rig_expect_slots(&g, &g.target_manager, &g.target, SHARED_AT_TARGET);
    rig_end(&g);
}

static void requests_that_cannot_be_are_refused(void **state)
{
    static struct rig g;
    const int sealed = F_SEAL_SHRINK | F_SEAL_WRITE;
    uint64_t slot;
    (void)state;

    rig_init(&g);
    begin(&g);
    assert_int_equal(deposit(&g, RIG_SESSION, 1, sealed, &slot), -EPERM);
    assert_int_equal(collect(&g, RIG_SESSION, 1, 1), -EPERM);
    rig_begin(&g);
    assert_int_equal(rig_prepare(&g), 0);
    assert_int_equal(deposit(&g, RIG_SESSION + 1, 1, sealed, &slot), -EPERM);
    assert_int_equal(deposit(&g, RIG_SESSION, 0, sealed, &slot), -EINVAL);
    assert_int_equal(deposit(&g, RIG_SESSION, UFFDMM_MIG_RECORDS_MAX + 1, sealed, &slot),
                     -EINVAL);
    assert_int_equal(deposit(&g, RIG_SESSION, 1, F_SEAL_SHRINK, &slot), -EINVAL);
    assert_int_equal(deposit(&g, RIG_SESSION, 1, sealed, &slot), 0);
    assert_int_equal(collect(&g, RIG_SESSION + 1, slot, 1), -EPERM);
    assert_int_equal(collect(&g, RIG_SESSION, 0, 1), -EINVAL);
    assert_int_equal(collect(&g, RIG_SESSION, UINT64_MAX, 1), -EINVAL);
    assert_int_equal(collect(&g, RIG_SESSION, 1ULL << 39, 1), -EINVAL);
    assert_int_equal(collect(&g, RIG_SESSION, slot, 0), -EINVAL);
    assert_int_equal(collect(&g, RIG_SESSION, slot, UFFDMM_MIG_RECORDS_MAX + 1), -EINVAL);
    assert_int_equal(collect(&g, RIG_SESSION, slot, 1), 0);
    /* a session has so many of them */
    for (unsigned i = 1; i < MIG_DEPOSITS_MAX; i++) {
        assert_int_equal(deposit(&g, RIG_SESSION, 1, sealed, &slot), 0);
    }
    assert_int_equal(deposit(&g, RIG_SESSION, 1, sealed, &slot), -ENOSPC);
    rig_stop_target(&g);
    assert_int_equal(rig_source_end(&g, UFFDMM_MIG_FAILED), 0);
    rig_expect_slots(&g, &g.source_manager, &g.source, SHARED_AT_SOURCE);
    rig_end(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(records_arrive_by_a_folder),
        cmocka_unit_test(records_arrive_by_an_export),
        cmocka_unit_test(records_are_nobody_s_when_the_volume_is_taken),
        cmocka_unit_test(requests_that_cannot_be_are_refused),
    };

    return cmocka_run_group_tests_name("migration_deposit", tests, end_process_when_hung,
                                       NULL);
}
