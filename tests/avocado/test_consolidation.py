# SPDX-License-Identifier: GPL-2.0-or-later
"""``scripts/bench consolidation`` with guests so small that it says nothing about speed."""

import json

from uffdmm_test import MIB, UffdmmTest

from uffdmm_harness import consolidation, places
from uffdmm_harness.consolidation_trio import NAMES
from uffdmm_harness.consolidation_ways import Sizes

# QEMU's own memory is in the cgroup as well: 60 to 90 MiB each.
SIZES = Sizes(budget=480 * MIB, ram=192 * MIB, fill=110 * MIB, swap=512 * MIB)


class Consolidation(UffdmmTest):
    """
    :avocado: tags=machine:q35
    """

    timeout = 400

    def test_all_of_it_in_small(self) -> None:
        options = consolidation.Options(
            seconds=4, rounds=1, pins=(), store=places.DISK_FOLDER, sizes=SIZES
        )
        bench = consolidation.Consolidation(options)
        bench.run()
        told = json.loads(json.dumps(consolidation.summary(options, bench.result, None)))
        self.assertIs(told["verified"], True)
        self.assertIs(told["budget_kept"], True)
        for name in ("work_ratio", "reclaimed_share", "stall_share"):
            self.assertIsInstance(told[name], float, name)
        self.assertIn("adaptation_s", told)
        ours = told["runs"][1]
        self.assertEqual([run["way"] for run in told["runs"]], ["swap-file", "uffdmm"])
        self.assertEqual(set(ours["outcome"]["verified"]), set(NAMES))
        self.assertGreater(ours["outcome"]["steps"]["busy"], 0)
        self.assertGreater(ours["outcome"]["steps"]["turns"], 0)
        # The control plane was at work: limits differ from those that guests began with.
        self.assertEqual(set(ours["history"][0]["limit"]), set(NAMES))
        limits = [seen["limit"]["busy"] for seen in ours["history"]]
        self.assertGreater(len(set(limits)), 1)
        self.assertEqual(ours["host_swap_pages"], 0)
