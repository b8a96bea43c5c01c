/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The real manager as a child of a test: a temporary folder with socket, store
 * and log, gone again at the end.
 */
#ifndef UFFDMM_TEST_MANAGER_PROCESS_H
#define UFFDMM_TEST_MANAGER_PROCESS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct manager {
    pid_t pid; /* 0 when it is not running */
    char dir[128];
    char socket[160];
    char store[160];
    char second[160]; /* another directory for a store */
    char log[160];
};

/*
 * Makes the folder and starts the program that the environment variable names
 * (UFFDMM_MANAGER or UFFDMM_MANAGER_HOOKS) with `--store file:STORE` and these
 * arguments, NULL-terminated; waits until it answers.  Fails the test.
 */
void manager_start(struct manager *m, const char *variable, const char *const *arguments);

/*
 * The same with these tiers in place of the store, NULL-terminated.  {store}, {second} and
 * {dir} in them stand for the folders.
 */
void manager_start_tiers(struct manager *m, const char *variable,
                         const char *const *tiers, const char *const *arguments);

/* As above on a folder that exists already (after manager_kill). */
void manager_start_again(struct manager *m, const char *variable,
                         const char *store_option, const char *const *arguments);

/*
 * Runs the program like that where it must not start: its exit status, -1 when
 * it is still there after 5 seconds.
 */
int manager_exit_status(struct manager *m, const char *variable, const char *store_option,
                        const char *const *arguments);

/* Makes the folder alone. */
void manager_prepare(struct manager *m);

/* SIGTERM: must end with status 0 within 5 seconds.  The folder stays. */
void manager_terminate(struct manager *m);
/* As above, and removes the folder. */
void manager_stop(struct manager *m);
/* SIGKILL, the folder stays; then manager_remove(). */
void manager_kill(struct manager *m);
void manager_remove(struct manager *m);

/* True when the log has the text, now or within the time. */
bool manager_logged(const struct manager *m, const char *text, int timeout_ms);
void manager_print_log(const struct manager *m);

/* Files in the store directory. */
int manager_volumes(const struct manager *m);
/* True when that number is reached within the time. */
bool manager_volumes_become(const struct manager *m, int number, int timeout_ms);
/* True when the manager lists that many VMs now or within the time. */
bool manager_vms_become(const struct manager *m, int number, int timeout_ms);
/* True when the process (not our child) is gone within the time. */
bool process_gone(pid_t pid, int timeout_ms);

#endif
