# SPDX-License-Identifier: GPL-2.0-or-later
"""All VMs of a manager, looked at again and again: for ``top``, ``events`` and the exporter.

A look costs one LIST; the statistics of a VM are mapped once and then only read.  A worker that
dies keeps its last page mapped here, so its last numbers can still be shown.  A worker that does
not answer is asked again after a pause, since each attempt may take the whole time-out.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from .client import Manager, VirtualMachine, VmEntry
from .errors import ConnectError, ManagerError, ProtocolError
from .stats import Stats, TierStats

# Seconds without a heartbeat from which a worker counts as silent: it writes many a second.
SILENT = 5.0
# Seconds until a worker that did not answer is asked again.
_ASK_AGAIN = 10.0


@dataclass(frozen=True, slots=True)
class VmView:
    """What was seen of one VM at one moment."""

    entry: VmEntry
    # None when the worker did not answer; the last ones when it has died since.
    stats: Stats | None
    tiers: tuple[TierStats, ...] = ()

    @property
    def name(self) -> str:
        """Name of the VM."""
        return self.entry.vm_name

    @property
    def condition(self) -> str:
        """The state of the worker as it says itself, or why it cannot say any."""
        if not self.entry.worker_pid:
            return "worker-died"
        if self.stats is None:
            return "no-answer"
        if self.stats.heartbeat_age > SILENT:
            return "silent"
        return self.stats.state.value


@dataclass(slots=True)
class _Known:
    """A VM that an earlier look has seen."""

    worker_pid: int
    opened: VirtualMachine | None = None
    last: VmView | None = None
    ask_again: float = field(default=0.0)


class Watcher:
    """Looks at all VMs of a manager.  A context manager; not to be shared between threads.

    :param manager: whose VMs
    :param clock: seconds, for tests
    """

    def __init__(self, manager: Manager, clock: Callable[[], float] = time.monotonic) -> None:
        self.manager = manager
        self._clock = clock
        self._known: dict[str, _Known] = {}

    def look(self) -> list[VmView]:
        """All VMs of this moment, by name.

        :raise ConnectError: the manager cannot be reached
        """
        entries = self.manager.list_vms()
        for name in self._known.keys() - {entry.vm_name for entry in entries}:
            self._forget(name)
        return [self._look_at(entry) for entry in entries]

    def _look_at(self, entry: VmEntry) -> VmView:
        known = self._known.get(entry.vm_name)
        if known is None:
            known = self._known[entry.vm_name] = _Known(entry.worker_pid)
        if entry.worker_pid and known.worker_pid != entry.worker_pid:
            # Another worker has taken over, or another VM has taken the name: other pages.
            self._forget(entry.vm_name)
            known = self._known[entry.vm_name] = _Known(entry.worker_pid)
        if known.opened is None and entry.worker_pid and self._clock() >= known.ask_again:
            self._open(entry.vm_name, known)
        if known.opened is not None:
            known.last = self._read(entry, known.opened)
            return known.last
        return VmView(entry, None)

    def _open(self, vm_name: str, known: _Known) -> None:
        opened = None
        try:
            opened = self.manager.open_vm(vm_name)
            opened.statistics()
        except (ConnectError, ManagerError):
            # It is just ending, or hangs.
            if opened is not None:
                opened.close()
            known.ask_again = self._clock() + _ASK_AGAIN
            return
        known.opened = opened

    @staticmethod
    def _read(entry: VmEntry, opened: VirtualMachine) -> VmView:
        try:
            return VmView(entry, opened.statistics(), tuple(opened.tiers()))
        except ProtocolError:
            # One worker with a state that nobody knows must not hide all the others.
            return VmView(entry, None)

    def _forget(self, vm_name: str) -> None:
        known = self._known.pop(vm_name)
        if known.opened is not None:
            known.opened.close()

    def close(self) -> None:
        """Give back all connections and mappings; closing twice is allowed."""
        for name in list(self._known):
            self._forget(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
