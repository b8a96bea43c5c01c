# SPDX-License-Identifier: GPL-2.0-or-later
"""What is wrong with a document, or likely to disappoint.

First the document is held against the model, which finds unknown keys and wrong values; then one
function each looks for what only shows in the whole.  Everything is reported, not the first only.
"""

import ipaddress
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from .._native import lib
from ..errors import ConfigError, UffdmmError
from ..sizes import exact_size
from .load import Document, KeyPath
from .model import (
    TIER_MODELS,
    Config,
    DelayTable,
    ErrorTable,
    FileTier,
    ManagerTable,
    MigrationTable,
    NbdTier,
    PoolTier,
    ServeTable,
    Table,
    VmTable,
    VmTierTable,
)
from .problem import Problem, Severity, did_you_mean

# The manager's own bounds: the zero tier takes one of its places.
TIERS_MAX = lib.UFFDMM_TIERS_MAX - 1
VMS_MAX = 64


@dataclass(frozen=True)
class Examined:
    """A document and what was found; ``config`` is None when there are errors."""

    document: Document
    config: Config | None
    problems: list[Problem]

    @property
    def errors(self) -> list[Problem]:
        """The problems that keep the manager from starting."""
        return [problem for problem in self.problems if problem.severity is Severity.ERROR]

    def require(self) -> Config:
        """The configuration.

        :raise ConfigError: it has errors
        """
        if self.config is None:
            raise ConfigError([(problem.sentence, problem.remedy) for problem in self.errors])
        return self.config


def examine(document: Document) -> Examined:
    """Check a document in every respect that needs no host."""
    problems = list(document.problems)
    config = None
    try:
        config = Config.model_validate(document.data)
    except ValidationError as error:
        # Once per place: a value that fails two checks of one type is reported once.
        problems += [_translate(document, details) for details in error.errors()]
    else:
        # What is not there cannot be judged by files that could not be read.
        for check in _CHECKS if not document.problems else ():
            problems += check(document, config)
    bad = any(problem.severity is Severity.ERROR for problem in problems)
    return Examined(document, None if bad else config, problems)


# ---- what the model says, in our words


def _table_at(document: Document, path: KeyPath) -> type[Table] | None:
    """The model of the table at a key path."""
    found: type[Table] | None = None
    match path:
        case ():
            found = Config
        case ("manager",):
            found = ManagerTable
        case ("serve",):
            found = ServeTable
        case ("migration",):
            found = MigrationTable
        case ("tier", int()):
            kind = document.value((*path, "type"))
            found = TIER_MODELS.get(kind) if isinstance(kind, str) else None
        case ("tier", int(), "error"):
            found = ErrorTable
        case ("tier", int(), "delay"):
            found = DelayTable
        case ("vm", str()):
            found = VmTable
        case ("vm", str(), "tier", str()):
            found = VmTierTable
    return found


def _keys_of(table: type[Table]) -> dict[str, str]:
    """Key and description."""
    return {
        field.alias or name: field.description or "" for name, field in table.model_fields.items()
    }


def _path_of(details: ErrorDetails) -> KeyPath:
    """The key path of an error: without what only the model knows."""
    steps = list(details["loc"])
    if len(steps) > 2 and steps[0] == "tier" and steps[2] in TIER_MODELS:
        del steps[2]
    if steps and steps[-1] == "[key]":
        steps.pop()
    # An element of an array is told by its value; only tiers are counted.
    while len(steps) > 2 and isinstance(steps[-1], int):
        steps.pop()
    return tuple(steps)


