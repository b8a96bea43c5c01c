# SPDX-License-Identifier: GPL-2.0-or-later
"""The destination of migrations: answers offers, takes locations in, lets guests run.

Theory of operation.  A part of ``uffdmm serve`` that listens where the configuration says.  One
connection is one attempt (:class:`Attempt`); QEMU's stream comes on a second one and is passed on
as it is.  Nothing is kept that would be missed: what is true of a session stands in the worker and
in the volume, so a control plane that was started anew can hand over what its predecessor received.
Until the volume was taken the guest here is a copy: when the attempt ends before all has arrived
QEMU is ended, because it can receive no second time; when all has arrived it stays, paused, because
the source may be gone for good and this copy be all there is.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ..client import Manager
from ..errors import ManagerError, NoSuchVmError, UffdmmError
from ..serve.log import Level, Log
from ..stats import TierType
from . import frames, tunnel
from .aside import aside
from .certificates import peer_names, server_context
from .codec import Deposit, absent, decode
from .frames import Accept, Ack, Block, Channel, Offer, PeerError, Refuse, Resume, kind_of
from .locations import Locations
from .qmp import Qmp, QmpSilentError, monitor_path
from .stages import Stage
from .worker import MigrationLink
from .worker import Stage as WorkerStage

_T = TypeVar("_T")

_GREET_SECONDS = 10.0
_OFFER_SECONDS = 30.0
# The source speaks when something changes; a silent one is still connected.
_POLL_SECONDS = 0.5
_ATTEMPTS_MAX = 16
_CONNECTIONS_MAX = 128
_STREAM = "uffdmm-migration"
_COLLECT_ATTEMPTS, _COLLECT_PAUSE = 4, 0.2
_ENTRY_TIER_SHIFT, _ENTRY_TIER_MASK = 8, 0xF


@dataclass(frozen=True, slots=True)
class Settings:
    """Where to listen, and how VMs are found."""

    address: str
    port: int
    certificates: Path
    qmp: str  # path of a VM's monitor socket, {vm} is its name
    qmp_of: dict[str, str] = field(default_factory=dict)  # VMs whose path is another one
    allow: tuple[str, ...] = ()  # names in certificates; empty: all of the authority
    prefetch: bool = True  # bring back what a VM used last, once it runs here

    def monitor(self, vm: str) -> Path:
        """The monitor socket of a VM."""
        return monitor_path(self.qmp_of.get(vm, self.qmp), vm)


class Receiver:
    """Listens for other control planes."""

    def __init__(self, manager: Manager, settings: Settings, log: Log) -> None:
        self.manager, self.settings, self.log = manager, settings, log
        self.attempts: dict[int, Attempt] = {}
        self._connections = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen.

        :raise UffdmmError: certificates cannot be used, or the address is taken
        """
        context = server_context(self.settings.certificates)
        try:
            self._server = await asyncio.start_server(
                self._connected,
                *(self.settings.address, self.settings.port),
                ssl=context,
                ssl_handshake_timeout=_GREET_SECONDS,
                limit=tunnel.LIMIT,
            )
        except OSError as error:
            raise UffdmmError(
                f"cannot listen for migrations on {self.settings.address}:{self.settings.port}:"
                f" {(error.strerror or str(error)).lower()}",
                "choose another address in [migration] listen",
            ) from None
        self.log.line(
            *(Level.NOTICE, "migration-listening", "migrations are accepted"),
            address=self.settings.address,
            port=self.port,
        )

    @property
    def port(self) -> int:
        """The port, of which the configuration may have said 0."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """End all attempts, and listen no more."""
        if self._server is not None:
            self._server.close()
        for attempt in list(self.attempts.values()):
            attempt.cancel()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        channel = Channel(reader, writer)
        self._connections += 1
        try:
            if self._connections > _CONNECTIONS_MAX:
                return
            await self._converse(channel)
        except (UffdmmError, OSError) as error:
            self.log.once(*(Level.WARNING, "migration-peer", str(error)), peer=_peer_of(writer))
        finally:
            self._connections -= 1
            channel.close()

    async def _converse(self, channel: Channel) -> None:
        names = peer_names(channel.writer.get_extra_info("peercert"))
        allow = self.settings.allow
        if allow and not set(allow) & set(names):
            await channel.send(
                Refuse(
                    stage=Stage.CONNECT,
                    message=f"a certificate of {', '.join(names) or 'nobody'} may not migrate here",
                    remedy="[migration] allow over there lists who may",
                )
            )
            return
        await channel.greet(_GREET_SECONDS)
        first = await channel.receive(_OFFER_SECONDS)
        if isinstance(first, frames.Tunnel):
            await self._tunnel(channel, first.session)
        elif isinstance(first, Offer | Resume):
            await self._attempt(channel, first)
        else:
            raise PeerError(f"a conversation cannot begin with '{kind_of(first)}'")

    async def _tunnel(self, channel: Channel, session: int) -> None:
        attempt = self.attempts.get(session)
        ours = attempt.take_stream() if attempt else None
        if ours is None:
            raise PeerError("a stream came for a session that awaits none")
        local = await tunnel.open_socket(ours)
        await tunnel.relay((channel.reader, channel.writer), local)

    async def _attempt(self, channel: Channel, first: Offer | Resume) -> None:
        if first.session in self.attempts and not (isinstance(first, Offer) and first.dry_run):
            await channel.send(
                Refuse(
                    stage=Stage.OFFER,
                    message=f"session {first.session:#x} is under way already",
                    remedy="wait until its connection has ended",
                )
            )
            return
        if any(other.vm == first.vm for other in self.attempts.values()):
            # Its monitor serves one of them, and its QEMU can receive once.
            await channel.send(
                Refuse(
                    stage=Stage.OFFER,
                    message=f"VM '{first.vm}' is being received here already",
                    remedy="wait until its connection has ended",
                )
            )
            return
        if len(self.attempts) >= _ATTEMPTS_MAX:
            await channel.send(
                Refuse(
                    stage=Stage.OFFER,
                    message=f"{_ATTEMPTS_MAX} migrations come in already",
                    remedy="try again when one of them has ended",
                )
            )
            return
        attempt = Attempt(self, channel, first.vm)
        key = first.session if not (isinstance(first, Offer) and first.dry_run) else -id(attempt)
        self.attempts[key] = attempt
        try:
            await attempt.run(first)
        finally:
            del self.attempts[key]


class Attempt:
    """One VM that comes, or its hand-over."""

    def __init__(self, receiver: Receiver, channel: Channel, vm: str) -> None:
        self._receiver, self._channel, self.vm = receiver, channel, vm
        self._log = receiver.log
        self._link: MigrationLink | None = None
        self._qmp: Qmp | None = None
        self._session = 0
        self._regions: list[frames.RegionOffer] = []
        self._tiers = (0, 0)  # index over there, index here
        self._stream: Any = None
        self._blocks = 0
        self._started = self._taken = False
        self._task: asyncio.Task[Any] | None = None

    def cancel(self) -> None:
        """End it, from the same loop."""
        if self._task is not None:
            self._task.cancel()

    def take_stream(self) -> Any:
        """The socket of QEMU's stream, once."""
        stream, self._stream = self._stream, None
        return stream

    async def run(self, first: Offer | Resume) -> None:
        """From the offer until the guest runs, or the attempt has ended."""
        self._task = asyncio.current_task()
        self._session = first.session
        stage = Stage.OFFER
        try:
            if isinstance(first, Resume):
                stage = Stage.TAKE
                await self._resume()
            elif first.dry_run:
                await self._channel.send(await self._look(first))
                return
            else:
                accept = await self._prepare(first)
                self._say(Level.NOTICE, "migration-incoming", "a migration begins")
                await self._channel.send(accept)
                stage = Stage.TRANSFER
                await self._receive()
        except UffdmmError as error:
            self._say(Level.ERROR, "migration-failed", error.message)
            with contextlib.suppress(UffdmmError):
                await self._channel.send(
                    Refuse(stage=stage, message=error.message[:4000], remedy=error.remedy)
                )
        finally:
            await self._end()

    # ---- before

    async def _look(self, offer: Offer) -> Accept:
        """Whether this VM can come.

        :raise UffdmmError: it cannot, and why
        """
        if offer.channels and not offer.direct:
            raise UffdmmError(
                "multifd opens connections of its own and cannot go through TLS here",
                "use --direct with --channels, on a network that is trusted",
            )
        manager, settings = self._receiver.manager, self._receiver.settings
        try:
            vm = await aside(manager.open_vm, offer.vm)
        except NoSuchVmError:
            raise UffdmmError(
                f"no VM '{offer.vm}' waits for a migration on this host",
                "start its QEMU here with the same memory, -S and -incoming defer",
            ) from None
        link = self._link = MigrationLink(vm)
        self._qmp = Qmp(offer.vm, settings.monitor(offer.vm))
        await self._qmp.connect()
        state = await self._qmp.run_state()
        if state != "inmigrate":
            raise UffdmmError(
                f"VM '{offer.vm}' exists here already, and does not wait for a migration ({state})",
                "end it, or give one of the two another name",
            )
        status = await self._ask(link.status)
        if status.stage is not WorkerStage.IDLE:
            raise UffdmmError(
                f"VM '{offer.vm}' has had an attempt already",
                "start its QEMU here anew; it can receive once",
            )
        known = await self._qmp.known_capabilities()
        if "swap-locations" not in known:
            raise UffdmmError(
                "QEMU here has no migration capability 'swap-locations'",
                "start the VM with the patched QEMU",
            )
        await self._compare(offer)
        index, notes = await self._tier_for(offer)
        self._tiers = (offer.tier.index if offer.tier else 0, index)
        names = [tier.name for tier in await self._ask(vm.tiers)]
        return Accept(
            tier=names[index] if index else None,
            notes=notes,
            deposits=bool(index) and await self._ask(link.takes_records),
        )

    async def _compare(self, offer: Offer) -> None:
        assert self._link is not None
        regions = await self._ask(self._link.vm.regions)
        here = {region.name: (region.size, region.page_size) for region in regions}
        for region in regions:
            region.close()
        there = {region.name: (region.size, region.page_size) for region in offer.regions}
        if here.keys() != there.keys():
            raise UffdmmError(
                f"the VM has the memory regions {_listed(there)} there and {_listed(here)} here",
                "give the memory backends of both sides the same ids",
            )
        for name, (size, page_size) in there.items():
            if here[name] != (size, page_size):
                raise UffdmmError(
                    f"region '{name}' has {size} bytes in pages of {page_size} there, and"
                    f" {here[name][0]} bytes in pages of {here[name][1]} here",
                    "start QEMU here with the same memory",
                )
        self._regions = offer.regions

    async def _tier_for(self, offer: Offer) -> tuple[int, list[str]]:
        """Index of the tier that is the same here, 0 if there is none; and remarks."""
        assert self._link is not None
        if offer.tier is None:
            return 0, ["the source has no tier that this host could read: all goes by content"]
        wanted = TierType(offer.tier.kind)
        tiers = await self._ask(self._link.vm.tiers)
        fits = [
            (tier.name != offer.tier.name, index)
            for index, tier in enumerate(tiers)
            if index and tier.shared and tier.type == wanted
        ]
        if not fits:
            return 0, [
                f"this host has no shared tier of type {wanted.value}: what is swapped goes by"
                " content"
            ]
        if len(fits) > 1 and not any(other is False for other, _ in fits):
            return 0, [
                f"no shared tier here is named '{offer.tier.name}', and there are several:"
                " what is swapped goes by content"
            ]
        return min(fits)[1], []

    async def _prepare(self, offer: Offer) -> Accept:
        """Have worker and QEMU wait."""
        accept = await self._look(offer)
        assert self._link is not None
        assert self._qmp is not None
        index = self._tiers[1]
        tier = offer.tier if index else None
        await self._ask(
            self._link.prepare,
            offer.session,
            index,
            tier.epoch if tier else 0,
            bytes.fromhex(tier.volume) if tier else bytes(16),
            offer.vm,
        )
        # Whatever fails from here on: this QEMU and its worker can be used no second time.
        self._started = True
        # While it waits this is what -S is: else it would run the guest as soon as it is loaded,
        # while the source may still fail and go on.
        await self._qmp.execute("stop")
        await self._qmp.capabilities(
            {"return-path": True, "swap-locations": True, "multifd": offer.channels > 0}
        )
        if offer.channels:
            await self._qmp.execute("migrate-set-parameters", multifd_channels=offer.channels)
        if not offer.direct:
            self._stream = await self._qmp.stream(_STREAM)
            await self._qmp.execute("migrate-incoming", uri=f"fd:{_STREAM}")
            return accept
        address = self._channel.writer.get_extra_info("sockname")[0]
        bracketed = f"[{address}]" if ":" in address else address
        await self._qmp.execute("migrate-incoming", uri=f"tcp:{bracketed}:0")
        listening = (await self._qmp.migration()).get("socket-address", [])
        if not listening:
            raise UffdmmError("QEMU does not tell where it listens")
        port = listening[0]["port"]
        return accept.model_copy(update={"address": f"tcp:{bracketed}:{port}"})

    # ---- while it comes

    async def _receive(self) -> None:
        reading = asyncio.create_task(self._read_frames())
        watching = asyncio.create_task(self._watch())
        try:
            done, _ = await asyncio.wait((reading, watching), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (reading, watching):
                task.cancel()
            await asyncio.gather(reading, watching, return_exceptions=True)

    async def _watch(self) -> None:
        """Look at QEMU until it fails.

        :raise UffdmmError: it did
        """
        assert self._qmp is not None
        while True:
            info = await self._qmp.migration()
            if info["status"] in ("failed", "cancelled"):
                raise UffdmmError(
                    f"QEMU could not load the VM: {info.get('error-desc', 'its log says why')}"
                )
            await asyncio.sleep(_POLL_SECONDS)

    async def _read_frames(self) -> None:
        while not self._taken:
            frame = await self._channel.receive()
            if isinstance(frame, Block):
                await self._take_in(frame)
            elif isinstance(frame, frames.Released):
                await self._take(frame)
            elif isinstance(frame, Refuse):
                raise PeerError(frame.message, frame.remedy)
            else:
                raise PeerError(f"the source sent '{kind_of(frame)}' in the middle of a migration")

    async def _take_in(self, block: Block) -> None:
        assert self._link is not None
        if block.region >= len(self._regions):
            raise PeerError(f"locations came for region {block.region}, which was not offered")
        locations, deposit = await aside(decode, block.data)
        if deposit is not None:
            await self._collect(locations, deposit)
        there, here = self._tiers
        entry = locations["entry"]
        tier = (entry >> _ENTRY_TIER_SHIFT) & _ENTRY_TIER_MASK
        foreign = (tier != 0) & (tier != there)
        if bool(foreign.any()) or (bool((tier != 0).any()) and not here):
            raise PeerError("locations came in a tier that was not offered")
        if here and here != there:
            moved = tier != 0
            entry[moved] += (here - there) << _ENTRY_TIER_SHIFT
        await self._ask(
            self._link.take_in, self._session, self._regions[block.region].name, locations
        )
        self._blocks += 1
        await self._channel.send(Ack(blocks=self._blocks))

    async def _collect(self, locations: Locations, deposit: Deposit) -> None:
        """Fill in the records that the source has left in the volume."""
        assert self._link is not None
        missing = absent(locations)
        count = int(missing.sum())
        for attempt in range(_COLLECT_ATTEMPTS):
            # What one host has written another may see a moment later.
            await asyncio.sleep(_COLLECT_PAUSE * attempt)
            records = await self._ask(self._link.collect, self._session, deposit.slot, count)
            if deposit.fits(records):
                locations["record"][missing] = records
                return
        raise PeerError(
            f"the checksums of {count} pages are not in slot {deposit.slot} of the volume, where"
            " the source says that it has written them",
            "do both hosts reach the same volume, and see what the other has written?",
        )

    # ---- the hand-over

    async def _resume(self) -> None:
        """A connection was lost, or a control plane, when only the hand-over was missing."""
        manager, settings = self._receiver.manager, self._receiver.settings
        try:
            vm = await aside(manager.open_vm, self.vm)
        except NoSuchVmError:
            raise UffdmmError(
                f"VM '{self.vm}' is not on this host any more",
                "its volume still has what was swapped; what was in memory is on the source only",
            ) from None
        link = self._link = MigrationLink(vm)
        self._qmp = Qmp(self.vm, settings.monitor(self.vm))
        await self._qmp.connect()
        status = await self._ask(link.status)
        if status.session != self._session or status.stage not in (
            WorkerStage.INSTALLED,
            WorkerStage.TAKEN,
        ):
            raise UffdmmError(f"no guest of session {self._session:#x} waits here")
        running = status.stage is WorkerStage.TAKEN and await self._qmp.run_state() == "running"
        self._started = True
        self._taken = running
        await self._channel.send(frames.Waiting(running=running))
        if not running:
            await self._read_frames()

    async def _take(self, released: frames.Released) -> None:
        assert self._link is not None
        assert self._qmp is not None
        await take_and_run(self._link, self._qmp, self._session, [released.epoch], run=released.run)
        self._taken = True
        try:
            await self._channel.send(frames.Running())
        finally:
            if self._receiver.settings.prefetch:
                await prefetch(self._link)
        self._say(Level.NOTICE, "migration-done", "the guest is here")

    async def _end(self) -> None:
        try:
            if self._started and not self._taken:
                await self._give_up()
        finally:
            if self._stream is not None:
                self._stream.close()
            if self._qmp is not None:
                await self._qmp.close()
            if self._link is not None:
                self._link.close()

    async def _give_up(self) -> None:
        """End a QEMU that cannot be used any more, or keep the one copy that there may be."""
        assert self._link is not None
        assert self._qmp is not None
        try:
            status = await self._ask(self._link.status)
            if status.stage in (WorkerStage.INSTALLED, WorkerStage.TAKEN):
                self._say(
                    *(Level.ERROR, "migration-waits"),
                    "all of the VM has arrived, but the source has not said that it may run: it"
                    " stays paused.  Migrate again from the source; if the source is lost for"
                    f" good: uffdmm migrate {self.vm} --take",
                )
                return
        except UffdmmError:
            # Without its worker there is nothing to keep.
            pass
        try:
            await self._qmp.quit()
        except QmpSilentError:
            self._say(
                *(Level.ERROR, "migration-stuck"),
                "QEMU does not end, so it waits for its manager; it can receive no second time:"
                " kill it",
            )
            return
        self._say(Level.WARNING, "migration-ended", "QEMU was ended: it can receive no second time")

    # ---- small things

    def _say(self, level: Level, event: str, text: str) -> None:
        self._log.line(
            *(level, event, f"VM '{self.vm}': {text}"),
            vm=self.vm,
            session=f"{self._session:#x}",
            peer=_peer_of(self._channel.writer),
        )

    async def _ask(self, question: Callable[..., _T], *arguments: object) -> _T:
        """Ask the worker something, in a thread; one thing at a time by how this is written."""
        return await aside(question, *arguments)


async def take_and_run(
    link: MigrationLink, qmp: Qmp, session: int, epochs: list[int], *, run: bool
) -> None:
    """Take the volume in one of these epochs, let the guest run.

    :raise UffdmmError: it is not ours to take; the guest stays paused
    """
    refusal: ManagerError | None = None
    status = await aside(link.status)
    if status.stage is not WorkerStage.TAKEN:
        for epoch in epochs:
            try:
                await aside(link.take, session, epoch)
                refusal = None
                break
            except ManagerError as error:
                refusal = error
    if refusal is not None:
        raise refusal
    if run:
        await qmp.execute("cont")


async def prefetch(link: MigrationLink) -> None:
    """Have brought back in the background what the guest used last, as far as there is room."""
    # Nothing that the guest waits for: what it does not find is fetched when it asks.
    with contextlib.suppress(UffdmmError):
        stats = await aside(link.vm.statistics)
        await aside(link.vm.prefetch, stats.ram_bytes)


async def take_over(manager: Manager, vm: str, qmp_path: Path) -> None:
    """Let a guest run whose source is lost, on the word of a person.

    :raise UffdmmError: none waits here, or the volume was never released
    """
    link = MigrationLink(await aside(manager.open_vm, vm))
    qmp = Qmp(vm, qmp_path)
    try:
        await qmp.connect()
        status = await aside(link.status)
        if status.stage not in (WorkerStage.INSTALLED, WorkerStage.TAKEN):
            raise UffdmmError(
                f"VM '{vm}' does not wait for its hand-over here ({status.stage.name.lower()})",
                "'uffdmm migrate --take' is for the destination, after all has arrived",
            )
        # Released in the next epoch, or by the end of the source's QEMU in the one it had.
        await take_and_run(*(link, qmp, status.session), [status.epoch + 1, status.epoch], run=True)
        await prefetch(link)
    finally:
        await qmp.close()
        link.close()


def _peer_of(writer: asyncio.StreamWriter) -> str:
    name = writer.get_extra_info("peername")
    return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else "unknown"


def _listed(names: dict[str, tuple[int, int]]) -> str:
    return ", ".join(sorted(names)) or "none"


__all__ = ["Attempt", "Receiver", "Settings", "take_over"]
