# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixed limits: every VM gets its maximum, or its part by shares when they do not all fit."""

from .base import Decision, HostView, Policy
from .budget import Claim, share_out


class FixedPolicy(Policy):
    """Looks at nothing but what was configured, so limits change only when that does."""

    def decide(self, host: HostView) -> Decision:
        """Everybody's maximum, scaled down to the budget."""
        return Decision(
            share_out(
                host.budget_bytes,
                {vm.name: Claim(vm.min_bytes, vm.max_bytes, vm.shares) for vm in host.vms.values()},
            )
        )
