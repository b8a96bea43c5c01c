/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Who may take a shared volume, by what its first 4 KiB say. */
#include "unit.h"

#include <errno.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "superblock.h"

/* This process, asking for a VM. */
static struct superblock asker(const char *vm)
{
    struct superblock sb = {.vm_uuid = {1, 2, 3, 4}};

    assert_int_equal(superblock_self(&sb.owner), 0);
    strncpy(sb.vm_name, vm, sizeof(sb.vm_name) - 1);
    return sb;
}

/* A process of this host that has ended. */
static struct superblock_owner ended_process(void)
{
    struct superblock_owner owner;
    int fds[2];
    pid_t pid;

    assert_int_equal(pipe(fds), 0);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        _exit(superblock_self(&owner) == 0 &&
                      write(fds[1], &owner, sizeof(owner)) == sizeof(owner)
                  ? 0
                  : 1);
    }
    assert_int_equal(read(fds[0], &owner, sizeof(owner)), sizeof(owner));
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    close(fds[0]);
    close(fds[1]);
    assert_int_equal(owner.pid, pid);
    return owner;
}

/* What VM "asker" is told about a volume with @sb, and the sentence. */
static int ask(const struct superblock *sb, uint64_t *epoch, char err[256])
{
    char block[SUPERBLOCK_BYTES];
    struct superblock self = asker("asker");
    int ret;

    superblock_make(block, sb);
    err[0] = '\0';
    ret = superblock_check(block, &self, "volume", err, 256);
    *epoch = self.epoch;
    assert_int_equal(self.state, ret ? 0 : SUPERBLOCK_OWNED);
    return ret;
}

static void what_is_written_is_read(void **state)
{
    char block[SUPERBLOCK_BYTES];
    struct superblock sb = asker("a name"), back;
    (void)state;

    sb.epoch = 0x123456789abcdef0;
    sb.state = SUPERBLOCK_RELEASED;
    superblock_make(block, &sb);
    assert_int_equal(superblock_parse(block, &back), SUPERBLOCK_VALID);
    assert_memory_equal(back.vm_uuid, sb.vm_uuid, 16);
    assert_string_equal(back.vm_name, "a name");
    assert_int_equal(back.epoch, sb.epoch);
    assert_int_equal(back.state, SUPERBLOCK_RELEASED);
    assert_int_equal(back.owner.host_id, sb.owner.host_id);
    assert_memory_equal(back.owner.boot_id, sb.owner.boot_id, 16);
    assert_int_equal(back.owner.pid_ns, sb.owner.pid_ns);
    assert_int_equal(back.owner.pid, getpid());
    assert_int_equal(back.owner.pid_start, superblock_process_start((uint64_t)getpid()));
    assert_string_equal(back.owner.host, sb.owner.host);
}

/* The layout is what other hosts read: it does not follow the compiler or this program. */
static void layout_is_fixed(void **state)
{
    char block[SUPERBLOCK_BYTES];
    struct superblock sb = {.vm_uuid = {0xaa}, .vm_name = "vm", .epoch = 5, .state = 1};
    (void)state;

    sb.owner.host_id = 0x0807060504030201;
    sb.owner.pid = 77;
    superblock_make(block, &sb);
    assert_memory_equal(block, "UFFDMMSB\1\0\0\0\1\0\0\0\5\0\0\0\0\0\0\0\xaa", 25);
    assert_memory_equal(block + 40, "vm", 3);
    assert_memory_equal(block + 104, "\1\2\3\4\5\6\7\10", 8);
    assert_memory_equal(block + 136, "\115\0\0\0\0\0\0\0", 8);
}

static void blank_volume_may_be_taken(void **state)
{
    char block[SUPERBLOCK_BYTES] = {0}, err[256];
    struct superblock self = asker("asker"), sb;
    (void)state;

    assert_int_equal(superblock_parse(block, &sb), SUPERBLOCK_BLANK);
    assert_int_equal(superblock_check(block, &self, "volume", err, sizeof(err)), 0);
    assert_int_equal(self.epoch, 1);
    assert_int_equal(self.state, SUPERBLOCK_OWNED);
}

