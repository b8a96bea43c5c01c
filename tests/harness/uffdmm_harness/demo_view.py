# SPDX-License-Identifier: GPL-2.0-or-later
"""What the demo shows while it runs and when it is over.

On a terminal a table that is redrawn four times a second, elsewhere a plain line every two seconds.
"""

import threading
import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from uffdmm.client import VirtualMachine

from .machine import MIB
from .sampler import Sampler

_TERMINAL_INTERVAL = 0.25
_PLAIN_INTERVAL = 2.0


def _mib(size: float) -> str:
    return f"{size / MIB:,.0f} MiB"


def _us(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e6:,.0f} µs"


class LiveView:
    """Shows the statistics of a VM until it is closed.

    The caller sets :attr:`phase`, :attr:`share` (of the phase that is done) and
    :attr:`steps_per_s` as it learns them.
    """

    def __init__(self, vm: VirtualMachine, resident: Sampler) -> None:
        self.share: float | None = None
        self.steps_per_s: float | None = None
        self._phase = "starting"
        self._phase_started = time.monotonic()
        self._vm = vm
        self._resident = resident
        self._console = Console(stderr=True)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="view", daemon=True)
        self._before = time.monotonic(), vm.statistics()

    @property
    def phase(self) -> str:
        """What the guest is doing."""
        return self._phase

    @phase.setter
    def phase(self, text: str) -> None:
        self._phase = text
        self._phase_started = time.monotonic()
        self.share = None
        self.steps_per_s = None

    def _rows(self) -> list[tuple[str, str]]:
        now, stats = time.monotonic(), self._vm.statistics()
        then, earlier = self._before
        rate = (stats.faults - earlier.faults) / max(now - then, 1e-3)
        recent = stats.fault_hist - earlier.fault_hist
        self._before = now, stats
        values = self._resident.values
        doing = f"{self._phase}, {now - self._phase_started:.0f} s"
        if self.share:
            left = (now - self._phase_started) * (1 - self.share) / self.share
            doing += f", {self.share:.0%}, {left:.0f} s left"
        return [
            ("guest", doing),
            ("steps/s", "-" if self.steps_per_s is None else f"{self.steps_per_s:,.0f}"),
            ("resident", f"{_mib(values[-1]) if values else '-'} of {_mib(stats.limit_bytes)}"),
            ("swapped", f"{_mib(stats.stored_bytes)} + {_mib(stats.zero_bytes)} zero"),
            ("faults/s", f"{rate:,.0f}"),
            ("fault p50 / p99", f"{_us(recent.percentile(0.5))} / {_us(recent.percentile(0.99))}"),
        ]

    def _table(self) -> Table:
        table = Table(show_header=False, title="guest of 1 GiB on external memory")
        table.add_column(min_width=16)
        table.add_column(min_width=44)
        for row in self._rows():
            table.add_row(*row)
        return table

    def _loop(self) -> None:
        if not self._console.is_terminal:
            while not self._stop.wait(_PLAIN_INTERVAL):
                line = "; ".join(f"{name} {value}" for name, value in self._rows())
                print(f"demo: {line}", file=self._console.file, flush=True)
            return
        with Live(self._table(), console=self._console, auto_refresh=False) as live:
            while not self._stop.wait(_TERMINAL_INTERVAL):
                live.update(self._table(), refresh=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()


def show_summary(summary: dict[str, Any], passed: bool) -> None:
    """The end of the demo, on standard output."""
    console = Console()
    table = Table(show_header=False, title="summary")
    table.add_column(min_width=24)
    table.add_column(min_width=44)
    over = max(0, summary["resident_max_bytes"] - summary["limit_bytes"])
    verified = "every byte matched" if summary["verified"] else "FAILED"
    rows = [
        ("memory in use, verified", f"{_mib(summary['used_bytes'])}: {verified}"),
        ("limit", _mib(summary["limit_bytes"])),
        (
            "resident, largest",
            f"{_mib(summary['resident_max_bytes'])} of {summary['resident_samples']} samples"
            + (f", {over / MIB:.1f} MiB over the limit" if over else ""),
        ),
        (
            "swapped at the end",
            f"{_mib(summary['stored_bytes'])} + {_mib(summary['zero_bytes'])} zero",
        ),
        ("faults", f"{summary['faults']:,}"),
        ("fault p50 / p99", f"{summary['fault_p50_us']:,} / {summary['fault_p99_us']:,} µs"),
        (
            "memory of the manager",
            f"{_mib(summary['manager_rss_bytes'])}, tables {summary['table_bytes'] / MIB:.1f} MiB",
        ),
    ]
    rows += [
        (f"{item['pattern']} steps/s", f"{item['steps_per_s']:,.0f}")
        for item in summary["patterns"]
    ]
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if "wrong" in summary:
        console.print(f"wrong memory: {summary['wrong']}", markup=False)
    console.print("demo passed" if passed else "demo FAILED", markup=False)
