/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One JSON object a line on the control port. */
#ifndef GUEST_REPORT_H
#define GUEST_REPORT_H

/* Write one formatted record and its newline. */
void report(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Write {"event":"error","text":...}; the text must not contain quotes. */
void report_error(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
