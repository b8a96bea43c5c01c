/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * --tier NAME=TYPE[,key=value]..., one table row a key.
 *
 * A key is parsed on its own first, in any order; what depends on other keys
 * is looked at when all are known.  Everything that is left out keeps the value
 * of set_defaults().
 */
#include "tier_options.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config.h"
#include "option_pairs.h"
#include "options.h"

/* More connections to one server only split its bandwidth. */
#define CONNECTIONS_MAX 16
#define CONNECTIONS_DEFAULT 4
/* zstd goes on to 22, with a window of megabytes: of no use for a page. */
#define LEVEL_MAX 19

#define OF_POOL (1u << UFFDMM_TIER_POOL)
#define OF_FILE (1u << UFFDMM_TIER_FILE)
#define OF_NBD (1u << UFFDMM_TIER_NBD)
#define OF_ALL (OF_POOL | OF_FILE | OF_NBD)

static const char *const type_names[] = {
    [UFFDMM_TIER_POOL] = "pool",
    [UFFDMM_TIER_FILE] = "file",
    [UFFDMM_TIER_NBD] = "nbd",
};

/* ---- values: true, or false when @v is none ----------------------------- */

static bool set_capacity(struct tier_config *c, const char *v)
{
    return options_parse_size(v, &c->capacity) && c->capacity >= PAGE_SIZE_4K;
}

static bool set_error_rate(struct tier_config *c, const char *v)
{
    char *end;
    size_t len = strlen(v);

    /* no signs, no exponents, no nan: what strtod() takes besides digits and a point */
    if (!len || strspn(v, "0123456789.") != len) {
        return false;
    }
    c->faults.error_rate = strtod(v, &end);
    return !*end && c->faults.error_rate <= 1.0;
}

static bool set_error_errno(struct tier_config *c, const char *v)
{
    /* what a store can answer; pycontrol/uffdmm/config/model.py has the same list */
    static const struct {
        const char *name;
        int number;
    } errors[] = {
        {"EIO", EIO},
        {"ENOSPC", ENOSPC},
        {"ETIMEDOUT", ETIMEDOUT},
        {"EREMOTEIO", EREMOTEIO},
        {"ENXIO", ENXIO},
        {"ENODEV", ENODEV},
        {"EROFS", EROFS},
        {"EDQUOT", EDQUOT},
        {"EAGAIN", EAGAIN},
        {"ENOMEM", ENOMEM},
        {"ESTALE", ESTALE},
        {"ECONNRESET", ECONNRESET},
        {"ESHUTDOWN", ESHUTDOWN},
    };

    for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++) {
        if (!strcmp(v, errors[i].name)) {
            c->faults.error_errno = errors[i].number;
            return true;
        }
    }
    return false;
}

static bool set_error_ops(struct tier_config *c, const char *v)
{
    bool both = !strcmp(v, "both");

    c->faults.error_reads = both || !strcmp(v, "read");
    c->faults.error_writes = both || !strcmp(v, "write");
    return c->faults.error_reads || c->faults.error_writes;
}

/* Copies @v, which must fit and not be empty. */
static bool copy_text(char *to, size_t size, const char *v)
{
    size_t len = strlen(v);

    if (!len || len >= size) {
        return false;
    }
    memcpy(to, v, len + 1);
    return true;
}

static bool set_error_trigger(struct tier_config *c, const char *v)
{
    return copy_text(c->faults.error_trigger, sizeof(c->faults.error_trigger), v);
}

static bool set_delay_read(struct tier_config *c, const char *v)
{
    return option_duration(v, &c->faults.delay_read_ns);
}

static bool set_delay_write(struct tier_config *c, const char *v)
{
    return option_duration(v, &c->faults.delay_write_ns);
}

static bool set_delay_shape(struct tier_config *c, const char *v)
{
    static const char *const shapes[] = {
        [TIER_DELAY_FIXED] = "fixed",
        [TIER_DELAY_UNIFORM] = "uniform",
        [TIER_DELAY_EXPONENTIAL] = "exponential",
    };

    for (unsigned i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        if (!strcmp(v, shapes[i])) {
            c->faults.delay_shape = (enum tier_delay_shape)i;
            return true;
        }
    }
    return false;
}

static bool set_delay_trigger(struct tier_config *c, const char *v)
{
    return copy_text(c->faults.delay_trigger, sizeof(c->faults.delay_trigger), v);
}

bool tier_options_codec(const char *text, enum tier_codec *codec)
{
    if (!strcmp(text, "lz4")) {
        *codec = TIER_CODEC_LZ4;
        return true;
    }
    if (!strcmp(text, "zstd")) {
        *codec = TIER_CODEC_ZSTD;
        return true;
    }
    return false;
}

