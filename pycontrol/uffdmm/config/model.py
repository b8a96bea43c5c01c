# SPDX-License-Identifier: GPL-2.0-or-later
"""What may stand in ``uffdmm.toml``: the one place where keys, types and descriptions are given.

uffdmm.toml(5) is compared with the descriptions here by a test.  Keys have dashes in the file and
underscores here.  A field that was not given is None, and the manager's own default holds.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, Tag

from .values import (
    DemoteAfter,
    Duration,
    ErrnoName,
    Limit,
    Listen,
    MonitorPath,
    NbdUri,
    Paths,
    Rate,
    Readahead,
    Size,
    SocketPath,
    SpinMax,
    TierName,
    TriggerPath,
    UserId,
    VmName,
)


class Table(BaseModel):
    """A TOML table: unknown keys are errors, and text is no number."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        alias_generator=lambda name: name.replace("_", "-"),
    )


class ManagerTable(Table):
    """``[manager]``: the manager as a whole, and what holds for each VM."""

    socket: SocketPath | None = Field(
        default=None,
        description="path of the socket to listen on; /run/uffdmm/manager.sock by default",
    )
    limit: Limit | None = Field(
        default=None,
        description="limit on the resident memory of each VM: a size, a percentage of its RAM, or"
        ' "none", the default',
    )
    readahead: Readahead | None = Field(
        default=None,
        description="largest read-ahead window in pages, 1 (off) to 64, the default",
    )
    demote_after: DemoteAfter | None = Field(
        default=None,
        description="a page that was not used for this time moves one tier down; never by default",
    )
    on_lost: Literal["wait", "poison"] | None = Field(
        default=None,
        description="what becomes of a page that cannot be read: wait lets the guest wait for it,"
        " the default; poison gives the guest an error for it after on-lost-after",
    )
    on_lost_after: DemoteAfter | None = Field(
        default=None,
        description="how long a page is waited for before it is poisoned; never by default",
    )
    allow_uids: Annotated[list[UserId], Field(max_length=16)] | None = Field(
        default=None,
        description="numbers of the users whose QEMU is accepted, besides root and the manager's"
        " own user; at most 16",
    )
    log_level: Literal["error", "warn", "info", "debug"] | None = Field(
        default=None, description="error, warn, info (the default) or debug"
    )
    spin_max: SpinMax | None = Field(
        default=None,
        description="longest busy wait for the next fault, at most 10ms; 50us by default",
    )
    tracking: bool | None = Field(
        default=None,
        description="false evicts in order of arrival, without access history; true by default",
    )


class ServeTable(Table):
    """``[serve]``: the control plane."""

    budget: Size | None = Field(
        default=None,
        description="memory for all VMs together, with what their workers and pools take; 90% of"
        " the host's by default",
    )
    policy: str | None = Field(
        default=None, description="fixed, shares (the default), stall, or an installed one"
    )
    interval: Duration | None = Field(
        default=None, description="time between samples, 50ms to 60s; 1s by default"
    )
    rate: Size | None = Field(
        default=None, description="by how much a limit may fall in a second; 128M by default"
    )
    stall_budget: Rate | None = Field(
        default=None,
        description="share of its vCPU time that a guest may lose to faults; 0.002 by default",
    )
    deadline: Duration | None = Field(
        default=None, description="how long a policy may take to decide; 500ms by default"
    )


class MigrationTable(Table):
    """``[migration]``: VMs that come from other hosts and go to them."""

    listen: Listen | None = Field(
        default=None,
        description='address and port on which uffdmm serve takes VMs in, as "0.0.0.0:7661";'
        " nobody may come by default",
    )
    certificates: SocketPath | None = Field(
        default=None,
        description="folder with ca-cert.pem, server-cert.pem, server-key.pem, client-cert.pem and"
        " client-key.pem; /etc/pki/uffdmm by default",
    )
    allow: Annotated[list[str], Field(max_length=64)] | None = Field(
        default=None,
        description="names in certificates of hosts whose VMs may come; all of the authority by"
        " default",
    )
    qmp: MonitorPath | None = Field(
        default=None,
        description="monitor socket of a VM, {vm} stands for its name; /run/uffdmm/{vm}.qmp by"
        " default",
    )
    prefetch: bool | None = Field(
        default=None,
        description="whether a VM that has come is given what it used last without asking for it;"
        " true by default",
    )


class ErrorTable(Table):
    """``error`` of a tier: requests that fail on purpose."""

    rate: Rate = Field(description="share of the requests that fail, 0 to 1")
    errno: ErrnoName | None = Field(default=None, description="what they fail with; EIO by default")
    ops: Literal["read", "write", "both"] | None = Field(
        default=None, description="which requests: read, write or both, the default"
    )
    trigger: TriggerPath | None = Field(
        default=None, description="only while this file exists; always by default"
    )


