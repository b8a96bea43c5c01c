# SPDX-License-Identifier: GPL-2.0-or-later
"""What one guest of a soak does, in a thread of its own: fill, touch, verify, give back."""

import random
import threading
from collections.abc import Callable

from . import HarnessError
from .guest import Guest
from .machine import MIB
from .port import GuestCorrupt

FILL = 88 * MIB
_PAGE = 4096
PATTERNS = ("random", "sequential", "hot")
# A guest waits while its store is away; one that hangs is found by the clock of the soak.
PATIENCE = 3600.0


class GuestLoop(threading.Thread):
    """Works until finish(), then verifies a last time.

    :param rng: decides what comes next
    """

    def __init__(self, name: str, guest: Guest, rng: random.Random) -> None:
        super().__init__(name=f"guest-{name}", daemon=True)
        self.vm = name
        self._guest = guest
        # Who would kill or stop its manager holds it meanwhile; so does a guest that migrates.
        self.still = threading.Lock()
        self._rng = rng
        self._finish = threading.Event()
        self.doing = "starting"
        self.failure: str | None = None
        self.ended = False
        self.bytes_verified = 0
        self.wrong_bytes = 0
        self.steps = 0
        self.releases = 0

    def finish(self) -> None:
        """Ask it to come to its end."""
        self._finish.set()

    def run(self) -> None:
        try:
            self.begin()
            works, weights = zip(*self.works(), strict=True)
            while not self._finish.is_set():
                (work,) = self._rng.choices(works, weights)
                work()
            self._verify()
            self.ended = True
        except GuestCorrupt as error:
            self.wrong_bytes += _PAGE
            self.failure = str(error)
        except HarnessError as error:
            self.failure = f"while {self.doing}: {error}"

    def begin(self) -> None:
        """What comes first."""
        self._fill()

    def works(self) -> list[tuple[Callable[[], None], int]]:
        """What comes after that, by weight."""
        return [(self._run, 6), (self._verify, 3), (self._refill, 1)]

    def _fill(self) -> None:
        self.doing = "filling its memory"
        self._guest.port.fill(FILL, seed=self._rng.randrange(1, 1 << 31), timeout=PATIENCE)

    def _refill(self) -> None:
        self.doing = "giving its memory back"
        self._guest.port.ask("release", {"released"}, PATIENCE)
        self.releases += 1
        self._fill()

    def _run(self) -> None:
        pattern = self._rng.choice(PATTERNS)
        seconds = self._rng.uniform(0.2, 3)
        self.doing = f"touching its memory ({pattern})"
        result = self._guest.port.run(
            pattern, seconds, seed=self._rng.randrange(1, 1 << 31), timeout=PATIENCE
        )
        self.steps += result.steps

    def _verify(self) -> None:
        self.doing = "verifying its memory"
        result = self._guest.port.verify(timeout=PATIENCE)
        if not result.verified:
            self.wrong_bytes += result.wrong_pages * _PAGE
            raise GuestCorrupt(f"{result.wrong_pages} wrong pages, the first: {result.named}")
        self.bytes_verified += result.pages * _PAGE
