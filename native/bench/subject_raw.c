/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What tiers are measured against: the copy, the codec, the device. */
#include "subject.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <lz4.h>
#include <zstd.h>

#include "clock.h"
#include "config.h"

static int complain(const char *what, const char *on, int ret)
{
    fprintf(stderr, "bench-tiers: %s %s: %s\n", what, on, strerror(-ret));
    return ret;
}

/* ---- memcpy -------------------------------------------------------------- */

static int64_t copy_in(struct subject *s, uint64_t pfn, const uint8_t *from, unsigned nr)
{
    uint8_t *store = s->priv;
    uint64_t before = clock_ns();

    memcpy(store + pfn * PAGE_SIZE_4K, from, (size_t)nr * PAGE_SIZE_4K);
    return (int64_t)(clock_ns() - before);
}

static int64_t copy_out(struct subject *s, uint64_t pfn, uint8_t *to, unsigned nr)
{
    const uint8_t *store = s->priv;
    uint64_t before = clock_ns();

    memcpy(to, store + pfn * PAGE_SIZE_4K, (size_t)nr * PAGE_SIZE_4K);
    return (int64_t)(clock_ns() - before);
}

static void copy_end(struct subject *s)
{
    free(s->priv);
}

int subject_memcpy(struct subject *s, const uint8_t *pages)
{
    size_t bytes = (size_t)SET_PAGES * PAGE_SIZE_4K;

    *s = (struct subject){
        .name = "memcpy", .put = copy_in, .read = copy_out, .end = copy_end};
    s->priv = aligned_alloc(PAGE_SIZE_4K, bytes);
    if (!s->priv) {
        return complain("cannot allocate the working set of", s->name, -ENOMEM);
    }
    memcpy(s->priv, pages, bytes);
    return 0;
}

/* ---- codec --------------------------------------------------------------- */

/* As much as a compressed page may have; those of the working set have about half. */
#define DATA_MAX PAGE_SIZE_4K

struct packed {
    uint8_t *data;
    uint32_t length;
};

struct codec {
    bool zstd;
    void *lz4;
    ZSTD_CCtx *cctx;
    ZSTD_DCtx *dctx;
    uint8_t out[DATA_MAX];
    struct packed packed[SET_PAGES];
};

/* Bytes, or 0 when the page does not fit. */
static uint32_t pack(struct codec *c, const uint8_t *page)
{
    size_t n;
    int ret;

    if (c->zstd) {
        n = ZSTD_compress2(c->cctx, c->out, sizeof(c->out), page, PAGE_SIZE_4K);
        return ZSTD_isError(n) ? 0 : (uint32_t)n;
    }
    ret = LZ4_compress_fast_extState(c->lz4, (const char *)page, (char *)c->out,
                                     PAGE_SIZE_4K, sizeof(c->out), 1);
    return ret > 0 ? (uint32_t)ret : 0;
}

static bool unpack(struct codec *c, const struct packed *p, uint8_t *page)
{
    if (c->zstd) {
        return ZSTD_decompressDCtx(c->dctx, page, PAGE_SIZE_4K, p->data, p->length) ==
               PAGE_SIZE_4K;
    }
    return LZ4_decompress_safe((const char *)p->data, (char *)page, (int)p->length,
                               PAGE_SIZE_4K) == (int)PAGE_SIZE_4K;
}

static int64_t codec_put(struct subject *s, uint64_t pfn, const uint8_t *from,
                         unsigned nr)
{
    struct codec *c = s->priv;
    uint64_t before = clock_ns();

    (void)pfn;
    for (unsigned i = 0; i < nr; i++) {
        if (!pack(c, from + (size_t)i * PAGE_SIZE_4K)) {
            return -E2BIG;
        }
    }
    return (int64_t)(clock_ns() - before);
}

static int64_t codec_read(struct subject *s, uint64_t pfn, uint8_t *to, unsigned nr)
{
    struct codec *c = s->priv;
    uint64_t before = clock_ns();

    for (unsigned i = 0; i < nr; i++) {
        if (!unpack(c, &c->packed[pfn + i], to + (size_t)i * PAGE_SIZE_4K)) {
            return -EUCLEAN;
        }
    }
    return (int64_t)(clock_ns() - before);
}

static void codec_end(struct subject *s)
{
    struct codec *c = s->priv;

    for (unsigned i = 0; i < SET_PAGES; i++) {
        free(c->packed[i].data);
    }
    free(c->lz4);
    ZSTD_freeCCtx(c->cctx);
    ZSTD_freeDCtx(c->dctx);
    free(c);
}

