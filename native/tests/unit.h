/* SPDX-License-Identifier: GPL-2.0-or-later */
/* cmocka with the headers that it needs before its own, in the order it needs. */
#ifndef UFFDMM_TEST_UNIT_H
#define UFFDMM_TEST_UNIT_H

/* clang-format off */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
/* clang-format on */

#endif