static void any_changed_bit_is_noticed(void **state)
{
    char block[SUPERBLOCK_BYTES], err[256];
    struct superblock self = asker("asker"), sb = asker("asker");
    (void)state;

    sb.epoch = 3;
    sb.state = SUPERBLOCK_FREE;
    superblock_make(block, &sb);
    for (unsigned bit = 0; bit < SUPERBLOCK_BYTES * 8; bit++) {
        struct superblock back;
        enum superblock_kind kind;

        block[bit / 8] ^= (char)(1 << (bit % 8));
        kind = superblock_parse(block, &back);
        assert_int_equal(kind, bit < 64 ? SUPERBLOCK_ALIEN : SUPERBLOCK_DAMAGED);
        block[bit / 8] ^= (char)(1 << (bit % 8));
    }
    memset(block + 512, 0, SUPERBLOCK_BYTES - 512); /* a torn write */
    assert_int_equal(superblock_check(block, &self, "volume", err, sizeof(err)),
                     -EUCLEAN);
    assert_non_null(strstr(err, "superblock of volume is damaged"));
    assert_non_null(strstr(err, "zero its first 4 KiB"));
}

static void data_of_others_is_refused(void **state)
{
    char block[SUPERBLOCK_BYTES] = {0}, err[256];
    struct superblock self = asker("asker"), sb;
    (void)state;

    block[SUPERBLOCK_BYTES - 1] = 1; /* an ext4 superblock, say, begins at byte 1024 */
    assert_int_equal(superblock_parse(block, &sb), SUPERBLOCK_ALIEN);
    assert_int_equal(superblock_check(block, &self, "volume", err, sizeof(err)), -EEXIST);
    assert_non_null(strstr(err, "volume holds data that is not a volume"));
    assert_non_null(strstr(err, "zero its first 4 KiB"));
    assert_int_equal(self.epoch, 0);
}

static void free_volume_goes_to_anybody(void **state)
{
    struct superblock sb = asker("another");
    uint64_t epoch;
    char err[256];
    (void)state;

    sb.epoch = 41;
    sb.state = SUPERBLOCK_FREE;
    assert_int_equal(ask(&sb, &epoch, err), 0);
    assert_int_equal(epoch, 42);
}

static void released_volume_goes_to_its_vm(void **state)
{
    struct superblock sb = asker("asker");
    uint64_t epoch;
    char err[256];
    (void)state;

    sb.epoch = 6;
    sb.state = SUPERBLOCK_RELEASED;
    memset(sb.owner.boot_id, 0x99, 16); /* by whatever host */
    assert_int_equal(ask(&sb, &epoch, err), 0);
    assert_int_equal(epoch, 7);
    sb.vm_uuid[15] = 1;
    assert_int_equal(ask(&sb, &epoch, err), -EBUSY);
    assert_non_null(strstr(err, "holds pages of VM asker"));
    assert_int_equal(epoch, 0);
}

static void volume_of_a_living_process_is_refused(void **state)
{
    struct superblock sb = asker("asker");
    uint64_t epoch;
    char err[256];
    (void)state;

    sb.state = SUPERBLOCK_OWNED;
    sb.epoch = 3;
    assert_int_equal(ask(&sb, &epoch, err), -EBUSY);
    assert_non_null(strstr(err, "volume is owned by VM asker on host"));
    assert_non_null(strstr(err, sb.owner.host));
    assert_non_null(strstr(err, "epoch 3"));
    assert_non_null(strstr(err, "once that process has ended"));
}

static void volume_of_an_ended_process_goes_to_its_vm_alone(void **state)
{
    struct superblock sb = asker("asker");
    uint64_t epoch;
    char err[256];
    (void)state;

    sb.owner = ended_process();
    sb.state = SUPERBLOCK_OWNED;
    sb.epoch = 3;
    assert_int_equal(ask(&sb, &epoch, err), 0);
    assert_int_equal(epoch, 4);
    sb.vm_uuid[0] = 9;
    assert_int_equal(ask(&sb, &epoch, err), -EBUSY);
    sb = asker("another");
    sb.owner = ended_process();
    sb.state = SUPERBLOCK_OWNED;
    assert_int_equal(ask(&sb, &epoch, err), -EBUSY);
}

static void pid_that_came_again_is_another_process(void **state)
{
    struct superblock sb = asker("asker");
    uint64_t epoch;
    char err[256];
    (void)state;

    sb.state = SUPERBLOCK_OWNED;
    sb.owner.pid_start--; /* its pid is ours now */
    assert_int_equal(ask(&sb, &epoch, err), 0);
}

static void process_of_another_namespace_cannot_be_judged(void **state)
{
    struct superblock sb = asker("asker");
    uint64_t epoch;
    char err[256];
    (void)state;

    sb.owner = ended_process();
    sb.owner.pid_ns++;
    sb.state = SUPERBLOCK_OWNED;
    assert_int_equal(ask(&sb, &epoch, err), -EBUSY);
}

