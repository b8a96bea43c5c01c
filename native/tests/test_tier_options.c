/* SPDX-License-Identifier: GPL-2.0-or-later */
/* --tier, --store and --vm: what is accepted, and that the message for the rest names it. */
#include "unit.h"

#include "tier_options.h"
#include "vm_options.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "option_pairs.h"

static char said[4096]; /* on stderr, by the last call between listen() and heard() */
static FILE *ear;
static int real_stderr;

static void listen_to_stderr(void)
{
    ear = tmpfile();
    assert_non_null(ear);
    fflush(stderr);
    real_stderr = dup(2);
    dup2(fileno(ear), 2);
}

static void stop_listening(void)
{
    size_t n;

    fflush(stderr);
    dup2(real_stderr, 2);
    close(real_stderr);
    rewind(ear);
    n = fread(said, 1, sizeof(said) - 1, ear);
    said[n] = '\0';
    fclose(ear);
}

static bool parse_tier(struct tier_config *c, const char *text)
{
    bool good;

    listen_to_stderr();
    good = tier_options_parse(c, text);
    stop_listening();
    return good;
}

static bool parse_vm(struct vm_options *vm, const char *text)
{
    bool good;

    listen_to_stderr();
    good = vm_options_parse(vm, text);
    stop_listening();
    return good;
}

/* Refused with one line that has @words in it. */
static void assert_refused(bool good, const char *text, const char *words)
{
    if (good) {
        fail_msg("'%s' was accepted", text);
    }
    if (!strstr(said, words)) {
        fail_msg("'%s' was refused with '%s', which does not say '%s'", text, said,
                 words);
    }
    assert_ptr_equal(strchr(said, '\n'), said + strlen(said) - 1);
    assert_memory_equal(said, "uffdmm-manager: ", 16);
}

static void a_pool_has_defaults(void **state)
{
    struct tier_config c;
    (void)state;

    assert_true(parse_tier(&c, "ram=pool"));
    assert_string_equal(c.name, "ram");
    assert_int_equal(c.type, UFFDMM_TIER_POOL);
    assert_int_equal(c.codec, TIER_CODEC_LZ4);
    assert_int_equal(c.level, 0);
    assert_false(c.inside_limit);
    assert_false(c.shared);
    assert_int_equal(c.capacity, 0);
    assert_true(c.faults.error_rate == 0.0);
    assert_int_equal(c.faults.error_errno, EIO);
    assert_true(c.faults.error_reads && c.faults.error_writes);
    assert_int_equal(c.faults.delay_read_ns, 0);
}

static void every_key_of_a_pool_is_taken(void **state)
{
    struct tier_config c;
    (void)state;

    assert_true(
        parse_tier(&c, "ram=pool,level=3,codec=zstd,inside-limit=on,capacity=512M"));
    assert_int_equal(c.codec, TIER_CODEC_ZSTD);
    assert_int_equal(c.level, 3);
    assert_true(c.inside_limit);
    assert_int_equal(c.capacity, 512ULL << 20);
}

static void a_file_has_several_paths(void **state)
{
    struct tier_config c;
    (void)state;

    assert_true(parse_tier(&c, "ssd=file,path=/a,path=/dev/sdb,shared=on,capacity=4096"));
    assert_int_equal(c.type, UFFDMM_TIER_FILE);
    assert_int_equal(c.nr_paths, 2);
    assert_string_equal(c.paths[0], "/a");
    assert_string_equal(c.paths[1], "/dev/sdb");
    assert_true(c.shared);
    assert_int_equal(c.capacity, 4096);
}

static void an_nbd_tier_is_shared(void **state)
{
    struct tier_config c;
    (void)state;

    assert_true(parse_tier(&c, "far=nbd,uri=nbds://server:10809/{vm},connections=2"));
    assert_int_equal(c.type, UFFDMM_TIER_NBD);
    assert_string_equal(c.uri, "nbds://server:10809/{vm}");
    assert_int_equal(c.connections, 2);
    assert_true(c.shared);
    assert_true(parse_tier(&c, "far=nbd,uri=nbd+unix:///x?socket=/run/s=1"));
    assert_string_equal(c.uri, "nbd+unix:///x?socket=/run/s=1");
    assert_int_equal(c.connections, 4);
}

static void two_commas_are_one_in_a_value(void **state)
{
    struct tier_config c;
    (void)state;

    assert_true(parse_tier(&c, "a=file,path=/x,,y,path=,,,shared=on"));
    assert_string_equal(c.paths[0], "/x,y");
    assert_string_equal(c.paths[1], ",");
    assert_true(c.shared);
    assert_true(parse_tier(&c, "a=file,path=/x,,"));
    assert_string_equal(c.paths[0], "/x,");
    assert_true(parse_tier(&c, "a=file,path=/x,,,,y"));
    assert_string_equal(c.paths[0], "/x,,y");
}

