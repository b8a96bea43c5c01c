# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest that benchmarks measure: filled, touched in patterns, verified.

What its memory is made of is the caller's affair: :class:`PatternBench` boots the machine it is
given and measures the same stretches in it, :class:`Probe` says what to look at meanwhile.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from . import HarnessError, accel
from .guest import Guest, pin_to
from .machine import GIB, MIB, MachineConfig
from .progress import Progress
from .sampler import Sampler

RAM = 1 * GIB
LIMIT = 512 * MIB
FILL = 800 * MIB
PATTERNS = ("random", "sequential", "hot")
# Above the limit by more than this at any sample, and a run of uffdmm is worth nothing.
SLACK = 8 * MIB
VM = "bench"
SEED = 7

Counters = dict[str, int]


def _nothing() -> Counters:
    return {}


@dataclass(slots=True)
class Run:
    """One measured stretch of one pattern."""

    memory: str
    repeat: int
    pattern: str
    steps_per_s: float
    gap_max_ms: float
    limit_bytes: int | None
    guest_resident_bytes: int  # the mean of the samples
    guest_resident_max_bytes: int
    verified: bool = False
    counted: Counters = field(default_factory=dict)  # during the stretch
    gauges: Counters = field(default_factory=dict)  # at its end


@dataclass(slots=True)
class Probe:
    """What is looked at while a guest runs.

    :param resident: bytes of guest memory that are in memory, sampled
    :param limit: their limit, for the record
    :param prepare: called before each pattern with its name; returns the limit for it
    :param bounded: whether :attr:`resident` above the limit ends the benchmark
    :param count: counters, of which the growth during the stretch is kept
    :param gauge: values at the end of the stretch
    """

    resident: Callable[[], int]
    limit: int | None = None
    prepare: Callable[[str], int] | None = None
    bounded: bool = False
    count: Callable[[], Counters] = _nothing
    gauge: Callable[[], Counters] = _nothing


class PatternBench:
    """Boots guests and measures patterns in them.

    :param progress: told of each step; a boot has :func:`steps_of_boot` of them
    :param keep: called with each run as soon as it is measured
    """

    def __init__(
        self,
        *,
        patterns: Sequence[str],
        seconds: float,
        pin: int | None,
        progress: Progress,
        keep: Callable[[Run], None],
    ) -> None:
        self._patterns = patterns
        self._seconds = seconds
        self._accel = accel.choose()
        self._wrapper = [] if pin is None else pin_to(pin)
        self._progress = progress
        self._keep = keep

    def config(self, memory_object: str | None = None) -> MachineConfig:
        """The machine; its RAM is the object ``mem0``, or QEMU's own."""
        config = MachineConfig(accel=self._accel, ram=RAM, name=VM)
        if memory_object:
            config.objects = [memory_object]
            config.memory = "mem0"
        return config

    @contextlib.contextmanager
    def boot(
        self, config: MachineConfig, memory: str, repeat: int, enter: Sequence[str] = ()
    ) -> Iterator[Guest]:
        """A guest that has been booted and filled.

        :param enter: words in front of the command, to start it in a cgroup
        """
        drop_caches()
        self._progress.step(f"{memory}, repeat {repeat}: booting and filling {FILL // MIB} MiB")
        with Guest(config, wrapper=[*enter, *self._wrapper]) as guest:
            guest.boot()
            guest.port.fill(FILL, seed=SEED, timeout=600)
            yield guest

    def measure(self, guest: Guest, memory: str, repeat: int, probe: Probe) -> list[Run]:
        """All patterns in a booted and filled guest, and the verification at the end.

        :raise HarnessError: the limit did not hold, or a byte is wrong
        """
        runs = []
        for pattern in self._patterns:
            run = self._stretch(guest, memory, repeat, pattern, probe)
            runs.append(run)
            self._keep(run)
            limit = run.limit_bytes
            if probe.bounded and limit and run.guest_resident_max_bytes > limit + SLACK:
                raise HarnessError(
                    f"{run.guest_resident_max_bytes} bytes were resident at a limit of {limit} "
                    f"({memory}, {pattern})"
                )
        self._progress.step(f"{memory}, repeat {repeat}: verifying every byte")
        verified = guest.port.verify(timeout=900)
        for run in runs:
            run.verified = verified.verified
        if not verified.verified:
            raise HarnessError(f"wrong memory in a run with {memory}: {verified.named}")
        return runs

    def _stretch(self, guest: Guest, memory: str, repeat: int, pattern: str, probe: Probe) -> Run:
        limit = probe.prepare(pattern) if probe.prepare else probe.limit
        self._progress.step(f"{memory}, repeat {repeat}: {pattern}")
        # Not measured: the memory that a new pattern needs comes in.
        guest.port.run(pattern, self._seconds, seed=repeat, timeout=600)
        before = probe.count()
        with Sampler(probe.resident) as samples:
            result = guest.port.run(pattern, self._seconds, seed=repeat + 1000, timeout=600)
        after = probe.count()
        return Run(
            memory=memory,
            repeat=repeat,
            pattern=pattern,
            steps_per_s=result.steps_per_s,
            gap_max_ms=result.gap_max_ms,
            limit_bytes=limit,
            guest_resident_bytes=round(samples.mean),
            guest_resident_max_bytes=samples.maximum,
            counted={name: after[name] - before[name] for name in after},
            gauges=probe.gauge(),
        )


def steps_of_boot(patterns: Sequence[str]) -> int:
    """Steps of :class:`Progress` that one guest takes."""
    return len(patterns) + 2


def drop_caches() -> None:
    """Write everything back and drop the page cache.

    :raise HarnessError: not root
    """
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except PermissionError:
        raise HarnessError("root is needed to drop the page cache before each run") from None
