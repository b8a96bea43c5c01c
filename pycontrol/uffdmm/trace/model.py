# SPDX-License-Identifier: GPL-2.0-or-later
"""What a trace holds.

The memory of a VM is seen in units: one unit is a page that stands for ``stride`` pages, so that a
large VM costs no more than a small one.  A row of bits says which units were in use in the interval
that ends at its time.  Uses inside an interval have no order, and a page used twice in one counts
once: that is all that access tracking can tell.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from ..errors import UffdmmError

PAGE = 4096
# Bounds of what a file may ask this program to hold.
UNITS_MAX = 1 << 20
SAMPLES_MAX = 1 << 17
BITS_MAX = 1 << 33
MARKS_MAX = 64

# Counters and gauges of the worker, one number a sample.
COUNTERS = (
    "resident_bytes",
    "stored_bytes",
    "limit_bytes",
    "faults",
    "faults_store",
    "fault_ns",
    "evicted",
    "readahead_in",
)


class TraceError(UffdmmError):
    """A trace that cannot be used, or cannot be made."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What was set for the VM when the recording began; sizes in bytes."""

    min_bytes: int = 0
    max_bytes: int = 0  # 0: no bound
    shares: int = 100
    priority: int = 50
    vcpus: int = 1


@dataclass(frozen=True, slots=True)
class Trace:
    """Uses of one VM's memory.

    :raise TraceError: the parts do not fit together
    """

    name: str
    ram_bytes: int
    stride: int  # pages that a unit stands for
    times: NDArray[np.float64]  # seconds, of each sample; the first is where it begins
    looked: NDArray[np.bool_]  # by sample: whether accesses were looked at, or arrivals only
    used: NDArray[np.uint8]  # by sample: packed bits of units in use since the sample before
    resident: NDArray[np.uint8]  # packed bits of units in memory at the first sample
    stored: NDArray[np.uint8]  # and of those in a store
    counters: Mapping[str, NDArray[np.int64]]
    settings: Settings = field(default_factory=Settings)
    marks: Mapping[str, int] = field(default_factory=dict)  # names of samples
    source: str = ""  # how it was made

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem:
            raise TraceError(f"trace '{self.name}': {problem}")

    @property
    def nr_units(self) -> int:
        """Units of the memory."""
        return units_of(self.ram_bytes, self.stride)

    @property
    def unit_bytes(self) -> int:
        """Memory that a unit stands for."""
        return self.stride * PAGE

    @property
    def seconds(self) -> float:
        """From the first sample to the last."""
        return float(self.times[-1] - self.times[0])

    def row(self, sample: int) -> NDArray[np.bool_]:
        """Which units were in use in the interval that ends with this sample."""
        return unpack(self.used[sample], self.nr_units)

    def _problem(self) -> str | None:
        """What is wrong with it, or None."""
        problem = shape_problem(self.ram_bytes, self.stride, len(self.times))
        if problem:
            return problem
        nr, width = len(self.times), -(-self.nr_units // 8)
        if self.looked.shape != (nr,) or self.used.shape != (nr, width):
            return f"it has {nr} times, but not as many rows of {self.nr_units} units"
        if self.resident.shape != (width,) or self.stored.shape != (width,):
            return f"what was in memory at first is no row of {self.nr_units} units"
        return self._problem_of_samples() or settings_problem(self.settings, self.ram_bytes)

    def _problem_of_samples(self) -> str | None:
        """What is wrong with times, counters or marks, or None."""
        nr = len(self.times)
        if not np.isfinite(self.times).all() or (np.diff(self.times) <= 0).any():
            return "its times do not grow"
        if set(self.counters) != set(COUNTERS) or any(
            values.shape != (nr,) or (values < 0).any() for values in self.counters.values()
        ):
            return "its counters are not those of this version, one number a sample"
        if len(self.marks) > MARKS_MAX or any(not 0 <= at < nr for at in self.marks.values()):
            return "a mark names a sample that there is not"
        return None


def shape_problem(ram_bytes: int, stride: int, samples: int) -> str | None:
    """Why a trace of this shape is refused, or None."""
    if not (0 < ram_bytes <= 1 << 50 and ram_bytes % PAGE == 0 and 0 < stride <= 1 << 30):
        return f"{ram_bytes} bytes of memory at a stride of {stride} pages cannot be"
    units = units_of(ram_bytes, stride)
    if units > UNITS_MAX or not 2 <= samples <= SAMPLES_MAX or units * samples > BITS_MAX:
        return (
            f"{samples} samples of {units} units: 2 to {SAMPLES_MAX} of at most {UNITS_MAX}"
            f" are allowed, {BITS_MAX} bits together"
        )
    return None


def settings_problem(settings: Settings, ram_bytes: int) -> str | None:
    """Why these settings are refused, or None."""
    if any(getattr(settings, item.name) < 0 for item in fields(settings)):
        return "a setting is negative"
    if settings.shares < 1 or not 1 <= settings.vcpus <= 1 << 16 or settings.priority > 100:
        return "shares, priority or number of vCPUs cannot be"
    most = settings.max_bytes or ram_bytes
    return None if settings.min_bytes <= min(most, ram_bytes) else "its minimum exceeds its maximum"


def units_of(ram_bytes: int, stride: int) -> int:
    """Units of so much memory; the last one may stand for less."""
    return -(-ram_bytes // (stride * PAGE))


def stride_for(ram_bytes: int, units: int) -> int:
    """The least stride, a power of two, at which there are at most so many units."""
    stride = 1
    while units_of(ram_bytes, stride) > units:
        stride *= 2
    return stride


def pack(bits: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """A row of bits, eight a byte."""
    return np.packbits(bits, bitorder="little")


def unpack(row: NDArray[np.uint8], nr: int) -> NDArray[np.bool_]:
    """The bits of a row."""
    return np.unpackbits(row, count=nr, bitorder="little").astype(np.bool_)
