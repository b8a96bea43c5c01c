/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "unit.h"

#include "file_bench.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- fixture -------------------------------------------------------------- */

void file_bench_name_path(struct file_bench *b, const char *name)
{
    char path[128];

    assert_true(b->config.nr_paths < TIER_PATHS_MAX);
    snprintf(path, sizeof(path), "%s/%s", b->root, name);
    memcpy(b->config.paths[b->config.nr_paths++], path, sizeof(path));
}

void file_bench_make_dirs(struct file_bench *b, unsigned nr)
{
    static const char *const names[TIER_PATHS_MAX] = {"d0", "d1", "d2", "d3"};

    for (unsigned i = 0; i < nr; i++) {
        file_bench_name_path(b, names[i]);
        assert_return_code(mkdir(b->config.paths[i], 0700), errno);
    }
}

int file_bench_set_up(void **state)
{
    struct file_bench *b = calloc(1, sizeof(*b));

    if (!b) {
        return -1;
    }
    /* not in /tmp, which may be a tmpfs without O_DIRECT */
    snprintf(b->root, sizeof(b->root), "/var/tmp/uffdmm-file-XXXXXX");
    assert_non_null(mkdtemp(b->root));
    snprintf(b->config.name, sizeof(b->config.name), "disk");
    b->config.type = UFFDMM_TIER_FILE;
    b->stats = calloc(1, sizeof(*b->stats));
    assert_non_null(b->stats);
    *state = b;
    return 0;
}

int file_bench_tear_down(void **state)
{
    struct file_bench *b = *state;
    char command[128];

    snprintf(command, sizeof(command), "rm -r '%s'", b->root);
    assert_int_equal(system(command), 0); /* NOLINT(cert-env33-c): a path of our own */
    if (b->has_queue) {
        tier_queue_deinit(&b->queue);
    }
    free(b->stats);
    free(b);
    return 0;
}

struct tier_vm file_bench_vm(pid_t pid, uint8_t uuid)
{
    return (struct tier_vm){.name = "vm", .uuid = {uuid}, .qemu_pid = pid};
}

int file_bench_try_open_as(struct file_bench *b, struct tier *t, pid_t pid, uint8_t uuid)
{
    struct tier_vm vm = file_bench_vm(pid, uuid);

    b->err[0] = '\0';
    return tier_open(t, 1, &b->config, &vm, b->stats, b->err, sizeof(b->err));
}

int file_bench_try_open(struct file_bench *b)
{
    return file_bench_try_open_as(b, &b->tier, getpid(), 1);
}

void file_bench_open(struct file_bench *b, uint64_t bytes)
{
    if (file_bench_try_open(b) ||
        b->tier.ops->reserve(&b->tier, bytes, b->err, sizeof(b->err))) {
        fail_msg("%s", b->err);
    }
}

void file_bench_close(struct file_bench *b, bool keep)
{
    b->tier.ops->close(&b->tier, keep);
}

void file_bench_expect_refused(struct file_bench *b, int ret, const char *word)
{
    assert_true(ret < 0);
    print_message("refused: %s\n", b->err);
    assert_non_null(strstr(b->err, word));
    assert_non_null(strstr(b->err, "disk"));
}

bool file_bench_find_volume(const struct file_bench *b, unsigned index, char file[2048])
{
    DIR *d = opendir(b->config.paths[index]);
    struct dirent *entry;
    unsigned found = 0;

    assert_non_null(d);
    while ((entry = readdir(d))) {
        if (strstr(entry->d_name, ".volume")) {
            snprintf(file, 2048, "%s/%s", b->config.paths[index], entry->d_name);
            found++;
        }
    }
    closedir(d);
    assert_in_range(found, 0, 1);
    return found;
}

struct stat file_bench_stat(const struct file_bench *b, unsigned index)
{
    char file[2048];
    struct stat st;

    assert_true(file_bench_find_volume(b, index, file));
    assert_return_code(stat(file, &st), errno);
    return st;
}

/* ---- pages ----------------------------------------------------------------- */

char page_buffer[PAGE_SIZE_4K] __attribute__((aligned(PAGE_SIZE_4K)));