static void process_of_another_host_cannot_be_judged(void **state)
{
    struct superblock sb = asker("asker");
    uint64_t epoch;
    char err[256];
    (void)state;

    sb.owner = ended_process();
    sb.owner.host_id++;
    sb.owner.boot_id[3]++;
    sb.state = SUPERBLOCK_OWNED;
    strcpy(sb.owner.host, "elsewhere");
    assert_int_equal(ask(&sb, &epoch, err), -EBUSY);
    assert_non_null(strstr(err, "on host elsewhere"));
    /* hosts that do not know who they are do not take each other for the same */
    sb.owner.host_id = 0;
    assert_int_equal(ask(&sb, &epoch, err), -EBUSY);
}

static void nothing_outlives_a_reboot(void **state)
{
    struct superblock sb = asker("asker");
    uint64_t epoch;
    char err[256];
    (void)state;

    if (!sb.owner.host_id) {
        skip(); /* no machine-id here */
    }
    sb.owner.boot_id[3]++;
    sb.state = SUPERBLOCK_OWNED;
    sb.epoch = 8;
    assert_int_equal(ask(&sb, &epoch, err), 0);
    assert_int_equal(epoch, 9);
}

static void holder_knows_its_own_block(void **state)
{
    char block[SUPERBLOCK_BYTES], err[256];
    struct superblock self = asker("asker"), other;
    (void)state;

    self.epoch = 5;
    self.state = SUPERBLOCK_OWNED;
    superblock_make(block, &self);
    assert_int_equal(superblock_still_held(block, &self, "volume", err, 256), 0);
    other = self;
    other.state = SUPERBLOCK_RELEASED;
    superblock_make(block, &other);
    assert_int_equal(superblock_still_held(block, &self, "volume", err, 256), 0);

    other.epoch = 6;
    superblock_make(block, &other);
    assert_int_equal(superblock_still_held(block, &self, "volume", err, 256), -ESTALE);
    assert_non_null(strstr(err, "epoch 6; ours was 5"));
    other = self;
    other.owner.pid++; /* both took epoch 5 */
    superblock_make(block, &other);
    assert_int_equal(superblock_still_held(block, &self, "volume", err, 256), -ESTALE);
    other = self;
    strcpy(other.vm_name, "another");
    superblock_make(block, &other);
    assert_int_equal(superblock_still_held(block, &self, "volume", err, 256), -ESTALE);

    memset(block, 0, sizeof(block));
    assert_int_equal(superblock_still_held(block, &self, "volume", err, 256), -ENOMEDIUM);
    block[7] = 1;
    assert_int_equal(superblock_still_held(block, &self, "volume", err, 256), -EEXIST);
    superblock_make(block, &self);
    block[100] ^= 1;
    assert_int_equal(superblock_still_held(block, &self, "volume", err, 256), -EUCLEAN);
}

/* ---- from host to host ------------------------------------------------------- */

static void source_is_known_by_name_uuid_and_epoch(void **state)
{
    struct superblock sb = asker("vm");
    uint8_t other[16] = {9};
    char err[256];
    (void)state;

    sb.epoch = 4;
    sb.state = SUPERBLOCK_OWNED;
    assert_int_equal(superblock_match(&sb, "vm", sb.vm_uuid, 4, "volume", err, 256), 0);
    assert_int_equal(superblock_match(&sb, "vm", sb.vm_uuid, 3, "volume", err, 256),
                     -ESTALE);
    assert_int_equal(superblock_match(&sb, "wm", sb.vm_uuid, 4, "volume", err, 256),
                     -ESTALE);
    assert_int_equal(superblock_match(&sb, "vm", other, 4, "volume", err, 256), -ESTALE);
    sb.state = SUPERBLOCK_RELEASED;
    assert_int_equal(superblock_match(&sb, "vm", sb.vm_uuid, 4, "volume", err, 256),
                     -ESTALE);
}

static void only_a_released_volume_is_received_in_its_epoch(void **state)
{
    struct superblock before = asker("vm"), given, other;
    char err[256];
    (void)state;

    before.epoch = 4;
    before.state = SUPERBLOCK_OWNED;
    assert_int_equal(superblock_receive(&before, &before, 4, "volume", err, 256), -EPERM);
    given = before;
    superblock_give(&given, "far");
    assert_int_equal(given.epoch, 5);
    assert_int_equal(given.state, SUPERBLOCK_RELEASED);
    assert_string_equal(given.owner.host, "far");
    assert_false(superblock_same(&given, &before));
    assert_int_equal(superblock_receive(&given, &before, 5, "volume", err, 256), 0);
    assert_int_equal(superblock_receive(&given, &before, 4, "volume", err, 256), -EPERM);
    assert_int_equal(superblock_receive(&given, &before, 6, "volume", err, 256), -EPERM);
    other = given;
    other.vm_uuid[0] ^= 1;
    assert_int_equal(superblock_receive(&other, &before, 5, "volume", err, 256), -EPERM);
    other = given;
    other.epoch = 7; /* it has been elsewhere */
    assert_int_equal(superblock_receive(&other, &before, 7, "volume", err, 256), -EPERM);
    other = before; /* its holder has ended, and left it */
    other.state = SUPERBLOCK_RELEASED;
    assert_int_equal(superblock_receive(&other, &before, 4, "volume", err, 256), 0);
}

