/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "nbd_lib.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

struct nbd_lib nbd_lib;

static bool find(void *library, const char *name, void *call)
{
    void *address = dlsym(library, name);

    /* ISO C has no conversion of one to the other, POSIX says that they are alike */
    memcpy(call, &address, sizeof(address));
    return address != NULL;
}

int nbd_lib_load_from(const char *name, char *err, size_t err_len)
{
    void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    struct nbd_lib lib;
    const char *missing = NULL;

    if (!library) {
        snprintf(err, err_len,
                 "a tier of type nbd needs the library %s, which cannot be loaded: %s; "
                 "install libnbd",
                 name, dlerror());
        return -ENOENT;
    }
#define NBD_LIB_FIND(call)                                     \
    if (!missing && !find(library, "nbd_" #call, &lib.call)) { \
        missing = "nbd_" #call;                                \
    }
    NBD_LIB_CALLS(NBD_LIB_FIND)
#undef NBD_LIB_FIND
    if (missing) {
        dlclose(library);
        snprintf(
            err, err_len,
            "a tier of type nbd needs %s, which %s does not have: install libnbd 1.14 "
            "or newer",
            missing, name);
        return -ENOSYS;
    }
    nbd_lib = lib;
    return 0;
}

int nbd_lib_load(char *err, size_t err_len)
{
    return nbd_lib.create ? 0 : nbd_lib_load_from(NBD_LIB_NAME, err, err_len);
}
