# SPDX-License-Identifier: GPL-2.0-or-later
"""Several guests under one policy, by the rules of ``uffdmm serve``.

The policy is the object that ``uffdmm serve`` would run; bounds, the check of its answer, the rate
at which limits fall and the room for those that rise are the daemon's own functions.  What is not
modelled: memory beside the limits (pools, tables, workers), pressure from the rest of the host,
bounds of tiers, and the time that the policy takes.  A policy that raises or answers nonsense
leaves the limits as they are, as there, and is counted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..policies import Decision, HostView, Policy, PolicyError, VmView
from ..serve.apply import next_limits
from ..serve.bounds import LEAST, Bounds, settle
from ..serve.contain import checked
from ..trace import Trace, TraceError
from .guest import GuestModel, Tick
from .report import Series, SimulationReport, VmSeries, make_report


@dataclass(frozen=True, slots=True)
class Setup:
    """What is simulated."""

    policy: str  # as messages call it
    budget: int  # bytes, for the limits of all VMs
    interval: float = 1.0  # seconds
    rate: int = 128 << 20  # bytes a second by which a limit falls
    stall_budget: float = 0.002
    fault_cost: float = 60e-6  # seconds


class Simulation:
    """One run.

    :raise TraceError: two traces of one name, or a budget that is less than all minima
    """

    def __init__(self, setup: Setup, policy: Policy, traces: Sequence[Trace]) -> None:
        names = [trace.name for trace in traces]
        if not traces:
            raise TraceError("there is no trace to simulate")
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise TraceError(
                f"two traces are of a VM '{min(twice)}'",
                "each needs a name of its own: NAME=FILE, or name=NAME in a made-up one",
            )
        self._setup = setup
        self._policy = policy
        self._guests = {
            trace.name: GuestModel(trace.name, trace, setup.fault_cost) for trace in traces
        }
        self._wanted = {name: _bounds(guest.trace) for name, guest in self._guests.items()}
        least = sum(bounds.least for bounds in self._wanted.values())
        if least > setup.budget:
            raise TraceError(
                f"all minima together are {least} bytes, the budget is {setup.budget}",
                "name a larger budget",
            )
        self._failures: list[str] = []

    def run(self) -> SimulationReport:
        """From the beginning of all traces to the end of the longest."""
        step = self._setup.interval
        longest = max(guest.trace.seconds for guest in self._guests.values())
        series = Series(
            times=[],
            vms={name: VmSeries([], [], [], [], []) for name in self._guests},
        )
        number = 1
        while number * step <= longest + 1e-9:
            now = number * step
            alive = {name: g for name, g in self._guests.items() if not g.ended(now)}
            ticks = {name: guest.advance(now, step) for name, guest in alive.items()}
            series.times.append(now)
            for name, guest in self._guests.items():
                series.vms[name].add(guest, ticks.get(name))
            self._decide(alive, ticks)
            number += 1
        if not series.times:
            raise TraceError(
                f"the longest trace has {longest:g} s, the interval is {step:g} s",
                "name a shorter interval",
            )
        return make_report(self._setup, self._guests, series, self._failures)

    def _decide(self, guests: Mapping[str, GuestModel], ticks: Mapping[str, Tick]) -> None:
        wanted = {name: self._wanted[name] for name in guests}
        bounds, _ = settle(self._setup.budget, wanted, wanted)
        over = sum(guest.limit_bytes for guest in guests.values()) > self._setup.budget
        host = HostView(
            self._setup.budget,
            self._setup.interval,
            over,
            {name: _view(guest, ticks[name], bounds[name]) for name, guest in guests.items()},
        )
        try:
            decision = checked(self._setup.policy, host, self._policy.decide(host))
        except PolicyError as error:
            self._failures.append(error.message)
            return
        except Exception as error:  # noqa: BLE001  (somebody else's code, as in serve.contain)
            self._failures.append(f"policy '{self._setup.policy}' raised {error!r}")
            return
        self._apply(host, decision)

    def _apply(self, host: HostView, decision: Decision) -> None:
        limits = next_limits(
            host,
            decision.limits,
            rate=self._setup.rate,
            stall_budget=self._setup.stall_budget,
        )
        for name, limit in limits.items():
            guest = self._guests[name]
            more = limit - guest.limit_bytes
            guest.set_limit(limit)
            if more > 0:
                guest.prefetch(more)
        for name, size in decision.prefetch.items():
            self._guests[name].prefetch(size)


def _bounds(trace: Trace) -> Bounds:
    """Bounds of the VM as the daemon takes them from its worker."""
    ram, settings = trace.ram_bytes, trace.settings
    least = min(ram, max(settings.min_bytes, LEAST))
    return Bounds(least, max(least, min(ram, settings.max_bytes or ram)))


def _view(guest: GuestModel, tick: Tick, bounds: Bounds) -> VmView:
    settings = guest.trace.settings
    return VmView(
        name=guest.name,
        ram_bytes=guest.ram_bytes,
        limit_bytes=guest.limit_bytes,
        resident_bytes=guest.resident_bytes,
        stored_bytes=guest.stored_bytes,
        min_bytes=bounds.least,
        max_bytes=bounds.most,
        shares=settings.shares,
        priority=settings.priority,
        stall_share=tick.stall_share,
        refault_rate=tick.refault_rate,
        ages=tick.ages,
        fault_counts=tick.fault_counts,
        tables=(guest.table,),
    )
