/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The nbd tier against real servers that do what they should, or refuse to. */
#include "unit.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "clock.h"
#include "nbd_dial.h"
#include "nbd_rig.h"
#include "stats.h"
#include "superblock.h"
#include "tier_contract.h"

#define MIB (1024ULL * 1024)

/* The first test: a manager without such a tier does not pay for the library. */
static void library_is_loaded_when_it_is_wanted(void **state)
{
    char err[UFFDMM_TEXT_MAX];
    (void)state;

    assert_null(dlopen(NBD_LIB_NAME, RTLD_LAZY | RTLD_NOLOAD));
    assert_null(nbd_lib.create);
    assert_int_equal(nbd_lib_load_from("libnbd-not-here.so.0", err, sizeof(err)),
                     -ENOENT);
    assert_non_null(strstr(err, "libnbd-not-here.so.0"));
    assert_non_null(strstr(err, "install libnbd"));
    assert_int_equal(nbd_lib_load_from("libc.so.6", err, sizeof(err)), -ENOSYS);
    assert_non_null(strstr(err, "nbd_aio_connect_uri"));
    assert_null(nbd_lib.create);
    assert_int_equal(nbd_lib_load(err, sizeof(err)), 0);
    assert_non_null(nbd_lib.create);
    assert_int_equal(nbd_lib_load(err, sizeof(err)), 0);
}

/* Writes 256 pages in runs with scattered buffers and reads them back otherwise. */
static void check_pages(struct nbd_rig *r)
{
    enum { NR = 256, RUN = 32 };
    char *out = aligned_alloc(RIG_PAGE, NR * RIG_PAGE);
    char *in = aligned_alloc(RIG_PAGE, NR * RIG_PAGE);
    struct tier_io ios[NR / RUN];
    struct iovec iovs[NR / RUN][RUN];
    uint64_t slots[NR];

    assert_true(out && in);
    rig_take(r, slots, NR);
    for (unsigned i = 0; i < NR; i++) {
        assert_int_equal(slots[i], slots[0] + i);
        /* backwards in memory: no two neighbours in the export are neighbours there */
        rig_fill(out + (NR - 1 - i) * RIG_PAGE, i);
    }
    for (unsigned run = 0; run < NR / RUN; run++) {
        for (unsigned i = 0; i < RUN; i++) {
            iovs[run][i] =
                (struct iovec){.iov_base = out + (NR - 1 - (run * RUN + i)) * RIG_PAGE,
                               .iov_len = RIG_PAGE};
        }
        ios[run] = (struct tier_io){.tier = &r->tier,
                                    .write = true,
                                    .slot = slots[run * RUN],
                                    .iov = iovs[run],
                                    .nr_iov = RUN,
                                    .length = RUN * RIG_PAGE};
    }
    assert_int_equal(tier_run(&r->queue, ios, NR / RUN, 0), 0);
    assert_int_equal(rig_io(r, false, slots[0], in, NR), 0);
    for (unsigned i = 0; i < NR; i++) {
        assert_true(rig_filled(in + i * RIG_PAGE, i));
    }
    assert_int_equal(rig_io(r, false, slots[100], in, 1), 0);
    assert_true(rig_filled(in, 100));
    assert_int_equal(r->stats.write_bytes, NR * RIG_PAGE);
    assert_int_equal(r->stats.read_bytes, (NR + 1) * RIG_PAGE);
    assert_int_equal(r->stats.errors, 0);
    for (unsigned i = 0; i < NR; i++) {
        assert_true(tier_nbd_ops.free(&r->tier, slots[i]));
    }
    free(out);
    free(in);
}

static void pages_come_back(void **state)
{
    struct nbd_rig r;
    (void)state;

    rig_need("nbdkit");
    rig_init(&r, 16 * MIB);
    rig_serve_file(&r);
    rig_open(&r, "vm", 8 * MIB);
    check_pages(&r);
    rig_deinit(&r);
}

