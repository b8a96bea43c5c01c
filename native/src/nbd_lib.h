/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * libnbd, loaded when the first NBD tier is wanted.  Linked, it and what it needs (TLS,
 * XML, Unicode tables) took 45 MiB of locked memory in the worker of each VM, NBD or not.
 */
#ifndef UFFDMM_NBD_LIB_H
#define UFFDMM_NBD_LIB_H

#include <stddef.h>

#include <libnbd.h>

/* The calls in use; what they are is in libnbd.h. */
#define NBD_LIB_CALLS(CALL)        \
    CALL(aio_connect_uri)          \
    CALL(aio_flush)                \
    CALL(aio_get_direction)        \
    CALL(aio_get_fd)               \
    CALL(aio_is_closed)            \
    CALL(aio_is_dead)              \
    CALL(aio_is_ready)             \
    CALL(aio_notify_read)          \
    CALL(aio_notify_write)         \
    CALL(aio_pread)                \
    CALL(aio_pwrite)               \
    CALL(aio_trim)                 \
    CALL(can_flush)                \
    CALL(can_fua)                  \
    CALL(can_multi_conn)           \
    CALL(can_trim)                 \
    CALL(close)                    \
    CALL(create)                   \
    CALL(get_block_size)           \
    CALL(get_errno)                \
    CALL(get_error)                \
    CALL(get_size)                 \
    CALL(is_read_only)             \
    CALL(set_pread_initialize)     \
    CALL(set_tls_verify_peer)      \
    CALL(set_uri_allow_local_file) \
    CALL(set_uri_allow_tls)        \
    CALL(set_uri_allow_transports)

/* nbd_lib.create() is nbd_create(), and so on. */
struct nbd_lib {
/* NOLINTNEXTLINE(bugprone-macro-parentheses): a declaration has no place for them */
#define NBD_LIB_MEMBER(name) __typeof__(nbd_##name) *name;
    NBD_LIB_CALLS(NBD_LIB_MEMBER)
#undef NBD_LIB_MEMBER
};

extern struct nbd_lib nbd_lib;

#define NBD_LIB_NAME "libnbd.so.0"

/*
 * Loads the library, which stays.  From one thread at a time; again costs nothing.
 * 0, or a negative errno with one sentence for the user in @err.
 */
int nbd_lib_load(char *err, size_t err_len);

/* The same from a library called @name. */
int nbd_lib_load_from(const char *name, char *err, size_t err_len);

#endif
