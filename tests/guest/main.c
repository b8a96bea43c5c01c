/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The program that runs in a test guest.  It takes one command a line from a
 * serial port and answers with JSON lines on the same port:
 *
 *   fill bytes=N [seed=N]                      filling..., filled
 *   run pattern=random|sequential|hot ms=N     progress..., ran | corrupt, run-failed
 *       [seed=N] [report_ms=N] [write=PERCENT]   (ms=0: until stop)
 *       [span=PERCENT]                           (of the pages, from the first on)
 *   stop                                       ends a run at its next progress line
 *   verify                                     verifying..., verified | corrupt..., verify-failed
 *   corrupt page=N [offset=N]                  corrupted
 *   disk path=DEVICE ms=N                      disk-read
 *   memory                                     memory
 *   release                                    released
 *   poweroff                                   bye
 *
 * A command that cannot be obeyed is answered by an event "error".
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <termios.h>
#include <unistd.h>

#include "disk.h"
#include "report.h"
#include "work.h"

enum { LINE_BYTES = 512 };

static int port = -1;

struct line_buffer {
    char data[LINE_BYTES];
    size_t used;
};

static struct line_buffer input;

static void write_line(const char *text, size_t length)
{
    while (length) {
        ssize_t n = write(port, text, length);

        if (n < 0 && errno != EINTR && errno != EAGAIN) {
            perror("write to the control port");
            return;
        }
        if (n > 0) {
            text += n;
            length -= (size_t)n;
        }
    }
}

static void vreport(const char *prefix, const char *suffix, const char *format,
                    va_list ap)
{
    char text[LINE_BYTES];
    char line[LINE_BYTES + 64];
    int n;

    vsnprintf(text, sizeof(text), format, ap);
    n = snprintf(line, sizeof(line), "%s%s%s\n", prefix, text, suffix);
    write_line(line, (size_t)n);
}

void report(const char *format, ...)
{
    va_list ap;

    va_start(ap, format);
    vreport("", "", format, ap);
    va_end(ap);
}

void report_error(const char *format, ...)
{
    va_list ap;

    va_start(ap, format);
    vreport("{\"event\":\"error\",\"text\":\"", "\"}", format, ap);
    va_end(ap);
}

static bool set_blocking(bool blocking)
{
    int flags = fcntl(port, F_GETFL);

    flags = blocking ? flags & ~O_NONBLOCK : flags | O_NONBLOCK;
    return fcntl(port, F_SETFL, flags) == 0;
}

/* Take one line out of the buffer into @line; false when there is none yet. */
static bool take_line(char line[LINE_BYTES])
{
    char *end = memchr(input.data, '\n', input.used);
    size_t length;

    if (!end) {
        if (input.used == sizeof(input.data)) {
            report_error("command line longer than %d bytes", LINE_BYTES);
            input.used = 0;
        }
        return false;
    }
    length = (size_t)(end - input.data);
    memcpy(line, input.data, length);
    line[length] = '\0';
    input.used -= length + 1;
    memmove(input.data, end + 1, input.used);
    return true;
}

static void read_more(void)
{
    ssize_t n = read(port, input.data + input.used, sizeof(input.data) - input.used);

    if (n > 0) {
        input.used += (size_t)n;
    }
}

static bool stop_requested(void)
{
    char line[LINE_BYTES];
    bool stop = false;

    set_blocking(false);
    read_more();
    set_blocking(true);
    while (take_line(line)) {
        if (strcmp(line, "stop") == 0) {
            stop = true;
        } else {
            report_error("only stop is understood during a run, got %s", line);
        }
    }
    return stop;
}

/* The text after "@key=" in a line of words, up to the next space; or NULL. */
static const char *find_value(const char *line, const char *key, char value[64])
{
    size_t key_length = strlen(key);
    const char *word;

    for (word = strchr(line, ' '); word; word = strchr(word, ' ')) {
        word++;
        if (strncmp(word, key, key_length) == 0 && word[key_length] == '=') {
            snprintf(value, 64, "%.*s", (int)strcspn(word + key_length + 1, " "),
                     word + key_length + 1);
            return value;
        }
    }
    return NULL;
}

/*
 * A number of the line, or @fallback when the key is missing.  A value that is
 * no number clears *ok and reports.
 */
static uint64_t number(const char *line, const char *key, uint64_t fallback, bool *ok)
{
    char value[64];
    char *end;
    uint64_t result;

    if (!find_value(line, key, value)) {
        return fallback;
    }
    errno = 0;
    result = strtoull(value, &end, 10);
    if (errno || end == value || *end || value[0] == '-') {
        report_error("%s must be a number, got %s", key, value);
        *ok = false;
    }
    return result;
}