static void pages_come_back_from_qemu_nbd(void **state)
{
    struct nbd_rig r;
    const char *const args[] = {"-k", r.socket, "-f",   "raw",  "-t", "-e",
                                "8",  "-x",     "disk", r.file, NULL};
    (void)state;

    rig_need("qemu-nbd");
    rig_init(&r, 16 * MIB);
    snprintf(r.config.uri, sizeof(r.config.uri), "nbd+unix:///{vm}?socket=%s", r.socket);
    rig_serve_program(&r, "qemu-nbd", args);
    assert_int_not_equal(rig_try_open(&r, "other"), 0); /* no export of that name */
    rig_open(&r, "disk", 8 * MIB);
    check_pages(&r);
    rig_deinit(&r);
}

static void slots_are_counted_and_given_back_once(void **state)
{
    struct nbd_rig r;
    uint64_t slots[10];
    (void)state;

    rig_need("nbdkit");
    rig_init(&r, 4 * MIB);
    rig_serve_file(&r);
    rig_open(&r, "vm", 1 * MIB);
    rig_take(&r, slots, 10);
    assert_int_equal(tier_nbd_ops.used(&r.tier), 10 * RIG_PAGE);
    assert_false(tier_nbd_ops.valid(&r.tier, 0));
    assert_true(tier_nbd_ops.valid(&r.tier, slots[9]));
    assert_false(tier_nbd_ops.valid(&r.tier, 1024));
    assert_int_equal(tier_nbd_ops.extent(&r.tier, slots[0], 64), 64);
    assert_true(tier_nbd_ops.free(&r.tier, slots[3]));
    assert_false(tier_nbd_ops.free(&r.tier, slots[3]));
    assert_false(tier_nbd_ops.free(&r.tier, 0));
    assert_false(tier_nbd_ops.free(&r.tier, UINT64_MAX));
    assert_int_equal(tier_nbd_ops.used(&r.tier), 9 * RIG_PAGE);
    rig_deinit(&r);
}

static void small_export_is_what_there_is(void **state)
{
    enum { SLOTS = 2 * 1024 * 1024 / 4096 - 1 };
    struct tier_put puts[SLOTS + 8] = {0};
    struct nbd_rig r;
    char page[RIG_PAGE];
    (void)state;

    rig_need("nbdkit");
    rig_init(&r, 2 * MIB);
    rig_serve_file(&r);
    rig_open(&r, "vm", 64 * MIB);
    assert_int_equal(r.stats.capacity_bytes, SLOTS * RIG_PAGE);
    tier_nbd_ops.put(&r.tier, NULL, puts, SLOTS + 8);
    for (unsigned i = 0; i < SLOTS + 8; i++) {
        assert_int_equal(puts[i].result, i < SLOTS ? 0 : -ENOSPC);
        assert_int_equal(puts[i].slot, i < SLOTS ? i + 1 : 0);
    }
    /* the last page of the export, and nothing beyond */
    rig_fill(page, 7);
    assert_int_equal(rig_io(&r, true, SLOTS, page, 1), 0);
    assert_int_equal(tier_nbd_ops.extent(&r.tier, SLOTS, 64), 1);
    assert_int_equal(rig_io(&r, true, SLOTS + 1, page, 1), -EINVAL);
    assert_int_equal(rig_io(&r, true, SLOTS, page, 2), -EINVAL);
    /* the superblock is nobody's page */
    assert_int_equal(rig_io(&r, true, 0, page, 1), -EINVAL);
    rig_deinit(&r);
}

static void configured_capacity_bounds_the_volume(void **state)
{
    struct nbd_rig r;
    (void)state;

    rig_need("nbdkit");
    rig_init(&r, 64 * MIB);
    r.config.capacity = 4 * MIB;
    rig_serve_file(&r);
    rig_open(&r, "vm", 32 * MIB);
    assert_int_equal(r.stats.capacity_bytes, 4 * MIB);
    rig_deinit(&r);
}

