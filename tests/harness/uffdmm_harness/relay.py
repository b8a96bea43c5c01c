# SPDX-License-Identifier: GPL-2.0-or-later
"""A cable between two processes that a test can cut: passes TCP connections on to one address."""

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self

_BYTES = 1 << 16


class Relay:
    """Listens on a port of its own; each connection to it becomes one to the target.

    :param host: of the target
    :param port: of the target
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._open = True
        self._thread = threading.Thread(target=self._accept, daemon=True)

    @property
    def target(self) -> str:
        """Where to connect to, ``host:port``."""
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    @property
    def connections(self) -> int:
        """How many there have been."""
        return len(self._pairs)

    def cut(self, index: int) -> None:
        """Reset a connection on both sides, by its number in the order in which they came."""
        for end in self._pairs[index]:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while self._open:
            with contextlib.suppress(OSError):
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                self._pairs.append((near, far))
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=_pass, args=pair, daemon=True).start()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open = False
        # Closing alone does not wake who waits in accept().
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        for index in range(len(self._pairs)):
            self.cut(index)


def _pass(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(_BYTES):
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
