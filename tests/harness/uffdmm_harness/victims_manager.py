# SPDX-License-Identifier: GPL-2.0-or-later
"""The order of eviction that the manager has, for comparison with others.

This follows ``native/src/evict.c``, ``queue.c`` and ``track.c`` line by line where they decide who
goes: blocks of 64 pages in a queue by arrival, ages from looks, pages in use at the last look and
new ones spared while there are chances, and the rule by which ages count at all.  Left out are
read-ahead, what faults tell of whole blocks (``heat.c``), pins and tiers.  One window of the trace
is one look.
"""

from collections import OrderedDict
from collections.abc import Sequence

from .victims_orders import Order

BLOCK = 64
_BLOCK_WORTHWHILE = 8
_BATCH = 256
_AGE_MAX = 250
_NEW, _NEW_FRESH = 254, 255
SAMPLE_MIN, _SAMPLE_LEAST = 1024, 64
_PAGES_OF_GIB = 1 << 18
_USED_AGAIN_MIN = 0.2
_DOUBTS_MAX = 2
# What a round spares, in the order of the enum in evict.c.
_NONE, _USED, _SPARE_NEW = range(3)


class ManagerOrder(Order):
    """Blocks by arrival and age.

    :param pages: of the guest, of which the chances of a round depend
    :param always: take ages into account from the first look on, whatever they tell
    :param sample_min: pages that a look has to find before it tells anything, else as many as the
        manager asks for
    """

    def __init__(
        self,
        capacity: int,
        pages: int,
        *,
        always: bool = False,
        sample_min: int | None = None,
    ) -> None:
        super().__init__(capacity)
        self._blocks = -(-pages // BLOCK)
        self._queue: OrderedDict[int, set[int]] = OrderedDict()
        self._ages: dict[int, int] = {}
        self._always = always
        scaled = max(_SAMPLE_LEAST, min(SAMPLE_MIN, SAMPLE_MIN * pages // _PAGES_OF_GIB))
        self._sample_min = scaled if sample_min is None else sample_min
        self.useful = always
        self._looks = self._doubts = 0
        # The evictor keeps this free below the limit and then as much again.  Here the limit is
        # so much above the capacity that memory is full when the evictor begins.
        self._margin = max(1, min(512, capacity // 16))

    def arrive(self, page: int) -> None:
        """It comes in, and the evictor begins when nothing is free any more."""
        if len(self.resident) >= self.capacity:
            self._make_room()
        self.resident.add(page)
        self._add(page)

    def _add(self, page: int) -> None:
        self._ages[page] = _NEW_FRESH
        self._queue.setdefault(page // BLOCK, set()).add(page)

    def _victim(self) -> int:
        raise AssertionError("pages go in batches")

    # ---- evict.c

    def _make_room(self) -> None:
        chances = 2 * self._blocks
        while self.capacity - len(self.resident) < self._margin and self._queue:
            chances = self._batch(self._margin - (self.capacity - len(self.resident)), chances)

    def _batch(self, want: int, chances: int) -> int:
        gone = 0
        again: list[tuple[int, set[int]]] = []
        while self._queue and gone + BLOCK <= _BATCH and gone < want:
            block, pages = self._queue.popitem(last=False)
            spare = _SPARE_NEW if chances > self._blocks else _USED if chances else _NONE
            old = self._claim(pages, spare)
            for page in old:
                pages.remove(page)
                self.resident.remove(page)
                del self._ages[page]
            gone += len(old)
            if old:
                if pages:
                    again.append((block, pages))
                continue
            self._queue[block] = pages
            if not chances:
                break
            chances -= 1
        for block, pages in reversed(again):
            self._queue[block] = pages
        return chances

    def _claim(self, pages: set[int], spare: int) -> list[int]:
        old = sorted(page for page in pages if not self._young(page, spare))
        young = len(pages) - len(old)
        return [] if young > len(old) and len(old) < _BLOCK_WORTHWHILE else old

    def _young(self, page: int, spare: int) -> bool:
        if spare == _NONE or not self.useful:
            return False
        age = self._ages[page]
        return age == 0 or (spare == _SPARE_NEW and age >= _NEW)

    # ---- track.c

    def look(self, used: Sequence[int]) -> None:
        """A scan, and the zap of the next look."""
        seen = set(used)
        # By what was known before: in use at the last look, or not; and those in use now.
        were = {True: [0, 0], False: [0, 0]}
        for page, age in self._ages.items():
            if age == _NEW_FRESH:
                # Mapped by its arrival: nothing is known.
                self._ages[page] = _NEW
                continue
            if age != _NEW:
                were[age == 0][0] += 1
                were[age == 0][1] += page in seen
            older = 1 if age == _NEW else min(age + 1, _AGE_MAX)
            self._ages[page] = 0 if page in seen else older
        self._looks += 1
        if not self._always and self._looks >= 2:
            self._judge(*were[True], *were[False])

    def _judge(self, used: int, again: int, idle: int, anew: int) -> None:
        enough = used >= self._sample_min
        apart = enough and idle >= self._sample_min and again / used > 2 * anew / idle
        if apart or (self.useful and enough and again >= _USED_AGAIN_MIN * used):
            self.useful, self._doubts = True, 0
        elif self.useful:
            self._doubts += 1
            if self._doubts >= _DOUBTS_MAX:
                self.useful, self._doubts = False, 0
