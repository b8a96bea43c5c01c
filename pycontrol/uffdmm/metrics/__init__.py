# SPDX-License-Identifier: GPL-2.0-or-later
"""The statistics of all VMs as Prometheus metrics.

``collector`` makes the metrics, ``server`` answers scrapes over HTTP; ``uffdmm exporter`` is both
in a process of its own.
"""

from .collector import UffdmmCollector
from .server import MetricsServer

__all__ = ["MetricsServer", "UffdmmCollector"]
