# SPDX-License-Identifier: GPL-2.0-or-later
"""Traces that are made up, each from a seed: what a guest does at its simplest.

=============== =============================================================================
kind            what the guest does
=============== =============================================================================
``hot-cold``    works in a fifth of its memory all the time, and rarely elsewhere
``scan``        the same, and goes through all of its memory once, in the middle
``idle-busy``   does nothing for a while, then works in most of its memory, in turns
``zipf``        uses pages by Zipf's law: few often, most seldom
``sequential``  goes through its memory in order, again and again
=============== =============================================================================

One row stands for a second.  A guest touches all of its memory in the first few, as one does that
has run for a while; a word ``touched`` less than 100 % leaves the rest untouched.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import SizeError
from ..sizes import parse_size
from .model import COUNTERS, PAGE, Settings, Trace, TraceError, pack, stride_for, units_of

PREFIX = "synthetic:"
# Enough for shares of a per cent; a simulation of an hour takes seconds.
UNITS = 1 << 14
_FILL_SECONDS = 3
_HOT = 0.2
_COLD_USES = 1e-4
_TURN = 30  # seconds of idle and of busy
_ZIPF = 1.1
_ZIPF_USES = 0.05  # a second, by units
_PASS_SECONDS = 20


@dataclass(frozen=True, slots=True)
class _Plan:
    """What to make."""

    units: int
    seconds: int
    touched: int  # units that are ever used
    random: np.random.Generator
    hot: float = _HOT


_Row = NDArray[np.bool_]
_Maker = Callable[[_Plan, int], _Row]


def _hot_cold(plan: _Plan, _second: int) -> _Row:
    row = np.zeros(plan.units, np.bool_)
    hot = int(plan.touched * plan.hot)
    row[:hot] = plan.random.random(hot) < 0.9
    row[hot : plan.touched] = plan.random.random(plan.touched - hot) < _COLD_USES
    return row


def _scan(plan: _Plan, second: int) -> _Row:
    row = _hot_cold(plan, second)
    begin = plan.seconds // 2
    if begin <= second < begin + _PASS_SECONDS:
        first = plan.touched * (second - begin) // _PASS_SECONDS
        row[first : plan.touched * (second - begin + 1) // _PASS_SECONDS] = True
    return row


def _idle_busy(plan: _Plan, second: int) -> _Row:
    row = np.zeros(plan.units, np.bool_)
    busy = second // _TURN % 2 == 1
    # An idle system still has a heart that beats.
    share = 0.7 if busy else 0.02
    size = int(plan.touched * share)
    row[:size] = plan.random.random(size) < 0.8
    return row


def _zipf(plan: _Plan, _second: int) -> _Row:
    row = np.zeros(plan.units, np.bool_)
    ranks = np.arange(1, plan.touched + 1, dtype=np.float64)
    weights = ranks**-_ZIPF
    # Of so many uses in a second, the chance that a page gets one at least.
    chance = 1 - np.exp(-_ZIPF_USES * plan.touched * weights / weights.sum())
    scattered = np.random.default_rng(plan.units).permutation(plan.touched)
    row[scattered] = plan.random.random(plan.touched) < chance
    return row


def _sequential(plan: _Plan, second: int) -> _Row:
    row = np.zeros(plan.units, np.bool_)
    step = -(-plan.touched // _PASS_SECONDS)
    first = second * step % plan.touched
    row[first : min(first + step, plan.touched)] = True
    return row


KINDS: dict[str, _Maker] = {
    "hot-cold": _hot_cold,
    "scan": _scan,
    "idle-busy": _idle_busy,
    "zipf": _zipf,
    "sequential": _sequential,
}


def make_synthetic(
    kind: str,
    *,
    name: str | None = None,
    ram_bytes: int = 1 << 30,
    seconds: int = 180,
    seed: int = 1,
    touched: float = 1.0,
    hot: float = _HOT,
    settings: Settings | None = None,
) -> Trace:
    """A made-up trace; the same seed makes the same one.

    :raise TraceError: there is no such kind, or the numbers cannot be
    """
    maker = KINDS.get(kind)
    if maker is None:
        raise TraceError(f"there is no made-up trace '{kind}'", f"use one of {', '.join(KINDS)}")
    if not 1 <= seconds <= 1 << 16 or not 0 < touched <= 1 or not 0 < hot <= 1 or seed < 0:
        raise TraceError(
            f"a made-up trace of {seconds} s, {touched:g} of it touched, {hot:g} hot, seed {seed}"
            " cannot be"
        )
    if not PAGE <= ram_bytes <= 1 << 50:
        raise TraceError(f"a made-up trace of {ram_bytes} bytes cannot be")
    stride = stride_for(ram_bytes, UNITS)
    units = units_of(ram_bytes, stride)
    plan = _Plan(units, seconds, max(1, int(units * touched)), np.random.default_rng(seed), hot)
    rows = [np.zeros(units, np.bool_)]
    for second in range(seconds):
        row = maker(plan, second)
        if second < _FILL_SECONDS:
            first = plan.touched * second // _FILL_SECONDS
            row[first : plan.touched * (second + 1) // _FILL_SECONDS] = True
        rows.append(row)
    nothing = pack(np.zeros(units, np.bool_))
    return Trace(
        name=name or kind,
        ram_bytes=ram_bytes & -PAGE,
        stride=stride,
        times=np.arange(seconds + 1, dtype=np.float64),
        looked=np.array([False] + [True] * seconds),
        used=np.array([pack(row) for row in rows]),
        resident=nothing,
        stored=nothing,
        counters={key: np.zeros(seconds + 1, np.int64) for key in COUNTERS},
        settings=settings or Settings(),
        source=f"{PREFIX}{kind},seed={seed}",
    )


def parse_synthetic(text: str) -> Trace:
    """The trace of ``synthetic:KIND[,KEY=VALUE]...``.

    Keys: ``name``, ``ram``, ``seconds``, ``seed``, ``touched``, ``hot`` and the settings of a VM,
    ``min``, ``max``, ``shares``, ``priority``, ``vcpus``.

    :raise TraceError: it cannot be understood
    """
    kind, *words = text.removeprefix(PREFIX).split(",")
    plain: dict[str, object] = {}
    settings: dict[str, int] = {}
    for word in words:
        key, equals, value = word.partition("=")
        try:
            if not equals or not value:
                raise ValueError("a key and a value are needed")
            if key == "name":
                plain[key] = value
            elif key == "ram":
                plain["ram_bytes"] = parse_size(value)
            elif key in {"min", "max"}:
                settings[f"{key}_bytes"] = parse_size(value)
            elif key in {"seconds", "seed"}:
                plain[key] = int(value)
            elif key in {"touched", "hot"}:
                plain[key] = float(value.removesuffix("%")) / (100 if value.endswith("%") else 1)
            elif key in {"shares", "priority", "vcpus"}:
                settings[key] = int(value)
            else:
                raise ValueError(f"'{key}' is none of its keys")
        except (ValueError, SizeError) as error:
            raise TraceError(
                f"'{text}': '{word}': {error}", "for example synthetic:hot-cold,ram=1G,seed=2"
            ) from None
    return make_synthetic(kind, settings=Settings(**settings), **plain)  # type: ignore[arg-type]
