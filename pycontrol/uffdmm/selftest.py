# SPDX-License-Identifier: GPL-2.0-or-later
"""The eviction race on this host's kernel, run by the C library.

Threads of a child process hammer counters while their pages are evicted.  With write protection no
update may get lost; without it some must, or the test was unable to see a loss on this host.
"""

import errno
from collections.abc import Callable
from dataclasses import dataclass

from ._native import ffi, lib
from .errors import SelfTestError

_TEXT_SIZE = 256


@dataclass(frozen=True, slots=True)
class RaceResult:
    """Both halves of the test: the protected run and its control."""

    evictions: int
    lost: int
    control_evictions: int
    control_lost: int


def run_race(
    seconds: int, *, protect: bool, on_second: Callable[[], None] = lambda: None
) -> tuple[int, int]:
    """Run one half for about ``seconds``; return pages evicted and updates lost.

    It runs in slices of a second, so that an interrupt does not wait for the end.

    :param on_second: called after each slice
    :raise SelfTestError: this host does not let it run, with the reason
    """
    evictions = lost = 0
    for _ in range(seconds):
        result = ffi.new("struct uffdmm_race_result *")
        text = ffi.new(f"char[{_TEXT_SIZE}]")
        status = lib.uffdmm_selftest_race(1, int(protect), result, text, _TEXT_SIZE)
        if status < 0:
            reason = ffi.string(text).decode(errors="replace")
            name = errno.errorcode.get(-status, str(-status))
            raise SelfTestError(f"the self-test could not run: {reason or name}")
        evictions += result.evictions
        lost += result.lost
        on_second()
    return evictions, lost
