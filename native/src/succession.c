/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Succession of acceptors
 *
 * Theory of operation
 *
 * An acceptor that ends leaves its workers behind, because guests need them.  The one
 * that is started next, perhaps of another version, knows nothing of them: it could
 * not list their VMs, nor change anything.  QEMU can hand its memory from a worker that
 * has died to a new one, in milliseconds and without loss; so the old workers end, one
 * after the other, and each QEMU finds the new acceptor.  To replace the program is
 * then to restart the manager.
 *
 * A worker can neither connect to anybody nor look into a folder.  What it has is a
 * descriptor of SOCKET.lock, opened before it gave up its rights.  The acceptor in
 * charge holds a lock on its first byte (an OFD lock, which ends with the last
 * descriptor of that open file, however its process ends) and has written there what
 * its tiers are, and whom it would accept.  A worker whose acceptor has gone asks now and then whether somebody
 * holds that lock.  If so, and if the tiers are its own and its QEMU would be let in, it locks the second byte,
 * which is the turn, and ends.  Else it stays: a successor could not read its pages,
 * or would turn its QEMU away, and the guest would wait for nothing.  The third byte is locked by all who
 * watch: while there is one of them the file stays.
 */
#include "succession.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <xxhash.h>

#include "conn.h"
#include "log.h"

#define LOCK_PATH_MAX 128
/*
 * "uffdmm-manager VERSION\nprotocol MIN MAX\nusers UID UID... \ntiers HASH\n", all of it or
 * not yet valid.
 */
#define TEXT_MAX 512

/* The name of the file for the socket.  False when the socket has no name. */
static bool lock_path(int listen_fd, char path[LOCK_PATH_MAX])
{
    struct sockaddr_un addr = {0};
    socklen_t len = sizeof(addr);
    int n;

    if (getsockname(listen_fd, (struct sockaddr *)&addr, &len) < 0 ||
        addr.sun_family != AF_UNIX || !addr.sun_path[0]) {
        return false;
    }
    n = snprintf(path, LOCK_PATH_MAX, "%.*s.lock", (int)sizeof(addr.sun_path),
                 addr.sun_path);
    return n > 0 && n < LOCK_PATH_MAX;
}

static int open_file(int listen_fd, int flags)
{
    char path[LOCK_PATH_MAX];

    if (!lock_path(listen_fd, path)) {
        return -ENOENT;
    }
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | flags, 0600);

    return fd < 0 ? -errno : fd;
}

