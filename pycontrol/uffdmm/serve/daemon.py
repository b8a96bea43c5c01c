# SPDX-License-Identifier: GPL-2.0-or-later
"""The loop of ``uffdmm serve``: list the VMs, sample them, ask the policy, apply what it says.

Theory of operation.  Everything that matters is kept elsewhere: limits and settings in the workers,
configuration in the file.  So the daemon may end at any time, and one that starts adopts what runs.
A worker that vanished in the middle of a change costs that change: the next list has a new pid, or
the VM no more.  Blocking calls run in a thread, one tick after the other, so that signals end the
daemon at once.
"""

import asyncio
import contextlib
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..client import Manager, VmEntry
from ..errors import ManagerError, UffdmmError
from ..policies import Decision, HostView, Policy, PolicyError, VmView
from .apply import next_limits
from .bounds import Bounds, bounds_of, settle
from .contain import Leash
from .host import HostMemory, overhead, read_memory
from .log import Level, Log
from .vm import Sample, VmLink

if TYPE_CHECKING:
    from ..migration.destination import Receiver

# Settings as a worker has them that nobody has spoken to.
_INITIAL = {"min_bytes": 0, "max_bytes": 0, "shares": 100, "priority": 50, "opt_out": 0}


@dataclass(frozen=True, slots=True)
class Options:
    """How the control plane works."""

    policy: str = "shares"
    budget: int = 0  # bytes, 0: nine tenths of the host's memory
    interval: float = 1.0  # seconds
    rate: int = 128 << 20  # bytes a second by which a limit falls
    stall_budget: float = 0.002
    deadline: float = 0.5  # seconds that the policy may take
    # By VM: what a worker is told that nobody has told anything.
    settings: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    pool_inside_limit: bool = False