def _translate(document: Document, details: ErrorDetails) -> Problem:
    path = _path_of(details)
    kind, context = details["type"], details.get("ctx", {})
    message, remedy = "", None
    if kind == "extra_forbidden":
        message, remedy = _unknown_key(document, path)
    elif kind == "missing":
        table = _table_at(document, path[:-1])
        message = "is missing"
        remedy = _keys_of(table).get(str(path[-1])) if table else None
        remedy = f"add it: {remedy}" if remedy else None
    elif kind == "union_tag_not_found":
        path = (*path, "type")
        message, remedy = "is missing", f"add one of {', '.join(TIER_MODELS)}"
    elif kind == "union_tag_invalid":
        path = (*path, "type")
        message = "not a type of tier"
        remedy = did_you_mean(str(context.get("tag", "")), TIER_MODELS)
    elif kind == "list_type" and path == ("tier",):
        message, remedy = "tiers are an array of tables", "write [[tier]] with two brackets"
    elif kind == "value_error" and isinstance(context.get("error"), UffdmmError):
        error: UffdmmError = context["error"]
        message, remedy = error.message, error.remedy
    elif kind in {"model_type", "dict_type", "model_attributes_type"}:
        message = "must be a table"
    else:
        text = details["msg"]
        message = (text[:1].lower() + text[1:]).replace("input should", "must", 1)
    return document.problem(path, message, remedy)


def _unknown_key(document: Document, path: KeyPath) -> tuple[str, str]:
    word = str(path[-1])
    table = _table_at(document, path[:-1])
    kind = document.value((*path[:-1], "type"))
    if table in TIER_MODELS.values() and any(
        word in _keys_of(other) for other in TIER_MODELS.values()
    ):
        assert table is not None
        return f"a tier of type {kind} has no such key", "remove it, or change the type"
    return "unknown key", did_you_mean(word, _keys_of(table) if table else [])


# ---- what only shows in the whole


def _number_of_tiers(document: Document, config: Config) -> Iterator[Problem]:
    if not config.tier:
        yield document.problem(
            (),
            "there is no [[tier]]: evicted pages have nowhere to go",
            'add one, for example: [[tier]] name = "ssd", type = "file", path = "/var/lib/uffdmm"',
        )
    elif len(config.tier) > TIERS_MAX:
        yield document.problem(
            ("tier", TIERS_MAX), f"there are more than {TIERS_MAX} tiers", "remove some"
        )
    if len(config.vm) > VMS_MAX:
        yield document.problem(
            ("vm", list(config.vm)[VMS_MAX]), f"there are more than {VMS_MAX} VMs", "remove some"
        )


def _one_place_one_tier(document: Document, config: Config) -> Iterator[Problem]:
    """Two tiers in one place would overwrite each other's pages."""
    users: dict[str, str] = {}
    for index, tier in enumerate(config.tier):
        if isinstance(tier, FileTier):
            key, places = "path", tier.path
        elif isinstance(tier, NbdTier):
            key, places = "uri", [tier.uri]
        else:
            continue
        for place in places:
            if place in users:
                yield document.problem(
                    ("tier", index, key),
                    f"'{place}' is used twice, also by tier '{users[place]}'",
                    "give each tier a place of its own",
                )
            users[place] = tier.name


def _keys_that_need_others(document: Document, config: Config) -> Iterator[Problem]:
    for index, tier in enumerate(config.tier):
        if isinstance(tier, PoolTier) and tier.level is not None and tier.codec != "zstd":
            yield document.problem(
                ("tier", index, "level"), "lz4 has no level", 'remove it, or set codec = "zstd"'
            )
        if tier.delay is not None and tier.delay.read is None and tier.delay.write is None:
            yield document.problem(
                ("tier", index, "delay"), "delays nothing", "add read or write, or remove it"
            )


def _overrides(document: Document, config: Config) -> Iterator[Problem]:
    tiers = {tier.name: tier for tier in config.tier}
    for vm_name, vm in config.vm.items():
        for name, override in vm.tier.items():
            path: KeyPath = ("vm", vm_name, "tier", name)
            if name not in tiers:
                yield document.problem(path, "there is no such tier", did_you_mean(name, tiers))
            elif override.codec and not isinstance(tiers[name], PoolTier):
                yield document.problem(
                    (*path, "codec"), f"tier '{name}' is no pool and has no codec", "remove it"
                )


