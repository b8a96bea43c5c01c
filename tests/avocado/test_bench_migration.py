# SPDX-License-Identifier: GPL-2.0-or-later
"""``scripts/bench migration`` from the first step to its JSON, with a tiny guest."""

import json
import os

from uffdmm_test import UffdmmTest

from uffdmm_harness import migration


class BenchMigration(UffdmmTest):
    """The benchmark itself; what it measures here is worth nothing.

    :avocado: tags=machine:q35
    """

    timeout = 400

    def test_small_round(self) -> None:
        if os.geteuid():
            self.cancel("a swap file and a memory cgroup need root")
        file = self.folder / "migration.json"
        words = ["--small", "--rounds", "1", "--swapped", "50", "--extras", "room", "ordered"]
        status = migration.main([*words, "--json", str(file)])
        outcome = json.loads(file.read_text())
        self.assertEqual((status, outcome["error"]), (0, None))
        self.assertTrue(outcome["verified"])
        self.assertEqual(outcome["source_swap_ins"], 0)
        self.assertGreater(outcome["ratios"]["total_ms_at_50"], 0)
        stock, ours, room, ordered = outcome["cases"]
        self.assertEqual(
            [case["name"] for case in outcome["cases"]], ["stock", "uffdmm", "room", "ordered"]
        )
        for case in outcome["cases"]:
            self.assertGreater(case["total_ms"], case["stopped_ms"])
            self.assertGreater(case["bytes"], 0)
            self.assertGreater(case["swapped_bytes"], case["used_bytes"] // 5)
        for case in (stock, ours, room):
            self.assertGreater(case["guest_slowdown"], 0)
            self.assertGreater(case["downtime_ms"], 0)
        self.assertEqual(stock["location_bytes"], 0)
        for case in (ours, room, ordered):
            self.assertGreater(case["pages_by_location"] * 4096, case["swapped_bytes"] // 2)
            self.assertLess(case["location_bytes_per_page"], 16)
        # Their slots are in order, and their checksums in the volume.
        self.assertLess(ordered["location_bytes_per_page"], 2)
        # The idle guest stood for no time that could be told by its steps.
        self.assertIsNone(ordered["guest_slowdown"])
