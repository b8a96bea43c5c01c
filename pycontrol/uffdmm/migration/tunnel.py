# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's own stream inside TLS: bytes between two connections, both ways, until one ends."""

import asyncio
import contextlib
import socket

LIMIT = 1 << 20
"""Bytes that may wait in each direction."""


async def relay(
    first: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    second: tuple[asyncio.StreamReader, asyncio.StreamWriter],
) -> int:
    """Pass bytes on until either side ends; closes both.  Bytes from first to second."""
    for _, writer in (first, second):
        writer.transport.set_write_buffer_limits(high=LIMIT)
    there = asyncio.create_task(_pass(first[0], second[1]))
    back = asyncio.create_task(_pass(second[0], first[1]))
    try:
        await asyncio.wait((there, back), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (there, back):
            task.cancel()
        passed, _ = await asyncio.gather(there, back, return_exceptions=True)
        for _, writer in (first, second):
            writer.close()
            # What was written before still goes out; a peer that has gone does not matter.
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(5):
                    await writer.wait_closed()
    return passed if isinstance(passed, int) else 0


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
    passed = 0
    with contextlib.suppress(OSError):
        while data := await reader.read(LIMIT):
            writer.write(data)
            await writer.drain()
            passed += len(data)
    return passed


async def open_socket(
    ours: socket.socket,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Streams of a connected socket."""
    return await asyncio.open_connection(sock=ours, limit=LIMIT)
