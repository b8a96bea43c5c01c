# SPDX-License-Identifier: GPL-2.0-or-later
"""Changes of state of VMs and tiers, as the difference of two looks.

Nobody sends these: they are what :class:`EventSource` finds when it compares the statistics of one
look with those of the look before.  A state that comes and goes between two looks is not seen;
an error is, since its time stays in the statistics of the tier.
"""

import datetime as dt
from collections.abc import Iterator
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from .client import Manager
from .errors import ConnectError
from .stats import TierStats, TierType
from .watch import VmView, Watcher


class EventKind(StrEnum):
    """What has changed."""

    MANAGER_LOST = "manager-lost"
    MANAGER_BACK = "manager-back"
    VM_APPEARED = "vm-appeared"
    VM_GONE = "vm-gone"
    WORKER_LOST = "worker-lost"
    WORKER_BACK = "worker-back"
    VM_STATE = "vm-state"
    PAGES_LOST = "pages-lost"
    TIER_STATE = "tier-state"
    TIER_ERROR = "tier-error"


class Event(BaseModel):
    """One change; a line of JSON of ``uffdmm events``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    time: dt.datetime = Field(description="when it was seen; of a tier-error when it happened")
    event: EventKind = Field(description="what has changed")
    vm_name: str | None = Field(default=None, description="name of the VM, null for the manager")
    tier: str | None = Field(default=None, description="name of the tier, or null")
    before: str | None = Field(default=None, description="state before, null when there was none")
    after: str | None = Field(default=None, description="state now, null when there is none")
    detail: str | None = Field(default=None, description="a sentence, or null")


# Conditions in which nobody serves the VM.
_LOST = {"worker-died", "no-answer", "silent"}
_LOST_DETAIL = {
    "worker-died": "the worker process has died; its guest waits, nothing is damaged",
    "no-answer": "the worker does not answer",
    "silent": "the worker gives no sign of life",
}


class EventSource:
    """The events since the look before; the first look tells all that is there.

    :param watcher: what is looked at; the caller closes it
    :param vm_name: only this VM, or all when None
    """

    def __init__(self, watcher: Watcher, vm_name: str | None = None) -> None:
        self._watcher = watcher
        self._vm_name = vm_name
        self._views: dict[str, VmView] = {}
        # The condition that was told: a view asks the clock each time it is asked.
        self._conditions: dict[str, str] = {}
        self._reachable: bool | None = None

    @property
    def manager(self) -> Manager:
        """The manager that is looked at."""
        return self._watcher.manager

    def poll(self) -> list[Event]:
        """Look once; what has changed, in the order of the VMs.

        A manager that goes away is an event, and its VMs are not said to be gone: their workers
        may live on.

        :raise ConnectError: it cannot be reached at the first look
        """
        now = dt.datetime.now(dt.UTC)
        try:
            views = self._watcher.look()
        except ConnectError as error:
            if self._reachable is None:
                raise
            events = [_lost(now, error)] if self._reachable else []
            self._reachable = False
            return events
        events = []
        if self._reachable is False:
            events.append(Event(time=now, event=EventKind.MANAGER_BACK))
        self._reachable = True
        if self._vm_name is not None:
            views = [view for view in views if view.name == self._vm_name]
        events += self._compare({view.name: view for view in views}, now)
        return events

    def _compare(self, views: dict[str, VmView], now: dt.datetime) -> Iterator[Event]:
        for name in sorted(self._views.keys() | views.keys()):
            view, old = views.get(name), self._views.get(name)
            if old is not None and (view is None or view.entry.qemu_pid != old.entry.qemu_pid):
                yield Event(
                    time=now, event=EventKind.VM_GONE, vm_name=name, before=self._conditions[name]
                )
                del self._views[name], self._conditions[name]
                old = None
            if view is not None:
                yield from self._changes(old, view, now)

    def _changes(self, old: VmView | None, view: VmView, now: dt.datetime) -> Iterator[Event]:
        before, after = self._conditions.get(view.name), view.condition
        same_worker = old is None or old.entry.worker_pid == view.entry.worker_pid
        if old is None:
            yield _of_vm(EventKind.VM_APPEARED, view, now, None, after)
        if (before != after or not same_worker) and (old is not None or after in _LOST):
            kind = EventKind.VM_STATE
            if after in _LOST:
                kind = EventKind.WORKER_LOST
            elif before in _LOST or not same_worker:
                kind = EventKind.WORKER_BACK
            yield _of_vm(kind, view, now, before, after)
        if view.stats is not None:
            old_lost = old.stats.lost_pages if old is not None and old.stats is not None else 0
            # Counters begin anew with a new worker.
            known = old_lost if same_worker else 0
            if view.stats.lost_pages > known:
                yield Event(
                    time=now,
                    event=EventKind.PAGES_LOST,
                    vm_name=view.name,
                    detail=f"{view.stats.lost_pages - known} pages whose content cannot be had",
                )
            seen = {tier.name: tier for tier in old.tiers} if old is not None else {}
            for tier in view.tiers:
                yield from _changes_of_tier(view.name, seen.get(tier.name), tier, now)
            self._views[view.name] = view
        else:
            # What was known of its tiers stays known: they did not change, they are not seen.
            kept = VmView(view.entry, old.stats, old.tiers) if old is not None else view
            self._views[view.name] = kept
        self._conditions[view.name] = after


def _lost(now: dt.datetime, error: ConnectError) -> Event:
    return Event(time=now, event=EventKind.MANAGER_LOST, detail=error.message)


def _of_vm(
    kind: EventKind, view: VmView, now: dt.datetime, before: str | None, after: str
) -> Event:
    return Event(
        time=now,
        event=kind,
        vm_name=view.name,
        before=before,
        after=after,
        detail=_LOST_DETAIL.get(after) if kind is EventKind.WORKER_LOST else None,
    )


def _changes_of_tier(
    vm_name: str, old: TierStats | None, tier: TierStats, now: dt.datetime
) -> Iterator[Event]:
    # A tier is told of when it first appears only if it is not as it should be.
    before = "ok" if old is None else old.state.value
    if tier.type is not TierType.ZERO and before != tier.state.value:
        yield Event(
            time=now,
            event=EventKind.TIER_STATE,
            vm_name=vm_name,
            tier=tier.name,
            before=None if old is None else before,
            after=tier.state.value,
        )
    if tier.last_error and (old is None or old.last_error_ns != tier.last_error_ns):
        yield Event(
            time=dt.datetime.fromtimestamp(tier.last_error_ns / 1e9, dt.UTC),
            event=EventKind.TIER_ERROR,
            vm_name=vm_name,
            tier=tier.name,
            detail=tier.last_error,
        )
