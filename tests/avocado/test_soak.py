# SPDX-License-Identifier: GPL-2.0-or-later
"""One minute of ``scripts/soak`` with a seed of its own, which the log names."""

import json
import random
from pathlib import Path

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
        file = self.folder / "soak.json"
        status = soak.main(["--minutes", "1", "--seed", str(seed), "--json", str(file)])
        summary = json.loads(Path(file).read_text())
        self.log.info("%s", summary)
        self.assertEqual(status, 0, f"scripts/soak --minutes 1 --seed {seed}: {summary}")
        for key in ("kills", "evictions", "faults", "store_errors", "bytes_verified"):
            self.assertGreater(summary[key], 0, key)
        for key in ("wrong_bytes", "hung", "lost_pages"):
            self.assertEqual(summary[key], 0, key)
