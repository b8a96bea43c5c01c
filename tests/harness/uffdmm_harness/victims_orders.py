# SPDX-License-Identifier: GPL-2.0-or-later
"""Orders of eviction, to be compared on recorded accesses.

What an order gets to know is what the manager can: each page that comes in, at once and in turn;
and, at the end of a window, which of the pages in memory were in use in it, by number.  Uses of
pages in memory have no order inside a window.  ``victims_manager`` has what the manager does;
``optimum`` here knows the future.
"""

import heapq
from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence


class Order(ABC):
    """Keeps at most ``capacity`` pages in memory."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.resident: set[int] = set()

    def arrive(self, page: int) -> None:
        """A page that was not in memory comes in; another one may have to go."""
        if len(self.resident) >= self.capacity:
            self.resident.remove(self._victim())
        self.resident.add(page)
        self._add(page)

    @abstractmethod
    def look(self, used: Sequence[int]) -> None:
        """The end of a window: pages in memory that were in use, those that just came in not."""

    @abstractmethod
    def _add(self, page: int) -> None: ...

    @abstractmethod
    def _victim(self) -> int:
        """Take a page out of the order."""


class Arrival(Order):
    """First in, first out: uses are not looked at."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._queue: deque[int] = deque()

    def look(self, used: Sequence[int]) -> None:
        """Nothing is learnt."""

    def _add(self, page: int) -> None:
        self._queue.append(page)

    def _victim(self) -> int:
        return self._queue.popleft()


class Lru(Order):
    """The page whose last use is longest ago."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._queue: OrderedDict[int, None] = OrderedDict()

    def look(self, used: Sequence[int]) -> None:
        """Used pages go to the young end."""
        for page in used:
            self._queue.move_to_end(page)

    def _add(self, page: int) -> None:
        self._queue[page] = None

    def _victim(self) -> int:
        return self._queue.popitem(last=False)[0]


class Clock(Order):
    """Second chance: the oldest by arrival that was not used since it was last looked at."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._queue: OrderedDict[int, bool] = OrderedDict()

    def look(self, used: Sequence[int]) -> None:
        """Used pages get their bit."""
        for page in used:
            self._queue[page] = True

    def _add(self, page: int) -> None:
        self._queue[page] = False

    def _victim(self) -> int:
        while True:
            page, referenced = self._queue.popitem(last=False)
            if not referenced:
                return page
            self._queue[page] = False


class TwoQ(Order):
    """2Q (Johnson, Shasha 1994): what comes back after it went is kept by its use, all else not."""

    IN, OUT = 0.25, 0.5

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._in: OrderedDict[int, None] = OrderedDict()
        self._out: OrderedDict[int, None] = OrderedDict()
        self._main: OrderedDict[int, None] = OrderedDict()

    def look(self, used: Sequence[int]) -> None:
        """Order of use in the main queue; the first one stays in order of arrival."""
        for page in used:
            if page in self._main:
                self._main.move_to_end(page)

    def _add(self, page: int) -> None:
        if page in self._out:
            del self._out[page]
            self._main[page] = None
        else:
            self._in[page] = None

    def _victim(self) -> int:
        if len(self._in) > self.IN * self.capacity or not self._main:
            page, _ = self._in.popitem(last=False)
            self._out[page] = None
            if len(self._out) > self.OUT * self.capacity:
                self._out.popitem(last=False)
            return page
        return self._main.popitem(last=False)[0]


class S3Fifo(Order):
    """S3-FIFO (Yang and others 2023): a small queue on trial, a main queue, a list of the gone."""

    SMALL, MOST = 0.1, 3

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._small: deque[int] = deque()
        self._main: deque[int] = deque()
        self._ghost: OrderedDict[int, None] = OrderedDict()
        self._uses: dict[int, int] = {}

    def look(self, used: Sequence[int]) -> None:
        """Counts up to three."""
        for page in used:
            self._uses[page] = min(self.MOST, self._uses[page] + 1)

    def _add(self, page: int) -> None:
        self._uses[page] = 0
        if page in self._ghost:
            del self._ghost[page]
            self._main.append(page)
        else:
            self._small.append(page)

    def _victim(self) -> int:
        while True:
            if len(self._small) >= self.SMALL * self.capacity or not self._main:
                page = self._small.popleft()
                if self._uses[page] > 1:
                    self._uses[page] = 0
                    self._main.append(page)
                    continue
                self._ghost[page] = None
                if len(self._ghost) > (1 - self.SMALL) * self.capacity:
                    self._ghost.popitem(last=False)
            else:
                page = self._main.popleft()
                if self._uses[page]:
                    self._uses[page] -= 1
                    self._main.append(page)
                    continue
            del self._uses[page]
            return page


class Sieve(Order):
    """SIEVE (Zhang and others 2024): a hand goes from old to young; who was used stays in place."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        # Neighbours in order of arrival; -1 is the head, before the oldest and behind the youngest.
        self._older: dict[int, int] = {-1: -1}
        self._younger: dict[int, int] = {-1: -1}
        self._used: set[int] = set()
        self._hand = -1

    def look(self, used: Sequence[int]) -> None:
        """Used pages get their bit."""
        self._used.update(used)

    def _add(self, page: int) -> None:
        youngest = self._older[-1]
        self._older[page], self._younger[page] = youngest, -1
        self._younger[youngest] = self._older[-1] = page

    def _victim(self) -> int:
        page = self._hand
        while page == -1 or page in self._used:
            self._used.discard(page)
            page = self._younger[page]
        older, younger = self._older.pop(page), self._younger.pop(page)
        self._younger[older], self._older[younger] = younger, older
        self._hand = younger
        return page


ORDERS: dict[str, Callable[[int], Order]] = {
    "arrival": Arrival,
    "clock": Clock,
    "lru": Lru,
    "2q": TwoQ,
    "s3-fifo": S3Fifo,
    "sieve": Sieve,
}


def optimum(uses: Iterable[int], capacity: int) -> list[bool]:
    """Belady's: for each use, whether its page was in memory when the next use decides who goes."""
    order = list(uses)
    never = len(order)
    following = [never] * never
    last: dict[int, int] = {}
    for at in range(never - 1, -1, -1):
        following[at] = last.get(order[at], never)
        last[order[at]] = at
    resident: dict[int, int] = {}  # page: its next use
    heap: list[tuple[int, int]] = []  # the later the next use, the earlier out
    hits = []
    for at, page in enumerate(order):
        hit = page in resident
        hits.append(hit)
        if not hit and len(resident) >= capacity:
            while True:
                negative, victim = heapq.heappop(heap)
                # An entry from before a later use of the page is out of date.
                if resident.get(victim) == -negative:
                    del resident[victim]
                    break
        resident[page] = following[at]
        heapq.heappush(heap, (-following[at], page))
    return hits
