# SPDX-License-Identifier: GPL-2.0-or-later
"""What of a VM's tables becomes a use, and the command."""

import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fake_manager import FakeManager, stats_bytes, struct_bytes
from uffdmm import Stats
from uffdmm._native import lib
from uffdmm.cli.app import main
from uffdmm.pagetable import PageTable, Region
from uffdmm.stats import StatsPages
from uffdmm.trace import Recorder, TraceError
from uffdmm.trace.model import PAGE

IN, OUT, EMPTY = lib.UFFDMM_PAGE_RESIDENT, lib.UFFDMM_PAGE_STORED, lib.UFFDMM_PAGE_EMPTY
NEW, FRESH, AHEAD = 254, 255, 253


class TableVm:
    """A VM whose tables and counters are changed under the recorder's eyes."""

    vm_name = "vm"

    def __init__(self, pages: list[int], page_size: int = PAGE) -> None:
        self.page_size = page_size
        self.pages = pages
        self.fds = []
        for nr in pages:
            header = struct_bytes(
                "struct uffdmm_table_header",
                {
                    "magic": lib.UFFDMM_TABLE_MAGIC,
                    "version": lib.UFFDMM_TABLE_VERSION,
                    "nr_pages": nr,
                    "entries_offset": 4096,
                    "ages_offset": 4096 + 8 * nr,
                },
            )
            fd = os.memfd_create("table")
            os.write(fd, header.ljust(4096, b"\0") + bytes(9 * nr))
            self.fds.append(fd)
        self.maps = [mmap.mmap(fd, 0) for fd in self.fds]
        self.values: dict[str, Any] = {"ram_bytes": sum(pages) * page_size}
        self.evicted: list[int] = []

    def statistics(self) -> Stats:
        fd = os.memfd_create("stats")
        page = stats_bytes(**self.values).ljust(4096, b"\0")
        os.write(fd, page)
        pages = StatsPages(fd, len(page))
        try:
            return pages.snapshot()
        finally:
            pages.close()

    def regions(self) -> list[Region]:
        return [
            Region(
                *(index, f"mem{index}", nr * self.page_size, self.page_size),
                table=PageTable(os.dup(fd), 4096 + 9 * nr),
            )
            for index, (nr, fd) in enumerate(zip(self.pages, self.fds, strict=True))
        ]

    def evict(self, size: int) -> None:
        self.evicted.append(size)

    def set(self, page: int, state: int, age: int, region: int = 0) -> None:
        nr = self.pages[region]
        view = self.maps[region]
        view[4096 + 8 * page : 4104 + 8 * page] = int(state).to_bytes(8, "little")
        view[4096 + 8 * nr + page] = age

    def look(self, times: int = 1) -> None:
        before = self.values.get("scanned_pages", 0)
        self.values["scanned_pages"] = before + times * self.values["ram_bytes"] // PAGE


def used(recorder: Recorder, sample: int) -> list[int]:
    return np.flatnonzero(recorder.trace().row(sample)).tolist()


@pytest.fixture
def vm() -> TableVm:
    return TableVm([32])


def recorder_of(vm: Any, **values: Any) -> Recorder:
    return Recorder(vm, **values)


def test_young_pages_were_used_when_there_was_a_look(vm: TableVm) -> None:
    for page, age in ((0, 0), (1, 1), (2, 7), (3, 0)):
        vm.set(page, IN, age)
    vm.set(3, OUT, 0)  # an age of a page in a store is something else
    recorder = recorder_of(vm)
    recorder.take(0)
    recorder.take(1)
    assert used(recorder, 1) == []
    vm.look()
    recorder.take(2)
    assert used(recorder, 2) == [0]
    # Two looks since: an age of 1 is one of them.
    vm.look(2)
    recorder.take(3)
    assert used(recorder, 3) == [0, 1]
    assert recorder.trace().looked.tolist() == [False, False, True, True]