class Daemon:
    """The control plane of one manager."""

    def __init__(self, manager: Manager, policy: Policy, options: Options, log: Log) -> None:
        self._manager = manager
        self._options = options
        self._log = log
        self._leash = Leash(options.policy, policy, options.deadline)
        self._links: dict[str, VmLink] = {}
        self._bounds: dict[str, Bounds] = {}
        # Limits in force as they were last seen or set, of VMs that cannot be asked just now.
        self._limits: dict[str, int] = {}
        self._last: float | None = None
        self._stop = asyncio.Event()

    async def run(self, receiver: "Receiver | None" = None) -> None:
        """Serve until SIGTERM or SIGINT.

        :param receiver: takes in VMs of other hosts meanwhile
        :raise UffdmmError: it cannot listen
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        self._log.line(
            *(Level.NOTICE, "started", "control plane started"),
            policy=self._options.policy,
            budget=self._options.budget,
            interval=self._options.interval,
        )
        if receiver is not None:
            await receiver.start()
        while not self._stop.is_set():
            began = time.monotonic()
            await asyncio.to_thread(self.tick)
            left = self._options.interval - (time.monotonic() - began)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), max(0.01, left))
        if receiver is not None:
            await receiver.close()
        self._log.line(Level.NOTICE, "stopped", "control plane stopped: limits stay as they are")
        self.close()

    def close(self) -> None:
        """Give back all connections."""
        for link in self._links.values():
            link.close()
        self._links.clear()

    # ---- one tick

    def tick(self) -> None:
        """One round; what goes wrong is told in the log and tried again in the next."""
        try:
            entries = self._manager.list_vms()
        except UffdmmError as error:
            self._log.once(Level.ERROR, "no-manager", error.message)
            self.close()
            return
        self._adopt(entries)
        samples = self._sample()
        if not samples:
            return
        now = time.monotonic()
        interval = self._options.interval if self._last is None else now - self._last
        self._last = now
        host = self._view(entries, samples, min(interval, 10 * self._options.interval))
        if not host.vms:
            return
        try:
            decision = self._leash.ask(host)
        except PolicyError as error:
            self._log.once(
                *(Level.ERROR, "policy-failed", f"{error.message}; limits stay as they are"),
                policy=self._options.policy,
            )
            # Limits that are already on their way do not go on either.
            return
        self._apply(host, decision)

    def _adopt(self, entries: list[VmEntry]) -> None:
        listed = {entry.vm_name: entry for entry in entries}
        for name, link in list(self._links.items()):
            if listed.get(name) != link.entry:
                self._drop(name, "gone" if name not in listed else "worker-changed")
        for name, entry in listed.items():
            if name in self._links or not entry.worker_pid:
                continue
            try:
                link = VmLink(self._manager, entry)
            except UffdmmError as error:
                self._log.once(Level.WARNING, "not-adopted", error.message, vm=name)
                continue
            self._links[name] = link
            self._log.line(
                Level.INFO, "adopted", f"VM '{name}' adopted", vm=name, worker=entry.worker_pid
            )
            self._configure(name, link)

    def _drop(self, name: str, event: str) -> None:
        self._links.pop(name).close()
        if event == "gone":
            self._bounds.pop(name, None)
        self._log.line(Level.INFO, event, f"VM '{name}': connection ended", vm=name)

    def _configure(self, name: str, link: VmLink) -> None:
        """What the file says, where nobody has said anything else."""
        stats = link.vm.statistics()
        wanted = {
            key: value
            for key, value in self._options.settings.get(name, {}).items()
            if getattr(stats, key) == _INITIAL[key] and value != _INITIAL[key]
        }
        if wanted:
            self._set(name, link, wanted)

    def _sample(self) -> dict[str, Sample]:
        samples = {}
        for name, link in list(self._links.items()):
            if not link.alive:
                # Its page would show the past for ever; the next list says what became of it.
                self._drop(name, "worker-lost")
                continue
            try:
                samples[name] = link.sample()
            except UffdmmError as error:
                self._log.once(Level.WARNING, "no-sample", error.message, vm=name)
                self._drop(name, "worker-lost")
        return samples

    def _view(
        self, entries: list[VmEntry], samples: dict[str, Sample], interval: float
    ) -> HostView:
        memory = read_memory()
        budget = self._left(memory, samples)
        taking_part = {name: s for name, s in samples.items() if not s.stats.opt_out}
        # One whose worker is being replaced, or too slow to answer, still has its memory: not its
        # maximum, which would be taken off the others at once, but what its limit leaves it.
        away = {entry.vm_name for entry in entries} - set(samples)
        seen = {name: s.stats.limit_bytes or s.stats.ram_bytes for name, s in taking_part.items()}
        self._limits = {name: self._limits[name] for name in away & set(self._limits)} | seen
        budget -= sum(self._limits[name] for name in away & set(self._limits))
        wanted = {name: bounds_of(sample.stats) for name, sample in taking_part.items()}
        bounds, refused = settle(budget, wanted, self._bounds)
        for name in refused:
            self._refuse(name, wanted[name], bounds[name], budget)
        self._bounds = {name: self._bounds[name] for name in away if name in self._bounds} | bounds
        vms = {
            name: _vm_view(name, s, bounds[name], self._links[name])
            for name, s in taking_part.items()
        }
        over = sum(vm.limit_bytes for vm in vms.values()) > budget
        return HostView(max(0, budget), interval, memory.pressure or over, vms)

    def _left(self, memory: HostMemory, samples: dict[str, Sample]) -> int:
        """The budget without what the limits of VMs that take part do not hold."""
        budget = self._options.budget or memory.total_bytes // 10 * 9
        for sample in samples.values():
            stats = sample.stats
            budget -= overhead(stats, pool_inside_limit=self._options.pool_inside_limit)
            if stats.opt_out:
                budget -= stats.limit_bytes or stats.ram_bytes
        return budget

    def _refuse(self, name: str, wish: Bounds, given: Bounds, budget: int) -> None:
        self._log.once(
            *(Level.ERROR, "bounds-refused"),
            f"VM '{name}': a minimum of {wish.least} bytes does not fit: all minima together"
            f" would exceed the {budget} bytes of the budget; {given.least} bytes are in force",
            vm=name,
        )
        if name in self._bounds:
            # Whoever asks the worker is to see what is in force.
            self._set(name, self._links[name], {"min_bytes": given.least})

    # ---- what changes

    def _apply(self, host: HostView, decision: Decision) -> None:
        limits = next_limits(
            host,
            decision.limits,
            rate=self._options.rate,
            stall_budget=self._options.stall_budget,
        )
        # What is given back goes first, so that the sum never exceeds the budget.
        for name in sorted(limits, key=lambda name: limits[name] - host.vms[name].limit_bytes):
            vm, link = host.vms[name], self._links[name]
            more = limits[name] - vm.limit_bytes
            if not self._set(name, link, {"limit_bytes": limits[name]}):
                if more < 0:
                    return
                continue
            if more > 0 and vm.stored_bytes:
                self._move(name, link, min(more, vm.stored_bytes))
        for name, size in decision.prefetch.items():
            if size and name in self._links:
                self._move(name, self._links[name], size)
        for name, bounds in decision.tier_bytes.items():
            if bounds and name in self._links:
                self._set(name, self._links[name], {}, bounds)

    def _set(
        self,
        name: str,
        link: VmLink,
        values: Mapping[str, int],
        tier_bytes: Mapping[str, int] | None = None,
    ) -> bool:
        try:
            link.vm.set_policy(tier_bytes=tier_bytes, **values)  # type: ignore[arg-type]
        except UffdmmError as error:
            self._log.once(
                *(Level.ERROR, "refused", f"VM '{name}': {error.message}; it stays as it was"),
                vm=name,
                **values,
            )
            if not isinstance(error, ManagerError) and name in self._links:
                self._drop(name, "worker-lost")
            return False
        if "limit_bytes" in values:
            self._limits[name] = values["limit_bytes"]
        self._log.line(Level.INFO, "set", f"VM '{name}' changed", vm=name, **values)
        return True

    def _move(self, name: str, link: VmLink, size: int) -> None:
        try:
            link.vm.prefetch(size)
        except UffdmmError as error:
            self._log.once(Level.WARNING, "no-prefetch", error.message, vm=name)
            if not isinstance(error, ManagerError) and name in self._links:
                self._drop(name, "worker-lost")


def _vm_view(name: str, sample: Sample, bounds: Bounds, link: VmLink) -> VmView:
    stats = sample.stats
    return VmView(
        name=name,
        ram_bytes=stats.ram_bytes,
        limit_bytes=min(stats.limit_bytes or stats.ram_bytes, stats.ram_bytes),
        resident_bytes=stats.resident_bytes,
        stored_bytes=stats.stored_bytes,
        min_bytes=bounds.least,
        max_bytes=bounds.most,
        shares=max(1, stats.shares),
        priority=stats.priority,
        stall_share=sample.stall_share,
        refault_rate=sample.refault_rate,
        ages=sample.ages,
        fault_counts=sample.fault_counts,
        tables=tuple(region.table for region in link.regions),
    )
