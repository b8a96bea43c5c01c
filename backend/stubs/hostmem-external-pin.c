/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * For hosts without memory-backend-external
 */

#include "qemu/osdep.h"
#include "system/hostmem-external.h"

void hostmem_external_pin(RAMBlock *rb, uint64_t start, size_t length)
{
}

void hostmem_external_unpin(RAMBlock *rb, uint64_t start, size_t length)
{
}