static void faults_are_taken_by_every_type(void **state)
{
    static const char *const heads[] = {"a=pool", "a=file,path=/x", "a=nbd,uri=nbd://h"};
    static const char tail[] =
        ",error-rate=0.25,error-errno=ENOSPC,error-ops=write,error-trigger=/tmp/e"
        ",delay-read=100us,delay-write=2s,delay-shape=exponential,delay-trigger=/tmp/d";
    (void)state;

    for (size_t i = 0; i < sizeof(heads) / sizeof(heads[0]); i++) {
        struct tier_config c;
        char text[512];

        snprintf(text, sizeof(text), "%s%s", heads[i], tail);
        assert_true(parse_tier(&c, text));
        assert_true(c.faults.error_rate == 0.25);
        assert_int_equal(c.faults.error_errno, ENOSPC);
        assert_false(c.faults.error_reads);
        assert_true(c.faults.error_writes);
        assert_string_equal(c.faults.error_trigger, "/tmp/e");
        assert_int_equal(c.faults.delay_read_ns, 100 * 1000);
        assert_int_equal(c.faults.delay_write_ns, 2000000000);
        assert_int_equal(c.faults.delay_shape, TIER_DELAY_EXPONENTIAL);
        assert_string_equal(c.faults.delay_trigger, "/tmp/d");
    }
}

static void bad_tiers_are_refused_by_name(void **state)
{
    static const struct {
        const char *text;
        const char *words;
    } bad[] = {
        {"", "the name of a tier is"},
        {"=pool", "the name of a tier is"},
        {"a.b=pool", "the name of a tier is"},
        {"a b=pool", "the name of a tier is"},
        {"zero=pool", "'zero' is always there"},
        {"a", "'' is not a type of tier: use pool, file or nbd"},
        {"a=disk", "'disk' is not a type of tier"},
        {"a=pool,", "'' is not key=value"},
        {"a=pool,,codec=lz4", "'' is not key=value"},
        {"a=pool,codec", "'codec' is not key=value"},
        {"a=pool,=lz4", "'=lz4' is not key=value"},
        {"a=pool,kodec=lz4", "unknown key 'kodec': did you mean 'codec'?"},
        {"a=pool,capcity=1G", "did you mean 'capacity'?"},
        {"a=file,path=/x,paht=/x", "did you mean 'path'?"},
        {"a=nbd,uri=nbd://x,conections=3", "did you mean 'connections'?"},
        {"a=pool,delay_read=1ms", "did you mean 'delay-read'?"},
        {"a=pool,xyzzy=1", "unknown key 'xyzzy'; there are capacity, error-rate,"},
        {"a=pool,path=/x", "a tier of type pool has no 'path'"},
        {"a=file,path=/x,codec=lz4", "a tier of type file has no 'codec'"},
        {"a=pool,codec=lzo", "codec 'lzo' is not lz4 or zstd"},
        {"a=pool,codec=lz4,codec=lz4", "'codec' is given twice"},
        {"a=pool,capacity=0", "capacity '0' is not a size"},
        {"a=pool,capacity=4095", "capacity '4095' is not a size"},
        {"a=pool,capacity=1GB", "capacity '1GB' is not a size"},
        {"a=pool,level=3", "level is for codec=zstd"},
        {"a=pool,codec=zstd,level=0", "level '0' is not a number from 1 to 19"},
        {"a=pool,codec=zstd,level=20", "level '20' is not"},
        {"a=pool,inside-limit=yes", "inside-limit 'yes' is not on or off"},
        {"a=file", "a file tier needs path=DIR"},
        {"a=file,path=", "path '' is not"},
        {"a=file,path=1,path=2,path=3,path=4,path=5,path=6,path=7,path=8,path=9",
         "of which a tier has at most 8"},
        {"a=nbd", "an nbd tier needs uri=URI"},
        {"a=nbd,uri=http://x", "uri 'http://x' is not an NBD URI"},
        {"a=nbd,uri=nbd://x,connections=17", "connections '17' is not"},
        {"a=pool,error-rate=1.1", "error-rate '1.1' is not"},
        {"a=pool,error-rate=-0", "error-rate '-0' is not"},
        {"a=pool,error-rate=nan", "error-rate 'nan' is not"},
        {"a=pool,error-rate=.", "error-rate '.' is not"},
        {"a=pool,error-rate=1,error-errno=EPIPEL", "error-errno 'EPIPEL' is not"},
        {"a=pool,error-rate=1,error-errno=5", "error-errno '5' is not"},
        {"a=pool,error-ops=none", "error-ops 'none' is not"},
        {"a=pool,error-trigger=/t", "without error-rate there are no errors"},
        {"a=pool,delay-shape=fixed", "without delay-read or delay-write"},
        {"a=pool,delay-read=5", "delay-read '5' is not a time with its unit"},
        {"a=pool,delay-read=99999999999h", "delay-read '99999999999h' is not"},
        {"a=pool,delay-read=1ms,delay-shape=odd", "delay-shape 'odd' is not"},
    };
    (void)state;

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct tier_config c;

        assert_refused(parse_tier(&c, bad[i].text), bad[i].text, bad[i].words);
    }
}