static struct flock byte_lock(short type, off_t byte)
{
    return (struct flock){
        .l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
}

/* What a successor must have for the pages of this one to be readable. */
static void name_tiers(const struct options *o, char name[17])
{
    XXH3_state_t *state = XXH3_createState();
    uint64_t hash = 0;

    if (state) {
        XXH3_64bits_reset(state);
        for (unsigned i = 0; i < o->nr_tiers; i++) {
            const struct tier_config *c = &o->tiers[i];

            XXH3_64bits_update(state, c->name, strlen(c->name) + 1);
            XXH3_64bits_update(state, &c->type, sizeof(c->type));
            XXH3_64bits_update(state, c->uri, strlen(c->uri) + 1);
            for (unsigned k = 0; k < c->nr_paths; k++) {
                XXH3_64bits_update(state, c->paths[k], strlen(c->paths[k]) + 1);
            }
        }
        hash = XXH3_64bits_digest(state);
        XXH3_freeState(state);
    }
    snprintf(name, 17, "%016llx", (unsigned long long)hash);
}

int succession_lead(const struct options *options, int listen_fd)
{
    struct flock lock = byte_lock(F_WRLCK, 0);
    char tiers[17], text[TEXT_MAX];
    int fd = open_file(listen_fd, O_CREAT), n;

    if (fd < 0) {
        log_warn("cannot open the lock file beside the socket: %s; workers of this "
                 "manager will not make way for a successor's",
                 strerror(-fd));
        return -1;
    }
    if (fcntl(fd, F_OFD_SETLK, &lock) < 0) {
        log_warn("another process holds the lock file beside the socket: workers of this "
                 "manager will not make way for a successor's");
        close(fd);
        return -1;
    }
    name_tiers(options, tiers);
    n = snprintf(text, sizeof(text), "uffdmm-manager %s\nprotocol %d %d\nusers 0 %u ",
                 UFFDMM_PROGRAM_VERSION, UFFDMM_MIN_VERSION, UFFDMM_VERSION,
                 (unsigned)geteuid());
    for (int i = 0; i < options->nr_uids; i++) {
        n += snprintf(text + n, sizeof(text) - (size_t)n, "%u ",
                      (unsigned)options->uids[i]);
    }
    n += snprintf(text + n, sizeof(text) - (size_t)n, "\ntiers %s\n", tiers);
    if (ftruncate(fd, 0) < 0 || pwrite(fd, text, (size_t)n, 0) != n) {
        log_warn("cannot write the lock file beside the socket: %s", strerror(errno));
    }
    return fd;
}

void succession_leave(int lead_fd, int listen_fd)
{
    struct flock watchers = byte_lock(F_WRLCK, 2);
    char path[LOCK_PATH_MAX];

    if (lead_fd < 0) {
        return;
    }
    /* a worker, perhaps of an earlier manager, would not find another file of that name */
    if (fcntl(lead_fd, F_OFD_GETLK, &watchers) == 0 && watchers.l_type == F_UNLCK &&
        lock_path(listen_fd, path)) {
        unlink(path); /* while it is locked: nobody else's */
    }
    close(lead_fd);
}

void succession_watch(struct succession *s, const struct options *options, int listen_fd,
                      const struct conn *qemu)
{
    struct flock watcher = byte_lock(F_RDLCK, 2);

    *s = (struct succession){.fd = open_file(listen_fd, 0),
                             .version = qemu->header.version,
                             .min_version = qemu->header.min_version,
                             .uid = qemu->uid};
    name_tiers(options, s->tiers);
    if (s->fd >= 0 && fcntl(s->fd, F_OFD_SETLK, &watcher) < 0) {
        log_warn("cannot lock the file beside the socket: %s", strerror(errno));
    }
}

/* What the acceptor in charge has written.  False when there is none. */
static bool read_leader(const struct succession *s, char text[TEXT_MAX])
{
    struct flock lock = byte_lock(F_WRLCK, 0);
    ssize_t n;

    if (fcntl(s->fd, F_OFD_GETLK, &lock) < 0 || lock.l_type == F_UNLCK) {
        return false;
    }
    n = pread(s->fd, text, TEXT_MAX - 1, 0);
    if (n <= 0 || text[n - 1] != '\n') {
        return false;
    }
    text[n] = '\0';
    return strstr(text, "\ntiers ") != NULL;
}

/*
 * NULL when a worker of that manager could serve this VM; else why not.  Whatever is
 * doubtful speaks against it: this worker serves the guest well.
 */
static const char *objection(const struct succession *s, const char *text)
{
    const char *word = strstr(text, "\nprotocol "), *users = strstr(text, "\nusers ");
    char tiers[32], user[16];
    unsigned min, max;

    snprintf(tiers, sizeof(tiers), "\ntiers %s\n", s->tiers);
    if (!strstr(text, tiers)) {
        return "has other tiers than this worker; start it with the former tiers";
    }
    if (!word || sscanf(word, "\nprotocol %u %u\n", &min, &max) != 2 ||
        s->version < min || s->min_version > max) {
        return "speaks no version of the protocol that this QEMU speaks";
    }
    snprintf(user, sizeof(user), " %u ", (unsigned)s->uid);
    if (!users || !strstr(users, user)) {
        return "does not accept the user of this QEMU; start it with --allow-uid";
    }
    return NULL;
}

bool succession_due(struct succession *s)
{
    struct flock turn = byte_lock(F_WRLCK, 1);
    char text[TEXT_MAX];
    const char *why;

    if (s->fd < 0 || !read_leader(s, text)) {
        s->seen = s->agreed = false;
        return false;
    }
    why = objection(s, text);
    if (why) {
        /* not at once: it may be that of another one, before this one has written its own */
        if (s->seen && !s->told) {
            log_warn("the new manager %s: this worker goes on, out of that one's sight",
                     why);
            s->told = true;
        }
        s->seen = true;
        s->agreed = false;
        return false;
    }
    /* between its lock and its text there may be that of another one */
    if (!s->agreed) {
        s->agreed = true;
        s->told = false;
        return false;
    }
    return fcntl(s->fd, F_OFD_SETLK, &turn) == 0;
}
