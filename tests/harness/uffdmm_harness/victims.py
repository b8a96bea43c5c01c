# SPDX-License-Identifier: GPL-2.0-or-later
"""``scripts/bench victims``: who should go, measured on the accesses of real guests.

Replays recorded traces (tests/traces, or those named) through the manager's order of eviction and
others, and prints what share of reuses each would have found in memory.  With ``--record`` the
traces are made first, in real guests; that takes half an hour and more, and root.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from uffdmm.errors import UffdmmError
from uffdmm.trace import Trace, load_trace, save_trace

from . import HarnessError, interrupts, places
from .victims_guests import workloads
from .victims_record import record
from .victims_replay import NAMES, SHARES, Outcome, replay

TRACES = places.TOP / "tests/traces"


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench victims",
        description="Replays accesses of guests through orders of eviction.",
    )
    parser.add_argument(
        "traces", nargs="*", type=Path, metavar="TRACE", help="files (default: those in the tree)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    parser.add_argument(
        "--record", type=Path, metavar="DIR", help="record the traces anew into DIR, then replay"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[workload.name for workload in workloads()],
        metavar="WORKLOAD",
        help="with --record: these alone",
    )
    parser.add_argument("--seed", type=int, default=1, help="of the order inside a window")
    words = parser.parse_args(arguments)
    if words.record and words.traces:
        parser.error("--record makes the traces: name none")
    if words.record and not words.record.is_dir():
        parser.error(f"--record {words.record}: no such directory")
    if words.only and not words.record:
        parser.error("--only is for --record: name the files to replay some")
    if words.json and not words.json.parent.is_dir():
        parser.error(f"--json {words.json}: its folder does not exist")
    if words.seed < 0:
        parser.error("--seed must not be negative")
    return words


def _record(folder: Path, only: Sequence[str] | None) -> list[Path]:
    paths = []
    for workload in workloads():
        if only and workload.name not in only:
            continue
        path = folder / f"{workload.name}.npz"
        save_trace(record(workload, _tell), path)
        paths.append(path)
    return paths


def show(traces: Sequence[Trace], outcomes: Sequence[Outcome]) -> None:
    """Tables for people."""
    by_key = {(item.trace, item.order, item.share): item for item in outcomes}
    width = max(len(name) for name in NAMES) + 2
    print(f"{'trace':<14}{'windows':>8}{'guest s':>9}{'pages':>8}{'a window':>10}{'reuses':>9}")
    for trace in traces:
        item = by_key[trace.name, NAMES[0], SHARES[0]]
        rows = len(trace.times) - 1
        total = sum(int(trace.row(row).sum()) for row in range(1, rows + 1))
        pages = total - item.reuses
        print(
            f"{trace.name:<14}{rows:>8}{trace.seconds:>9.1f}{pages:>8}{total // rows:>10}"
            f"{item.reuses:>9}"
        )
    print("\nhits, % of reuses, with memory for 25 / 50 / 75 % of the pages")
    names = [trace.name for trace in traces]
    columns = [max(len(name), 14) + 2 for name in names]
    heads = "".join(f"{name:>{wide}}" for name, wide in zip(names, columns, strict=True))
    print(f"{'order':<{width}}{heads}{'mean':>16}")
    for order in NAMES:
        cells = []
        for name, wide in zip(names, columns, strict=True):
            ratios = [by_key[name, order, share].ratio for share in SHARES]
            cells.append(f"{_triple(ratios):>{wide}}")
        means = [
            sum(by_key[name, order, share].ratio for name in names) / len(names) for share in SHARES
        ]
        print(f"{order:<{width}}{''.join(cells)}{_triple(means):>16}")
    for trace in traces:
        if not trace.marks:
            continue
        in_use = by_key[trace.name, NAMES[0], SHARES[0]].set_pages
        print(f"\n{trace.name}: hits, % of uses of the {in_use} pages in use before the scan")
        for order in NAMES:
            in_set = [by_key[trace.name, order, share].set_ratio or 0.0 for share in SHARES]
            print(f"{order:<{width}}{_triple(in_set):>16}")


def _triple(ratios: Sequence[float]) -> str:
    return " / ".join(f"{100 * ratio:.0f}" for ratio in ratios)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; the exit status."""
    words = _parse(arguments)
    try:
        with interrupts.as_exceptions():
            paths = (
                _record(words.record, words.only)
                if words.record
                else words.traces or sorted(TRACES.glob("*.npz"))
            )
            traces = [load_trace(path) for path in paths]
            outcomes: list[Outcome] = []
            for trace in traces:
                _tell(f"{trace.name}: replaying {len(trace.times) - 1} windows")
                outcomes += replay(trace, seed=words.seed)
    except KeyboardInterrupt:
        _tell("bench: interrupted")
        return 1
    except (HarnessError, UffdmmError) as error:
        _tell(f"bench: {error}")
        return 1
    if words.json:
        rows = [dataclasses.asdict(item) | {"ratio": item.ratio} for item in outcomes]
        words.json.write_text(json.dumps(rows, indent=2) + "\n")
    show(traces, outcomes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
