/* SPDX-License-Identifier: GPL-2.0-or-later */
/* uffdmm-manager: where it begins. */
#include <stdlib.h>

#include "acceptor.h"
#include "options.h"

int main(int argc, char **argv)
{
    static struct options options;

    switch (options_parse(&options, argc, argv)) {
    case OPTIONS_RUN:
        return acceptor_run(&options);
    case OPTIONS_EXIT_OK:
        return EXIT_SUCCESS;
    case OPTIONS_EXIT_USAGE:
    default:
        return 2;
    }
}
