/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * For programs and hosts without memory-backend-external
 */

#include "qemu/osdep.h"
#include "system/hostmem-external.h"

bool hostmem_external_in_use(void)
{
    return false;
}

bool hostmem_external_block(const char *what, const char *why, Error **errp)
{
    return true;
}

void hostmem_external_unblock(const char *what)
{
}

bool hostmem_external_block_nested(Error **errp)
{
    return true;
}

void hostmem_external_unblock_nested(void)
{
}
