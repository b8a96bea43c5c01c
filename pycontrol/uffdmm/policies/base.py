# SPDX-License-Identifier: GPL-2.0-or-later
"""What a policy sees and what it answers.

Sizes are bytes, rates are per second, shares lie between 0 and 1.  A policy is an object that
lives as long as ``uffdmm serve``: it may keep what it learns about a VM by name.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..pagetable import AGE_MAX, PageTable


@dataclass(frozen=True, slots=True)
class VmView:
    """One VM in one sample."""

    name: str
    ram_bytes: int
    limit_bytes: int  # in force; the RAM where there is none
    resident_bytes: int
    stored_bytes: int
    min_bytes: int
    max_bytes: int  # at most the RAM
    shares: int
    priority: int
    stall_share: float  # vCPU time lost to faults since the last sample
    refault_rate: float  # bytes a second that came back from stores
    # Resident bytes by age (looks since a page was in use); None while nobody looks.
    ages: NDArray[np.float64] | None = None
    # Faults since the last sample by duration, the buckets of uffdmm.stats.bucket_bounds().
    fault_counts: NDArray[np.int64] | None = None
    # States and ages page by page, for those that want more than the histogram.
    tables: tuple[PageTable, ...] = field(default=(), repr=False)

    def active_bytes(self, looks: int = 2) -> float | None:
        """Resident memory in use within the last looks, new pages with it; None: not known."""
        if self.ages is None:
            return None
        return float(self.ages[:looks].sum() + self.ages[AGE_MAX + 1 :].sum())


@dataclass(frozen=True, slots=True)
class HostView:
    """All VMs that take part, in one sample."""

    budget_bytes: int  # for the limits of these VMs: overhead and other VMs are taken off
    interval: float  # seconds since the last sample
    pressure: bool  # the host is short of memory
    vms: Mapping[str, VmView]


@dataclass(frozen=True, slots=True)
class Decision:
    """What shall be; a VM that is not named keeps what it has."""

    limits: Mapping[str, int]
    prefetch: Mapping[str, int] = field(default_factory=dict)  # bytes
    tier_bytes: Mapping[str, Mapping[str, int]] = field(
        default_factory=dict
    )  # by tier, 0: no bound


class Policy(ABC):
    """Turns a sample into limits.

    :param stall_budget: share of vCPU time that a guest may lose to faults
    """

    def __init__(self, stall_budget: float) -> None:
        self.stall_budget = stall_budget

    @abstractmethod
    def decide(self, host: HostView) -> Decision:
        """Limits between each VM's bounds, their sum within the budget.

        It runs in a thread with a deadline.  An exception, a late answer and one outside the
        bounds cost a line in the log; the limits then stay as they were.
        """
