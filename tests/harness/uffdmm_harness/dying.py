# SPDX-License-Identifier: GPL-2.0-or-later
"""``uffdmm`` that is killed at a moment of a migration that is too short to be hit from outside.

``python -m uffdmm_harness.dying MOMENT`` stands for ``python -m uffdmm``.  A moment of the source
is a stage, at whose beginning it dies; those of the destination are ``released``, when it hears
that the volume is its own, and ``cont``, when it has taken it and would let the guest run.
"""

import os
import signal
import sys
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

from uffdmm.cli.app import main
from uffdmm.migration import destination
from uffdmm.migration.qmp import Qmp
from uffdmm.migration.source import Source
from uffdmm.migration.stages import Stage

# All stages go through it.
_enter = Source._enter


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _run(moment: str) -> int:
    execute = Qmp.execute

    async def taken(*_arguments: object, **_named: object) -> None:
        _die()

    async def executed(qmp: Qmp, command: str, /, **arguments: object) -> Any:
        if command == "cont":
            _die()
        return await execute(qmp, command, **arguments)

    def entered(source: Source, stage: Stage) -> None:
        if stage == moment:
            _die()
        _enter(source, stage)

    with ExitStack() as changed:
        if moment == "released":
            changed.enter_context(patch.object(destination, "take_and_run", taken))
        elif moment == "cont":
            changed.enter_context(patch.object(Qmp, "execute", executed))
        else:
            Stage(moment)
            changed.enter_context(patch.object(Source, "_enter", entered))
        return main()


def program(moment: str) -> tuple[str, ...]:
    """Python's arguments for it."""
    return ("-m", "uffdmm_harness.dying", moment)


if __name__ == "__main__":
    sys.exit(_run(sys.argv.pop(1)))
