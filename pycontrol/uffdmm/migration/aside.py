# SPDX-License-Identifier: GPL-2.0-or-later
"""Work in a thread that is waited for in any case.

A thread cannot be stopped.  Were its caller to go on when it is cancelled, the next question would
meet the former one's answer on the connection to the worker, and a set would be unmapped while it
is being looked at.
"""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_T = TypeVar("_T")
_P = ParamSpec("_P")


async def aside(work: Callable[_P, _T], *arguments: _P.args, **named: _P.kwargs) -> _T:
    """The result of ``work``; when cancelled, that takes effect once the work has ended."""
    task = asyncio.ensure_future(asyncio.to_thread(work, *arguments, **named))
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        # Nobody is there for what the work has to say.
        task.exception()
        raise cancelled
    return task.result()
