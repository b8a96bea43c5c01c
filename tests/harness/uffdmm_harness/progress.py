# SPDX-License-Identifier: GPL-2.0-or-later
"""Progress of a long program of known steps, one line a step, with the time that is left."""

import sys
import time


class Progress:
    """Counts steps of about equal length.

    :param program: what each line begins with
    :param total: number of steps
    """

    def __init__(self, program: str, total: int) -> None:
        self._program = program
        self._total = total
        self._done = 0
        self._started = time.monotonic()

    def step(self, text: str) -> None:
        """The next step begins."""
        left = ""
        if self._done:
            each = (time.monotonic() - self._started) / self._done
            minutes, seconds = divmod(round(each * (self._total - self._done)), 60)
            left = f", about {minutes} min {seconds:02d} s left"
        self._done += 1
        print(
            f"{self._program}: [{self._done}/{self._total}] {text}{left}",
            file=sys.stderr,
            flush=True,
        )