void file_bench_write_slot(struct file_bench *b, uint64_t slot)
{
    struct tier *tiers[1] = {&b->tier};
    struct iovec iov = {page_buffer, PAGE_SIZE_4K};
    struct tier_io io = {.tier = &b->tier,
                         .write = true,
                         .slot = slot,
                         .iov = &iov,
                         .nr_iov = 1,
                         .length = PAGE_SIZE_4K};

    for (unsigned i = 0; i < PAGE_SIZE_4K / 8; i++) {
        memcpy(page_buffer + 8UL * i, &slot, sizeof(slot));
    }
    /* one for all: rings are given back late, and count against the locked memory */
    if (!b->has_queue) {
        assert_int_equal(tier_queue_init(&b->queue, tiers, 1), 0);
        b->has_queue = true;
    }
    assert_int_equal(tier_run(&b->queue, &io, 1, 0), 0);
}

uint64_t file_bench_number_at(const char *file, uint64_t offset)
{
    int fd = open(file, O_RDONLY | O_DIRECT | O_CLOEXEC);
    uint64_t number;

    assert_return_code(fd, errno);
    assert_int_equal(pread(fd, page_buffer, PAGE_SIZE_4K, (off_t)offset), PAGE_SIZE_4K);
    close(fd);
    memcpy(&number, page_buffer, sizeof(number));
    assert_memory_equal(page_buffer, page_buffer + 8, PAGE_SIZE_4K - 8);
    return number;
}

void file_bench_put(struct file_bench *b, uint64_t *slots, unsigned nr)
{
    struct tier_put *puts = calloc(nr, sizeof(*puts));

    assert_non_null(puts);
    tier_put(&b->tier, NULL, puts, nr);
    for (unsigned i = 0; i < nr; i++) {
        assert_int_equal(puts[i].result, 0);
        slots[i] = puts[i].slot;
    }
    free(puts);
}

void label_of(const char *file, struct superblock *sb)
{
    int fd = open(file, O_RDONLY | O_DIRECT | O_CLOEXEC);

    assert_return_code(fd, errno);
    assert_int_equal(pread(fd, page_buffer, PAGE_SIZE_4K, 0), PAGE_SIZE_4K);
    close(fd);
    assert_int_equal(superblock_parse(page_buffer, sb), SUPERBLOCK_VALID);
}

int file_bench_make_device(struct file_bench *b, unsigned mib)
{
    char file[128], node[32];
    int back, fd, nr, control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);

    if (control < 0) {
        print_message("skip: no /dev/loop-control to be opened: %s\n", strerror(errno));
        skip();
    }
    snprintf(file, sizeof(file), "%s/device%u", b->root, b->config.nr_paths);
    back = open(file, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    assert_return_code(back, errno);
    assert_return_code(ftruncate(back, (off_t)mib * MIB), errno);
    for (int tries = 0; tries < 20; tries++) {
        struct loop_config config = {.fd = (unsigned)back,
                                     .block_size = 512,
                                     .info = {.lo_flags = LO_FLAGS_AUTOCLEAR}};

        nr = ioctl(control, LOOP_CTL_GET_FREE);
        snprintf(node, sizeof(node), "/dev/loop%d", nr);
        fd = nr < 0 ? -1 : open(node, O_RDWR | O_CLOEXEC);
        if (fd >= 0 && ioctl(fd, LOOP_CONFIGURE, &config) == 0) {
            close(back);
            close(control);
            snprintf(b->config.paths[b->config.nr_paths++], sizeof(b->config.paths[0]),
                     "%s", node);
            return fd;
        }
        if (fd >= 0) {
            close(fd); /* somebody else was faster */
        }
    }
    close(back);
    close(control);
    print_message("skip: no loop device to be had: %s\n", strerror(errno));
    skip();
    return -1;
}

pid_t start_process(void)
{
    pid_t pid = fork();

    assert_return_code(pid, errno);
    if (!pid) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        pause();
        _exit(0);
    }
    return pid;
}

void end_process(pid_t pid)
{
    assert_return_code(kill(pid, SIGKILL), errno);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
}