static void what_is_too_long_is_refused(void **state)
{
    struct tier_config c;
    struct vm_options vm;
    char text[2048];
    (void)state;

    memset(text, 'a', sizeof(text));
    memcpy(text + 64, "=pool", 6);
    assert_refused(parse_tier(&c, text), text, "the name of a tier is");
    memcpy(text + 63, "=pool", 6);
    assert_true(parse_tier(&c, text));

    memset(text, 'a', sizeof(text));
    text[sizeof(text) - 1] = '\0';
    assert_refused(parse_tier(&c, text), text, "does not begin with NAME=TYPE");
    assert_refused(parse_vm(&vm, text), text, "does not begin with the name of a VM");
    memcpy(text, "x=file,path=", 12);
    assert_refused(parse_tier(&c, text), text, "the value of 'path' is too long");
    memset(text, 'a', sizeof(text) - 1);
    memcpy(text, "x=pool,", 7);
    assert_refused(parse_tier(&c, text), text, "is not key=value");
    memcpy(text, "x=pool,error-rate=1,error-trigger=", 34);
    text[34 + 256] = '\0';
    assert_refused(parse_tier(&c, text), text, "is not a path of 1 to 255 bytes");
    text[34 + 255] = '\0';
    assert_true(parse_tier(&c, text));
    memset(text, 'a', sizeof(text));
    memcpy(text, "x=file,path=", 12);
    text[12 + 1023] = '\0';
    assert_true(parse_tier(&c, text));
    assert_int_equal(strlen(c.paths[0]), 1023);
}

static void durations_have_units(void **state)
{
    static const struct {
        const char *text;
        uint64_t ns;
    } good[] = {
        {"0", 0},
        {"0s", 0},
        {"7ns", 7},
        {"100us", 100000},
        {"5ms", 5000000},
        {"30s", 30000000000},
        {"2m", 120000000000},
        {"1h", 3600000000000},
    };
    static const char *const bad[] = {
        "", "5", "-1s", "1.5s", "s", "5 s", "5M", "5S", "1d", "18446744073709551616ns"};
    uint64_t ns = 99;
    (void)state;

    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        assert_true(option_duration(good[i].text, &ns));
        assert_int_equal(ns, good[i].ns);
    }
    ns = 99;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        if (option_duration(bad[i], &ns)) {
            fail_msg("'%s' was taken for a time", bad[i]);
        }
    }
    assert_false(option_demote_after("1us", &ns));
    assert_false(option_demote_after("always", &ns));
    assert_int_equal(ns, 99);
    assert_true(option_demote_after("never", &ns));
    assert_int_equal(ns, 0);
    assert_true(option_demote_after("1500ms", &ns));
    assert_int_equal(ns, 1500000000);
}

static void store_is_short_for_a_file_tier(void **state)
{
    struct tier_config c;
    (void)state;

    assert_true(tier_options_parse_store(&c, "file:/var/lib/x,size=2G"));
    assert_string_equal(c.name, "file");
    assert_int_equal(c.type, UFFDMM_TIER_FILE);
    assert_int_equal(c.nr_paths, 1);
    assert_string_equal(c.paths[0], "/var/lib/x");
    assert_int_equal(c.capacity, 2ULL << 30);
    assert_true(tier_options_parse_store(&c, "file:/var/lib/x"));
    assert_int_equal(c.capacity, 0);

    static const char *const bad[] = {"nbd:x",
                                      "file:", "file:/x,size=", "file:/x,sise=1G", "f"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        bool good;

        listen_to_stderr();
        good = tier_options_parse_store(&c, bad[i]);
        stop_listening();
        assert_refused(good, bad[i], "--store");
    }
}

