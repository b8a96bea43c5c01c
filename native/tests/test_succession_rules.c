/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Whom a worker makes way for: only a manager that would serve its VM. */
#include "unit.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "conn.h"
#include "options.h"
#include "succession.h"

enum { QEMU_UID = 64055 };

struct rig {
    char dir[64];
    char lock[96];
    int listen_fd;
    struct options options;
    struct succession worker;
};

static void rig_init(struct rig *r)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    struct conn *qemu = calloc(1, sizeof(*qemu));

    memset(r, 0, sizeof(*r));
    snprintf(r->dir, sizeof(r->dir), "/tmp/uffdmm-succession-XXXXXX");
    assert_non_null(mkdtemp(r->dir));
    snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/sock", r->dir);
    snprintf(r->lock, sizeof(r->lock), "%s/sock.lock", r->dir);
    r->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_return_code(bind(r->listen_fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
    r->options.nr_tiers = 1;
    snprintf(r->options.tiers[0].name, sizeof(r->options.tiers[0].name), "disk");
    r->options.uids[0] = QEMU_UID;
    r->options.nr_uids = 1;
    /* the file is the first manager's */
    int lead = succession_lead(&r->options, r->listen_fd);
    assert_true(lead >= 0);
    assert_non_null(qemu);
    qemu->header.version = UFFDMM_VERSION;
    qemu->header.min_version = UFFDMM_MIN_VERSION;
    qemu->uid = QEMU_UID;
    succession_watch(&r->worker, &r->options, r->listen_fd, qemu);
    assert_true(r->worker.fd >= 0);
    free(qemu);
    close(lead);
}

static void rig_deinit(struct rig *r)
{
    close(r->worker.fd);
    close(r->listen_fd);
    unlink(r->lock);
    char sock[96];
    snprintf(sock, sizeof(sock), "%s/sock", r->dir);
    unlink(sock);
    assert_return_code(rmdir(r->dir), 0);
}

/* Asks some times, as a worker does. */
static bool makes_way(struct rig *r)
{
    for (int i = 0; i < 4; i++) {
        if (succession_due(&r->worker)) {
            return true;
        }
    }
    return false;
}

static void makes_way_for_one_like_the_former(void **state)
{
    struct rig r;
    (void)state;

    rig_init(&r);
    assert_false(makes_way(&r)); /* nobody is in charge */
    int lead = succession_lead(&r.options, r.listen_fd);
    assert_true(lead >= 0);
    assert_false(succession_due(&r.worker)); /* its text could be that of another */
    assert_true(succession_due(&r.worker));
    close(lead);
    rig_deinit(&r);
}

static void stays_when_its_pages_could_not_be_read(void **state)
{
    struct rig r;
    (void)state;

    rig_init(&r);
    snprintf(r.options.tiers[0].paths[0], sizeof(r.options.tiers[0].paths[0]), "/other");
    r.options.tiers[0].nr_paths = 1;
    int lead = succession_lead(&r.options, r.listen_fd);
    assert_false(makes_way(&r));
    close(lead);
    rig_deinit(&r);
}

static void stays_when_its_qemu_would_not_be_let_in(void **state)
{
    struct rig r;
    (void)state;

    rig_init(&r);
    r.options.nr_uids = 0;
    int lead = succession_lead(&r.options, r.listen_fd);
    assert_false(makes_way(&r));
    close(lead);
    r.options.uids[0] = QEMU_UID / 10; /* not by a part of the number */
    r.options.nr_uids = 1;
    lead = succession_lead(&r.options, r.listen_fd);
    assert_false(makes_way(&r));
    close(lead);
    rig_deinit(&r);
}

static void stays_when_its_qemu_speaks_another_protocol(void **state)
{
    struct rig r;
    (void)state;

    rig_init(&r);
    int lead = succession_lead(&r.options, r.listen_fd);
    r.worker.version = UFFDMM_MIN_VERSION - 1; /* the new one is of a later release */
    r.worker.min_version = 1;
    assert_false(makes_way(&r));
    r.worker.version = r.worker.min_version = UFFDMM_VERSION + 1;
    assert_false(makes_way(&r));
    close(lead);
    rig_deinit(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(makes_way_for_one_like_the_former),
        cmocka_unit_test(stays_when_its_pages_could_not_be_read),
        cmocka_unit_test(stays_when_its_qemu_would_not_be_let_in),
        cmocka_unit_test(stays_when_its_qemu_speaks_another_protocol),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