class DelayTable(Table):
    """``delay`` of a tier: requests that take longer on purpose."""

    read: Duration | None = Field(default=None, description="time that is added to each read")
    write: Duration | None = Field(default=None, description="time that is added to each write")
    shape: Literal["fixed", "uniform", "exponential"] | None = Field(
        default=None,
        description="fixed (the default), uniform from 0 to twice the time, or exponential with the"
        " time as mean",
    )
    trigger: TriggerPath | None = Field(
        default=None, description="only while this file exists; always by default"
    )


class TierTable(Table):
    """What every ``[[tier]]`` has."""

    name: TierName = Field(
        description="name of the tier, by which commands and other tables call it"
    )
    capacity: Size | None = Field(
        default=None,
        description="most that each VM may store here; what its RAM needs by default",
    )
    error: ErrorTable | None = Field(
        default=None, description="table: let requests fail, for tests of what depends on it"
    )
    delay: DelayTable | None = Field(
        default=None, description="table: let requests take longer, for tests"
    )


class PoolTier(TierTable):
    """Compressed pages in memory."""

    type: Literal["pool"] = Field(description="pool")
    codec: Literal["lz4", "zstd"] | None = Field(
        default=None, description="lz4 (fast, the default) or zstd (smaller)"
    )
    level: Annotated[int, Field(ge=1, le=19)] | None = Field(
        default=None, description="effort of zstd, 1 (the default) to 19"
    )
    inside_limit: bool | None = Field(
        default=None,
        description="true counts the pool's memory against the limit of its VM; false by default",
    )


class FileTier(TierTable):
    """Pages in files or on block devices."""

    type: Literal["file"] = Field(description="file")
    path: Paths = Field(
        description="a directory, in which each VM gets a file, or a block device; or an array of"
        " up to 8 of them",
    )
    shared: bool | None = Field(
        default=None,
        description="true when other hosts see the same files at this path; false by default",
    )


class NbdTier(TierTable):
    """Pages on an NBD server."""

    type: Literal["nbd"] = Field(description="nbd")
    uri: NbdUri = Field(
        description="address of the export, nbds:// with TLS; {vm} in it stands for the name of"
        " the VM",
    )
    connections: Annotated[int, Field(ge=1, le=16)] | None = Field(
        default=None,
        description="connections to the server if it allows several, 1 to 16; 4 by default",
    )


AnyTier = Annotated[
    Annotated[PoolTier, Tag("pool")]
    | Annotated[FileTier, Tag("file")]
    | Annotated[NbdTier, Tag("nbd")],
    Field(discriminator="type"),
]
TIER_MODELS: dict[str, type[TierTable]] = {"pool": PoolTier, "file": FileTier, "nbd": NbdTier}


class VmTierTable(Table):
    """``[vm.NAME.tier.TIER]``: one tier for one VM."""

    capacity: Size | None = Field(default=None, description="most that this VM may store in it")
    codec: Literal["lz4", "zstd"] | None = Field(
        default=None, description="codec for this VM; pools only"
    )


class VmTable(Table):
    """``[vm.NAME]``: what is different for one VM."""

    limit: Limit | None = Field(default=None, description="as in [manager], for this VM")
    readahead: Readahead | None = Field(default=None, description="as in [manager], for this VM")
    demote_after: DemoteAfter | None = Field(
        default=None, description="as in [manager], for this VM"
    )
    on_lost: Literal["wait", "poison"] | None = Field(
        default=None, description="as in [manager], for this VM"
    )
    min: Size | None = Field(default=None, description="least that the control plane leaves it")
    max: Size | None = Field(default=None, description="most that the control plane gives it")
    shares: Annotated[int, Field(ge=1, le=10000)] | None = Field(
        default=None, description="weight among the VMs of the host, 1 to 10000; 100 by default"
    )
    priority: Annotated[int, Field(ge=0, le=100)] | None = Field(
        default=None, description="0 to 100, higher ones are served first; 50 by default"
    )
    opt_out: bool | None = Field(
        default=None, description="true: the control plane leaves it alone; false by default"
    )
    qmp: SocketPath | None = Field(
        default=None, description="its monitor socket, if not where [migration] qmp says"
    )
    tier: dict[str, VmTierTable] = Field(
        default_factory=dict, description="tables by name of a tier, see below"
    )


class Config(Table):
    """The whole document."""

    manager: ManagerTable = Field(default_factory=ManagerTable, description="table, see below")
    serve: ServeTable = Field(default_factory=ServeTable, description="table, see below")
    migration: MigrationTable = Field(
        default_factory=MigrationTable, description="table, see below"
    )
    tier: list[AnyTier] = Field(
        default_factory=list, description="array of tables, see below; fastest first, at most 7"
    )
    vm: dict[VmName, VmTable] = Field(
        default_factory=dict, description="tables by name of a VM, see below; at most 64"
    )
