/* SPDX-License-Identifier: GPL-2.0-or-later */
/* See manager_process.h. */
#include "unit.h"

#include "manager_process.h"
#include "peer.h"
#include "uffd_fixture.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { ARGUMENTS_MAX = 32, START_MS = 10000, STOP_MS = 5000 };

void manager_prepare(struct manager *m)
{
    const char *tmp = getenv("TMPDIR");

    *m = (struct manager){0};
    /* /var/tmp: the store wants O_DIRECT, which a tmpfs on /tmp may not have. */
    snprintf(m->dir, sizeof(m->dir), "%.80s/uffdmm-test-XXXXXX", tmp ? tmp : "/var/tmp");
    assert_non_null(mkdtemp(m->dir));
    snprintf(m->socket, sizeof(m->socket), "%s/manager.sock", m->dir);
    snprintf(m->store, sizeof(m->store), "%s/store", m->dir);
    snprintf(m->second, sizeof(m->second), "%s/second", m->dir);
    snprintf(m->log, sizeof(m->log), "%s/log", m->dir);
    assert_return_code(mkdir(m->store, 0700), errno);
    assert_return_code(mkdir(m->second, 0700), errno);
}

static _Noreturn void exec_manager(const struct manager *m, const char *program,
                                   const char *store_option, const char *const *arguments)
{
    const char *argv[ARGUMENTS_MAX] = {program, "--socket-path", m->socket};
    int n = 3;

    if (store_option) {
        argv[n++] = "--store";
        argv[n++] = store_option;
    }
    for (; arguments && *arguments && n < ARGUMENTS_MAX - 1; arguments++) {
        argv[n++] = *arguments;
    }
    int log = open(m->log, O_WRONLY | O_CREAT | O_APPEND, 0600);
    int null = open("/dev/null", O_RDONLY);
    if (log < 0 || null < 0) {
        _exit(126);
    }
    dup2(null, 0);
    dup2(log, 1);
    dup2(log, 2);
    execv(program, (char *const *)(uintptr_t)argv);
    _exit(126);
}

static void spawn(struct manager *m, const char *variable, const char *store_option,
                  const char *const *arguments)
{
    const char *program = getenv(variable);

    if (!program) {
        fail_msg("%s is not set; run this test through meson", variable);
    }
    m->pid = fork_bound();
    if (m->pid == 0) {
        exec_manager(m, program, store_option, arguments);
    }
}

void manager_start_again(struct manager *m, const char *variable,
                         const char *store_option, const char *const *arguments)
{
    spawn(m, variable, store_option, arguments);
    int64_t deadline = monotonic_ms() + START_MS;
    for (;;) {
        int sock = peer_connect(m->socket);
        if (sock >= 0) {
            close(sock);
            return;
        }
        if (waitpid(m->pid, NULL, WNOHANG) == m->pid || monotonic_ms() > deadline) {
            manager_print_log(m);
            fail_msg("the manager did not start");
        }
        sleep_ms(5);
    }
}

void manager_start(struct manager *m, const char *variable, const char *const *arguments)
{
    char store_option[192];

    manager_prepare(m);
    snprintf(store_option, sizeof(store_option), "file:%s", m->store);
    manager_start_again(m, variable, store_option, arguments);
}

/* Copies text with the folders in place of their names in braces. */
static void expand(const struct manager *m, const char *text, char *out, size_t size)
{
    const struct {
        const char *name;
        const char *value;
    } words[] = {{"{store}", m->store}, {"{second}", m->second}, {"{dir}", m->dir}};
    size_t n = 0;

    while (*text && n + 1 < size) {
        size_t i = 0;
        while (i < 3 && strncmp(text, words[i].name, strlen(words[i].name)) != 0) {
            i++;
        }
        if (i == 3) {
            out[n++] = *text++;
        } else {
            n += (size_t)snprintf(out + n, size - n, "%s", words[i].value);
            text += strlen(words[i].name);
        }
    }
    assert_true(n < size);
    out[n] = '\0';
}

void manager_start_tiers(struct manager *m, const char *variable,
                         const char *const *tiers, const char *const *arguments)
{
    enum { TIERS = 8, TIER_LENGTH = 512 };
    char expanded[TIERS][TIER_LENGTH];
    const char *all[ARGUMENTS_MAX] = {0};
    int n = 0;

    manager_prepare(m);
    for (int i = 0; tiers[i]; i++) {
        assert_true(i < TIERS);
        expand(m, tiers[i], expanded[i], TIER_LENGTH);
        all[n++] = "--tier";
        all[n++] = expanded[i];
    }
    for (; *arguments && n < ARGUMENTS_MAX - 1; arguments++) {
        all[n++] = *arguments;
    }
    manager_start_again(m, variable, NULL, all);
}

