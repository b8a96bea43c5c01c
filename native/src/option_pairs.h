/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Options of the form WORD,key=value,...: their pieces, the values that several
 * of them share, and which key the user may have meant.
 */
#ifndef UFFDMM_OPTION_PAIRS_H
#define UFFDMM_OPTION_PAIRS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* One key=value; the longest value is a path or a URI. */
struct option_pair {
    char key[128]; /* room for NAME.key */
    char value[1024];
};

/*
 * Copies what stands before the first comma of *@text, at most @size - 1 bytes,
 * and sets *@text to that comma or the end.  False when it does not fit.
 */
bool option_first_word(const char **text, char *word, size_t size);

/*
 * Takes one pair off *@text, which begins with the comma before it.  Two commas in a value stand for one, which does not
 * end it.  @option and @name are for the message when there is no pair.
 */
bool option_next_pair(const char **text, struct option_pair *pair, const char *option,
                      const char *name);

/*
 * The one of @nr names that @word resembles most, or NULL when it resembles none:
 * more than half of its letters would have to change.
 */
const char *option_nearest(const char *word, const char *const *names, size_t nr);

/* True when @text is 1 to UFFDMM_NAME_MAX - 1 letters, digits or bytes of @others. */
bool option_name_ok(const char *text, const char *others);

/* A decimal number of @min to @max. */
bool option_number(const char *text, uint64_t min, uint64_t max, uint64_t *out);

/*
 * "100us", "5ms", "30s", "10m", "1h" or a plain 0 -> nanoseconds.  A number without
 * a unit is refused: seconds to some, milliseconds to others.
 */
bool option_duration(const char *text, uint64_t *ns);

/* As option_duration(), or "never", which is 0; whole milliseconds, as on the wire. */
bool option_demote_after(const char *text, uint64_t *ns);

/* "wait" or "poison". */
bool option_on_lost(const char *text, bool *poison);

/* "on" or "off". */
bool option_switch(const char *text, bool *on);

#endif
