# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line of ``uffdmm-manager`` that says what a configuration says.

What the file leaves out is left out here as well, so that defaults are given in one place: the
manager.
"""

from decimal import Decimal

from ..client import DEFAULT_SOCKET
from ..durations import exact_duration
from ..sizes import exact_size
from .model import AnyTier, Config, FileTier, ManagerTable, NbdTier, PoolTier, TierTable, VmTable
from .values import shown_demote_after

Pair = tuple[str, object]


def manager_arguments(config: Config, *, listen: bool = True) -> list[str]:
    """The arguments, without the program.

    :param listen: with ``--socket-path``; False when the caller says where to listen
    """
    manager = config.manager
    arguments: list[str] = []
    if listen:
        arguments += ["--socket-path", manager.socket or DEFAULT_SOCKET]
    for tier in config.tier:
        arguments += ["--tier", _joined(f"{tier.name}={tier.type}", _tier_pairs(tier))]
    if manager.limit not in {None, "none"}:
        arguments += ["--limit", str(manager.limit)]
    if manager.readahead is not None:
        arguments += ["--readahead", str(manager.readahead)]
    if manager.demote_after is not None:
        arguments += ["--demote-after", shown_demote_after(manager.demote_after)]
    arguments += _on_lost(manager)
    for name, vm in config.vm.items():
        pairs = _vm_pairs(vm)
        if any(value is not None for _, value in pairs):
            arguments += ["--vm", _joined(name, pairs)]
    if manager.spin_max is not None:
        arguments += ["--spin-max-us", str(manager.spin_max // 1000)]
    for uid in manager.allow_uids or []:
        arguments += ["--allow-uid", str(uid)]
    if manager.tracking is False:
        arguments.append("--no-tracking")
    if manager.log_level is not None:
        arguments += ["--log-level", manager.log_level]
    return arguments


def _on_lost(manager: ManagerTable) -> list[str]:
    arguments: list[str] = []
    if manager.on_lost is not None:
        arguments += ["--on-lost", manager.on_lost]
    if manager.on_lost_after is not None:
        arguments += ["--on-lost-after", shown_demote_after(manager.on_lost_after)]
    return arguments


def _joined(head: str, pairs: list[Pair]) -> str:
    """``head,key=value,...`` of the values that are there; a comma in a value is doubled."""
    return head + "".join(
        f",{key}={str(value).replace(',', ',,')}" for key, value in pairs if value is not None
    )


def _switch(value: bool | None) -> str | None:
    return None if value is None else "on" if value else "off"


def _size(value: int | None) -> str | None:
    return None if value is None else exact_size(value)


def _time(value: int | None) -> str | None:
    return None if value is None else exact_duration(value)


def _tier_pairs(tier: AnyTier) -> list[Pair]:
    pairs: list[Pair] = []
    if isinstance(tier, PoolTier):
        pairs = [
            ("codec", tier.codec),
            ("level", tier.level),
            ("inside-limit", _switch(tier.inside_limit)),
        ]
    elif isinstance(tier, FileTier):
        pairs = [("path", path) for path in tier.path]
        pairs.append(("shared", _switch(tier.shared)))
    elif isinstance(tier, NbdTier):
        pairs = [("uri", tier.uri), ("connections", tier.connections)]
    return [*pairs, ("capacity", _size(tier.capacity)), *_fault_pairs(tier)]


def _fault_pairs(tier: TierTable) -> list[Pair]:
    pairs: list[Pair] = []
    if tier.error is not None:
        # Not "1e-05", which people do not write and the manager does not read.
        pairs += [
            ("error-rate", format(Decimal(repr(tier.error.rate)), "f")),
            ("error-errno", tier.error.errno),
            ("error-ops", tier.error.ops),
            ("error-trigger", tier.error.trigger),
        ]
    if tier.delay is not None:
        pairs += [
            ("delay-read", _time(tier.delay.read)),
            ("delay-write", _time(tier.delay.write)),
            ("delay-shape", tier.delay.shape),
            ("delay-trigger", tier.delay.trigger),
        ]
    return pairs


def _vm_pairs(vm: VmTable) -> list[Pair]:
    demote = None if vm.demote_after is None else shown_demote_after(vm.demote_after)
    pairs: list[Pair] = [
        ("limit", vm.limit),
        ("readahead", vm.readahead),
        ("demote-after", demote),
        ("on-lost", vm.on_lost),
    ]
    for name, override in vm.tier.items():
        pairs += [
            (f"{name}.capacity", _size(override.capacity)),
            (f"{name}.codec", override.codec),
        ]
    return pairs
