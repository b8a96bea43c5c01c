# SPDX-License-Identifier: GPL-2.0-or-later
"""The stages of a migration, in order, and what a failure in each of them means.

One table, so that every error names its stage and every stage says who may run the guest.
"""

from dataclasses import dataclass
from enum import StrEnum

from ..errors import UffdmmError


class Stage(StrEnum):
    """What is being done."""

    CHECK = "check"
    CONNECT = "connect"
    ARM = "arm"
    OFFER = "offer"
    START = "start"
    TRANSFER = "transfer"
    RELEASE = "release"
    TAKE = "take"
    FINISH = "finish"


@dataclass(frozen=True, slots=True)
class Meaning:
    """Of one stage: what is done in it, and where the guest is when it fails."""

    does: str
    failed: str


STAGES: dict[Stage, Meaning] = {
    Stage.CHECK: Meaning("look at the VM on this side", "nothing was changed"),
    Stage.CONNECT: Meaning("connect to the control plane over there", "nothing was changed"),
    Stage.ARM: Meaning("prepare the manager of this side", "the guest runs here"),
    Stage.OFFER: Meaning("have the destination prepare itself", "the guest runs here"),
    Stage.START: Meaning("tell QEMU to migrate", "the guest runs here"),
    Stage.TRANSFER: Meaning(
        "send content and locations until the guest has stopped", "the guest runs here"
    ),
    Stage.RELEASE: Meaning(
        "give the volume to the destination",
        "the guest is paused on both sides, and this side still has its volume",
    ),
    Stage.TAKE: Meaning(
        "have the destination take the volume and let the guest run",
        "the guest must not run here any more; it is complete, perhaps paused, over there",
    ),
    Stage.FINISH: Meaning("end QEMU on this side", "the guest runs over there"),
}


class MigrationError(UffdmmError):
    """A migration that did not happen, or stopped half-way.

    :param stage: where
    :param message: what went wrong
    :param remedy: what to do, or None
    :param where: where the guest is, if other than the table says
    """

    def __init__(
        self, stage: Stage, message: str, remedy: str | None = None, where: str | None = None
    ) -> None:
        self.stage = stage
        self.where = where or STAGES[stage].failed
        super().__init__(f"migration failed at stage '{stage}': {message}; {self.where}", remedy)
        self.reason = message