static bool set_codec(struct tier_config *c, const char *v)
{
    return tier_options_codec(v, &c->codec);
}

static bool set_level(struct tier_config *c, const char *v)
{
    uint64_t level;

    if (!option_number(v, 1, LEVEL_MAX, &level)) {
        return false;
    }
    c->level = (int)level;
    return true;
}

static bool set_inside_limit(struct tier_config *c, const char *v)
{
    return option_switch(v, &c->inside_limit);
}

static bool set_path(struct tier_config *c, const char *v)
{
    if (c->nr_paths == TIER_PATHS_MAX ||
        !copy_text(c->paths[c->nr_paths], sizeof(c->paths[0]), v)) {
        return false;
    }
    c->nr_paths++;
    return true;
}

static bool set_shared(struct tier_config *c, const char *v)
{
    return option_switch(v, &c->shared);
}

static bool set_uri(struct tier_config *c, const char *v)
{
    static const char *const schemes[] = {
        "nbd://",
        "nbds://",
        "nbd+unix://",
        "nbds+unix://",
    };

    for (size_t i = 0; i < sizeof(schemes) / sizeof(schemes[0]); i++) {
        if (!strncmp(v, schemes[i], strlen(schemes[i]))) {
            return copy_text(c->uri, sizeof(c->uri), v);
        }
    }
    return false;
}

static bool set_connections(struct tier_config *c, const char *v)
{
    uint64_t n;

    if (!option_number(v, 1, CONNECTIONS_MAX, &n)) {
        return false;
    }
    c->connections = (unsigned)n;
    return true;
}

/* ---- keys ---------------------------------------------------------------- */

enum {
    KEY_CAPACITY,
    KEY_ERROR_RATE,
    KEY_ERROR_ERRNO,
    KEY_ERROR_OPS,
    KEY_ERROR_TRIGGER,
    KEY_DELAY_READ,
    KEY_DELAY_WRITE,
    KEY_DELAY_SHAPE,
    KEY_DELAY_TRIGGER,
    KEY_CODEC,
    KEY_LEVEL,
    KEY_INSIDE_LIMIT,
    KEY_PATH,
    KEY_SHARED,
    KEY_URI,
    KEY_CONNECTIONS,
    NR_KEYS
};

static const struct {
    const char *name;
    unsigned types;
    const char *wanted; /* completes "is not ..." */
    bool (*set)(struct tier_config *c, const char *v);
} keys[NR_KEYS] = {
    [KEY_CAPACITY] =
        {"capacity", OF_ALL,
         "a size of one page or more, for example 16G; leave it out for what "
         "the VM's RAM needs",
         set_capacity},
    [KEY_ERROR_RATE] = {"error-rate", OF_ALL, "a number of 0 to 1, for example 0.01",
                        set_error_rate},
    [KEY_ERROR_ERRNO] = {"error-errno", OF_ALL,
                         "an error of a store: EIO, ENOSPC, ETIMEDOUT, EREMOTEIO, ENXIO, "
                         "ENODEV, EROFS, EDQUOT, EAGAIN, ENOMEM, ESTALE, ECONNRESET or "
                         "ESHUTDOWN",
                         set_error_errno},
    [KEY_ERROR_OPS] = {"error-ops", OF_ALL, "read, write or both", set_error_ops},
    [KEY_ERROR_TRIGGER] = {"error-trigger", OF_ALL, "a path of 1 to 255 bytes",
                           set_error_trigger},
    [KEY_DELAY_READ] = {"delay-read", OF_ALL, "a time with its unit, for example 100us",
                        set_delay_read},
    [KEY_DELAY_WRITE] = {"delay-write", OF_ALL, "a time with its unit, for example 5ms",
                         set_delay_write},
    [KEY_DELAY_SHAPE] = {"delay-shape", OF_ALL, "fixed, uniform or exponential",
                         set_delay_shape},
    [KEY_DELAY_TRIGGER] = {"delay-trigger", OF_ALL, "a path of 1 to 255 bytes",
                           set_delay_trigger},
    [KEY_CODEC] = {"codec", OF_POOL, "lz4 or zstd", set_codec},
    [KEY_LEVEL] = {"level", OF_POOL, "a number from 1 to 19", set_level},
    [KEY_INSIDE_LIMIT] = {"inside-limit", OF_POOL, "on or off", set_inside_limit},
    [KEY_PATH] =
        {"path", OF_FILE,
         "a directory or block device of at most 1023 bytes, of which a tier has "
         "at most 8",
         set_path},
    [KEY_SHARED] = {"shared", OF_FILE, "on or off", set_shared},
    [KEY_URI] = {"uri", OF_NBD,
                 "an NBD URI such as nbds://server/{vm} or nbd+unix:///{vm}?socket=PATH",
                 set_uri},
    [KEY_CONNECTIONS] = {"connections", OF_NBD, "a number from 1 to 16", set_connections},
};