/* tier_options_check() of the tiers that @texts describe. */
static bool check_tiers(struct tier_config *tiers, const char *const *texts, unsigned nr)
{
    bool good;

    for (unsigned i = 0; i < nr; i++) {
        assert_true(parse_tier(&tiers[i], texts[i]));
    }
    listen_to_stderr();
    good = tier_options_check(tiers, nr);
    stop_listening();
    return good;
}

static void a_list_of_tiers_has_no_doubles(void **state)
{
    struct tier_config *tiers = calloc(8, sizeof(*tiers));
    const char *good[] = {"a=pool",
                          "b=file,path=/x,path=/y",
                          "c=file,path=/z",
                          "d=nbd,uri=nbd://h/1",
                          "e=nbd,uri=nbd://h/2",
                          "f=pool",
                          "g=pool",
                          "h=pool"};
    const char *names[] = {"a=pool", "b=pool", "a=file,path=/x"};
    const char *paths[] = {"a=file,path=/x,path=/y", "b=file,path=/z,path=/y"};
    const char *own[] = {"a=file,path=/x,path=/y,path=/x"};
    const char *uris[] = {"a=nbd,uri=nbd://h", "b=nbd,uri=nbd://h"};
    (void)state;

    assert_non_null(tiers);
    assert_true(check_tiers(tiers, good, 7));
    assert_refused(check_tiers(tiers, good, 8), "eight", "more than 7 tiers");
    assert_refused(check_tiers(tiers, good, 0), "none", "--tier is missing");
    assert_refused(check_tiers(tiers, names, 3), "names", "two tiers named 'a'");
    assert_refused(check_tiers(tiers, paths, 2), "paths",
                   "'b': path '/y' is given twice, also for tier 'a'");
    assert_refused(check_tiers(tiers, own, 1), "own", "path '/x' is given twice");
    assert_refused(check_tiers(tiers, uris, 2), "uris", "tier 'a' has the same uri");
    free(tiers);
}

static void a_vm_changes_what_is_named(void **state)
{
    struct vm_options vm;
    (void)state;

    assert_true(parse_vm(&vm, "db:1@host"));
    assert_string_equal(vm.name, "db:1@host");
    assert_false(vm.has_limit || vm.has_demote_after || vm.readahead_pages ||
                 vm.nr_tiers);

    assert_true(parse_vm(&vm, "db,limit=50%,readahead=8,demote-after=30s,ram.capacity=1G,"
                              "ssd.capacity=2G,ram.codec=zstd"));
    assert_true(vm.has_limit);
    assert_int_equal(vm.limit_percent, 50);
    assert_int_equal(vm.limit_bytes, 0);
    assert_int_equal(vm.readahead_pages, 8);
    assert_true(vm.has_demote_after);
    assert_int_equal(vm.demote_after_ns, 30000000000);
    assert_int_equal(vm.nr_tiers, 2);
    assert_string_equal(vm.tiers[0].tier, "ram");
    assert_int_equal(vm.tiers[0].capacity, 1ULL << 30);
    assert_true(vm.tiers[0].has_codec);
    assert_int_equal(vm.tiers[0].codec, TIER_CODEC_ZSTD);
    assert_string_equal(vm.tiers[1].tier, "ssd");
    assert_int_equal(vm.tiers[1].capacity, 2ULL << 30);
    assert_false(vm.tiers[1].has_codec);

    assert_true(parse_vm(&vm, "db,limit=none,demote-after=never"));
    assert_true(vm.has_limit && vm.has_demote_after);
    assert_int_equal(vm.limit_bytes, 0);
    assert_int_equal(vm.demote_after_ns, 0);
    assert_true(parse_vm(&vm, "db,limit=512M"));
    assert_int_equal(vm.limit_bytes, 512ULL << 20);
    assert_int_equal(vm.limit_percent, 0);
}

