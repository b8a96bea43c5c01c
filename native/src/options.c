/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Command-line parsing, after QEMU's backend program conventions. */
#include "options.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "activation.h"
#include "config.h"
#include "log.h"
#include "option_pairs.h"
#include "uffd.h"
#include "uffdmm/protocol.h"

static const char usage_text[] =
    "Usage: uffdmm-manager [--socket-path PATH | --fd N] --tier NAME=TYPE... [OPTION]...\n"
    "Serves, evicts and stores the memory of QEMU virtual machines.\n"
    "\n"
    "  --socket-path PATH    listen on this UNIX socket\n"
    "  --fd N                listen on this inherited socket instead; without either, on\n"
    "                        the one that a service manager passes by LISTEN_FDS\n"
    "  --tier NAME=TYPE[,KEY=VALUE]...\n"
    "                        store evicted pages here; repeat for further tiers, fastest\n"
    "                        first.  Types are pool (compressed, in memory), file and nbd;\n"
    "                        their keys are in uffdmm-manager(8)\n"
    "  --store file:DIR[,size=SIZE]\n"
    "                        short for --tier file=file,path=DIR[,capacity=SIZE]\n"
    "  --vm NAME[,KEY=VALUE]...\n"
    "                        what is different for one VM; see uffdmm-manager(8)\n"
    "  --demote-after TIME   move pages unused for so long to the next tier (default: never)\n"
    "  --on-lost wait|poison what becomes of a page that cannot be read (default: the guest\n"
    "                        waits for it)\n"
    "  --on-lost-after TIME  how long it is waited for before it is poisoned (default: never)\n"
    "  --limit SIZE|N%       default limit of a VM's resident memory (default: none)\n"
    "  --readahead N         largest read-ahead window in pages, 1 to 64 (default 64)\n"
    "  --spin-max-us N       longest busy wait for the next fault (default 50)\n"
    "  --allow-uid UID       accept QEMU processes of this user too; may be repeated\n"
    "  --run-as USER         workers give up root for this user, who must own the stores\n"
    "  --sandbox MODE        close workers in: on (default), off, or log to let all system\n"
    "                        calls pass and have the kernel log those not foreseen\n"
    "  --no-tracking         evict in order of arrival, without access history\n"
    "  --log-level LEVEL     error, warn, info or debug (default info)\n"
    "  --print-capabilities  print JSON about this program and exit\n"
    "  --version, --help\n"
    "\n"
    "Sizes are bytes, or have a suffix K, M, G, T (powers of 1024).\n";

bool options_parse_size(const char *text, uint64_t *bytes)
{
    static const char suffixes[] = "KMGT";
    unsigned long long v;
    const char *s;
    char *end;

    if (*text < '0' || *text > '9') {
        return false;
    }
    errno = 0;
    v = strtoull(text, &end, 10);
    if (errno) {
        return false;
    }
    if (*end) {
        unsigned shift;

        s = strchr(suffixes, *end >= 'a' ? *end - 'a' + 'A' : *end);
        if (!s || !*s) {
            return false;
        }
        shift = 10 * (unsigned)(s - suffixes + 1);
        end++;
        if (*end && strcmp(end, "iB") != 0) { /* "MB" is 10^6 to some */
            return false;
        }
        if (v > UINT64_MAX >> shift) {
            return false;
        }
        v <<= shift;
    }
    *bytes = v;
    return true;
}

static bool parse_number(const char *name, const char *text, uint64_t min, uint64_t max,
                         uint64_t *out)
{
    char *end;
    unsigned long long v;

    errno = 0;
    v = strtoull(text, &end, 10);
    if (errno || *end || *text < '0' || *text > '9' || v < min || v > max) {
        fprintf(stderr, "uffdmm-manager: %s '%s' is not a number from %llu to %llu\n",
                name, text, (unsigned long long)min, (unsigned long long)max);
        return false;
    }
    *out = v;
    return true;
}

static bool add_tier(struct options *o, const char *text, bool store)
{
    struct tier_config *c = &o->tiers[o->nr_tiers];

    if (o->nr_tiers == TIER_OPTIONS_MAX) {
        fprintf(stderr, "uffdmm-manager: --tier more than %d times\n", TIER_OPTIONS_MAX);
        return false;
    }
    if (!(store ? tier_options_parse_store(c, text) : tier_options_parse(c, text))) {
        return false;
    }
    o->nr_tiers++;
    return true;
}

static bool parse_limit(struct options *o, const char *text)
{
    size_t len = strlen(text);

    if (len && text[len - 1] == '%') {
        char number[8] = "";
        uint64_t v;

        if (len <= sizeof(number)) {
            memcpy(number, text, len - 1);
        }
        if (!parse_number("--limit percentage", number, 1, 100, &v)) {
            return false;
        }
        o->limit_percent = (unsigned)v;
        return true;
    }
    if (!options_parse_size(text, &o->limit_bytes) || !o->limit_bytes) {
        fprintf(
            stderr,
            "uffdmm-manager: --limit '%s' is neither a size (512M) nor a percentage (50%%)\n",
            text);
        return false;
    }
    return true;
}

