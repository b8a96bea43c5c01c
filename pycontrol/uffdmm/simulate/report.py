# SPDX-License-Identifier: GPL-2.0-or-later
"""What came of a simulation, in numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from .guest import GuestModel, Tick

if TYPE_CHECKING:
    from .host import Setup


@dataclass(slots=True)
class VmSeries:
    """One VM, one number an interval; zeros once its trace has ended."""

    limit_bytes: list[int]
    resident_bytes: list[int]
    stored_bytes: list[int]
    faults: list[int]
    stall_share: list[float]

    def add(self, guest: GuestModel, tick: Tick | None) -> None:
        """One interval more."""
        self.limit_bytes.append(guest.limit_bytes if tick else 0)
        self.resident_bytes.append(guest.resident_bytes if tick else 0)
        self.stored_bytes.append(guest.stored_bytes if tick else 0)
        self.faults.append(tick.faults if tick else 0)
        self.stall_share.append(tick.stall_share if tick else 0.0)


@dataclass(slots=True)
class Series:
    """All VMs over time."""

    times: list[float]
    vms: dict[str, VmSeries]


class VmReport(BaseModel):
    """One VM of a simulation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vm_name: str = Field(description="name of the VM")
    ram_bytes: int = Field(description="its memory")
    limit_mean_bytes: int = Field(description="mean of its limit")
    limit_min_bytes: int = Field(description="least of its limit")
    limit_last_bytes: int = Field(description="its limit at the end")
    resident_mean_bytes: int = Field(description="mean of what was in RAM")
    reclaimed_share: float = Field(
        description="of what it had ever used, the mean share that was in a store"
    )
    faults: int = Field(description="pages that came back from a store")
    stall_mean: float = Field(description="mean share of vCPU time lost to that")
    stall_max: float = Field(description="the share in its worst interval")
    stalled_seconds: float = Field(description="time with a share above the stall budget")
    limit_bytes: list[int] = Field(description="its limit, by interval")
    resident_bytes: list[int] = Field(description="what was in RAM, by interval")
    stall_share: list[float] = Field(description="share of vCPU time lost, by interval")


class SimulationReport(BaseModel):
    """The JSON document of ``uffdmm simulate``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: str = Field(description="name of the policy")
    budget_bytes: int = Field(description="budget for the limits of all VMs")
    stall_budget: float = Field(description="share of vCPU time that a guest may lose")
    fault_seconds: float = Field(description="what a page's way back was taken to cost")
    seconds: float = Field(description="time that was simulated")
    settled_seconds: float | None = Field(
        description="when the limits were within the budget for the first time, or null"
    )
    over_budget_seconds: float = Field(description="time after that in which they were not")
    limit_max_bytes: int = Field(description="largest sum of limits after that")
    policy_failures: int = Field(description="answers of the policy that could not be used")
    first_failure: str | None = Field(description="why the first of them could not, or null")
    times: list[float] = Field(description="ends of the intervals, in seconds")
    vms: list[VmReport] = Field(description="in the order of the traces")


def make_report(
    setup: "Setup",
    guests: Mapping[str, GuestModel],
    series: Series,
    failures: Sequence[str],
) -> SimulationReport:
    """Everything added up."""
    sums = np.sum([vm.limit_bytes for vm in series.vms.values()], axis=0)
    within = np.flatnonzero(sums <= setup.budget)
    settled = int(within[0]) if len(within) else len(sums)
    after = sums[settled:]
    return SimulationReport(
        policy=setup.policy,
        budget_bytes=setup.budget,
        stall_budget=setup.stall_budget,
        fault_seconds=setup.fault_cost,
        seconds=series.times[-1],
        settled_seconds=series.times[settled] if len(within) else None,
        over_budget_seconds=float((after > setup.budget).sum()) * setup.interval,
        limit_max_bytes=int(after.max()) if len(after) else 0,
        policy_failures=len(failures),
        first_failure=failures[0] if failures else None,
        times=series.times,
        vms=[_vm_report(setup, guests[name], vm) for name, vm in series.vms.items()],
    )


def _vm_report(setup: "Setup", guest: GuestModel, vm: VmSeries) -> VmReport:
    # A VM whose trace is the shorter one is judged while it was there.
    there = np.flatnonzero(vm.limit_bytes)
    limits, resident = np.take(vm.limit_bytes, there), np.take(vm.resident_bytes, there)
    stall = np.take(vm.stall_share, there)
    stored = np.take(vm.stored_bytes, there)
    return VmReport(
        vm_name=guest.name,
        ram_bytes=guest.ram_bytes,
        limit_mean_bytes=int(limits.mean()),
        limit_min_bytes=int(limits.min()),
        limit_last_bytes=int(limits[-1]),
        resident_mean_bytes=int(resident.mean()),
        reclaimed_share=float(np.mean(stored / np.maximum(1, resident + stored))),
        faults=sum(vm.faults),
        stall_mean=float(stall.mean()),
        stall_max=float(stall.max()),
        stalled_seconds=float((stall > setup.stall_budget).sum()) * setup.interval,
        limit_bytes=vm.limit_bytes,
        resident_bytes=vm.resident_bytes,
        stall_share=[round(share, 6) for share in vm.stall_share],
    )
