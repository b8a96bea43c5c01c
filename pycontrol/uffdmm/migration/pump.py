# SPDX-License-Identifier: GPL-2.0-or-later
"""Locations to the destination while QEMU iterates: look for changes in S, send, acknowledge."""

import asyncio
import time
from collections import deque

import numpy as np

from ..errors import ManagerError
from .aside import aside
from .codec import Deposit, absent, encode
from .frames import Ack, Channel, PeerError, Refuse, kind_of
from .locations import SET_PAGE, Locations, SetPages, changes
from .worker import ExportedSet, MigrationLink

# Between two looks, and at least so many times as long as a look takes.
_LOOK_SECONDS = 0.003
_REST = 2
_BLOCK_PAGES = 1 << 16
# While S changes, fewer changes wait for more of them, but not for long.
_BATCH = 1 << 14
_PATIENCE_SECONDS = 0.05
# Fewer records are sent: a deposit takes whole slots.
_DEPOSIT_LEAST = 1024
# Blocks that may be under way: what the destination has not taken it need not hold.
_UNDER_WAY = 64


class Pump:
    """The locations of one session.

    :param deposits: both workers can have records by way of the volume
    """

    def __init__(
        self,
        link: MigrationLink,
        busy: asyncio.Lock,
        channel: Channel,
        session: int,
        *,
        deposits: bool = False,
    ) -> None:
        self._link, self._busy = link, busy
        self._channel, self._session = channel, session
        self._deposits = deposits
        self._sets: list[ExportedSet] = []
        self._sent: list[SetPages] = []
        self._seen: list[int] = []
        # Since when changes wait for more, and how many there were at the last look.
        self._waiting: dict[int, tuple[float, int]] = {}
        self._blocks = self._acked = 0
        # What an acknowledgement stands for: blocks so far, region, changes.
        self._promised: deque[tuple[int, int, int]] = deque()
        self._room = asyncio.Event()
        self.sent_bytes = 0

    async def run(self, names: list[str]) -> None:
        """Work until cancelled.

        :param names: regions in the order of the offer
        :raise PeerError: the destination refuses or is lost
        :raise UffdmmError: the worker is lost
        """
        listening = asyncio.create_task(self._listen())
        sending = asyncio.create_task(self._look_and_send(names))
        try:
            done, _ = await asyncio.wait((listening, sending), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (listening, sending):
                task.cancel()
            await asyncio.gather(listening, sending, return_exceptions=True)

    async def _look_and_send(self, names: list[str]) -> None:
        while True:
            began = time.monotonic()
            if not self._sets:
                await self._map()
            for index, exported in enumerate(self._sets):
                known = exported.changes
                if self._due(index, known, began):
                    await self._send(names.index(exported.name), index, exported, known)
            spent = time.monotonic() - began
            await asyncio.sleep(max(_LOOK_SECONDS, min(_REST * spent, 0.05)))

    def _due(self, index: int, known: int, now: float) -> bool:
        """Whether changes should be sent; at the end, when no more come, that is at once."""
        if known == self._seen[index]:
            return False
        since, before = self._waiting.pop(index, (now, -1))
        if (
            known - self._seen[index] >= _BATCH
            or known == before
            or now - since >= _PATIENCE_SECONDS
        ):
            return True
        self._waiting[index] = (since, known)
        return False

    async def _map(self) -> None:
        async with self._busy:
            self._sets = await aside(self._link.export)
        self._sent = [np.zeros(len(exported.pages), SET_PAGE) for exported in self._sets]
        self._seen = [0] * len(self._sets)

    async def _send(self, region: int, index: int, exported: ExportedSet, known: int) -> None:
        found = await aside(changes, exported.pages, self._sent[index], exported.ages)
        for at in range(0, len(found), _BLOCK_PAGES):
            await self._send_block(region, found[at : at + _BLOCK_PAGES])
        self._seen[index] = known
        if self._acked >= self._blocks:
            # Nothing differed: what was changed there and back is known already.
            await self._acknowledge(exported.region_id, known)
        else:
            self._promised.append((self._blocks, exported.region_id, known))

    async def _send_block(self, region: int, part: Locations) -> None:
        while self._blocks - self._acked >= _UNDER_WAY:
            self._room.clear()
            await self._room.wait()
        data = await aside(encode, part, await self._deposit(part))
        self._blocks += 1
        await self._channel.send_block(region, data)
        self.sent_bytes += len(data)

    async def _deposit(self, part: Locations) -> Deposit | None:
        """Leave the records of a block in the volume, if that is worth it and there is room."""
        records = part["record"][absent(part)]
        if not self._deposits or len(records) < _DEPOSIT_LEAST:
            return None
        try:
            async with self._busy:
                slot = await aside(self._link.deposit, self._session, records)
        except ManagerError:
            # Full, or its store fails just now: they can go with the locations.
            return None
        return Deposit.of(slot, records)

    async def _listen(self) -> None:
        while True:
            frame = await self._channel.receive()
            if isinstance(frame, Refuse):
                raise PeerError(f"the destination gave up: {frame.message}", frame.remedy)
            if not isinstance(frame, Ack) or not self._acked <= frame.blocks <= self._blocks:
                raise PeerError(
                    f"the destination sent '{kind_of(frame)}' where acknowledgements are due"
                )
            self._acked = frame.blocks
            self._room.set()
            last: dict[int, int] = {}
            while self._promised and self._promised[0][0] <= self._acked:
                _, region_id, known = self._promised.popleft()
                last[region_id] = known
            for region_id, known in last.items():
                await self._acknowledge(region_id, known)

    async def _acknowledge(self, region_id: int, known: int) -> None:
        async with self._busy:
            await aside(self._link.acknowledge, self._session, region_id, known)

    def close(self) -> None:
        """Unmap what was exported."""
        for exported in self._sets:
            exported.close()
        self._sets = []
