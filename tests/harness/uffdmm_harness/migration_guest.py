# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that is watched while it moves: its steps by the host's clock, and counters beside them.

The clock of a guest stands while it is moved, so that no gap which the guest measures contains the
move.  A record says how long it took by the guest's clock; what lies between the arrivals of two
records beyond that is how long the guest stood.
"""

import contextlib
import select
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from . import HarnessError
from .port import GuestPort
from .sampler import Sampler

REPORT_MS = 100
_LOOK_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Stretch:
    """What one record told; times are seconds since 1970 on the host."""

    begin: float  # when the record before it came
    end: float
    seconds: float  # by the guest's clock
    steps: int
    gap_ms: float  # longest between two steps, by the guest's clock

    @property
    def stood(self) -> float:
        """Seconds that the guest's clock stood, or that its record was late."""
        return max(0.0, self.end - self.begin - self.seconds)


class StepWatch:
    """Receives the records of a run of steps, on whichever side the guest is.

    :param source: where the run has been started
    """

    def __init__(self, source: GuestPort) -> None:
        self._ports = [source]
        self._moved = False
        self._error: HarnessError | None = None
        self.stretches: list[Stretch] = []
        self._last = time.time()
        self._thread = threading.Thread(target=self._loop, name="steps", daemon=True)
        self._thread.start()

    def expect(self, destination: GuestPort) -> None:
        """The guest goes on there."""
        self._ports.append(destination)

    def finish(self, timeout: float = 60) -> None:
        """End the run and wait for its last record.

        :raise HarnessError: it does not end, or met a wrong word
        """
        with contextlib.suppress(OSError):  # what has ended the guest has ended the watch, too
            self._ports[-1].send("stop")
        self._thread.join(timeout)
        if self._error is not None:
            raise self._error
        if self._thread.is_alive():
            raise HarnessError(f"the guest has not ended its run within {timeout:.0f} s")

    def check(self) -> None:
        """Raise what ended the watch.

        :raise HarnessError: the guest met a wrong word, or has ended
        """
        if self._error is not None:
            raise self._error

    def _loop(self) -> None:
        try:
            while not self._look():
                pass
        except HarnessError as error:
            self._error = error
        except OSError as error:
            self._error = HarnessError(f"the port of the guest was closed: {error.strerror}")

    def _look(self) -> bool:
        """True after the last record."""
        # Of the source nothing comes any more once the guest has spoken over there.
        ports = self._ports[1:] if self._moved else list(self._ports)
        ready, _, _ = select.select(ports, [], [], _LOOK_SECONDS)
        now = time.time()
        for port in ready:
            if port is not self._ports[0] and not self._moved:
                port.continue_from(self._ports[0])
                self._moved = True
            for record in port.arrived():
                if record["event"] == "ran":
                    return True
                if record["event"] != "progress":
                    raise HarnessError(f"the guest says in its run: {record}")
                self.stretches.append(
                    Stretch(
                        self._last,
                        now,
                        float(record["seconds"]),
                        int(record["steps"]),
                        float(record["gap_max_ms"]),
                    )
                )
                self._last = now
        return False


def rate(stretches: list[Stretch], begin: float, end: float) -> float | None:
    """Steps a second of the host's clock in a window; None if nothing is known of it."""
    steps = known = 0.0
    for stretch in stretches:
        common = min(end, stretch.end) - max(begin, stretch.begin)
        if common > 0 and stretch.end > stretch.begin:
            steps += stretch.steps * common / (stretch.end - stretch.begin)
            known += common
    return steps / known if known else None


def longest_stand_ms(stretches: list[Stretch], begin: float, end: float) -> float | None:
    """Longest time that the guest's clock stood, of records that reach into a window."""
    inside = [one for one in stretches if one.end > begin and one.begin < end]
    return max((one.stood * 1000 for one in inside), default=None)


def longest_gap_ms(stretches: list[Stretch], begin: float, end: float) -> float | None:
    """Longest gap between two steps by the guest's clock, of records that reach into a window."""
    inside = [one for one in stretches if one.end > begin and one.begin < end]
    return max((one.gap_ms for one in inside), default=None)


class Growth:
    """A counter, sampled with the time, so that it can be asked later how much it grew."""

    def __init__(self, read: Callable[[], int]) -> None:
        self._read = read
        self._seen: list[tuple[float, int]] = []
        self._sampler = Sampler(self._sample).start()

    def _sample(self) -> int:
        value = self._read()
        self._seen.append((time.time(), value))
        return value

    def stop(self) -> None:
        """End.

        :raise HarnessError: a sample could not be taken
        """
        self._sampler.stop()

    def between(self, begin: float, end: float) -> int:
        """By how much it grew."""
        return self._at(end) - self._at(begin)

    def _at(self, when: float) -> int:
        earlier = [value for at, value in self._seen if at <= when]
        return earlier[-1] if earlier else self._seen[0][1]
