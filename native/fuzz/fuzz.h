/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the fuzz targets share.  Each program is a libFuzzer target: bytes in, and
 * whatever they are, no crash, no sanitizer report, no broken assertion, nothing
 * left open.
 */
#ifndef UFFDMM_FUZZ_H
#define UFFDMM_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* Called by libFuzzer. */
int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* An assertion that no build leaves out. */
#define FUZZ_EXPECT(condition)                                               \
    do {                                                                     \
        if (!(condition)) {                                                  \
            fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, \
                    #condition);                                             \
            abort();                                                         \
        }                                                                    \
    } while (0)

#endif