/* The parameters of native/src/pool_codec.c: a frame of nothing but the page. */
static bool codec_init(struct codec *c)
{
    if (!c->zstd) {
        c->lz4 = malloc((size_t)LZ4_sizeofState());
        return c->lz4 != NULL;
    }
    c->cctx = ZSTD_createCCtx();
    c->dctx = ZSTD_createDCtx();
    return c->cctx && c->dctx &&
           !ZSTD_isError(ZSTD_CCtx_setParameter(c->cctx, ZSTD_c_compressionLevel, 1)) &&
           !ZSTD_isError(ZSTD_CCtx_setParameter(c->cctx, ZSTD_c_contentSizeFlag, 0)) &&
           !ZSTD_isError(ZSTD_CCtx_setParameter(c->cctx, ZSTD_c_checksumFlag, 0)) &&
           !ZSTD_isError(ZSTD_CCtx_setParameter(c->cctx, ZSTD_c_dictIDFlag, 0));
}

int subject_codec(struct subject *s, const uint8_t *pages, bool zstd)
{
    struct codec *c = calloc(1, sizeof(*c));
    int ret = c ? 0 : -ENOMEM;

    *s = (struct subject){
        .put = codec_put, .read = codec_read, .end = codec_end, .priv = c};
    snprintf(s->name, sizeof(s->name), "codec-%s", zstd ? "zstd" : "lz4");
    if (!ret) {
        c->zstd = zstd;
        ret = codec_init(c) ? 0 : -ENOMEM;
    }
    for (unsigned i = 0; !ret && i < SET_PAGES; i++) {
        uint32_t length = pack(c, pages + (size_t)i * PAGE_SIZE_4K);

        c->packed[i].data = length ? malloc(length) : NULL;
        if (!c->packed[i].data) {
            ret = length ? -ENOMEM : -E2BIG;
            break;
        }
        memcpy(c->packed[i].data, c->out, length);
        c->packed[i].length = length;
    }
    if (ret && c) {
        codec_end(s);
    }
    return ret ? complain("cannot prepare", s->name, ret) : 0;
}

/* ---- device -------------------------------------------------------------- */

struct device {
    int fd;
};

static int64_t device_put(struct subject *s, uint64_t pfn, const uint8_t *from,
                          unsigned nr)
{
    const struct device *d = s->priv;
    size_t bytes = (size_t)nr * PAGE_SIZE_4K;
    uint64_t before = clock_ns();
    ssize_t n = pwrite(d->fd, from, bytes, (off_t)(pfn * PAGE_SIZE_4K));

    return n == (ssize_t)bytes ? (int64_t)(clock_ns() - before) : n < 0 ? -errno : -EIO;
}

static int64_t device_read(struct subject *s, uint64_t pfn, uint8_t *to, unsigned nr)
{
    const struct device *d = s->priv;
    size_t bytes = (size_t)nr * PAGE_SIZE_4K;
    uint64_t before = clock_ns();
    ssize_t n = pread(d->fd, to, bytes, (off_t)(pfn * PAGE_SIZE_4K));

    return n == (ssize_t)bytes ? (int64_t)(clock_ns() - before) : n < 0 ? -errno : -EIO;
}

static void device_end(struct subject *s)
{
    struct device *d = s->priv;

    close(d->fd);
    free(d);
}

/* Writes the working set, so that no read finds an unwritten extent. */
static int device_fill(const struct device *d, const uint8_t *pages)
{
    const size_t all = (size_t)SET_PAGES * PAGE_SIZE_4K, step = 1 << 20;

    for (size_t at = 0; at < all; at += step) {
        ssize_t n = pwrite(d->fd, pages + at, step, (off_t)at);

        if (n != (ssize_t)step) {
            return n < 0 ? -errno : -EIO;
        }
    }
    return fsync(d->fd) < 0 ? -errno : 0;
}

int subject_device(struct subject *s, const uint8_t *pages, const char *folder)
{
    struct device *d = calloc(1, sizeof(*d));
    int ret;

    *s = (struct subject){.name = "device",
                          .put = device_put,
                          .read = device_read,
                          .end = device_end,
                          .priv = d};
    if (!d) {
        return complain("cannot prepare", s->name, -ENOMEM);
    }
    d->fd = open(folder, O_TMPFILE | O_RDWR | O_DIRECT | O_CLOEXEC, 0600);
    if (d->fd < 0) {
        ret = complain("cannot make a file with O_DIRECT in", folder, -errno);
        free(d);
        return ret;
    }
    ret = device_fill(d, pages);
    if (ret) {
        complain("cannot fill a file in", folder, ret);
        device_end(s);
    }
    return ret;
}