static void slots_of_a_batch_ascend_when_the_volume_is_fragmented(void **state)
{
    enum { NR = 300 };
    struct tier_put puts[NR / 2] = {0};
    struct nbd_rig r;
    uint64_t slots[NR];
    (void)state;

    rig_need("nbdkit");
    rig_init(&r, 2 * MIB);
    rig_serve_file(&r);
    rig_open(&r, "vm", 64 * MIB);
    rig_take(&r, slots, NR);
    for (unsigned i = 0; i < NR; i++) {
        if (i % 7 && i % 3) {
            assert_true(tier_nbd_ops.free(&r.tier, slots[i]));
        }
    }
    rig_take(&r, slots, 511 - NR); /* what is left behind: now the search wraps */
    tier_nbd_ops.put(&r.tier, NULL, puts, NR / 2);
    for (unsigned i = 0; i < NR / 2; i++) {
        assert_int_equal(puts[i].result, 0);
        assert_true(!i || puts[i].slot > puts[i - 1].slot);
    }
    rig_deinit(&r);
}

static void many_requests_are_in_flight(void **state)
{
    enum { NR = 200 };
    static char pages[NR][RIG_PAGE] __attribute__((aligned(4096)));
    static struct tier_io ios[NR];
    struct iovec iovs[NR];
    const char *const args[] = {"-t",  "64",          "--filter=delay", "memory",
                                "64M", "wdelay=20ms", "rdelay=20ms",    NULL};
    uint64_t slots[NR], began;
    struct nbd_rig r;
    (void)state;

    rig_need("nbdkit");
    rig_init(&r, 0);
    rig_serve(&r, args);
    r.config.connections = 1;
    rig_open(&r, "vm", 8 * MIB);
    rig_take(&r, slots, NR);
    for (int write = 1; write >= 0; write--) {
        began = clock_ns();
        memset(pages, 0, sizeof(pages));
        for (unsigned i = 0; write && i < NR; i++) {
            rig_fill(pages[i], i);
        }
        for (unsigned i = 0; i < NR; i++) {
            rig_submit(&r, &ios[i], &iovs[i], write, slots[(i * 37) % NR],
                       pages[(i * 37) % NR], 1);
        }
        for (unsigned i = 0; i < NR; i++) {
            assert_true(rig_wait(&r, &ios[i], 10000));
            assert_int_equal(ios[i].result, 0);
        }
        /* one after the other they would take four seconds */
        assert_true(clock_ns() - began < NSEC_PER_SEC);
    }
    for (unsigned i = 0; i < NR; i++) {
        assert_true(rig_filled(pages[i], i));
    }
    rig_deinit(&r);
}

static void connections_are_as_many_as_the_server_allows(void **state)
{
    const char *const many[] = {"memory", "64M", NULL};
    const char *const one[] = {"--filter=multi-conn", "memory", "64M",
                               "multi-conn-mode=disable", NULL};
    struct nbd_rig r;
    (void)state;

    rig_need("nbdkit");
    rig_init(&r, 0);
    rig_serve(&r, many);
    rig_open(&r, "vm", 8 * MIB);
    for (unsigned ms = 0; rig_connections(&r) != 4 && ms < 5000; ms += 10) {
        rig_sleep_ms(10);
    }
    assert_int_equal(rig_connections(&r), 4);
    check_pages(&r);
    rig_close(&r, false);
    rig_kill(&r);

    rig_serve(&r, one);
    rig_open(&r, "vm", 8 * MIB);
    check_pages(&r);
    rig_sleep_ms(200);
    assert_int_equal(rig_connections(&r), 1);
    rig_deinit(&r);
}

