# SPDX-License-Identifier: GPL-2.0-or-later
"""One minute of ``scripts/soak`` with a seed of its own, which the log names."""

import random

from uffdmm_test import UffdmmTest

from uffdmm_harness import soak


class Soak(UffdmmTest):
    """Everything at once, for a minute.

    :avocado: tags=machine:q35
    """

    timeout = 420

    def test_one_minute(self) -> None:
        seed = random.SystemRandom().randrange(1 << 32)
        self.log.info("scripts/soak --minutes 1 --seed %d", seed)
        run = soak.Soak(1, seed, [])
        good = run.run()
        self.log.info("%s", run.summary)
        self.assertTrue(good, f"scripts/soak --minutes 1 --seed {seed}: {run.summary}")
        for key in ("kills", "evictions", "faults", "store_errors", "bytes_verified", "migrations"):
            self.assertGreater(run.summary[key], 0, key)
        for key in ("wrong_bytes", "hung", "lost_pages"):
            self.assertEqual(run.summary[key], 0, key)
