# SPDX-License-Identifier: GPL-2.0-or-later
"""What a seed stands for: disturbances, whom they hit, and the pauses between them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Action:
    """One disturbance; the value is MiB or milliseconds, as its kind says."""

    name: str
    value: int


# Kind: weight, and the range of its value.
ACTIONS: Final[dict[str, tuple[int, int, int]]] = {
    "limit": (6, 32, 120),  # MiB
    "evict": (4, 1, 64),  # MiB
    "prefetch": (4, 1, 64),  # MiB
    "kill_worker": (6, 0, 0),
    "kill_manager": (2, 0, 1000),  # ms until it is started again
    "stop_worker": (2, 10, 2000),  # ms
    "store_errors": (3, 50, 1500),  # ms
    "store_delays": (3, 50, 1500),  # ms
    "server_killed": (2, 0, 1500),  # ms
    "server_paused": (2, 50, 1500),  # ms
}


class Plan:
    """An endless sequence of disturbances.

    :param seed: two plans with the same one are equal
    :param without: kinds that do not occur
    """

    def __init__(self, seed: int, without: Sequence[str] = ()) -> None:
        self._seed = seed
        self._random = random.Random(seed)
        self._kinds = [name for name in ACTIONS if name not in without]
        if not self._kinds:
            raise ValueError("every kind of disturbance is left out")
        self._weights = [ACTIONS[name][0] for name in self._kinds]

    def next(self, names: Sequence[str]) -> tuple[float, Action, str]:
        """Seconds to wait, what to do then, and to which of ``names``."""
        pause = self._random.uniform(0.05, 1.0)
        (kind,) = self._random.choices(self._kinds, self._weights)
        _, low, high = ACTIONS[kind]
        return pause, Action(kind, self._random.randint(low, high)), self._random.choice(names)

    def child(self, name: str) -> random.Random:
        """Numbers for one guest, the same whatever the others do."""
        return random.Random(f"{self._seed}/{name}")