static void bad_vms_are_refused_by_name(void **state)
{
    static const struct {
        const char *text;
        const char *words;
    } bad[] = {
        {"", "the name of a VM"},
        {".x", "the name of a VM"},
        {"a/b", "the name of a VM"},
        {"limit=1G", "the name of a VM"},
        {"db,", "'' is not key=value"},
        {"db,limit", "'limit' is not key=value"},
        {"db,limit=0", "limit '0' is not"},
        {"db,limit=0%", "limit '0%' is not"},
        {"db,limit=101%", "limit '101%' is not"},
        {"db,limit=00000050%", "limit '00000050%' is not"},
        {"db,limit=", "limit '' is not"},
        {"db,limit=1G,limit=50%", "'limit' is given twice"},
        {"db,readahead=65", "readahead '65' is not a number from 1 to 64"},
        {"db,demote-after=5", "demote-after '5' is not"},
        {"db,demote-after=10us", "demote-after '10us' is not"},
        {"db,limt=1G", "unknown key 'limt': did you mean 'limit'?"},
        {"db,xyzzy=1", "unknown key 'xyzzy'; there are limit,"},
        {"db,ram.kapacity=1G", "did you mean 'ram.capacity'?"},
        {"db,ram.capacity=1G,ram.capacity=1G", "'ram.capacity' is given twice"},
        {"db,ram.capacity=0", "ram.capacity '0' is not a size"},
        {"db,ram.codec=lzo", "ram.codec 'lzo' is not lz4 or zstd"},
        {"db,.capacity=1G", "'.capacity' names no tier"},
        {"db,a.codec=lz4,b.codec=lz4,c.codec=lz4,d.codec=lz4,e.codec=lz4,f.codec=lz4,"
         "g.codec=lz4,h.codec=lz4",
         "'h.codec' names no tier"},
    };
    (void)state;

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct vm_options vm;

        assert_refused(parse_vm(&vm, bad[i].text), bad[i].text, bad[i].words);
    }
}

/* vm_options_check() against a pool `ram` and a file tier `disk`. */
static bool check_vms(const struct tier_config *tiers, struct vm_options *vms,
                      const char *const *texts, unsigned nr)
{
    bool good;

    for (unsigned i = 0; i < nr; i++) {
        assert_true(parse_vm(&vms[i], texts[i]));
    }
    listen_to_stderr();
    good = vm_options_check(vms, nr, tiers, 2);
    stop_listening();
    return good;
}

static void overrides_fit_the_tiers(void **state)
{
    struct tier_config *tiers = calloc(2, sizeof(*tiers));
    struct vm_options vms[2];
    struct tier_config copy;
    const char *good[] = {"a,ram.codec=lz4,disk.capacity=1G", "b"};
    const char *twice[] = {"a", "a"};
    const char *unknown[] = {"a,dsk.capacity=1G"};
    const char *nowhere[] = {"a,tape.capacity=1G"};
    const char *codec[] = {"a,disk.codec=lz4"};
    (void)state;

    assert_non_null(tiers);
    assert_true(parse_tier(&tiers[0], "ram=pool,codec=zstd,level=5"));
    assert_true(parse_tier(&tiers[1], "disk=file,path=/x,capacity=8G"));
    assert_refused(check_vms(tiers, vms, twice, 2), "twice", "'a' is given twice");
    assert_refused(check_vms(tiers, vms, unknown, 1), "unknown",
                   "no tier 'dsk': did you mean 'disk'?");
    assert_refused(check_vms(tiers, vms, nowhere, 1), "nowhere",
                   "no tier 'tape': add it with --tier");
    assert_refused(check_vms(tiers, vms, codec, 1), "codec", "'disk' has no codec");
    assert_true(check_vms(tiers, vms, good, 2));

    assert_null(vm_options_find(vms, 2, "c"));
    assert_ptr_equal(vm_options_find(vms, 2, "b"), &vms[1]);
    copy = tiers[0];
    vm_options_apply(vm_options_find(vms, 2, "a"), &copy);
    assert_int_equal(copy.codec, TIER_CODEC_LZ4);
    assert_int_equal(copy.level, 0);
    assert_int_equal(copy.capacity, 0);
    copy = tiers[1];
    vm_options_apply(vm_options_find(vms, 2, "a"), &copy);
    assert_int_equal(copy.capacity, 1ULL << 30);
    copy = tiers[1];
    vm_options_apply(vm_options_find(vms, 2, "b"), &copy);
    vm_options_apply(NULL, &copy);
    assert_memory_equal(&copy, &tiers[1], sizeof(copy));
    free(tiers);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_pool_has_defaults),
        cmocka_unit_test(every_key_of_a_pool_is_taken),
        cmocka_unit_test(a_file_has_several_paths),
        cmocka_unit_test(an_nbd_tier_is_shared),
        cmocka_unit_test(two_commas_are_one_in_a_value),
        cmocka_unit_test(faults_are_taken_by_every_type),
        cmocka_unit_test(bad_tiers_are_refused_by_name),
        cmocka_unit_test(what_is_too_long_is_refused),
        cmocka_unit_test(durations_have_units),
        cmocka_unit_test(store_is_short_for_a_file_tier),
        cmocka_unit_test(a_list_of_tiers_has_no_doubles),
        cmocka_unit_test(a_vm_changes_what_is_named),
        cmocka_unit_test(bad_vms_are_refused_by_name),
        cmocka_unit_test(overrides_fit_the_tiers),
    };

    return cmocka_run_group_tests_name("tier_options", tests, NULL, NULL);
}
