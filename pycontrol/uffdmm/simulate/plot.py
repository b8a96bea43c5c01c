# SPDX-License-Identifier: GPL-2.0-or-later
"""A simulation as a picture: limits, what was in memory, and what guests lost.

matplotlib is not needed for anything else and is imported here alone, when a picture is asked for.
"""

from pathlib import Path

from ..errors import UffdmmError
from .report import SimulationReport

SUFFIXES = (".png", ".svg", ".pdf")
_MIB = 1 << 20


class PlotError(UffdmmError):
    """A picture that cannot be drawn."""


def check_plot(path: Path) -> None:
    """Whether a picture could be written, before anything is simulated.

    :raise PlotError: no known kind of picture, or matplotlib is missing
    """
    if path.suffix not in SUFFIXES:
        raise PlotError(f"'{path}' names no kind of picture", f"end it with {', '.join(SUFFIXES)}")
    try:
        import matplotlib  # noqa: F401, ICN001, PLC0415  (optional, and slow to import)
    except ImportError:
        raise PlotError(
            "matplotlib is needed to draw and is not installed",
            "install it, or the package as uffdmm[plot]; --json has the same numbers",
        ) from None


def plot(report: SimulationReport, path: Path) -> None:
    """Draw the report; the kind of picture is that of the suffix.

    :raise PlotError: it cannot be drawn
    :raise OSError: it cannot be written
    """
    check_plot(path)
    # Figure by itself: pyplot would ask for a display and keep all figures.
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(9, 7), layout="constrained")
    memory, stall = figure.subplots(2, 1, sharex=True)
    for vm in report.vms:
        # Zeros stand for a VM that is no longer there.
        limits = [size / _MIB if size else float("nan") for size in vm.limit_bytes]
        resident = [
            size / _MIB if limit else float("nan")
            for size, limit in zip(vm.resident_bytes, vm.limit_bytes, strict=True)
        ]
        (line,) = memory.plot(report.times, limits, label=vm.vm_name)
        memory.plot(report.times, resident, color=line.get_color(), linestyle=":")
        stall.plot(report.times, [100 * share for share in vm.stall_share], color=line.get_color())
    memory.set_ylabel("limit (dotted: resident), MiB")
    memory.set_ylim(bottom=0)
    memory.legend(loc="best")
    memory.set_title(
        f"policy {report.policy}, budget {report.budget_bytes / _MIB:.0f} MiB", loc="left"
    )
    stall.axhline(100 * report.stall_budget, color="grey", linewidth=0.8)
    stall.set_ylabel("vCPU time lost, %")
    stall.set_yscale("symlog", linthresh=max(0.01, 100 * report.stall_budget))
    stall.set_ylim(bottom=0)
    stall.set_xlabel("seconds")
    figure.savefig(path)