static void freed_slots_are_trimmed(void **state)
{
    enum { NR = 512 };
    static char pages[NR * 4096];
    struct stat before, after;
    uint64_t slots[NR], freed = 0;
    struct nbd_rig r;
    (void)state;

    rig_need("nbdkit");
    rig_init(&r, 16 * MIB);
    rig_serve_file(&r);
    rig_open(&r, "vm", 8 * MIB);
    rig_take(&r, slots, NR);
    memset(pages, 0x55, sizeof(pages));
    assert_int_equal(rig_io(&r, true, slots[0], pages, NR), 0);
    assert_int_equal(stat(r.file, &before), 0);
    assert_int_equal(tier_nbd_ops.tidy(&r.tier), 0);
    for (unsigned i = 0; i < NR; i++) {
        assert_true(tier_nbd_ops.free(&r.tier, slots[i]));
    }
    for (unsigned tries = 0; freed < NR * RIG_PAGE && tries < 100; tries++) {
        freed += tier_nbd_ops.tidy(&r.tier);
    }
    assert_int_equal(freed, NR * RIG_PAGE);
    assert_int_equal(r.stats.trim_bytes, NR * RIG_PAGE);
    assert_int_equal(tier_nbd_ops.used(&r.tier), 0);
    assert_int_equal(stat(r.file, &after), 0);
    assert_true(before.st_blocks - after.st_blocks >= NR * 8 - 64);
    assert_int_equal(rig_io(&r, false, slots[0], pages, NR), 0);
    assert_int_equal(pages[0], 0);
    assert_memory_equal(pages, pages + 1, sizeof(pages) - 1);
    rig_deinit(&r);
}

static void server_without_trim_is_not_asked(void **state)
{
    struct nbd_rig r;
    const char *const args[] = {"split", r.file, NULL};
    uint64_t slots[128];
    (void)state;

    rig_need("nbdkit");
    rig_init(&r, 16 * MIB);
    rig_serve(&r, args);
    rig_open(&r, "vm", 8 * MIB);
    rig_take(&r, slots, 128);
    for (unsigned i = 0; i < 128; i++) {
        assert_true(tier_nbd_ops.free(&r.tier, slots[i]));
    }
    assert_int_equal(tier_nbd_ops.tidy(&r.tier), 0);
    assert_int_equal(r.stats.errors, 0);
    check_pages(&r);
    rig_deinit(&r);
}

/* What two hosts that take one volume at the same time look like to the first. */
static void volume_that_is_lost_while_it_is_taken_is_refused(void **state)
{
    const char *const args[] = {
        "eval",
        "get_size=echo 16M",
        "pread=dd if=/dev/zero count=$3 iflag=count_bytes 2>/dev/null",
        "pwrite=cat >/dev/null",
        "can_write=exit 0",
        NULL};
    struct nbd_rig r;
    (void)state;

    rig_need("nbdkit");
    rig_init(&r, 0);
    rig_serve(&r, args);
    assert_int_equal(rig_try_open(&r, "vm"), -ENOMEDIUM);
    assert_non_null(strstr(r.err, "is blank"));
    rig_deinit(&r);
}

