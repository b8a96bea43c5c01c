# SPDX-License-Identifier: GPL-2.0-or-later
"""Orders of eviction, their replay on recorded traces, and the guests that are recorded."""

import subprocess
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uffdmm.trace import Trace, load_trace, save_trace
from uffdmm.trace.model import COUNTERS, PAGE, pack
from uffdmm_harness import victims
from uffdmm_harness.victims_guests import Workload, _newc, workloads
from uffdmm_harness.victims_manager import ManagerOrder
from uffdmm_harness.victims_orders import ORDERS, Lru, Order, optimum
from uffdmm_harness.victims_replay import (
    ALWAYS,
    NAMES,
    OPTIMUM,
    UNSCALED,
    hits_of,
    replay,
    windows_of,
    working_set,
)

TOP = Path(__file__).parents[3]
TRACES = sorted(victims.TRACES.glob("*.npz"))
PAGES = 24


def orders(capacity: int, pages: int = PAGES) -> dict[str, Order]:
    return {name: make(capacity) for name, make in ORDERS.items()} | {
        "manager": ManagerOrder(capacity, pages),
        UNSCALED: ManagerOrder(capacity, pages, sample_min=2),
        ALWAYS: ManagerOrder(capacity, pages, always=True),
    }


windows_drawn = st.lists(
    st.lists(st.integers(0, PAGES - 1), unique=True, max_size=PAGES), min_size=1, max_size=30
)


@given(windows_drawn, st.integers(1, PAGES))
@settings(max_examples=60)
def test_no_order_holds_more_than_it_may_or_beats_the_optimum(
    windows: list[list[int]], capacity: int
) -> None:
    uses = [page for window in windows for page in window]
    best = sum(optimum(uses, capacity))
    for name, order in orders(capacity).items():
        hits = hits_of(order, windows)
        assert len(order.resident) <= capacity, name
        assert len(hits) == len(uses)
        assert sum(hits) <= best, name


@given(windows_drawn)
@settings(max_examples=30)
def test_with_enough_memory_every_reuse_is_a_hit(windows: list[list[int]]) -> None:
    uses = [page for window in windows for page in window]
    reuses = len(uses) - len(set(uses))
    for name, order in orders(PAGES).items():
        assert sum(hits_of(order, windows)) == reuses, name
    assert sum(optimum(uses, PAGES)) == reuses


def most_hits(uses: list[int], capacity: int) -> int:
    """The most hits that any choice of victims gives, by trying all."""
    reached = {frozenset[int](): 0}
    for page in uses:
        after: dict[frozenset[int], int] = {}
        for memory, hits in reached.items():
            if page in memory:
                choices, gained = [memory], hits + 1
            elif len(memory) < capacity:
                choices, gained = [memory | {page}], hits
            else:
                kept = combinations(sorted(memory), capacity - 1)
                choices, gained = [frozenset(part) | {page} for part in kept], hits
            for choice in choices:
                after[choice] = max(after.get(choice, 0), gained)
        reached = after
    return max(reached.values())


@given(st.lists(st.integers(0, 5), min_size=1, max_size=14), st.integers(1, 4))
@settings(max_examples=60)
def test_the_optimum_is_one(uses: list[int], capacity: int) -> None:
    assert sum(optimum(uses, capacity)) == most_hits(uses, capacity)


def test_lru_by_windows() -> None:
    # In the third window 1 is used, so 2 is the one to go for 3.
    assert hits_of(Lru(2), [[1], [2], [1], [3], [1], [2]]) == [
        *(False, False, True, False, True, False)
    ]