static bool parse_level(const char *text)
{
    static const struct {
        const char *name;
        enum log_level level;
    } levels[] = {
        {"error", LOG_LEVEL_ERROR},
        {"warn", LOG_LEVEL_WARN},
        {"info", LOG_LEVEL_INFO},
        {"debug", LOG_LEVEL_DEBUG},
    };

    for (size_t i = 0; i < sizeof(levels) / sizeof(levels[0]); i++) {
        if (!strcmp(text, levels[i].name)) {
            log_set_level(levels[i].level);
            return true;
        }
    }
    fprintf(stderr,
            "uffdmm-manager: --log-level '%s' is not error, warn, info or debug\n", text);
    return false;
}

enum {
    OPT_SOCKET = 256,
    OPT_FD,
    OPT_STORE,
    OPT_TIER,
    OPT_VM,
    OPT_DEMOTE,
    OPT_ON_LOST,
    OPT_ON_LOST_AFTER,
    OPT_LIMIT,
    OPT_READAHEAD,
    OPT_SPIN,
    OPT_UID,
    OPT_RUN_AS,
    OPT_SANDBOX,
    OPT_NO_TRACKING,
    OPT_LEVEL,
    OPT_CAPABILITIES,
    OPT_VERSION,
    OPT_HELP
};

static const struct option long_options[] = {
    {"socket-path", required_argument, NULL, OPT_SOCKET},
    {"fd", required_argument, NULL, OPT_FD},
    {"store", required_argument, NULL, OPT_STORE},
    {"tier", required_argument, NULL, OPT_TIER},
    {"vm", required_argument, NULL, OPT_VM},
    {"demote-after", required_argument, NULL, OPT_DEMOTE},
    {"on-lost", required_argument, NULL, OPT_ON_LOST},
    {"on-lost-after", required_argument, NULL, OPT_ON_LOST_AFTER},
    {"limit", required_argument, NULL, OPT_LIMIT},
    {"readahead", required_argument, NULL, OPT_READAHEAD},
    {"spin-max-us", required_argument, NULL, OPT_SPIN},
    {"allow-uid", required_argument, NULL, OPT_UID},
    {"run-as", required_argument, NULL, OPT_RUN_AS},
    {"sandbox", required_argument, NULL, OPT_SANDBOX},
    {"no-tracking", no_argument, NULL, OPT_NO_TRACKING},
    {"log-level", required_argument, NULL, OPT_LEVEL},
    {"print-capabilities", no_argument, NULL, OPT_CAPABILITIES},
    {"version", no_argument, NULL, OPT_VERSION},
    {"help", no_argument, NULL, OPT_HELP},
    {NULL, 0, NULL, 0},
};

/* Whether pages of any VM are to be poisoned, and can be. */
static bool check_on_lost(const struct options *o)
{
    const char *vm = NULL;
    bool poison = o->poison_lost;
    int ret;

    for (unsigned i = 0; !poison && i < o->nr_vms; i++) {
        if (o->vms[i].has_on_lost && o->vms[i].poison_lost) {
            vm = o->vms[i].name;
            poison = true;
        }
    }
    if (!poison) {
        return true;
    }
    if (!o->lost_after_ns) {
        fprintf(stderr,
                "uffdmm-manager: on-lost=poison%s%s says nothing without a time: add "
                "--on-lost-after TIME, for example 60s\n",
                vm ? " of VM " : "", vm ? vm : "");
        return false;
    }
    ret = uffd_can_poison();
    if (ret < 0) {
        fprintf(stderr,
                "uffdmm-manager: cannot ask the kernel whether it can poison pages: "
                "userfaultfd: %s; use --on-lost=wait\n",
                strerror(-ret));
        return false;
    }
    if (!ret) {
        fprintf(stderr,
                "uffdmm-manager: this kernel cannot poison pages (UFFDIO_POISON is "
                "missing, which came with Linux 6.6): use --on-lost=wait\n");
    }
    return ret > 0;
}

