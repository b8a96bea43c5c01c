# SPDX-License-Identifier: GPL-2.0-or-later
"""What a migration is asked for, how far it is, and what it tells at the end."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from .plan import Forecast
from .stages import Stage


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for."""

    vm: str
    host: str
    port: int
    qmp: Path
    certificates: Path
    tier: str | None = None  # name of the shared tier; None: the fullest one
    direct: bool = False  # QEMU's stream in plain TCP, past TLS
    channels: int = 0  # of multifd
    bandwidth: int = 0  # bytes a second, 0: all there is
    downtime_ms: int | None = None  # None: as QEMU has it
    tls_name: str | None = None  # name in the certificate, if it is not the host
    keep: bool = False  # leave QEMU on this side, paused


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a migration is."""

    stage: Stage = Stage.CHECK
    total_bytes: int = 0
    remaining_bytes: int = 0
    transferred_bytes: int = 0
    dirty_bytes_per_s: int = 0
    by_location: int = 0
    by_content: int = 0
    bypass: int = 0
    location_bytes: int = 0
    seconds: float = 0.0

    @property
    def seconds_left(self) -> float | None:
        """An estimate, None before there is anything to go by."""
        done = self.total_bytes - self.remaining_bytes
        if self.seconds < 0.5 or done <= 0:
            return None
        return self.remaining_bytes * self.seconds / done


class Report(BaseModel):
    """The JSON document of ``uffdmm migrate``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vm_name: str = Field(description="name of the VM")
    destination: str = Field(description="host and port of the control plane it went to")
    tier: str | None = Field(description="tier whose pages went by location, null if there is none")
    total_ms: int = Field(description="from the start of QEMU's migration until the guest ran")
    downtime_ms: int = Field(description="how long QEMU says that the guest stood still")
    handover_ms: int = Field(description="from QEMU's end until the guest ran on the destination")
    bytes: int = Field(description="what went over: QEMU's stream and the locations")
    location_bytes: int = Field(description="part of it that was locations")
    pages_by_location: int = Field(description="pages of which only the location went")
    pages_by_content: int = Field(description="pages that were read in guest memory")
    bypass_pages: int = Field(description="swapped pages sent without bringing them in")
    source_swap_ins: int = Field(description="pages that the migration brought in")
    notes: list[str] = Field(description="what the destination remarked")


class DryRun(BaseModel):
    """The JSON document of ``uffdmm migrate --dry-run``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vm_name: str = Field(description="name of the VM")
    destination: str = Field(description="host and port of the control plane that was asked")
    possible: bool = Field(description="whether nothing stands in the way")
    tier: str | None = Field(description="tier whose pages would go by location")
    obstacles: list[str] = Field(description="what stands in the way")
    notes: list[str] = Field(description="what makes it slower than it could be")
    forecast: Forecast = Field(description="memory of the VM by how it would go")
