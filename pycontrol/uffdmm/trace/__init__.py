# SPDX-License-Identifier: GPL-2.0-or-later
"""Traces: which pages of a VM were in use, interval by interval.

============= ===========================================================================
module        concern
============= ===========================================================================
``model``     what a trace holds, and what must be true of one
``file``      the file format: written whole, read as input from somebody else
``record``    a trace from a running VM
``synthetic`` traces that are made up, from a seed
============= ===========================================================================
"""

from .file import load_trace, save_trace
from .model import Settings, Trace, TraceError
from .record import Recorder
from .synthetic import KINDS, parse_synthetic

__all__ = [
    "KINDS",
    "Recorder",
    "Settings",
    "Trace",
    "TraceError",
    "load_trace",
    "parse_synthetic",
    "save_trace",
]
