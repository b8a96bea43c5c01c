# SPDX-License-Identifier: GPL-2.0-or-later
"""``scripts/bench stores``, section ``tiers``: each tier by itself beside what it is made of.

native/bench/bench_tiers.c measures; all subjects take turns in it.  Reads poll as a fault thread
does, puts as the evictor does.  What is put does not have to be durable.
"""

import contextlib
import json
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from . import HarnessError, places
from .machine import MIB
from .nbdserver import NbdMissingError, NbdServer
from .spread import Spread, spread

# The working set is 64 MiB; a tier keeps some room beside it, and its label.
_NBD_BYTES = 192 * MIB
_SECONDS_TO_END = 600.0
# What a tier is to be compared with.
_BESIDE = {"pool-lz4": "codec-lz4", "pool-zstd": "codec-zstd", "file": "device", "nbd": "device"}

Key = tuple[str, str, int]  # subject, operation, pages of a run


class TierBench:
    """Runs the program and keeps what it prints."""

    def __init__(self, folder: Path, rounds: int, slice_ms: int, pin: Sequence[str]) -> None:
        self._folder = folder
        self._rounds = rounds
        self._slice_ms = slice_ms
        self._pin = pin
        self.records: list[dict[str, Any]] = []
        self.skipped: dict[str, str] = {}

    def run(self) -> None:
        """Measure everything.

        :raise HarnessError: the program failed
        """
        with contextlib.ExitStack() as stack:
            store = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="uffdmm-bench-", dir=self._folder)
            )
            tiers = [
                "pool-lz4=pool,codec=lz4",
                "pool-zstd=pool,codec=zstd,level=1",
                f"file=file,path={store}",
            ]
            try:
                server = stack.enter_context(NbdServer(_NBD_BYTES, self._folder))
                tiers.append(f"nbd=nbd,uri={server.uri}")
            except NbdMissingError as reason:
                self.skipped["nbd"] = str(reason)
            self._execute(store, tiers)

    def _execute(self, folder: str, tiers: list[str]) -> None:
        command = [
            *self._pin,
            str(places.bench_program("bench-tiers")),
            *("--folder", folder, "--rounds", str(self._rounds)),
            *("--slice-ms", str(self._slice_ms)),
            *(word for tier in tiers for word in ("--tier", tier)),
        ]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=_SECONDS_TO_END
            )
        except subprocess.TimeoutExpired:
            raise HarnessError("bench-tiers did not end: a store does not answer") from None
        if done.returncode:
            raise HarnessError(f"bench-tiers failed: {done.stderr.strip()}")
        self.records = [json.loads(line) for line in done.stdout.splitlines()]


def _spreads(records: list[dict[str, Any]], value: str) -> dict[Key, Spread]:
    values: dict[Key, list[float]] = defaultdict(list)
    for record in records:
        values[record["subject"], record["operation"], record["pages"]].append(record[value])
    found = {key: spread(all_) for key, all_ in values.items()}
    return {key: item for key, item in found.items() if item is not None}


def summary(bench: TierBench) -> dict[str, Any]:
    """What ``--json`` has of this section."""
    p50, p99, mean = (_spreads(bench.records, name) for name in ("p50_ns", "p99_ns", "mean_ns"))
    rows = []
    for key in p50:
        subject, operation, pages = key
        row: dict[str, Any] = {
            "subject": subject,
            "operation": operation,
            "pages": pages,
            "p50_ns": p50[key].as_json(),
            "p99_ns": p99[key].as_json(),
            "mib_per_s": round(pages * 4096 / MIB / (mean[key].median / 1e9), 1),
        }
        beside = p50.get((_BESIDE.get(subject, ""), operation, pages))
        if beside:
            row["beside"] = _BESIDE[subject]
            row["p50_over_ns"] = round(p50[key].median - beside.median)
        rows.append(row)
    return {"rows": rows, "skipped": bench.skipped}


def show(console: Console, outcome: dict[str, Any]) -> None:
    """The section as a table."""
    found = {(row["subject"], row["operation"], row["pages"]): row for row in outcome["rows"]}
    lengths = sorted({pages for _, _, pages in found})
    table = Table(title="tiers by themselves: us a request, median of p50 (range) / p99")
    table.add_column("subject")
    table.add_column("operation")
    for pages in lengths:
        table.add_column(f"{pages} page{'s' if pages > 1 else ''}", justify="right")
    table.add_column("MiB/s at most", justify="right")
    table.add_column("1 page, beside", justify="right")
    for subject, operation in dict.fromkeys((key[0], key[1]) for key in found):
        rows = [found[subject, operation, pages] for pages in lengths]
        over = ""
        if "beside" in rows[0]:
            over = f"{rows[0]['p50_over_ns'] / 1e3:+.1f} {rows[0]['beside']}"
        fastest = max(row["mib_per_s"] for row in rows)
        table.add_row(subject, operation, *map(_cell, rows), f"{fastest:,.0f}", over)
    console.print(table)
    for name, reason in outcome["skipped"].items():
        console.print(f"skipped: {name}: {reason}")


def _cell(row: dict[str, Any]) -> str:
    p50, p99 = row["p50_ns"], row["p99_ns"]["median"]
    low, middle, high = (f"{p50[name] / 1e3:.1f}" for name in ("min", "median", "max"))
    return f"{middle} ({low}-{high}) / {p99 / 1e3:.1f}"
