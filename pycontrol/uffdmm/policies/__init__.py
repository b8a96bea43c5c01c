# SPDX-License-Identifier: GPL-2.0-or-later
"""Policies: who gets how much of the host's budget.

=========== =============================================================================
module      concern
=========== =============================================================================
``base``    what a policy sees and what it answers
``budget``  sharing out a number of bytes between bounds, by weight
``fixed``   every VM gets its maximum, scaled down to the budget
``shares``  by shares and priority; memory held idle is taxed
``stall``   take as much as the guests do not feel
=========== =============================================================================

A policy of your own is a subclass of :class:`Policy`, named in the entry point group
``uffdmm.policies`` of your package; docs/policy.md has an example.
"""

from importlib.metadata import entry_points

from ..errors import UffdmmError
from .base import Decision, HostView, Policy, VmView
from .fixed import FixedPolicy
from .shares import SharesPolicy
from .stall import StallPolicy

GROUP = "uffdmm.policies"
_BUILT_IN: dict[str, type[Policy]] = {
    "fixed": FixedPolicy,
    "shares": SharesPolicy,
    "stall": StallPolicy,
}


class PolicyError(UffdmmError):
    """A policy that cannot be found, or whose answer cannot be used."""


def policy_names() -> list[str]:
    """All policies that can be named."""
    return sorted(_BUILT_IN.keys() | {point.name for point in entry_points(group=GROUP)})


def load_policy(name: str, *, stall_budget: float) -> Policy:
    """A new policy by name.

    :param stall_budget: share of vCPU time that a guest may lose to faults
    :raise PolicyError: there is none, or it cannot be loaded
    """
    kind = _BUILT_IN.get(name)
    if kind is None:
        for point in entry_points(group=GROUP):
            if point.name != name:
                continue
            try:
                loaded = point.load()
            except Exception as error:
                raise PolicyError(
                    f"policy '{name}' cannot be loaded: {error!r}", "install its package again"
                ) from error
            if not (isinstance(loaded, type) and issubclass(loaded, Policy)):
                raise PolicyError(f"policy '{name}' is no subclass of uffdmm.policies.Policy")
            kind = loaded
    if kind is None:
        raise PolicyError(f"there is no policy '{name}'", f"use one of {', '.join(policy_names())}")
    try:
        return kind(stall_budget)
    except Exception as error:
        raise PolicyError(f"policy '{name}' cannot be made: {error!r}") from error


__all__ = [
    "GROUP",
    "Decision",
    "FixedPolicy",
    "HostView",
    "Policy",
    "PolicyError",
    "SharesPolicy",
    "StallPolicy",
    "VmView",
    "load_policy",
    "policy_names",
]
