/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Log lines to stderr, one write each, prefixed for journald ("<N>text"). */
#ifndef UFFDMM_LOG_H
#define UFFDMM_LOG_H

#include <stdbool.h>
#include <stdint.h>

enum log_level {
    LOG_LEVEL_ERROR = 3,
    LOG_LEVEL_WARN = 4,
    LOG_LEVEL_INFO = 6,
    LOG_LEVEL_DEBUG = 7
};

/* Everything above @level is dropped. */
void log_set_level(enum log_level level);

/* Names the VM in each following line of this process; NULL for none. */
void log_set_vm(const char *name);

void log_line(enum log_level level, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

#define log_error(...) log_line(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warn(...) log_line(LOG_LEVEL_WARN, __VA_ARGS__)
#define log_info(...) log_line(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) log_line(LOG_LEVEL_DEBUG, __VA_ARGS__)

/*
 * True at most once per @interval_ns for one @last, so that trouble on the
 * fault path cannot flood the log.  @last: 0 at first, one per message.
 */
bool log_ratelimit(uint64_t *last, uint64_t interval_ns);

#endif
