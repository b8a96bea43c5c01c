# SPDX-License-Identifier: GPL-2.0-or-later
"""Three guests on one budget: what they do, minute by minute the same whatever their memory is.

Theory of operation.  All three are booted and filled one after the other, and then left alone.
From then on, with phases of equal length:

=========  ==============  ==============
guest      first phase     second phase
=========  ==============  ==============
``busy``   works           works
``idle``   nothing         nothing
``turns``  nothing         works
=========  ==============  ==============

A guest that works sends its rate twice a second; from the records of ``turns`` follows how long
the change took to be felt by it (:func:`adaptation`).  At the end every byte of all three is
compared, one guest after the other.
"""

import itertools
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from . import HarnessError
from .guest import Guest
from .machine import MIB
from .port import Record, RunResult

BUSY, IDLE, TURNS = "busy", "idle", "turns"
NAMES = (BUSY, IDLE, TURNS)
REPORT_MS = 500
# A guest whose memory is away waits; it has not failed until this is over.
_PATIENCE = 900.0
# The level of a phase is that of its last half, and reached at this share of it.
REACHED = 0.8
LEVEL_FROM = 0.5


@dataclass(frozen=True, slots=True)
class Work:
    """What a guest that works does.

    :param span: per cent of the filled pages
    """

    pattern: str
    span: int


@dataclass(frozen=True, slots=True)
class Rate:
    """Steps a second during the interval that ended at ``at`` (seconds since the change)."""

    at: float
    steps_per_s: float


@dataclass(slots=True)
class Outcome:
    """What three guests achieved."""

    steps: dict[str, int] = field(default_factory=dict)
    steps_by_phase: dict[str, list[int]] = field(default_factory=dict)
    gap_max_ms: dict[str, float] = field(default_factory=dict)
    rates: dict[str, list[Rate]] = field(default_factory=dict)
    verified: dict[str, bool] = field(default_factory=dict)
    changed_at: float = 0  # time.monotonic() of the change

    @property
    def total(self) -> int:
        """Steps of all guests together."""
        return sum(self.steps.values())


class _Worker(threading.Thread):
    """One guest at work; :attr:`result` is there when it has been joined."""

    def __init__(self, guest: Guest, work: Work, seconds: float, seed: int) -> None:
        super().__init__(name=f"works in {guest.pid}", daemon=True)
        self._guest, self._work, self._seconds, self._seed = guest, work, seconds, seed
        self.records: list[tuple[float, Record]] = []
        self.result: RunResult | None = None
        self.error: HarnessError | None = None

    def run(self) -> None:
        try:
            self.result = self._guest.port.run(
                self._work.pattern,
                self._seconds,
                seed=self._seed,
                report_ms=REPORT_MS,
                span=self._work.span,
                timeout=self._seconds + _PATIENCE,
                progress=lambda record: self.records.append((time.monotonic(), record)),
            )
        except HarnessError as error:
            self.error = error

    def finished(self) -> RunResult:
        """Wait for its end.

        :raise HarnessError: the guest met wrong memory, or did not answer
        """
        self.join()
        if self.error is not None:
            raise self.error
        assert self.result is not None
        return self.result


class Trio:
    """The three guests, filled, in the order of :data:`NAMES`.

    :param works: what ``busy`` and ``turns`` do when they work
    :param seconds: of a phase
    :param tell: called with what happens
    """

    def __init__(
        self,
        guests: Sequence[Guest],
        works: dict[str, Work],
        seconds: float,
        tell: Callable[[str], None],
    ) -> None:
        self._guests = dict(zip(NAMES, guests, strict=True))
        self._works = works
        self._seconds = seconds
        self._tell = tell

    def run(self, seed: int, changed: Callable[[], None] = lambda: None) -> Outcome:
        """Both phases.

        :param changed: called at the change
        :raise HarnessError: a guest failed
        """
        outcome = Outcome()
        self._tell(f"first phase: '{BUSY}' works")
        busy = self._start(BUSY, 2 * self._seconds, seed)
        # The guest may be late: the phases are the host's.
        time.sleep(self._seconds)
        self._tell(f"second phase: '{BUSY}' and '{TURNS}' work")
        changed()
        outcome.changed_at = time.monotonic()
        turns = self._start(TURNS, self._seconds, seed + 1)
        for name, worker in ((BUSY, busy), (TURNS, turns)):
            result = worker.finished()
            outcome.steps[name] = result.steps
            outcome.gap_max_ms[name] = result.gap_max_ms
            outcome.rates[name] = [
                Rate(round(at - outcome.changed_at, 3), float(record["steps_per_s"]))
                for at, record in worker.records
            ]
        outcome.steps[IDLE] = 0
        first = sum(int(record["steps"]) for at, record in busy.records if at <= outcome.changed_at)
        outcome.steps_by_phase = {
            BUSY: [first, outcome.steps[BUSY] - first],
            TURNS: [0, outcome.steps[TURNS]],
        }
        return outcome

    def _start(self, name: str, seconds: float, seed: int) -> _Worker:
        worker = _Worker(self._guests[name], self._works[name], seconds, seed)
        worker.start()
        return worker

    def verify(self, outcome: Outcome) -> None:
        """Have each guest compare every byte of its memory.

        :raise HarnessError: a byte is wrong
        """
        for name, guest in self._guests.items():
            self._tell(f"verifying every byte of '{name}'")
            result = guest.port.verify(timeout=_PATIENCE)
            outcome.verified[name] = result.verified
            if not result.verified:
                raise HarnessError(f"wrong memory in guest '{name}': {result.named}")


def fill(guest: Guest, mib: int, seed: int) -> None:
    """Fill a guest and wait until that is done."""
    guest.port.fill(mib * MIB, seed=seed, timeout=_PATIENCE)


def adaptation(rates: Sequence[Rate], seconds: float) -> float | None:
    """Seconds from the change until the guest first ran at the level of its phase.

    The level is the median of the rates in the last half of the phase; it is reached at the end of
    the first second, two records, that averages four fifths of that.  None: too few records.
    """
    settled = [rate.steps_per_s for rate in rates if rate.at > LEVEL_FROM * seconds]
    if not settled:
        return None
    goal = REACHED * statistics.median(settled)
    for before, rate in itertools.pairwise(rates):
        if (before.steps_per_s + rate.steps_per_s) / 2 >= goal:
            return rate.at
    return None