static bool ended(pid_t pid, int *status, int timeout_ms)
{
    int64_t deadline = monotonic_ms() + timeout_ms;

    while (waitpid(pid, status, WNOHANG) == 0) {
        if (monotonic_ms() > deadline) {
            return false;
        }
        sleep_ms(2);
    }
    return true;
}

int manager_exit_status(struct manager *m, const char *variable, const char *store_option,
                        const char *const *arguments)
{
    int status = 0;

    spawn(m, variable, store_option, arguments);
    if (!ended(m->pid, &status, STOP_MS)) {
        manager_kill(m);
        return -1;
    }
    m->pid = 0;
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

void manager_terminate(struct manager *m)
{
    int status = 0;

    kill(m->pid, SIGTERM);
    bool in_time = ended(m->pid, &status, STOP_MS);
    if (!in_time) {
        manager_kill(m);
    }
    m->pid = 0;
    if (!in_time || !WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        manager_print_log(m);
        fail_msg("the manager did not end well on SIGTERM (wait status %#x)", status);
    }
}

void manager_stop(struct manager *m)
{
    manager_terminate(m);
    manager_remove(m);
}

void manager_kill(struct manager *m)
{
    kill(m->pid, SIGKILL);
    waitpid(m->pid, NULL, 0);
    m->pid = 0;
}

static void remove_files(const char *path)
{
    DIR *dir = opendir(path);
    const struct dirent *entry;

    while (dir && (entry = readdir(dir))) {
        unlinkat(dirfd(dir), entry->d_name, 0);
    }
    if (dir) {
        closedir(dir);
    }
    rmdir(path);
}

void manager_remove(struct manager *m)
{
    int64_t deadline = monotonic_ms() + 1000;

    /* A worker that is still ending may have its volume there for a moment. */
    while (manager_volumes(m) > 0 && monotonic_ms() < deadline) {
        sleep_ms(5);
    }
    remove_files(m->store);
    remove_files(m->second);
    remove_files(m->dir);
}

static bool log_has(const struct manager *m, const char *text)
{
    char line[1024];
    bool found = false;
    FILE *log = fopen(m->log, "r");

    while (log && !found && fgets(line, sizeof(line), log)) {
        found = strstr(line, text) != NULL;
    }
    if (log) {
        fclose(log);
    }
    return found;
}

bool manager_logged(const struct manager *m, const char *text, int timeout_ms)
{
    int64_t deadline = monotonic_ms() + timeout_ms;

    while (!log_has(m, text)) {
        if (monotonic_ms() > deadline) {
            return false;
        }
        sleep_ms(10);
    }
    return true;
}

void manager_print_log(const struct manager *m)
{
    char line[1024];
    FILE *log = fopen(m->log, "r");

    while (log && fgets(line, sizeof(line), log)) {
        print_message("manager: %s", line);
    }
    if (log) {
        fclose(log);
    }
}

int manager_volumes(const struct manager *m)
{
    DIR *dir = opendir(m->store);
    const struct dirent *entry;
    int n = 0;

    while (dir && (entry = readdir(dir))) {
        n += entry->d_name[0] != '.';
    }
    if (dir) {
        closedir(dir);
    }
    return n;
}

bool manager_volumes_become(const struct manager *m, int number, int timeout_ms)
{
    int64_t deadline = monotonic_ms() + timeout_ms;

    while (manager_volumes(m) != number) {
        if (monotonic_ms() > deadline) {
            return false;
        }
        sleep_ms(5);
    }
    return true;
}

bool manager_vms_become(const struct manager *m, int number, int timeout_ms)
{
    struct uffdmm_list_entry entries[8];
    int64_t deadline = monotonic_ms() + timeout_ms;

    while (control_list(m->socket, entries, 8) != number) {
        if (monotonic_ms() > deadline) {
            return false;
        }
        sleep_ms(5);
    }
    return true;
}

bool process_gone(pid_t pid, int timeout_ms)
{
    int64_t deadline = monotonic_ms() + timeout_ms;

    while (kill(pid, 0) == 0) {
        if (monotonic_ms() > deadline) {
            return false;
        }
        sleep_ms(5);
    }
    return true;
}