/* Says that a tier of type @type has no key @word, and which one may have been meant. */
static void unknown_key(const struct tier_config *c, const char *word)
{
    const char *names[NR_KEYS];
    const char *nearest;
    size_t nr = 0;

    for (size_t i = 0; i < NR_KEYS; i++) {
        if (!strcmp(word, keys[i].name)) {
            fprintf(stderr,
                    "uffdmm-manager: --tier '%s': a tier of type %s has no '%s'\n",
                    c->name, type_names[c->type], word);
            return;
        }
        if (keys[i].types & (1u << c->type)) {
            names[nr++] = keys[i].name;
        }
    }
    nearest = option_nearest(word, names, nr);
    fprintf(stderr, "uffdmm-manager: --tier '%s': unknown key '%s'", c->name, word);
    if (nearest) {
        fprintf(stderr, ": did you mean '%s'?\n", nearest);
        return;
    }
    for (size_t i = 0; i < nr; i++) {
        fprintf(stderr, "%s%s", i ? ", " : "; there are ", names[i]);
    }
    fputc('\n', stderr);
}

/* Takes one key; @given remembers those that were there. */
static bool set_key(struct tier_config *c, unsigned *given,
                    const struct option_pair *pair)
{
    for (unsigned i = 0; i < NR_KEYS; i++) {
        if (strcmp(pair->key, keys[i].name) != 0 || !(keys[i].types & (1u << c->type))) {
            continue;
        }
        if (*given & (1u << i) && i != KEY_PATH) {
            fprintf(stderr, "uffdmm-manager: --tier '%s': '%s' is given twice\n", c->name,
                    pair->key);
            return false;
        }
        if (!keys[i].set(c, pair->value)) {
            fprintf(stderr, "uffdmm-manager: --tier '%s': %s '%s' is not %s\n", c->name,
                    pair->key, pair->value, keys[i].wanted);
            return false;
        }
        *given |= 1u << i;
        return true;
    }
    unknown_key(c, pair->key);
    return false;
}

/* NAME=TYPE */
static bool parse_head(struct tier_config *c, const char *head)
{
    const char *equals = strchr(head, '=');
    size_t len = equals ? (size_t)(equals - head) : strlen(head);

    if (len < sizeof(c->name)) {
        memcpy(c->name, head, len);
    }
    if (!option_name_ok(c->name, "-_")) {
        fprintf(
            stderr,
            "uffdmm-manager: --tier '%s': the name of a tier is 1 to %d characters of "
            "A-Z a-z 0-9 - _, for example ssd=file,path=DIR\n",
            head, UFFDMM_NAME_MAX - 1);
        return false;
    }
    if (!strcmp(c->name, "zero")) {
        fprintf(stderr,
                "uffdmm-manager: --tier '%s': the tier 'zero' is always there: choose "
                "another name\n",
                head);
        return false;
    }
    for (uint32_t type = UFFDMM_TIER_POOL; equals && type <= UFFDMM_TIER_NBD; type++) {
        if (!strcmp(equals + 1, type_names[type])) {
            c->type = type;
            return true;
        }
    }
    fprintf(
        stderr,
        "uffdmm-manager: --tier '%s': '%s' is not a type of tier: use pool, file or nbd\n",
        c->name, equals ? equals + 1 : "");
    return false;
}

static void set_defaults(struct tier_config *c)
{
    c->faults.error_errno = EIO;
    c->faults.error_reads = c->faults.error_writes = true;
    if (c->type == UFFDMM_TIER_NBD) {
        c->connections = CONNECTIONS_DEFAULT;
        c->shared = true; /* whoever reaches the server can read it */
    }
}