def scan_after_work(pages: int, hot: int, seed: int = 1) -> list[list[int]]:
    """A hot set in use for a while; then, beside it, everything else once."""
    random = np.random.default_rng(seed)
    work = [[int(page) for page in random.permutation(hot)[: hot // 2]] for _ in range(40)]
    step = (pages - hot) // 20
    return work[:20] + [
        work[20 + number] + list(range(hot + number * step, hot + (number + 1) * step))
        for number in range(20)
    ]


@pytest.mark.parametrize(
    ("name", "least"),
    [("s3-fifo", 0.98), ("sieve", 0.98), ("clock", 0.9), ("2q", 0.85), (ALWAYS, 0.75)],
)
def test_a_scan_does_not_push_the_working_set_out(name: str, least: float) -> None:
    pages, hot = 8192, 1024
    windows = scan_after_work(pages, hot)

    def share(order: Order) -> float:
        hits = hits_of(order, windows)
        begin = sum(len(window) for window in windows[:20])
        uses = [page for window in windows for page in window]
        late = [hit for at, hit in enumerate(hits) if at >= begin and uses[at] < hot]
        return sum(late) / len(late)

    kept, lost = share(orders(2048, pages)[name]), share(orders(2048, pages)["arrival"])
    # The control: an order that looks at no use loses it.
    assert lost < 0.7
    assert kept > least


def test_the_manager_uses_ages_only_while_they_tell_something() -> None:
    random = np.random.default_rng(3)
    pages = 8192
    told = ManagerOrder(4096, pages)
    hits_of(told, [list(range(4000)), *[list(range(1500))] * 6])
    at_first = told.useful
    anything = [[int(page) for page in random.permutation(pages)[:1000]] for _ in range(40)]
    hits_of(told, anything)
    assert (at_first, told.useful) == (True, False)
    # Too few pages to tell, or enough for so small a guest: as native/src/track.c has it.
    for used, least, useful in ((300, None, True), (300, 1024, False), (60, None, False)):
        few = ManagerOrder(512, 1024, sample_min=least)
        hits_of(few, [list(range(600)), *[list(range(used)) for _ in range(20)]])
        assert few.useful is useful


def test_the_manager_spares_pages_in_use_and_their_block() -> None:
    order = ManagerOrder(256, 4096, always=True)
    windows = [list(range(64)) + list(range(100 * n, 100 * n + 64)) for n in range(1, 40)]
    hits_of(order, [sorted(set(window)) for window in windows])
    assert set(range(64)) <= order.resident


# ---- replay


def trace_of(windows: list[list[int]], marks: dict[str, int] | None = None) -> Trace:
    nr = len(windows) + 1
    rows = np.zeros((nr, 64), np.bool_)
    for number, window in enumerate(windows, 1):
        rows[number, window] = True
    nothing = pack(np.zeros(64, np.bool_))
    return Trace(
        name="made",
        ram_bytes=64 * PAGE,
        stride=1,
        times=np.arange(nr, dtype=np.float64),
        looked=np.ones(nr, np.bool_),
        used=np.array([pack(row) for row in rows]),
        resident=nothing,
        stored=nothing,
        counters={name: np.zeros(nr, np.int64) for name in COUNTERS},
        marks=marks or {},
    )


def test_first_uses_are_not_counted() -> None:
    found = {(item.order, item.share): item for item in replay(trace_of([[1, 2], [1], [3, 4]]))}
    item = found["lru", 0.75]
    assert (item.capacity, item.reuses, item.hits, item.ratio) == (3, 1, 1, 1.0)
    assert item.set_ratio is None


def test_the_working_set_is_what_was_in_use_before_the_mark() -> None:
    windows = [[0, 1, n % 8 + 10] for n in range(8)] + [[0, 1, 40 + n] for n in range(8)]
    assert working_set(windows, 8) == {0, 1, 14, 15, 16, 17}
    assert working_set([[0, 1, n + 10] for n in range(20)], 20) == {0, 1}
    trace = trace_of(windows, {"scan": 9})
    item = replay(trace, names=[OPTIMUM])[-1]
    assert (item.set_pages, item.set_reuses, item.set_hits) == (6, 16, 16)


def test_the_order_inside_a_window_comes_from_the_seed() -> None:
    trace = trace_of([list(range(40))] * 2)
    assert windows_of(trace, 1) == windows_of(trace, 1) != windows_of(trace, 2)
    assert [sorted(window) for window in windows_of(trace)] == [list(range(40))] * 2


# ---- what was recorded, and what the document says of it


def test_recorded_traces_are_small_and_of_the_workloads() -> None:
    assert {path.stem for path in TRACES} == {workload.name for workload in workloads()}
    assert sum(path.stat().st_size for path in TRACES) < 1 << 20
    for workload in workloads():
        trace = load_trace(victims.TRACES / f"{workload.name}.npz")
        assert trace.name == workload.name
        assert len(trace.times) == workload.windows + 1
        # All but those before there was anything to put out were looked at.
        assert trace.looked[1:].mean() > 0.9
        assert set(trace.marks) == ({workload.mark[1]} if workload.mark else set())


@pytest.mark.parametrize("name", ["pack", "database"])
def test_the_document_has_what_the_replay_gives(name: str) -> None:
    text = (TOP / "docs/victims.md").read_text()
    lines = [line for line in text.splitlines() if "hits, % of reuses" in line or " / " in line]
    heads = text[text.index("hits, % of reuses") :].splitlines()[1].split()
    column = heads.index(name) - 1
    outcomes = replay(load_trace(victims.TRACES / f"{name}.npz"))
    for order in NAMES:
        (line, *_) = [line for line in lines if line.startswith(f"{order} ")]
        cells = line.removeprefix(order).replace(" / ", "/").split()
        ratios = [item.ratio for item in outcomes if item.order == order]
        assert cells[column] == "/".join(f"{100 * ratio:.0f}" for ratio in ratios), order


def test_command_on_a_trace(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "made.npz"
    windows = [[0, 1, n % 8 + 10] for n in range(8)] + [[0, 1, 40 + n] for n in range(8)]
    save_trace(trace_of(windows, {"scan": 9}), path)
    assert victims.main([str(path), "--json", str(tmp_path / "out.json")]) == 0
    out = capfd.readouterr().out
    assert "made: hits, % of uses of the 6 pages in use before the scan" in out
    assert all(f"\n{name} " in out for name in NAMES)
    assert '"ratio"' in (tmp_path / "out.json").read_text()
    assert victims.main([str(tmp_path / "none.npz")]) == 1
    assert "there is no trace" in capfd.readouterr().err


# ---- the guests


def test_an_initramfs_is_what_cpio_reads(tmp_path: Path) -> None:
    files = [
        ("bin", 0o040755, b""),
        ("bin/x", 0o100755, b"12345"),
        ("bin/y", 0o120777, b"x"),
        ("init", 0o100755, b""),
    ]
    done = subprocess.run(
        ["cpio", "--extract", "--quiet"], input=_newc(iter(files)), cwd=tmp_path, check=True
    )
    assert done.returncode == 0
    assert (tmp_path / "bin/x").read_bytes() == b"12345"
    assert (tmp_path / "bin/y").resolve() == tmp_path / "bin/x"
    assert (tmp_path / "init").stat().st_mode & 0o777 == 0o755


def test_programs_come_with_their_libraries() -> None:
    workload = Workload("x", "", job="true", programs=(Path("/bin/sh").resolve(),))
    names = [name for name, _, _ in workload._files()]
    assert f"bin/{Path('/bin/sh').resolve().name}" in names
    assert any("libc.so" in name for name in names)
    assert len(names) == len(set(names))
