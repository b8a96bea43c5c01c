# SPDX-License-Identifier: GPL-2.0-or-later
"""Lines for the journal: ``<level>`` in front, ``key=value`` behind; repeats are held back."""

import json
import re
import sys
import time
from enum import IntEnum
from typing import TextIO

# A line that says the same again is held back for so many seconds.
REPEAT_SECONDS = 60.0
_LINES_KEPT = 1000


class Level(IntEnum):
    """As syslog(3) and sd-daemon(3) number them."""

    ERROR = 3
    WARNING = 4
    NOTICE = 5
    INFO = 6


class Log:
    """Writes to ``stream``, standard error as it is at that moment by default."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._told: dict[str, float] = {}

    def line(self, level: Level, event: str, text: str, /, **values: object) -> None:
        """One line: a word to search for, a sentence, and values."""
        pairs = "".join(f" {key}={_quoted(value)}" for key, value in values.items())
        print(
            f"<{int(level)}>{text} event={event}{pairs}".replace("\n", " "),
            file=self._stream or sys.stderr,
            flush=True,
        )

    def once(self, level: Level, event: str, text: str, /, **values: object) -> None:
        """As :meth:`line`, but not again within a minute."""
        now, key = time.monotonic(), f"{event} {text}"
        if now - self._told.get(key, float("-inf")) < REPEAT_SECONDS:
            return
        if len(self._told) >= _LINES_KEPT:
            self._told.clear()
        self._told[key] = now
        self.line(level, event, text, **values)


def _quoted(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if re.fullmatch(r"[^\s\"=]+", text) else json.dumps(text)
