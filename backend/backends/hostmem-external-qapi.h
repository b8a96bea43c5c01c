/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * From the words of a memory manager to those of QAPI
 *
 * The manager may have written anything into the memory that these come from.
 */

#ifndef BACKENDS_HOSTMEM_EXTERNAL_QAPI_H
#define BACKENDS_HOSTMEM_EXTERNAL_QAPI_H

#include "qapi/qapi-types-uffdmm.h"

UffdmmManagerState external_qapi_manager_state(uint64_t state);
UffdmmTierState external_qapi_tier_state(uint64_t state);

/* A copy of text in a field of @size bytes, as UTF-8 */
char *external_qapi_text(const char *text, size_t size);

#endif
