/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Bringing stored pages back before anybody asks for them: a list a shard, which
 * its fault thread works off when it has nothing else to do.
 */
#ifndef UFFDMM_PREFETCH_H
#define UFFDMM_PREFETCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct region;
struct shard;
struct vm;

/* Pages of one list that PREFETCH may name. */
#define PREFETCH_PAGES_MAX (1u << 20)

struct prefetch_list {
    struct prefetch_list *next; /* of the lists that nobody needs any more */
    uint64_t nr;
    uint64_t at; /* the next one to be brought in */
    uint64_t pages[];
};

/*
 * Asks for at most @bytes of what is stored, pages that were used last before they
 * went out first.  Replaces what was asked for before; 0 bytes: ends it.  0 or -ENOMEM.
 */
int prefetch_youngest(struct vm *vm, uint64_t bytes);

/*
 * Asks for the @nr page numbers of @r in the file @fd, in this order and at most @bytes
 * of them.  0, or a negative errno with a sentence in @err.
 */
int prefetch_pages(struct region *r, int fd, uint32_t nr, uint64_t bytes, char *err,
                   size_t err_len);

/*
 * Brings in the next few pages of the shard's list.  Only by its fault thread.  False
 * when there is nothing to do.
 */
bool prefetch_step(struct shard *sh);

/* A fill that prefetch_step() began has ended. */
void prefetch_ended(struct shard *sh);

/* Frees the lists of a shard whose thread has ended. */
void prefetch_release(struct shard *sh);

#endif
