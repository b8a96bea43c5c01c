/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The text of options.  The first byte chooses which; the rest is the text.  What is
 * accepted must be whole: values in their ranges, strings that end.
 */
#include "fuzz.h"

#include <string.h>

#include "config.h"
#include "option_pairs.h"
#include "options.h"

static void try_tier(const char *text, bool store)
{
    static struct tier_config c;

    if (!(store ? tier_options_parse_store(&c, text) : tier_options_parse(&c, text))) {
        return;
    }
    FUZZ_EXPECT(option_name_ok(c.name, "-_"));
    FUZZ_EXPECT(c.type >= UFFDMM_TIER_POOL && c.type <= UFFDMM_TIER_NBD);
    FUZZ_EXPECT(c.nr_paths <= TIER_PATHS_MAX);
    FUZZ_EXPECT(!c.capacity || c.capacity >= PAGE_SIZE_4K);
    FUZZ_EXPECT(c.faults.error_rate >= 0 && c.faults.error_rate <= 1);
    FUZZ_EXPECT(c.type != UFFDMM_TIER_FILE || c.nr_paths);
    FUZZ_EXPECT(c.type != UFFDMM_TIER_NBD || (c.uri[0] && c.connections >= 1));
    for (unsigned i = 0; i < c.nr_paths; i++) {
        FUZZ_EXPECT(c.paths[i][0] && memchr(c.paths[i], '\0', sizeof(c.paths[i])));
    }
    (void)tier_options_check(&c, 1);
}

static void try_vm(const char *text)
{
    static struct vm_options vm;
    static struct tier_config tier;

    if (!vm_options_parse(&vm, text)) {
        return;
    }
    FUZZ_EXPECT(vm.name[0] && memchr(vm.name, '\0', sizeof(vm.name)));
    FUZZ_EXPECT(vm.nr_tiers <= TIER_OPTIONS_MAX);
    FUZZ_EXPECT(vm.limit_percent <= 100);
    FUZZ_EXPECT(vm.readahead_pages <= WINDOW_MAX);
    tier = (struct tier_config){.name = "pool", .type = UFFDMM_TIER_POOL};
    if (vm_options_check(&vm, 1, &tier, 1)) {
        vm_options_apply(&vm, &tier);
        FUZZ_EXPECT(!strcmp(tier.name, "pool"));
    }
}

static void try_values(const char *text)
{
    struct option_pair pair;
    uint64_t value;
    bool on;
    const char *rest = text;

    if (options_parse_size(text, &value)) {
        FUZZ_EXPECT(text[0] >= '0' && text[0] <= '9');
    }
    (void)option_duration(text, &value);
    (void)option_demote_after(text, &value);
    (void)option_switch(text, &on);
    if (option_number(text, 3, 77, &value)) {
        FUZZ_EXPECT(value >= 3 && value <= 77);
    }
    while (*rest == ',' && option_next_pair(&rest, &pair, "--tier", "fuzz")) {
        FUZZ_EXPECT(rest > text && rest <= text + strlen(text));
        FUZZ_EXPECT(memchr(pair.key, '\0', sizeof(pair.key)));
        FUZZ_EXPECT(memchr(pair.value, '\0', sizeof(pair.value)));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static char text[4096];

    if (!size || size > sizeof(text)) {
        return 0;
    }
    memcpy(text, data + 1, size - 1);
    text[size - 1] = '\0';
    switch (data[0] % 4) {
    case 0:
        try_tier(text, false);
        break;
    case 1:
        try_tier(text, true);
        break;
    case 2:
        try_vm(text);
        break;
    default:
        try_values(text);
    }
    return 0;
}
