# SPDX-License-Identifier: GPL-2.0-or-later
"""The source of a migration, from the first look to the end of its QEMU.

Theory of operation.  One stage after the other (``stages``); whatever fails in a stage is undone as
that stage demands, and the error tells where the guest is.  Up to the release of the volume the
guest belongs to this side, and goes on here whatever happens; from then on it never runs here.
What is under way while QEMU iterates: QEMU's stream, through a TLS connection of its own; the
``pump``, which looks for changes in S and sends them; the acknowledgements, by which QEMU knows how
far the destination is.  A process that dies in the middle takes its connections with it, which
ends the attempt; only between the last byte and the release there is nobody who would go on, and
a new ``uffdmm migrate`` finds that state in the worker and does.
"""

import asyncio
import contextlib
import errno
import secrets
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from ..client import Manager
from ..errors import ConnectError, ManagerError, UffdmmError
from . import frames, tunnel
from .aside import aside
from .certificates import CertificateError, client_context
from .frames import Accept, Channel, PeerError, Refuse, kind_of
from .plan import Forecast, forecast, shared_tier
from .pump import Pump
from .qmp import Qmp, QmpFailedError
from .request import DryRun, Progress, Report, Request
from .stages import MigrationError, Stage
from .worker import MigrationLink
from .worker import Stage as WorkerStage

_T = TypeVar("_T")

_CONNECT_SECONDS = 15.0
_OFFER_SECONDS = 90.0
_POLL_SECONDS = 0.01
_SHOW_SECONDS = 0.2
# The server may be unable to tell for so long whether writes of a lost link still land.
_RELEASE_SECONDS = 130.0
_TAKE_SECONDS = 90.0
_RECONNECT_SECONDS = 60.0
_CANCEL_SECONDS = 60.0
_STREAM = "uffdmm-migration"


@dataclass(slots=True)
class _State:
    session: int = 0
    was_running: bool = True
    epoch: int = 0
    tier: int = 0
    tier_name: str | None = None
    regions: list[frames.RegionOffer] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    started: float = 0.0
    ended: float = 0.0
    taken: float = 0.0
    swap_ins: int = 0  # before, and from the release on during the migration
    address: str | None = None
    deposits: bool = False
    info: dict[str, Any] = field(default_factory=dict)