static bool parse_pattern(const char *line, struct work_run *run)
{
    static const char *const names[] = {
        [PATTERN_RANDOM] = "random",
        [PATTERN_SEQUENTIAL] = "sequential",
        [PATTERN_HOT] = "hot",
    };
    char value[64] = "";
    size_t i;

    find_value(line, "pattern", value);
    for (i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(names[i], value) == 0) {
            run->pattern = (enum pattern)i;
            run->pattern_name = names[i];
            return true;
        }
    }
    report_error("pattern must be random, sequential or hot, got %s", value);
    return false;
}

static void command_fill(struct work *w, const char *line)
{
    bool ok = true;
    uint64_t seed = number(line, "seed", 1, &ok);
    uint64_t bytes = number(line, "bytes", 0, &ok);

    if (ok) {
        work_fill(w, seed, bytes);
    }
}

static void command_run(struct work *w, const char *line)
{
    bool ok = true;
    struct work_run run = {.stop_requested = stop_requested};

    run.seed = number(line, "seed", 1, &ok);
    run.duration_ms = number(line, "ms", 0, &ok);
    run.report_ms = number(line, "report_ms", 1000, &ok);
    run.write_percent = (uint32_t)number(line, "write", 25, &ok);
    run.span_percent = (uint32_t)number(line, "span", 100, &ok);
    if (ok && (run.span_percent < 1 || run.span_percent > 100)) {
        report_error("span must be 1 to 100 percent, got %u", run.span_percent);
        return;
    }
    if (ok && parse_pattern(line, &run)) {
        work_run(w, &run);
    }
}

static void command_corrupt(struct work *w, const char *line)
{
    bool ok = true;
    uint64_t page = number(line, "page", 0, &ok);
    uint64_t offset = number(line, "offset", 8, &ok);

    if (ok && work_corrupt(w, page, (uint32_t)offset)) {
        report("{\"event\":\"corrupted\",\"page\":%" PRIu64 ",\"offset\":%" PRIu64 "}",
               page, offset);
    }
}

static void command_disk(const struct work *w, const char *line)
{
    char path[64];
    bool ok = true;
    uint64_t ms = number(line, "ms", 1000, &ok);

    if (!find_value(line, "path", path)) {
        report_error("disk needs path=DEVICE");
    } else if (ok) {
        disk_read(w, path, ms);
    }
}

static void command_memory(void)
{
    struct sysinfo info;

    if (sysinfo(&info)) {
        report_error("sysinfo: %s", strerror(errno));
        return;
    }
    report(
        "{\"event\":\"memory\",\"total_bytes\":%" PRIu64 ",\"free_bytes\":%" PRIu64 "}",
        (uint64_t)info.totalram * info.mem_unit, (uint64_t)info.freeram * info.mem_unit);
}

/* Returns false when the guest shall power off. */
static bool obey(struct work *w, const char *line)
{
    char verb[16];

    snprintf(verb, sizeof(verb), "%.*s", (int)strcspn(line, " "), line);
    if (strcmp(verb, "fill") == 0) {
        command_fill(w, line);
    } else if (strcmp(verb, "run") == 0) {
        command_run(w, line);
    } else if (strcmp(verb, "verify") == 0) {
        work_verify(w);
    } else if (strcmp(verb, "corrupt") == 0) {
        command_corrupt(w, line);
    } else if (strcmp(verb, "disk") == 0) {
        command_disk(w, line);
    } else if (strcmp(verb, "memory") == 0) {
        command_memory();
    } else if (strcmp(verb, "release") == 0) {
        work_release(w);
        report("{\"event\":\"released\"}");
    } else if (strcmp(verb, "poweroff") == 0) {
        report("{\"event\":\"bye\"}");
        return false;
    } else if (verb[0]) {
        report_error("unknown command %s", verb);
    }
    return true;
}

static bool open_port(const char *path)
{
    struct termios tio;

    port = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (port < 0 || tcgetattr(port, &tio)) {
        perror(path);
        return false;
    }
    cfmakeraw(&tio);
    cfsetspeed(&tio, B115200);
    if (tcsetattr(port, TCSAFLUSH, &tio)) {
        perror(path);
        return false;
    }
    return true;
}

int main(int argc, char **argv)
{
    struct work w = {0};
    char line[LINE_BYTES];

    if (argc != 2) {
        fprintf(stderr, "usage: %s PORT\n", argv[0]);
        return 2;
    }
    if (!open_port(argv[1])) {
        return 1;
    }
    report("{\"event\":\"ready\"}");
    for (;;) {
        while (take_line(line)) {
            if (!obey(&w, line)) {
                tcdrain(port);
                return 0;
            }
        }
        read_more();
    }
}
