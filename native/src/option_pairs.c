/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Pieces of options such as --tier ssd=file,path=/var/lib/uffdmm,capacity=16G. */
#include "option_pairs.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "uffdmm/protocol.h"

bool option_first_word(const char **text, char *word, size_t size)
{
    size_t len = strcspn(*text, ",");

    if (len >= size) {
        return false;
    }
    memcpy(word, *text, len);
    word[len] = '\0';
    *text += len;
    return true;
}

bool option_next_pair(const char **text, struct option_pair *pair, const char *option,
                      const char *name)
{
    const char *p = *text + 1;
    size_t len = strcspn(p, "=,");
    size_t n = 0;

    if (p[len] != '=' || !len || len >= sizeof(pair->key)) {
        fprintf(stderr, "uffdmm-manager: %s '%s': '%.*s' is not key=value\n", option,
                name, (int)strcspn(p, ","), p);
        return false;
    }
    memcpy(pair->key, p, len);
    pair->key[len] = '\0';
    for (p += len + 1; *p; p++) {
        if (*p == ',' && *++p != ',') {
            p--;
            break;
        }
        if (n == sizeof(pair->value) - 1) {
            fprintf(stderr, "uffdmm-manager: %s '%s': the value of '%s' is too long\n",
                    option, name, pair->key);
            return false;
        }
        pair->value[n++] = *p;
    }
    pair->value[n] = '\0';
    *text = p;
    return true;
}

/* Letters to add, drop or replace to get from @a to @b. */
static size_t distance(const char *a, const char *b)
{
    size_t row[sizeof(((struct option_pair *)NULL)->key)];
    size_t len = strlen(b);

    if (len >= sizeof(row) / sizeof(row[0])) {
        return SIZE_MAX;
    }
    for (size_t j = 0; j <= len; j++) {
        row[j] = j;
    }
    for (size_t i = 1; *a; a++, i++) {
        size_t diagonal = row[0];

        row[0] = i;
        for (size_t j = 1; j <= len; j++) {
            size_t best = diagonal + (*a != b[j - 1]);

            diagonal = row[j];
            if (row[j] + 1 < best) {
                best = row[j] + 1;
            }
            if (row[j - 1] + 1 < best) {
                best = row[j - 1] + 1;
            }
            row[j] = best;
        }
    }
    return row[len];
}

const char *option_nearest(const char *word, const char *const *names, size_t nr)
{
    const char *found = NULL;
    size_t best = strlen(word) / 2 + 1;

    for (size_t i = 0; i < nr; i++) {
        size_t d = distance(word, names[i]);

        if (d < best) {
            best = d;
            found = names[i];
        }
    }
    return found;
}

bool option_name_ok(const char *text, const char *others)
{
    size_t len = strlen(text);

    if (!len || len >= UFFDMM_NAME_MAX) {
        return false;
    }
    for (; *text; text++) {
        /* not isalnum(), which asks the locale */
        if (!((*text >= 'a' && *text <= 'z') || (*text >= 'A' && *text <= 'Z') ||
              (*text >= '0' && *text <= '9') || strchr(others, *text))) {
            return false;
        }
    }
    return true;
}

/* As strtoull(), without blanks and signs; false when there is no digit or too many. */
static bool digits(const char *text, uint64_t *out, char **end)
{
    unsigned long long v;

    if (*text < '0' || *text > '9') {
        return false;
    }
    errno = 0;
    v = strtoull(text, end, 10);
    if (errno) {
        return false;
    }
    *out = v;
    return true;
}

bool option_number(const char *text, uint64_t min, uint64_t max, uint64_t *out)
{
    uint64_t v;
    char *end;

    if (!digits(text, &v, &end) || *end || v < min || v > max) {
        return false;
    }
    *out = v;
    return true;
}

bool option_duration(const char *text, uint64_t *ns)
{
    static const struct {
        const char *name;
        uint64_t ns;
    } units[] = {
        {"ns", 1},
        {"us", 1000},
        {"ms", 1000 * 1000},
        {"s", 1000ULL * 1000 * 1000},
        {"m", 60 * 1000ULL * 1000 * 1000},
        {"h", 3600 * 1000ULL * 1000 * 1000},
    };
    uint64_t v;
    char *end;

    if (!digits(text, &v, &end)) {
        return false;
    }
    if (!v && !*end) {
        *ns = 0;
        return true;
    }
    for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
        if (!strcmp(end, units[i].name)) {
            /* INT64_MAX: such times are added to clocks */
            if (v > INT64_MAX / units[i].ns) {
                return false;
            }
            *ns = v * units[i].ns;
            return true;
        }
    }
    return false;
}

bool option_demote_after(const char *text, uint64_t *ns)
{
    uint64_t v;

    if (!strcmp(text, "never")) {
        v = 0;
    } else if (!option_duration(text, &v) || v % (1000 * 1000)) {
        return false;
    }
    *ns = v;
    return true;
}

bool option_on_lost(const char *text, bool *poison)
{
    *poison = !strcmp(text, "poison");
    return *poison || !strcmp(text, "wait");
}

bool option_switch(const char *text, bool *on)
{
    if (strcmp(text, "on") != 0 && strcmp(text, "off") != 0) {
        return false;
    }
    *on = text[1] == 'n';
    return true;
}