/* What one key says about another. */
static bool check_keys(const struct tier_config *c, unsigned given)
{
    const unsigned error =
        1u << KEY_ERROR_ERRNO | 1u << KEY_ERROR_OPS | 1u << KEY_ERROR_TRIGGER;
    const unsigned delay = 1u << KEY_DELAY_SHAPE | 1u << KEY_DELAY_TRIGGER;
    const char *wrong = NULL;

    if (c->type == UFFDMM_TIER_FILE && !c->nr_paths) {
        wrong = "a file tier needs path=DIR";
    } else if (c->type == UFFDMM_TIER_NBD && !c->uri[0]) {
        wrong = "an nbd tier needs uri=URI";
    } else if (given & (1u << KEY_LEVEL) && c->codec != TIER_CODEC_ZSTD) {
        wrong = "level is for codec=zstd: lz4 has none";
    } else if (given & error && !(given & (1u << KEY_ERROR_RATE))) {
        wrong = "without error-rate there are no errors: add error-rate=1";
    } else if (given & delay &&
               !(given & (1u << KEY_DELAY_READ | 1u << KEY_DELAY_WRITE))) {
        wrong = "without delay-read or delay-write there are no delays: add one";
    }
    if (wrong) {
        fprintf(stderr, "uffdmm-manager: --tier '%s': %s\n", c->name, wrong);
    }
    return !wrong;
}

bool tier_options_parse(struct tier_config *out, const char *text)
{
    char head[2 * UFFDMM_NAME_MAX];
    struct option_pair pair;
    unsigned given = 0;

    memset(out, 0, sizeof(*out));
    if (!option_first_word(&text, head, sizeof(head))) {
        fprintf(stderr, "uffdmm-manager: --tier '%s' does not begin with NAME=TYPE\n",
                text);
        return false;
    }
    if (!parse_head(out, head)) {
        return false;
    }
    set_defaults(out);
    while (*text) {
        if (!option_next_pair(&text, &pair, "--tier", out->name) ||
            !set_key(out, &given, &pair)) {
            return false;
        }
    }
    return check_keys(out, given);
}

bool tier_options_parse_store(struct tier_config *out, const char *text)
{
    const char *rest = text + 5;
    const char *comma;
    size_t len;

    memset(out, 0, sizeof(*out));
    memcpy(out->name, "file", sizeof("file"));
    out->type = UFFDMM_TIER_FILE;
    set_defaults(out);
    if (strncmp(text, "file:", 5) != 0) {
        fprintf(
            stderr,
            "uffdmm-manager: --store '%s' names no store: use file:DIR[,size=SIZE], or "
            "--tier for others\n",
            text);
        return false;
    }
    comma = strchr(rest, ',');
    len = comma ? (size_t)(comma - rest) : strlen(rest);
    if (!len || len >= sizeof(out->paths[0])) {
        fprintf(stderr, "uffdmm-manager: --store file: needs a directory\n");
        return false;
    }
    memcpy(out->paths[0], rest, len);
    out->nr_paths = 1;
    if (comma && (strncmp(comma, ",size=", 6) != 0 || !set_capacity(out, comma + 6))) {
        fprintf(
            stderr,
            "uffdmm-manager: --store option '%s' is not size=SIZE, for example size=4G\n",
            comma + 1);
        return false;
    }
    return true;
}

/* True, and a message, when @a and @b use the same path or server. */
static bool same_place(const struct tier_config *a, const struct tier_config *b)
{
    for (unsigned i = 0; i < a->nr_paths; i++) {
        /* the paths before this one when a tier is compared with itself */
        for (unsigned j = 0; j < (a == b ? i : b->nr_paths); j++) {
            if (!strcmp(a->paths[i], b->paths[j])) {
                fprintf(stderr,
                        "uffdmm-manager: --tier '%s': path '%s' is given twice, also for "
                        "tier '%s'\n",
                        a->name, a->paths[i], b->name);
                return true;
            }
        }
    }
    if (a != b && a->uri[0] && !strcmp(a->uri, b->uri)) {
        fprintf(stderr, "uffdmm-manager: --tier '%s': tier '%s' has the same uri '%s'\n",
                a->name, b->name, a->uri);
        return true;
    }
    return false;
}

bool tier_options_check(const struct tier_config *tiers, unsigned nr)
{
    if (!nr) {
        fprintf(
            stderr,
            "uffdmm-manager: --tier is missing: say where evicted pages go, for example "
            "--tier ssd=file,path=/var/lib/uffdmm\n");
        return false;
    }
    if (nr > TIER_OPTIONS_MAX) {
        fprintf(stderr, "uffdmm-manager: there are more than %d tiers\n",
                TIER_OPTIONS_MAX);
        return false;
    }
    for (unsigned i = 0; i < nr; i++) {
        for (unsigned j = 0; j <= i; j++) {
            if (i != j && !strcmp(tiers[i].name, tiers[j].name)) {
                fprintf(stderr, "uffdmm-manager: there are two tiers named '%s'\n",
                        tiers[i].name);
                return false;
            }
            if (same_place(&tiers[i], &tiers[j])) {
                return false;
            }
        }
    }
    return true;
}