/* ---- a worker takes over ---------------------------------------------------- */

/* What the successor of a worker is told that left @sb, with the epoch. */
static int inherit(const struct superblock *sb, uint64_t *epoch, char err[256])
{
    char block[SUPERBLOCK_BYTES];
    struct superblock self = asker("asker");
    int ret;

    superblock_set_vm_process(&self, getpid());
    superblock_make(block, sb);
    ret = superblock_inherit(block, &self, "volume", err, 256);
    *epoch = self.epoch;
    return ret;
}

static void volume_of_a_dead_worker_goes_to_the_same_qemu_alone(void **state)
{
    struct superblock left = asker("asker"), sb;
    uint64_t epoch;
    char err[256], block[SUPERBLOCK_BYTES] = {0};
    (void)state;

    left.state = SUPERBLOCK_OWNED;
    left.epoch = 7;
    left.owner = ended_process();
    superblock_set_vm_process(&left, getpid());
    assert_int_equal(inherit(&left, &epoch, err), 0);
    assert_int_equal(epoch, 8);

    /* itself, a moment ago: no other epoch */
    sb = left;
    assert_int_equal(superblock_self(&sb.owner), 0);
    assert_int_equal(inherit(&sb, &epoch, err), 0);
    assert_int_equal(epoch, 7);

    sb = left;
    sb.owner.pid = (uint64_t)getppid();
    sb.owner.pid_start = superblock_process_start(sb.owner.pid);
    assert_int_equal(inherit(&sb, &epoch, err), -EBUSY);
    assert_non_null(strstr(err, "try again"));

    sb = left;
    sb.vm_pid++;
    assert_int_equal(inherit(&sb, &epoch, err), -ESTALE);
    sb = left;
    sb.vm_pid_start++;
    assert_int_equal(inherit(&sb, &epoch, err), -ESTALE);
    sb = left;
    sb.vm_pid = sb.vm_pid_start = 0; /* of an older version */
    assert_int_equal(inherit(&sb, &epoch, err), -ESTALE);
    sb = left;
    sb.vm_uuid[0]++;
    assert_int_equal(inherit(&sb, &epoch, err), -ESTALE);
    sb = left;
    sb.owner.boot_id[3]++;
    assert_int_equal(inherit(&sb, &epoch, err), -ESTALE);
    sb = left;
    sb.owner.pid_ns++;
    assert_int_equal(inherit(&sb, &epoch, err), -ESTALE);
    sb = left;
    sb.state = SUPERBLOCK_FREE;
    assert_int_equal(inherit(&sb, &epoch, err), -ESTALE);
    sb = left;
    superblock_give(&sb, "elsewhere");
    assert_int_equal(inherit(&sb, &epoch, err), -ESTALE);
    assert_int_equal(superblock_inherit(block, &left, "volume", err, sizeof(err)),
                     -ENOMEDIUM);
    memset(block, 'x', sizeof(block));
    assert_int_equal(superblock_inherit(block, &left, "volume", err, sizeof(err)),
                     -EEXIST);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_is_read),
        cmocka_unit_test(layout_is_fixed),
        cmocka_unit_test(blank_volume_may_be_taken),
        cmocka_unit_test(any_changed_bit_is_noticed),
        cmocka_unit_test(data_of_others_is_refused),
        cmocka_unit_test(free_volume_goes_to_anybody),
        cmocka_unit_test(released_volume_goes_to_its_vm),
        cmocka_unit_test(volume_of_a_living_process_is_refused),
        cmocka_unit_test(volume_of_an_ended_process_goes_to_its_vm_alone),
        cmocka_unit_test(pid_that_came_again_is_another_process),
        cmocka_unit_test(process_of_another_namespace_cannot_be_judged),
        cmocka_unit_test(process_of_another_host_cannot_be_judged),
        cmocka_unit_test(nothing_outlives_a_reboot),
        cmocka_unit_test(holder_knows_its_own_block),
        cmocka_unit_test(source_is_known_by_name_uuid_and_epoch),
        cmocka_unit_test(only_a_released_volume_is_received_in_its_epoch),
        cmocka_unit_test(volume_of_a_dead_worker_goes_to_the_same_qemu_alone),
    };

    return cmocka_run_group_tests_name("superblock", tests, NULL, NULL);
}
