/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Logging.  A line is formatted on the stack and written with one write(2), so
 * that lines of several processes do not mix and nothing is allocated.
 */
#include "log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"

static enum log_level log_max = LOG_LEVEL_INFO;
static char log_vm[80];
static int log_journal = -1;

void log_set_level(enum log_level level)
{
    log_max = level;
}

void log_set_vm(const char *name)
{
    if (name) {
        snprintf(log_vm, sizeof(log_vm), "[%s] ", name);
    } else {
        log_vm[0] = '\0';
    }
}

void log_line(enum log_level level, const char *fmt, ...)
{
    char line[1024];
    va_list ap;
    int n, m;

    if (level > log_max) {
        return;
    }
    if (log_journal < 0) {
        /* a terminal wants no priority prefixes, a journal reads them */
        log_journal = !isatty(STDERR_FILENO);
    }
    n = log_journal ? snprintf(line, sizeof(line), "<%d>", (int)level) : 0;
    n += snprintf(line + n, sizeof(line) - (size_t)n, "uffdmm-manager[%d]: %s",
                  (int)getpid(), log_vm);
    va_start(ap, fmt);
    m = vsnprintf(line + n, sizeof(line) - (size_t)n - 1, fmt, ap);
    va_end(ap);
    if (m < 0) {
        return;
    }
    n += m;
    if (n > (int)sizeof(line) - 2) {
        n = (int)sizeof(line) - 2;
    }
    line[n++] = '\n';
    if (write(STDERR_FILENO, line, (size_t)n) < 0) {
        return; /* nowhere left to say so */
    }
}

bool log_ratelimit(uint64_t *last, uint64_t interval_ns)
{
    uint64_t now = clock_ns();
    uint64_t old = __atomic_load_n(last, __ATOMIC_RELAXED);

    if (old && now - old < interval_ns) {
        return false;
    }
    return __atomic_compare_exchange_n(last, &old, now, false, __ATOMIC_RELAXED,
                                       __ATOMIC_RELAXED);
}
