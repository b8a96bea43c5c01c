# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash
#
# Progress of long steps, for the shell scripts: one line that is redrawn on a
# terminal, a plain line every few seconds elsewhere.  Everything goes to
# stderr: stdout belongs to what a script answers.

PROGRESS_PLAIN_EVERY=5 # seconds between two plain lines of one step

progress_say() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
}

# progress_seconds SECONDS: as 1 min 05 s
progress_seconds() {
    if (($1 >= 60)); then
        printf '%d min %02d s' $(($1 / 60)) $(($1 % 60))
    else
        printf '%d s' "$1"
    fi
}

# progress_show LABEL: draws what it reads, lines of "DONE TOTAL TEXT"; a total of
# 100 means percent.  The time left follows from the rate so far, once there is
# some rate to speak of.
progress_show() {
    local label=$1 started=$SECONDS shown=-1000
    local done_now total text elapsed left line
    if [[ -t 2 ]]; then
        printf '%s: %s ...' "${0##*/}" "$label" >&2
    else
        progress_say "$label ..."
        shown=$started
    fi
    while read -r done_now total text; do
        elapsed=$((SECONDS - started))
        left=''
        if ((done_now > 0 && elapsed >= 2 && total >= done_now)); then
            left=", $(progress_seconds $((elapsed * (total - done_now) / done_now))) left"
        fi
        line="$label: $done_now of $total$left"
        ((total != 100)) || line="$label: $done_now %$left"
        if [[ -t 2 ]]; then
            line="${0##*/}: $line  $text"
            printf '\r\033[K%s' "${line:0:${COLUMNS:-80}-1}" >&2
        elif ((SECONDS - shown >= PROGRESS_PLAIN_EVERY)); then
            progress_say "$line  $text"
            shown=$SECONDS
        fi
    done
    if [[ -t 2 ]]; then
        printf '\r\033[K' >&2
    fi
    progress_say "$label: took $(progress_seconds $((SECONDS - started)))"
}

# progress_ninja: lines "[n/m] what" of ninja to lines for progress_show
progress_ninja() {
    local line
    while IFS= read -r line; do
        if [[ $line =~ ^[[:space:]]*\[([0-9]+)/([0-9]+)\]\ (.*)$ ]]; then
            printf '%s %s %s\n' "${BASH_REMATCH[1]}" "${BASH_REMATCH[2]}" \
                "${BASH_REMATCH[3]}"
        fi
    done
}
