/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "control.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "conn.h"
#include "evict.h"
#include "log.h"
#include "prefetch.h"
#include "vm.h"

/* Sends the error and says it in the log; the connection goes on. */
static int refuse(struct conn *c, int status, const char *text)
{
    log_warn("refused message %u of process %d: %s", c->header.type, (int)c->pid, text);
    return conn_reply_error(c, status, text);
}

/* First region of index @i or above, NULL when there is none. */
static struct region *region_from(const struct vm *vm, uint32_t i)
{
    for (; i < UFFDMM_REGIONS_MAX; i++) {
        if (vm->regions[i] && vm->regions[i]->attached) {
            return vm->regions[i];
        }
    }
    return NULL;
}

const struct region *control_describe(const struct vm *vm, uint32_t i,
                                      struct uffdmm_regions_reply *reply)
{
    const struct region *r = region_from(vm, i), *next;

    if (r) {
        next = region_from(vm, r->id + 1);
        *reply = (struct uffdmm_regions_reply){.region_id = r->id,
                                               .next = next ? next->id : 0,
                                               .size = r->size,
                                               .page_size = region_page_bytes(r),
                                               .table_size = r->table_size};
        snprintf(reply->name, sizeof(reply->name), "%s", r->name);
    }
    return r;
}

int control_open_readonly(int fd)
{
    char path[64];

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

int control_regions(struct vm *vm, struct conn *c)
{
    const struct uffdmm_regions *req = (const void *)c->payload;
    struct uffdmm_regions_reply reply;
    const struct region *r = control_describe(vm, req->index, &reply);
    int fd, ret;

    if (!r) {
        return conn_reply_error(c, -ENOENT, "there is no further region");
    }
    fd = control_open_readonly(r->table_fd);
    if (fd < 0) {
        return refuse(c, fd, "cannot open the page-state table for reading");
    }
    ret = conn_reply(c, &reply, sizeof(reply), &fd, 1);
    close(fd);
    return ret;
}

int control_evict(struct vm *vm, struct conn *c)
{
    const struct uffdmm_move *req = (const void *)c->payload;

    if (req->nr_pages) {
        return refuse(c, -EINVAL, "an eviction takes no list of pages");
    }
    evict_by(vm, req->bytes);
    return conn_reply(c, NULL, 0, NULL, 0);
}

int control_prefetch(struct vm *vm, struct conn *c)
{
    const struct uffdmm_move *req = (const void *)c->payload;
    char err[UFFDMM_TEXT_MAX];
    struct region *r;
    int ret;

    if (!req->nr_pages && !c->nr_fds) {
        ret = prefetch_youngest(vm, req->bytes);
        return ret ? refuse(c, ret, "no memory for the list of pages")
                   : conn_reply(c, NULL, 0, NULL, 0);
    }
    if (!req->nr_pages || c->nr_fds != 1 || req->nr_pages > PREFETCH_PAGES_MAX) {
        snprintf(
            err, sizeof(err),
            "prefetch of %u pages with %u descriptors: name 1 to %u pages in one file",
            req->nr_pages, c->nr_fds, PREFETCH_PAGES_MAX);
        return refuse(c, -EINVAL, err);
    }
    r = req->region_id < UFFDMM_REGIONS_MAX ? vm->regions[req->region_id] : NULL;
    if (!r || !r->attached) {
        snprintf(err, sizeof(err), "VM '%s' has no region %u", vm->name, req->region_id);
        return refuse(c, -ENOENT, err);
    }
    /* reading any other file could make this thread wait for somebody */
    if (fcntl(c->fds[0], F_GET_SEALS) < 0 ||
        !(fcntl(c->fds[0], F_GET_SEALS) & F_SEAL_SHRINK)) {
        return refuse(c, -EINVAL,
                      "the list of pages must be a memfd, sealed against "
                      "shrinking");
    }
    ret = prefetch_pages(r, c->fds[0], req->nr_pages, req->bytes, err, sizeof(err));
    return ret ? refuse(c, ret, err) : conn_reply(c, NULL, 0, NULL, 0);
}