static void error_of_the_server_is_the_result_and_heals(void **state)
{
    char trigger[128], trigger_arg[160];
    struct nbd_rig r;
    const char *const args[] = {"--filter=error",  "file",      r.file, "error=ENOSPC",
                                "error-rate=100%", trigger_arg, NULL};
    static char pages[4 * 4096];
    uint64_t slots[4];
    int fd;
    (void)state;

    rig_need("nbdkit");
    rig_init(&r, 16 * MIB);
    snprintf(trigger, sizeof(trigger), "%s/inject", r.dir);
    snprintf(trigger_arg, sizeof(trigger_arg), "error-file=%s", trigger);
    rig_serve(&r, args);
    rig_open(&r, "vm", 8 * MIB);
    rig_take(&r, slots, 4);
    for (unsigned i = 0; i < 4; i++) {
        rig_fill(pages + i * RIG_PAGE, i);
    }
    fd = open(trigger, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(rig_io(&r, true, slots[0], pages, 4), -ENOSPC);
    assert_int_equal(rig_io(&r, false, slots[0], pages, 4), -ENOSPC);
    assert_int_equal(r.stats.errors, 2);
    assert_non_null(strstr(r.stats.last_error, "No space left"));
    assert_non_null(strstr(r.stats.last_error, r.socket));
    /* an answer is not a lost link */
    assert_int_equal(r.stats.state, UFFDMM_TIER_OK);
    assert_int_equal(r.stats.reconnects, 0);
    unlink(trigger);
    assert_int_equal(rig_io(&r, true, slots[0], pages, 4), 0);
    memset(pages, 0, sizeof(pages));
    assert_int_equal(rig_io(&r, false, slots[0], pages, 4), 0);
    for (unsigned i = 0; i < 4; i++) {
        assert_true(rig_filled(pages + i * RIG_PAGE, i));
    }
    rig_deinit(&r);
}

static void write_text(const char *path, const char *text)
{
    int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
}

static void tls_is_used_when_the_uri_says_so(void **state)
{
    char keys[96], wrong[96], psk_arg[128];
    struct nbd_rig r;
    const char *const args[] = {"--tls=require", psk_arg, "file", r.file, NULL};
    (void)state;

    rig_need("nbdkit");
    rig_init(&r, 16 * MIB);
    snprintf(keys, sizeof(keys), "%s/keys.psk", r.dir);
    snprintf(wrong, sizeof(wrong), "%s/wrong.psk", r.dir);
    snprintf(psk_arg, sizeof(psk_arg), "--tls-psk=%s", keys);
    write_text(keys, "manager:0123456789abcdef0123456789abcdef\n");
    write_text(wrong, "manager:fedcba9876543210fedcba9876543210\n");
    rig_serve(&r, args);

    assert_int_equal(rig_try_open(&r, "vm"), -ENOTCONN); /* nbd+unix: no TLS */
    assert_non_null(strstr(r.err, "cannot connect to nbd export"));

    snprintf(r.config.uri, sizeof(r.config.uri),
             "nbds+unix://manager@/?socket=%s&tls-psk-file=%s", r.socket, wrong);
    assert_int_equal(rig_try_open(&r, "vm"), -ENOTCONN);

    snprintf(r.config.uri, sizeof(r.config.uri),
             "nbds+unix://manager@/?socket=%s&tls-psk-file=%s", r.socket, keys);
    rig_open(&r, "vm", 8 * MIB);
    check_pages(&r);
    rig_deinit(&r);
}

static void unsuitable_export_is_refused(void **state)
{
    struct nbd_rig r;
    const char *const small[] = {"memory", "2093056", NULL}; /* a page less than 2 MiB */
    const char *const read_only[] = {"-r", "memory", "64M", NULL};
    const char *const blocks[] = {"--filter=blocksize-policy",
                                  "memory",
                                  "64M",
                                  "blocksize-minimum=8192",
                                  "blocksize-preferred=65536",
                                  "blocksize-error-policy=error",
                                  NULL};
    (void)state;

    rig_need("nbdkit");
    rig_init(&r, 0);
    rig_serve(&r, small);
    assert_int_equal(rig_try_open(&r, "vm"), -ENOSPC);
    assert_non_null(strstr(r.err, "has 2093056 bytes and 2097152 are needed"));
    rig_kill(&r);

    rig_serve(&r, read_only);
    assert_int_equal(rig_try_open(&r, "vm"), -EROFS);
    assert_non_null(strstr(r.err, "is read-only; export it writable"));
    rig_kill(&r);

    rig_serve(&r, blocks);
    assert_int_equal(rig_try_open(&r, "vm"), -EINVAL);
    assert_non_null(strstr(r.err, "takes no requests of 4096 bytes"));
    rig_deinit(&r);
}

static void absent_server_is_an_error_at_once(void **state)
{
    uint64_t began = clock_ns();
    struct nbd_rig r;
    (void)state;

    rig_init(&r, 0);
    assert_int_equal(rig_try_open(&r, "vm"), -ENOTCONN);
    assert_non_null(strstr(r.err, r.socket));
    assert_non_null(strstr(r.err, "start its server or correct uri="));
    assert_true(clock_ns() - began < NSEC_PER_SEC);

    snprintf(r.config.uri, sizeof(r.config.uri), "http://localhost/");
    assert_int_equal(rig_try_open(&r, "vm"), -ENOTCONN);
    rig_deinit(&r);
}

static void name_of_the_vm_is_encoded_in_the_uri(void **state)
{
    char out[64];
    (void)state;

    assert_int_equal(nbd_uri_expand("nbd://h/{vm}/{vm}", "a b/\xc3\xa9", out, 64), 0);
    assert_string_equal(out, "nbd://h/a%20b%2F%C3%A9/a%20b%2F%C3%A9");
    assert_int_equal(nbd_uri_expand("nbd://h/{v}", "x", out, 64), 0);
    assert_string_equal(out, "nbd://h/{v}");
    assert_int_equal(nbd_uri_expand("{vm}", "0123456789", out, 10), -ENAMETOOLONG);
    assert_int_equal(nbd_uri_expand("0123456789", "", out, 10), -ENAMETOOLONG);
    assert_int_equal(nbd_uri_expand("012345678", "", out, 10), 0);
}

/* ---- whose volume it is -------------------------------------------------- */

static void read_superblock(const struct nbd_rig *r, struct superblock *sb)
{
    char block[SUPERBLOCK_BYTES];
    int fd = open(r->file, O_RDONLY | O_CLOEXEC);

    assert_true(fd >= 0);
    assert_int_equal(pread(fd, block, sizeof(block), 0), sizeof(block));
    close(fd);
    assert_int_equal(superblock_parse(block, sb), SUPERBLOCK_VALID);
}

static void volume_is_owned_then_free_for_another_vm(void **state)
{
    static char block[SUPERBLOCK_BYTES];
    struct superblock sb;
    struct nbd_rig r;
    (void)state;

    rig_need("nbdkit");
    rig_init(&r, 16 * MIB);
    rig_serve_file(&r);
    rig_open(&r, "first", 8 * MIB);
    read_superblock(&r, &sb);
    assert_int_equal(sb.state, SUPERBLOCK_OWNED);
    assert_int_equal(sb.epoch, 1);
    assert_string_equal(sb.vm_name, "first");
    assert_int_equal(sb.owner.pid, getpid());
    memset(block, 0x77, sizeof(block));
    assert_int_equal(rig_io(&r, true, 5, block, 1), 0);
    rig_close(&r, false);
    read_superblock(&r, &sb);
    assert_int_equal(sb.state, SUPERBLOCK_FREE);

    /* the next one finds nothing of what was there */
    rig_open(&r, "second", 8 * MIB);
    assert_int_equal(rig_io(&r, false, 5, block, 1), 0);
    assert_int_equal(block[0], 0);
    assert_memory_equal(block, block + 1, sizeof(block) - 1);
    rig_close(&r, true);
    read_superblock(&r, &sb);
    assert_int_equal(sb.state, SUPERBLOCK_RELEASED);
    assert_int_equal(sb.epoch, 2);

    assert_int_equal(rig_try_open(&r, "third"), -EBUSY);
    assert_non_null(strstr(r.err, "holds pages of VM second"));
    rig_open(&r, "second", 8 * MIB);
    rig_deinit(&r);
}

static void volume_of_a_dead_owner_is_taken_by_its_vm_alone(void **state)
{
    struct superblock sb;
    struct nbd_rig r;
    int status;
    pid_t pid;
    (void)state;

    rig_need("nbdkit");
    rig_init(&r, 16 * MIB);
    rig_serve_file(&r);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        _exit(rig_try_open(&r, "vm") == 0 ? 0 : 1); /* and dies without a word */
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    read_superblock(&r, &sb);
    assert_int_equal(sb.owner.pid, pid);

    assert_int_equal(rig_try_open(&r, "other"), -EBUSY);
    assert_non_null(strstr(r.err, "is owned by VM vm on host"));
    assert_non_null(strstr(r.err, sb.owner.host));
    rig_open(&r, "vm", 8 * MIB);
    read_superblock(&r, &sb);
    assert_int_equal(sb.epoch, 2);
    rig_deinit(&r);
}

static void volume_of_a_living_owner_is_refused(void **state)
{
    struct nbd_rig r, again;
    (void)state;

    rig_need("nbdkit");
    rig_init(&r, 16 * MIB);
    rig_serve_file(&r);
    rig_open(&r, "vm", 8 * MIB);
    again = r;
    assert_int_equal(rig_try_open(&again, "vm"), -EBUSY);
    assert_non_null(strstr(again.err, "is owned by VM vm on host"));
    check_pages(&r);
    rig_deinit(&r);
}

static void data_of_others_is_not_touched(void **state)
{
    char text[4096] = "precious", now[4096];
    struct nbd_rig r;
    int fd;
    (void)state;

    rig_need("nbdkit");
    rig_init(&r, 16 * MIB);
    fd = open(r.file, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, text, sizeof(text), 0), sizeof(text));
    rig_serve_file(&r);
    assert_int_equal(rig_try_open(&r, "vm"), -EEXIST);
    assert_non_null(strstr(r.err, "zero its first 4 KiB"));
    assert_int_equal(pread(fd, now, sizeof(now), 0), sizeof(now));
    assert_memory_equal(now, text, sizeof(text));
    close(fd);
    rig_deinit(&r);
}

