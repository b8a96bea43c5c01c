/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Compression of single pages: lz4 and zstd behind one face, with all memory
 * that they need allocated beforehand.
 *
 * Compressed bytes come from memory that QEMU shares.  They are copied before
 * they are looked at, so that nobody changes them under a decompressor that
 * reads a field twice, and both decompressors get the exact sizes of their
 * input and output.
 */
#include "pool_priv.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <lz4.h>
#include <zstd.h>

struct pool_scratch {
    enum tier_codec codec;
    void *lz4;
    ZSTD_CCtx *cctx;
    ZSTD_DCtx *dctx;
    uint8_t data[POOL_DATA_MAX]; /* compressed, on the way in or out */
};

/* zstd takes 0 for its default of 3, which is twice as slow: 1 unless asked. */
static int zstd_level(int level)
{
    return level ? level : 1;
}

int pool_codec_check(enum tier_codec codec, int level)
{
    switch (codec) {
    case TIER_CODEC_LZ4:
        return 0;
    case TIER_CODEC_ZSTD:
        return level >= ZSTD_minCLevel() && level <= ZSTD_maxCLevel() ? 0 : -EINVAL;
    default:
        return -EINVAL;
    }
}

static int zstd_init(struct pool_scratch *s, int level)
{
    static const uint8_t zero[PAGE_SIZE_4K];
    uint8_t page[PAGE_SIZE_4K];
    size_t n;

    s->cctx = ZSTD_createCCtx();
    s->dctx = ZSTD_createDCtx();
    if (!s->cctx || !s->dctx) {
        return -ENOMEM;
    }
    /* a frame without length, checksum and dictionary: a page is a page */
    if (ZSTD_isError(ZSTD_CCtx_setParameter(s->cctx, ZSTD_c_compressionLevel,
                                            zstd_level(level))) ||
        ZSTD_isError(ZSTD_CCtx_setParameter(s->cctx, ZSTD_c_contentSizeFlag, 0)) ||
        ZSTD_isError(ZSTD_CCtx_setParameter(s->cctx, ZSTD_c_checksumFlag, 0)) ||
        ZSTD_isError(ZSTD_CCtx_setParameter(s->cctx, ZSTD_c_dictIDFlag, 0))) {
        return -EINVAL;
    }
    /* the context allocates its tables with the first page and keeps them */
    n = ZSTD_compress2(s->cctx, s->data, sizeof(s->data), zero, sizeof(zero));
    if (ZSTD_isError(n) ||
        ZSTD_decompressDCtx(s->dctx, page, sizeof(page), s->data, n) != sizeof(page)) {
        return -ENOMEM;
    }
    return 0;
}

int pool_scratch_new(struct pool *p, struct pool_scratch **out)
{
    struct pool_scratch *s = calloc(1, sizeof(*s));
    int ret = 0;

    if (!s) {
        return -ENOMEM;
    }
    s->codec = p->codec;
    if (p->codec == TIER_CODEC_LZ4) {
        s->lz4 = malloc((size_t)LZ4_sizeofState());
        ret = s->lz4 ? 0 : -ENOMEM;
    } else {
        ret = zstd_init(s, p->level);
    }
    if (ret) {
        pool_scratch_free(s);
        return ret;
    }
    *out = s;
    return 0;
}

void pool_scratch_free(struct pool_scratch *s)
{
    if (!s) {
        return;
    }
    free(s->lz4);
    ZSTD_freeCCtx(s->cctx);
    ZSTD_freeDCtx(s->dctx);
    free(s);
}

uint32_t pool_compress(struct pool_scratch *s, const void *page, const void **data)
{
    size_t n;
    int ret;

    *data = s->data;
    if (s->codec == TIER_CODEC_LZ4) {
        ret = LZ4_compress_fast_extState(s->lz4, page, (char *)s->data, PAGE_SIZE_4K,
                                         sizeof(s->data), 1);
        return ret > 0 ? (uint32_t)ret : 0;
    }
    n = ZSTD_compress2(s->cctx, s->data, sizeof(s->data), page, PAGE_SIZE_4K);
    return ZSTD_isError(n) ? 0 : (uint32_t)n;
}

bool pool_decompress(struct pool_scratch *s, const void *data, uint32_t length,
                     void *page)
{
    if (length == POOL_RAW_BYTES) {
        memcpy(page, data, length);
        return true;
    }
    memcpy(s->data, data, length);
    if (s->codec == TIER_CODEC_LZ4) {
        return LZ4_decompress_safe((const char *)s->data, page, (int)length,
                                   PAGE_SIZE_4K) == (int)PAGE_SIZE_4K;
    }
    return ZSTD_decompressDCtx(s->dctx, page, PAGE_SIZE_4K, s->data, length) ==
           PAGE_SIZE_4K;
}
