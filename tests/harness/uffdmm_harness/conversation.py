# SPDX-License-Identifier: GPL-2.0-or-later
"""The source's side of a migration's conversation, one frame at a time, right or wrong."""

import json
import socket
import ssl
import struct
from types import TracebackType
from typing import Any, Self

_HEADER = struct.Struct("<IBBHI")
_MAGIC = 0x4D46_4655
_SECONDS = 20.0


class Conversation:
    """A connection to ``uffdmm serve``.

    :param host: its address
    :param port: its port
    :param context: certificates of this side
    """

    def __init__(self, host: str, port: int, context: ssl.SSLContext) -> None:
        plain = socket.create_connection((host, port), _SECONDS)
        self._socket = context.wrap_socket(plain, server_hostname=host)

    def send(self, message: dict[str, Any]) -> None:
        """Send a message as it is."""
        payload = json.dumps(message).encode()
        self._socket.sendall(_HEADER.pack(_MAGIC, 1, 0, 0, len(payload)) + payload)

    def receive(self) -> dict[str, Any] | None:
        """The next message, None when the other side has hung up."""
        try:
            header = self._read(_HEADER.size)
            payload = self._read(_HEADER.unpack(header)[4]) if header else b""
        except (ssl.SSLError, ConnectionError):
            return None
        if not payload:
            return None
        message: dict[str, Any] = json.loads(payload)
        return message

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self._socket.recv(size - len(data))
            if not more:
                return b""
            data += more
        return data

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send a message; the answer.

        :raise ConnectionError: there is none
        """
        self.send(message)
        answer = self.receive()
        if answer is None:
            raise ConnectionError(f"no answer to {message['type']}")
        return answer

    def greeted(self) -> dict[str, Any] | None:
        """What the other side begins with, None if it does not talk to us."""
        return self.receive()

    def greet(self) -> None:
        """Say hello, and hear it."""
        self.send({"type": "hello", "version": 1, "lowest": 1, "agent": "test"})
        if self.greeted() is None:
            raise ConnectionError("no greeting")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()