/* What every tier has to do, on a server that stays the same from test to test. */
static int contract(void)
{
    struct nbd_rig r;
    int failed;

    if (!rig_have("nbdkit")) {
        print_message("skip: nbdkit is not installed\n");
        return 0;
    }
    rig_init(&r, 64 * MIB);
    rig_serve_file(&r);
    failed = tier_contract("nbd", &r.config);
    rig_deinit(&r);
    return failed;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(library_is_loaded_when_it_is_wanted),
        cmocka_unit_test(name_of_the_vm_is_encoded_in_the_uri),
        cmocka_unit_test(pages_come_back),
        cmocka_unit_test(pages_come_back_from_qemu_nbd),
        cmocka_unit_test(slots_are_counted_and_given_back_once),
        cmocka_unit_test(small_export_is_what_there_is),
        cmocka_unit_test(configured_capacity_bounds_the_volume),
        cmocka_unit_test(slots_of_a_batch_ascend_when_the_volume_is_fragmented),
        cmocka_unit_test(many_requests_are_in_flight),
        cmocka_unit_test(connections_are_as_many_as_the_server_allows),
        cmocka_unit_test(freed_slots_are_trimmed),
        cmocka_unit_test(server_without_trim_is_not_asked),
        cmocka_unit_test(volume_that_is_lost_while_it_is_taken_is_refused),
        cmocka_unit_test(error_of_the_server_is_the_result_and_heals),
        cmocka_unit_test(tls_is_used_when_the_uri_says_so),
        cmocka_unit_test(unsuitable_export_is_refused),
        cmocka_unit_test(absent_server_is_an_error_at_once),
        cmocka_unit_test(volume_is_owned_then_free_for_another_vm),
        cmocka_unit_test(volume_of_a_dead_owner_is_taken_by_its_vm_alone),
        cmocka_unit_test(volume_of_a_living_owner_is_refused),
        cmocka_unit_test(data_of_others_is_not_touched),
    };

    int failed = cmocka_run_group_tests_name("tier_nbd", tests, NULL, NULL);

    return failed + contract();
}
