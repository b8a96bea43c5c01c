/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The superblock of a volume that anybody could have written to.  An input is the
 * beginning of the block, the rest is zeros.  It is taken as it is, and once more
 * with a checksum that is right, behind which all other checks are.
 */
#include "fuzz.h"

#include <endian.h>
#include <string.h>
#include <xxhash.h>

#include "superblock.h"
#include "uffdmm/protocol.h"

enum { CHECKSUM_AT = SUPERBLOCK_BYTES - 8 }; /* superblock.c, "the block" */

static void check(const char *block)
{
    char again[SUPERBLOCK_BYTES], err[UFFDMM_TEXT_MAX];
    struct superblock sb, self = {.vm_name = "vm"}, held;
    enum superblock_kind kind = superblock_parse(block, &sb);

    err[0] = '\0';
    self.owner.pid = 1;
    int ret = superblock_check(block, &self, "volume", err, sizeof(err));
    FUZZ_EXPECT(memchr(err, '\0', sizeof(err)));
    FUZZ_EXPECT((ret != 0) == (err[0] != '\0')); /* a refusal has its sentence */
    if (kind != SUPERBLOCK_VALID && kind != SUPERBLOCK_BLANK) {
        FUZZ_EXPECT(ret < 0);
    }
    held = self;
    (void)superblock_still_held(block, &held, "volume", err, sizeof(err));
    if (kind == SUPERBLOCK_VALID) {
        /* what was understood is written and understood again */
        struct superblock back;

        FUZZ_EXPECT(memchr(sb.vm_name, '\0', sizeof(sb.vm_name)));
        FUZZ_EXPECT(memchr(sb.owner.host, '\0', sizeof(sb.owner.host)));
        superblock_make(again, &sb);
        FUZZ_EXPECT(superblock_parse(again, &back) == SUPERBLOCK_VALID);
        FUZZ_EXPECT(back.epoch == sb.epoch && back.state == sb.state);
        FUZZ_EXPECT(!strcmp(back.vm_name, sb.vm_name));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static char block[SUPERBLOCK_BYTES];
    uint64_t sum;

    memset(block, 0, sizeof(block));
    memcpy(block, data, size < sizeof(block) ? size : sizeof(block));
    check(block);
    sum = htole64(XXH3_64bits(block, CHECKSUM_AT));
    memcpy(block + CHECKSUM_AT, &sum, sizeof(sum));
    check(block);
    return 0;
}
