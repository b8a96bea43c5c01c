/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The manager's command line: what is accepted, and that nothing else is. */
#include "unit.h"

#include "options.h"
#include "uffd.h"

#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static void sizes_have_suffixes_in_powers_of_1024(void **state)
{
    uint64_t bytes = 0;
    (void)state;

    assert_true(options_parse_size("0", &bytes));
    assert_int_equal(bytes, 0);
    assert_true(options_parse_size("4096", &bytes));
    assert_int_equal(bytes, 4096);
    assert_true(options_parse_size("512M", &bytes));
    assert_int_equal(bytes, 512ULL << 20);
    assert_true(options_parse_size("1g", &bytes));
    assert_int_equal(bytes, 1ULL << 30);
    assert_true(options_parse_size("3KiB", &bytes));
    assert_int_equal(bytes, 3072);
    assert_true(options_parse_size("2TiB", &bytes));
    assert_int_equal(bytes, 2ULL << 40);
}

static void what_is_no_size_is_refused(void **state)
{
    static const char *const bad[] = {
        "",
        " 1",
        "-1",
        "+1",
        "1.5G",
        "M",
        "1X",
        "1MM",
        "1Mi",
        "1MB",
        "1M ",
        "0x10",
        "99999999999999999999",
        "18446744073709551615K",
        "16777216T",
    };
    (void)state;

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        uint64_t bytes = 7;
        if (options_parse_size(bad[i], &bytes)) {
            fail_msg("'%s' was taken for a size", bad[i]);
        }
        assert_int_equal(bytes, 7);
    }
}

/* Parses with the messages for the user out of the way. */
static enum options_outcome parse(struct options *o, char *const *words, int nr)
{
    char *argv[16] = {(char *)(uintptr_t) "uffdmm-manager"};
    int null = open("/dev/null", O_WRONLY);
    int out = dup(1);
    int err = dup(2);

    memcpy(argv + 1, words, (size_t)nr * sizeof(*words));
    optind = 0; /* start over */
    fflush(stdout);
    dup2(null, 1);
    dup2(null, 2);
    enum options_outcome outcome = options_parse(o, nr + 1, argv);
    fflush(stdout);
    dup2(out, 1);
    dup2(err, 2);
    close(null);
    close(out);
    close(err);
    return outcome;
}

#define PARSE(o, ...)                      \
    parse(o, (char *const[]){__VA_ARGS__}, \
          (int)(sizeof((char *const[]){__VA_ARGS__}) / sizeof(char *)))

static char socket_opt[] = "--socket-path=/run/x.sock";
static char store_opt[] = "--store=file:/var/lib/x";

static void a_good_line_gives_all_values(void **state)
{
    struct options o;
    char store[] = "--store=file:/var/lib/x,size=2G";
    char limit[] = "--limit=50%";
    char readahead[] = "--readahead=16";
    char spin[] = "--spin-max-us=7";
    char uid[] = "--allow-uid=107";
    char tracking[] = "--no-tracking";
    (void)state;

    assert_int_equal(PARSE(&o, socket_opt, store, limit, readahead, spin, uid, tracking),
                     OPTIONS_RUN);
    assert_string_equal(o.socket_path, "/run/x.sock");
    assert_int_equal(o.nr_tiers, 1);
    assert_int_equal(o.tiers[0].type, UFFDMM_TIER_FILE);
    assert_string_equal(o.tiers[0].paths[0], "/var/lib/x");
    assert_int_equal(o.tiers[0].capacity, 2ULL << 30);
    assert_int_equal(o.limit_percent, 50);
    assert_int_equal(o.limit_bytes, 0);
    assert_int_equal(o.readahead_pages, 16);
    assert_int_equal(o.spin_max_ns, 7000);
    assert_int_equal(o.nr_uids, 1);
    assert_int_equal(o.uids[0], 107);
    assert_false(o.tracking);
    assert_int_equal(o.sandbox.mode, SANDBOX_ON);
    assert_false(o.sandbox.change_user);
}

static void workers_are_closed_in_as_asked(void **state)
{
    struct options o;
    char off[] = "--sandbox=off", log[] = "--sandbox=log", on[] = "--sandbox=on";
    (void)state;

    assert_int_equal(PARSE(&o, socket_opt, store_opt, off), OPTIONS_RUN);
    assert_int_equal(o.sandbox.mode, SANDBOX_OFF);
    assert_int_equal(PARSE(&o, socket_opt, store_opt, log), OPTIONS_RUN);
    assert_int_equal(o.sandbox.mode, SANDBOX_LOG);
    assert_int_equal(PARSE(&o, socket_opt, store_opt, off, on), OPTIONS_RUN);
    assert_int_equal(o.sandbox.mode, SANDBOX_ON);
}