def test_what_comes_in_was_used_but_not_what_came_along(vm: TableVm) -> None:
    vm.set(0, OUT, 0)
    vm.set(5, IN, FRESH)
    recorder = recorder_of(vm)
    recorder.take(0)
    vm.set(0, IN, FRESH)
    vm.set(1, IN, NEW)
    vm.set(2, IN, AHEAD)
    recorder.take(1)
    assert used(recorder, 1) == [0, 1]
    # Still new, and nothing more is known; put out and back between two samples is seen.
    vm.set(6, IN, 3)
    recorder.take(2)
    vm.set(6, IN, FRESH)
    recorder.take(3)
    assert used(recorder, 3) == [6]


def test_the_first_sample_tells_what_was_there(vm: TableVm) -> None:
    vm.set(0, IN, 0)
    vm.set(1, lib.UFFDMM_PAGE_CLEAN, 0)
    vm.set(2, OUT, 0)
    vm.values |= {"shares": 300, "min_bytes": 4 * PAGE, "faults": 7}
    recorder = recorder_of(vm, vcpus=2)
    recorder.take(0)
    vm.values["faults"] = 9
    recorder.take(1)
    trace = recorder.trace("other", "by hand")
    assert (trace.name, trace.source, trace.settings.vcpus) == ("other", "by hand", 2)
    assert trace.settings.shares == 300
    assert trace.counters["faults"].tolist() == [7, 9]
    assert np.unpackbits(trace.resident, bitorder="little")[:4].tolist() == [1, 1, 0, 0]
    assert np.unpackbits(trace.stored, bitorder="little")[:4].tolist() == [0, 0, 1, 0]


def test_regions_follow_one_another_and_large_ones_are_thinned() -> None:
    vm = TableVm([16, 16])
    vm.set(4, IN, FRESH, region=1)
    recorder = recorder_of(vm, units=8)
    recorder.take(0)
    vm.set(0, IN, FRESH)
    vm.set(1, IN, FRESH)  # between two that are looked at
    vm.set(8, IN, FRESH, region=1)
    recorder.take(1)
    assert recorder.trace().stride == 4
    assert used(recorder, 1) == [0, 6]


def test_a_huge_page_is_many_units() -> None:
    vm = TableVm([2], page_size=2 << 20)
    recorder = recorder_of(vm)
    recorder.take(0)
    vm.set(1, IN, FRESH)
    recorder.take(1)
    assert used(recorder, 1) == list(range(512, 1024))


def test_a_mark_names_the_next_sample(vm: TableVm) -> None:
    recorder = recorder_of(vm)
    recorder.take(0)
    recorder.mark("begin")
    recorder.take(1)
    assert recorder.trace().marks == {"begin": 1}
    recorder.provoke()
    assert vm.evicted == [1 << 20]


def test_memory_that_grows_ends_it(vm: TableVm) -> None:
    recorder = recorder_of(vm)
    recorder.take(0)
    with pytest.raises(TraceError, match="1 samples make no trace"):
        recorder.trace()
    vm.values["ram_bytes"] += PAGE
    with pytest.raises(TraceError, match="first sample it had"):
        recorder.take(1)
    recorder.close()


def test_regions_that_are_not_all_are_refused(vm: TableVm) -> None:
    vm.values["ram_bytes"] += PAGE
    with pytest.raises(TraceError, match="not all of its memory"):
        recorder_of(vm).take(0)
    vm.values["ram_bytes"] = 0
    with pytest.raises(TraceError, match="no memory yet"):
        recorder_of(vm)


def test_command_refuses(
    fake: FakeManager, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def run(*words: str) -> tuple[int, str]:
        code = main(["--socket", str(fake.path), "record", *words])
        return code, capfd.readouterr().err

    file = tmp_path / "t.npz"
    assert run("nobody", "-o", str(file))[0] == 4
    code, sentence = run("demo", "-o", str(tmp_path / "none" / "t.npz"))
    assert (code, "its folder does not exist" in sentence) == (1, True)
    # A worker without tables has nothing to record.
    code, sentence = run("demo", "-o", str(file), "--seconds", "1")
    assert (code, "not all of its memory" in sentence) == (1, True)
    assert run("demo")[0] == 2
    assert not list(tmp_path.glob("*.npz"))