class Source:
    """One migration away from here."""

    def __init__(
        self, manager: Manager, request: Request, show: Callable[[Progress], None]
    ) -> None:
        self._manager, self._request, self._show = manager, request, show
        self._qmp = Qmp(request.vm, request.qmp)
        self._link: MigrationLink | None = None
        # One conversation with the worker at a time.
        self._busy = asyncio.Lock()
        self._channel: Channel | None = None
        self._context: ssl.SSLContext | None = None
        self._pump: Pump | None = None
        self._tasks: list[asyncio.Task[Any]] = []
        self._state = _State()
        self._progress = Progress()
        self.stage = Stage.CHECK

    # ---- what a user asks for

    async def run(self) -> Report:
        """Migrate.

        :raise MigrationError: with the stage, and where the guest is now
        """
        try:
            try:
                if not await self._check():
                    await self._arm_and_offer()
                    await self._start()
                    await self._transfer()
                await self._release()
                await self._take()
                await self._finish()
            except (UffdmmError, asyncio.CancelledError) as error:
                raise await self._undo(error) from None
            return self._report()
        finally:
            await self._close()

    async def dry_run(self) -> DryRun:
        """Tell what a migration would do; nothing is changed.

        :raise MigrationError: that cannot be told, because one side is not reachable
        """
        try:
            return await self._dry_run()
        except UffdmmError as error:
            raise _as_migration(self.stage, error, "nothing was changed") from None
        finally:
            await self._close()

    async def abandon(self) -> None:
        """Have the guest go on here after a control plane was lost before the release.

        :raise MigrationError: the volume is the destination's already, or may be
        """
        try:
            self._link = await aside(self._open)
            await self._qmp.connect()
            status = await self._ask(self._link.status)
            info = await self._qmp.migration()
            if info["status"] not in ("completed", "cancelled", "failed", "none"):
                await self._cancel_qemu()
            if status.session:
                await self._ask(self._link.failed, status.session)
            elif await self._qmp.run_state() == "postmigrate":
                raise UffdmmError(
                    f"QEMU of VM '{self._request.vm}' has sent its guest away, and this manager"
                    " knows nothing of it: it may run elsewhere",
                    "only when it is certain that it does not: 'cont' by QMP",
                )
            if await self._qmp.run_state() != "running":
                await self._qmp.execute("cont")
        except UffdmmError as error:
            raise _as_migration(Stage.RELEASE, error, "nothing was changed") from None
        finally:
            await self._close()

    async def reclaim(self) -> None:
        """Have the guest go on here whose destination was lost before it took the volume.

        :raise MigrationError: it has been taken, or was never released
        """
        try:
            self._link = await aside(self._open)
            await self._qmp.connect()
            status = await self._ask(self._link.status)
            if status.stage is not WorkerStage.RELEASED:
                raise UffdmmError(
                    f"the volume of VM '{self._request.vm}' is not released"
                    f" ({status.stage.name.lower()})",
                    "'uffdmm migrate --reclaim' is for a source whose destination is lost;"
                    " before the release it is --abandon",
                )
            await self._ask(self._link.take, status.session, status.epoch)
            if await self._qmp.run_state() != "running":
                await self._qmp.execute("cont")
        except UffdmmError as error:
            raise _as_migration(Stage.TAKE, error, "nothing was changed") from None
        finally:
            await self._close()

    def cancel_allowed(self) -> bool:
        """Whether the guest still belongs to this side."""
        return list(Stage).index(self.stage) < list(Stage).index(Stage.RELEASE)

    # ---- the stages

    async def _check(self) -> bool:
        """Look at this side; True when an earlier attempt got as far as the hand-over."""
        self._enter(Stage.CHECK)
        link = self._link = await aside(self._open)
        await self._qmp.connect()
        known = await self._qmp.known_capabilities()
        if "swap-locations" not in known:
            raise UffdmmError(
                "this QEMU has no migration capability 'swap-locations'",
                "start the VM with the patched QEMU",
            )
        state = await self._qmp.run_state()
        info = await self._qmp.migration()
        status = await self._ask(link.status)
        vm = link.vm
        stats, tiers = await self._ask(lambda: (vm.statistics(), vm.tiers()))
        index = shared_tier(tiers, self._request.tier)
        if self._request.tier is not None and index is None:
            raise UffdmmError(
                f"tier '{self._request.tier}' is none of VM '{self._request.vm}' that another host"
                " can read",
                "'uffdmm tiers' shows them; a file tier has to be declared shared",
            )
        self._state.tier, self._state.tier_name = index or 0, tiers[index or 0].name
        if status.stage is WorkerStage.RELEASED or (
            # All sent is not all received: only QEMU knows, and its guest may have gone on.
            status.stage is WorkerStage.ALL_SENT
            and info["status"] == "completed"
            and state in ("postmigrate", "finish-migrate")
        ):
            self._state.session, self._state.epoch = status.session, status.epoch
            self._state.tier = status.tier
            self._state.info = info
            self._state.started = self._state.ended = time.monotonic()
            await self._connect()
            return True
        if info["status"] in ("setup", "active", "device", "pre-switchover", "cancelling"):
            raise UffdmmError(
                f"QEMU of VM '{self._request.vm}' migrates already ({info['status']})",
                "wait for its end, or cancel it",
            )
        if state not in ("running", "paused"):
            raise UffdmmError(f"VM '{self._request.vm}' is neither running nor paused: {state}")
        self._state.was_running = state == "running"
        if status.stage in (WorkerStage.RUNNING, WorkerStage.ALL_SENT):
            # A control plane that died has left its session.
            self._state.session = status.session
            await self._end_session()
            self._state.session = 0
        self._state.regions = await self._ask(self._regions)
        self._progress = replace(self._progress, total_bytes=stats.ram_bytes)
        await self._connect()
        return False

    def _open(self) -> MigrationLink:
        return MigrationLink(self._manager.open_vm(self._request.vm))

    def _regions(self) -> list[frames.RegionOffer]:
        assert self._link is not None
        offers = []
        for region in self._link.vm.regions():
            offers.append(
                frames.RegionOffer(name=region.name, size=region.size, page_size=region.page_size)
            )
            region.close()
        return offers

    async def _connect(self) -> None:
        self._enter(Stage.CONNECT)
        self._context = client_context(self._request.certificates)
        self._channel = await self._dial()

    async def _dial(self) -> Channel:
        """A connection on which HELLO has been said."""
        request = self._request
        where = f"{request.host}:{request.port}"
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                reader, writer = await asyncio.open_connection(
                    *(request.host, request.port),
                    ssl=self._context,
                    server_hostname=request.tls_name or request.host,
                    limit=tunnel.LIMIT,
                )
        except TimeoutError:
            raise PeerError(
                f"the control plane at {where} does not answer",
                "look whether 'uffdmm serve' runs there with [migration] listen",
            ) from None
        except ssl.SSLCertVerificationError as error:
            raise CertificateError(
                f"the certificate of {where} is not accepted: {error.verify_message}",
                "both hosts need certificates of one authority; --tls-name gives the name in it",
            ) from None
        except OSError as error:
            raise PeerError(
                f"cannot reach the control plane at {where}: {error.strerror or error}",
                "look whether 'uffdmm serve' runs there with [migration] listen",
            ) from None
        channel = Channel(reader, writer)
        try:
            await channel.greet(_CONNECT_SECONDS)
        except PeerError:
            channel.close()
            raise
        return channel

    async def _arm_and_offer(self) -> None:
        assert self._link is not None
        self._enter(Stage.ARM)
        state = self._state
        state.session = secrets.randbits(63) | 1
        await self._ask(self._link.arm, state.session, state.tier)
        status = await self._ask(self._link.status)
        state.swap_ins = status.swap_ins
        self._enter(Stage.OFFER)
        accept = await self._offer(status.epoch, status.volume_uuid, dry_run=False)
        state.notes = accept.notes
        if accept.tier is None and state.tier:
            await self._ask(self._link.arm, state.session, 0)
            state.tier = 0
        state.tier_name = accept.tier if state.tier else None
        state.address = accept.address
        state.deposits = accept.deposits

    async def _offer(self, epoch: int, volume: bytes, *, dry_run: bool) -> Accept:
        assert self._link is not None
        assert self._channel is not None
        state = self._state
        tier = None
        if state.tier:
            shared = (await self._ask(self._link.vm.tiers))[state.tier]
            tier = frames.TierOffer(
                index=state.tier,
                name=shared.name,
                kind="nbd" if shared.type.value == "nbd" else "file",
                epoch=epoch,
                volume=volume.hex(),
            )
        await self._channel.send(
            frames.Offer(
                vm=self._request.vm,
                session=state.session or 1,
                regions=state.regions,
                tier=tier,
                channels=self._request.channels,
                direct=self._request.direct,
                dry_run=dry_run,
            )
        )
        answer = await self._channel.receive(_OFFER_SECONDS)
        if isinstance(answer, Refuse):
            raise PeerError(f"the destination refuses: {answer.message}", answer.remedy)
        if not isinstance(answer, Accept):
            raise PeerError(f"the destination answered the offer with '{kind_of(answer)}'")
        return answer

    async def _start(self) -> None:
        self._enter(Stage.START)
        request, qmp = self._request, self._qmp
        await qmp.capabilities(
            {
                "return-path": True,
                "swap-locations": True,
                "multifd": request.channels > 0,
            }
        )
        parameters: dict[str, object] = {"max_bandwidth": request.bandwidth or 1 << 40}
        if request.downtime_ms is not None:
            parameters["downtime_limit"] = request.downtime_ms
        if request.channels:
            parameters["multifd_channels"] = request.channels
        await qmp.execute("migrate-set-parameters", **parameters)
        if request.direct:
            if not self._state.address:
                raise PeerError("the destination named no address for QEMU's stream")
            uri = self._state.address.replace("{host}", request.host)
        else:
            uri = await self._open_tunnel()
        self._state.started = time.monotonic()
        await qmp.execute("migrate", uri=uri)

    async def _open_tunnel(self) -> str:
        remote = await self._dial()
        await remote.send(frames.Tunnel(session=self._state.session))
        local = await tunnel.open_socket(await self._qmp.stream(_STREAM))
        self._tasks.append(asyncio.create_task(tunnel.relay(local, (remote.reader, remote.writer))))
        return f"fd:{_STREAM}"

    async def _transfer(self) -> None:
        """Until QEMU says that all has arrived."""
        assert self._link is not None
        assert self._channel is not None
        self._enter(Stage.TRANSFER)
        deposits = self._state.deposits and await self._ask(self._link.takes_records)
        self._pump = Pump(
            *(self._link, self._busy, self._channel, self._state.session), deposits=deposits
        )
        names = [region.name for region in self._state.regions]
        pumping = asyncio.create_task(self._pump.run(names))
        watching = asyncio.create_task(self._watch())
        self._tasks += [pumping, watching]
        try:
            done, _ = await asyncio.wait((pumping, watching), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (pumping, watching):
                task.cancel()
            await asyncio.gather(pumping, watching, return_exceptions=True)

    async def _watch(self) -> None:
        """Follow QEMU's migration to its end.

        :raise UffdmmError: it failed
        """
        shown = 0.0
        while True:
            info = await self._qmp.migration()
            status = info["status"]
            now = time.monotonic()
            if status == "completed":
                self._state.ended, self._state.info = now, info
                self._update(info)
                return
            if status in ("failed", "cancelled", "cancelling"):
                reason = info.get("error-desc", "no reason given")
                raise UffdmmError(
                    f"QEMU's migration {'failed' if status == 'failed' else 'was cancelled'}"
                    f": {reason}",
                    "the logs of QEMU on both hosts say more",
                )
            if now - shown >= _SHOW_SECONDS:
                shown = now
                self._update(info)
            await asyncio.sleep(_POLL_SECONDS)

    def _update(self, info: dict[str, Any]) -> None:
        ram, located = info.get("ram", {}), info.get("swap-locations", {})
        self._progress = replace(
            self._progress,
            stage=self.stage,
            total_bytes=ram.get("total", self._progress.total_bytes),
            remaining_bytes=ram.get("remaining", 0),
            transferred_bytes=ram.get("transferred", 0),
            dirty_bytes_per_s=ram.get("dirty-pages-rate", 0) * ram.get("page-size", 4096),
            by_location=located.get("by-location", 0),
            by_content=located.get("by-content", 0),
            bypass=located.get("bypass", 0),
            location_bytes=self._pump.sent_bytes if self._pump else 0,
            seconds=time.monotonic() - self._state.started,
        )
        self._show(self._progress)

    async def _release(self) -> None:
        assert self._link is not None
        self._enter(Stage.RELEASE)
        status = await self._ask(self._link.status)
        self._state.swap_ins = status.swap_ins - self._state.swap_ins
        if status.stage is WorkerStage.RELEASED:
            self._state.epoch = status.epoch
            return
        deadline = time.monotonic() + _RELEASE_SECONDS
        while True:
            try:
                self._state.epoch = await self._ask(
                    self._link.release, self._state.session, self._request.host
                )
            except ManagerError as error:
                if error.code != errno.EAGAIN or time.monotonic() > deadline:
                    raise
            else:
                return
            await asyncio.sleep(1)

    async def _take(self) -> None:
        """Tell the destination until it has heard."""
        self._enter(Stage.TAKE)
        deadline = time.monotonic() + _RECONNECT_SECONDS
        resumed = self._pump is None
        while True:
            try:
                if not resumed or await self._resume():
                    await self._hand_over()
            except Refused:
                raise
            except PeerError:
                if time.monotonic() > deadline:
                    raise
            else:
                self._state.taken = time.monotonic()
                return
            await asyncio.sleep(1)
            resumed = True
            with contextlib.suppress(PeerError):
                self._drop_channel()
                self._channel = await self._dial()

    async def _resume(self) -> bool:
        """Name the session anew; False when its guest runs there already."""
        channel = self._need_channel()
        await channel.send(frames.Resume(vm=self._request.vm, session=self._state.session))
        answer = await channel.receive(_TAKE_SECONDS)
        if isinstance(answer, Refuse):
            # That the former connection is still open over there is no answer to this: it passes.
            final = answer.stage == Stage.TAKE
            text = f"the destination refuses: {answer.message}"
            raise (Refused if final else PeerError)(text, answer.remedy)
        if not isinstance(answer, frames.Waiting):
            raise PeerError(f"the destination answered with '{kind_of(answer)}'")
        return not answer.running

    async def _hand_over(self) -> None:
        channel = self._need_channel()
        await channel.send(frames.Released(epoch=self._state.epoch, run=self._state.was_running))
        while True:
            answer = await channel.receive(_TAKE_SECONDS)
            if isinstance(answer, frames.Ack):
                continue
            if isinstance(answer, Refuse):
                raise Refused(f"the destination cannot take it: {answer.message}", answer.remedy)
            if isinstance(answer, frames.Running):
                return
            raise PeerError(f"the destination answered with '{kind_of(answer)}'")

    async def _finish(self) -> None:
        self._enter(Stage.FINISH)
        if not self._request.keep:
            # QEMU may hang up before it has answered.
            with contextlib.suppress(QmpFailedError):
                await self._qmp.execute("quit")

    # ---- when something fails

    async def _undo(self, error: BaseException) -> MigrationError:
        """Bring this side back to where it was, if it may go back."""
        if isinstance(error, asyncio.CancelledError):
            error = UffdmmError("cancelled")
        where = None
        if self.stage in (Stage.ARM, Stage.OFFER, Stage.START, Stage.TRANSFER, Stage.RELEASE):
            where = await self._go_back(str(error))
        elif self.stage is Stage.TAKE:
            where = (
                "the guest must not run here any more: its volume is released in epoch"
                f" {self._state.epoch}; it waits on {self._request.host}, or runs there"
            )
            remedy = (
                "run this command again when the other host can be reached, or there:"
                f" uffdmm migrate {self._request.vm} --take"
            )
            error = UffdmmError(_message(error), remedy)
        elif self.stage is Stage.CONNECT and self._state.session:
            where = (
                "the guest stands still here since an attempt that was left; run this command again"
                " when the other host can be reached, or, unless its volume is released:"
                f" uffdmm migrate {self._request.vm} --abandon"
            )
        return _as_migration(self.stage, error, where)

    async def _go_back(self, reason: str) -> str | None:
        """End the attempt; where the guest is, None: as the table says."""
        if self._channel is not None and self.stage is not Stage.RELEASE:
            with contextlib.suppress(UffdmmError):
                await self._channel.send(
                    Refuse(stage=str(self.stage), message=f"the source gave up: {reason}"[:4000])
                )
        try:
            if self.stage in (Stage.START, Stage.TRANSFER):
                await self._cancel_qemu()
            await self._end_session()
            if self._state.was_running and await self._qmp.run_state() != "running":
                await self._qmp.execute("cont")
        except UffdmmError as failure:
            if self.stage is Stage.RELEASE:
                return (
                    "the guest is paused on both sides, and it is not certain whose the volume is:"
                    f" run this command again to find out ({failure.message})"
                )
            return f"the guest stays here, but look at it: {failure.message}"
        return "the guest runs here" if self._state.was_running else "the guest is paused here"

    async def _end_session(self) -> None:
        assert self._link is not None
        try:
            await self._ask(self._link.failed, self._state.session)
        except ManagerError as error:
            # QEMU ends its session itself when its migration fails.
            if error.code != errno.ENOENT:
                raise
        except ConnectError:
            # The worker died: the session died with it, and QEMU finds the next one by itself.
            if self.stage is Stage.RELEASE:
                raise

    async def _cancel_qemu(self) -> None:
        deadline = time.monotonic() + _CANCEL_SECONDS
        await self._qmp.execute("migrate_cancel")
        while (await self._qmp.migration())["status"] not in (
            *("cancelled", "failed", "completed"),
            "none",
        ):
            if time.monotonic() > deadline:
                raise QmpFailedError("QEMU does not end its migration", "look at its log")
            await asyncio.sleep(0.05)

    # ---- small things

    async def _dry_run(self) -> DryRun:
        self._enter(Stage.CHECK)
        obstacles: list[str] = []
        link = self._link = await aside(self._open)
        tiers = await self._ask(link.vm.tiers)
        index = shared_tier(tiers, self._request.tier)
        self._state.tier = index or 0
        self._state.regions = await self._ask(self._regions)
        expected = await self._ask(lambda: _forecast(link, index))
        try:
            await self._qmp.connect()
            if "swap-locations" not in await self._qmp.known_capabilities():
                obstacles.append("this QEMU has no migration capability 'swap-locations'")
        except QmpFailedError as error:
            obstacles.append(error.message)
        notes = [] if index else ["no tier of this VM can be read by other hosts"]
        tier: str | None = None
        try:
            await self._connect()
            self._enter(Stage.OFFER)
            accept = await self._offer(0, bytes(16), dry_run=True)
            tier, notes = accept.tier, notes + accept.notes
        except (PeerError, CertificateError) as error:
            obstacles.append(error.message)
        if tier is None and index:
            expected = await self._ask(lambda: _forecast(link, None))
        return DryRun(
            vm_name=self._request.vm,
            destination=f"{self._request.host}:{self._request.port}",
            possible=not obstacles,
            tier=tier,
            obstacles=obstacles,
            notes=notes,
            forecast=expected,
        )

    def _report(self) -> Report:
        state, progress = self._state, self._progress
        info = state.info
        return Report(
            vm_name=self._request.vm,
            destination=f"{self._request.host}:{self._request.port}",
            tier=state.tier_name if state.tier else None,
            total_ms=round((state.taken - state.started) * 1000),
            downtime_ms=info.get("downtime", 0),
            handover_ms=round((state.taken - state.ended) * 1000),
            bytes=info.get("ram", {}).get("transferred", 0) + progress.location_bytes,
            location_bytes=progress.location_bytes,
            pages_by_location=info.get("swap-locations", {}).get("located", 0),
            pages_by_content=progress.by_content,
            bypass_pages=progress.bypass,
            source_swap_ins=state.swap_ins,
            notes=state.notes,
        )

    def _enter(self, stage: Stage) -> None:
        self.stage = stage
        self._progress = replace(self._progress, stage=stage)
        self._show(self._progress)

    async def _ask(self, question: Callable[..., _T], *arguments: object) -> _T:
        """Ask the worker something, in a thread."""
        async with self._busy:
            return await aside(question, *arguments)

    def _need_channel(self) -> Channel:
        if self._channel is None:
            raise PeerError("there is no connection to the other control plane")
        return self._channel

    def _drop_channel(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._drop_channel()
        await self._qmp.close()
        if self._pump is not None:
            self._pump.close()
        if self._link is not None:
            self._link.close()


class Refused(PeerError):
    """The destination said no, and would again."""


def _forecast(link: MigrationLink, tier: int | None) -> Forecast:
    regions = link.vm.regions()
    try:
        return forecast(regions, tier)
    finally:
        for region in regions:
            region.close()


def _message(error: BaseException) -> str:
    return error.message if isinstance(error, UffdmmError) else str(error)


def _as_migration(stage: Stage, error: BaseException, where: str | None = None) -> MigrationError:
    remedy = error.remedy if isinstance(error, UffdmmError) else None
    return MigrationError(stage, _message(error), remedy, where)