static void bad_values_are_usage_errors(void **state)
{
    static const char *const bad[] = {
        "--limit=0",
        "--limit=101%",
        "--limit=half",
        "--limit=%",
        "--readahead=0",
        "--readahead=65",
        "--spin-max-us=x",
        "--allow-uid=-1",
        "--sandbox=yes",
        "--run-as=no-such-user",
        "--log-level=loud",
        "--no-such",
        "--store=nbd:x",
        "--store=file:",
        "--store=file:/x,size=",
        "--store=file:/x,sise=1G",
        "--tier=pool",
        "--tier=file=pool", /* --store has a tier of this name */
        "--tier=pool=pool,codex=lz4",
        "--vm=web,disk.capacity=1G", /* no such tier */
        "--demote-after=30",         /* of what? */
        "--on-lost=bury",
        "--on-lost=poison", /* after how long? */
        "--vm=web,on-lost=poison",
        "--on-lost-after=60",
        "surplus",
    };
    struct options o;
    (void)state;

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        char word[64];
        strcpy(word, bad[i]);
        if (PARSE(&o, socket_opt, store_opt, word) != OPTIONS_EXIT_USAGE) {
            fail_msg("'%s' was accepted", bad[i]);
        }
    }
}

static void tiers_keep_their_order_and_vms_their_own_settings(void **state)
{
    struct options o;
    char pool[] = "--tier=ram=pool,codec=zstd,capacity=1G";
    char disk[] = "--tier=disk=file,path=/var/lib/a,path=/var/lib/b";
    char vm[] = "--vm=web,limit=3G,ram.capacity=2G";
    char demote[] = "--demote-after=90s";
    (void)state;

    assert_int_equal(PARSE(&o, socket_opt, pool, disk, vm, demote), OPTIONS_RUN);
    assert_int_equal(o.nr_tiers, 2);
    assert_string_equal(o.tiers[0].name, "ram");
    assert_int_equal(o.tiers[0].codec, TIER_CODEC_ZSTD);
    assert_string_equal(o.tiers[1].name, "disk");
    assert_int_equal(o.tiers[1].nr_paths, 2);
    assert_int_equal(o.nr_vms, 1);
    assert_int_equal(o.vms[0].limit_bytes, 3ULL << 30);
    assert_int_equal(o.demote_after_ns, 90ULL * 1000000000);
}

static void lost_pages_are_waited_for_or_poisoned_by_vm(void **state)
{
    struct options o;
    char lost[] = "--on-lost=poison";
    char after[] = "--on-lost-after=60s";
    char web[] = "--vm=web,on-lost=wait";
    char db[] = "--vm=db,on-lost=poison";
    char ci[] = "--vm=ci,limit=1G";
    (void)state;

    assert_int_equal(PARSE(&o, socket_opt, store_opt), OPTIONS_RUN);
    assert_false(o.poison_lost);
    assert_int_equal(o.lost_after_ns, 0);
    if (uffd_can_poison() != 1) {
        print_message("skip: this kernel has no UFFDIO_POISON\n");
        skip();
    }
    assert_int_equal(PARSE(&o, socket_opt, store_opt, lost, after, web, db, ci),
                     OPTIONS_RUN);
    assert_true(o.poison_lost);
    assert_int_equal(o.lost_after_ns, 60ULL * 1000000000);
    assert_true(o.vms[0].has_on_lost && !o.vms[0].poison_lost);
    assert_true(o.vms[1].has_on_lost && o.vms[1].poison_lost);
    assert_false(o.vms[2].has_on_lost);
}

static void socket_and_store_are_needed(void **state)
{
    struct options o;
    char fd[] = "--fd=5";
    (void)state;

    assert_int_equal(PARSE(&o, store_opt), OPTIONS_EXIT_USAGE);
    assert_int_equal(PARSE(&o, socket_opt), OPTIONS_EXIT_USAGE);
    assert_int_equal(PARSE(&o, socket_opt, fd, store_opt), OPTIONS_EXIT_USAGE);
    assert_int_equal(PARSE(&o, fd, store_opt), OPTIONS_RUN);
    assert_int_equal(o.fd, 5);
}

static void information_exits_well(void **state)
{
    struct options o;
    char version[] = "--version";
    char help[] = "--help";
    char capabilities[] = "--print-capabilities";
    (void)state;

    assert_int_equal(PARSE(&o, version), OPTIONS_EXIT_OK);
    assert_int_equal(PARSE(&o, help), OPTIONS_EXIT_OK);
    assert_int_equal(PARSE(&o, capabilities), OPTIONS_EXIT_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_have_suffixes_in_powers_of_1024),
        cmocka_unit_test(what_is_no_size_is_refused),
        cmocka_unit_test(a_good_line_gives_all_values),
        cmocka_unit_test(workers_are_closed_in_as_asked),
        cmocka_unit_test(bad_values_are_usage_errors),
        cmocka_unit_test(tiers_keep_their_order_and_vms_their_own_settings),
        cmocka_unit_test(lost_pages_are_waited_for_or_poisoned_by_vm),
        cmocka_unit_test(socket_and_store_are_needed),
        cmocka_unit_test(information_exits_well),
    };

    return cmocka_run_group_tests_name("options", tests, NULL, NULL);
}
