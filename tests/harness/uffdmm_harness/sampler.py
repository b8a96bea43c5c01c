# SPDX-License-Identifier: GPL-2.0-or-later
"""A value watched from a thread at a steady pace."""

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from . import HarnessError

INTERVAL = 0.05


class Sampler:
    """Calls ``read`` every ``interval`` seconds from start to stop and keeps all values."""

    def __init__(self, read: Callable[[], int], interval: float = INTERVAL) -> None:
        self._read = read
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="sampler", daemon=True)
        self._error: Exception | None = None
        self._values: list[int] = []

    def _loop(self) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            try:
                self._values.append(self._read())
            except Exception as error:  # noqa: BLE001  (told by stop())
                self._error = error
                return
            due = max(due + self._interval, time.monotonic())
            self._stop.wait(due - time.monotonic())

    def start(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """End.

        :raise HarnessError: a sample could not be taken, so the ones kept are not all
        """
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            raise HarnessError(f"sampling ended early: {self._error}") from self._error
        if not self._values:
            raise HarnessError("sampling ended before its first value")

    @property
    def values(self) -> list[int]:
        """All values so far, oldest first."""
        return list(self._values)

    @property
    def maximum(self) -> int:
        """The largest value so far."""
        return max(self._values)

    @property
    def mean(self) -> float:
        """The mean of all values so far."""
        return sum(self._values) / len(self._values)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.stop()
        else:
            self._stop.set()
            self._thread.join()
