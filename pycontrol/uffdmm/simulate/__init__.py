# SPDX-License-Identifier: GPL-2.0-or-later
"""Policies against traces: what limits a policy would have set, and what guests had lost.

============ ===========================================================================
module       concern
============ ===========================================================================
``guest``    one VM: from a limit and the accesses of a trace to faults and ages
``host``     all of them under one policy, by the rules of ``uffdmm serve``
``report``   what came of it, in numbers
``plot``     and as a picture
============ ===========================================================================
"""

from .guest import GuestModel
from .host import Setup, Simulation
from .report import SimulationReport, VmReport

__all__ = ["GuestModel", "Setup", "Simulation", "SimulationReport", "VmReport"]