/* One option; false after an error was printed. */
static bool parse_one(struct options *o, int opt, const char *arg)
{
    uint64_t v;

    switch (opt) {
    case OPT_SOCKET:
        o->socket_path = arg;
        return true;
    case OPT_FD:
        if (!parse_number("--fd", arg, 0, 1 << 20, &v)) {
            return false;
        }
        o->fd = (int)v;
        return true;
    case OPT_STORE:
        return add_tier(o, arg, true);
    case OPT_TIER:
        return add_tier(o, arg, false);
    case OPT_VM:
        if (o->nr_vms == OPTIONS_VMS_MAX) {
            fprintf(stderr, "uffdmm-manager: --vm more than %d times\n", OPTIONS_VMS_MAX);
            return false;
        }
        if (!vm_options_parse(&o->vms[o->nr_vms], arg)) {
            return false;
        }
        o->nr_vms++;
        return true;
    case OPT_DEMOTE:
        if (!option_demote_after(arg, &o->demote_after_ns)) {
            fprintf(
                stderr,
                "uffdmm-manager: --demote-after '%s' is not a time such as 500ms, 30s or 10m\n",
                arg);
            return false;
        }
        return true;
    case OPT_ON_LOST:
        if (!option_on_lost(arg, &o->poison_lost)) {
            fprintf(stderr, "uffdmm-manager: --on-lost '%s' is not wait or poison\n",
                    arg);
            return false;
        }
        return true;
    case OPT_ON_LOST_AFTER:
        if (!option_demote_after(arg, &o->lost_after_ns)) {
            fprintf(
                stderr,
                "uffdmm-manager: --on-lost-after '%s' is not a time such as 500ms, 30s "
                "or 10m\n",
                arg);
            return false;
        }
        return true;
    case OPT_LIMIT:
        return parse_limit(o, arg);
    case OPT_READAHEAD:
        if (!parse_number("--readahead", arg, 1, WINDOW_MAX, &v)) {
            return false;
        }
        o->readahead_pages = (unsigned)v;
        return true;
    case OPT_SPIN:
        if (!parse_number("--spin-max-us", arg, 0, 10000, &v)) {
            return false;
        }
        o->spin_max_ns = v * 1000;
        return true;
    case OPT_UID:
        if (o->nr_uids == OPTIONS_UIDS_MAX) {
            fprintf(stderr, "uffdmm-manager: --allow-uid more than %d times\n",
                    OPTIONS_UIDS_MAX);
            return false;
        }
        if (!parse_number("--allow-uid", arg, 0, UINT32_MAX - 1, &v)) {
            return false;
        }
        o->uids[o->nr_uids++] = (uid_t)v;
        return true;
    case OPT_RUN_AS:
        return sandbox_user_parse(arg, &o->sandbox);
    case OPT_SANDBOX:
        if (!sandbox_mode_parse(arg, &o->sandbox.mode)) {
            fprintf(stderr, "uffdmm-manager: --sandbox '%s' is not on, log or off\n",
                    arg);
            return false;
        }
        return true;
    case OPT_NO_TRACKING:
        o->tracking = false;
        return true;
    case OPT_LEVEL:
        return parse_level(arg);
    default:
        return false; /* getopt has said what is wrong */
    }
}

enum options_outcome options_parse(struct options *o, int argc, char **argv)
{
    int opt;

    memset(o, 0, sizeof(*o));
    o->fd = -1;
    o->readahead_pages = WINDOW_MAX;
    o->spin_max_ns = 50 * 1000;
    o->tracking = true;

    while ((opt = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        switch (opt) {
        case OPT_CAPABILITIES:
            printf(
                "{\n  \"type\": \"uffdmm\",\n  \"features\": [\"tier-pool\", \"tier-file\", \"tier-nbd\"],\n"
                "  \"protocol-version\": %d,\n  \"protocol-min-version\": %d\n}\n",
                UFFDMM_VERSION, UFFDMM_MIN_VERSION);
            return OPTIONS_EXIT_OK;
        case OPT_VERSION:
            printf("uffdmm-manager %s\n", UFFDMM_PROGRAM_VERSION);
            return OPTIONS_EXIT_OK;
        case OPT_HELP:
            fputs(usage_text, stdout);
            return OPTIONS_EXIT_OK;
        default:
            if (!parse_one(o, opt, optarg)) {
                return OPTIONS_EXIT_USAGE;
            }
        }
    }
    if (optind < argc) {
        fprintf(stderr, "uffdmm-manager: unexpected argument '%s'; see --help\n",
                argv[optind]);
        return OPTIONS_EXIT_USAGE;
    }
    if (!o->socket_path && o->fd < 0) {
        o->fd = activation_fd();
        if (o->fd == -E2BIG) {
            fputs(
                "uffdmm-manager: the service manager passes several sockets: give one\n",
                stderr);
            return OPTIONS_EXIT_USAGE;
        }
    }
    if ((o->socket_path != NULL) == (o->fd >= 0)) {
        fprintf(stderr,
                "uffdmm-manager: exactly one of --socket-path and --fd is needed, or a "
                "socket from a service manager\n");
        return OPTIONS_EXIT_USAGE;
    }
    if (!tier_options_check(o->tiers, o->nr_tiers) ||
        !vm_options_check(o->vms, o->nr_vms, o->tiers, o->nr_tiers) ||
        !check_on_lost(o)) {
        return OPTIONS_EXIT_USAGE;
    }
    return OPTIONS_RUN;
}
