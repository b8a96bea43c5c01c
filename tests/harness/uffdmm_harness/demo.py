# SPDX-License-Identifier: GPL-2.0-or-later
"""``scripts/demo``: a guest of 1 GiB in 512 MiB, watched live, and its memory verified.

The exit status is 0 only if the guest's own comparison of every byte succeeded and no sample of its
resident memory, one each 50 ms, was above the limit by more than :data:`SLACK`.
"""

import argparse
import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from uffdmm.stats import Stats

from . import HarnessError, accel, hostmem, interrupts, places
from .demo_view import LiveView, show_summary
from .guest import Guest
from .machine import GIB, MIB, MachineConfig, external_memory
from .manager import Manager
from .port import GuestCorrupt, Record, RunResult
from .sampler import INTERVAL, Sampler

RAM = 1 * GIB
LIMIT = 512 * MIB
FILL = 800 * MIB
SLACK = 8 * MIB
PATTERNS = ("random", "sequential", "hot")
SEED = 20
VM = "demo"


def _say(text: str) -> None:
    print(f"demo: {text}", file=sys.stderr, flush=True)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/demo",
        description="Boot a Linux guest of 1 GiB with 512 MiB of memory, use 800 MiB of it, and "
        "verify every byte.",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the summary as JSON")
    parser.add_argument(
        "--seconds",
        type=float,
        default=30,
        metavar="N",
        help="how long the guest touches its memory, all patterns together (default 30)",
    )
    options = parser.parse_args(arguments)
    if options.seconds <= 0:
        parser.error(f"--seconds {options.seconds:g}: must be more than 0")
    if options.json and not options.json.parent.is_dir():
        parser.error(f"--json {options.json}: its folder does not exist")
    return options


class Demo:
    """One run: what was measured is in :attr:`summary` when it is over."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.summary: dict[str, Any] = {
            "verified": False,
            "limit_held": False,
            "limit_bytes": LIMIT,
            "ram_bytes": RAM,
            "used_bytes": FILL,
            "patterns": [],
        }

    def run(self) -> None:
        """Boot, touch, verify.

        :raise HarnessError: something did not start or answer
        """
        started = time.monotonic()
        self.summary["accel"] = accel.choose()
        swap = hostmem.host_swap()
        with Manager(limit=str(LIMIT)) as manager:
            config = MachineConfig(
                accel=self.summary["accel"],
                ram=RAM,
                objects=[external_memory(RAM, manager.socket)],
                memory="mem0",
                name=VM,
            )
            _say(f"booting a Linux guest of {RAM // MIB} MiB under {config.accel}")
            with Guest(config) as guest:
                guest.boot()
                _say(f"guest is up after {time.monotonic() - started:.1f} s")
                self._use(guest, manager)
        moved = hostmem.host_swap() - swap
        self.summary["host_swap_pages"] = moved.pages_in + moved.pages_out
        self.summary["seconds"] = round(time.monotonic() - started, 1)

    def _use(self, guest: Guest, manager: Manager) -> None:
        resident = Sampler(hostmem.MemfdFiles(guest.pid, RAM).resident)
        with (
            manager.vm(VM) as vm,
            resident,
            LiveView(vm, resident) as view,
        ):
            try:
                self._touch(guest, view)
            except GuestCorrupt as error:
                self.summary["wrong"] = str(error)
            finally:
                self._take(vm.statistics(), resident)

    def _touch(self, guest: Guest, view: LiveView) -> None:
        def follow(record: Record) -> None:
            if "steps_per_s" in record:
                view.steps_per_s = float(record["steps_per_s"])
            elif "of" in record:
                view.share = int(record["pages"]) / int(record["of"])

        view.phase = f"filling {FILL // MIB} MiB"
        guest.port.fill(FILL, seed=SEED, timeout=600, progress=follow)
        each = self._seconds / len(PATTERNS)
        for pattern in PATTERNS:
            view.phase = f"touching: {pattern}"
            result = guest.port.run(
                pattern, each, report_ms=500, timeout=each + 120, progress=follow
            )
            self.summary["patterns"].append(_pattern_summary(result))
        view.phase = "verifying every byte"
        verified = guest.port.verify(timeout=600, progress=follow)
        self.summary["verified"] = verified.verified and verified.pages == FILL // 4096
        if not verified.verified:
            self.summary["wrong"] = f"{verified.wrong_pages} pages, the first: {verified.named}"

    def _take(self, stats: Stats, resident: Sampler) -> None:
        hist = stats.fault_hist
        self.summary.update(
            limit_held=resident.maximum <= LIMIT + SLACK,
            resident_max_bytes=resident.maximum,
            resident_samples=len(resident.values),
            resident_interval_s=INTERVAL,
            stored_bytes=stats.stored_bytes,
            zero_bytes=stats.zero_bytes,
            faults=stats.faults,
            fault_p50_us=_microseconds(hist.percentile(0.50)),
            fault_p99_us=_microseconds(hist.percentile(0.99)),
            evicted_pages=stats.evicted,
            manager_rss_bytes=stats.worker_rss_bytes,
            table_bytes=stats.table_bytes,
            lost_pages=stats.lost_pages,
        )


def _microseconds(seconds: float | None) -> float:
    return round((seconds or 0) * 1e6, 1)


def _pattern_summary(result: RunResult) -> dict[str, Any]:
    return {
        "pattern": result.pattern,
        "steps_per_s": round(result.steps_per_s, 1),
        "gap_max_ms": result.gap_max_ms,
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; the exit status."""
    options = _parse(arguments)
    demo = Demo(options.seconds)
    with contextlib.suppress(KeyboardInterrupt), interrupts.as_exceptions():
        try:
            places.qemu()
            places.guest_image()
            demo.run()
        except HarnessError as error:
            _say(str(error))
            demo.summary["error"] = str(error)
    if options.json:
        options.json.write_text(json.dumps(demo.summary, indent=2) + "\n")
    passed = bool(demo.summary["verified"] and demo.summary["limit_held"])
    if "faults" in demo.summary:
        show_summary(demo.summary, passed)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
