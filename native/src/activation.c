/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "activation.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Where the descriptors begin, by definition. */
#define LISTEN_FDS_START 3

/* A number from 1 on out of the environment, 0 when it is anything else. */
static long number_of(const char *name)
{
    const char *text = getenv(name);
    char *end;
    long v;

    if (!text || *text < '0' || *text > '9') {
        return 0;
    }
    errno = 0;
    v = strtol(text, &end, 10);
    return errno || *end ? 0 : v;
}

int activation_fd(void)
{
    /* LISTEN_PID tells a parent's sockets, which are not ours, from our own */
    long pid = number_of("LISTEN_PID"), count = number_of("LISTEN_FDS");

    unsetenv("LISTEN_PID");
    unsetenv("LISTEN_FDS");
    unsetenv("LISTEN_FDNAMES");
    if (pid != (long)getpid() || !count) {
        return -ENOENT;
    }
    return count == 1 ? LISTEN_FDS_START : -E2BIG;
}

static int option_of(int fd, int option)
{
    int v = -1;
    socklen_t len = sizeof(v);

    return getsockopt(fd, SOL_SOCKET, option, &v, &len) ? -1 : v;
}

int activation_take(int fd, char *err, size_t err_len)
{
    int flags = fcntl(fd, F_GETFL);
    int ret;

    if (flags < 0) {
        ret = -errno;
        snprintf(err, err_len, "descriptor %d is not open: %s", fd, strerror(-ret));
        return ret;
    }
    if (option_of(fd, SO_DOMAIN) != AF_UNIX || option_of(fd, SO_TYPE) != SOCK_STREAM ||
        option_of(fd, SO_ACCEPTCONN) != 1) {
        snprintf(err, err_len,
                 "descriptor %d is not a UNIX stream socket that listens: pass one "
                 "(ListenStream= of a socket unit), or use --socket-path",
                 fd);
        return -EINVAL;
    }
    /* who connects and is gone again before accept() must not make it wait */
    if (fcntl(fd, F_SETFL, flags | O_NONBLOCK) || fcntl(fd, F_SETFD, FD_CLOEXEC)) {
        ret = -errno;
        snprintf(err, err_len, "cannot set up descriptor %d: %s", fd, strerror(-ret));
        return ret;
    }
    return 0;
}
