# SPDX-License-Identifier: GPL-2.0-or-later
"""HTTP for scrapes, in a thread of its own."""

import ipaddress
from types import TracebackType
from typing import Self

from prometheus_client import CollectorRegistry, start_http_server

from ..errors import AddressError, UffdmmError
from .collector import UffdmmCollector

DEFAULT_LISTEN = "127.0.0.1:9184"


def parse_address(text: str) -> tuple[str, int]:
    """Address and port of ``ADDR:PORT``; an IPv6 address stands in brackets.

    :raise AddressError: it is none; a name is refused, since it may stand for several addresses
    """
    host, colon, port = text.rpartition(":")
    address = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        version: int = ipaddress.ip_address(address).version
    except ValueError:
        version = 0
    bracketed = address != host
    # isdigit() alone would also take digits of other scripts.
    number = int(port) if port.isascii() and port.isdigit() else -1
    if not colon or version != (6 if bracketed else 4) or not 0 <= number <= 65535:
        raise AddressError(
            f"'{text}' is not an address and a port", "write 127.0.0.1:9184 or [::1]:9184"
        )
    return address, number


class MetricsServer:
    """Answers scrapes of ``http://ADDRESS:PORT/metrics`` until it is closed.  A context manager.

    :param collector: what is served; closed with the server
    :param address: to listen on; 0.0.0.0 and :: let everybody look
    :param port: 0 takes a free one, see :attr:`port`
    :raise UffdmmError: it cannot listen there
    """

    def __init__(self, collector: UffdmmCollector, address: str, port: int) -> None:
        self._collector = collector
        registry = CollectorRegistry(auto_describe=False)
        registry.register(collector)
        try:
            self._server, self._thread = start_http_server(port, address, registry)
        except OSError as error:
            collector.close()
            reason = (error.strerror or str(error)).lower()
            raise UffdmmError(
                f"cannot listen on {address}:{port}: {reason}", "choose another one with --listen"
            ) from None
        self.address = address
        self.port: int = self._server.server_port

    def close(self) -> None:
        """End the server and give back what it held."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._collector.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
