# SPDX-License-Identifier: GPL-2.0-or-later
"""SIGTERM and SIGHUP as exceptions, so that what was started is ended on the way out."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


def _raise(number: int, frame: FrameType | None) -> None:
    del frame
    raise KeyboardInterrupt(signal.Signals(number).name)


@contextlib.contextmanager
def as_exceptions() -> Iterator[None]:
    """Inside, the signals that end a program raise KeyboardInterrupt in the main thread.

    Another thread, in which tests may run, can set no handlers and would not be interrupted.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, _raise) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
