#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# run.sh TARGET FOLDER...: all inputs of the folders once, then five seconds of new
# ones.  What is found on the way is thrown away; what breaks is said, and kept.
set -eu
target=$1
shift
new=$(mktemp -d)
trap 'rm -rf "$new"' EXIT
# refusals of options are sentences on the standard error output: libFuzzer closes that
# of the target, and keeps its own.  The exit status of a crash is 77 by default,
# which is a skip to meson.
"$target" -max_total_time="${UFFDMM_FUZZ_SECONDS:-5}" -timeout=10 -error_exitcode=1 \
    -timeout_exitcode=1 -close_fd_mask=2 -print_final_stats=1 "$new" "$@"