def _faults(document: Document, config: Config) -> Iterator[Problem]:
    for index, tier in enumerate(config.tier):
        for key in ("error", "delay"):
            if getattr(tier, key) is not None:
                yield document.problem(
                    ("tier", index, key),
                    f"requests to this tier {'fail' if key == 'error' else 'are slowed down'}"
                    " on purpose",
                    "for tests only: remove it where guests do real work",
                    warning=True,
                )


def _order(document: Document, config: Config) -> Iterator[Problem]:
    last = len(config.tier) - 1
    slower = None
    for index, tier in enumerate(config.tier):
        if not isinstance(tier, PoolTier):
            slower = slower or tier.name
        elif slower:
            yield document.problem(
                ("tier", index),
                f"this pool is reached only when tier '{slower}' is full",
                "write the fastest tier first",
                warning=True,
            )
        elif index == last:
            yield document.problem(
                ("tier", index),
                "the last tier is a pool: pages that do not compress are kept in memory as"
                " they are",
                "add a file or nbd tier behind it",
                warning=True,
            )


def _bounds(document: Document, config: Config) -> Iterator[Problem]:
    """Minimum and maximum of each VM, and all minima against the budget."""
    for name, vm in config.vm.items():
        if vm.min is not None and vm.max is not None and vm.min > vm.max:
            yield document.problem(
                ("vm", name, "min"),
                f"the minimum of VM '{name}' is above its maximum of {exact_size(vm.max)}",
                "lower the one or raise the other",
            )
    total = sum(vm.min or 0 for vm in config.vm.values())
    if config.serve.budget is not None and total > config.serve.budget:
        yield document.problem(
            ("serve", "budget"),
            f"the minima of all VMs add up to {exact_size(total)}, which is more",
            "raise the budget or lower a minimum",
        )
    interval = config.serve.interval
    if interval is not None and not 50_000_000 <= interval <= 60_000_000_000:
        yield document.problem(
            ("serve", "interval"), "not within 50ms to 60s", 'write "1s", the default'
        )


def _demotion(document: Document, config: Config) -> Iterator[Problem]:
    if len(config.tier) == 1 and config.manager.demote_after:
        yield document.problem(
            ("manager", "demote-after"),
            "there is no second tier to move pages to",
            "add one, or remove this",
            warning=True,
        )


def _poison(document: Document, config: Config) -> Iterator[Problem]:
    poisoned: list[tuple[str, ...]] = [("manager",)] if config.manager.on_lost == "poison" else []
    poisoned += [("vm", name) for name, vm in config.vm.items() if vm.on_lost == "poison"]
    if poisoned and not config.manager.on_lost_after:
        yield document.problem(
            (*poisoned[0], "on-lost"),
            "poison says nothing without a time",
            'write on-lost-after = "60s" in [manager]',
        )


def _is_here(host: str | None) -> bool:
    """Whether what is sent to a host does not leave this one."""
    if not host or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _nbd(document: Document, config: Config) -> Iterator[Problem]:
    for index, tier in enumerate(config.tier):
        if not isinstance(tier, NbdTier):
            continue
        parts = urlsplit(tier.uri)
        if parts.scheme == "nbd" and not _is_here(parts.hostname):
            yield document.problem(
                ("tier", index, "uri"),
                f"guest memory travels to '{parts.hostname}' unencrypted",
                "use nbds:// (TLS), or a network of its own",
                warning=True,
            )
        if "{vm}" not in tier.uri:
            yield document.problem(
                ("tier", index, "uri"),
                "all VMs name the same export, which only one of them can use",
                "put {vm} where the name of the VM belongs",
                warning=True,
            )


_CHECKS: tuple[Callable[[Document, Config], Iterator[Problem]], ...] = (
    _number_of_tiers,
    _one_place_one_tier,
    _keys_that_need_others,
    _overrides,
    _bounds,
    _order,
    _demotion,
    _poison,
    _nbd,
    _faults,
)
