# SPDX-License-Identifier: GPL-2.0-or-later
"""``uffdmm serve``: the control plane of one host.

=========== =============================================================================
module      concern
=========== =============================================================================
``daemon``  the loop: list, sample, decide, apply
``vm``      one VM: its connection, its samples
``host``    the budget, what is taken off it, and pressure
``bounds``  bounds that contradict each other
``contain`` a policy on a leash: deadline, checks of its answer
``apply``   from limits in force to limits decided, at a stated rate
``log``     lines for the journal
=========== =============================================================================

No fault ever waits for it: stopped, slow or dead it means older limits, and no more.
"""

from .daemon import Daemon, Options

__all__ = ["Daemon", "Options"]
